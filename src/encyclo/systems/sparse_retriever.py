"""What every learned sparse retriever offers: the loss, evaluation through a real index, and search in a user's texts.

A system derives from `SparseRetriever` and says how texts become states and against which matrix they are scored.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from encyclo.errors import InputError
from encyclo.losses.contrastive import InfoNCE, same_text
from encyclo.losses.sparsity import Sparsity, active
from encyclo.metrics.retrieval import RetrievalTask
from encyclo.nn.sparse_head import SparseHead
from encyclo.search.engine import Engine
from encyclo.search.evaluation import Evaluation, exact_hits, exact_index, judge, products, pruning_table, sample_task
from encyclo.search.evaluation import sharpness as sparsity_curve
from encyclo.search.exact import ExactIndex
from encyclo.search.qdrant import QdrantIndex
from encyclo.search.retriever import Found, cut_note, explain_score, search_texts, weigh_texts
from encyclo.search.seismic import SeismicIndex
from encyclo.search.text_model import SparseTextModel
from encyclo.search.vectors import SparseVectors
from encyclo.system import System, SystemConfig
from encyclo.tokens.echo import Role
from encyclo.training.loss import Loss
from encyclo.verbs import Result

if TYPE_CHECKING:
    from encyclo.data import Splits
    from encyclo.training import Trainer

__all__ = ["SparseRetriever", "SparseRetrieverConfig"]


class SparseRetrieverConfig(SystemConfig):
    """Objective, evaluation, and lengths in tokens of one copy of a text."""

    sparse: SparseHead.Config = SparseHead.Config()
    contrast: InfoNCE.Config = InfoNCE.Config()
    sparsity: Sparsity.Config = Sparsity.Config(query=1e-2, document=1e-2, ramp=1000)
    query_tokens: int = Field(32, ge=1, description="in training")
    document_tokens: int = Field(180, ge=1, description="in training")
    longest: int = Field(256, ge=1, description="when encoding and searching; what is beyond is cut and told")
    calibrate: int = Field(0, ge=0, description="training pairs that offsets b start from; 0: b = 0")
    margin: float = Field(0.0, description="b_j = -(mean + margin * deviation) of term j's largest logit")
    batch_tokens: int = Field(4096, ge=1, description="padded tokens encoded at once")
    evaluation: Evaluation = Evaluation()

    @model_validator(mode="after")
    def _calibrated(self) -> "SparseRetrieverConfig":
        if self.calibrate and not self.sparse.bias:
            raise ValueError("calibrate sets the offsets: it needs sparse.bias=true")
        return self


class SparseRetriever(SparseTextModel, System):
    """Texts -> term weights -> inverted index; learns from pairs of a query and the document that answers it.

    A subclass sets `base`, `vocabulary` and `splade`, and gives `states`, `lengths` and `matrix`.
    """

    reads = "pair"
    Config = SparseRetrieverConfig

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.contrast = config.contrast.build()
        self.sparsity = config.sparsity.build()
        self.ranked: dict[str, Tensor] = {}
        """nDCG@10 of every query of the last `evaluate`, by task: for paired comparisons."""
        self.sharpness: list[tuple[float, float]] = []
        """Quality against sparsity on the held-out pairs of the last `evaluate`."""
        self._step = 0

    # -- learning ----------------------------------------------------------------------------------------------------

    def loss(self, batch: Mapping[str, Any]) -> Loss:
        """L = InfoNCE(q, d+, negatives) + lambda_q R(Q) + lambda_d R(D), on raw inner products."""
        config = self.config
        documents = list(batch["document"])
        negatives = [text for text in batch.get("negative", []) if text]
        query, cut_queries = self.weights(batch["query"], "query", longest=config.query_tokens)
        every, cut_documents = self.weights(documents + negatives, "document", longest=config.document_tokens)
        document, negative = every[: len(documents)], every[len(documents) :]
        # another pair's document is no negative where it is this query's own, or answers the same query
        ignore = same_text(documents, documents + negatives, device=every.device)
        ignore[:, : len(documents)] |= same_text(batch["query"], batch["query"], device=every.device)
        ranking = self.contrast(query, document, negative if len(negatives) else None, ignore)
        penalty = self.sparsity(query, every, self._step)
        return Loss(
            ranking + penalty,
            float(len(documents)),
            {
                "ranking": ranking.detach(),
                "penalty": penalty.detach(),
                "active_query": active(query.detach()),
                "active_document": active(every.detach()),
                "cut": (cut_queries + cut_documents) / (len(documents) * 2 + len(negatives)),
            },
        )

    def fit(self, data: "Splits", trainer: "Trainer") -> None:
        """One stage over the training pairs."""
        from encyclo.data import Batches

        config = self.config

        def count(step: int) -> None:
            self._step = step - 1

        batches = Batches(data.train, config.training.batch_size, seed=trainer.seed)
        self.prepare(data, trainer)
        trainer.fit(self, self.loss, batches, config.training, before_step=count)

    def prepare(self, data: "Splits", trainer: "Trainer") -> None:
        """Where asked for, start the offsets at what is usual: over queries and documents of some training pairs."""
        config = self.config
        if not config.calibrate:
            return
        self.to(trainer.device)
        chosen = torch.Generator().manual_seed(trainer.seed)
        rows = data.train.select(torch.randperm(len(data.train), generator=chosen)[: config.calibrate].tolist())
        usual = [
            self.largest(rows["query"][:], "query", longest=config.query_tokens),
            self.largest(rows["document"][:], "document", longest=config.document_tokens),
        ]
        self.splade.calibrate(torch.cat(usual), config.margin)

    def evaluate(self, data: "Splits") -> dict[str, float]:
        """nDCG@10 and MRR@10 on both tasks, by the exact index over capped vectors, and what the vectors cost."""
        metrics: dict[str, float] = {}
        settings: Evaluation = self.config.evaluation
        for prefix, task in settings.tasks(data).items():
            queries, documents, cut = self.encode_task(task)
            capped = settings.capped(queries, documents)
            self.ranked[prefix], scores = judge(exact_hits(*capped), task)
            metrics |= {f"{prefix}{name}": value for name, value in scores.items()}
            metrics[f"{prefix}cut"] = cut / (len(task.queries) + len(task.documents))
            metrics[f"{prefix}active_query"] = float(queries.sizes.float().mean())
            metrics[f"{prefix}active_document"] = float(documents.sizes.float().mean())
            if prefix == "":
                metrics["full_ndcg@10"] = judge(exact_hits(queries, documents), task)[1]["ndcg@10"]
                metrics["flops"] = products(queries, documents)
                metrics["index_bytes"] = exact_index(capped[1]).bytes
                self.sharpness = sparsity_curve(queries, documents, task)
        return metrics

    def encode_task(self, task: RetrievalTask) -> tuple[SparseVectors, SparseVectors, int]:
        """Queries and documents of a task, at the evaluation's lengths, and how many texts were cut."""
        settings: Evaluation = self.config.evaluation
        queries, a = self.sparse(task.queries, "query", longest=settings.query_tokens)
        documents, b = self.sparse(task.documents, "document", longest=settings.document_tokens)
        return queries, documents, a + b

    # -- verbs -------------------------------------------------------------------------------------------------------

    def encode(self, texts: Sequence[str], *, role: Role = "document", top: int | None = None) -> Result:
        """Texts -> {term: weight}, the heaviest term first; an empty text has no terms.

        Args:
            texts: any.
            role: documents and queries may be read differently.
            top: keep so many terms of each; None keeps all.
        """
        return _result(weigh_texts(self, texts, role, top=top))

    def search(
        self,
        query: str,
        *,
        index: Path,
        k: int = 10,
        engine: Literal["exact", "seismic", "qdrant"] = "exact",
        url: str | None = None,
        words: int = 80,
        top: int | None = None,
        bits: Literal[8, 32] = 32,
    ) -> Result:
        """Passages of a folder of texts that answer a query, best first, each with the terms that matched.

        The index is built on the first call and kept in the cache folder; later calls encode what is new or changed.

        Args:
            query: in plain words.
            index: a folder of .txt, .md, .rst ... files, or one such file.
            k: number of passages.
            engine: `exact`; `seismic` for a million passages and more; `qdrant` for a server.
            url: of a Qdrant server; without one its local mode is used.
            words: most words of a passage (another number makes another index).
            top: keep so many terms of a passage; None keeps all.
            bits: of a weight in the exact index, 8 or 32.
        """
        engines: dict[str, Engine] = {
            "exact": ExactIndex.Config(device=str(self.device), bits=bits),
            "seismic": SeismicIndex.Config(),
            "qdrant": QdrantIndex.Config(url=url),
        }
        if url is not None and engine != "qdrant":
            raise InputError(f"url={url}: only engine=qdrant has a server")
        if bits != 32 and engine != "exact":
            raise InputError(f"bits={bits}: only engine=exact has a choice")
        return _result(search_texts(self, query, index, engine=engines[engine], k=k, words=words, top=top))

    def explain(self, query: str, document: str) -> Result:
        """Why a document scores as it does for a query: the shared terms, and on which side each was only expanded to.

        Args:
            query: in plain words.
            document: the text to explain.
        """
        return _result(explain_score(self, query, document))

    def prune(self, pairs: Path, *, queries: int = 200, documents: int = 1000) -> Result:
        """What smaller vectors cost: quality and size for top-k terms, thresholds and 8-bit weights, as a table.

        Args:
            pairs: a file of query-document pairs (.jsonl, .csv, .parquet).
            queries, documents: most of each to use.
        """
        from datasets import concatenate_datasets

        from encyclo.data import load

        if queries < 1 or documents < 1:
            raise InputError(f"queries={queries}, documents={documents}: use at least one of each")
        loaded = load(str(pairs), "pair")
        task = sample_task(concatenate_datasets([loaded.train, loaded.validation, loaded.test]), queries, documents)
        asked, cut = self.sparse(task.queries, "query")
        there, more = self.sparse(task.documents, "document")
        report = {"queries": len(task.queries), "documents": len(task.documents)}
        return Result(pruning_table(asked, there, task), report, cut_note(cut + more, self.longest))


def _result(found: Found) -> Result:
    return Result(found.rows, found.report, found.notes)
