import json
import math
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from encyclo import cli
from encyclo.data import load
from encyclo.data.bundled import pack_folder
from encyclo.data.holes import boxes
from encyclo.data.reading import Reading
from encyclo.data.video import Video, read_video, write_video
from encyclo.errors import InputError
from encyclo.metrics.image import psnr
from encyclo.nn.convnext import ConvNeXt
from encyclo.nn.nerv import NervDecoder
from encyclo.system import open_system
from encyclo.systems.fitted_video import usual_rate
from encyclo.systems.video.hnerv import PAPER_CODING, HNeRV, NeRV
from encyclo.tokens import container
from encyclo.tokens.quantise import TensorCoding
from encyclo.training import Trainer
from encyclo.training.config import AdamW, Schedule, TrainingConfig
from encyclo.verbs import Result
from systems.contract import SystemContract

SCHEDULE = Schedule(shape="cosine", warmup=0.1, start=0.1)


def training(steps: int = 6, batch_size: int = 2) -> TrainingConfig:
    return TrainingConfig(steps=steps, batch_size=batch_size, optimiser=AdamW(lr=4e-3), schedule=SCHEDULE)


def clip(frames: int = 6, height: int = 16, width: int = 24) -> Video:
    """A smooth pattern that moves."""
    t, c, y, x = torch.meshgrid(
        *(torch.arange(n, dtype=torch.float32) for n in (frames, 3, height, width)), indexing="ij"
    )
    wave = torch.sin(0.3 * x + 0.2 * y + 0.4 * t + c) + torch.cos(0.15 * y - 0.2 * t)
    return Video((127.5 + 60 * wave).to(torch.uint8), Fraction(12), "waves")


def config(video: Video | None = None, **changes: Any) -> HNeRV.Config:
    frames, _, height, width = (video or clip()).frames.shape
    given: dict[str, Any] = {
        "frames": frames,
        "height": height,
        "width": width,
        "dim": 4,
        "encoder": ConvNeXt.Config(strides=(4, 2), depths=(1, 1), dims=(8, 4)),
        "decoder": NervDecoder.Config(width=8, strides=(4, 2), lowest=4),
        "training": training(),
        **changes,
    }
    return HNeRV.Config(**given)


