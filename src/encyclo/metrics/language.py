"""How well a model predicts tokens: loss, perplexity, accuracy, and the baseline that needs no model."""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor


@dataclass
class TokenScores:
    """Sums over predicted tokens, batch after batch.

    Attributes:
        nats: summed cross-entropy.
        correct: tokens whose highest score was right.
        count: tokens.
    """

    nats: float = 0.0
    correct: int = 0
    count: int = 0

    def add(self, scores: Float[Tensor, "k vocabulary"], targets: Int64[Tensor, " k"]) -> None:
        """Take in the scores of some tokens and what would have been right."""
        self.nats += float(F.cross_entropy(scores.float(), targets, reduction="sum"))
        self.correct += int((scores.argmax(1) == targets).sum())
        self.count += len(targets)

    @property
    def loss(self) -> float:
        """Mean cross-entropy in nats; nan before the first token."""
        return self.nats / self.count if self.count else math.nan

    @property
    def perplexity(self) -> float:
        """exp(loss)."""
        return math.exp(self.loss)

    @property
    def accuracy(self) -> float:
        """Share of tokens predicted right, in percent."""
        return 100 * self.correct / self.count if self.count else math.nan


def bits_per_byte(nats: float, bytes_: int) -> float:
    """Summed cross-entropy as bits for each byte of the text that was predicted."""
    return nats / math.log(2) / bytes_


def majority_accuracy(train: Int64[Tensor, " n"], targets: Int64[Tensor, " k"]) -> float:
    """Percent right when always predicting the token that is most frequent in `train`."""
    return 100 * float((targets == torch.bincount(train).argmax()).double().mean())
