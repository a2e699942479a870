"""What a circuit over pixels is compared with: trees of the pixels themselves, an integer flow alone.

A system's file derives its rivals from these: a class with the file's card.
"""

import math

import torch
from pydantic import Field
from torch import Tensor

from encyclo.data import Splits
from encyclo.nn.backoff import Backoff
from encyclo.nn.chow_liu import Tree
from encyclo.nn.integer_flow import FactorisedFlow
from encyclo.nn.observed_tree import ObservedTree
from encyclo.nn.part import parameter_count
from encyclo.systems.pixel_model import PixelModel, PixelModelConfig
from encyclo.training import Trainer

__all__ = ["FactorisedFlowModel", "ObservedTreeModel"]


class ObservedTreeModel(PixelModel):
    """A tree over the pixels themselves, each conditioned on its parent's grey level (binned; one bin: not at all).

    The same tree, data and smoothing as the circuit; bins of the parent and strength of smoothing are chosen on the
    validation set, over the grid below.
    """

    class Config(PixelModelConfig):
        """What is tried."""

        parent_bins: tuple[int, ...] = (8, 12, 16, 32)
        weights: tuple[float, ...] = (256.0, 1000.0, 4000.0)
        owns: tuple[float, ...] = (1.0, 4.0, 16.0)
        bins: int = Field(12, ge=2, description="of the values' shared rows, as in the circuit")

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.tables: ObservedTree | None = None
        if config.shape is not None:
            self._build(Tree.balanced(math.prod(config.shape)), config.values or 256, config.parent_bins[0])

    def _build(self, tree: Tree, values: int, parent_bins: int, backoff: Backoff.Config | None = None) -> ObservedTree:
        config = ObservedTree.Config(parent_bins=parent_bins, backoff=backoff or Backoff.Config())
        self.tables = config.build(tree=tree, values=values)
        return self.tables

    def fit(self, data: Splits, trainer: Trainer) -> None:
        """Count tables for every choice; keep the one with the best validation rate."""
        config = self.config
        values = config.values or data.peak + 1
        rows = self.pixels(data.train).to(trainer.device)
        held_out = self.pixels(data.validation).to(trainer.device) if len(data.validation) else rows
        tree = self.learn_tree(rows, values)
        best: tuple[float, ObservedTree] | None = None
        for parent_bins in config.parent_bins:
            for weight in config.weights:
                for own in config.owns:
                    backoff = Backoff.Config(bins=config.bins, weight=weight, own=own)
                    tables = self._build(tree, values, parent_bins, backoff).to(trainer.device)
                    tables.learn(rows)
                    found = float(tables.log_likelihood(held_out).mean())
                    if best is None or found > best[0]:
                        best = found, tables
        assert best is not None
        self.tables = best[1]

    def load_saved_state(self, state: dict[str, Tensor]) -> None:
        """Rebuild the tables in their saved size, then fill them."""
        table = state["tables.table"]
        self._build(Tree(state["tables.parent"].numpy()), table.shape[2], table.shape[1])
        super().load_saved_state(state)

    def evaluate(self, data: Splits) -> dict[str, float]:
        """Rates in theory, and what was chosen."""
        assert self.tables is not None
        train, test = (self.pixels(split).to(self.device) for split in (data.train, data.test))
        return {
            "bits_per_dimension": float(self.bits(self.tables.log_likelihood(test)).mean()),
            "train_bits_per_dimension": float(self.bits(self.tables.log_likelihood(train)).mean()),
            "parent_bins": float(self.tables.table.shape[1]),
            "smoothing": self.tables.config.backoff.weight,
            "model_megabytes": 4e-6 * self.tables.table.numel(),
        }


class FactorisedFlowModel(PixelModel):
    """An integer discrete flow with its own factorised prior (Hoogeboom et al. 2019, arXiv 1905.07376)."""

    class Config(PixelModelConfig):
        """The flow, its prior and `training`."""

        density: FactorisedFlow.Config = FactorisedFlow.Config()

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.density: FactorisedFlow | None = None
        self.values: Tensor
        self.register_buffer("values", torch.tensor(config.values or 0))
        if config.shape is not None:
            self.density = config.density.build(shape=config.shape, values=config.values or 256)

    def fit(self, data: Splits, trainer: Trainer) -> None:
        """Flow and prior jointly, by gradient."""
        values = self.config.values or data.peak + 1
        rows = self.pixels(data.train)
        held_out = self.pixels(data.validation) if len(data.validation) else rows[:0]
        self.density = self.fit_flow(self.config.density, rows, held_out, values, trainer, self.config.training)
        self.values.fill_(values)

    def load_saved_state(self, state: dict[str, Tensor]) -> None:
        """Rebuild the flow in its saved size, then fill it."""
        c, h, w = state["shape"].tolist()
        self.density = self.config.density.build(shape=(c, h, w), values=int(state["values"]))
        super().load_saved_state(state)

    def evaluate(self, data: Splits) -> dict[str, float]:
        """Rates in theory."""
        assert self.density is not None
        train, test = (self.pixels(split).to(self.device) for split in (data.train, data.test))
        return {
            "bits_per_dimension": float(self.bits(self.density.log_likelihood(test)).mean()),
            "train_bits_per_dimension": float(self.bits(self.density.log_likelihood(train)).mean()),
            "model_megabytes": 4e-6 * parameter_count(self),
        }
