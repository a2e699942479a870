"""Real data in: bundled packs, the user's own files and folders, hub data sets, streams of shards: all as `Splits`.

`names` and `manifest` read small files only; the rest is loaded when first used, so `encyclo data list` stays quick.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from encyclo.data.batches import Batches as Batches
    from encyclo.data.bundled import Manifest as Manifest
    from encyclo.data.bundled import manifest as manifest
    from encyclo.data.bundled import names as names
    from encyclo.data.exporting import export as export
    from encyclo.data.splits import Splits as Splits
    from encyclo.data.splits import load as load

__all__ = ["Batches", "Manifest", "Splits", "export", "load", "manifest", "names"]

_HOME = {
    "Batches": "batches",
    "Manifest": "bundled",
    "Splits": "splits",
    "export": "exporting",
    "load": "splits",
    "manifest": "bundled",
    "names": "bundled",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
