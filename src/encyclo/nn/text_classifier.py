"""A classifier of texts on the first token of an encoder (Devlin et al. 2019, section 4.1)."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from encyclo.nn.part import Part, PartConfig


class TextClassifier(Part):
    """tanh pooler on the first token, dropout, one matrix.

    Args:
        dim: width of the encoder.
        classes: number of classes.
    """

    class Config(PartConfig):
        """Of the pooled vector, and of the matrices."""

        dropout: float = 0.1
        init_std: float = 0.02

    def __init__(self, config: Config, *, dim: int, classes: int) -> None:
        super().__init__()
        self.config = config
        self.dense = nn.Linear(dim, dim)
        self.out = nn.Linear(dim, classes)
        self.init_own()

    def init_own(self) -> None:
        """Matrices ~ N(0, init_std), biases 0."""
        with torch.no_grad():
            for linear in (self.dense, self.out):
                linear.weight.normal_(0, self.config.init_std)
                linear.bias.zero_()

    def forward(self, first: Float[Tensor, "batch dim"]) -> Float[Tensor, "batch classes"]:
        """Scores of the classes, from the vectors of the first tokens."""
        pooled = F.dropout(self.dense(first).tanh(), self.config.dropout, self.training)
        scores: Tensor = self.out(pooled)
        return scores
