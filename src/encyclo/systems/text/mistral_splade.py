"""Mistral-SPLADE: a decoder language model read twice, its next-token head turned into the term weights of an index."""

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from jaxtyping import Bool, Float
from pydantic import Field, model_validator
from torch import Tensor

from encyclo.card import Card
from encyclo.config import Config as Settings
from encyclo.errors import InputError
from encyclo.experiment import Claim, Experiment, Preset, Trial
from encyclo.losses.contrastive import InfoNCE, same_text
from encyclo.losses.sparsity import Sparsity, active
from encyclo.metrics.retrieval import RetrievalTask, ndcg, paired_difference, reciprocal_rank
from encyclo.nn.lora import Lora, add_lora, train_adapters_only, without_lora
from encyclo.nn.sparse_head import SparseHead
from encyclo.nn.split_decoder import SplitDecoder, StateCache, decoder_layers, head_inputs
from encyclo.picture import Picture, curves, figure, from_figure
from encyclo.pretrained import open_model, open_tokenizer
from encyclo.search.bm25 import BM25Index
from encyclo.search.engine import Engine
from encyclo.search.exact import ExactIndex
from encyclo.search.hits import Hits
from encyclo.search.qdrant import QdrantIndex
from encyclo.search.retriever import cut_note, explain_score, search_texts
from encyclo.search.seismic import SeismicIndex
from encyclo.search.terms import term_names, term_weights
from encyclo.search.vectors import SparseVectors
from encyclo.system import System, SystemConfig
from encyclo.tokens.echo import Prompt, Prompter, Role, pad_right
from encyclo.training.config import AdamW, Schedule, TrainingConfig
from encyclo.training.loss import Loss
from encyclo.verbs import Result

if TYPE_CHECKING:
    from encyclo.data import Splits
    from encyclo.training import Trainer

CARD = Card(
    slug="mistral-splade",
    title="Mistral-SPLADE: LLMs for better Learned Sparse Retrieval",
    authors="Doshi, Kumar, Murthy, P and Sen",
    year=2024,
    arxiv="2408.11119",
    wing="text",
    summary=(
        "A search engine on an ordinary inverted index whose term weights come from a decoder language model: the text"
        " is read twice, so that every pooled token has seen all of it, and the next-token head says which words belong"
        " to it."
    ),
    verbs=("encode", "search", "explain", "prune"),
    keywords=("retrieval", "sparse", "language model", "LoRA", "echo", "inverted index"),
    retrofit=True,
)


class Evaluation(Settings):
    """What `evaluate` asks, of held-out pairs and of a second set that nothing was trained on."""

    queries: int = 200
    documents: int = 800
    query_tokens: int = 32
    document_tokens: int = 128
    query_terms: int = 128
    """Terms kept of a query, so that no arm wins by being dense."""
    document_terms: int = 256
    zero_shot: str | None = None
    """A further set of pairs, as for `encyclo.data.load`."""
    zero_shot_queries: int = 100
    zero_shot_documents: int = 400
    zero_shot_words: int = 16
    """Words that every arm sees of a document of the further set."""

    def tasks(self, data: "Splits") -> dict[str, RetrievalTask]:
        """By prefix of its metrics: the held-out pairs, and the further set where there is one."""
        from encyclo.data import load

        made = {"": _task(data.test, self.queries, self.documents)}
        if self.zero_shot is not None:
            further = load(self.zero_shot, "pair")
            made["zero_shot_"] = _task(
                further.test, self.zero_shot_queries, self.zero_shot_documents, self.zero_shot_words
            )
        return made


def _task(rows: Any, queries: int, documents: int, words: int | None = None) -> RetrievalTask:
    """Pairs in a fixed random order, because neighbours in a set are often about the same thing."""
    count = len(rows)
    if count == 0:
        raise InputError("there are no held-out pairs to evaluate on: give more pairs, or a folder with a test split")
    order = torch.randperm(count, generator=torch.Generator().manual_seed(0)).tolist()[: 4 * (queries + documents)]
    chosen = rows.select(order)
    texts = [" ".join(text.split()[:words]) for text in chosen["document"]]
    return RetrievalTask.from_pairs(chosen["query"], texts, most_queries=queries, most_documents=documents)


