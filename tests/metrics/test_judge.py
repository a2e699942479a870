"""The classifier that judges generators: paired differences of KID, and training with crops."""

import pytest
import torch

from encyclo.data.augment import Augment
from encyclo.metrics.frechet import kernel_distance
from encyclo.metrics.judge import features, fit_judge, kid_difference
from encyclo.nn.small_classifier import SmallClassifier
from encyclo.training import AdamW, Trainer, TrainingConfig


@pytest.fixture
def judge() -> SmallClassifier:
    torch.manual_seed(0)
    return SmallClassifier.Config(width=4, features=8).build(channels=1, classes=2).eval()


def pictures(count: int, seed: int) -> torch.Tensor:
    return torch.randint(0, 256, (count, 1, 16, 16), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


def test_equal_pictures_differ_by_nothing(judge: SmallClassifier) -> None:
    drawn, real = pictures(32, 0), pictures(20, 1)
    assert kid_difference(judge, drawn, drawn, real) == (0.0, 0.0)


def test_the_difference_is_that_of_the_blocks(judge: SmallClassifier) -> None:
    ours, theirs, real = pictures(32, 0), pictures(32, 2), pictures(20, 1)
    made = kid_difference(judge, ours, theirs, real, blocks=4)
    known = features(judge, real)
    kids = [[kernel_distance(b, known) for b in features(judge, drawn).chunk(4)] for drawn in (ours, theirs)]
    differences = torch.tensor(kids[0]).double() - torch.tensor(kids[1]).double()
    assert made.mean == pytest.approx(float(differences.mean()), abs=1e-6)
    assert made.error == pytest.approx(float(differences.std()) / 2, abs=1e-6)
    back = kid_difference(judge, theirs, ours, real, blocks=4)
    assert back.mean == pytest.approx(-made.mean)


def test_crops_reach_the_training(judge: SmallClassifier) -> None:
    images, labels = pictures(32, 0), torch.arange(32) % 2
    budget = TrainingConfig(steps=3, batch_size=8, optimiser=AdamW(lr=1e-2))
    weights = []
    for augment in (None, Augment(), Augment(scale=(0.3, 0.6))):
        torch.manual_seed(0)
        made = SmallClassifier.Config(width=4, features=8).build(channels=1, classes=2)
        fit_judge(made, images, labels, Trainer(seed=0, progress=False), budget, augment=augment)
        assert not made.training
        weights.append(made.head.weight.detach().clone())
    torch.testing.assert_close(weights[0], weights[1])
    assert not torch.allclose(weights[0], weights[2])
