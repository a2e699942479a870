"""Masked language modelling (Devlin et al. 2019, section 3.1): hide some tokens, predict them from all others.

Which tokens are hidden is a function of (seed, number of the token) alone, computed alike on every device: a step is
the same however its batch was cut into micro-batches and shared among processes, and after a resumption.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from encyclo.nn.varlen import Layout
from encyclo.training.loss import Loss


class Masked(NamedTuple):
    """Tokens of which some are hidden.

    Attributes:
        tokens: what the model sees.
        chosen: entries that are to be predicted, rising.
        targets: what stood there.
    """

    tokens: Int64[Tensor, " n"]
    chosen: Int64[Tensor, " k"]
    targets: Int64[Tensor, " k"]

    def to(self, device: torch.device) -> "Masked":
        """All three on a device."""
        return Masked(*(tensor.to(device, non_blocking=True) for tensor in self))


def noise(numbers: Int64[Tensor, " n"], seed: int, stream: int = 0) -> Float[Tensor, " n"]:
    """A float64 in [0, 1) for each number: 53 bits of the SplitMix64 generator (Steele et al. 2014) at that counter.

    Args:
        numbers: counters, such as a token's place in its corpus.
        seed: decides, with the stream, the whole sequence.
        stream: 0, 1, ... for independent draws at the same counters.
    """
    start = _mixed(torch.tensor([_signed(seed * 0x9E3779B97F4A7C15 + stream * 0xD1342543DE82EF95)])).to(numbers.device)
    bits = _mixed(numbers * _signed(0x9E3779B97F4A7C15) + start)
    return _shifted(bits, 11).double() * 2.0**-53


def mask_tokens(
    tokens: Int64[Tensor, " n"],
    numbers: Int64[Tensor, " n"],
    allowed: Bool[Tensor, " n"],
    vocabulary: Int64[Tensor, " v"],
    *,
    ratio: float,
    mask: int,
    seed: int,
    masked_share: float = 0.8,
    random_share: float = 0.1,
) -> Masked:
    """Choose each allowed token with probability `ratio`: 80 % of these become [MASK], 10 % a random token, 10 % stay.

    Args:
        tokens: ids.
        numbers: a number for each token, from which its fate is drawn; of allowed tokens all different.
        allowed: which tokens may be chosen (no padding, no special tokens).
        vocabulary: ids from which random tokens are drawn.
        ratio: probability to be chosen.
        mask: id of [MASK].
        seed: together with `numbers` decides everything (one seed a step in training, one for all evaluations).
        masked_share, random_share: of the chosen ones.
    """
    chosen = ((noise(numbers, seed) < ratio) & allowed).nonzero().squeeze(1)
    targets = tokens[chosen]
    fate = noise(numbers[chosen], seed, 1)
    drawn = vocabulary[(noise(numbers[chosen], seed, 2) * len(vocabulary)).long()]
    shown = torch.where(fate < masked_share, mask, torch.where(fate < masked_share + random_share, drawn, targets))
    return Masked(tokens.index_copy(0, chosen, shown), chosen, targets)


@dataclass(frozen=True)
class Masking:
    """Which tokens of a vocabulary may be hidden, and behind what.

    Attributes:
        special: per id of the model's table, whether it is a special token or stands for nothing.
        vocabulary: all other ids.
        mask: id of [MASK].
    """

    special: Bool[Tensor, " table"]
    vocabulary: Int64[Tensor, " v"]
    mask: int

    @staticmethod
    def of(special: Bool[Tensor, " vocabulary"], mask: int, table: int) -> "Masking":
        """For a tokenizer's vocabulary in a word table of `table` rows."""
        every = F.pad(special, (0, table - len(special)), value=True)
        return Masking(every, (~every).nonzero().squeeze(1), mask)

    def hide(
        self,
        tokens: Int64[Tensor, " n"],
        numbers: Int64[Tensor, " n"],
        *,
        ratio: float,
        seed: int,
        layout: Layout | None = None,
    ) -> Masked:
        """Hide tokens of a flat batch on the CPU; see `mask_tokens`. The padding of a padded layout is left alone."""
        allowed = ~self.special[tokens] if layout is None else ~self.special[tokens] & layout.real()
        return mask_tokens(tokens, numbers, allowed, self.vocabulary, ratio=ratio, mask=self.mask, seed=seed)


def masked_lm_loss(scores: Float[Tensor, "k vocabulary"], targets: Int64[Tensor, " k"]) -> Loss:
    """Mean cross-entropy (nats) over the hidden tokens.

    Its weight is their number, so that averages over micro-batches and processes are averages over tokens.
    """
    total = F.cross_entropy(scores.float() if scores.dtype != torch.float64 else scores, targets, reduction="sum")
    return Loss(total / max(len(targets), 1), float(len(targets)))


def _signed(value: int) -> int:
    """The 64-bit pattern of an integer as a signed one."""
    value &= 2**64 - 1
    return value - 2**64 if value >= 2**63 else value


def _shifted(x: Int64[Tensor, " n"], bits: int) -> Int64[Tensor, " n"]:
    """Logical right shift (torch shifts the sign in)."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _mixed(x: Int64[Tensor, " n"]) -> Int64[Tensor, " n"]:
    """SplitMix64's output function; products wrap around as 64-bit integers do."""
    x = (x ^ _shifted(x, 30)) * _signed(0xBF58476D1CE4E5B9)
    x = (x ^ _shifted(x, 27)) * _signed(0x94D049BB133111EB)
    return x ^ _shifted(x, 31)
