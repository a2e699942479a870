"""HiFi-Codec: its equations, limiting cases, published sizes and layouts, verbs and files."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from safetensors.torch import save_file
from torch import Tensor

from encyclo import data as rooms
from encyclo.data.audio import Audio, read_audio
from encyclo.errors import InputError
from encyclo.experiment import read_curves
from encyclo.nn.hifigan import HifiganEncoder, HifiganGenerator, ResidualBlock
from encyclo.nn.part import parameter_count
from encyclo.nn.seanet import SeanetDecoder, SeanetEncoder
from encyclo.nn.vector_quantize import (
    Codebooks,
    EmaLearning,
    GroupResidualVectorQuantize,
    NoQuantize,
    ResidualVectorQuantize,
)
from encyclo.nn.weight_norm import put_weight_norm
from encyclo.systems.audio.hifi_codec import _TINY, Encodec, HifiCodec, published
from encyclo.systems.audio_training import Game, Objective
from encyclo.training import Trainer
from encyclo.training.config import AdamW, TrainingConfig
from systems.contract import SystemContract

BLOCKS = (ResidualBlock.Config(kernel=3, dilations=(1, 3)), ResidualBlock.Config(kernel=7, dilations=(1,)))
STACK: dict[str, Any] = {"rates": (5, 4), "kernels": (11, 8), "blocks": BLOCKS, "init_std": None}


def config(**fields: Any) -> HifiCodec.Config:
    quick = TrainingConfig(steps=2, batch_size=2, optimiser=AdamW(lr=1e-3))
    base: dict[str, Any] = {
        "rate": 8000,
        "dim": 8,
        "encoder": HifiganEncoder.Config(channels=4, group=4, **STACK),
        "decoder": HifiganGenerator.Config(channels=16, **STACK),
        "quantizer": GroupResidualVectorQuantize.Config(codebooks=Codebooks.Config(size=16, init="normal")),
        "discriminators": _TINY,
        "segment": 400,
        "training": quick,
        "survey_files": 3,
    }
    return HifiCodec.Config(**base | fields)


def codec(**fields: Any) -> HifiCodec:
    torch.manual_seed(0)
    made = config(**fields).build()
    assert isinstance(made, HifiCodec)
    return made.eval()


def recording(path: Path, seconds: float = 1.0, rate: int = 8000, channels: int = 1) -> Path:
    time = np.arange(int(seconds * rate)) / rate
    wave = 0.3 * np.sin(2 * np.pi * 200 * time) * (1 + 0.5 * np.sin(2 * np.pi * 3 * time))
    soundfile.write(path, np.stack([wave * 0.9**c for c in range(channels)], 1), rate)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "recordings"
    for split, count in (("train", 6), ("validation", 1), ("test", 3)):
        (made / split).mkdir(parents=True)
        for i in range(count):
            recording(made / split / f"{i}.wav", 0.3 + 0.1 * i)
    return made


class TestContract(SystemContract):
    slug = "hifi-codec"
    published = {"24k-320d": 63_602_497}
    verbs = {
        "encode": ["{clip}"],
        "decode": ["{tokens}"],
        "compress": ["{clip}"],
        "decompress": ["{coded}"],
        "reconstruct": ["{clip}"],
        "inspect": [],
        "import": ["{weights}"],
    }
    bad = [
        ("encode", ["{missing}"], "no file"),
        ("encode", ["{empty}"], "empty"),
        ("encode", ["{text}"], "cannot be read as sound"),
        ("decode", ["{text}"], "no token file"),
        ("decompress", ["{text}"], "encyclo compress"),
        ("compress", ["{clip}", "piece_seconds=0"], "piece_seconds"),
        ("compress", ["{clip}", "coder=zip"], "coder"),
        ("import", ["{text}"], "no checkpoint"),
        ("import", ["{clip}", "layout=44k"], "layout"),
        ("encode", ["{nan}"], "not finite"),
    ]

    def files(self, folder: Path) -> dict[str, Path]:
        (folder / "text.txt").write_text("no sound at all")
        soundfile.write(folder / "nan.wav", np.array([0.0, np.nan] * 300, dtype=np.float32), 8000, subtype="FLOAT")
        return {
            "clip": recording(folder / "clip.flac", 0.8, 16000, 2),
            "text": folder / "text.txt",
            "nan": folder / "nan.wav",
            "tokens": folder / "tokens.json",
            "coded": folder / "coded.enc",
            "weights": encodec_folder(folder / "encodec"),
        }

    @pytest.fixture(scope="class")
    def given(self, finished: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
        """Tokens and coded files of the very run."""
        from encyclo.system import open_system
        from encyclo.verbs import write

        place = tmp_path_factory.mktemp("files")
        (place / "empty").write_bytes(b"")
        found = {"missing": place / "missing.bin", "empty": place / "empty", **self.files(place)}
        system: Any = open_system(finished.run)
        write(system.encode(read_audio(found["clip"])).value, found["tokens"])
        write(system.compress(read_audio(found["clip"])).value, found["coded"])
        return found


# -- equations and sizes -----------------------------------------------------------------------------------------------


def test_published_sizes_folded_and_with_gains() -> None:
    with torch.device("meta"):
        codecs = {name: c.build() for name, c in published().items()}
    one = codecs["24k-320d"]
    assert parameter_count(one) == 63_602_497
    assert parameter_count(one.quantizer) == 1_048_576
    put_weight_norm(one.encoder)
    put_weight_norm(one.decoder)
    assert parameter_count(one) == 63_630_882
    rates = {name: (c.config.rate / c.hop, c.bits_per_second) for name, c in codecs.items()}
    assert rates == {"24k-320d": (75, 3000), "24k-240d": (100, 4000), "16k-320d": (50, 2000)}


@pytest.mark.parametrize("samples", [1, 19, 20, 21, 400, 1234])
def test_lengths_come_back_exactly(samples: int) -> None:
    made = codec()
    wave = torch.randn(2, samples) * 0.1
    codes = made.codes(wave)
    assert codes.shape == (2, -(-samples // 20), 4)
    assert made.wave(codes).shape == (2, codes.shape[1] * 20)
    blob = made.compress(Audio(wave, 8000)).value
    assert made.decompress(blob).value.samples.shape == wave.shape


def test_the_generators_loss_is_the_stated_sum() -> None:
    made = codec(objective=Objective(wave=3.0)).train()
    game = Game(made, Trainer(None, progress=False))
    game.discriminators = _TINY.build()
    wave = torch.randn(2, 400) * 0.1
    loss = game.generator_loss(wave)
    fake, quantized = made(wave[:, None], learn=False)
    verdicts = game.discriminators(wave[:, None]), game.discriminators(fake)
    mel = sum(
        weight * (front(wave) - front(fake[:, 0])).abs().mean()
        for weight, front in zip((45.0, 1.0, 1.0), game.mel.fronts, strict=True)
    )
    adversarial = sum((1 - v.score).square().mean() for v in verdicts[1])
    features = sum(
        (a - b).abs().mean()
        for x, y in zip(*verdicts, strict=True)
        for a, b in zip(x.features, y.features, strict=True)
    )
    expected = mel + 3.0 * (fake[:, 0] - wave).abs().mean() + 10 * quantized.loss + adversarial + 2 * features
    torch.testing.assert_close(loss.value, expected, rtol=1e-4, atol=1e-4)


def test_the_discriminators_loss_is_least_squares_over_all_families() -> None:
    made = codec().train()
    game = Game(made, Trainer(None, progress=False))
    game.discriminators = _TINY.build().eval()  # eval: spectral norms keep their estimates
    wave = torch.randn(2, 400) * 0.1
    value = game.discriminator_loss(wave).value
    with torch.no_grad():
        fake, _ = made(wave[:, None], learn=False)
        pairs = zip(game.discriminators(wave[:, None]), game.discriminators(fake), strict=True)
        expected = sum((1 - r.score).square().mean() + f.score.square().mean() for r, f in pairs)
    torch.testing.assert_close(value.detach(), expected)
    assert len(game.discriminators(fake)) == 2 + 2 + 1


def test_the_quantisers_residual_sends_no_gradient_to_the_encoder() -> None:
    made = codec().train()
    wave = torch.randn(2, 1, 400) * 0.1
    z = made.encoder(wave).transpose(1, 2).detach().requires_grad_()
    made.quantizer(z, learn=False).loss.backward()
    with torch.no_grad():
        first = made.quantizer.decode_levels(made.quantizer(z, learn=False).codes)[0]
        expected = 0.25 * 2 * (z - first) / z.numel() / 2
    assert z.grad is not None
    torch.testing.assert_close(z.grad, expected)


def test_one_group_is_the_rival() -> None:
    """With one group GRVQ is residual VQ: same codes from the same tables."""
    books = Codebooks.Config(size=16, init="normal")
    one = codec(quantizer=GroupResidualVectorQuantize.Config(levels=3, groups=1, codebooks=books))
    two = codec(quantizer=ResidualVectorQuantize.Config(levels=3, codebooks=books))
    two.load_state_dict(one.state_dict())
    wave = torch.randn(1, 500) * 0.1
    assert torch.equal(one.codes(wave), two.codes(wave))


@pytest.mark.parametrize("kind", ["hifigan", "seanet"])
def test_turning_the_latent_changes_no_wave(kind: str) -> None:
    seanet = {"rates": (5, 4), "filters": 4, "lstm_layers": 1}
    halves = {"encoder": SeanetEncoder.Config(**seanet), "decoder": SeanetDecoder.Config(**seanet)}
    made = codec(quantizer=NoQuantize.Config(), **(halves if kind == "seanet" else {}))
    wave = torch.randn(1, 1, 400) * 0.1
    before, _ = made(wave)
    z = made.encoder(wave)
    basis = 3 * torch.linalg.qr(torch.randn(8, 8)).Q
    made.turn(basis)
    torch.testing.assert_close(made.encoder(wave), torch.einsum("ij,bjt->bit", basis, z), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(made(wave)[0], before, atol=1e-5, rtol=1e-4)


def test_the_latent_is_scaled_before_its_codebooks_are_set(folder: Path, tmp_path: Path) -> None:
    splits = rooms.load(str(folder), "audio")
    books = Codebooks.Config(size=8, init="k-means", rounds=3)
    quantizer = GroupResidualVectorQuantize.Config(codebooks=books)
    made = codec(quantizer=quantizer, latent_deviation=2.0, decorrelate=True)
    wave = torch.randn(1, 1, 400) * 0.1
    before = made.decoder(made.encoder(wave))
    made._set_codebooks(splits, Trainer(None, progress=False))
    torch.testing.assert_close(made.decoder(made.encoder(wave)), before, atol=1e-5, rtol=1e-4)
    z = torch.cat([made.encoder(read_audio(row["audio"], 8000).samples[None, :, :2000])[0].t() for row in splits.train])
    assert 1 < float(z.detach().var(0).mean().sqrt()) < 4


def test_halves_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValidationError, match="hop is 20"):
        config(decoder=HifiganGenerator.Config(channels=16, rates=(4, 4), kernels=(8, 8), blocks=BLOCKS))
    with pytest.raises(ValidationError, match="not a multiple of the hop"):
        config(segment=401)


# -- training ----------------------------------------------------------------------------------------------------------


def test_fit_moves_both_players_and_leaves_plain_weights(folder: Path, tmp_path: Path) -> None:
    splits = rooms.load(str(folder), "audio")
    made = codec(continuous=TrainingConfig(steps=1, batch_size=2))
    before = {name: value.clone() for name, value in made.state_dict().items()}
    trainer = Trainer(tmp_path / "run", progress=False)
    made.fit(splits, trainer)
    after = made.state_dict()
    assert set(after) == set(before)  # weight norm is folded, no discriminator is left
    for name in ("encoder.first.weight", "decoder.ups.0.weight", "quantizer.levels.0.weight"):
        assert not torch.equal(before[name], after[name])
    assert int(made.counts.sum()) > 0
    assert float(made.energy.sum()) > 0
    names = set(read_curves(tmp_path / "run"))
    assert {"fit/discriminators/loss", "fit/codec/features", "continuous/mel"} <= names
    metrics = made.evaluate(splits)
    assert {"mel_distance", "si_sdr", "stoi", "latent_error", "perplexity", "bits_per_second"} <= set(metrics)


def test_discriminators_wait_for_their_step(folder: Path, tmp_path: Path) -> None:
    splits = rooms.load(str(folder), "audio")
    made = codec(objective=Objective(from_step=100))
    game = Game(made, Trainer(None, progress=False))
    game.discriminators = _TINY.build()
    wave = torch.randn(2, 400) * 0.1
    assert float(game.discriminator_loss(wave).value.detach()) == 0
    assert "adversarial" not in game.generator_loss(wave).logs
    made.fit(splits, Trainer(tmp_path / "run", progress=False))


def test_running_averages_and_level_dropout_train(folder: Path, tmp_path: Path) -> None:
    splits = rooms.load(str(folder), "audio")
    books = Codebooks.Config(size=8, learning=EmaLearning(), init="k-means", rounds=3, revive_below=0.2)
    quantizer = ResidualVectorQuantize.Config(levels=3, codebooks=books, residual_gradient="open")
    made = codec(quantizer=quantizer, level_dropout=True, discriminators=None)
    made.fit(splits, Trainer(tmp_path / "run", progress=False))
    assert bool(made.quantizer.levels[2].ready)


def test_a_continuous_autoencoder_starts_every_arm(folder: Path, tmp_path: Path) -> None:
    splits = rooms.load(str(folder), "audio")
    first = TrainingConfig(steps=1, batch_size=2)
    ceiling = codec(quantizer=NoQuantize.Config(), continuous=first)
    prepared = ceiling.fit_continuous(splits, Trainer(tmp_path / "a", progress=False))
    arm = codec(continuous=first)
    arm.start_from(prepared)
    assert torch.equal(arm.encoder.first.weight, ceiling.encoder.first.weight)
    metrics = ceiling.evaluate(splits)
    assert "mel_distance" in metrics
    assert "perplexity" not in metrics
    with pytest.raises(InputError, match="no codebooks"):
        ceiling.codes(torch.zeros(1, 100))


# -- verbs -------------------------------------------------------------------------------------------------------------


def test_tokens_travel_through_json() -> None:
    made = codec()
    audio = Audio(torch.randn(2, 1003) * 0.1, 8000, "clip")
    result = made.encode(audio)
    text = json.dumps({**result.value, "codes": result.value["codes"].tolist()})
    decoded = made.decode(text).value
    assert decoded.samples.shape == (2, 1003)
    assert decoded.rate == 8000
    assert torch.equal(decoded.samples, made.decode(result.value).value.samples)
    assert any("2 channels" in note for note in result.notes)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": "0" * 16}, "made by model"),
        ({"codes": [[[0, 1, 2, 16]]]}, "16 is outside 0..15"),
        ({"codes": [[[0, 1, -1, 2]]]}, "-1 is outside"),
        ({"codes": [[[0, 1, 2]]]}, "3 codebooks, this model has 4"),
        ({"codes": [[[0.5, 1, 2, 3]]]}, "whole numbers"),
        ({"codes": [[0, 1], [2]]}, "whole numbers"),
        ({"codes": "noise"}, "whole numbers"),
        ({"codes": []}, "whole numbers"),
        ({"length": 10**9}, "does not fit"),
    ],
)
def test_bad_tokens_are_refused(change: dict[str, Any], message: str) -> None:
    made = codec()
    good = made.encode(Audio(torch.randn(1, 15) * 0.1, 8000)).value
    with pytest.raises(InputError, match=message):
        made.decode({**good, **change})


@pytest.mark.parametrize("coder", ["range", "raw"])
def test_files_hold_the_codes_and_play_in_pieces(coder: Any) -> None:
    made = codec()
    made.counts.random_(0, 50)
    audio = Audio(torch.randn(2, 4123) * 0.1, 8000)
    blob = made.compress(audio, coder=coder, piece_seconds=0.1)
    whole = made.wave(made.codes(audio.samples))[:, :4123]
    parts = list(made.decompress_pieces(blob.value))
    assert [p.samples.shape[1] for p in parts] == [800] * 5 + [123]
    torch.testing.assert_close(torch.cat([p.samples for p in parts], 1), whole, atol=1e-5, rtol=1e-4)
    assert blob.report["bytes"] == len(blob.value)
    raw = 2 * 207 * 4 * 4 / (4123 / 8000)
    assert blob.report["bits_per_second_of_raw_codes"] == pytest.approx(raw)


def test_entropy_coding_gains_what_the_tables_promise() -> None:
    made = codec()
    wave = torch.randn(1, 40_000) * 0.1
    plain = made.compress(Audio(wave, 8000)).report
    codes = made.codes(wave)
    made.counts.copy_(torch.stack([torch.bincount(codes[0, :, b], minlength=16) for b in range(4)]))
    coded = made.compress(Audio(wave, 8000)).report
    entropy = made._rates(made.counts)["bits_per_second_entropy_coded"]
    assert coded["bits_per_second_of_codes"] == pytest.approx(entropy, rel=0.03)
    assert coded["bits_per_second_of_codes"] < plain["bits_per_second_of_codes"]


def test_damaged_and_foreign_files_are_refused() -> None:
    made = codec()
    blob = made.compress(Audio(torch.randn(1, 900) * 0.1, 8000)).value
    for damaged in (b"", blob[:20], blob[:-1], blob[:60] + b"x" + blob[61:]):
        with pytest.raises(InputError):
            made.decompress(damaged)
    other = codec()
    with torch.no_grad():
        other.decoder.last.bias.add_(1.0)
    with pytest.raises(InputError, match="made by model"):
        other.decompress(blob)


def test_long_files_are_coded_in_pieces_that_change_nothing_without_the_group_norm(monkeypatch: Any) -> None:
    monkeypatch.setattr("encyclo.systems.audio_codec._LONGEST_PIECE", 0.2)
    local = codec(encoder=HifiganEncoder.Config(channels=4, norm="none", **STACK))
    wave = torch.randn(1, 16_000) * 0.1
    pieced = local.codes(wave)
    z = local.encoder(wave[:, None]).transpose(1, 2)
    assert torch.equal(pieced, local.quantizer(z, learn=False).codes)
    decoded = local.wave(pieced)
    torch.testing.assert_close(
        decoded, local.decoder(local.quantizer.decode(pieced).transpose(1, 2))[:, 0], atol=1e-5, rtol=1e-4
    )
    normed = codec()
    assert any("pieces" in note for note in normed.encode(Audio(wave, 8000, "long")).notes)


@pytest.mark.parametrize("rate", [8000, 16000])
@pytest.mark.parametrize("suffix", [".wav", ".ogg"])
def test_a_file_is_coded_block_by_block_as_if_whole(suffix: str, rate: int, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr("encyclo.systems.audio_codec._LONGEST_PIECE", 0.4)
    monkeypatch.setattr("encyclo.systems.audio_codec._BLOCK_SECONDS", 0.3)
    path = recording(tmp_path / f"long{suffix}", 3.21, rate, 2)
    made = codec()
    with torch.no_grad():
        made.encoder.last.weight.mul_(30)
    audio = read_audio(path)
    whole, blocks = made.compress(audio), made.compress(path)
    codes = made._codes_of(made._prepared_blocks(path, []))[0]
    assert codes.shape == made.codes(made._prepared(audio)[0]).shape
    assert float((codes == made.codes(made._prepared(audio)[0])).float().mean()) > 0.95
    if rate == 8000:
        assert whole.value == blocks.value
    assert list(blocks.notes) == list(whole.notes)
    assert set(blocks.report) == set(whole.report)
    assert made.decompress(blocks.value).value.samples.shape == made.decompress(whole.value).value.samples.shape
    with pytest.raises(InputError, match="is a folder"):
        made.compress(tmp_path)


def test_reconstruct_writes_sound_picture_and_figures(tmp_path: Path) -> None:
    made = codec()
    audio = read_audio(recording(tmp_path / "a.wav", 1.0, 16000))
    alone = made.reconstruct(audio)
    assert alone.value.samples.shape == (1, 8000)
    assert any("resampled" in note for note in alone.notes)
    out = tmp_path / "out"
    result = made.reconstruct(audio, out=out)
    assert {p.name for p in out.iterdir()} == {"original.wav", "reconstruction.wav", "spectrograms.png", "metrics.json"}
    assert json.loads((out / "metrics.json").read_text()) == pytest.approx(dict(result.report))
    with pytest.raises(InputError, match="is a file"):
        made.reconstruct(audio, out=tmp_path / "a.wav")


def test_inspect_shows_every_codebook(tmp_path: Path) -> None:
    made = codec()
    with pytest.raises(InputError, match="has not surveyed"):
        made.inspect()
    audio = read_audio(recording(tmp_path / "a.wav"))
    rows = made.inspect([audio]).value
    assert [(row["level"], row["group"]) for row in rows] == [(1, 1), (1, 2), (2, 1), (2, 2)]
    z = made.encoder(audio.samples[None])[0].t()
    left = (z - made.quantizer.decode(made.quantizer(z, learn=False).codes)).square().sum() / z.square().sum()
    assert sum(row["energy_explained"] for row in rows) == pytest.approx(1 - float(left.detach()), abs=1e-4)
    page = made.inspect([audio], out=tmp_path / "page.html")
    assert page.value == tmp_path / "page.html"
    assert "<svg" in page.value.read_text()
    made.inspect([audio], out=tmp_path / "page.json")
    assert len(json.loads((tmp_path / "page.json").read_text())["codebooks"]) == 4


# -- published weights -------------------------------------------------------------------------------------------------


def official(made: HifiCodec) -> dict[str, dict[str, Tensor]]:
    """A random checkpoint of the official layout, of the codec's sizes, and the weights it means."""
    torch.manual_seed(1)
    parts: dict[str, dict[str, Tensor]] = {"generator": {}, "encoder": {}, "quantizer": {}}

    def put(part: str, name: str, layer: Any, normed: bool = True) -> None:
        shape = layer.weight.shape
        direction, bias = torch.randn(shape), torch.randn(layer.bias.shape)
        with torch.no_grad():
            layer.bias.copy_(bias)
            if not normed:
                parts[part][f"{name}.weight"] = direction
                layer.weight.copy_(direction)
            else:
                gain = torch.rand(shape[0], *[1] * (len(shape) - 1)) + 0.5
                parts[part] |= {f"{name}.weight_g": gain, f"{name}.weight_v": direction}
                layer.weight.copy_(gain * F.normalize(direction.flatten(1), dim=1).view(shape))
        parts[part][f"{name}.bias"] = bias

    for part, half, steps in (("encoder", made.encoder, "downs"), ("generator", made.decoder, "ups")):
        put(part, "conv_pre", half.first)
        put(part, "conv_post", half.last, normed=part == "generator")
        count = 0
        for stage, step in enumerate(getattr(half, steps)):
            put(part, f"ups.{stage}", step)
            for j, block in enumerate(half.blocks[stage]):
                if part == "encoder":
                    put(part, f"normalize.{count}", half.norms[stage][j], normed=False)
                for n, (dilated, plain) in enumerate(zip(block.dilated, block.plain, strict=True)):
                    put(part, f"resblocks.{count}.convs1.{n}", dilated)
                    put(part, f"resblocks.{count}.convs2.{n}", plain)
                count += 1
    for level, name in enumerate(("quantizer_modules", "quantizer_modules2")):
        for group in range(2):
            table = torch.randn(16, 4)
            parts["quantizer"][f"{name}.{group}.embedding.weight"] = table
            made.quantizer.levels[level].weight.data[group] = table
    return parts


