"""NeRV's decoder: its equation, HNeRV's published sizes, the size solver and the choice of strides."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from encyclo.errors import InputError
from encyclo.nn.nerv import NervBlock, NervDecoder, choose_strides, solve_width
from encyclo.nn.part import parameter_count

HNERV = NervDecoder.Config()
NERV = NervDecoder.Config(strides=(5, 4, 2, 2), reduce=2.0, kernels=(3, 3), grow=(8, 16))
EMBEDDINGS = 132 * 16 * 2 * 4


@pytest.mark.parametrize(("budget", "width", "total"), [
    (350_000, 32, 329_726), (750_000, 48, 736_152), (1_500_000, 68, 1_505_172), (3_000_000, 97, 3_029_582),
])  # fmt: skip
def test_the_published_widths_and_true_totals(budget: int, width: int, total: int) -> None:
    solved = solve_width(HNERV, dim=16, budget=budget, embeddings=EMBEDDINGS)
    assert solved.width == width
    assert solved.size(16) + EMBEDDINGS == total
    with torch.device("meta"):
        assert parameter_count(solved.build(dim=16)) == solved.size(16)


@pytest.mark.parametrize(("strides", "width"), [((5, 4, 3, 2, 2), 110), ((5, 4, 4, 3, 2), 92)])
def test_the_published_widths_at_other_frame_sizes(strides: tuple[int, ...], width: int) -> None:
    assert solve_width(HNERV.replace(strides=strides), dim=16, budget=3_000_000, embeddings=EMBEDDINGS).width == width


def test_the_rival_at_the_same_size() -> None:
    solved = solve_width(NERV, dim=160, budget=1_500_000)
    assert solved.width == 54 and solved.size(160) == 1_507_868
    with torch.device("meta"):
        assert parameter_count(solved.build(dim=160)) == 1_507_868


def test_parameters_lie_in_the_late_layers_of_one_and_the_early_of_the_other() -> None:
    shares = [100 * n / HNERV.size(16) for n in HNERV.sizes(16).values()]
    assert shares[:-1] == pytest.approx([0.1, 6.6, 26.5, 51.7, 8.9, 6.2], abs=0.1)
    rival = solve_width(NERV, dim=160, budget=1_500_000)
    shares = [100 * n / rival.size(160) for n in rival.sizes(160).values()]
    assert shares[:-1] == pytest.approx([73.8, 21.8, 3.6, 0.4, 0.3], abs=0.1)


def test_the_forward_pass_is_the_papers() -> None:
    config = NervDecoder.Config(width=6, strides=(3, 2), reduce=1.5, lowest=3, kernels=(1, 5))
    decoder = config.build(dim=4)
    codes = torch.randn(2, 4, 2, 3)
    x = functional.gelu(functional.conv2d(codes, decoder.stem.weight, decoder.stem.bias))
    for block, stride, pad in zip(decoder.blocks, (3, 2), (0, 1), strict=True):
        x = functional.conv2d(x, block.conv.weight, block.conv.bias, padding=pad)
        x = functional.gelu(functional.pixel_shuffle(x, stride))  # the order of the paper
    x = 0.5 * torch.tanh(functional.conv2d(x, decoder.head.weight, decoder.head.bias, padding=1)) + 0.5
    assert decoder(codes).shape == (2, 3, 12, 18)
    assert torch.allclose(decoder(codes), x, atol=1e-6)


def test_a_code_grows_into_a_grid_as_a_linear_layer_and_a_reshape() -> None:
    config = NervDecoder.Config(width=5, strides=(2,), reduce=2.0, lowest=2, kernels=(3, 3), grow=(2, 4))
    decoder = config.build(dim=7)
    code = torch.randn(3, 7, 1, 1)
    grid = (code.flatten(1) @ decoder.stem.weight.flatten(1).T + decoder.stem.bias).reshape(3, 5, 2, 4)
    x = functional.gelu(grid)
    for block in decoder.blocks:
        x = block(x)
    assert torch.allclose(decoder(code), decoder.head(x).tanh() * 0.5 + 0.5, atol=1e-6)


def test_growing_a_larger_grid_is_a_pixel_shuffle() -> None:
    config = NervDecoder.Config(width=5, strides=(2,), grow=(2, 2), lowest=2)
    decoder = config.build(dim=3)
    codes = torch.randn(1, 3, 2, 3)
    x = functional.pixel_shuffle(functional.gelu(decoder.stem(codes)), 2)
    for block in decoder.blocks:
        x = block(x)
    assert torch.allclose(decoder(codes), decoder.head(x).tanh() * 0.5 + 0.5, atol=1e-6)


def test_memory_format_changes_nothing() -> None:
    decoder = NervDecoder.Config(width=12, strides=(5, 2)).build(dim=4)
    codes = torch.randn(2, 4, 2, 4)
    expected = decoder(codes)
    last = decoder.to(memory_format=torch.channels_last)
    assert torch.allclose(last(codes.contiguous(memory_format=torch.channels_last)), expected, atol=1e-6)


@given(
    width=st.integers(1, 30),
    strides=st.lists(st.integers(1, 4), min_size=1, max_size=3),
    reduce=st.sampled_from([1.0, 1.2, 2.0]),
    kernels=st.sampled_from([(1, 5), (3, 3), (5, 1)]),
    grow=st.sampled_from([(1, 1), (2, 3)]),
)
@settings(max_examples=30, deadline=None)
def test_counted_sizes_are_true(
    width: int, strides: list[int], reduce: float, kernels: tuple[int, int], grow: tuple[int, int]
) -> None:
    config = NervDecoder.Config(
        width=width, strides=tuple(strides), reduce=reduce, kernels=kernels, grow=grow, lowest=2
    )
    decoder = config.build(dim=3)
    assert parameter_count(decoder) == config.size(3)
    frames = decoder(torch.zeros(1, 3, 2, 2))
    assert frames.shape[2:] == tuple(2 * e for e in config.enlargement)


def test_counted_multiplications_are_true() -> None:
    from encyclo.metrics.cost import flops

    for config, dim, grid in (
        (NervDecoder.Config(width=9, strides=(3, 2)), 4, (2, 4)),
        (NERV.replace(width=4), 160, (1, 1)),
    ):
        decoder, codes = config.build(dim=dim), torch.zeros(1, dim, *grid)
        assert flops(lambda: decoder(codes)) == 2 * sum(config.multiplications(dim, grid).values())  # noqa: B023


def test_the_solver_steps_down_to_the_true_count() -> None:
    floored = NervDecoder.Config(strides=(5, 4, 2), lowest=22)  # C_low above what the equation assumes
    solved = solve_width(floored, dim=8, budget=150_000, embeddings=8_448)
    assert solved.width < solve_width(floored.replace(lowest=1), dim=8, budget=150_000, embeddings=8_448).width
    assert solved.size(8) + 8_448 <= 151_500 < solved.replace(width=solved.width + 1).size(8) + 8_448


def test_impossible_budgets_are_refused() -> None:
    with pytest.raises(InputError, match=r"size=16000: the embeddings alone take 16896 numbers"):
        solve_width(HNERV, dim=16, budget=16_000, embeddings=EMBEDDINGS)
    with pytest.raises(InputError, match="the smallest decoder"):
        solve_width(HNERV, dim=16, budget=EMBEDDINGS + 10, embeddings=EMBEDDINGS)


def test_even_kernels_are_refused() -> None:
    with pytest.raises(ValueError, match="must be odd"):
        NervDecoder.Config(kernels=(2, 4))


@pytest.mark.parametrize(("size", "strides"), [
    ((640, 1280), (5, 4, 4, 2, 2)), ((480, 960), (5, 4, 3, 2, 2)),
    ((960, 1920), (5, 4, 4, 3, 2)), ((80, 160), (5, 4, 2)),
])  # fmt: skip
def test_published_strides_are_chosen(size: tuple[int, int], strides: tuple[int, ...]) -> None:
    assert choose_strides(*size) == strides


@given(st.integers(1, 2200), st.integers(1, 4000))
@settings(max_examples=60, deadline=None)
def test_any_frame_gets_strides(height: int, width: int) -> None:
    strides = choose_strides(height, width)
    product = math.prod(strides)
    assert strides[-1] == 2 and list(strides) == sorted(strides, reverse=True) and max(strides) <= 5
    rows, columns = -(-height // product), -(-width // product)
    assert 1 <= rows * columns <= max(64, 16 * max(height, width) / min(height, width))
    if min(height, width) >= 48:
        assert rows * columns * product**2 <= 1.6 * height * width


def test_a_frame_without_pixels_is_refused() -> None:
    with pytest.raises(InputError, match="nothing to code"):
        choose_strides(0, 10)


@pytest.mark.parametrize(("stride", "kernel"), [(1, 3), (2, 5), (4, 3), (5, 1)])
def test_a_block_is_convolution_shuffle_and_gelu(stride: int, kernel: int) -> None:
    torch.manual_seed(0)
    block = NervBlock(None, dim=6, dim_out=4, kernel=kernel, stride=stride)
    x = torch.randn(2, 6, 5, 7, requires_grad=True)
    expected = functional.gelu(functional.pixel_shuffle(block.conv(x), stride))
    assert torch.allclose(block(x), expected, atol=1e-6)
    weights = [x, *block.parameters()]
    ours = torch.autograd.grad(block(x).square().sum(), weights)
    theirs = torch.autograd.grad(
        functional.gelu(functional.pixel_shuffle(block.conv(x), stride)).square().sum(), weights
    )
    assert all(torch.allclose(a, b, atol=1e-4) for a, b in zip(ours, theirs, strict=True))
