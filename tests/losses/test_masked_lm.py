import math

import pytest
import torch
import torch.nn.functional as F

from encyclo.losses.masked_lm import Masking, mask_tokens, masked_lm_loss, noise
from encyclo.nn.varlen import Layout


def test_noise_is_splitmix64() -> None:
    # a hand-written SplitMix64 step on Python integers
    def mixed(x: int) -> int:
        x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
        x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) % 2**64
        return x ^ (x >> 31)

    numbers = [0, 1, 17, 2**40]
    for seed, stream in ((0, 0), (5, 2)):
        start = mixed((seed * 0x9E3779B97F4A7C15 + stream * 0xD1342543DE82EF95) % 2**64)
        wanted = [(mixed((n * 0x9E3779B97F4A7C15 + start) % 2**64) >> 11) / 2**53 for n in numbers]
        assert noise(torch.tensor(numbers), seed, stream).tolist() == wanted


def test_noise_looks_uniform_and_independent() -> None:
    n = torch.arange(200_000)
    a, b, c = noise(n, 1), noise(n, 2), noise(n, 1, stream=1)
    for x in (a, b, c):
        assert x.mean().item() == pytest.approx(0.5, abs=0.003)
        assert x.var().item() == pytest.approx(1 / 12, abs=0.001)
    assert torch.corrcoef(torch.stack([a, b, c, a.roll(1)])).fill_diagonal_(0).abs().max() < 0.01


def test_shares_are_80_10_10_of_the_ratio() -> None:
    n = torch.arange(200_000)
    tokens, allowed = n % 500 + 5, n % 10 != 0
    masked = mask_tokens(tokens, n, allowed, torch.arange(1000, 2000), ratio=0.3, mask=4, seed=0)
    assert allowed[masked.chosen].all()
    assert torch.equal(masked.targets, tokens[masked.chosen])
    shown = masked.tokens[masked.chosen]
    assert len(shown) / allowed.sum().item() == pytest.approx(0.3, abs=0.005)
    for share, found in ((0.8, shown == 4), (0.1, shown >= 1000), (0.1, shown == masked.targets)):
        assert found.float().mean().item() == pytest.approx(share, abs=0.01)
    kept = torch.ones(len(tokens), dtype=torch.bool)
    kept[masked.chosen] = False
    assert torch.equal(masked.tokens[kept], tokens[kept])


def test_masks_do_not_depend_on_how_a_batch_is_cut() -> None:
    n = torch.randperm(1000)
    masking = Masking.of(torch.arange(20) < 5, mask=4, table=32)
    tokens = n % 20
    whole = masking.hide(tokens, n, ratio=0.3, seed=7)
    halves = [masking.hide(tokens[part], n[part], ratio=0.3, seed=7) for part in torch.arange(1000).split(500)]
    assert torch.equal(torch.cat([half.tokens for half in halves]), whole.tokens)
    assert not torch.equal(masking.hide(tokens, n, ratio=0.3, seed=8).tokens, whole.tokens)


def test_special_tokens_and_padding_are_neither_hidden_nor_drawn() -> None:
    masking = Masking.of(torch.arange(20) < 5, mask=4, table=32)
    layout = Layout.from_lengths([50, 100], padded=True)
    tokens = layout.arrange(torch.arange(150) % 20, fill=9)
    masked = masking.hide(tokens, torch.arange(200), ratio=0.9, seed=0, layout=layout)
    assert (masked.targets >= 5).all()
    assert layout.real()[masked.chosen].all()
    drawn = masked.tokens[masked.chosen]
    assert ((drawn == 4) | ((drawn >= 5) & (drawn < 20))).all()


def test_loss_is_a_mean_weighted_by_its_tokens() -> None:
    scores, targets = torch.randn(6, 9), torch.randint(0, 9, (6,))
    whole = masked_lm_loss(scores, targets)
    torch.testing.assert_close(whole.value, F.cross_entropy(scores, targets))
    parts = [masked_lm_loss(scores[a:b], targets[a:b]) for a, b in ((0, 1), (1, 6))]
    mean = sum(part.value * part.weight for part in parts) / sum(part.weight for part in parts)
    torch.testing.assert_close(mean, whole.value)
    nothing = masked_lm_loss(scores[:0], targets[:0])
    assert nothing.value == 0
    assert nothing.weight == 0
    assert math.isfinite(masked_lm_loss(scores.bfloat16(), targets).value)
