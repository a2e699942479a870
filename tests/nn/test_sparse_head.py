"""The SPLADE head: its equation, its gradient, its memory, and parity with sentence-transformers."""

import pytest
import torch

from encyclo.nn.part import parameter_count
from encyclo.nn.sparse_head import SparseHead, max_logits


def _case(batch=3, length=7, dim=5, vocabulary=23, seed=0):
    generator = torch.Generator().manual_seed(seed)
    states = torch.randn(batch, length, dim, generator=generator)
    matrix = torch.randn(vocabulary, dim, generator=generator)
    pooled = torch.rand(batch, length, generator=generator) < 0.6
    pooled[:, 2] = True
    return states, matrix, pooled


def _plain(states, matrix, pooled, bias=None):
    logits = states @ matrix.T if bias is None else states @ matrix.T + bias
    weights = torch.log1p(torch.relu(logits))
    return (weights * pooled.unsqueeze(-1)).amax(dim=1)


def test_by_hand():
    states = torch.tensor([[[1.0, 0.0], [0.0, 2.0], [5.0, 5.0]]])
    matrix = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, -1.0]])
    pooled = torch.tensor([[True, True, False]])  # the third token would win everywhere, and is not pooled
    head = SparseHead.Config().build(vocabulary=3)
    expected = torch.log(torch.tensor([[2.0, 3.0, 1.0]]))
    assert torch.allclose(head(states, matrix, pooled), expected)


@pytest.mark.parametrize("chunk", [1, 4, 23, 1000])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("centre", [False, True])
def test_chunks_change_neither_value_nor_gradient(chunk, bias, centre):
    states, matrix, pooled = _case()
    head = SparseHead.Config(chunk=chunk, bias=bias, centre=centre).build(vocabulary=23)
    if bias:
        with torch.no_grad():
            head.bias.uniform_(-1, 1)
    ours = [states.clone().requires_grad_(), matrix.clone().requires_grad_()]
    theirs = [states.clone().requires_grad_(), matrix.clone().requires_grad_()]
    weight = torch.randn(3, 23)
    (head(ours[0], ours[1], pooled) * weight).sum().backward()
    made = None if head.bias is None else head.bias.grad.clone()
    if head.bias is not None:
        head.bias.grad = None
    middle = theirs[1].mean(0) if centre else 0.0
    expected = _plain(theirs[0], theirs[1] - middle, pooled, head.bias)
    (expected * weight).sum().backward()
    assert torch.allclose(head(states, matrix, pooled), expected, atol=1e-6)
    assert torch.allclose(ours[0].grad, theirs[0].grad, atol=1e-5)
    assert torch.allclose(ours[1].grad, theirs[1].grad, atol=1e-5)
    if made is not None:
        assert torch.allclose(made, head.bias.grad, atol=1e-5)


def test_gradient_is_the_numerical_one():
    states, matrix, pooled = _case(2, 4, 3, 6)
    states, matrix = states.double().requires_grad_(), matrix.double().requires_grad_()
    assert torch.autograd.gradcheck(lambda s, m: max_logits(s, m, pooled, chunk=4), (states, matrix))


def test_same_as_sentence_transformers():
    modules = pytest.importorskip("sentence_transformers.sparse_encoder.modules")
    states, matrix, pooled = _case(4, 9, 6, 31)
    theirs = modules.SpladePooling("max").eval()(
        {"token_embeddings": states @ matrix.T, "attention_mask": pooled.long()}
    )["sentence_embedding"]
    ours = SparseHead.Config(chunk=8).build(vocabulary=31)(states, matrix, pooled)
    assert torch.allclose(ours, theirs, atol=1e-6)


def test_text_without_pooled_tokens_has_no_terms_and_no_gradient():
    states, matrix, pooled = _case()
    pooled[1] = False
    states.requires_grad_()
    head = SparseHead.Config(bias=True).build(vocabulary=23)
    weights = head(states, matrix, pooled)
    assert not weights[1].any()
    assert weights.isfinite().all()
    weights.sum().backward()
    assert not states.grad[1].any()
    assert head.bias.grad.isfinite().all()


def test_peak_memory_does_not_grow_with_the_vocabulary_times_the_tokens():
    states, matrix, pooled = _case(4, 16, 8, 4096)
    largest = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            nonlocal largest
            out = function(*args, **(kwargs or {}))
            for made in out if isinstance(out, tuple | list) else (out,):
                if isinstance(made, torch.Tensor) and not made.is_sparse:
                    largest = max(largest, made.numel())
            return out

    states.requires_grad_()
    with Watch():
        weights = torch.log1p(torch.relu(max_logits(states, matrix, pooled, chunk=128)))
        weights.sum().backward()
    assert largest < 4 * 16 * 4096 / 2  # never [batch, tokens, vocabulary]
    assert largest <= max(4096 * 8, 4 * 4096)  # the matrix itself, or [batch, vocabulary]


def test_size():
    with torch.device("meta"):
        assert parameter_count(SparseHead.Config(bias=True).build(vocabulary=32_000)) == 32_000
        assert parameter_count(SparseHead.Config().build(vocabulary=32_000)) == 0


def test_bf16_states_are_pooled_in_float32():
    states, matrix, pooled = _case()
    head = SparseHead.Config().build(vocabulary=23)
    low = head(states.bfloat16(), matrix, pooled)
    assert low.dtype == torch.float32
    assert torch.allclose(low, head(states, matrix, pooled), atol=0.05)


def test_centred_weights_do_not_see_what_softmax_does_not_see():
    """Adding one vector to all rows of E shifts all logits of a token alike, and leaves its distribution as it is."""
    states, matrix, pooled = _case()
    shifted = matrix + torch.randn(5)
    plain, centred = (SparseHead.Config(centre=c).build(vocabulary=23) for c in (False, True))
    assert torch.allclose(centred(states, matrix, pooled), centred(states, shifted, pooled), atol=1e-5)
    assert not torch.allclose(plain(states, matrix, pooled), plain(states, shifted, pooled), atol=1e-2)


def test_calibrated_offsets_centre_the_logits():
    states, matrix, pooled = _case(64, 4, 5, 11)
    head = SparseHead.Config(bias=True).build(vocabulary=11)
    largest = max_logits(states, matrix, pooled)
    head.calibrate(largest, margin=0.5)
    assert torch.allclose(head.bias, -(largest.mean(0) + 0.5 * largest.std(0)))
    with pytest.raises(ValueError, match="bias"):
        SparseHead.Config().build(vocabulary=11).calibrate(largest)


def test_the_models_own_offset_is_added():
    states, matrix, pooled = _case()
    offset = torch.randn(23)
    head = SparseHead.Config().build(vocabulary=23)
    assert torch.allclose(head(states, matrix, pooled, offset), _plain(states, matrix, pooled, offset), atol=1e-6)
