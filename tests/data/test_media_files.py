"""Pictures, video and sound: round trips, limits on what a file may make us hold, and every wrong file."""

import io
import logging
import struct
import zlib
from fractions import Fraction

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image

from encyclo import data
from encyclo.data.atomic import atomic_path
from encyclo.data.audio import (
    Audio,
    encode_audio,
    probe_audio,
    read_audio,
    resample,
    stream_audio,
    write_audio,
)
from encyclo.data.images import encode_image, probe_image, read_image, to_tensor, write_image
from encyclo.data.video import Video, encode_video, probe_video, read_video, write_video
from encyclo.errors import InputError


def _noise(*shape):
    return torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(0)).to(torch.uint8)


def _moving(frames=8, height=48, width=64):
    """Smooth colours that move: what codecs keep well."""
    t, y, x = torch.meshgrid(torch.arange(frames), torch.arange(height), torch.arange(width), indexing="ij")
    planes = [torch.sin((x + 3 * t) / 9), torch.cos((y - 2 * t) / 7), torch.sin((x + y + t) / 11)]
    return ((torch.stack(planes, 1) + 1) * 110 + 16).to(torch.uint8)


def _psnr(a, b):
    return float(10 * torch.log10(255**2 / (a.float() - b.float()).square().mean()))


# pictures


@pytest.mark.parametrize("name", ["x.png", "x.webp", "x.jpg"])
@pytest.mark.parametrize("channels", [1, 3])
def test_pictures_come_back(tmp_path, name, channels):
    picture = _moving(1)[0, :channels]
    write_image(picture, tmp_path / name)
    back = read_image(tmp_path / name, mode="L" if channels == 1 else "RGB")
    assert back.shape == picture.shape
    assert _psnr(back, picture) > (60 if name.endswith("png") else 25)
    assert list(tmp_path.iterdir()) == [tmp_path / name]


def test_float_pictures_are_scaled_and_clipped():
    back = read_image(encode_image(torch.tensor([-1.0, 0.5, 2.0]).view(1, 1, 3)), mode="L")
    assert back.flatten().tolist() == [0, 128, 255]


def test_transparent_pixels_lie_on_white():
    stream = io.BytesIO()
    Image.new("RGBA", (2, 2), (255, 0, 0, 0)).save(stream, "PNG")
    assert read_image(stream.getvalue()).unique().tolist() == [255]
    stream = io.BytesIO()
    Image.fromarray(np.array([[0, 65535]], np.uint16)).save(stream, "PNG")
    assert read_image(stream.getvalue(), mode="L").flatten().tolist() == [0, 255]


def test_resizes_are_counted(caplog):
    column = [encode_image(_noise(3, 8, 8)), encode_image(_noise(3, 16, 8))]
    notes: list[str] = []
    assert to_tensor(column, size=8, notes=notes).shape == (2, 3, 8, 8)
    assert notes == ["1 of 2 pictures resized to 8x8 (crop)"]
    with caplog.at_level(logging.WARNING):
        assert to_tensor(column, size=(4, 6), mode="L", fit="pad").shape == (2, 1, 4, 6)
    assert "2 of 2 pictures resized" in caplog.text
    with pytest.raises(InputError, match="different sizes"):
        to_tensor(column)
    with pytest.raises(InputError, match="column is empty"):
        to_tensor([])


def test_datasets_column_goes_straight_in():
    assert to_tensor(data.load("digits").test["image"], mode="L").shape == (180, 1, 8, 8)


def _png_header(width, height):
    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.parametrize("side", [10_000, 100_000])
def test_huge_pictures_are_refused_before_they_are_decoded(side):
    with pytest.raises(InputError, match="declares"):
        read_image(_png_header(side, side))


