"""A small convolutional classifier, trained in the run, whose features serve as a stated yardstick for generators."""

from itertools import pairwise

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from encyclo.nn.part import Part, PartConfig


class SmallClassifier(Part):
    """Three strided convolutions with batch norm, a hidden layer of `features`, a linear head."""

    class Config(PartConfig):
        """Sizes."""

        width: int = 32
        features: int = 64
        dropout: float = 0.2

    def __init__(self, config: Config, *, channels: int, classes: int) -> None:
        super().__init__()
        widths = [channels, config.width, 2 * config.width, 2 * config.width]
        layers: list[nn.Module] = []
        for before, after in pairwise(widths):
            layers += [nn.Conv2d(before, after, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(after), nn.ReLU()]
        self.trunk = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten())
        self.hidden = nn.Linear(4 * widths[-1], config.features)
        self.dropout = nn.Dropout(config.dropout)
        self.head = nn.Linear(config.features, classes)

    def features(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b f"]:
        """Activations of the hidden layer."""
        return functional.relu(self.hidden(self.trunk(images)))

    def forward(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b k"]:
        """Class scores."""
        scores: Tensor = self.head(self.dropout(self.features(images)))
        return scores
