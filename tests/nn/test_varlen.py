from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.attention.flex_attention import create_block_mask

from encyclo.errors import InputError
from encyclo.nn.alibi import Alibi
from encyclo.nn.varlen import Layout, attention_over, flex_blocks, runs_by_length

LENGTHS = [3, 11, 7, 7, 1]
PATHS = ["buckets", "lengths", "repadded", "math", "block", "flex"]


def reference(qkv: Tensor, layout: Layout, alibi: Alibi | None) -> Tensor:
    """Each sequence by itself, softmax written out."""
    out = torch.zeros(qkv.shape[0], qkv.shape[2] * qkv.shape[3], dtype=qkv.dtype)
    edges = layout.starts.tolist()
    for start, stop in pairwise(edges):
        q, k, v = qkv[start:stop].permute(1, 2, 0, 3)
        scores = q @ k.transpose(1, 2) / q.shape[-1] ** 0.5
        if alibi is not None:
            scores = scores + alibi(stop - start)
        out[start:stop] = (scores.softmax(-1) @ v).transpose(0, 1).flatten(1)
    return out


@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("path", PATHS)
def test_every_path_is_exact_attention(path: str, biased: bool) -> None:
    torch.manual_seed(0)
    alibi = Alibi.Config().build(heads=2).double() if biased else None
    layout = Layout.from_lengths(LENGTHS)
    qkv = torch.randn(sum(LENGTHS), 3, 2, 4, dtype=torch.float64)
    attend = attention_over(layout, alibi, path=path, buckets=2, dtype=qkv.dtype)
    torch.testing.assert_close(attend(qkv, 0.0), reference(qkv, layout, alibi))


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_nested_tensors_are_exact_without_a_bias() -> None:
    layout = Layout.from_lengths(LENGTHS)
    qkv = torch.randn(sum(LENGTHS), 3, 2, 4)
    out = attention_over(layout, None, path="nested")(qkv, 0.0)
    torch.testing.assert_close(out, reference(qkv, layout, None))
    with pytest.raises(InputError, match="distance penalty"):
        attention_over(layout, Alibi.Config().build(heads=2), path="nested")


@pytest.mark.parametrize("path", ["buckets", "lengths", "repadded", "math", "block"])
def test_gradients_are_those_of_the_reference(path: str) -> None:
    torch.manual_seed(0)
    alibi = Alibi.Config().build(heads=2).double()
    layout = Layout.from_lengths(LENGTHS)
    qkv = torch.randn(sum(LENGTHS), 3, 2, 4, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(sum(LENGTHS), 8, dtype=torch.float64)
    attend = attention_over(layout, alibi, path=path, buckets=2, dtype=qkv.dtype)
    (ours,) = torch.autograd.grad((attend(qkv, 0.0) * weight).sum(), qkv)
    (wanted,) = torch.autograd.grad((reference(qkv, layout, alibi) * weight).sum(), qkv)
    torch.testing.assert_close(ours, wanted)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=12), st.integers(1, 5), st.booleans())
def test_padding_and_unpadding_lose_nothing(lengths: list[int], buckets: int, padded: bool) -> None:
    layout = Layout.from_lengths(lengths, padded=padded)
    width = max(lengths)
    mask = torch.arange(width) < torch.tensor(lengths)[:, None]
    x = torch.randn(len(lengths), width, 3) * mask[..., None]
    assert torch.equal(layout.pad(layout.unpad(x)), x)
    joined = x[mask]
    assert torch.equal(layout.pad(layout.arrange(joined[:, 0], fill=0)), x[..., 0])
    means = torch.stack([row[:size].mean(0) for row, size in zip(x, lengths, strict=True)])
    torch.testing.assert_close(layout.mean(layout.unpad(x)), means)
    assert torch.equal(layout.first(layout.unpad(x)), x[:, 0])
    groups = layout.buckets(buckets)
    assert sum(group.tokens for group in groups) == layout.entries
    assert layout.real_fraction == pytest.approx(mask.float().mean().item())


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, 400), min_size=1, max_size=12))
def test_blocks_for_flex_attention_are_those_that_torch_finds(lengths: list[int]) -> None:
    layout = Layout.from_lengths(lengths)
    document = torch.arange(len(lengths)).repeat_interleave(torch.tensor(layout.lengths))
    size = layout.entries
    wanted = create_block_mask(lambda b, h, q, k: document[q] == document[k], None, None, size, size, device="cpu")
    assert torch.equal(flex_blocks(layout).to_dense(), wanted.to_dense())


