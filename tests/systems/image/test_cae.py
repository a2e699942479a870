import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from encyclo import experiment as engine
from encyclo.data.images import write_image
from encyclo.errors import InputError
from encyclo.experiment import Preset
from encyclo.nn.latent_regressor import LatentRegressor
from encyclo.nn.masked_autoencoder import MaskedDecoder
from encyclo.nn.part import parameter_count
from encyclo.nn.vit import ViT, ViTBlocks
from encyclo.sampling.masks import BlockMask, RandomMask, split_mask
from encyclo.system import open_system
from encyclo.systems.image.cae import CAE, MAE, experiment, from_published
from encyclo.tokens.image_codebook import KMeansCodebook
from systems.contract import SystemContract

STORED = Path(__file__).with_suffix("").with_name("cae.json")
BLOCKS = {"heads": 2, "bias": "qv", "layer_scale": 0.1}


def tiny(**changes: object) -> CAE:
    torch.manual_seed(0)
    settings: dict[str, object] = {
        "encoder": ViT.Config(image_size=8, patch=2, channels=1, dim=16, blocks=ViTBlocks.Config(depth=2, **BLOCKS)),
        "regressor": LatentRegressor.Config(depth=2, **BLOCKS),
        "decoder": ViTBlocks.Config(depth=1, **BLOCKS),
        "codebook": KMeansCodebook.Config(codes=16, patch=2),
        "mask": BlockMask(min_block=2),
        "mean": (0.5,),
        "std": (0.5,),
        "augment": {},
    }
    system: CAE = CAE.Config(**{**settings, **changes}).build()
    system.codebook.learn(images(64))
    return system


def images(count: int, side: int = 8, channels: int = 1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, channels, side, side), generator=generator, dtype=torch.uint8)