class SparseRetriever(System):
    """What every learned sparse retriever shares: loss, evaluation through a real index, and the verbs.

    A subclass says how texts become states (`states`) and against which matrix they are scored (`matrix`).
    """

    card = CARD
    reads = "pair"

    class Config(SystemConfig):
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
        def _calibrated(self) -> "SparseRetriever.Config":
            if self.calibrate and not self.sparse.bias:
                raise ValueError("calibrate sets the offsets: it needs sparse.bias=true")
            return self

    base: str
    vocabulary: int
    splade: SparseHead

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.contrast = config.contrast.build()
        self.sparsity = config.sparsity.build()
        self.ranked: dict[str, Tensor] = {}
        """nDCG@10 of every query of the last `evaluate`, by task: for paired comparisons."""
        self.sharpness: dict[str, list[tuple[float, float]]] = {}
        self._step = 0

    # -- texts to weights --------------------------------------------------------------------------------------------

    def states(
        self, texts: Sequence[str], role: Role, *, longest: int
    ) -> tuple[Float[Tensor, "n t d"], Bool[Tensor, "n t"], int]:
        """Final states, which of them are pooled, and how many texts were cut."""
        raise NotImplementedError

    @property
    def matrix(self) -> Tensor:
        """E, [vocabulary, dim]."""
        raise NotImplementedError

    @property
    def offset(self) -> Tensor | None:
        """The base model's own bias of E, where it has one."""
        return None

    def weights(self, texts: Sequence[str], role: Role, *, longest: int) -> tuple[Float[Tensor, "n vocabulary"], int]:
        """Term weights in float32, with gradient, and how many texts were cut."""
        hidden, pooled, cut = self.states(texts, role, longest=longest)
        return self.splade(hidden, self.matrix, pooled, self.offset), cut

    def lengths(self, texts: Sequence[str], role: Role, *, longest: int) -> list[int]:
        """Tokens that each text takes in the model."""
        raise NotImplementedError

    @cached_property
    def tokenizer(self) -> Any:
        """The base model's."""
        return open_tokenizer(self.base)

    @cached_property
    def names(self) -> list[str]:
        """A readable name of every term."""
        return term_names(self.tokenizer, self.vocabulary)

    @property
    def longest(self) -> int:
        """Tokens of one copy of a text beyond which it is cut when encoding."""
        return int(self.config.longest)

    @torch.no_grad()
    def sparse(
        self, texts: Sequence[str], role: Role, *, longest: int | None = None, top: int | None = None
    ) -> tuple[SparseVectors, int]:
        """Sparse vectors in the order of the texts, and how many texts were cut; texts of like length go together."""
        longest = longest or self.config.longest
        sizes = self.lengths(texts, role, longest=longest)
        order = sorted(range(len(texts)), key=sizes.__getitem__)
        parts: list[SparseVectors] = []
        start = cut = 0
        was = self.training
        self.eval()
        while start < len(order):
            stop = start + 1
            while stop < len(order) and (stop + 1 - start) * sizes[order[stop]] <= self.config.batch_tokens:
                stop += 1
            made, short = self.weights([texts[i] for i in order[start:stop]], role, longest=longest)
            part = SparseVectors.from_dense(made)
            parts.append(part if top is None else part.top(top))
            start, cut = stop, cut + short
        self.train(was)
        inverse = torch.tensor(order, dtype=torch.int64).argsort()
        return SparseVectors.join(parts, self.vocabulary).take(inverse), cut

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

    @torch.no_grad()
    def prepare(self, data: "Splits", trainer: "Trainer") -> None:
        """Where asked for, start the offsets at what is usual: over queries and documents of some training pairs."""
        config = self.config
        if not config.calibrate:
            return
        self.to(trainer.device)
        chosen = torch.Generator().manual_seed(trainer.seed)
        rows = data.train.select(torch.randperm(len(data.train), generator=chosen)[: config.calibrate].tolist())
        parts = []
        sides: tuple[tuple[Role, int], ...] = (("query", config.query_tokens), ("document", config.document_tokens))
        for role, longest in sides:
            for start in range(0, len(rows), 16):
                hidden, pooled, _ = self.states(rows[start : start + 16][role], role, longest=longest)
                parts.append(self.splade.largest(hidden, self.matrix, pooled))
        self.splade.calibrate(torch.cat(parts), config.margin)

    def evaluate(self, data: "Splits") -> dict[str, float]:
        """nDCG@10 and MRR@10 on both tasks, by the exact index over capped vectors, and what the vectors cost."""
        metrics: dict[str, float] = {}
        settings: Evaluation = self.config.evaluation
        for prefix, task in settings.tasks(data).items():
            queries, documents, cut = self._encode_task(task)
            capped = queries.top(settings.query_terms), documents.top(settings.document_terms)
            self.ranked[prefix], scores = _judge(_exact(*capped), task)
            metrics |= {f"{prefix}{name}": value for name, value in scores.items()}
            metrics[f"{prefix}cut"] = cut / (len(task.queries) + len(task.documents))
            if prefix == "":
                metrics["full_ndcg@10"] = _judge(_exact(queries, documents), task)[1]["ndcg@10"]
                metrics["active_query"] = float(queries.sizes.float().mean())
                metrics["active_document"] = float(documents.sizes.float().mean())
                metrics["flops"] = float((queries.probabilities() * documents.probabilities()).sum())
                metrics["index_bytes"] = _index(capped[1]).bytes
                self.sharpness = {"": _sharpness(queries, documents, task)}
        return metrics

    def _encode_task(self, task: RetrievalTask) -> tuple[SparseVectors, SparseVectors, int]:
        settings: Evaluation = self.config.evaluation
        queries, a = self.sparse(task.queries, "query", longest=settings.query_tokens)
        documents, b = self.sparse(task.documents, "document", longest=settings.document_tokens)
        return queries, documents, a + b

    # -- verbs -------------------------------------------------------------------------------------------------------

    def encode(
        self, texts: Sequence[str], *, role: Literal["query", "document"] = "document", top: int | None = None
    ) -> Result:
        """Texts -> {term: weight}, the heaviest term first; an empty text has no terms.

        Args:
            texts: any.
            role: documents and queries are prompted differently.
            top: keep so many terms of each; None keeps all.
        """
        vectors, cut = self.sparse(texts, role, top=top)
        notes = cut_note(cut, self.config.longest)
        empty = sum(not text.strip() for text in texts)
        if empty:
            notes.append(f"{empty} empty texts have no terms")
        rows = [term_weights(vectors, row, self.names) for row in range(len(vectors))]
        return Result(rows, {"active_terms": float(vectors.sizes.float().mean())}, notes)

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
        """
        engines: dict[str, Engine] = {
            "exact": ExactIndex.Config(device=str(self.device)),
            "seismic": SeismicIndex.Config(),
            "qdrant": QdrantIndex.Config(url=url),
        }
        if url is not None and engine != "qdrant":
            raise InputError(f"url={url}: only engine=qdrant has a server")
        found = search_texts(self, query, index, engine=engines[engine], k=k, words=words, top=top)
        return Result(found.rows, found.report, found.notes)

    def explain(self, query: str, document: str) -> Result:
        """Why a document scores as it does for a query: the shared terms, and on which side each was only expanded to.

        Args:
            query: in plain words.
            document: the text to explain.
        """
        found = explain_score(self, query, document)
        return Result(found.rows, found.report, found.notes)

    def prune(self, pairs: Path, *, queries: int = 200, documents: int = 1000) -> Result:
        """What smaller vectors cost: quality and size for top-k terms, thresholds and 8-bit weights, as a table.

        Args:
            pairs: a file of query-document pairs (.jsonl, .csv, .parquet).
            queries, documents: most of each to use.
        """
        from datasets import concatenate_datasets

        from encyclo.data import load

        loaded = load(str(pairs), "pair")
        task = _task(concatenate_datasets([loaded.train, loaded.validation, loaded.test]), queries, documents)
        asked, cut = self.sparse(task.queries, "query")
        there, more = self.sparse(task.documents, "document")
        settings: dict[str, Callable[[SparseVectors], SparseVectors]] = {"all": lambda v: v}
        settings |= {f"top {k}": (lambda v, k=k: v.top(k)) for k in (256, 128, 64, 32, 16)}
        settings |= {f"above {t:g}": (lambda v, t=t: v.above(t)) for t in (0.1, 0.3, 1.0)}
        settings |= {"8 bits": lambda v: v.eight_bit(), "top 64, 8 bits": lambda v: v.top(64).eight_bit()}
        rows = []
        for name, smaller in settings.items():
            kept = smaller(there)
            bits: Literal[8, 32] = 8 if "8 bits" in name else 32
            rows.append(
                {
                    "documents": name,
                    **{key: round(value, 4) for key, value in _judge(_exact(asked, kept), task)[1].items()},
                    "active_document": round(float(kept.sizes.float().mean()), 1),
                    "flops": round(float((asked.probabilities() * kept.probabilities()).sum()), 3),
                    "index_bytes": _index(kept, bits).bytes,
                }
            )
        report = {"queries": len(task.queries), "documents": len(task.documents)}
        return Result(rows, report, cut_note(cut + more, self.config.longest))


def _index(vectors: SparseVectors, bits: Literal[8, 32] = 32) -> ExactIndex:
    index = ExactIndex.Config(bits=bits).build(vocabulary=vectors.vocabulary)
    index.add(vectors)
    return index


def _exact(queries: SparseVectors, documents: SparseVectors) -> Hits:
    return _index(documents).search(queries, 10)


def _judge(hits: Hits, task: RetrievalTask) -> tuple[Tensor, dict[str, float]]:
    """nDCG@10 per query, and the means."""
    each = ndcg(hits.documents, task.right)
    return each, {
        "ndcg@10": float(each.mean()),
        "mrr@10": float(reciprocal_rank(hits.documents, task.right).mean()),
    }


def _sharpness(queries: SparseVectors, documents: SparseVectors, task: RetrievalTask) -> list[tuple[float, float]]:
    """(terms kept of a document, nDCG@10): the sparsity-quality curve."""
    points = []
    for k in (4, 8, 16, 32, 64, 128, 256):
        kept = documents.top(k)
        points.append((float(kept.sizes.float().mean()), _judge(_exact(queries.top(k), kept), task)[1]["ndcg@10"]))
    return points


# -- the published system --------------------------------------------------------------------------------------------


class MistralSplade(SparseRetriever):
    """A causal language model as a sparse encoder: echo prompt, SPLADE head, LoRA, InfoNCE with FLOPS penalty.

    w_j = max_t log(1 + ReLU(<h_t, E_j> + b_j)) over the tokens t of the second copy of the text; E is the model's own
    output matrix; s(q, d) = sum_j w^q_j w^d_j. The causal mask stays as it is. Works on any causal LM that transformers
    opens; only adapters (and the offsets b, where there are any) are trained and saved.

    Raises:
        InputError: a base model without a next-token head, or whose files are missing.
    """

    class Config(SparseRetriever.Config):
        """Defaults are the published ones; what the paper leaves open is said where it stands in the documentation."""

        base: str = "mistralai/Mistral-7B-v0.1"
        dtype: Literal["fp32", "bf16"] = "fp32"
        """Of the frozen weights."""
        depth: int | None = None
        """Use only the first layers of the base model; None: all."""
        head: Literal["lm_head", "tied"] = "lm_head"
        """The matrix E: the model's output matrix, or its input embeddings."""
        prompt: Prompt = Prompt()
        lora: Lora = Lora(rank=16, alpha=8, dropout=0.1)
        checkpointing: bool = False
        """Compute the layers' activations again in the backward pass instead of keeping them."""
        remember: int = Field(0, ge=0, description="MiB of lower-layer states kept in training; needs lora.layers")
        training: TrainingConfig = TrainingConfig(
            steps=10_000,
            batch_size=256,
            optimiser=AdamW(lr=1e-4),
            schedule=Schedule(shape="linear", warmup=0.05),
            precision="bf16",
            clip=1.0,
        )

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.base = config.base
        dtype = torch.bfloat16 if config.dtype == "bf16" else torch.float32
        self.model: Any = open_model(config.base, "causal-lm", dtype=dtype, depth=config.depth)
        add_lora(self.model, config.lora)
        if config.checkpointing:
            self.model.gradient_checkpointing_enable({"use_reentrant": False})
        self.vocabulary = int(self.matrix.shape[0])
        self.splade = config.sparse.build(vocabulary=self.vocabulary)
        depth = int(self.model.config.num_hidden_layers)
        self.split = SplitDecoder(self.model, min(config.lora.layers or depth, depth))
        self._cache: StateCache | None = None

    @property
    def matrix(self) -> Tensor:
        """E, [vocabulary, dim]."""
        head = self.config.head == "lm_head"
        module = self.model.get_output_embeddings() if head else self.model.get_input_embeddings()
        weight: Tensor = module.weight
        return weight

    @cached_property
    def prompter(self) -> Prompter:
        """Puts texts into the prompt."""
        made: Prompter = self.config.prompt.build(tokenizer=self.tokenizer)
        return made

    def train(self, mode: bool = True) -> "MistralSplade":
        """Training mode reaches the adapters' dropout only: the frozen model stays as it was published."""
        super().train(mode)
        train_adapters_only(self.model, mode)
        if (
            self.config.checkpointing
        ):  # transformers does it in layers that are in training mode: the layer, not its parts
            for layer in decoder_layers(self.model)[1]:
                layer.training = mode
        return self

    def _room(self, role: Role, longest: int) -> int:
        """Tokens of one copy that fit: no more than asked for, and than the model's window leaves."""
        window = getattr(self.model.config, "max_position_embeddings", None)
        if window is None:
            return longest
        copies = 2 if self.config.prompt.echo else 1
        return min(longest, (int(window) - self.prompter.overhead(role)) // copies)

    def lengths(self, texts: Sequence[str], role: Role, *, longest: int) -> list[int]:
        """Tokens with the prompt and all copies."""
        return [len(item.ids) for item in self.prompter(texts, role, longest=self._room(role, longest))]

    def states(
        self, texts: Sequence[str], role: Role, *, longest: int
    ) -> tuple[Float[Tensor, "n t d"], Bool[Tensor, "n t"], int]:
        """Final states, which of them are pooled, and how many texts were cut."""
        prompted = self.prompter(texts, role, longest=self._room(role, longest))
        ids, pooled = pad_right(prompted)
        if self._cache is not None:
            hidden = self.split.upper(self._cache.lower([item.ids for item in prompted]))
        else:
            hidden = self.split.whole(ids.to(self.device))
        return hidden, pooled.to(self.device), sum(item.cut for item in prompted)

    def prepare(self, data: "Splits", trainer: "Trainer") -> None:
        """Offsets; and where asked for, a memory for the states of frozen layers."""
        if self.config.remember:
            self._cache = StateCache(self.split, self.config.remember)
        super().prepare(data, trainer)

    def evaluate(self, data: "Splits") -> dict[str, float]:
        """As every sparse retriever; and the same before training, when the adapters still do nothing."""
        metrics = super().evaluate(data)
        trained = self.ranked, self.sharpness
        with without_lora(self.model):
            task = self.config.evaluation.tasks(data)[""]
            queries, documents, _ = self._encode_task(task)
            settings: Evaluation = self.config.evaluation
            capped = queries.top(settings.query_terms), documents.top(settings.document_terms)
            metrics["untrained_ndcg@10"] = _judge(_exact(*capped), task)[1]["ndcg@10"]
            metrics["untrained_active_document"] = float(documents.sizes.float().mean())
        self.ranked, self.sharpness = trained
        self._cache = None
        return metrics

    def saved_state(self) -> dict[str, Tensor]:
        """Adapters and offsets; the base model is named by the configuration."""
        return {name: value for name, value in self.state_dict().items() if ".lora_" in name or name == "splade.bias"}

    def load_saved_state(self, state: dict[str, Tensor]) -> None:
        """Put adapters and offsets back, strictly."""
        wanted = self.saved_state()
        if wanted.keys() != state.keys():
            odd = sorted(wanted.keys() ^ state.keys())[0]
            raise KeyError(f"'{odd}' is there on one side only")
        self.load_state_dict(state, strict=False)

    def save_adapter(self, folder: str | Path) -> Path:
        """Write the adapters in peft's own layout, for use without this library."""
        from peft import get_peft_model_state_dict
        from safetensors.torch import save_file

        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        state = get_peft_model_state_dict(self.model, adapter_name="default")
        settings = self.model.peft_config["default"]
        settings.base_model_name_or_path = self.config.base
        settings.inference_mode = True
        save_file(
            {f"base_model.model.{name}": value.detach().cpu().contiguous() for name, value in state.items()},
            folder / "adapter_model.safetensors",
            metadata={"format": "pt"},
        )
        settings.save_pretrained(str(folder))
        return folder


# -- rivals ----------------------------------------------------------------------------------------------------------


class EncoderSplade(SparseRetriever):
    """SPLADE on a bidirectional encoder (Formal et al. 2021), all weights trained: the kind of system it is to beat.

    `head="embeddings"` scores against the encoder's own word embeddings; `head="masked-lm"` uses the masked-token head
    of a base that has one, such as naver/splade-v3, with its transform and offsets.
    """

    class Config(SparseRetriever.Config):
        """Defaults fit a small sentence encoder."""

        base: str = "all-minilm-l6-v2"
        head: Literal["embeddings", "masked-lm"] = "embeddings"
        training: TrainingConfig = TrainingConfig(
            steps=10_000,
            batch_size=64,
            optimiser=AdamW(lr=2e-5),
            schedule=Schedule(shape="linear", warmup=0.05),
            clip=1.0,
        )

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.base = config.base
        task: Literal["masked-lm", "encoder"] = "masked-lm" if config.head == "masked-lm" else "encoder"
        self.model: Any = open_model(config.base, task)
        self.vocabulary = int(self.model.get_input_embeddings().weight.shape[0])
        self.splade = config.sparse.build(vocabulary=self.vocabulary)

    def _tokens(self, texts: Sequence[str], longest: int) -> list[list[int]]:
        window = int(self.model.config.max_position_embeddings)
        extra = self.tokenizer.num_special_tokens_to_add()
        encoded = self.tokenizer(list(texts), truncation=True, max_length=min(longest + extra, window))
        return [list(ids) for ids in encoded.input_ids]

    def lengths(self, texts: Sequence[str], role: Role, *, longest: int) -> list[int]:
        """Tokens with the special ones."""
        return [len(ids) for ids in self._tokens(texts, longest)]

    @property
    def matrix(self) -> Tensor:
        """The masked-token head's matrix, or the word embeddings."""
        mlm = self.config.head == "masked-lm"
        weight: Tensor = (self.model.get_output_embeddings() if mlm else self.model.get_input_embeddings()).weight
        return weight

    @property
    def offset(self) -> Tensor | None:
        """The masked-token head's bias."""
        return self.model.get_output_embeddings().bias if self.config.head == "masked-lm" else None

    def states(
        self, texts: Sequence[str], role: Role, *, longest: int
    ) -> tuple[Float[Tensor, "n t d"], Bool[Tensor, "n t"], int]:
        """Final states; all tokens of a text are pooled, of an empty one none."""
        rows = self._tokens(texts, longest)
        extra = self.tokenizer.num_special_tokens_to_add()
        fill = self.tokenizer.pad_token_id or 0
        width = max(map(len, rows))
        ids = torch.tensor([row + [fill] * (width - len(row)) for row in rows], device=self.device)
        sizes = torch.tensor([len(row) for row in rows], device=self.device).unsqueeze(1)
        there = torch.arange(width, device=self.device) < sizes
        inputs = {"input_ids": ids, "attention_mask": there.long()}
        mlm = self.config.head == "masked-lm"
        hidden = head_inputs(self.model, **inputs) if mlm else self.model(**inputs).last_hidden_state
        return hidden, there & (sizes > extra), sum(len(row) >= longest + extra for row in rows)


class BM25(System):
    """The classical ranking by shared words (Robertson et al. 1994); its two numbers are chosen on training pairs."""

    card = CARD
    reads = "pair"

    class Config(SystemConfig):
        """The grid, and the size of the training task that chooses from it."""

        k1: tuple[float, ...] = (0.4, 0.9, 1.2, 2.0)
        b: tuple[float, ...] = (0.0, 0.25, 0.5, 0.75, 1.0)
        queries: int = 500
        documents: int = 2000
        evaluation: Evaluation = Evaluation()
        training: TrainingConfig = TrainingConfig(steps=1)

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.numbers: Tensor
        self.register_buffer("numbers", torch.tensor([1.2, 0.75], dtype=torch.float64))
        self.ranked: dict[str, Tensor] = {}

    def _ask(self, task: RetrievalTask, k1: float, b: float) -> Hits:
        return BM25Index.Config(k1=k1, b=b).build(task.documents).search(task.queries, 10)

    def fit(self, data: "Splits", trainer: "Trainer") -> None:
        """Choose k1 and b by nDCG@10 on training pairs."""
        task = _task(data.train, self.config.queries, self.config.documents)
        grid = [(k1, b) for k1 in self.config.k1 for b in self.config.b]
        scores = [_judge(self._ask(task, k1, b), task)[1]["ndcg@10"] for k1, b in grid]
        self.numbers.copy_(torch.tensor(grid[scores.index(max(scores))], dtype=torch.float64))

    def evaluate(self, data: "Splits") -> dict[str, float]:
        """nDCG@10 and MRR@10 on the tasks of every arm."""
        metrics: dict[str, float] = {"k1": float(self.numbers[0]), "b": float(self.numbers[1])}
        for prefix, task in self.config.evaluation.tasks(data).items():
            hits = self._ask(task, float(self.numbers[0]), float(self.numbers[1]))
            self.ranked[prefix], scores = _judge(hits, task)
            metrics |= {f"{prefix}{name}": value for name, value in scores.items()}
        return metrics


# -- the experiment --------------------------------------------------------------------------------------------------

_COLUMNS = {
    "ndcg@10": "nDCG@10",
    "mrr@10": "MRR@10",
    "zero_shot_ndcg@10": "nDCG@10, zero-shot",
    "zero_shot_mrr@10": "MRR@10, zero-shot",
    "full_ndcg@10": "nDCG@10, all terms",
    "untrained_ndcg@10": "nDCG@10, untrained",
    "active_query": "terms a query",
    "active_document": "terms a document",
    "flops": "products a pair",
    "fit_seconds": "training, s",
}


def experiment(preset: Preset) -> Experiment:
    """Dictionary entries from their headwords (words rarely shared), and documentation paragraphs from their titles."""
    if preset is Preset.PAPER:
        config = MistralSplade.Config(dtype="bf16", checkpointing=True)
        return Experiment(data="glosses", systems={"mistral-splade": config}, claims=())
    smoke, laptop, gpu = (preset is p for p in (Preset.SMOKE, Preset.LAPTOP, Preset.GPU))
    steps = 3 if smoke else 40 if laptop else 800
    evaluation = Evaluation(
        queries=6 if smoke else 200 if laptop else 2000,
        documents=12 if smoke else 300 if laptop else 5700,
        query_tokens=8,
        document_tokens=20,
        zero_shot="pydocs",
        zero_shot_queries=6 if smoke else 75 if laptop else 250,
        zero_shot_documents=12 if smoke else 150 if laptop else 500,
        zero_shot_words=12 if smoke or laptop else 60,
    )
    budget = TrainingConfig(
        steps=steps,
        batch_size=256 if gpu else 4 if smoke else 16,
        schedule=Schedule(shape="linear", warmup=0.1, final=0.1),
        clip=1.0,
        precision="bf16" if gpu else "fp32",
        log_every=1 if smoke else 4,
    )
    shared: dict[str, Any] = {
        "query_tokens": 8,
        "document_tokens": 20,
        "evaluation": evaluation,
        "calibrate": 8 if smoke else 64,
        "sparsity": Sparsity.Config(query=1e-2, document=1e-2, ramp=steps // 2),
    }
    echo = MistralSplade.Config(
        base="smollm2-135m",
        depth=2 if smoke else None,
        lora=Lora(rank=16, alpha=8, dropout=0.1, layers=1 if smoke else 8 if laptop else None),
        sparse=SparseHead.Config(bias=True, centre=True),
        margin=2.75,
        contrast=InfoNCE.Config(temperature=3.0),
        remember=1 if smoke else 1024 if laptop else 0,
        training=budget.replace(optimiser=AdamW(lr=5e-4)),
        **shared,
    )
    encoder = EncoderSplade.Config(
        sparse=SparseHead.Config(bias=True, centre=True),
        margin=2.5,
        contrast=InfoNCE.Config(temperature=1.0),
        training=budget.replace(optimiser=AdamW(lr=1e-4)),
        **shared,
    )
    return Experiment(
        data="glosses",
        systems={
            "echo": echo,
            "no echo": echo.replace(prompt=Prompt(echo=False)),
            "encoder": encoder,
            "bm25": BM25.Config(evaluation=evaluation, **({"queries": 20, "documents": 40} if smoke else {})),
        },
        claims=_claims(),
        seeds=1,
        compare=_compare,
        pictures=_pictures,
        columns=_COLUMNS,
        fairness=(
            "All arms get the same pairs in the same order and the same tests, and are ranked by the same exact index"
            " over at most 128 terms of a query and 256 of a document; the learned arms get the same number of steps."
            " Margin and temperature of the language model (with echo) and of the encoder were chosen by the loss on"
            " training pairs before the first step; learning rates were not searched. BM25's two numbers were"
            " chosen on training pairs from a grid of 20. The encoder's base model was trained on a billion sentence"
            " pairs before, the language model on none. Standard errors are paired over queries; there is one seed."
        ),
    )


def _claims() -> tuple[Claim, ...]:
    return (
        Claim(
            statement="Finds by meaning what BM25 cannot find by words: nDCG@10 at least 0.05 above it",
            metric="ndcg@10",
            system="echo",
            rival="bm25",
            by=0.05,
        ),
        Claim(
            statement="That gain is more than two paired standard errors",
            metric="gain_over_bm25_in_errors",
            system="echo",
            bound=2.0,
        ),
        Claim(
            statement="Training improves on the untrained language model",
            metric="ndcg@10",
            system="echo",
            rival="echo",
            rival_metric="untrained_ndcg@10",
        ),
        Claim(
            statement="A decoder language model is a better sparse encoder than a bidirectional one",
            metric="ndcg@10",
            system="echo",
            rival="encoder",
        ),
        Claim(
            statement="Reading the text twice is better than reading it once",
            metric="ndcg@10",
            system="echo",
            rival="no echo",
        ),
        Claim(
            statement="With echo every pooled token has seen the last word",
            metric="last_word_effect",
            system="echo",
            bound=1e-3,
            kind="exact",
        ),
        Claim(
            statement="Without echo the first token has not",
            metric="last_word_effect",
            system="no echo",
            bound=0.0,
            better="lower",
            kind="exact",
        ),
        Claim(
            statement="The index gives the inner products of the vectors",
            metric="index_error",
            system="echo",
            bound=1e-5,
            better="lower",
            kind="exact",
        ),
    )


def _compare(trial: Trial) -> dict[str, dict[str, float]]:
    """Paired differences to the rivals, and the identities that hold at any size."""
    ours: Any = trial.systems["echo"]
    made: dict[str, dict[str, float]] = {name: {} for name in trial.systems}
    for name, system in trial.systems.items():
        theirs: Any = system
        if name == "echo":
            continue
        for prefix in ours.ranked:
            difference = paired_difference(ours.ranked[prefix], theirs.ranked[prefix])
            label = f"{prefix}gain_over_{name.replace(' ', '_')}"
            made["echo"] |= {label: difference.mean, f"{label}_error": difference.error}
            if prefix == "":
                made["echo"][f"{label}_in_errors"] = difference.mean / difference.error if difference.error else 0.0
    pair = ["a horse in a green field", "a horse in a green car"]
    for name in ("echo", "no echo"):
        reader: Any = trial.systems[name]
        first = []
        for text in pair:
            with torch.no_grad():
                hidden, pooled, _ = reader.states([text], "document", longest=16)
            first.append(hidden[pooled][0])
        made[name]["last_word_effect"] = float((first[0] - first[1]).abs().max())
    task = ours.config.evaluation.tasks(trial.data)[""]
    queries = ours.sparse(task.queries[:20], "query", longest=8)[0]
    documents = ours.sparse(task.documents[:100], "document", longest=20)[0]
    hits = _exact(queries, documents)
    dense = torch.gather(queries.dense().double() @ documents.dense().double().T, 1, hits.documents.clamp(min=0))
    off = (hits.scores - dense).abs() / dense.clamp(min=1.0)
    made["echo"]["index_error"] = float(torch.where(hits.documents >= 0, off, 0.0).max())
    return made


def _pictures(trial: Trial) -> list[Picture]:
    """Quality against sparsity, what training does to sparsity, and the terms of one entry."""
    made: list[Picture] = []
    lines: dict[str, list[tuple[float, float]]] = {}
    for name, system in trial.systems.items():
        reader: Any = system
        if isinstance(reader, SparseRetriever):
            lines[name] = reader.sharpness[""]
    ends = [point[0] for points in lines.values() for point in points]
    flat = trial.metrics["bm25"]["ndcg@10"]
    lines["BM25"] = [(min(ends), flat), (max(ends), flat)]
    made.append(
        curves(
            lines,
            "sharpness",
            "Quality against sparsity on held-out dictionary entries: nDCG@10 when only the heaviest terms of each text"
            " are kept.",
            x="terms kept of a document (mean)",
            y="nDCG@10",
            log_x=True,
            markers=True,
            docs=True,
        )
    )
    made.append(_terms_picture(trial))
    active_terms = {
        f"{name}, {side}": [(float(step), value) for step, _, value in trial.curves[name][f"active_{side}"]]
        for name in lines
        if name in trial.curves
        for side in ("query", "document")
        if f"active_{side}" in trial.curves[name]
    }
    if active_terms:
        made.append(
            curves(
                active_terms,
                "active",
                "Active terms of a text while the sparsity penalty is let in.",
                x="step",
                y="active terms",
                log_y=True,
            )
        )
    return made


def _terms_picture(trial: Trial) -> Picture:
    """The heaviest terms of one held-out entry, those that stand in it apart from those the model added."""
    reader: Any = trial.systems["echo"]
    task = reader.config.evaluation.tasks(trial.data)[""]
    text = task.documents[0]
    vectors = reader.sparse([text], "document", longest=20)[0].top(24)
    terms, weights = vectors.row(0)
    order = weights.argsort(descending=True).tolist()
    said = set(reader.tokenizer(f" {text}", add_special_tokens=False).input_ids)
    made, axis = figure(7.0, 4.4)
    place = list(range(len(order)))
    inside = [int(terms[i]) in said for i in order]
    axis.barh(place, [float(weights[i]) for i in order], color=["#2457a6" if there else "#e0912f" for there in inside])
    axis.set_yticks(place, [reader.names[int(terms[i])] for i in order], fontsize=8)
    axis.invert_yaxis()
    axis.set_xlabel("weight")
    axis.set_title(f"“{text}”", fontsize=9, loc="left")
    for label, colour in (("stands in the text", "#2457a6"), ("added by the model", "#e0912f")):
        axis.barh([], [], color=colour, label=label)
    axis.legend(frameon=False, fontsize=8, loc="lower right")
    return from_figure(
        made,
        "terms",
        "The heaviest terms of a held-out entry: those that stand in it, and those the model added.",
        docs=True,
    )
