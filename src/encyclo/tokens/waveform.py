"""Recordings to tensors: random segments for training, padding to whole frames, overlapping pieces of long ones."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Float32
from torch import Tensor

from encyclo.data.audio import read_audio

__all__ = ["Piece", "RandomSegments", "decoded", "pad_to_multiple", "pieces"]


class RandomSegments:
    """Collates rows of recordings into segments [b, n] cut at random places.

    A row is the bytes of a sound file, or a wave that `decoded` made of it. Of several channels one is drawn; a
    recording that is too short is padded with zeros behind.

    Args:
        rate: samples a second; other files are resampled.
        length: samples of a segment.
        generator: draws the places, on the CPU; the trainer's own makes them the same for all systems of an experiment.
    """

    def __init__(self, rate: int, length: int, *, generator: torch.Generator) -> None:
        self.rate, self.length, self.generator = rate, length, generator

    def __call__(
        self, rows: Mapping[str, Sequence[bytes]] | Sequence[Float32[Tensor, "_ _"]]
    ) -> Float32[Tensor, "b n"]:
        if isinstance(rows, Mapping):
            rows = [read_audio(blob, self.rate).samples for blob in rows["audio"]]
        return torch.stack([self._segment(samples) for samples in rows])

    def _segment(self, samples: Float32[Tensor, "c m"]) -> Float32[Tensor, " n"]:
        draws = torch.rand(2, generator=self.generator)
        wave = samples[int(draws[0] * samples.shape[0])]
        spare = wave.numel() - self.length
        if spare <= 0:
            return F.pad(wave, (0, -spare))
        start = int(draws[1] * (spare + 1))
        return wave[start : start + self.length]


_IN_MEMORY = 1 << 30
"""Bytes of samples up to which a data set is decoded once and kept."""
_kept: dict[tuple[str, int], list[Float32[Tensor, "_ _"]]] = {}


def decoded(rows: Any, rate: int, *, fingerprint: str) -> Any:
    """The recordings of a data set as waves [c, m] at `rate`, where they fit into 1 GiB; else the rows as they are.

    The waves of the last data set are kept for the process, so that the systems of an experiment share them.

    Args:
        rows: a data set with a column `audio`, or a stream (returned as it is).
        rate: samples a second.
        fingerprint: tells one data set from another.
    """
    if not hasattr(rows, "__len__"):
        return rows
    key = (fingerprint, rate)
    if key not in _kept:
        waves, held = [], 0
        for row in rows:
            samples = read_audio(row["audio"], rate).samples
            held += samples.numel() * samples.element_size()
            if held > _IN_MEMORY:
                return rows
            waves.append(samples)
        _kept.clear()
        _kept[key] = waves
    return _kept[key]


def pad_to_multiple(wave: Float[Tensor, "*b n"], hop: int) -> Float[Tensor, "*b m"]:
    """The wave with zeros behind, so that its length is a multiple of `hop` and at least one."""
    return F.pad(wave, (0, max(1, -(-wave.shape[-1] // hop)) * hop - wave.shape[-1]))


class Piece(NamedTuple):
    """One piece of a sequence that is worked through in pieces: [begin, end) out of what is read, [low, high)."""

    low: int
    begin: int
    end: int
    high: int


def pieces(length: int, size: int, context: int) -> Iterator[Piece]:
    """Cuts 0..length into pieces of `size`, each to be read with `context` more on either side, where there is more."""
    for begin in range(0, length, size):
        end = min(length, begin + size)
        yield Piece(max(0, begin - context), begin, end, min(length, end + context))
