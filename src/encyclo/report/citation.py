"""The papers of all systems as references in CITATION.cff (Citation File Format 1.2.0), made from the cards.

`python -m encyclo.report.citation --write` puts them behind the file's own lines; `--check` says (exit 1) when they are
not current.
"""

import argparse
import json
import sys
from pathlib import Path

from encyclo import catalogue
from encyclo.card import Card

BEGIN = "# The papers of the systems, made from their cards by `make scoreboard`\nreferences:\n"


def reference(card: Card) -> str:
    """One paper as an entry of `references`. Strings are quoted as JSON, which YAML reads."""
    lines = [
        ("type", "article"),
        ("title", card.title),
        ("year", card.year),
        ("url", card.url),
        *([("journal", card.venue)] if card.venue else []),
    ]
    text = "\n    ".join(f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in lines)
    authors = f"\n    authors:\n      - name: {json.dumps(card.authors, ensure_ascii=False)}"
    identifiers = f'\n    identifiers:\n      - type: other\n        value: "arXiv:{card.arxiv}"'
    return f"  - {text}{authors}{identifiers}\n"


def updated(text: str) -> str:
    """The file's text with its references made anew."""
    return text.split(BEGIN)[0].rstrip("\n") + "\n" + BEGIN + "".join(map(reference, catalogue.cards().values()))


def main() -> int:
    """Write or check; returns the exit status."""
    parser = argparse.ArgumentParser(description="References of CITATION.cff from the cards.")
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--root", type=Path, default=Path())
    given = parser.parse_args()
    path = given.root / "CITATION.cff"
    old = path.read_text(encoding="utf-8")
    new = updated(old)
    if given.write and new != old:
        path.write_text(new, encoding="utf-8")
        print("wrote CITATION.cff")
    if given.check and new != old:
        print("CITATION.cff: the references are not current; run `make scoreboard`", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
