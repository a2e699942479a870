"""A classifier trained in the run as the stated yardstick of a generator: distances in its features, its verdict."""

from collections.abc import Mapping

import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor
from torch.nn import functional

from encyclo.data.augment import Augment
from encyclo.data.batches import Batches
from encyclo.metrics.frechet import frechet_distance, kernel_distance
from encyclo.metrics.paired import Difference, paired_difference
from encyclo.nn.small_classifier import SmallClassifier
from encyclo.training.config import TrainingConfig
from encyclo.training.loss import Loss
from encyclo.training.trainer import Trainer


def fit_judge(
    judge: SmallClassifier,
    images: UInt8[Tensor, "n c h w"],
    labels: Int64[Tensor, " n"],
    trainer: Trainer,
    config: TrainingConfig,
    *,
    augment: Augment | None = None,
    stage: str = "judge",
) -> None:
    """Train the classifier, on images that the generator it is to judge has not seen.

    Args:
        judge: the classifier.
        images: real images.
        labels: their classes.
        trainer: whose seed and device count.
        config: budget.
        augment: random crops and flips; None leaves the images as they are.
        stage: name of the curve.
    """
    augment = augment or Augment()

    def loss(batch: Mapping[str, Tensor]) -> Loss:
        scores = judge(_normalised(augment(batch["image"])))
        return Loss(functional.cross_entropy(scores, batch["label"]), float(len(scores)))

    batches = Batches({"image": images, "label": labels}, config.batch_size, seed=trainer.seed)
    judge.train()
    trainer.fit(judge, loss, batches, config, stage=stage)
    judge.eval()


@torch.no_grad()
def features(judge: SmallClassifier, images: UInt8[Tensor, "n c h w"]) -> Float[Tensor, "n f"]:
    """Activations of the classifier's hidden layer, on the CPU."""
    device = next(judge.parameters()).device
    return torch.cat([judge.features(_normalised(part.to(device))).cpu() for part in images.split(250)])


@torch.no_grad()
def accuracy(judge: SmallClassifier, images: UInt8[Tensor, "n c h w"], labels: Int64[Tensor, " n"]) -> float:
    """Percent of images in which the classifier sees the class asked for."""
    device = next(judge.parameters()).device
    seen = torch.cat([judge(_normalised(part.to(device))).argmax(-1).cpu() for part in images.split(250)])
    return float((seen == labels).float().mean() * 100)


def judged(
    judge: SmallClassifier,
    drawn: UInt8[Tensor, "n c h w"],
    real: UInt8[Tensor, "m c h w"],
    asked: Int64[Tensor, " n"] | None,
) -> dict[str, float]:
    """KID and Fréchet distance to real images in the classifier's features and, with classes, its accuracy (%)."""
    ours, theirs = features(judge, drawn), features(judge, real)
    told = {"kid": kernel_distance(ours, theirs), "frechet": frechet_distance(ours, theirs)}
    if asked is not None:
        told["accuracy"] = accuracy(judge, drawn, asked)
    return told


def kid_difference(
    judge: SmallClassifier,
    ours: UInt8[Tensor, "n c h w"],
    theirs: UInt8[Tensor, "n c h w"],
    real: UInt8[Tensor, "m c h w"],
    *,
    blocks: int = 8,
) -> Difference:
    """KID of ours - theirs, drawn from the same noise and classes, over blocks of the drawn images, with its error."""
    known = features(judge, real)
    kids = [
        torch.tensor([kernel_distance(part, known) for part in features(judge, drawn).chunk(blocks)])
        for drawn in (ours, theirs)
    ]
    return paired_difference(*kids)


def _normalised(images: Tensor) -> Float[Tensor, "b c h w"]:
    return images.float() / 127.5 - 1