def masked(system: CAE, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    visible, hidden = split_mask(system.config.mask.draw(count, system.grid, torch.Generator().manual_seed(0)))
    return visible, hidden


def paint(pixels: torch.Tensor, index: torch.Tensor, patch: int, value: int) -> torch.Tensor:
    """The pictures with the patches at `index` filled."""
    painted = pixels.clone()
    columns = pixels.shape[-1] // patch
    for row, places in enumerate(index.tolist()):
        for place in places:
            r, c = patch * (place // columns), patch * (place % columns)
            painted[row, :, r : r + patch, c : c + patch] = value
    return painted


# -- what the method is ------------------------------------------------------------------------------------------------


def test_the_loss_is_its_equation() -> None:
    system, pixels = tiny(), images(6)
    torch.manual_seed(5)
    loss = system.loss(pixels)
    torch.manual_seed(5)
    visible, hidden = split_mask(system.config.mask.draw(6, system.grid))
    found = system.predict(system.prepared(pixels), visible, hidden)
    codes = system.codebook.encode(pixels, system.grid).gather(1, hidden)
    entropy = -found.logits.log_softmax(-1).gather(-1, codes[..., None]).mean()
    squares = (found.predicted - found.target).square().mean()
    torch.testing.assert_close(loss.value, entropy + 2 * squares)
    torch.testing.assert_close(loss.logs["cross_entropy"], entropy)
    assert loss.weight == codes.numel()


def test_the_encoder_never_sees_a_hidden_patch() -> None:
    system, pixels = tiny().eval(), images(3)
    visible, hidden = masked(system, 3)
    one = system.predict(system.prepared(pixels), visible, hidden)
    other = system.predict(system.prepared(paint(pixels, hidden, 2, 255)), visible, hidden)
    torch.testing.assert_close(one.predicted, other.predicted)
    torch.testing.assert_close(one.logits, other.logits)
    assert not torch.allclose(one.target, other.target)


def test_the_alignment_branch_is_the_encoder_itself_on_the_hidden_patches() -> None:
    system, pixels = tiny().eval(), images(3)
    visible, hidden = masked(system, 3)
    target = system.predict(system.prepared(pixels), visible, hidden).target
    torch.testing.assert_close(target, system.encoder(system.prepared(pixels), hidden)[:, 1:])
    assert not target.requires_grad


def test_no_gradient_of_the_alignment_flows_through_its_target() -> None:
    """The encoder's gradient is that of a constant target."""
    system, pixels = tiny(), images(3)
    visible, hidden = masked(system, 3)
    found = system.predict(system.prepared(pixels), visible, hidden)
    F.mse_loss(found.predicted, found.target).backward()
    gradient = {n: p.grad.clone() for n, p in system.encoder.named_parameters() if p.grad is not None}
    system.zero_grad()
    tokens = system.encoder.embed(system.prepared(pixels))
    seen = system.encode_patches(tokens, visible)
    again = system.regressor(seen, system.positions[visible], system.positions[hidden])
    F.mse_loss(again, found.target.clone()).backward()
    assert gradient
    for name, parameter in system.encoder.named_parameters():
        if name in gradient:
            torch.testing.assert_close(parameter.grad, gradient[name])


def test_the_decoder_sees_hidden_patches_only() -> None:
    system = tiny().eval()
    hidden = masked(system, 2)[1]
    latents = torch.randn(2, hidden.shape[1], 16)
    expected = system.to_codes(system.decoder(latents + system.positions[hidden]))
    torch.testing.assert_close(system.decode_latents(latents, hidden), expected)


def test_another_decoder_width_bridges_latents_and_targets() -> None:
    system = tiny(decoder_dim=24).eval()
    pixels = images(2)
    visible, hidden = masked(system, 2)
    found = system.predict(system.prepared(pixels), visible, hidden)
    assert found.predicted.shape[-1] == 24
    torch.testing.assert_close(found.target, system.bridge(system.encoder(system.prepared(pixels), hidden)[:, 1:]))
    assert not found.target.requires_grad
    assert tiny().bridge is None


def test_training_without_alignment_ignores_it() -> None:
    system, pixels = tiny(alignment=0.0), images(4)
    torch.manual_seed(1)
    loss = system.loss(pixels)
    torch.testing.assert_close(loss.value, loss.logs["cross_entropy"])


def test_the_rival_hides_the_same_and_predicts_pixels() -> None:
    torch.manual_seed(0)
    encoder = ViT.Config(image_size=8, patch=2, channels=1, dim=16, blocks=ViTBlocks.Config(depth=1, heads=2))
    decoder = MaskedDecoder.Config(dim=16, blocks=ViTBlocks.Config(depth=1, heads=2))
    mae: MAE = MAE.Config(
        encoder=encoder, decoder=decoder, mean=(0.5,), std=(0.5,), augment={}, mask=RandomMask(ratio=0.75)
    ).build()
    pixels = images(3)
    visible, hidden = split_mask(mae.config.mask.draw(3, mae.grid, torch.Generator().manual_seed(0)))
    order = torch.cat((visible, hidden), 1)
    one = mae.decoder(mae.encoder(mae.prepared(pixels), visible), order)
    other = mae.decoder(mae.encoder(mae.prepared(paint(pixels, hidden, 2, 255)), visible), order)
    torch.testing.assert_close(one, other)
    assert bool(torch.isfinite(mae.loss(pixels).value))


def numbers() -> dict[str, list[float]]:
    """A few numbers of a tiny system on fixed pictures, before and after three steps."""
    system, pixels = tiny(), images(8)
    before = system.encode(list(pixels[:2])).value[:, :4].flatten().tolist()
    optimiser = torch.optim.SGD(system.parameters(), lr=0.05)
    torch.manual_seed(5)
    losses = []
    system.train()
    for _ in range(3):
        optimiser.zero_grad()
        loss = system.loss(pixels).value
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    return {
        "losses": losses,
        "before": before,
        "after": system.encode(list(pixels[:2])).value[:, :4].flatten().tolist(),
    }


def test_stored_numbers_come_out_again() -> None:
    """Catches a drift of the arithmetic; `python tests/systems/image/test_cae.py` writes the file anew."""
    stored = json.loads(STORED.read_text())
    for name, values in numbers().items():
        assert values == pytest.approx(stored[name], rel=1e-3, abs=1e-4), name


# -- published sizes and weights ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arm", "encoder", "regressor", "decoder"), [("cae", 85.66, 28.37, 34.66), ("cae-large", 303.12, 50.41, 58.79)]
)
def test_the_parts_have_the_published_sizes(arm: str, encoder: float, regressor: float, decoder: float) -> None:
    with torch.device("meta"):
        system = experiment(Preset.PAPER).systems[arm].build()
    assert parameter_count(system.encoder) / 1e6 == pytest.approx(encoder, abs=0.01)
    assert parameter_count(system.regressor) / 1e6 == pytest.approx(regressor, abs=0.01)
    head = parameter_count(system.decoder) + parameter_count(system.to_codes)
    assert head / 1e6 == pytest.approx(decoder, abs=0.01)


def published(inner: int = 16) -> dict[str, torch.Tensor]:
    """Random weights in the official layout: 2 + 1 + 1 blocks, width 16 (and `inner`), 4x4 patches of 4 pixels."""
    torch.manual_seed(0)
    state: dict[str, torch.Tensor] = {}

    def linear(name: str, out: int, into: int, bias: bool = True) -> None:
        state[f"{name}.weight"] = torch.randn(out, into) * 0.2
        if bias:
            state[f"{name}.bias"] = torch.randn(out) * 0.2

    def norm(name: str, dim: int) -> None:
        state[f"{name}.weight"], state[f"{name}.bias"] = torch.rand(dim) + 0.5, torch.randn(dim) * 0.2

    def block(name: str, dim: int, kind: str) -> None:
        cross = "_cross" if kind == "cross" else ""
        attention = f"{name}.{'cross_attn' if cross else 'attn'}"
        for part in ("q", "k", "v") if cross else ("qkv",):
            linear(f"{attention}.{part}", dim if cross else 3 * dim, dim, bias=False)
        state[f"{attention}.q_bias"], state[f"{attention}.v_bias"] = torch.randn(dim), torch.randn(dim)
        linear(f"{attention}.proj", dim, dim)
        for part in ("norm1_q", "norm1_k", "norm1_v", "norm2_cross") if cross else ("norm1", "norm2"):
            norm(f"{name}.{part}", dim)
        linear(f"{name}.mlp{cross}.fc1", 4 * dim, dim)
        linear(f"{name}.mlp{cross}.fc2", dim, 4 * dim)
        state[f"{name}.gamma_1{cross}"], state[f"{name}.gamma_2{cross}"] = torch.rand(dim), torch.rand(dim)

    for branch in ("encoder", "alignment_encoder"):
        state[f"{branch}.cls_token"] = torch.randn(1, 1, 16)
        state[f"{branch}.pos_embed"] = torch.zeros(1, 17, 16)
        state[f"{branch}.patch_embed.proj.weight"] = torch.randn(16, 3, 4, 4) * 0.1
        state[f"{branch}.patch_embed.proj.bias"] = torch.randn(16)
        for i in range(2):
            block(f"{branch}.blocks.{i}", 16, "self")
        norm(f"{branch}.norm", 16)
    if inner != 16:
        linear("encoder_to_regresser", inner, 16)
        norm("encoder_to_regresser_norm", inner)
    state["rd_pos_embed"] = torch.zeros(1, 17, inner)
    state["mask_token"] = torch.randn(1, 1, inner)
    block("regresser.regressor_blocks.0", inner, "cross")
    norm("regresser.norm", inner)
    block("decoder.decoder_blocks.0", inner, "self")
    norm("decoder.norm", inner)
    linear("decoder.head", 32, inner)
    return state


@pytest.mark.parametrize("inner", [16, 24])
def test_official_weights_open_whole(inner: int, tmp_path: Path) -> None:
    state = published(inner)
    path = tmp_path / "cae.safetensors"
    save_file(state, path)
    CAE.import_(path, heads=2, out=tmp_path / "run")
    system = open_system(tmp_path / "run")
    assert isinstance(system, CAE)
    assert (system.config.encoder.image_size, system.config.encoder.patch, system.config.codebook.codes) == (16, 4, 32)
    # every number of the file stands in exactly one place
    kept = {n: v for n, v in state.items() if not n.startswith(("alignment_encoder.", "encoder.pos_embed", "rd_pos"))}
    assert sum(v.numel() for v in kept.values()) == parameter_count(system)
    regressor, block = system.regressor.blocks[0], "regresser.regressor_blocks.0"
    assert torch.equal(regressor.attn.v.bias.data, state[f"{block}.cross_attn.v_bias"])
    assert torch.equal(regressor.norm_k.weight.data, state[f"{block}.norm1_k.weight"])
    assert torch.equal(regressor.scale2.gamma.data, state[f"{block}.gamma_2_cross"])
    assert torch.equal(system.encoder.blocks.blocks[1].mlp.wo.bias.data, state["encoder.blocks.1.mlp.fc2.bias"])
    assert system.encode([images(1, 16, 3)[0]]).value.shape == (1, 16)
    with pytest.raises(InputError, match="no codebook"):
        system.reconstruct([images(1, 16, 3)[0]])


def test_other_checkpoints_are_refused(tmp_path: Path) -> None:
    state = published()
    with pytest.raises(InputError, match="no CAE has"):
        from_published({**state, "extra.weight": torch.zeros(1)})
    with pytest.raises(InputError, match="lacks 'to_codes"):
        from_published({n: v for n, v in state.items() if not n.startswith("decoder.head")})
    with pytest.raises(InputError, match="does not fit"):
        from_published({n: v for n, v in state.items() if n != "encoder.blocks.1.norm2.bias"}, heads=2)
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(b"no tensors")
    with pytest.raises(InputError, match="no readable checkpoint"):
        CAE.import_(broken, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_settings_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="must be equal"):
        CAE.Config(codebook=KMeansCodebook.Config(channels=1))
    with pytest.raises(InputError, match=r"^encoder\.channels=3 and codebook\.channels=1 must be equal$"):
        experiment(Preset.SMOKE).systems["cae"].override(["encoder.channels=3"])
    with pytest.raises(InputError, match="patches of 3"):
        tiny(encoder=ViT.Config(image_size=8, patch=3, channels=1, dim=16))
    with pytest.raises(InputError, match="dim=18"):
        tiny(encoder=ViT.Config(image_size=8, patch=2, channels=1, dim=18, blocks=ViTBlocks.Config(depth=1, heads=2)))


# -- the whole thing ---------------------------------------------------------------------------------------------------


class TestContract(SystemContract):
    slug = "cae"
    published = {"cae": 148_680_000, "cae-large": 412_320_000}
    verbs = {
        "encode": ["{picture}", "{other}", "pool=patches"],
        "probe": ["{labelled}", 'kinds=["linear","knn"]'],
        "finetune": ["{labelled}", "epochs=1", "rates=[1e-3]", "layer_decays=[0.65]"],
        "classify": ["{picture}", "labelled={labelled}"],
        "reconstruct": ["{folder}", "mask_ratio=0.75"],
        "inspect": ["{folder}"],
        "import": ["{weights}", "heads=2"],
    }
    bad = [
        ("encode", ["{empty}"], "empty"),
        ("encode", ["{nothing}"], "holds no pictures"),
        ("probe", ["{folder}"], "no labelled pictures"),
        ("classify", ["{picture}"], "no classifier"),
        ("reconstruct", ["{picture}", "mask_ratio=1.5"], "mask_ratio"),
        ("reconstruct", ["{picture}", "mask_ratio=0.01"], "hides 0 of 16"),
        ("import", ["{picture}"], "checkpoint"),
        ("import", ["{empty}"], "ends too early"),
    ]

    def files(self, folder: Path) -> dict[str, Path]:
        generator = torch.Generator().manual_seed(3)

        def picture(path: Path, bright: int) -> Path:
            path.parent.mkdir(parents=True, exist_ok=True)
            noise = torch.randint(0, 60, (3, 20, 16), generator=generator, dtype=torch.uint8)
            write_image(noise + bright, path)
            return path

        for split in ("train", "validation", "test"):
            for number in range(8):
                for name, bright in (("dark", 0), ("light", 150)):
                    picture(folder / "labelled" / split / name / f"{number}.png", bright)
        save_file(published(), folder / "cae.safetensors")
        (folder / "nothing").mkdir()
        return {
            "picture": picture(folder / "plain" / "a.png", 20),
            "other": picture(folder / "plain" / "b.jpg", 90),
            "folder": folder / "plain",
            "labelled": folder / "labelled",
            "weights": folder / "cae.safetensors",
            "nothing": folder / "nothing",
        }

    def test_a_tuned_run_names_classes(self, finished, given, tmp_path: Path) -> None:
        words = ["{labelled}", "epochs=8", "rates=[3e-3]", "layer_decays=[1.0]", "batch_size=8"]
        out = tmp_path / "tuned"
        (result,) = self._call(finished, given, "finetune", words, out)
        assert result.value == out
        tuned = open_system(out)
        assert tuned.config.classes == ("dark", "light")
        named = tuned.classify([given["labelled"] / "test"])
        right = [row["class"] in row["picture"] for row in named.value]
        assert sum(right) == pytest.approx(len(right) * result.report["test accuracy (%)"] / 100)
        assert named.notes, "resized pictures are told"

    def test_vectors_of_a_saved_run_are_the_same(self, finished, given, tmp_path: Path) -> None:
        opened = open_system(finished.run)
        again = open_system(opened.save_pretrained(tmp_path / "copy"))
        for pool in ("cls", "mean", "patches"):
            one = opened.encode([given["picture"]], pool=pool).value
            torch.testing.assert_close(one, again.encode([given["picture"]], pool=pool).value, rtol=0, atol=0)
        assert opened.encode([given["folder"]]).value.shape == (2, 32)
        assert opened.encode([given["folder"]], pool="patches").value.shape == (2, 4, 4, 32)

    def test_a_few_pictures_of_any_size_train(self, given, tmp_path: Path) -> None:
        """Fewer than a batch, of several sizes, in colour, without labels: as `encyclo train cae --data FOLDER`."""
        for number, size in enumerate([(9, 9), (30, 20), (8, 40), (17, 23), (28, 28)]):
            noise = torch.randint(
                0, 256, (3, *size), generator=torch.Generator().manual_seed(number), dtype=torch.uint8
            )
            write_image(noise, tmp_path / f"{number}.png")
        declared = engine.declared("cae", "laptop")
        config = declared.systems["cae"].override(["training.steps=2", "codebook.codes=8"])
        splits = engine.load_data(declared, spec=str(tmp_path))
        system, metrics, _ = engine.train(config, splits, tmp_path / "run", progress=False)
        assert metrics["token_accuracy"] >= 0
        assert "linear" not in metrics, "there are no labels to probe"
        encoded = system.encode([tmp_path / "1.png"])
        assert any("resized" in note for note in encoded.notes)
        assert any("in grey" in note for note in encoded.notes)

    def test_files_are_written(self, finished, given, tmp_path: Path) -> None:
        opened = open_system(finished.run)
        opened.reconstruct([given["folder"]], out=tmp_path / "sheet.png")
        opened.inspect([given["folder"]], out=tmp_path / "page.html")
        assert (tmp_path / "sheet.png").stat().st_size > 100
        assert "latent bypass" in (tmp_path / "page.html").read_text()


if __name__ == "__main__":
    STORED.write_text(json.dumps(numbers(), indent=1) + "\n")
