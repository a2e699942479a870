"""Quantisation against its equation, and coded sets of tensors there and back."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from encyclo.errors import InputError
from encyclo.tokens.quantise import (
    TensorCoding,
    decode_tensors,
    encode_tensors,
    quantise,
    quantise_best,
    straight_through,
)

CODERS = ["plain", "huffman", "ans", "range"]


def _tensors(seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    smooth = torch.randn(60, 4, 2, 3, generator=generator).cumsum(0) * 0.05 + torch.randn(4, 2, 3, generator=generator)
    return {
        "embeddings": smooth,
        "large": torch.randn(64, 40, 3, 3, generator=generator) * 0.1,
        "bias": torch.randn(64, generator=generator),
        "one": torch.tensor([0.25]),
        "constant": torch.full((5, 7), -1.5),
    }


def test_levels_divide_the_range() -> None:
    quantised = quantise(torch.tensor([0.0, 1.0, 2.0, 2.4, 3.0]), 2)
    assert quantised.symbols.tolist() == [0, 1, 2, 2, 3]
    assert quantised.dequantise().tolist() == [0.0, 1.0, 2.0, 2.0, 3.0]
    assert quantised.range_bits == 32


@given(bits=st.integers(1, 12), seed=st.integers(0, 1000), axis=st.sampled_from([None, 0, 1, -1]))
@settings(max_examples=40, deadline=None)
def test_no_value_moves_by_more_than_half_a_step(bits: int, seed: int, axis: int | None) -> None:
    x = torch.randn(9, 4, 5, generator=torch.Generator().manual_seed(seed))
    quantised = quantise(x, bits, axis=axis)
    assert int(quantised.symbols.min()) >= 0 and int(quantised.symbols.max()) < 2**bits
    # minimum and scale are rounded to float16 (2^-11 of their size); the top level may be missed by that much
    rounding = 2.0**-10 * (x.abs().max() + (2**bits) * quantised.scale.float().max())
    assert bool(((quantised.dequantise() - x).abs() <= quantised.scale.float() / 2 + rounding).all())


def test_the_candidate_with_the_least_error_wins() -> None:
    rows = torch.randn(200, 3) * torch.tensor([0.01, 1.0, 30.0])
    chosen = quantise_best(rows, 6)
    assert chosen.axis == 0 and chosen.minimum.shape == (1, 3)
    errors = [(quantise(rows, 6, axis=axis).dequantise() - rows).abs().mean() for axis in (None, 0)]
    assert (chosen.dequantise() - rows).abs().mean() == min(errors)
    assert quantise_best(rows[:50], 6).axis is None  # not longer than 50


def test_constant_values_and_tiny_spreads_divide_by_nothing() -> None:
    for value in (0.0, -1.5):
        quantised = quantise(torch.full((3, 4), value), 8, axis=1)
        assert quantised.symbols.unique().tolist() == [0]
        assert torch.equal(quantised.dequantise(), torch.full((3, 4), value))
    assert torch.isfinite(quantise(torch.tensor([1.0, 1.0 + 1e-7]), 8).dequantise()).all()


def test_what_float16_cannot_hold_is_refused() -> None:
    for bad in (torch.tensor([-1e6, 0.0]), torch.tensor([0.0, float("nan")])):
        with pytest.raises(InputError, match="cannot be quantised"):
            quantise(bad, 8)
    with pytest.raises(InputError, match="bits=17"):
        quantise(torch.zeros(2), 17)


def test_straight_through_rounds_forward_and_not_backward() -> None:
    x = torch.randn(60, 2, requires_grad=True)
    rounded = straight_through(x, 3, axis=0)
    assert torch.allclose(rounded, quantise(x, 3, axis=0).dequantise(), atol=1e-6)
    rounded.square().sum().backward()
    assert x.grad is not None
    assert torch.allclose(x.grad, 2 * rounded.detach())


@pytest.mark.parametrize("coder", CODERS)
@pytest.mark.parametrize("ranges", ["best", "tensor"])
def test_tensors_come_back_as_the_encoder_saw_them(coder: str, ranges: str) -> None:
    tensors = _tensors()
    coding = TensorCoding.model_validate({"bits": 6, "sequence_bits": 7, "coder": coder, "ranges": ranges})
    sections, seen = encode_tensors(tensors, coding, sequences=["embeddings"])
    shapes = {name: tuple(t.shape) for name, t in tensors.items()}
    back = decode_tensors(sections, shapes, sequences=["embeddings"])
    for name, tensor in tensors.items():
        assert torch.equal(back[name], seen[name])
        assert back[name].shape == tensor.shape
        assert float((back[name] - tensor).abs().max()) < 0.1


def test_coding_shortens_and_prediction_shortens_smooth_sequences() -> None:
    tensors = _tensors()

    def size(**fields: object) -> int:
        coding = TensorCoding.model_validate({"bits": 6, "sequence_bits": 8, **fields})
        return sum(len(part) for part in encode_tensors(tensors, coding, sequences=["embeddings"])[0].values())

    plain = size(coder="plain")
    bits = {name: 8 if name == "embeddings" else 6 for name in tensors}
    numbers = sum(bits[name] * t.numel() for name, t in tensors.items())
    ranges = sum(quantise_best(t, bits[name]).range_bits for name, t in tensors.items())
    assert plain == -(-numbers // 8) + ranges // 8 + 2 * len(tensors) + 1  # ..., layout, the coder's mark
    assert size(coder="ans", predict=True) < size(coder="ans", predict=False)
    assert size(coder="ans") < min(plain, size(coder="huffman", predict=False))


def test_pruned_weights_need_no_mask() -> None:
    weight = {"w": torch.randn(100, 100)}
    coding = TensorCoding(bits=8, ranges="tensor")
    whole = len(encode_tensors(weight, coding)[0]["symbols"])
    bound = weight["w"].abs().flatten().kthvalue(5000).values
    pruned = {"w": weight["w"] * (weight["w"].abs() > bound)}
    assert len(encode_tensors(pruned, coding)[0]["symbols"]) < 0.8 * whole


@pytest.mark.parametrize("coder", CODERS)
def test_damaged_tensors_are_refused(coder: str) -> None:
    tensors = _tensors()
    coding = TensorCoding.model_validate({"coder": coder})
    sections, _ = encode_tensors(tensors, coding, sequences=["embeddings"])
    shapes = {name: tuple(t.shape) for name, t in tensors.items()}
    other = {**shapes, "large": (64, 41, 3, 3)}
    bad = [
        ({**sections, "symbols": sections["symbols"][:-4]}, shapes),
        ({**sections, "symbols": b"\x07" + sections["symbols"][1:]}, shapes),
        ({**sections, "ranges": sections["ranges"][:-2]}, shapes),
        ({**sections, "ranges": b"\xff" * len(sections["ranges"])}, shapes),
        ({**sections, "layout": b"\x00" * len(sections["layout"])}, shapes),
        ({name: part for name, part in sections.items() if name != "ranges"}, shapes),
        (sections, other),
    ]
    for parts, expected in bad:
        with pytest.raises(InputError) as caught:
            decode_tensors(parts, expected, sequences=["embeddings"])
        assert "\n" not in str(caught.value)
