"""Makes the pack `kjv`: the King James Bible, verse by verse, from the Debian packages bible-kjv and bible-kjv-text."""

import re
import subprocess

import pyarrow as pa
from _lib import deb, fixed_splits, write_pack

VERSION = "4.38"

BOOKS = [
    "Genesis", "Exodus", "Leviticus", "Numbers", "Deuteronomy", "Joshua", "Judges", "Ruth", "1 Samuel",
    "2 Samuel", "1 Kings", "2 Kings", "1 Chronicles", "2 Chronicles", "Ezra", "Nehemiah", "Esther", "Job",
    "Psalms", "Proverbs", "Ecclesiastes", "Song of Solomon", "Isaiah", "Jeremiah", "Lamentations", "Ezekiel",
    "Daniel", "Hosea", "Joel", "Amos", "Obadiah", "Jonah", "Micah", "Nahum", "Habakkuk", "Zephaniah", "Haggai",
    "Zechariah", "Malachi", "Matthew", "Mark", "Luke", "John", "Acts", "Romans", "1 Corinthians", "2 Corinthians",
    "Galatians", "Ephesians", "Philippians", "Colossians", "1 Thessalonians", "2 Thessalonians", "1 Timothy",
    "2 Timothy", "Titus", "Philemon", "Hebrews", "James", "1 Peter", "2 Peter", "1 John", "2 John", "3 John",
    "Jude", "Revelation",
]  # fmt: skip


def main() -> None:
    program = deb("bible-kjv", VERSION) / "usr" / "bin" / "bible"
    data = deb("bible-kjv-text", VERSION) / "usr" / "lib"
    command = [str(program), "-p", str(data), "-f", "-l", "2000"]
    said = subprocess.run(command, input="gen1:1-rev22:21\n", check=True, stdout=subprocess.PIPE, text=True).stdout
    found = re.findall(r"^(\d?[A-Za-z]+)(\d+):(\d+) (.+)$", said, re.MULTILINE)
    verses = {(book, int(chapter), int(verse)): text.strip() for book, chapter, verse, text in found}
    assert len(verses) == 31102, len(verses)
    abbreviations = list(dict.fromkeys(book for book, _, _ in verses))
    assert len(abbreviations) == len(BOOKS) == 66
    names = dict(zip(abbreviations, BOOKS, strict=True))
    rows = [
        (text, f"{names[book]} {chapter}", f"{names[book]} {chapter}:{verse}")
        for (book, chapter, verse), text in verses.items()
    ]
    assert rows[0][2] == "Genesis 1:1"
    assert rows[-1][2] == "Revelation 22:21"
    splits = fixed_splits(document for _, document, _ in rows)
    tables = {
        split: pa.table(
            {
                column: pa.array([row[index] for row in rows if splits[row[1]] == split], pa.string())
                for index, column in enumerate(("text", "document", "reference"))
            }
        )
        for split in ("train", "validation", "test")
    }
    write_pack(
        "kjv",
        views=("text",),
        tables={(): tables},
        hub_licence="other",
        tasks=("text-generation", "fill-mask"),
        languages=("en",),
        title="King James Bible",
        description="The King James Version of 1611 in its received spelling, one verse a row; a document is a chapter"
        " (Genesis 1), and splits keep chapters whole.",
        source="Bible Retrieval System, Chip Chapin, 1989-1993; ftp.funet.fi:/pub/doc/religion/christian/Bible/unix",
        package=f"Debian bible-kjv {VERSION} and bible-kjv-text {VERSION}",
        licence="public domain",
        licence_url="https://sources.debian.org/src/bible-kjv/4.38/debian/copyright/",
        attribution="King James Version, text of the Bible Retrieval System by Chip Chapin, packaged by Matthew Vernon",
        notes=(
            "public domain by age; in the United Kingdom printing it is a privilege of the Crown",
            "verses repeat one another across books (Kings and Chronicles, the Gospels), so chapters held out are not"
            " wholly unseen",
        ),
    )


if __name__ == "__main__":
    main()