def rival(video: Video | None = None, **changes: Any) -> NeRV.Config:
    frames, _, height, width = (video or clip()).frames.shape
    decoder = NervDecoder.Config(
        width=5, strides=(4, 2), lowest=4, reduce=2.0, kernels=(3, 3), grow=(-(-height // 8), -(-width // 8))
    )
    given: dict[str, Any] = {"frames": frames, "height": height, "width": width, "decoder": decoder}
    return NeRV.Config(**{**given, "training": training(), **changes})


class Given:
    """Splits with one clip that is in memory already."""

    streaming = False
    name = "given"

    def __init__(self, video: Video) -> None:
        self.video = video
        self.train = [{"video": b"", "name": video.name}]


@pytest.fixture(autouse=True)
def _in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """`Given` clips are not written and read again: a lossy codec lies in between."""
    real = Reading.clip

    def read(self: Reading, data: Any) -> Video:
        return self.apply(data.video) if isinstance(data, Given) else real(self, data)

    monkeypatch.setattr(Reading, "clip", read)


def fitted(made: Any, video: Video | None = None, seed: int = 0) -> Any:
    trainer = Trainer(None, seed=seed, progress=False, device="cpu")
    system = made.build()
    system.fit(Given(video or clip()), trainer)
    return system.eval()


@pytest.fixture(scope="module")
def ours() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Reading, "clip", lambda self, data: self.apply(data.video))
        return fitted(config(training=training(250)))


# -- what the method is ------------------------------------------------------------------------------------------------


class TestContract(SystemContract):
    slug = "hnerv"
    published = {"hnerv": 1_505_172, "nerv": 1_507_868}
    verbs = {
        "compress": [],
        "decompress": ["{file}"],
        "decode": ["frames=3,5-7"],
        "encode": [],
        "interpolate": ["factor=3"],
        "inpaint": ["{bunny}"],
        "inspect": ["{file}"],
    }
    bad = [
        ("compress", ["{bunny}", "bits=40"], "bits=40"),
        ("compress", ["{other}"], "is not the clip this was fitted to"),
        ("compress", ["{missing}"], "there is no file"),
        ("compress", ["{empty}"], "empty"),
        ("decompress", ["{empty}"], "empty"),
        ("decompress", ["{other}"], "no file that"),
        ("decompress", ["{cut}"], "checksum"),
        ("decompress", ["{altered}"], "checksum"),
        ("decode", ["frames=8"], "'8' is not within the clip's frames 0-7"),
        ("decode", ["frames=5-3"], "not within"),
        ("decode", ["frames=last"], "write numbers and ranges as 3,40-50"),
        ("interpolate", ["factor=1"], "factor=1 adds no frame"),
        ("interpolate", ["factor=1000000000000"], "more than are held at once"),
        ("inpaint", ["{other}"], "is not the clip"),
        ("encode", ["{other}"], "exceeds frames of"),
    ]

    def counted(self, system: Any) -> int:
        return int(system.numbers(system.config))

    def files(self, folder: Path) -> dict[str, Path]:
        system = config().build()
        system.clip = {"fps": "12", "name": "x", "digest": ""}
        blob = system.compress().value
        write_video(clip(4, 32, 48), folder / "other.mp4")
        (folder / "file.hnrv").write_bytes(blob)
        (folder / "cut.hnrv").write_bytes(blob[:-3])
        (folder / "altered.hnrv").write_bytes(blob[:200] + bytes([blob[200] ^ 1]) + blob[201:])
        named = {name: folder / f"{name}.hnrv" for name in ("file", "cut", "altered")}
        return {**named, "other": folder / "other.mp4", "bunny": pack_folder("bunny") / "bunny.mp4"}


def test_the_paper_preset_is_the_published_one() -> None:
    published = HNeRV.Config()
    assert published.training.steps == 300 * 132 // 2
    assert published.grid == (2, 4) and published.padded == (640, 1280)
    assert HNeRV.code_shapes(published) == {"embeddings": (132, 16, 2, 4)}
    assert NeRV.Config().grid == (1, 1)


def test_the_loss_is_the_mean_squared_error(ours: Any) -> None:
    frames = clip().frames.float() / 255
    index = torch.arange(6)
    shown = ours.decoder(ours.training_codes(index, frames))
    assert torch.allclose(ours._error(shown, frames, index), (shown - frames).square().mean())


def test_stored_embeddings_are_the_encoders_and_the_encoder_is_not_needed_to_decode(ours: Any) -> None:
    frames = clip().frames
    assert torch.allclose(ours.encoder(frames.float() / 255), ours.embeddings, atol=1e-6)
    before = ours.render()
    with torch.no_grad():
        kept = [p.clone() for p in ours.encoder.parameters()]
        for p in ours.encoder.parameters():
            p.zero_()
        assert torch.equal(ours.render(), before)
        for p, value in zip(ours.encoder.parameters(), kept, strict=True):
            p.copy_(value)


def test_between_two_frames_lies_the_mean_of_their_embeddings(ours: Any) -> None:
    codes = ours.codes(torch.tensor([1.0, 1.5, 5.0, 7.0]))
    e = ours.embeddings
    assert torch.equal(codes[0], e[1])
    assert torch.allclose(codes[1], (e[1] + e[2]) / 2, atol=1e-6)
    assert torch.equal(codes[2], e[5]) and torch.equal(codes[3], e[5])


def test_held_out_frames_are_interpolated_and_scored_apart() -> None:
    video = clip()
    system = fitted(config(every=2, training=training(40)))
    assert system.embeddings.shape[0] == 3
    assert torch.equal(system.codes(torch.tensor([3.0]))[0], (system.embeddings[1] + system.embeddings[2]) / 2)
    metrics = system.evaluate(Given(video))
    held = video.frames[[1, 3]]
    assert metrics["psnr_between"] == pytest.approx(float(psnr(system.render(torch.tensor([1.0, 3.0])), held).mean()))
    own = system.render(codes=system.encoder(held.float() / 255).detach())
    assert metrics["psnr_encoded"] == pytest.approx(float(psnr(own, held).mean()), abs=1e-3)
    neighbours = ((video.frames[[0, 2]].int() + video.frames[[2, 4]].int()) / 2).round().to(torch.uint8)
    assert metrics["psnr_average"] == pytest.approx(float(psnr(neighbours, held).mean()), abs=0.05)


def test_the_rival_sees_the_frame_number_alone() -> None:
    system = rival().build()
    index = torch.tensor([0, 3])
    a = system.training_codes(index, torch.zeros(2, 3, 16, 24))
    assert torch.equal(a, system.training_codes(index, torch.ones(2, 3, 16, 24)))
    angle = math.pi * 3 / 6
    assert float(a[1, 0]) == pytest.approx(math.sin(angle)) and float(a[1, 80]) == pytest.approx(
        math.cos(angle), abs=1e-6
    )


def test_fitting_a_clip_reconstructs_it(ours: Any) -> None:
    video = clip()
    assert ours.evaluate(Given(video))["psnr"] > 18
    assert (
        float(psnr(ours.render(), video.frames).mean())
        > float(psnr(config().build().render(), video.frames).mean()) + 3
    )


def test_padding_counts_for_nothing_and_is_cut_off() -> None:
    video = clip(3, 13, 21)
    made = config(video)
    assert made.padded == (16, 24)
    system = made.build()
    padded = system.pad(video.frames)
    assert torch.equal(padded[:, :, 13:], padded[:, :, 12:13].expand(-1, -1, 3, -1))
    predicted, target = torch.rand(2, 3, 16, 24), padded[:2].float() / 255
    other = predicted.clone()
    other[:, :, 13:], other[..., 21:] = 0, 1
    index = torch.arange(2)
    assert torch.equal(system._error(predicted, target, index), system._error(other, target, index))
    back = fitted(made, video)
    result = back.compress(video)
    assert any("repeating the last row" in note for note in result.notes)
    assert back.decompress(result.value).value.frames.shape == (3, 3, 13, 21)


def test_what_is_hidden_never_reaches_the_network() -> None:
    video = clip()
    mask = boxes(16, 24)
    changed = Video(torch.where(mask, 255 - video.frames, video.frames), video.fps, video.name)
    a, b = fitted(config(hole="boxes"), video), fitted(config(hole="boxes"), changed)
    for name, tensor in a.state_dict().items():
        assert torch.equal(tensor, b.state_dict()[name]), name
    filled = a.inpaint(video).value.frames
    assert torch.equal(filled[:, :, ~mask], video.frames[:, :, ~mask])
    assert torch.equal(filled[:, :, mask], a.render()[:, :, mask])
    metrics = a.evaluate(Given(video))
    assert metrics["psnr_filled"] > metrics["psnr_hidden"]


def test_the_five_boxes_are_the_papers() -> None:
    mask = boxes(960, 1920)
    assert int(mask.sum()) == 5 * 50 * 50
    assert bool(mask[480 - 25 : 480 + 25, 960 - 25 : 960 + 25].all())
    assert bool(mask[240 - 25 : 240 + 25, 1440 - 25 : 1440 + 25].all())
    assert int(boxes(1, 1).sum()) == 1


def test_pruned_weights_stay_zero_through_the_finish() -> None:
    finish = training(8).replace(schedule=Schedule(shape="constant"))
    system = fitted(config(prune=0.25, finish=finish))
    weights = torch.cat([p.flatten() for p in system.decoder.parameters() if p.ndim > 1])
    assert float((weights == 0).float().mean()) == pytest.approx(0.25, abs=0.01)
    biases = [p for p in system.decoder.parameters() if p.ndim == 1]
    assert all(float((b == 0).float().mean()) < 0.1 for b in biases)


def test_finishing_lowers_what_rounding_costs() -> None:
    video = clip()
    coarse = TensorCoding(bits=3, sequence_bits=6)
    plain = fitted(config(coding=coarse, training=training(150)))
    finished = fitted(config(coding=coarse, training=training(150), finish=training(80)))
    rounded = plain.evaluate(Given(video))["psnr_file"]
    assert finished.evaluate(Given(video))["psnr_file"] > rounded + 0.5
    weight = plain.decoder.head.weight.clone()
    later = plain.finished(video, training(80))  # the same on a copy
    assert later.measure_file(video.frames)["psnr_file"] > rounded + 0.5
    assert torch.equal(plain.decoder.head.weight, weight)


# -- the file ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("coder", ["plain", "huffman", "ans", "range"])
@pytest.mark.parametrize("make", [config, rival])
def test_a_file_needs_nothing_else_and_decodes_to_what_was_measured(make: Any, coder: Any) -> None:
    system = fitted(make())
    result = system.compress(clip(), coder=coder)
    opened = type(system).open_container(result.value)
    video = opened.decode().value
    decoder, stored, _ = system.restored(system._coding(None, None, coder))
    assert torch.equal(video.frames, system.render(decoder=decoder, stored=stored))
    assert (video.fps, video.name) == (Fraction(12), "waves")
    assert result.report["bytes"] == len(result.value)
    assert result.report["bits_per_pixel"] == pytest.approx(8 * len(result.value) / (6 * 16 * 24))
    assert result.report["psnr"] == pytest.approx(float(psnr(video.frames, clip().frames).mean()), abs=1e-4)
    # what was opened is itself a system: coded plainly again, it gives the same numbers
    again = type(system).open_container(opened.compress(bits=8, embedding_bits=8).value)
    assert again.config == opened.config


def test_fewer_bits_and_entropy_coding_shorten_the_file(ours: Any) -> None:
    plain = ours.restored(TensorCoding(bits=8, sequence_bits=8, coder="plain"))[2]["symbols"]
    assert len(plain) == 1 + ours.numbers(ours.config)
    assert len(ours.restored(PAPER_CODING.replace(bits=6, sequence_bits=6))[2]["symbols"]) < 0.85 * len(plain)
    assert ours.compress().report["bytes"] < ours.compress(bits=8, embedding_bits=8, coder="plain").report["bytes"]


def test_a_frame_alone_equals_the_same_frame_among_all(ours: Any) -> None:
    blob = ours.compress().value
    every = ours.decode(blob).value.frames
    for number in (0, 3, 5):
        assert torch.equal(ours.decode(blob, frames=str(number)).value.frames[0], every[number])
    assert torch.equal(ours.decode(blob, frames="4,1-2").value.frames, every[[4, 1, 2]])


@given(st.integers(0, 10_000), st.integers(1, 255))
@settings(max_examples=60, deadline=None)
def test_any_altered_byte_is_noticed(place: int, flip: int) -> None:
    system = config().build()
    system.clip = {"fps": "12", "name": "x", "digest": ""}
    blob = bytearray(system.compress().value)
    blob[place % len(blob)] ^= flip
    with pytest.raises(InputError):
        HNeRV.open_container(bytes(blob))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "Nothing"}, "does not know"),
        ({"rate": [25, 0]}, "malformed"),
        ({"rate": [0, 1]}, "malformed"),
        ({"config": {"frames": 10**9}}, "more than is decoded"),
        ({"config": {"frames": 6, "height": 10**8, "width": 10**8}}, "more than is decoded"),
        ({"config": {"training": {"steps": 1}}}, "malformed"),
        ({"config": {"height": 0}}, "malformed"),
        ({"config": {"frames": 7}}, "numbers where"),
        ({"config": {"decoder": {"width": 60000, "lowest": 60000}}}, "more than is decoded"),
        ({"more": 1}, "malformed"),
    ],
)
def test_a_header_that_lies_is_refused(ours: Any, change: dict[str, Any], message: str) -> None:
    box = container.unpack(ours.compress().value)
    header = {**box.header, **change}
    if "config" in change:
        header["config"] = {**box.header["config"], **change["config"]}
    with pytest.raises(InputError, match=message):
        HNeRV.open_container(container.pack("hnerv", header, box.sections))


