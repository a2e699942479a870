"""Published HNeRV weights: a reference written in the official layout decodes to the same frames."""

from fractions import Fraction
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from encyclo.data.video import Video
from encyclo.errors import InputError
from encyclo.systems.video_checkpoints import from_published, open_published

STRIDES, WIDTHS, KERNELS, DIM, WIDE = (4, 2), (20, 17, 14), (1, 3), 6, 10


def state(*, encoder: bool = True) -> dict[str, Tensor]:
    """Random weights under the official names."""
    generator = torch.Generator().manual_seed(0)
    shapes: dict[str, tuple[int, ...]] = {"decoder.0.conv.downconv": (WIDTHS[0], DIM, 1, 1)}
    for i, (s, k) in enumerate(zip(STRIDES, KERNELS, strict=True)):
        shapes[f"decoder.{i + 1}.conv.upconv.0"] = (WIDTHS[i + 1] * s * s, WIDTHS[i], k, k)
    shapes["head_layer"] = (3, WIDTHS[-1], 3, 3)
    norms = []
    for i, (before, dim, s) in enumerate(zip((3, WIDE), (WIDE, DIM), STRIDES, strict=True) if encoder else ()):
        shapes[f"encoder.downsample_layers.{i}.{0 if i == 0 else 1}"] = (dim, before, s, s)
        norms += [(f"encoder.downsample_layers.{i}.{1 if i == 0 else 0}", dim if i == 0 else before)]
        shapes[f"encoder.stages.{i}.0.dwconv"] = (dim, 1, 7, 7)
        shapes[f"encoder.stages.{i}.0.pwconv1"] = (4 * dim, dim)
        shapes[f"encoder.stages.{i}.0.pwconv2"] = (dim, 4 * dim)
        norms += [(f"encoder.stages.{i}.0.norm", dim)]
    out = {}
    for name, shape in shapes.items():
        out[f"{name}.weight"] = torch.randn(shape, generator=generator) / max(1, torch.Size(shape[1:]).numel()) ** 0.5
        out[f"{name}.bias"] = torch.randn(shape[0], generator=generator) * 0.1
    for name, dim in norms:
        out[f"{name}.weight"] = 1 + 0.1 * torch.randn(dim, generator=generator)
        out[f"{name}.bias"] = 0.1 * torch.randn(dim, generator=generator)
    for i, dim in enumerate((WIDE, DIM) if encoder else ()):
        out[f"encoder.stages.{i}.0.gamma"] = torch.rand(dim, generator=generator)
    return out


def norm(x: Tensor, given: dict[str, Tensor], name: str) -> Tensor:
    last = x.permute(0, 2, 3, 1)
    weight, bias = given[f"{name}.weight"], given[f"{name}.bias"]
    return functional.layer_norm(last, last.shape[-1:], weight, bias, 1e-6).permute(0, 3, 1, 2)


def encoded(given: dict[str, Tensor], x: Tensor) -> Tensor:
    """The paper's encoder, stage by stage, from the official names."""
    for i, s in enumerate(STRIDES):
        down, conv = f"encoder.downsample_layers.{i}", f"encoder.downsample_layers.{i}.{0 if i == 0 else 1}"
        x = x if i == 0 else norm(x, given, f"{down}.0")
        x = functional.conv2d(x, given[f"{conv}.weight"], given[f"{conv}.bias"], stride=s)
        x = norm(x, given, f"{down}.1") if i == 0 else x
        block = f"encoder.stages.{i}.0"
        weight, bias = given[f"{block}.dwconv.weight"], given[f"{block}.dwconv.bias"]
        hidden = functional.conv2d(x, weight, bias, padding=3, groups=len(weight))
        hidden = norm(hidden, given, f"{block}.norm").permute(0, 2, 3, 1)
        hidden = functional.linear(hidden, given[f"{block}.pwconv1.weight"], given[f"{block}.pwconv1.bias"])
        hidden = functional.linear(
            functional.gelu(hidden), given[f"{block}.pwconv2.weight"], given[f"{block}.pwconv2.bias"]
        )
        x = x + (hidden * given[f"{block}.gamma"]).permute(0, 3, 1, 2)
    return x


