import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from encyclo.errors import InputError
from encyclo.nn.feed_forward import Glu, Mlp
from encyclo.nn.part import materialise
from encyclo.nn.text_encoder import LearnedPositions, MaskedLMHead, Norm, TextEncoder
from encyclo.nn.varlen import Layout

TINY = TextEncoder.Config(
    vocabulary=50, dim=16, layers=3, heads=4, dropout=0.0, feed_forward=Glu.Config(ratio=2, dropout=0.0)
)
MASK = torch.arange(9) < torch.tensor([9, 4, 4, 1])[:, None]


def ids() -> Tensor:
    return torch.randint(0, 50, (4, 9), generator=torch.Generator().manual_seed(0))


def test_one_layer_by_hand() -> None:
    torch.manual_seed(0)
    encoder = TINY.replace(layers=1, heads=2).build().double()
    x = F.layer_norm(encoder.words(ids()[:1]) + encoder.types.weight[0], (16,), eps=1e-12)
    layer = encoder.layers[0]
    q, k, v = (x @ layer.qkv.weight.T + layer.qkv.bias).view(9, 3, 2, 8).permute(1, 2, 0, 3)
    far = (torch.arange(9)[:, None] - torch.arange(9)).abs()
    bias = -torch.tensor([2.0**-4, 2.0**-8])[:, None, None] * far
    mixed = ((q @ k.transpose(1, 2) / 8**0.5 + bias).softmax(-1) @ v).transpose(0, 1).reshape(9, 16)
    x = F.layer_norm(x[0] + mixed @ layer.out.weight.T + layer.out.bias, (16,), eps=1e-12)
    gate, up = (x @ layer.feed_forward.wi.weight.T).chunk(2, -1)
    hidden = F.gelu(gate) * up
    x = F.layer_norm(x + hidden @ layer.feed_forward.wo.weight.T + layer.feed_forward.wo.bias, (16,), eps=1e-12)
    torch.testing.assert_close(encoder(ids()[:1])[0], x)


@pytest.mark.parametrize("positions", ["alibi", "learned"])
@pytest.mark.parametrize("feed_forward", ["geglu", "mlp"])
def test_without_padding_it_computes_what_it_computes_with_padding(positions: str, feed_forward: str) -> None:
    torch.manual_seed(0)
    config = TINY.override([f"positions={positions}", f"feed_forward={feed_forward}"])
    encoder = config.build().eval()
    here = encoder(ids(), MASK)
    encoder.config = config.replace(unpad=False)
    there = encoder(ids(), MASK)
    assert (here - there).abs().max() < 1e-5
    assert here[~MASK].abs().max() == 0


def test_the_last_layer_can_run_on_chosen_tokens_alone() -> None:
    encoder = TINY.build()
    layout = Layout.from_lengths([9, 4, 4, 1])
    tokens = layout.arrange(ids()[MASK])
    chosen = torch.tensor([0, 3, 17])
    torch.testing.assert_close(encoder.flat(tokens, layout, chosen=chosen), encoder.flat(tokens, layout)[chosen])
    full = encoder.flat(tokens, layout)[chosen].square().sum()
    part = encoder.flat(tokens, layout, chosen=chosen).square().sum()
    ours, theirs = (torch.autograd.grad(value, list(encoder.parameters())) for value in (part, full))
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b)


def test_distances_not_places_matter_with_alibi() -> None:
    encoder = TINY.build().eval()
    shifted = torch.cat([torch.zeros(4, 3, dtype=torch.long), ids()], 1)
    mask = torch.cat([torch.zeros(4, 3, dtype=torch.bool), MASK], 1)
    torch.testing.assert_close(encoder(shifted, mask)[:, 3:], encoder(ids(), MASK))


def test_token_order_matters() -> None:
    encoder = TINY.build().eval()
    turned = encoder(ids()[:1].flip(1)).flip(1)
    assert (turned - encoder(ids()[:1])).abs().max() < 1e-5  # symmetric distances cannot tell a text from its mirror
    swapped = ids()[:1].clone()
    swapped[0, [2, 5]] = swapped[0, [5, 2]]
    assert (encoder(swapped) - encoder(ids()[:1])).abs().max() > 1e-3