@pytest.mark.parametrize("form", ["safetensors", "checkpoint"])
def test_official_checkpoints_are_converted(form: str, tmp_path: Path) -> None:
    made = codec()
    parts = official(made)
    if form == "safetensors":
        path = tmp_path / "weights.safetensors"
        save_file({f"{part}.{key}": value for part, state in parts.items() for key, value in state.items()}, path)
    else:
        path = tmp_path / "HiFi-Codec"
        torch.save(parts, path)
    opened = HifiCodec.from_academicodec(path, config())
    for name, value in made.state_dict().items():
        torch.testing.assert_close(opened.state_dict()[name], value)
    with pytest.raises(InputError, match="another layout"):
        HifiCodec.from_academicodec(path, published()["24k-240d"])


def test_a_checkpoint_with_code_in_it_is_refused(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "exploded",))

    torch.save({"generator": Bomb(), "encoder": {}, "quantizer": {}}, tmp_path / "bomb")
    with pytest.raises(InputError, match="no checkpoint"):
        HifiCodec.from_academicodec(tmp_path / "bomb", config())
    assert not (tmp_path / "exploded").exists()


def encodec_folder(folder: Path) -> Path:
    from transformers import EncodecConfig, EncodecModel

    torch.manual_seed(0)
    base = EncodecModel(
        EncodecConfig(
            sampling_rate=8000,
            num_filters=4,
            upsampling_ratios=[5, 4],
            hidden_size=8,
            codebook_dim=8,
            codebook_size=16,
            target_bandwidths=[1.6, 6.4],
        )
    )
    for layer in base.quantizer.layers:
        layer.codebook.embed.normal_()
    base.save_pretrained(folder)
    return folder


