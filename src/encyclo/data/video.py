"""Moving pictures: files to uint8 frames and back, and the classical codecs as rate-distortion peers, with PyAV."""

import io
import logging
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import torch
from av.bitstream import BitStreamFilterContext
from av.codec.context import ThreadType
from av.container import InputContainer
from av.video.codeccontext import VideoCodecContext
from av.video.frame import VideoFrame
from av.video.reformatter import Colorspace
from av.video.stream import VideoStream
from jaxtyping import UInt8
from torch import Tensor
from torch.nn import functional

from encyclo.data.atomic import atomic_path
from encyclo.data.sniff import HEAD, article, kind_of_bytes
from encyclo.errors import InputError

__all__ = ["MAX_PIXELS", "Video", "encode_video", "probe_video", "read_video", "write_video"]

MAX_PIXELS = 2**29
"""Pixels (frames x height x width) that a file may make us hold by default: 1.5 GiB of RGB."""

_BT709 = 1  # FFmpeg's number for the HD colour matrix, primaries and transfer
_TV_RANGE = 1

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Video:
    """A clip in memory.

    Attributes:
        frames: [frames, 3, height, width], RGB, 0..255.
        fps: frames a second, exact.
        name: where it came from.
        notes: what was lossy in reading it.
    """

    frames: UInt8[Tensor, "t 3 h w"]
    fps: Fraction
    name: str = "video"
    notes: tuple[str, ...] = ()

    @property
    def seconds(self) -> float:
        """The duration in seconds."""
        return float(len(self.frames) / self.fps)


def _open(source: bytes | str | Path) -> tuple[InputContainer, VideoStream, str]:
    """An open container, its video stream and its name in messages; refuses what is not a video."""
    if isinstance(source, bytes):
        name, head = "the video", source[:HEAD]
    else:
        path, name = Path(source), f"'{source}'"
        if not path.exists():
            raise InputError(f"{name} does not exist: check the path")
        if path.is_dir():
            raise InputError(f"{name} is a folder: name one video in it")
        try:
            with path.open("rb") as file:
                head = file.read(HEAD)
        except OSError as error:
            raise InputError(f"{name} cannot be read ({error.strerror}): check its permissions") from error
    if not head:
        raise InputError(f"{name} is empty (0 bytes): give a video such as .mp4, .mkv or .webm")
    if kind_of_bytes(head) == "image":
        raise InputError(f"{name} is {article('image')}, a video is needed: give .mp4, .mkv or .webm")
    try:
        container = av.open(io.BytesIO(source) if isinstance(source, bytes) else str(source), mode="r")
    except (av.FFmpegError, ValueError) as error:
        raise InputError(f"{name} cannot be read as a video ({_reason(error)}): give .mp4, .mkv or .webm") from error
    attached = av.stream.Disposition.attached_pic  # the cover of a music album is no film
    streams = [stream for stream in container.streams.video if not stream.disposition & attached]
    if not streams:
        sound = bool(container.streams.audio)
        container.close()
        raise InputError(
            f"{name} holds {'only sound' if sound else 'no pictures'}, a video is needed: give .mp4 or .mkv"
        )
    if container.format.name == "image2" or container.format.name.endswith("_pipe"):
        container.close()
        raise InputError(f"{name} is {article('image')}, a video is needed: give .mp4, .mkv or .webm")
    if streams[0].width < 1 or streams[0].height < 1:
        container.close()
        raise InputError(f"{name} cannot be read as a video (no frame size): give .mp4, .mkv or .webm")
    return container, streams[0], name


def _reason(error: Exception) -> str:
    return str(getattr(error, "strerror", None) or error).rstrip(".").lower()


def probe_video(source: bytes | str | Path) -> tuple[int, int, Fraction]:
    """Height, width and frames a second of a video, from its header alone.

    Raises:
        InputError: as in `read_video`.
    """
    container, stream, name = _open(source)
    with container:
        return stream.height, stream.width, _rate(stream, name)


def _rate(stream: VideoStream, name: str) -> Fraction:
    rate = stream.average_rate or stream.guessed_rate or stream.base_rate
    if not rate or rate <= 0:
        raise InputError(f"{name} gives no frame rate: convert it to .mp4 first")
    return Fraction(rate)