def test_damaged_or_foreign_contents_are_refused(ours: Any) -> None:
    box = container.unpack(ours.compress().value)
    for name, part in box.sections.items():
        with pytest.raises(InputError):
            HNeRV.open_container(container.pack("hnerv", box.header, {**box.sections, name: part[:-1]}))
    with pytest.raises(InputError, match="written by system 'other'"):
        HNeRV.open_container(container.pack("other", box.header, box.sections))


def test_inspect_tells_numbers_and_bytes(ours: Any) -> None:
    blob = ours.compress().value
    for result in (ours.inspect(), ours.inspect(blob)):
        assert sum(row["numbers"] for row in result.value) == result.report["numbers"] == ours.numbers(ours.config)
        assert result.report["bytes, whole file"] == len(blob)
        assert result.value[0]["part"] == "embeddings"


# -- clips of a user's own ---------------------------------------------------------------------------------------------


@given(st.integers(1, 5), st.integers(1, 130), st.integers(1, 130))
@settings(max_examples=25, deadline=None)
def test_any_clip_gets_a_network(frames: int, height: int, width: int) -> None:
    for kind in (HNeRV, NeRV):
        made = kind.for_clip(kind.Config(), frames, height, width)
        assert (made.frames, made.height, made.width) == (frames, height, width)
        assert made.padded[0] >= height and made.padded[1] >= width
        with torch.device("meta"):
            system = made.build()
        assert sum(t.numel() for t in system.stored_codes().values()) + sum(
            p.numel() for p in system.decoder.parameters()
        ) == kind.numbers(made)


