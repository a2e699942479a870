import math

import pytest
import torch
import torch.nn.functional as F

from encyclo.metrics.language import TokenScores, bits_per_byte, majority_accuracy


def test_sums_over_batches_are_those_of_the_whole() -> None:
    scores, targets = torch.randn(10, 7), torch.randint(0, 7, (10,))
    total = TokenScores()
    for part in torch.arange(10).split(4):
        total.add(scores[part], targets[part])
    loss = F.cross_entropy(scores, targets).item()
    assert total.loss == pytest.approx(loss, rel=1e-5)
    assert total.perplexity == pytest.approx(math.exp(loss), rel=1e-5)
    assert total.accuracy == pytest.approx(100 * (scores.argmax(1) == targets).float().mean().item())


def test_before_the_first_token_there_is_no_number() -> None:
    assert math.isnan(TokenScores().loss)
    assert math.isnan(TokenScores().accuracy)


def test_bits_per_byte() -> None:
    assert bits_per_byte(8 * math.log(2), 2) == pytest.approx(4)


def test_majority_is_of_train() -> None:
    assert majority_accuracy(torch.tensor([3, 3, 1]), torch.tensor([1, 3, 1, 1])) == 25
