"""Mistral-SPLADE: a decoder language model read twice, its next-token head turned into the term weights of an index."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from jaxtyping import Bool, Float
from pydantic import Field
from torch import Tensor

from encyclo.card import Card
from encyclo.errors import InputError
from encyclo.experiment import Claim, Experiment, Preset, Trial
from encyclo.losses.contrastive import InfoNCE
from encyclo.losses.sparsity import Sparsity
from encyclo.metrics.paired import paired_difference
from encyclo.nn.lora import Lora, add_lora, read_peft, train_adapters_only, without_lora, write_peft
from encyclo.nn.sparse_head import SparseHead
from encyclo.nn.split_decoder import SplitDecoder, StateCache, decoder_layers, head_inputs
from encyclo.picture import Picture
from encyclo.pretrained import open_model
from encyclo.search.evaluation import Evaluation, exact_hits, judge
from encyclo.systems.bm25_retriever import BM25Retriever, BM25RetrieverConfig
from encyclo.systems.retrieval_pictures import active_picture, sharpness_picture, terms_picture
from encyclo.systems.sparse_retriever import SparseRetriever, SparseRetrieverConfig
from encyclo.tokens.echo import Prompt, Prompted, Prompter, Role, pad_right
from encyclo.training.config import AdamW, Schedule, TrainingConfig
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
    verbs=("encode", "search", "explain", "prune", "import"),
    keywords=("retrieval", "sparse", "language model", "LoRA", "echo", "inverted index"),
    retrofit=True,
)


# -- the published system --------------------------------------------------------------------------------------------


class MistralSplade(SparseRetriever):
    """A causal language model as a sparse encoder: echo prompt, SPLADE head, LoRA, InfoNCE with FLOPS penalty.

    w_j = max_t log(1 + ReLU(<h_t, E_j> + b_j)) over the tokens t of the second copy of the text; E is the model's own
    output matrix; s(q, d) = sum_j w^q_j w^d_j. The causal mask stays as it is. Works on any causal LM that transformers
    opens; only adapters (and the offsets b, where there are any) are trained and saved.

    Raises:
        InputError: a base model without a next-token head, or whose files are missing.
    """

    card = CARD

    class Config(SparseRetrieverConfig):
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
        self._offsets: Tensor | None = None

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
        self._offsets = None if self.splade.bias is None else self.splade.bias.detach().clone()

    def evaluate(self, data: "Splits") -> dict[str, float]:
        """As every sparse retriever; and the same as it was before the first step, under names with `untrained`."""
        metrics = super().evaluate(data)
        settings: Evaluation = self.config.evaluation
        with self.untrained():
            for prefix, task in settings.tasks(data).items():
                queries, documents, _ = self.encode_task(task)
                scores = judge(exact_hits(*settings.capped(queries, documents)), task)[1]
                metrics |= {f"{prefix}untrained_{name}": value for name, value in scores.items()}
                metrics[f"{prefix}untrained_active_document"] = float(documents.sizes.float().mean())
        self._cache = None
        return metrics

    @contextmanager
    def untrained(self) -> Iterator[None]:
        """Inside, it is what it was before the first step: no adapters, and the offsets that `fit` started from."""
        bias = self.splade.bias
        trained = None if bias is None else bias.detach().clone()
        try:
            if bias is not None and self._offsets is not None:
                bias.data.copy_(self._offsets)
            with without_lora(self.model):
                yield
        finally:
            if bias is not None and trained is not None:
                bias.data.copy_(trained)

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
        return write_peft(self.model, folder, base=self.config.base)

    @classmethod
    def import_(cls, adapters: Path, *, base: str | None = None, out: Path | None = None) -> Result:
        """Open LoRA adapters in peft's layout (`adapter_config.json`, `adapter_model.safetensors`) as a run.

        Args:
            adapters: the folder.
            base: the model they belong to; None takes the name that stands in the folder.
            out: the run folder.

        Raises:
            InputError: a folder without adapters, of another form than plain LoRA, or for another base model.
        """
        if out is None:
            raise InputError("import makes a new run: say where with --out DIR")
        lora, named, state = read_peft(adapters)
        base = base or named
        if base is None:
            raise InputError(f"'{adapters}' does not name its base model: give base=...")
        system = cls.Config(base=base, lora=lora).build()
        try:
            system.load_saved_state({f"model.{name}": value for name, value in state.items()})
        except (KeyError, RuntimeError) as error:
            raise InputError(f"the adapters in '{adapters}' do not fit '{base}' ({str(error)[:80]})") from None
        system.save_pretrained(out)
        return Result(out, {"base": base, "rank": lora.rank, "maps": ", ".join(lora.targets)})


# -- rivals ----------------------------------------------------------------------------------------------------------


class EncoderSplade(SparseRetriever):
    """SPLADE on a bidirectional encoder (Formal et al. 2021), all weights trained: the kind of system it is to beat.

    `head="embeddings"` scores against the encoder's own word embeddings; `head="masked-lm"` uses the masked-token head
    of a base that has one, such as naver/splade-v3, with its transform and offsets.
    """

    card = CARD

    class Config(SparseRetrieverConfig):
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

    def _read(self, texts: Sequence[str], longest: int) -> list[Prompted]:
        """Tokens with the special ones; of an empty text nothing is pooled."""
        extra = self.tokenizer.num_special_tokens_to_add()
        most = min(longest + extra, int(self.model.config.max_position_embeddings))
        whole = self.tokenizer(list(texts), verbose=False).input_ids
        short = self.tokenizer(list(texts), truncation=True, max_length=most).input_ids
        return [
            Prompted(list(ids), 0, len(ids) if len(ids) > extra else 0, len(every) > most)
            for ids, every in zip(short, whole, strict=True)
        ]

    def lengths(self, texts: Sequence[str], role: Role, *, longest: int) -> list[int]:
        """Tokens with the special ones."""
        return [len(item.ids) for item in self._read(texts, longest)]

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
        rows = self._read(texts, longest)
        ids, pooled = pad_right(rows, fill=self.tokenizer.pad_token_id or 0)
        sizes = torch.tensor([len(row.ids) for row in rows]).unsqueeze(1)
        there = torch.arange(ids.shape[1]) < sizes
        inputs = {"input_ids": ids.to(self.device), "attention_mask": there.long().to(self.device)}
        mlm = self.config.head == "masked-lm"
        hidden = head_inputs(self.model, **inputs) if mlm else self.model(**inputs).last_hidden_state
        return hidden, pooled.to(self.device), sum(row.cut for row in rows)


class BM25(BM25Retriever):
    """The classical ranking by shared words (Robertson et al. 1994); its two numbers are chosen on training pairs."""

    card = CARD

    class Config(BM25RetrieverConfig):
        """The grid, and the size of the training task that chooses from it."""


# -- the experiment --------------------------------------------------------------------------------------------------

_COLUMNS = {
    "ndcg@10": "nDCG@10",
    "mrr@10": "MRR@10",
    "zero_shot_ndcg@10": "nDCG@10, zero-shot",
    "zero_shot_mrr@10": "MRR@10, zero-shot",
    "untrained_ndcg@10": "nDCG@10, untrained",
    "zero_shot_untrained_ndcg@10": "nDCG@10, zero-shot, untrained",
    "full_ndcg@10": "nDCG@10, all terms",
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
    steps = 3 if smoke else 60 if laptop else 800
    evaluation = Evaluation(
        queries=6 if smoke else 200 if laptop else 2000,
        documents=12 if smoke else 800 if laptop else 5700,
        query_tokens=16,
        document_tokens=96 if gpu else 32,
        zero_shot="pydocs",
        zero_shot_queries=6 if smoke else 100 if laptop else 250,
        zero_shot_documents=12 if smoke else 400 if laptop else 500,
        zero_shot_words=60 if gpu else 16,
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
    queries = ours.sparse(task.queries[:20], "query", longest=12)[0]
    documents = ours.sparse(task.documents[:100], "document", longest=20)[0]
    hits = exact_hits(queries, documents)
    dense = torch.gather(queries.dense().double() @ documents.dense().double().T, 1, hits.documents.clamp(min=0))
    off = (hits.scores - dense).abs() / dense.clamp(min=1.0)
    made["echo"]["index_error"] = float(torch.where(hits.documents >= 0, off, 0.0).max())
    return made


def _pictures(trial: Trial) -> list[Picture]:
    """Quality against sparsity, the terms of one entry, and what training does to sparsity."""
    learned: dict[str, Any] = {n: s for n, s in trial.systems.items() if isinstance(s, SparseRetriever)}
    task = learned["echo"].config.evaluation.tasks(trial.data)[""]
    made = [
        sharpness_picture({n: s.sharpness for n, s in learned.items()}, {"BM25": trial.metrics["bm25"]["ndcg@10"]}),
        terms_picture(learned["echo"], task.documents[0], longest=learned["echo"].config.evaluation.document_tokens),
    ]
    if any(trial.curves.get(name) for name in learned):
        made.append(active_picture({name: trial.curves[name] for name in learned if name in trial.curves}))
    return made