def test_published_clips_get_the_published_networks() -> None:
    for size, true in (("0.35M", 329_726), ("0.75M", 736_152), ("1.5M", 1_505_172), ("3M", 3_029_582)):
        asked = HNeRV.Config(size=size)
        made = HNeRV.for_clip(asked, 132, 640, 1280)
        assert HNeRV.numbers(made) == true
        assert made.decoder.strides == (5, 4, 4, 2, 2) and made.dim == 16
    assert HNeRV.for_clip(HNeRV.Config(), 132, 640, 1280).decoder.width == 68
    assert HNeRV.for_clip(HNeRV.Config(size="3M"), 132, 960, 1920).decoder.width == 92


def test_a_budget_below_the_embeddings_is_refused() -> None:
    with pytest.raises(InputError, match="the embeddings alone take 16896 numbers"):
        HNeRV.for_clip(HNeRV.Config(size=10_000), 132, 640, 1280)


@pytest.mark.parametrize("make", [config, rival])
@pytest.mark.parametrize("value", [0, 128])
def test_one_constant_frame_is_no_special_case(make: Any, value: int) -> None:
    video = Video(torch.full((1, 3, 16, 24), value, dtype=torch.uint8), Fraction(25), "still")
    system = fitted(make(video), video)
    back = system.decompress(system.compress(video).value).value.frames
    assert back.shape == video.frames.shape
    with pytest.raises(InputError, match="one frame only"):
        system.interpolate()