def decoded(given: dict[str, Tensor], x: Tensor) -> Tensor:
    """The paper's decoder, layer by layer, from the official names."""
    stem = "decoder.0.conv.downconv"
    x = functional.gelu(functional.conv2d(x, given[f"{stem}.weight"], given[f"{stem}.bias"]))
    for i, (s, k) in enumerate(zip(STRIDES, KERNELS, strict=True), 1):
        up = f"decoder.{i}.conv.upconv.0"
        x = functional.conv2d(x, given[f"{up}.weight"], given[f"{up}.bias"], padding=(k - 1) // 2)
        x = functional.gelu(nn.PixelShuffle(s)(x))
    x = functional.conv2d(x, given["head_layer.weight"], given["head_layer.bias"], padding=1)
    return torch.tanh(x) * 0.5 + 0.5


def clip(frames: int = 3) -> Video:
    generator = torch.Generator().manual_seed(1)
    return Video(torch.randint(0, 256, (frames, 3, 16, 24), generator=generator, dtype=torch.uint8), Fraction(24), "x")


def test_a_published_model_decodes_as_its_layout_says() -> None:
    given, video = state(), clip()
    system = from_published(given, video)
    codes = encoded(given, video.frames.float() / 255)
    assert torch.allclose(system.stored_codes()["embeddings"], codes, atol=1e-5)
    expected = decoded(given, codes).mul(255).round()
    assert (system.render().float() - expected).abs().max() <= 1
    assert system.decode().value.fps == 24


def test_a_published_codec_file_needs_nothing_else(tmp_path: Path) -> None:
    given = state(encoder=False)
    codes = torch.randn(5, DIM, 2, 3, generator=torch.Generator().manual_seed(2))

    def quantised(x: Tensor, axis: int | None = None) -> dict[str, Tensor]:
        low = x.min() if axis is None else x.amin(axis)
        high = x.max() if axis is None else x.amax(axis)
        scale = ((high - low) / 255).half()
        low = low.half()
        spread = (lambda t: t) if axis is None else (lambda t: t.unsqueeze(axis))
        symbols = ((x - spread(low).float()) / spread(scale).float()).round().clamp(0, 255)
        return {"quant": symbols.to(torch.uint8), "min": low, "scale": scale}

    held = {"embed": quantised(codes, 0), "model": {name: quantised(t) for name, t in given.items()}}
    torch.save(held, tmp_path / "quant_vid.pth")
    system = open_published(tmp_path / "quant_vid.pth")
    assert tuple(system.render().shape) == (5, 3, 16, 24)
    assert torch.allclose(system.stored_codes()["embeddings"], codes, atol=0.02)
    assert (system.render().float() / 255 - decoded(given, codes)).abs().mean() < 0.02
    blob = system.compress().value
    assert type(system).open_container(blob).config.frames == 5


def test_a_checkpoint_with_its_training_state_opens(tmp_path: Path) -> None:
    torch.save({"epoch": 300, "state_dict": state()}, tmp_path / "model.pth")
    assert tuple(open_published(tmp_path / "model.pth", clip()).render().shape) == (3, 3, 16, 24)


def test_what_is_no_published_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no HNeRV in the official layout"):
        from_published({"weight": torch.zeros(1)}, clip())
    with pytest.raises(InputError, match="give the clip"):
        from_published(state())
    with pytest.raises(InputError, match="does not fit"):
        from_published(state(), clip(), reduce=2.0)
    with pytest.raises(InputError, match="do not fit a decoder"):
        from_published(state(encoder=False), embeddings=torch.zeros(2, DIM + 1, 2, 3))
    (tmp_path / "text.pth").write_text("hello")
    with pytest.raises(InputError, match="no checkpoint of tensors alone"):
        open_published(tmp_path / "text.pth")
    with pytest.raises(InputError, match="there is no file"):
        open_published(tmp_path / "missing.pth")
    torch.save({"embed": torch.zeros(1), "model": {}}, tmp_path / "odd.pth")
    with pytest.raises(InputError, match="quant, min and scale"):
        open_published(tmp_path / "odd.pth")
