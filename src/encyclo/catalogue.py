"""Which systems exist. Opens one lazily by its slug; listing them imports neither torch nor any system."""

import ast
import difflib
import functools
import importlib
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from encyclo.card import WINGS, Card
from encyclo.errors import InputError

if TYPE_CHECKING:
    from encyclo.system import System

_SYSTEMS = Path(__file__).parent / "systems"


def _read_card(path: Path) -> Card | None:
    """The `CARD = Card(...)` literal of a system's file, or None where the file has none."""
    lines = path.read_text(encoding="utf-8").splitlines()
    for first, line in enumerate(lines):
        if line.startswith("CARD = Card("):
            last = next(i for i in range(first, len(lines)) if lines[i].startswith(")"))
            call = ast.parse("\n".join(lines[first : last + 1])).body[0]
            assert isinstance(call, ast.Assign)
            assert isinstance(call.value, ast.Call)
            return Card(**{word.arg: ast.literal_eval(word.value) for word in call.value.keywords if word.arg})
    return None


@functools.cache
def cards() -> dict[str, Card]:
    """All cards by slug, in the order of wings, then of slugs."""
    found: dict[str, Card] = {}
    for wing in WINGS:
        for path in sorted((_SYSTEMS / wing).glob("*.py")):
            card = _read_card(path)
            if card is not None:
                found[card.slug] = card
    return found


def source(slug: str) -> Path:
    """The file that implements a system."""
    entry = card(slug)
    return _SYSTEMS / entry.wing / f"{entry.slug.replace('-', '_')}.py"


def card(slug: str) -> Card:
    """The card of one system.

    Raises:
        InputError: for an unknown slug; the message suggests the nearest known one.
    """
    known = cards()
    if slug in known:
        return known[slug]
    near = difflib.get_close_matches(slug.lower().replace("_", "-"), known, n=1, cutoff=0.4)
    hint = f"did you mean '{near[0]}'?" if near else "`encyclo list` shows all."
    raise InputError(f"no system is called '{slug}': {hint}")


def module(slug: str) -> ModuleType:
    """The module that implements a system, imported now."""
    return importlib.import_module(card(slug).module)


def systems(slug: str) -> dict[str, type["System"]]:
    """The system and its rivals: every `System` class defined in the file, by class name."""
    from encyclo.system import System

    opened = module(slug)
    return {
        name: value
        for name, value in vars(opened).items()
        if isinstance(value, type) and issubclass(value, System) and value.__module__ == opened.__name__
    }


def system(slug: str) -> type["System"]:
    """The class of the published system itself: the first whose card is the file's."""
    opened = module(slug)
    for value in systems(slug).values():
        if value.__dict__.get("card") is opened.CARD:
            return value
    raise RuntimeError(f"{opened.__name__} defines no System with `card = CARD`")