def test_wrong_pictures(tmp_path):
    whole = encode_image(_noise(3, 32, 32))
    with pytest.raises(InputError, match="damaged"):
        read_image(whole[: len(whole) // 2])
    with pytest.raises(InputError, match="cut short"):
        probe_image(whole[: len(whole) // 2])
    with pytest.raises(InputError, match="is empty"):
        read_image(b"")
    with pytest.raises(InputError, match="does not exist"):
        read_image(tmp_path / "no.png")
    with pytest.raises(InputError, match="is a folder"):
        read_image(tmp_path)
    with pytest.raises(InputError, match="at row 1 is not a picture"):
        to_tensor([whole, b"some text"])
    with pytest.raises(InputError, match="is a video"):
        read_image(b"\x00\x00\x00\x18ftypisom" + b"\x00" * 50)
    with pytest.raises(InputError, match="no known picture extension"):
        write_image(_noise(3, 4, 4), tmp_path / "x.abc")
    with pytest.raises(InputError, match="no such folder"):
        write_image(_noise(3, 4, 4), tmp_path / "missing" / "x.png")


def test_a_failed_write_leaves_nothing(tmp_path):
    (tmp_path / "kept").write_text("old")

    def fail():
        with atomic_path(tmp_path / "kept") as temporary:
            temporary.write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert (tmp_path / "kept").read_text() == "old"
    assert len(list(tmp_path.iterdir())) == 1


# video


@pytest.mark.parametrize("name", ["x.mp4", "x.mkv"])
def test_video_comes_back(tmp_path, name):
    video = Video(_moving(), Fraction(30000, 1001), "made")
    write_video(video, tmp_path / name, crf=12)
    back = read_video(tmp_path / name)
    assert back.frames.shape == video.frames.shape
    assert back.fps == video.fps
    assert back.notes == ()
    assert back.name == name
    assert _psnr(back.frames, video.frames) > 33
    assert list(tmp_path.iterdir()) == [tmp_path / name]


def test_colours_come_back(tmp_path):
    colours = torch.tensor([[255, 0, 0], [0, 255, 0], [0, 0, 255], [200, 100, 50]], dtype=torch.uint8)
    frames = colours[:, :, None, None].expand(4, 3, 32, 32).contiguous()
    write_video(Video(frames, Fraction(25)), tmp_path / "x.mp4", crf=4)
    back = read_video(tmp_path / "x.mp4").frames.int()
    assert (back - frames.int()).abs().max() <= 4


def test_odd_sizes_are_kept(tmp_path):
    video = Video(_moving(4, 33, 47), Fraction(10))
    write_video(video, tmp_path / "x.mp4")
    assert read_video(tmp_path / "x.mp4").frames.shape == video.frames.shape
    assert encode_video(video, crf=20)[1].frames.shape == video.frames.shape


def test_limits_on_what_a_video_may_make_us_hold(tmp_path):
    path = tmp_path / "x.mp4"
    write_video(Video(_moving(8), Fraction(25)), path)
    short = read_video(path, max_frames=3)
    assert len(short.frames) == 3
    assert any("only the first 3 frames" in note for note in short.notes)
    assert read_video(path, max_frames=8).notes == ()
    with pytest.raises(InputError, match="max_frames=2"):
        read_video(path, max_pixels=2 * 48 * 64 + 1)
    with pytest.raises(InputError, match="64x48 pixels a frame"):
        read_video(path, max_pixels=100)
    with pytest.raises(InputError, match="reads nothing"):
        read_video(path, max_frames=0)
    huge = b"YUV4MPEG2 W100000 H100000 F25:1 Ip A1:1 C420\nFRAME\n" + b"\x00" * 1000
    with pytest.raises(InputError):
        read_video(huge)


def test_uneven_timing_is_noted(tmp_path):
    import av

    path = tmp_path / "x.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt, stream.time_base = 64, 48, "yuv420p", Fraction(1, 1000)
        stream.codec_context.time_base = Fraction(1, 1000)
        for index, frame in enumerate(_moving(8)):
            picture = av.VideoFrame.from_ndarray(frame.permute(1, 2, 0).contiguous().numpy(), format="rgb24")
            picture.pts, picture.time_base = 40 * index + (200 if index > 4 else 0), Fraction(1, 1000)
            container.mux(stream.encode(picture))
        container.mux(stream.encode(None))
    assert any("variable frame rate" in note for note in read_video(path).notes)


@pytest.mark.parametrize("codec", ["libx264", "libx265"])
def test_codecs_as_peers(codec):
    video = Video(_moving(), Fraction(25))
    small, worse = encode_video(video, codec, preset="veryfast", crf=40)
    large, better = encode_video(video, codec, preset="veryfast", crf=20)
    assert small < large
    assert _psnr(worse.frames, video.frames) < _psnr(better.frames, video.frames)
    assert _psnr(better.frames, video.frames) > 28
    assert better.frames.shape == video.frames.shape
    assert encode_video(video, codec, preset="veryfast", crf=40)[0] == small


def test_the_encoders_signature_is_not_counted():
    size, _ = encode_video(Video(torch.zeros(1, 3, 16, 16, dtype=torch.uint8), Fraction(25)), crf=30)
    assert size < 120  # x264's own signature alone has about 700 bytes


def test_wrong_videos(tmp_path):
    video = Video(_moving(8), Fraction(25))
    write_video(video, tmp_path / "x.mp4")
    content = (tmp_path / "x.mp4").read_bytes()
    (tmp_path / "sound.wav").write_bytes(encode_audio(Audio(torch.rand(1, 8000) - 0.5, 8000), ".wav"))
    for source, message in (
        (b"", "is empty"),
        (content[: len(content) // 3], "cannot be read as a video|is damaged"),
        (b"nothing of the kind" * 50, "cannot be read as a video"),
        (encode_image(_noise(3, 8, 8)), "is a picture, a video is needed"),
        (tmp_path / "sound.wav", "holds only sound"),
        (tmp_path / "no.mp4", "does not exist"),
        (tmp_path, "is a folder"),
    ):
        with pytest.raises(InputError, match=message):
            read_video(source)
    with pytest.raises(InputError, match="is not a video encoder"):
        encode_video(video, "libx999")
    with pytest.raises(InputError, match="refused"):
        encode_video(video, preset="nonesuch")
    with pytest.raises(InputError, match="has no frames"):
        write_video(Video(torch.zeros(0, 3, 8, 8, dtype=torch.uint8), Fraction(25)), tmp_path / "y.mp4")
    with pytest.raises(InputError, match="cannot write"):
        write_video(video, tmp_path / "y.txt")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["sound.wav", "x.mp4"]


def test_probe_reads_the_header_alone():
    assert probe_video(data.load("bunny").train[0]["video"]) == (720, 1280, Fraction(25))


def test_sound_of_a_video_can_be_read_and_its_absence_is_told():
    bunny = data.load("bunny").train[0]["video"]
    assert read_audio(bunny).seconds == pytest.approx(5.3, abs=0.2)
    assert any("sound track" in note for note in read_video(bunny, max_frames=1).notes)
    with pytest.raises(InputError, match="holds no sound"):
        read_audio(data.load("carphone").train[0]["video"])


# sound


def _tone(rate, seconds=0.5, channels=1):
    time = torch.arange(int(rate * seconds)) / rate
    return torch.stack([0.5 * torch.sin(2 * torch.pi * 440 * (c + 1) * time) for c in range(channels)])


@pytest.mark.parametrize("name", ["x.wav", "x.flac", "x.opus", "x.ogg", "x.mp3"])
@pytest.mark.parametrize("channels", [1, 2])
def test_sound_comes_back(tmp_path, name, channels):
    audio = Audio(_tone(16000, channels=channels), 16000)
    write_audio(audio, tmp_path / name)
    back = read_audio(tmp_path / name)
    assert back.rate == 16000
    assert back.samples.shape[0] == channels
    assert abs(back.samples.shape[1] - 8000) <= 2400  # mp3 pads
    if name in ("x.wav", "x.flac"):
        assert torch.allclose(back.samples, audio.samples, atol=1e-4)
    assert list(tmp_path.iterdir()) == [tmp_path / name]


@pytest.mark.parametrize("rate", [None, 16000, 8000])
@pytest.mark.parametrize("name", ["a.wav", "a.flac", "a.ogg", "a.mp4"])
def test_sound_read_block_by_block_is_the_whole(tmp_path, name, rate):
    path = tmp_path / name
    if name == "a.mp4":  # through FFmpeg
        path.write_bytes(data.load("bunny").train[0]["video"])
    else:
        write_audio(Audio(_tone(16000, channels=2), 16000), path)
    whole = read_audio(path, rate)
    blocks = list(stream_audio(path, rate, seconds=0.1))
    joined = torch.cat([block.samples for block in blocks], 1)
    assert len(blocks) > 3
    assert probe_audio(path)[0] == whole.samples.shape[0]
    assert {block.notes for block in blocks} == {whole.notes}
    assert abs(joined.shape[1] - whole.samples.shape[1]) <= 2
    shared = min(joined.shape[1], whole.samples.shape[1])
    torch.testing.assert_close(joined[:, :shared], whole.samples[:, :shared], atol=1e-4, rtol=0)


def test_resampling_keeps_the_sound_and_is_noted():
    audio = read_audio(encode_audio(Audio(_tone(48000), 48000)), rate=16000)
    assert (audio.rate, audio.samples.shape[1]) == (16000, 8000)
    assert (audio.samples - _tone(16000))[:, 500:-500].abs().max() < 1e-3
    assert audio.notes == ("audio: resampled from 48000 to 16000 Hz",)
    assert resample(audio, 16000) is audio


def test_clipping_is_said(caplog):
    with caplog.at_level(logging.WARNING):
        encode_audio(Audio(torch.tensor([[0.0, 2.0, -3.0]]), 8000))
    assert "2 samples beyond full scale" in caplog.text


def test_wrong_sound(tmp_path, monkeypatch):
    for source, message in (
        (b"", "is empty"),
        (b"no sound at all" * 20, "cannot be read as sound"),
        (encode_image(_noise(3, 8, 8)), "is a picture, a sound recording is needed"),
        (tmp_path / "no.wav", "does not exist"),
        (tmp_path, "is a folder"),
    ):
        with pytest.raises(InputError, match=message):
            read_audio(source)
        path = tmp_path / "wrong.bin" if isinstance(source, bytes) else source
        if isinstance(source, bytes):
            path.write_bytes(source)
        with pytest.raises(InputError, match=message):
            list(stream_audio(path))
        (tmp_path / "wrong.bin").unlink(missing_ok=True)
    stream = io.BytesIO()
    soundfile.write(stream, np.zeros((0, 1)), 8000, format="WAV")
    with pytest.raises(InputError, match="0 samples"):
        read_audio(stream.getvalue())
    with pytest.raises(InputError, match="rate=0"):
        read_audio(b"x", rate=0)
    with pytest.raises(InputError, match=r"'\.abc' is no sound format"):
        write_audio(Audio(_tone(8000), 8000), tmp_path / "x.abc")
    with pytest.raises(InputError, match="cannot hold 44100 Hz"):
        write_audio(Audio(_tone(44100), 44100), tmp_path / "x.opus")
    monkeypatch.setattr("encyclo.data.audio.MAX_SAMPLES", 100)
    with pytest.raises(InputError, match="the limit is 100"):
        read_audio(encode_audio(Audio(_tone(8000), 8000)))
    assert not list(tmp_path.iterdir())