def test_a_clip_of_another_size_changes_the_configuration() -> None:
    video = clip(4, 30, 40)
    system = fitted(config(), video)
    assert (system.config.frames, system.config.height, system.config.width) == (4, 30, 40)
    assert system.decode().value.frames.shape == video.frames.shape


def run(*words: str, out: Path | None = None, system: str | None = None) -> None:
    """A verb as the command line calls it."""
    cli._run_verb(words[0], list(words[1:]), out, system, None, "smoke", False)


def test_compress_and_decompress_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, file, back = tmp_path / "in.mp4", tmp_path / "clip.hnrv", tmp_path / "out.mp4"
    write_video(clip(5, 36, 50), source)
    run("compress", str(source), "training.steps=4", "size=20k", "encoder.dims=[8,8,8]", out=file, system="hnerv")
    assert "psnr:" in capsys.readouterr().out
    run("decompress", str(file), out=back)
    video = read_video(back)
    assert (tuple(video.frames.shape), video.fps) == ((5, 3, 36, 50), Fraction(12))
    run("decode", str(file), "frames=1-2", out=tmp_path / "two.mp4")
    assert len(read_video(tmp_path / "two.mp4").frames) == 2
    run("inspect", str(file))
    assert "embeddings" in capsys.readouterr().out
    run("encode", str(file), out=tmp_path / "embeddings.npy")
    (tmp_path / "cut.hnrv").write_bytes(file.read_bytes()[:-20])
    with pytest.raises(InputError, match="checksum"):
        run("decompress", str(tmp_path / "cut.hnrv"), out=tmp_path / "no.mp4")
    assert not (tmp_path / "no.mp4").exists()


def test_one_command_fills_a_hole(tmp_path: Path) -> None:
    write_video(clip(3, 32, 48), tmp_path / "in.mp4")
    words = ["inpaint", str(tmp_path / "in.mp4"), "hole=boxes", "training.steps=3"]
    run(*words, out=tmp_path / "filled.mp4", system="hnerv")
    assert read_video(tmp_path / "filled.mp4").frames.shape == (3, 3, 32, 48)


def test_a_picture_is_no_video(tmp_path: Path) -> None:
    from encyclo.data.images import write_image

    write_image(clip().frames[0], tmp_path / "a.png")
    with pytest.raises(InputError, match="video"):
        run("compress", str(tmp_path / "a.png"), out=tmp_path / "x.hnrv", system="hnerv")
    assert not (tmp_path / "x.hnrv").exists()


