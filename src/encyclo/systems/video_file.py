"""The file of a fitted video: what its header tells, and what is refused before memory is taken."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any, Final

from pydantic import ValidationError

from encyclo.config import Config
from encyclo.data.video import MAX_PIXELS
from encyclo.errors import InputError
from encyclo.tokens import container

if TYPE_CHECKING:
    from encyclo.systems.fitted_video import FittedVideo

__all__ = ["MOST_SCALARS", "FittedFile", "pack", "sizes", "unpack"]

MOST_SCALARS: Final = 1 << 28
"""Numbers of a model that a file may make us hold."""


class _Header(Config):
    """What a file tells beside its tensors."""

    kind: str
    rate: tuple[int, int]
    config: dict[str, Any]
    name: str = ""


@dataclass(frozen=True)
class FittedFile:
    """What a file holds, checked: its contents can be built without harm."""

    config: Any
    """Of the system that is to be built, without what only fitting needs."""
    fps: Fraction
    name: str
    sections: Mapping[str, bytes]


def pack(system: "FittedVideo", sections: Mapping[str, bytes]) -> bytes:
    """A file of a fitted system's coded tensors."""
    fps = Fraction(system.clip.get("fps", "25"))
    header = _Header(
        kind=type(system).__name__,
        rate=(fps.numerator, fps.denominator),
        config=system.config.model_dump(mode="json", include=set(system.in_file), exclude_defaults=True),
        name=str(system.clip.get("name", ""))[:80],
    )
    return container.pack(system.card.slug, header.model_dump(mode="json"), sections)


def unpack(slug: str, blob: bytes) -> FittedFile:
    """What `pack` packed.

    Args:
        slug: of the system that must have written it.

    Raises:
        InputError: a file that is cut off, altered, of another system, not written by encyclo, or that declares more
            than is held.
    """
    from encyclo import catalogue
    from encyclo.systems.fitted_video import FittedVideo

    box = container.unpack(blob, system=slug)
    malformed = InputError("the file's header is malformed: it was not written by encyclo")
    try:
        header = _Header.model_validate(box.header)
        fps = Fraction(*header.rate)
    except (ValidationError, ZeroDivisionError):
        raise malformed from None
    kind = catalogue.systems(slug).get(header.kind)
    if kind is None or not issubclass(kind, FittedVideo):
        raise InputError(f"the file was made by '{header.kind}', which this encyclo does not know: install a newer one")
    if fps <= 0 or not set(header.config) <= set(kind.in_file):
        raise malformed
    try:
        config: Any = kind.Config.model_validate({**header.config, **kind.decoding_only})
    except ValidationError:
        raise malformed from None
    pixels = max(config.frames * config.height * config.width, math.prod(config.padded))
    if pixels > MAX_PIXELS or kind.numbers(config) > MOST_SCALARS:
        raise InputError(
            f"the file declares {config.frames} frames of {config.width}x{config.height} and {kind.numbers(config)}"
            " numbers: more than is decoded"
        )
    return FittedFile(config, fps, header.name, box.sections)


def sizes(blob: bytes) -> dict[str, int]:
    """Bytes of a file and of its sections, by name."""
    return {"whole file": len(blob), **{name: len(part) for name, part in container.unpack(blob).sections.items()}}