def test_encodec_opens_from_a_folder_and_codes_as_transformers_does(tmp_path: Path) -> None:
    from transformers import EncodecModel

    base = EncodecModel.from_pretrained(encodec_folder(tmp_path / "encodec")).eval()
    ours = Encodec.from_transformers(tmp_path / "encodec")
    assert isinstance(ours.encoder, SeanetEncoder)
    assert isinstance(ours.decoder, SeanetDecoder)
    wave = torch.randn(1, 800) * 0.1
    with torch.no_grad():
        theirs = base.encode(wave[None], bandwidth=6.4)
        sound = base.decode(theirs.audio_codes, theirs.audio_scales).audio_values
    codes = ours.codes(wave)
    assert ours.bits_per_second == 6400
    assert torch.equal(codes[0].t(), theirs.audio_codes[0, 0])
    torch.testing.assert_close(ours.wave(codes), sound[0], atol=1e-5, rtol=1e-4)
    fewer = Encodec.from_transformers(tmp_path / "encodec", levels=1)
    assert torch.equal(fewer.codes(wave), codes[..., :1])
    with pytest.raises(InputError, match="levels=9"):
        Encodec.from_transformers(tmp_path / "encodec", levels=9)
    with pytest.raises(InputError, match="no EnCodec"):
        Encodec.from_transformers(tmp_path)


def test_a_stored_wave_still_gives_the_stored_codes() -> None:
    """Numeric drift: seeded weights, a wave by formula; codes and wave were stored once."""
    made = drift()
    stored = json.loads((Path(__file__).parent / "hifi_codec.json").read_text())
    codes = made.codes(chirp())
    assert codes[0].tolist() == stored["codes"]
    torch.testing.assert_close(made.wave(codes)[0, ::20], torch.tensor(stored["wave"]), atol=1e-5, rtol=1e-4)


def drift() -> HifiCodec:
    made = codec()
    with torch.no_grad():
        for level in made.quantizer.levels:
            level.weight.mul_(0.1)
    return made


def chirp() -> Tensor:
    return (0.3 * torch.sin(torch.arange(400, dtype=torch.float64) ** 1.5 / 40)).float()[None]