def test_words_of_the_configuration_decide(tmp_path: Path) -> None:
    write_video(clip(3, 16, 24), tmp_path / "a.mp4")
    data = load(str(tmp_path / "a.mp4"), "video")
    made = HNeRV.for_input(HNeRV.Config(), data, [])
    assert made.training.seconds == 120
    assert made.training.steps is None
    assert made.training.optimiser.lr == 8e-3
    assert (made.frames, made.height, made.width) == (3, 16, 24)
    made = HNeRV.for_input(HNeRV.Config(), data, ["training.steps=7", "decoder.width=9", "coding.bits=5", "every=2"])
    assert (made.training.steps, made.decoder.width, made.coding.bits, made.every) == (7, 9, 5, 2)
    made = HNeRV.for_input(HNeRV.Config(), data, ["training.seconds=3", "reading.shrink=2"])
    assert (made.training.seconds, made.height) == (3, 8)
    made = HNeRV.for_input(HNeRV.Config(), data, ["training.optimiser.lr=0.005", "size=30k"])
    assert made.training.optimiser.lr == 0.005
    assert 25_000 < HNeRV.numbers(made) <= 30_300
    assert [usual_rate(n) for n in (1_500_000, 5_000_000, 1_000)] == [1e-3, 1e-3, 8e-3]
    assert usual_rate(54_160) == pytest.approx(8e-3, rel=0.01)
    with pytest.raises(InputError, match="no field 'colour'"):
        HNeRV.for_input(HNeRV.Config(), data, ["colour=red"])


def test_reading_says_what_it_leaves_out() -> None:
    video = clip(6, 16, 24)
    prepared = Reading(frames=4, crop=(12, 20), shrink=2).apply(video)
    assert prepared.frames.shape == (4, 3, 6, 10)
    middle = video.frames[0, :, 2:4, 2:4].float().mean((1, 2)).round().to(torch.uint8)
    assert torch.equal(prepared.frames[0, :, 0, 0], middle)
    assert len(prepared.notes) == 3
    assert Reading().apply(video).notes == ()
    with pytest.raises(InputError, match=r"reading.crop=null"):
        Reading(crop=(17, 10)).apply(video)
    with pytest.raises(InputError, match="does not divide"):
        Reading(shrink=5).apply(video)


def test_a_hole_of_another_size_is_refused(tmp_path: Path) -> None:
    from encyclo.data.images import write_image

    write_image(torch.full((3, 8, 8), 255, dtype=torch.uint8), tmp_path / "hole.png")
    with pytest.raises(InputError, match="give a picture of that size"):
        fitted(config(hole=str(tmp_path / "hole.png")))
    write_image(torch.full((3, 16, 24), 255, dtype=torch.uint8), tmp_path / "hole.png")
    assert bool(fitted(config(hole=str(tmp_path / "hole.png"))).hole.all())


def test_encode_after_loading_equals_encode_before(ours: Any, tmp_path: Path) -> None:
    opened = open_system(ours.save_pretrained(tmp_path))
    assert isinstance(opened, HNeRV)
    assert torch.equal(opened.encode().value, ours.encode().value)
    result = opened.encode(clip())
    assert isinstance(result, Result)
    assert torch.equal(result.value, ours.encode(clip()).value)
    assert torch.allclose(result.value, ours.encode().value, atol=1e-6)
    with pytest.raises(InputError, match="holds no encoder"):
        HNeRV.open_container(ours.compress().value).encode(clip())


def test_inconsistent_configurations_are_refused() -> None:
    with pytest.raises(ValueError, match=r"encoder.dims ends in 4, dim is 5"):
        config(dim=5)
    with pytest.raises(ValueError, match="the encoder shrinks 8 times"):
        config(decoder=NervDecoder.Config(width=8, strides=(2, 2), lowest=4))
    with pytest.raises(ValueError, match="too little for the frame"):
        rival(decoder=NervDecoder.Config(width=5, strides=(2,), grow=(2, 2)))


def test_a_larger_grid_than_the_encoders() -> None:
    made = config(decoder=NervDecoder.Config(width=8, strides=(4,), lowest=4, grow=(2, 2)))
    assert made.build().render(torch.zeros(1)).shape == (1, 3, 16, 24)


def test_numbers_have_not_drifted() -> None:
    """A system with weights from a formula gives the stored output."""
    system = config().build()
    with torch.no_grad():
        for number, p in enumerate(system.parameters()):
            place = torch.arange(p.numel(), dtype=torch.float64)
            p.copy_((torch.sin(0.37 * place + number) * 0.3).reshape(p.shape))
        system.after_fit(clip().frames)
    decoded = system.decoder(system.embeddings[:2])
    stored = json.loads(Path(__file__).with_suffix("").with_name("hnerv.json").read_text())
    assert decoded[:, :, ::5, ::7].flatten().tolist() == pytest.approx(stored["decoded"], abs=1e-4)
    assert system.embeddings[1].flatten().tolist() == pytest.approx(stored["embedding"], abs=1e-4)