def test_longer_inputs_than_the_table_are_computed() -> None:
    encoder = TINY.override(["positions.starting_length=4"]).build().eval()
    assert encoder(ids()).shape == (4, 9, 16)
    assert encoder.alibi is not None
    assert encoder.alibi.length == 9


def test_embed_pools_real_tokens_in_the_order_given() -> None:
    encoder = TINY.build().eval()
    hidden = encoder(ids(), MASK)
    lengths = MASK.sum(1)
    means = torch.stack([row[:size].mean(0) for row, size in zip(hidden, lengths.tolist(), strict=True)])
    for cells in (1, 10, 1000):
        torch.testing.assert_close(encoder.embed(ids()[MASK], lengths, batch_tokens=cells), means)
    torch.testing.assert_close(encoder.embed(ids()[MASK], lengths, pool="first"), hidden[:, 0])


def test_embed_takes_the_attention_that_was_asked_for() -> None:
    encoder, lengths = TINY.build().eval(), MASK.sum(1)
    found = encoder.embed(ids()[MASK], lengths)
    for path in ("buckets", "math", "lengths"):
        encoder.config = TINY.override([f"attention={path}"])
        torch.testing.assert_close(encoder.embed(ids()[MASK], lengths), found)


def test_wrong_batches_are_refused_by_row() -> None:
    encoder = TINY.build()
    wrong = ids()
    wrong[2, 1] = 99
    with pytest.raises(InputError, match="row 2 holds an id"):
        encoder(wrong)
    encoder(wrong, torch.arange(9) < torch.tensor([9, 9, 1, 9])[:, None])  # hidden behind the mask it does not matter
    with pytest.raises(InputError, match="mask is"):
        encoder(ids(), MASK[:, :-1])
    with pytest.raises(InputError, match="row 0 holds no token"):
        encoder(ids(), torch.zeros(4, 9))


def test_learned_positions_end() -> None:
    encoder = TINY.replace(positions=LearnedPositions.Config(length=8)).build()
    with pytest.raises(InputError, match="9 tokens is longer than the 8"):
        encoder(ids())


def test_vocabulary_is_rounded_up_to_64() -> None:
    assert TextEncoder.Config().table == 30_528
    assert TINY.table == 64


def test_low_precision_norm_computes_in_16_bit_under_autocast_only() -> None:
    x = torch.randn(3, 16)
    low, high = Norm(16, 1e-12, True), Norm(16, 1e-12, False)
    assert torch.equal(low(x), high(x))
    with torch.autocast("cpu", torch.bfloat16):
        ours = low(x)
        wanted = F.layer_norm(x.bfloat16(), (16,), low.weight.bfloat16(), low.bias.bfloat16(), 1e-12)
    assert ours.dtype == torch.bfloat16
    assert torch.equal(ours, wanted)
    assert low.weight.dtype == torch.float32


def test_head_is_tied_to_the_word_table() -> None:
    encoder = TINY.build()
    head = MaskedLMHead.Config().build(encoder=TINY)
    x = torch.randn(2, 16)
    hidden = F.layer_norm(F.gelu(head.dense(x)), (16,), eps=1e-12)
    torch.testing.assert_close(head(x, encoder.words.weight), hidden @ encoder.words.weight.T + head.bias)
    assert sum(p.numel() for p in head.parameters()) == 16 * 16 + 16 + 32 + 64


def test_first_values_also_from_meta() -> None:
    with torch.device("meta"):
        empty = TINY.build()
    for encoder in (TINY.build(), materialise(empty)):
        assert encoder.words.weight[1:].std().item() == pytest.approx(0.02, rel=0.1)
        assert encoder.words.weight[0].abs().max() == 0
        assert encoder.layers[0].qkv.bias.abs().max() == 0
        assert torch.equal(encoder.norm.weight, torch.ones(16))
        encoder(ids())


def test_a_width_that_heads_do_not_divide_is_refused() -> None:
    with pytest.raises(InputError, match="cannot be divided"):
        TINY.override(["heads=3"])


def test_dropout_changes_training_only() -> None:
    encoder = TINY.replace(dropout=0.3, feed_forward=Mlp.Config(), attention_dropout=0.2).build()
    assert not torch.equal(encoder(ids()), encoder(ids()))
    encoder.eval()
    assert torch.equal(encoder(ids()), encoder(ids()))