def test_no_sequence_sees_another() -> None:
    layout = Layout.from_lengths([4, 6])
    qkv = torch.randn(10, 3, 2, 4)
    changed = qkv.clone()
    changed[4:] += 1  # the second sequence only
    for path in PATHS:
        attend = attention_over(layout, None, path=path)
        assert torch.equal(attend(qkv, 0.0)[:4], attend(changed, 0.0)[:4]), path


def test_a_mask_gives_the_layout_of_its_lengths() -> None:
    mask = torch.tensor([[1, 1, 0, 0], [0, 1, 1, 1], [1, 0, 0, 0]])
    layout = Layout.from_mask(mask)
    assert layout.lengths == (1, 2, 3)
    assert layout.order.tolist() == [2, 0, 1]
    assert layout.positions.tolist() == [0, 0, 1, 1, 2, 3]  # columns, also where the padding stands on the left
    x = torch.arange(12.0).view(3, 4)
    assert torch.equal(layout.pad(layout.unpad(x)), x * mask)
    whole = Layout.from_mask(mask, padded=True)
    assert torch.equal(whole.pad(whole.unpad(x)), x * mask)
    assert torch.equal(whole.first(x.flatten()[:, None])[:, 0], torch.tensor([0.0, 5.0, 8.0]))


def test_gaps_and_empty_rows_are_refused_by_name() -> None:
    with pytest.raises(InputError, match="row 1 has a gap"):
        Layout.from_mask(torch.tensor([[1, 1, 1], [1, 0, 1]]))
    with pytest.raises(InputError, match="row 1 holds no token"):
        Layout.from_mask(torch.tensor([[1, 1, 1], [0, 0, 0]]))
    with pytest.raises(InputError, match="row 0 holds no token"):
        Layout.from_lengths([0, 3])


def test_paths_for_a_gpu_say_so() -> None:
    layout = Layout.from_lengths([2, 3])
    for path in ("varlen", "flash"):
        with pytest.raises(InputError, match="needs a GPU"):
            attention_over(layout, None, path=path)


def test_dropout_keeps_the_mean() -> None:
    torch.manual_seed(0)
    layout = Layout.from_lengths([64, 64])
    qkv = torch.ones(128, 3, 1, 4)
    for path in ("repadded", "math", "block"):
        out = attention_over(layout, None, path=path)(qkv, 0.5)
        assert out.mean().item() == pytest.approx(1, abs=0.05)
        assert out.std().item() > 0


def test_runs_hold_rows_of_like_length() -> None:
    lengths = torch.tensor([5, 1, 9, 2, 2, 30])
    runs = runs_by_length(lengths, 12)
    assert sorted(torch.cat(runs).tolist()) == [0, 1, 2, 3, 4, 5]
    for run in runs:
        assert len(run) == 1 or len(run) * int(lengths[run].max()) <= 12
    assert F.relu(lengths[torch.cat(runs)].diff().neg()).sum() == 0


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("path", ["auto", "flex", "varlen", "buckets"])
def test_gpu_paths_agree_with_written_out_attention(path: str) -> None:
    torch.manual_seed(0)
    alibi = None if path == "varlen" else Alibi.Config().build(heads=4).cuda()
    layout = Layout.from_lengths([130, 17, 64, 5], device="cuda")
    qkv = torch.randn(layout.entries, 3, 4, 64, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    ours = attention_over(layout, alibi, path=path, dtype=qkv.dtype)(qkv, 0.0)
    exact = qkv.detach().float().requires_grad_()
    wanted = attention_over(layout, alibi, path="math")(exact, 0.0)
    torch.testing.assert_close(ours.float(), wanted, atol=2e-2, rtol=2e-2)
    ours.float().square().sum().backward()
    wanted.square().sum().backward()
    torch.testing.assert_close(qkv.grad.float(), exact.grad, atol=5e-2, rtol=5e-2)
