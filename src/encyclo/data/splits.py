"""What `load` gives. Importing this loads neither `datasets` nor pyarrow, which take a second: `load` does."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    import datasets

    Rows: TypeAlias = datasets.Dataset | datasets.IterableDataset

__all__ = ["Splits", "load"]


@dataclass(frozen=True)
class Splits:
    """A data set, split once and for all.

    Attributes:
        name: what it was asked for as.
        kind: 'text', 'image', 'audio', 'video', 'pair' or 'table'.
        train, validation, test: disjoint; a `datasets.Dataset`, or a `datasets.IterableDataset` of streamed shards.
            Pictures, sound and video are the bytes of their files. For a few files validation and test may be empty.
        fingerprint: sha256, in hex, over content and splits.
        notes: everything lossy in reading it: files left out, bytes that could not be decoded ...
        peak: in pictures, the value that means white.
    """

    name: str
    kind: str
    train: "Rows"
    validation: "Rows"
    test: "Rows"
    fingerprint: str
    notes: tuple[str, ...] = ()
    peak: int = 255

    @property
    def streaming(self) -> bool:
        """Whether the splits are streams, which have no length."""
        import datasets

        return not isinstance(self.train, datasets.Dataset)


def load(spec: str, kind: str | None = None, *, seed: int = 0) -> Splits:
    """Load a data set.

    Args:
        spec: the name of a bundled pack; a file or folder; `hf:ID` or `hf:ID:CONFIG`; a glob of shards, which are
            streamed; or several of these (but streams) joined by '+'.
        kind: what is needed; None takes what is there. A pack may have several views, as `glosses` ('text', 'pair').
        seed: draws the splits of the user's own data (90 / 5 / 5 by the hash of file or document, unless there are
            folders train, validation and test); the packs' splits are fixed.

    Raises:
        InputError: unknown name, missing path, nothing that can be read, or another kind than `kind`.
    """
    from encyclo.data import loading

    return loading.read(spec, kind, seed)
