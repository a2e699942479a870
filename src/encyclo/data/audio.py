"""Sound: files to float32 samples and back, with soundfile and soxr; PyAV for what soundfile cannot read."""

import io
import logging
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import av
import numpy as np
import soundfile
import soxr
import torch
from jaxtyping import Float32
from torch import Tensor

from encyclo.data.atomic import atomic_path
from encyclo.data.sniff import HEAD, article, kind_of_bytes
from encyclo.errors import InputError

__all__ = [
    "MAX_SAMPLES",
    "Audio",
    "encode_audio",
    "probe_audio",
    "read_audio",
    "resample",
    "stream_audio",
    "write_audio",
]

MAX_SAMPLES = 2**29
"""Samples (channels x length) that a file may make us hold: 2 GiB of float32."""

_FORMATS = {
    ".wav": ("WAV", "PCM_16"),
    ".flac": ("FLAC", "PCM_16"),
    ".ogg": ("OGG", "VORBIS"),
    ".opus": ("OGG", "OPUS"),
    ".aiff": ("AIFF", "PCM_16"),
    ".mp3": ("MP3", "MPEG_LAYER_III"),
}

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Audio:
    """A recording in memory.

    Attributes:
        samples: [channels, length], full scale is -1..1.
        rate: samples a second (Hz).
        name: where it came from.
        notes: what was lossy in reading it.
    """

    samples: Float32[Tensor, "channels n"]
    rate: int
    name: str = "audio"
    notes: tuple[str, ...] = ()

    @property
    def seconds(self) -> float:
        """The duration in seconds."""
        return self.samples.shape[1] / self.rate


def _load(source: bytes | str | Path) -> tuple[bytes, str, str | None]:
    """The bytes of a recording, its name in messages, and FFmpeg's format where the content does not tell it."""
    if isinstance(source, bytes):
        _refuse_foreign("the recording", source[:HEAD])
        return source, "the recording", None
    path, name = Path(source), f"'{source}'"
    format = _opened(path, name)
    return path.read_bytes(), name, format


def _opened(path: Path, name: str) -> str | None:
    """Check that a file can be read and is no picture; FFmpeg's format where its content does not tell it."""
    if not path.exists():
        raise InputError(f"{name} does not exist: check the path")
    if path.is_dir():
        raise InputError(f"{name} is a folder: name one recording in it")
    try:
        with path.open("rb") as file:
            head = file.read(HEAD)
    except OSError as error:
        raise InputError(f"{name} cannot be read ({error.strerror}): check its permissions") from error
    _refuse_foreign(name, head)
    return "g722" if path.suffix.lower() == ".g722" else None


def _refuse_foreign(name: str, head: bytes) -> None:
    if not head:
        raise InputError(f"{name} is empty (0 bytes): give a recording such as .wav, .flac or .opus")
    if kind_of_bytes(head) == "image":
        raise InputError(f"{name} is {article('image')}, a sound recording is needed: give .wav, .flac or .opus")


def probe_audio(source: bytes | str | Path) -> tuple[int, int]:
    """Channels and samples a second of a recording, from its header.

    Raises:
        InputError: as in `read_audio`.
    """
    if isinstance(source, bytes):
        name, format = "the recording", None
        _refuse_foreign(name, source[:HEAD])
    else:
        name = f"'{source}'"
        format = _opened(Path(source), name)
    with io.BytesIO(source) if isinstance(source, bytes) else Path(source).open("rb") as stream:
        try:
            if format is not None:
                raise soundfile.LibsndfileError(1)
            info = soundfile.info(stream)
            return info.channels, info.samplerate
        except soundfile.LibsndfileError:
            stream.seek(0)
        try:
            with av.open(stream, mode="r", format=format) as container:
                if not container.streams.audio:
                    raise InputError(f"{name} holds no sound: give a recording such as .wav, .flac or .opus")
                return container.streams.audio[0].channels, container.streams.audio[0].rate
        except av.FFmpegError as error:
            raise InputError(f"{name} cannot be read as sound ({_reason(error)}): give .wav, .flac or .opus") from error


