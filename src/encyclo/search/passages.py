"""Cuts a text into passages of a bounded length, remembering where each one stands."""

import re
from itertools import pairwise

__all__ = ["cut_passages"]

_PARAGRAPH = re.compile(r"\S(?:.*?\S)??(?=\s*\n[ \t]*\r?\n|\s*\Z)", re.DOTALL)
_SENTENCE = re.compile(r"\S(?:.*?[.!?…。][\"'”’)\]]*(?=\s|\Z)|.*\Z)", re.DOTALL)
_WORD = re.compile(r"\S+")


def cut_passages(text: str, *, words: int = 80) -> list[tuple[int, int]]:
    """Spans (start, end) of characters, in order, together covering all that is not blank.

    A passage is a paragraph; a longer one is cut between sentences, an overlong sentence between words, and a short
    paragraph (a heading) goes with what follows it.

    Args:
        text: any.
        words: most words of a passage.
    """
    pieces = [
        piece for found in _PARAGRAPH.finditer(text) for piece in _divide(text, found.start(), found.end(), words)
    ]
    joined: list[tuple[int, int, int]] = []
    for start, end, count in pieces:
        if joined and joined[-1][2] < min(words // 4, 12) and joined[-1][2] + count <= words:
            first, _, before = joined.pop()
            joined.append((first, end, before + count))
        else:
            joined.append((start, end, count))
    return [(start, end) for start, end, _ in joined]


def _divide(text: str, start: int, end: int, words: int) -> list[tuple[int, int, int]]:
    """Pieces (start, end, words) of one paragraph."""
    places = [found.start() for found in _WORD.finditer(text, start, end)]
    if len(places) <= words:
        return [(start, end, len(places))]
    made: list[tuple[int, int, int]] = []
    for found in _SENTENCE.finditer(text, start, end):
        spots = [word.span() for word in _WORD.finditer(text, found.start(), found.end())]
        cuts = [*range(0, len(spots), words), len(spots)]
        for a, b in pairwise(cuts):
            span = (spots[a][0], spots[b - 1][1], b - a)
            if made and made[-1][2] + span[2] <= words:
                made[-1] = (made[-1][0], span[1], made[-1][2] + span[2])
            else:
                made.append(span)
    return made
