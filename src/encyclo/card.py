"""The facts about a paper, readable without importing the system that implements it."""

from dataclasses import asdict, dataclass
from typing import Any

WINGS = ("text", "code", "image", "generation", "video", "vision_language", "audio", "sequence", "interpret")


@dataclass(frozen=True, kw_only=True)
class Card:
    """One published system as the catalogue shows it.

    Every field is a plain literal: the catalogue reads a card from the source text of a system's file, so that
    listing all systems imports none of them.
    """

    slug: str
    title: str
    authors: str
    year: int
    arxiv: str
    wing: str
    summary: str
    verbs: tuple[str, ...]
    venue: str = ""
    code: str = ""
    code_licence: str = ""
    keywords: tuple[str, ...] = ()
    retrofit: bool = False

    def __post_init__(self) -> None:
        if self.wing not in WINGS:
            raise ValueError(f"card {self.slug!r}: wing {self.wing!r} is none of {', '.join(WINGS)}")

    @property
    def module(self) -> str:
        """Import path of the system's file."""
        return f"encyclo.systems.{self.wing}.{self.slug.replace('-', '_')}"

    @property
    def url(self) -> str:
        """Address of the paper."""
        return f"https://arxiv.org/abs/{self.arxiv}"

    def as_dict(self) -> dict[str, Any]:
        """The card as plain values, for JSON."""
        return asdict(self)
