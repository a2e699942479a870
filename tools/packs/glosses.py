"""Makes the pack `glosses`: WordNet 3.0's definitions, from the Debian package wordnet-base."""

import re
from collections.abc import Iterator

import pyarrow as pa
from _lib import deb, fixed_splits, write_pack

VERSION = "1:3.0-37"
PARTS = {"noun": "noun", "verb": "verb", "adj": "adjective", "adv": "adverb"}
COLUMNS = ("lemma", "pos", "gloss", "examples", "synset")


def synsets() -> Iterator[tuple[str, ...]]:
    """One row a synset, under its first lemma."""
    folder = deb("wordnet-base", VERSION) / "usr" / "share" / "wordnet"
    for part, pos in PARTS.items():
        with (folder / f"data.{part}").open(encoding="utf-8") as file:
            for line in file:
                if line.startswith("  "):  # the licence stands on top
                    continue
                facts, _, said = line.partition(" | ")
                fields = facts.split()
                lemma = re.sub(r"\((?:a|p|ip)\)$", "", fields[4]).replace("_", " ")
                examples = re.findall(r'"([^"]+)"', said)
                gloss = re.split(r';?\s*"', said.strip(), maxsplit=1)[0].strip(" ;")
                if not gloss:
                    continue
                yield lemma, pos, gloss, " | ".join(examples), f"{fields[0]}-{fields[2].replace('s', 'a')}"


def groups(rows: list[tuple[str, ...]]) -> list[str]:
    """For each row the group that a split keeps whole: rows that share a lemma or a gloss, directly or by a chain."""
    parent: dict[str, str] = {}

    def find(key: str) -> str:
        while parent.setdefault(key, key) != key:
            parent[key] = parent[parent[key]]
            key = parent[key]
        return key

    for lemma, _, gloss, _, _ in rows:
        first, second = sorted((find(f"lemma {lemma.lower()}"), find(f"gloss {gloss}")))
        parent[second] = first
    return [find(f"lemma {row[0].lower()}") for row in rows]


def main() -> None:
    rows = list(synsets())
    assert len(rows) > 117_000
    kept_whole = groups(rows)
    splits = fixed_splits(kept_whole)
    tables = {
        split: pa.table(
            {
                column: pa.array(
                    [row[index] for row, group in zip(rows, kept_whole, strict=True) if splits[group] == split],
                    pa.string(),
                )
                for index, column in enumerate(COLUMNS)
            }
        )
        for split in ("train", "validation", "test")
    }
    copyright_file = deb("wordnet-base", VERSION) / "usr" / "share" / "doc" / "wordnet-base" / "copyright"
    write_pack(
        "glosses",
        views=("pair", "text"),
        tables={(): tables},
        columns={
            "pair": {"query": "{lemma} ({pos})", "document": "{gloss}"},
            "text": {"text": "{lemma} ({pos}): {gloss}", "document": "{synset}"},
        },
        hub_licence="other",
        tasks=("text-retrieval", "sentence-similarity"),
        languages=("en",),
        texts={"LICENSE.txt": copyright_file.read_text(encoding="utf-8")},
        title="WordNet glosses",
        description="The definitions of WordNet 3.0, one row a synset under its first lemma, with part of speech, usage"
        " examples (joined by ' | ') and synset id. As `pair`: query 'dog (noun)', document the definition. As `text`:"
        " 'dog (noun): definition'. No lemma, synset or definition stands in two splits.",
        source="https://wordnet.princeton.edu/",
        package=f"Debian wordnet-base {VERSION}",
        licence="WordNet 3.0 licence",
        licence_url="https://wordnet.princeton.edu/license-and-commercial-use",
        attribution="WordNet 3.0 Copyright 2006 by Princeton University. All rights reserved. (The licence lies"
        " beside the"
        " data in LICENSE.txt.)",
        notes=(
            "a lemma with several meanings is the query of several documents",
            "the other lemmas of a synset are left out: with them, lemmas and synsets could not both be kept apart",
        ),
    )


if __name__ == "__main__":
    main()