def read_video(source: bytes | str | Path, max_frames: int | None = None, max_pixels: int = MAX_PIXELS) -> Video:
    """Read the pictures of a video, in order of display.

    Args:
        source: a path, or the bytes of a file.
        max_frames: read no more than the first so many.
        max_pixels: refuse to hold more than so many pixels (frames x height x width): a few bytes of header can
            declare gigabytes.

    Returns:
        The clip. Its `notes` say what was lossy: frames cut off or lost, uneven timing, sound left out.

    Raises:
        InputError: missing, empty, damaged, a picture, sound alone, or larger than `max_pixels`.
    """
    if max_frames is not None and max_frames < 1:
        raise InputError(f"max_frames={max_frames} reads nothing: give at least 1")
    container, stream, name = _open(source)
    with container:
        height, width = stream.height, stream.width
        if height * width > max_pixels:
            raise InputError(f"{name} declares {width}x{height} pixels a frame, the limit is {max_pixels}: shrink it")
        fps, declared = _rate(stream, name), stream.frames
        stream.thread_type = ThreadType.AUTO
        frames: list[UInt8[np.ndarray, "h w 3"]] = []
        times: list[float] = []
        damaged, more, rotation = 0, False, 0
        try:
            for frame in container.decode(stream):
                if max_frames is not None and len(frames) == max_frames:
                    more = True
                    break
                if (frame.height, frame.width) != (height, width):
                    if frames:
                        raise InputError(
                            f"{name} changes its size from {width}x{height} to {frame.width}x{frame.height} at frame"
                            f" {len(frames)}: convert it to one size"
                        )
                    height, width = frame.height, frame.width
                if (len(frames) + 1) * height * width > max_pixels:
                    raise InputError(
                        f"{name} holds more than {max_pixels} pixels ({len(frames)} frames of {width}x{height}):"
                        f" read fewer with max_frames={len(frames)}, or shrink it"
                    )
                frames.append(frame.to_ndarray(format="rgb24"))
                damaged += frame.is_corrupt
                rotation = frame.rotation
                if frame.time is not None:
                    times.append(frame.time)
        except av.FFmpegError as error:
            raise InputError(f"{name} is damaged ({_reason(error)}): replace it") from error
        sound = bool(container.streams.audio)
    if not frames:
        raise InputError(f"{name} has no frame that can be decoded: replace it")
    notes = []
    if more:
        notes.append(f"{name}: only the first {max_frames} frames read" + (f" of {declared}" if declared else ""))
    elif declared and len(frames) < declared:
        notes.append(f"{name}: {declared} frames declared, {len(frames)} could be read")
    if damaged:
        notes.append(f"{name}: {damaged} frames are damaged")
    gaps = np.diff(times)
    if len(gaps) and float(gaps.max() - gaps.min()) > 0.5 / float(fps):
        notes.append(f"{name}: variable frame rate, evened out to {float(fps):.3f} frames/s")
    if sound:
        notes.append(f"{name}: the sound track is left out")
    clip = torch.empty((len(frames), 3, height, width), dtype=torch.uint8)
    for index in range(len(frames)):
        clip[index] = torch.from_numpy(frames[index]).permute(2, 0, 1)
        frames[index] = np.empty((0, 0, 3), np.uint8)  # let go of each frame once copied: one clip in memory, not two
    if rotation % 360:
        clip = torch.rot90(clip, rotation // 90, dims=(2, 3)).contiguous()
    return Video(clip, fps, Path(source).name if not isinstance(source, bytes) else "video", tuple(notes))


def _yuv(frame: UInt8[Tensor, "3 h w"], pix_fmt: str) -> VideoFrame:
    """One RGB frame in the codec's format: HD colours, whose tags the stream carries."""
    rgb = VideoFrame.from_ndarray(frame.permute(1, 2, 0).contiguous().numpy(), format="rgb24")
    return rgb.reformat(format=pix_fmt, dst_colorspace=Colorspace.ITU709)


def _describe_colours(context: VideoCodecContext) -> None:
    context.colorspace = context.color_primaries = context.color_trc = _BT709
    context.color_range = _TV_RANGE


def _encoder(codec: str) -> str:
    if codec not in av.codecs_available or not av.Codec(codec, "w").is_encoder:
        known = [name for name in ("libx264", "libx265", "libvpx-vp9", "libsvtav1") if name in av.codecs_available]
        raise InputError(f"'{codec}' is not a video encoder of this PyAV: use one of {', '.join(known)}")
    return codec


def _frames(video: Video) -> UInt8[Tensor, "t 3 h w"]:
    if not len(video.frames):
        raise InputError(f"'{video.name}' has no frames: nothing to write")
    return video.frames.detach().cpu()


def write_video(video: Video, path: str | Path, codec: str = "libx264", crf: int = 18) -> None:
    """Write a clip to `path`, atomically, in the container that the extension names.

    Frames are stored as yuv420p, which every player shows; an odd height or width, which that format cannot hold,
    takes yuv444p instead.

    Raises:
        InputError: an unknown codec or extension, or a place that cannot be written.
    """
    frames = _frames(video)
    even = frames.shape[2] % 2 == 0 and frames.shape[3] % 2 == 0
    _encoder(codec)
    with atomic_path(path) as temporary:
        try:
            with av.open(str(temporary), mode="w") as container:
                stream = container.add_stream(codec, rate=video.fps, options={"crf": str(crf)})
                assert isinstance(stream, VideoStream)
                stream.height, stream.width = frames.shape[2], frames.shape[3]
                stream.pix_fmt = "yuv420p" if even else "yuv444p"
                _describe_colours(stream.codec_context)
                for index, frame in enumerate(frames):
                    picture = _yuv(frame, stream.pix_fmt)
                    picture.pts, picture.time_base = index, 1 / video.fps
                    container.mux(stream.encode(picture))
                container.mux(stream.encode(None))
        except (av.FFmpegError, ValueError) as error:
            raise InputError(
                f"cannot write '{path}' with {codec} ({_reason(error)}): end it in .mp4 or .mkv"
            ) from error


def encode_video(
    video: Video, codec: str = "libx264", *, pix_fmt: str = "yuv420p", **options: str | int | float
) -> tuple[int, Video]:
    """Encode and decode a clip with a classical codec, on one thread: a peer for rate-distortion tables.

    Only what a decoder needs is counted: no container, and not the encoder's signature (about 0.7 kB in x264 and
    2 kB in x265), which would weigh on short clips. An odd height or width is padded by a repeated row or
    column for the codec and cropped after it.

    Args:
        video: the clip.
        codec: 'libx264', 'libx265' or another encoder of PyAV.
        pix_fmt: the codec's sample format; 'yuv420p' quarters the colour, which alone costs some dB in RGB.
        options: the encoder's own, such as `preset='medium'`, `crf=23`.

    Returns:
        The size of the stream in bytes, and the clip as it comes back.

    Raises:
        InputError: an unknown codec, or options that it refuses.
    """
    frames = _frames(video)
    count, _, height, width = frames.shape
    padded = functional.pad(frames, (0, width % 2, 0, height % 2), mode="replicate")
    encoder = av.CodecContext.create(_encoder(codec), "w")
    assert isinstance(encoder, VideoCodecContext)
    settings = {name.replace("_", "-"): str(value) for name, value in options.items()}
    if codec == "libx265":
        quiet = "info=0:log-level=none:pools=none:frame-threads=1"
        settings["x265-params"] = ":".join(filter(None, (settings.get("x265-params"), quiet)))
    encoder.options = settings
    encoder.height, encoder.width, encoder.pix_fmt = padded.shape[2], padded.shape[3], pix_fmt
    encoder.framerate, encoder.time_base = video.fps, 1 / video.fps
    encoder.thread_count = 1
    _describe_colours(encoder)
    standard = av.Codec(codec, "w").canonical_name
    signature = {"h264": "6", "hevc": "39|40"}.get(standard)  # the NAL types of supplemental information
    strip = BitStreamFilterContext(f"filter_units=remove_types={signature}", standard) if signature else None
    decoder = av.CodecContext.create(standard, "r")
    assert isinstance(decoder, VideoCodecContext)
    decoder.thread_count = 1
    size, decoded = 0, []
    try:
        for index in range(count + 1):
            picture = _yuv(padded[index], pix_fmt) if index < count else None
            if picture is not None:
                picture.pts, picture.time_base = index, 1 / video.fps
            for packet in encoder.encode(picture):
                for part in strip.filter(packet) if strip else [packet]:
                    size += part.size
                    decoded += decoder.decode(part)
        if encoder.extradata and not strip:  # a stream that keeps its headers apart
            size += len(encoder.extradata)
        decoded += decoder.decode(None)
    except (av.FFmpegError, ValueError) as error:
        raise InputError(f"{codec} refused {settings or 'the clip'} ({_reason(error)}): check its options") from error
    if len(decoded) != count:
        raise InputError(f"{codec} gave {len(decoded)} frames back for {count}: choose another codec or options")
    back = torch.stack([torch.from_numpy(frame.to_ndarray(format="rgb24")).permute(2, 0, 1) for frame in decoded])
    return size, Video(back[:, :, :height, :width].contiguous(), video.fps, f"{video.name} ({codec})")
