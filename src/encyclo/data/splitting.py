"""Which split a document belongs to: decided by its name alone, so that it is the same on every machine and day."""

import hashlib
from collections.abc import Iterable, Sequence

__all__ = ["SPLITS", "assign", "split_by_name", "split_of", "split_of_name"]

SPLITS = ("train", "validation", "test")

_ALIASES = {
    "train": "train",
    "training": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
    "test": "test",
    "testing": "test",
}
_SHARE = 0.05  # of the documents, for validation and for test each


def split_of_name(name: str) -> str | None:
    """The split that a folder or split of this name means ('dev' is validation), or None."""
    return _ALIASES.get(name.lower())


def _draw(document: str, seed: int) -> float:
    """A number in [0, 1) that the document's name and the seed fix."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{document}".encode()).digest()[:8], "big") / 2**64


def split_of(document: str, seed: int) -> str:
    """The split of one document, 90 / 5 / 5 of all names."""
    draw = _draw(document, seed)
    return "test" if draw < _SHARE else "validation" if draw < 2 * _SHARE else "train"


def split_by_name(documents: Iterable[str], seed: int) -> dict[str, str]:
    """The split of each document, as `split_of`, but with no split empty where there are at least three documents."""
    drawn = sorted({document: _draw(document, seed) for document in documents}.items(), key=lambda item: item[1])
    order = [document for document, _ in drawn]
    if len(order) < 3:
        return dict.fromkeys(order, "train")
    test = min(max(1, sum(draw < _SHARE for _, draw in drawn)), len(order) - 2)
    held = min(max(test + 1, sum(draw < 2 * _SHARE for _, draw in drawn)), len(order) - 1)
    return {
        document: "test" if rank < test else "validation" if rank < held else "train"
        for rank, document in enumerate(order)
    }


def assign(documents: Sequence[str], named: Sequence[str | None], seed: int) -> tuple[list[str], list[str]]:
    """The split of each document, and notes.

    Args:
        documents: their names; equal names stay together.
        named: the split that a document's folder or file gives it, None for those to be drawn. Once any is given, the
            splits that nothing names are drawn out of train.
        seed: another seed draws other splits.
    """
    given = {split for split in named if split}
    pool = [document for document, split in zip(documents, named, strict=True) if split in (None, "train")]
    if given == set(SPLITS) and None not in named:
        return [str(split) for split in named], []
    lacking = set(SPLITS) - given if given else set(SPLITS)
    drawn = split_by_name(pool, seed)
    splits = [
        split if split not in (None, "train") else drawn[document] if drawn[document] in lacking else "train"
        for document, split in zip(documents, named, strict=True)
    ]
    count = len(set(pool))
    if given and lacking:
        notes = [
            f"{' and '.join(split for split in SPLITS if split in lacking)} taken from train by the hash of its names"
        ]
    elif count < 3:
        notes = [f"only {count} part{'s' if count != 1 else ''} to split: all in train, validation and test are empty"]
    else:
        notes = []
    return [str(split) for split in splits], notes