def read_audio(source: bytes | str | Path, rate: int | None = None) -> Audio:
    """Read a recording; of a video, its sound track.

    Args:
        source: a path, or the bytes of a file.
        rate: samples a second to resample to (soxr, high quality); None keeps the file's own.

    Returns:
        The recording with all its channels. Its `notes` say when it was resampled.

    Raises:
        InputError: missing, empty, damaged, without sound, or more than `MAX_SAMPLES` samples.
    """
    if rate is not None and rate < 1:
        raise InputError(f"rate={rate} is no sample rate: give samples a second, such as 16000")
    data, name, format = _load(source)
    try:
        if format is not None:
            raise soundfile.LibsndfileError(1)
        with soundfile.SoundFile(io.BytesIO(data)) as file:
            if file.frames * file.channels > MAX_SAMPLES:
                raise InputError(
                    f"{name} declares {file.frames} x {file.channels} samples, the limit is {MAX_SAMPLES}: cut it"
                )
            own = file.samplerate
            samples = file.read(dtype="float32", always_2d=True).T
    except soundfile.LibsndfileError:
        samples, own = _read_with_av(data, name, format)
    if samples.shape[1] == 0:
        raise InputError(f"{name} holds no sound (0 samples): give another recording")
    audio = Audio(
        torch.from_numpy(np.ascontiguousarray(samples, dtype=np.float32)),
        own,
        "audio" if isinstance(source, bytes) else Path(source).name,
    )
    return audio if rate is None or rate == own else resample(audio, rate)


def stream_audio(path: str | Path, rate: int | None = None, *, seconds: float = 10.0) -> Iterator[Audio]:
    """A recording block by block, so that memory does not grow with its length.

    Args:
        path: as in `read_audio`.
        rate: samples a second to resample to; None keeps the file's own.
        seconds: of a block, about.

    Yields:
        At least one block with samples; its `notes` are those of `read_audio`.

    Raises:
        InputError: as in `read_audio`, but for the length; damage further on is met when its place is reached.
    """
    path, name = Path(path), f"'{path}'"
    format = _opened(path, name)
    count = 0
    parts: Iterator[Float32[np.ndarray, "channels n"]]
    with ExitStack() as stack:
        try:
            if format is not None:
                raise soundfile.LibsndfileError(1)
            file = stack.enter_context(soundfile.SoundFile(stack.enter_context(path.open("rb"))))
            own = file.samplerate
            size = max(1, round(seconds * own))
            parts = (part.T for part in file.blocks(size, dtype="float32", always_2d=True))
        except soundfile.LibsndfileError:
            own, parts = _stream_with_av(stack, path, name, format)
        try:
            for samples in _resampled(parts, own, rate or own):
                count += samples.shape[1]
                notes = () if rate in (None, own) else (f"{path.name}: resampled from {own} to {rate} Hz",)
                yield Audio(torch.from_numpy(np.ascontiguousarray(samples)), rate or own, path.name, notes)
        except (soundfile.LibsndfileError, av.FFmpegError) as error:
            raise InputError(f"{name} is damaged ({_reason(error)}): get it again") from error
    if count == 0:
        raise InputError(f"{name} holds no sound (0 samples): give another recording")


def _stream_with_av(
    stack: ExitStack, path: Path, name: str, format: str | None
) -> tuple[int, Iterator[Float32[np.ndarray, "channels n"]]]:
    """Rate and blocks through FFmpeg."""
    try:
        container = stack.enter_context(av.open(str(path), mode="r", format=format))
    except (av.FFmpegError, ValueError) as error:
        raise InputError(f"{name} cannot be read as sound ({_reason(error)}): give .wav, .flac or .opus") from error
    if not container.streams.audio:
        raise InputError(f"{name} holds no sound: give a recording such as .wav, .flac or .opus")
    stream = container.streams.audio[0]
    return stream.rate, _frames(container, stream)


def _frames(container: Any, stream: Any) -> Iterator[Float32[np.ndarray, "channels n"]]:
    resampler = av.AudioResampler(format="fltp", layout=stream.layout, rate=stream.rate)
    for frame in chain(container.decode(stream), [None]):
        for part in resampler.resample(frame):
            yield part.to_ndarray()


