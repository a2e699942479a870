"""BM25 as an arm of a retrieval experiment: the standing baseline, its two numbers chosen on training pairs."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from encyclo.metrics.retrieval import RetrievalTask
from encyclo.search.bm25 import BM25Index
from encyclo.search.evaluation import Evaluation, judge, sample_task
from encyclo.search.hits import Hits
from encyclo.system import System, SystemConfig
from encyclo.training.config import TrainingConfig

if TYPE_CHECKING:
    from encyclo.data import Splits
    from encyclo.training import Trainer

__all__ = ["BM25Retriever", "BM25RetrieverConfig"]


class BM25RetrieverConfig(SystemConfig):
    """The grid, and the size of the training task that chooses from it."""

    k1: tuple[float, ...] = (0.4, 0.9, 1.2, 2.0)
    b: tuple[float, ...] = (0.0, 0.25, 0.5, 0.75, 1.0)
    queries: int = 500
    documents: int = 2000
    evaluation: Evaluation = Evaluation()
    training: TrainingConfig = TrainingConfig(steps=1)


class BM25Retriever(System):
    """The classical ranking by shared words (Robertson et al. 1994)."""

    reads = "pair"
    Config = BM25RetrieverConfig

    def __init__(self, config: BM25RetrieverConfig) -> None:
        super().__init__(config)
        self.numbers: Tensor
        self.register_buffer("numbers", torch.tensor([1.2, 0.75], dtype=torch.float64))
        self.ranked: dict[str, Tensor] = {}
        """nDCG@10 of every query of the last `evaluate`, by task."""

    def _ask(self, task: RetrievalTask, k1: float, b: float) -> Hits:
        return BM25Index.Config(k1=k1, b=b).build(task.documents).search(task.queries, 10)

    def fit(self, data: "Splits", trainer: "Trainer") -> None:
        """Choose k1 and b by nDCG@10 on training pairs."""
        task = sample_task(data.train, self.config.queries, self.config.documents)
        grid = [(k1, b) for k1 in self.config.k1 for b in self.config.b]
        scores = [judge(self._ask(task, k1, b), task)[1]["ndcg@10"] for k1, b in grid]
        self.numbers.copy_(torch.tensor(grid[scores.index(max(scores))], dtype=torch.float64))

    def evaluate(self, data: "Splits") -> dict[str, float]:
        """nDCG@10 and MRR@10 on the tasks of every arm."""
        metrics: dict[str, float] = {"k1": float(self.numbers[0]), "b": float(self.numbers[1])}
        for prefix, task in self.config.evaluation.tasks(data).items():
            hits = self._ask(task, float(self.numbers[0]), float(self.numbers[1]))
            self.ranked[prefix], scores = judge(hits, task)
            metrics |= {f"{prefix}{name}": value for name, value in scores.items()}
        return metrics