def _resampled(
    parts: Iterator[Float32[np.ndarray, "channels n"]], own: int, rate: int
) -> Iterator[Float32[np.ndarray, "channels n"]]:
    stream: Any = None
    for part in parts:
        if rate == own:
            made = part
        else:
            stream = stream or soxr.ResampleStream(own, rate, part.shape[0], dtype="float32", quality="HQ")
            made = stream.resample_chunk(np.ascontiguousarray(part.T)).T
        if made.shape[1]:
            yield made
    if stream is not None:
        made = stream.resample_chunk(np.zeros((0, part.shape[0]), np.float32), last=True).T
        if made.shape[1]:
            yield made


def _reason(error: Exception) -> str:
    return str(getattr(error, "strerror", None) or error).rstrip(".").lower()


def _read_with_av(data: bytes, name: str, format: str | None) -> tuple[Float32[np.ndarray, "channels n"], int]:
    """Samples and rate through FFmpeg: AAC, M4A, G.722, the sound of a video."""
    try:
        with av.open(io.BytesIO(data), mode="r", format=format) as container:
            if not container.streams.audio:
                raise InputError(f"{name} holds no sound: give a recording such as .wav, .flac or .opus")
            stream = container.streams.audio[0]
            rate, total, parts = stream.rate, 0, []
            for array in _frames(container, stream):
                total += array.size
                if total > MAX_SAMPLES:
                    raise InputError(f"{name} holds more than {MAX_SAMPLES} samples: cut it into pieces")
                parts.append(array)
    except (av.FFmpegError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{name} cannot be read as sound ({_reason(error)}): give .wav, .flac or .opus") from error
    if not parts:
        return np.zeros((1, 0), np.float32), rate
    return np.concatenate(parts, axis=1), rate


def resample(audio: Audio, rate: int) -> Audio:
    """The recording at `rate` samples a second (soxr, high quality), with a note that says so."""
    if rate == audio.rate:
        return audio
    samples = soxr.resample(audio.samples.detach().cpu().numpy().T, audio.rate, rate, quality="HQ").T
    note = f"{audio.name}: resampled from {audio.rate} to {rate} Hz"
    tensor = torch.from_numpy(np.ascontiguousarray(samples, dtype=np.float32))
    return Audio(tensor, rate, audio.name, (*audio.notes, note))


def encode_audio(audio: Audio, extension: str = ".flac", *, level: float | None = None) -> bytes:
    """The bytes of a file: '.wav' and '.flac' (16 bit), '.opus', '.ogg' or '.mp3'. Samples beyond -1..1 are clipped.

    Args:
        audio: the recording.
        extension: names the format.
        level: soundfile's compression level, 0 (large) to 1 (small).

    Raises:
        InputError: an unknown extension, no samples, or a rate that the format cannot hold.
    """
    if extension.lower() not in _FORMATS:
        raise InputError(f"'{extension}' is no sound format that can be written: use one of {', '.join(_FORMATS)}")
    if audio.samples.shape[1] == 0:
        raise InputError(f"'{audio.name}' has no samples: nothing to write")
    samples = audio.samples.detach().cpu().numpy().T
    over = int((np.abs(samples) > 1).sum())
    if over:
        logger.warning("%s: %d samples beyond full scale were clipped", audio.name, over)
    stream = io.BytesIO()
    format, subtype = _FORMATS[extension.lower()]
    try:
        soundfile.write(
            stream, samples.clip(-1, 1), audio.rate, format=format, subtype=subtype, compression_level=level
        )
    except (soundfile.LibsndfileError, ValueError) as error:
        raise InputError(
            f"{extension} cannot hold {audio.rate} Hz and {samples.shape[1]} channels ({error})"
        ) from error
    return stream.getvalue()


def write_audio(audio: Audio, path: str | Path) -> None:
    """Write a recording to `path`, atomically, in the format that its extension names (as in `encode_audio`).

    Raises:
        InputError: as in `encode_audio`, or a place that cannot be written.
    """
    data = encode_audio(audio, Path(path).suffix)
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)
