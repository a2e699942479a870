"""MosaicBERT: a BERT recipe that pretrains faster on the same machine (arXiv 2312.17482).

The encoder and its exchangeable parts stand in `encyclo.nn.text_encoder`, attention without padding in
`encyclo.nn.varlen`, the distance penalty in `encyclo.nn.alibi`, the objective in `encyclo.losses.masked_lm`, the
reading of published weights in `encyclo.nn.text_checkpoint`.
"""

import copy
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from pydantic import Field
from torch import Tensor

from encyclo import data as room
from encyclo import picture
from encyclo.card import Card
from encyclo.data import Batches, Splits
from encyclo.data.text import Unit, read_units
from encyclo.errors import InputError
from encyclo.experiment import Claim, Experiment, Preset, Trial
from encyclo.losses.masked_lm import Masked, Masking, masked_lm_loss, noise
from encyclo.metrics.cost import flops
from encyclo.metrics.language import TokenScores, majority_accuracy
from encyclo.nn.feed_forward import Glu, Mlp
from encyclo.nn.text_checkpoint import encoder_config, head_config, read_description, read_tensors, renamed
from encyclo.nn.text_classifier import TextClassifier
from encyclo.nn.text_encoder import LearnedPositions, MaskedLMHead, TextEncoder
from encyclo.nn.varlen import Layout, runs_by_length
from encyclo.picture import Picture
from encyclo.pretrained import base_folder
from encyclo.system import System, SystemConfig
from encyclo.tokens.text_corpus import TextCorpus, texts_of, tokenise
from encyclo.tokens.wordpiece import Encoded, WordPiece
from encyclo.training import AdamW, Loss, Schedule, Trainer, TrainingConfig
from encyclo.verbs import Result

CARD = Card(
    slug="mosaicbert",
    title="MosaicBERT: A Bidirectional Encoder Optimized for Fast Pretraining",
    authors="Portes et al.",
    year=2023,
    arxiv="2312.17482",
    venue="NeurIPS 2023",
    wing="text",
    summary="A BERT to pretrain on your own text: no padding, distance penalties, gated layers, 30 % masking.",
    verbs=("fill", "encode", "extend", "finetune", "classify", "import"),
    code="mosaicml/examples",
    code_licence="Apache-2.0",
    keywords=("masked language model", "ALiBi", "GeGLU", "unpadding"),
)

_EVALUATION_SEED = 15
"""Decides which tokens are hidden in every evaluation, so that all arms are asked the same."""


class MosaicBERT(System):
    """A masked language model whose encoder exchanges five parts of BERT for faster ones (section 2).

    Fused attention, ALiBi in place of position embeddings, GeGLU, no computation on padding, LayerNorm in 16 bit:
    each is a switch of `config.encoder`. 30 % of the tokens are hidden in training (section 3.1), always 15 % in
    evaluation.
    """

    card = CARD
    reads = "text"

    class Config(SystemConfig):
        """The defaults are the published MosaicBERT-base."""

        encoder: TextEncoder.Config = TextEncoder.Config()
        head: MaskedLMHead.Config = MaskedLMHead.Config()
        tokenizer: str | None = Field(None, description="folder, bundled model or hub id; None: fitted on train")
        lowercase: bool = Field(True, description="of a tokenizer fitted on train")
        length: int = Field(128, ge=3, description="tokens to which texts are cut in training, both ends included")
        mask_ratio: float = Field(0.30, gt=0, lt=1, description="share of tokens hidden in training")
        evaluation_ratio: float = Field(0.15, gt=0, lt=1, description="share of tokens hidden in evaluation")
        masked_only: bool = Field(True, description="last layer (behind attention) and head on hidden tokens only")
        evaluated: int | None = Field(None, description="most held-out texts that are looked at; None: all")
        labels: tuple[str, ...] = Field((), description="classes of a fine-tuned classifier")
        training: TrainingConfig = TrainingConfig(
            steps=70_000,
            batch_size=4096,
            accumulate=32,
            precision="bf16",
            optimiser=AdamW(
                lr=5e-4, betas=(0.9, 0.98), eps=1e-6, weight_decay=1e-5, decay_by="schedule", decay_vectors=True
            ),
            schedule=Schedule(shape="linear", warmup=0.06, final=0.02),
        )

    config: Config

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.encoder: TextEncoder = config.encoder.build()
        self.head: MaskedLMHead = config.head.build(encoder=config.encoder)
        self.classifier: TextClassifier | None = None
        if config.labels:
            told = TextClassifier.Config(dropout=config.encoder.dropout, init_std=config.encoder.init_std)
            self.classifier = told.build(dim=config.encoder.dim, classes=len(config.labels))
        self.tokenizer: WordPiece | None = None
        self._masking: Masking | None = None
        self._corpus: TextCorpus | None = None
        self._speed: dict[str, float] = {}
        self._seed = 0  # of the present step's masks

    # -- text to tokens ------------------------------------------------------------------------------------------------

    def start_from(self, prepared: TextCorpus) -> None:
        """Take a data set that is tokens already."""
        self._corpus = prepared
        self._take(prepared.tokenizer)

    def assets(self) -> dict[str, bytes]:
        """The tokenizer."""
        return {} if self.tokenizer is None else {"tokenizer.json": self.tokenizer.to_json()}

    def load_assets(self, assets: Mapping[str, bytes]) -> None:
        """Take the tokenizer back."""
        if "tokenizer.json" in assets:
            self._take(WordPiece.from_json(assets["tokenizer.json"]))

    def _take(self, tokenizer: WordPiece) -> None:
        table = self.config.encoder.table
        if tokenizer.size > table:
            raise InputError(f"the tokenizer has {tokenizer.size} tokens, the model {table}: raise encoder.vocabulary")
        self.tokenizer = tokenizer
        self._masking = Masking.of(tokenizer.special(), tokenizer.mask, table)

    def _known(self) -> tuple[WordPiece, Masking]:
        if self.tokenizer is None or self._masking is None:
            raise InputError("this model has no tokenizer yet: train it, or import one with its weights")
        return self.tokenizer, self._masking

    def _encode(self, texts: Sequence[str], *, special: bool = False) -> tuple[Encoded, list[str]]:
        """Texts of a user, uncut, and what to tell about them."""
        blank = [index for index, text in enumerate(texts) if not text.strip()]
        if blank or not texts:
            raise InputError(f"text {blank[0]} is empty: leave it out" if blank else "no text is given")
        encoded = self._known()[0].encode(texts, special=special)
        longest = int(encoded.lengths.max())
        notes = []
        if longest > self.config.length and self.encoder.alibi is not None:
            notes.append(
                f"the longest text has {longest} tokens, training had {self.config.length}: nothing was cut, the"
                " distance penalties go on"
            )
        return encoded, notes

    # -- learning ------------------------------------------------------------------------------------------------------

    def fit(self, data: Splits, trainer: Trainer) -> None:
        """Pretrain on `data.train`: one text a sample, cut to `length`, never joined with another."""
        if self._corpus is None:
            self.start_from(corpus_of(data, self.config))
        corpus = self._corpus
        assert corpus is not None
        config = self.config.training
        if data.streaming:
            batches = Batches(data.train, config.batch_size, seed=trainer.seed)
        else:
            batches = Batches(len(corpus.train), config.batch_size, seed=trainer.seed, collate=Tensor.tolist)
        sample = corpus.validation.sample(256)

        def at(step: int) -> None:
            self._seed = (trainer.seed << 32) + step

        def look() -> dict[str, float]:
            scores = self._score(sample, torch.arange(len(sample.ids)))
            return {"mlm_accuracy": scores.accuracy, "mlm_loss": scores.loss} if scores.count else {}

        history = trainer.fit(self, self.loss, batches, config, stage="pretrain", before_step=at, evaluate=look)
        self._speed = {
            "steps": float(history.steps),
            "samples_per_second": history.steps * config.batch_size / max(history.seconds, 1e-9),
        }

    def loss(self, batch: Sequence[int] | Mapping[str, Sequence[str]]) -> Loss:
        """The masked-token loss of some texts of the train split (by number, or as they come from a stream)."""
        tokenizer = self._known()[0]
        if isinstance(batch, Mapping):
            texts = list(batch["text"])
            encoded = tokenizer.encode(texts, limit=self.config.length)
            ids, lengths = encoded.ids, encoded.lengths
            own = torch.tensor([zlib.crc32(text.encode()) for text in texts])
            inside = torch.arange(len(ids)) - (lengths.cumsum(0) - lengths).repeat_interleave(lengths)
            numbers = (own << 20).repeat_interleave(lengths) + inside
        else:
            assert self._corpus is not None
            rows = torch.tensor(batch)
            numbers = self._corpus.train.places(rows)
            ids, lengths = self._corpus.train.ids[numbers], self._corpus.train.lengths[rows]
        layout, masked = self._hide(ids, lengths, numbers, self.config.mask_ratio, self._seed)
        words = self.encoder.words.weight
        if self.config.masked_only:
            hidden = self.encoder.flat(masked.tokens, layout, chosen=masked.chosen)
            return masked_lm_loss(self.head(hidden, words), masked.targets)
        scores = self.head(self.encoder.flat(masked.tokens, layout), words)
        return masked_lm_loss(scores[masked.chosen], masked.targets)

    def _hide(
        self,
        ids: Int64[Tensor, " n"],
        lengths: Int64[Tensor, " texts"],
        numbers: Int64[Tensor, " n"],
        ratio: float,
        seed: int,
    ) -> tuple[Layout, Masked]:
        """A batch with some tokens hidden, as the encoder takes it, on its device."""
        layout = self.encoder.layout(lengths)
        tokens, given = layout.arrange(ids, self.encoder.pad), layout.arrange(numbers, -1)
        masked = self._known()[1].hide(tokens, given, ratio=ratio, seed=seed, layout=layout)
        return layout.to(self.device), masked.to(self.device)

    def _arrange(
        self, ids: Int64[Tensor, " n"], lengths: Int64[Tensor, " texts"]
    ) -> tuple[Layout, Int64[Tensor, " m"]]:
        """A batch as the encoder takes it, on its device."""
        layout = self.encoder.layout(lengths)
        return layout.to(self.device), layout.arrange(ids, self.encoder.pad).to(self.device)

    # -- measuring -----------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def _score(self, texts: Encoded, numbers: Int64[Tensor, " n"], cells: int = 8192) -> TokenScores:
        """Predictions of the tokens that every evaluation hides; `numbers` decide which."""
        total = TokenScores()
        for rows in runs_by_length(texts.lengths, cells) if len(texts) else ():
            places = texts.places(rows)
            ids, lengths, given = texts.ids[places], texts.lengths[rows], numbers[places]
            layout, masked = self._hide(ids, lengths, given, self.config.evaluation_ratio, _EVALUATION_SEED)
            hidden = self.encoder.flat(masked.tokens, layout, chosen=masked.chosen)
            total.add(self.head(hidden, self.encoder.words.weight), masked.targets)
        return total

    def evaluate(self, data: Splits) -> dict[str, float]:
        """Accuracy (%) and loss (nats) on hidden tokens of `data.test`, the same tokens for every system."""
        tokenizer, masking = self._known()
        test = (
            self._corpus.test
            if self._corpus is not None
            else tokenizer.encode(texts_of(data.test, self.config.evaluated), limit=self.config.length)
        )
        numbers = torch.arange(len(test.ids))
        scores = self._score(test, numbers)
        if not scores.count:
            raise InputError("the test split has no tokens to hide: give more text")
        found = {"mlm_accuracy": scores.accuracy, "mlm_loss": scores.loss, **self._speed}
        if self._corpus is not None and len(self._corpus.train):
            train = self._corpus.train.ids
            hidden = masking.hide(test.ids, numbers, ratio=self.config.evaluation_ratio, seed=_EVALUATION_SEED)
            found["majority_accuracy"] = majority_accuracy(train[~masking.special[train]], hidden.targets)
        return found

    def window_scores(self, texts: Sequence[str], length: int) -> TokenScores:
        """Predictions of hidden tokens in long texts, read in windows of `length` tokens, [CLS] and [SEP] included.

        Which tokens are hidden does not depend on the windows; a text shorter than a window is one.
        """
        tokenizer = self._known()[0]
        whole = tokenizer.encode(texts)
        ids, numbers, lengths = [], [], []
        every = torch.arange(len(whole.ids))
        for text, number in zip(whole.split(whole.ids), whole.split(every), strict=True):
            pieces = (torch.split(part[1:-1], length - 2) for part in (text, number))
            for piece, own in zip(*pieces, strict=True):
                ids.append(F.pad(F.pad(piece, (1, 0), value=tokenizer.start), (0, 1), value=tokenizer.end))
                numbers.append(F.pad(own, (1, 1), value=-1))
                lengths.append(len(piece) + 2)
        return self._score(Encoded(torch.cat(ids), torch.tensor(lengths)), torch.cat(numbers))

    # -- verbs ---------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def fill(self, text: str, *, top: int = 5) -> Result:
        """Rank the words that could stand in the place of each [MASK].

        Args:
            text: a text with at least one [MASK].
            top: words for each.
        """
        tokenizer, masking = self._known()
        encoded, notes = self._encode([text], special=True)
        chosen = (encoded.ids == tokenizer.mask).nonzero().squeeze(1)
        if not len(chosen):
            raise InputError(f"there is no [MASK] in '{text[:60]}': write [MASK] where a word is missing")
        layout, tokens = self._arrange(encoded.ids, encoded.lengths)
        hidden = self.encoder.flat(tokens, layout, chosen=chosen.to(self.device))
        scores = self.head(hidden, self.encoder.words.weight).float().cpu()
        probabilities = scores.masked_fill(masking.special, -torch.inf).softmax(1)
        best, words = probabilities.topk(min(top, probabilities.shape[1]), dim=1)
        rows = [
            {"mask": place + 1, "rank": rank + 1, "word": tokenizer.token(word), "probability": value}
            for place, (row, values) in enumerate(zip(words.tolist(), best.tolist(), strict=True))
            for rank, (word, value) in enumerate(zip(row, values, strict=True))
        ]
        filled = encoded.ids.index_copy(0, chosen, words[:, 0])
        return Result(rows, {"text": tokenizer.decode(filled.tolist())}, notes)

    def encode(
        self,
        inputs: Sequence[str],
        *,
        pool: Literal["mean", "first"] = "mean",
        unit: Unit = "file",
        normalise: bool = False,
        precision: Literal["fp32", "bf16"] = "fp32",
        batch_tokens: int = 4096,
    ) -> Result:
        """Texts, or files of text, to vectors [n, dim].

        Args:
            inputs: the texts.
            pool: the mean over a text's tokens (padding does not count), or the vector of [CLS].
            unit: one vector for each input as a whole (file), each of its paragraphs, or each of its lines.
            normalise: make every vector one of length 1.
            precision: of the computation; bf16 halves the time on a CPU or GPU that computes in it. Vectors are
                float32.
            batch_tokens: most tokens computed at a time.
        """
        texts = [part for text in inputs for part in (read_units(text, unit) or [""])]
        encoded, notes = self._encode(texts)
        encoder = self.encoder if precision == "fp32" else copy.deepcopy(self.encoder).to(torch.bfloat16)
        vectors = encoder.embed(encoded.ids, encoded.lengths, pool=pool, batch_tokens=batch_tokens)
        if normalise:
            vectors = F.normalize(vectors, dim=1)
        return Result(vectors, {"vectors": len(texts), "tokens": len(encoded.ids)}, notes)

    def extend(self, text: str, *, length: int, out: Path | None = None) -> Result:
        """Make the model fit for inputs of `length` tokens, without training, and tell what that costs.

        Args:
            text: a long text of the kind to come; the perplexity of its hidden tokens is measured in windows of 1, 2
                and 4 times the training length and of `length`.
            length: tokens of the inputs to come.
            out: folder for the model with its distance table grown.
        """
        if self.encoder.alibi is None:
            raise InputError("learned positions cannot be extended: use a model with encoder.positions=alibi")
        own = self.config.length
        if length < 3:
            raise InputError(f"length={length} leaves no room for a word: give at least 3")
        self.encoder.alibi.grow(length)  # refuses what is too long
        tokens = int(self._encode([text])[0].lengths[0])
        wanted = sorted({own, 2 * own, 4 * own, length})
        measured = {
            size: self.window_scores([text], size).perplexity for size in wanted if tokens >= size or size == own
        }
        report: dict[str, Any] = {f"perplexity at {size}": value for size, value in measured.items()}
        notes = [f"the text has {tokens} tokens: windows of {s} were not tried" for s in wanted if s not in measured]
        told = "" if length > own else f"nothing is needed: the model was trained on up to {own} tokens"
        if out is None:
            return Result(told or f"ready for {length} tokens: save with --out DIR", report, notes)
        grown = self._changed(length=max(length, own))
        grown.load_state_dict(self.state_dict())
        return Result(
            grown.save_pretrained(out), {**report, "length": max(length, own)}, [*notes, *([told] if told else [])]
        )

    def finetune(
        self,
        data: Path,
        *,
        text: str = "text",
        label: str = "label",
        steps: int = 200,
        batch_size: int = 32,
        lr: float = 5e-5,
        seed: int = 0,
        out: Path | None = None,
    ) -> Result:
        """Train a classifier on labelled rows, and measure it on rows that were held out.

        Args:
            data: .csv, .jsonl or .parquet, or a folder of such; a folder's test split is used where it has one, else
                every fifth row (drawn by its content) is held out.
            text, label: columns.
            steps, batch_size, lr: of the training (AdamW, 6 % warm-up, then linear to 0).
            seed: of the order and the new matrices.
            out: folder for the classifier, which can then `classify`.
        """
        train, test = _labelled(data, text, label)
        labels = tuple(sorted({name for _, name in train}))
        if len(labels) < 2:
            raise InputError(f"column '{label}' of '{data}' has one class only ({labels[0]}): give at least two")
        known = [pair for pair in test if pair[1] in labels]
        torch.manual_seed(seed)
        schedule = Schedule(shape="linear", warmup=0.06)
        size = min(batch_size, len(train))
        recipe = TrainingConfig(
            steps=steps, batch_size=size, optimiser=AdamW(lr=lr, weight_decay=0.01), schedule=schedule
        )
        tuned = self._changed(labels=labels)
        tuned.load_state_dict(self.state_dict(), strict=False)
        encoded = self._known()[0].encode([row for row, _ in train], limit=max(self.config.length, 3))
        targets = torch.tensor([labels.index(name) for _, name in train])

        def loss(rows: Sequence[int]) -> Loss:
            chosen = torch.tensor(rows)
            scores = tuned.class_scores(encoded.ids[encoded.places(chosen)], encoded.lengths[chosen])
            return Loss(F.cross_entropy(scores, targets[chosen].to(scores.device)), float(len(rows)))

        trainer = Trainer(seed=seed, device=str(self.device), label="finetune")
        batches = Batches(len(train), size, seed=seed, collate=Tensor.tolist)
        trainer.fit(tuned, loss, batches, recipe, stage="finetune")
        found = tuned.classify([row for row, _ in known]).value
        right = sum(row["label"] == name for row, (_, name) in zip(found, known, strict=True))
        most = max(labels, key=[name for _, name in train].count)
        report = {
            "accuracy": 100 * right / len(known),
            "accuracy of the most frequent class": 100 * sum(name == most for _, name in known) / len(known),
            "train rows": len(train),
            "held-out rows": len(known),
            "classes": len(labels),
        }
        notes = [f"{encoded.cut} texts were cut to {self.config.length} tokens in training"] if encoded.cut else []
        if len(known) < len(test):
            notes.append(f"{len(test) - len(known)} held-out rows have a class that training has not: left out")
        return Result(None if out is None else tuned.save_pretrained(out), report, notes)

    @torch.no_grad()
    def classify(self, inputs: Sequence[str]) -> Result:
        """The class of each text and its probability; for a model that was fine-tuned."""
        encoded, notes = self._encode(inputs)
        rows: list[dict[str, Any]] = [{} for _ in inputs]
        for chosen in runs_by_length(encoded.lengths, 4096):
            scores = self.class_scores(encoded.ids[encoded.places(chosen)], encoded.lengths[chosen])
            values, classes = scores.softmax(1).max(1)
            for row, value, best in zip(chosen.tolist(), values.tolist(), classes.tolist(), strict=True):
                rows[row] = {"label": self.config.labels[best], "probability": value, "text": inputs[row][:60]}
        return Result(rows, {}, notes)

    def class_scores(
        self, ids: Int64[Tensor, " n"], lengths: Int64[Tensor, " texts"]
    ) -> Float[Tensor, "texts classes"]:
        """Scores of the classes for texts given as tokens behind one another."""
        if self.classifier is None:
            raise InputError(
                "this model has no classes: `encyclo finetune RUN LABELLED_FILE --out DIR` makes a classifier"
            )
        layout, tokens = self._arrange(ids, lengths)
        scores: Tensor = self.classifier(layout.first(self.encoder.flat(tokens, layout)))
        return scores

    def _changed(self, **changes: Any) -> "MosaicBERT":
        """A new system of this class with some of the configuration changed, and the same tokenizer."""
        made: MosaicBERT = self.config.replace(**changes).build()
        if self.tokenizer is not None:
            made._take(self.tokenizer)
        return made.to(self.device).eval()

    @classmethod
    def import_(cls, checkpoint: str, *, tokenizer: str | None = None, out: Path | None = None) -> Result:
        """Convert published weights: MosaicBERT's, or those of any BERT for masked tokens. No code of theirs is run.

        Args:
            checkpoint: a folder with config.json and weights, or a hub id (mosaicml/mosaic-bert-base,
                bert-base-uncased).
            tokenizer: folder, bundled model or hub id, where the checkpoint brings none; by default that of
                bert-base-uncased.
            out: folder for the converted model.
        """
        made = from_checkpoint(checkpoint, tokenizer=tokenizer)
        if out is None:
            raise InputError("import writes a folder: name it with --out DIR")
        size = sum(p.numel() for p in made.parameters())
        return Result(made.save_pretrained(out), {"class": type(made).__name__, "parameters": size})


class BERT(MosaicBERT):
    """The rival: BERT (Devlin et al. 2019) from the same parts, every switch off, without next-sentence prediction.

    Learned positions, plain GELU feed-forward, computation on padded batches, 15 % masking. With copied weights its
    outputs are those of `transformers.BertForMaskedLM`.
    """

    class Config(MosaicBERT.Config):
        """The defaults are BERT-base, trained as MosaicBERT is."""

        encoder: TextEncoder.Config = TextEncoder.Config(
            feed_forward=Mlp.Config(),
            positions=LearnedPositions.Config(),
            unpad=False,
            low_precision_norm=False,
        )
        mask_ratio: float = Field(0.15, gt=0, lt=1, description="share of tokens hidden in training")


def from_checkpoint(source: str, *, tokenizer: str | None = None) -> MosaicBERT:
    """A MosaicBERT or BERT with published weights, told apart by the names of their tensors.

    Args:
        source: a folder, a bundled model, or a hub id.
        tokenizer: likewise, where `source` brings none.

    Raises:
        InputError: no such folder or repository, weights that are laid out otherwise, or no tokenizer.
    """
    folder = _folder(source)
    described = read_description(folder)
    state = renamed(read_tensors(folder))
    encoder = encoder_config(described, state)
    if "head.bias" not in state:
        raise InputError(f"'{source}' has no head for masked tokens: take a checkpoint of the kind BertForMaskedLM")
    own = any((folder / name).is_file() for name in ("tokenizer.json", "vocab.txt"))
    words = WordPiece.from_folder(folder if own and tokenizer is None else _tokenizer_folder(tokenizer))
    kind = MosaicBERT if encoder.positions.kind == "alibi" else BERT
    length = encoder.positions.length if isinstance(encoder.positions, LearnedPositions.Config) else 128
    length = int(described.get("max_position_embeddings", length)) if kind is BERT else length
    made: MosaicBERT = kind.Config(encoder=encoder, head=head_config(described), length=length).build()
    made._take(words)
    kept = {name: tensor.float() for name, tensor in state.items() if not name.startswith("classifier.")}
    lacking = sorted(set(made.state_dict()) - set(kept))
    if lacking:
        raise InputError(f"'{source}' lacks {lacking[0]}{f' and {len(lacking) - 1} more' if lacking[1:] else ''}")
    try:
        made.load_state_dict(kept)
    except RuntimeError as error:
        raise InputError(f"the weights of '{source}' do not fit: {str(error).splitlines()[-1].strip()}") from None
    return made.eval()


def _folder(source: str) -> Path:
    """The folder of a local or bundled model, else a snapshot of a hub repository."""
    folder = base_folder(source)
    if folder is not None:
        return folder
    from huggingface_hub import snapshot_download

    try:
        return Path(
            snapshot_download(source, allow_patterns=["*.json", "*.txt", "*.safetensors", "pytorch_model*.bin"])
        )
    except Exception as error:  # the hub raises many kinds, all of which mean: not here, not reachable
        raise InputError(
            f"no folder and no reachable hub repository is called '{source}' ({type(error).__name__})"
        ) from None


def _tokenizer_folder(source: str | None) -> Path:
    """The folder of a tokenizer; by default bert-base-uncased's, whose vocabulary all-MiniLM-L6-v2 shares."""
    if source is not None:
        return _folder(source)
    try:
        return _folder("all-minilm-l6-v2")
    except InputError:
        return _folder("google-bert/bert-base-uncased")


def corpus_of(data: Splits, config: MosaicBERT.Config) -> TextCorpus:
    """The data set as tokens, with the tokenizer that a configuration names or one fitted on the train split."""

    def fitted(texts: Iterable[str]) -> WordPiece:
        return WordPiece.train(texts, config.encoder.vocabulary, lowercase=config.lowercase)

    given = None if config.tokenizer is None else WordPiece.from_folder(_folder(config.tokenizer))
    return tokenise(data, given or fitted, limit=config.length, most=config.evaluated)


def _labelled(data: Path, text: str, label: str) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """Train and held-out rows (text, class) of a labelled table."""
    splits = room.load(str(data), "table")
    columns = splits.train.column_names
    for name in (text, label):
        if name not in columns:
            raise InputError(
                f"'{data}' has no column '{name}'; it has {', '.join(columns)}: name it with text= or label="
            )
    rows = {
        name: [
            (str(row[text]), str(row[label]))
            for row in getattr(splits, name)
            if row[text] is not None and row[label] is not None and str(row[text]).strip()
        ]
        for name in ("train", "validation", "test")
    }
    if data.is_dir() and rows["test"]:
        return rows["train"] + rows["validation"], rows["test"]
    every = [row for part in rows.values() for row in part]
    numbers = torch.tensor([zlib.crc32(row.encode()) for row, _ in every], dtype=torch.int64)
    held = (noise(numbers, _EVALUATION_SEED) < 0.2).tolist()
    train = [row for row, out in zip(every, held, strict=True) if not out]
    test = [row for row, out in zip(every, held, strict=True) if out]
    if not train or not test:
        raise InputError(f"'{data}' has {len(every)} usable rows: give enough to train on and to hold some out")
    return train, test


# -- the experiment ----------------------------------------------------------------------------------------------------

_LADDER: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("BERT", ()),
    ("+ unpadding", ("encoder.unpad=true",)),
    ("+ ALiBi", ("encoder.positions=alibi",)),
    ("+ GeGLU", ("encoder.feed_forward=geglu",)),
    ("+ 30 % masking", ("mask_ratio=0.3",)),
)
"""From the rival to MosaicBERT, one switch after another (low-precision LayerNorm is for GPUs, attention is exact)."""


def experiment(preset: Preset) -> Experiment:
    """MosaicBERT against BERT at equal wall-clock, with the ladder between them."""
    ours, rival = MosaicBERT.Config(), BERT.Config()
    if preset is Preset.PAPER:
        named = {"tokenizer": "google-bert/bert-base-uncased"}
        return Experiment(
            data="hf:allenai/c4:en",
            systems={"mosaicbert": ours.replace(**named), "bert": rival.replace(**named)},
            claims=[],
            seeds=5,
        )
    sizes: dict[Preset, tuple[dict[str, Any], TrainingConfig, float]] = {
        Preset.SMOKE: (
            {"vocabulary": 500, "dim": 32, "layers": 2, "heads": 4},
            _recipe(steps=30, batch_size=16, lr=3e-3),
            0,
        ),
        Preset.LAPTOP: (
            {"vocabulary": 7990, "dim": 128, "layers": 4, "heads": 4},
            _recipe(seconds=68, batch_size=32, lr=2e-3),
            22,
        ),
        Preset.GPU: (
            {"vocabulary": 16_320, "dim": 512, "layers": 8, "heads": 8},
            _recipe(seconds=100, batch_size=256, lr=1e-3, precision="bf16"),
            20,
        ),
    }
    shape, training, rung = sizes[preset]
    smoke = preset is Preset.SMOKE

    def sized(config: Any) -> Any:
        positions = config.encoder.positions
        if isinstance(positions, LearnedPositions.Config):
            positions = positions.replace(length=128)
        return config.replace(
            encoder=config.encoder.replace(**shape, dropout=0.0, positions=positions, feed_forward=_undropped(config)),
            training=training,
            evaluated=64 if smoke else 1500,
        )

    ours, rival = sized(ours), sized(rival)
    corpora: dict[str, TextCorpus] = {}

    def prepare(data: Splits, trainer: Trainer, seed: int) -> TextCorpus:
        if data.fingerprint not in corpora:  # the same for all seeds
            corpora[data.fingerprint] = corpus_of(data, ours)
        return corpora[data.fingerprint]

    def compare(trial: Trial) -> dict[str, dict[str, float]]:
        found = _exact(trial)
        if trial.seed == 0 and rung:
            found |= _ladder(trial, rival, rung)
        return found

    claims = [
        Claim(
            statement="more hidden tokens right than BERT after equal time (at least 1 point)",
            metric="mlm_accuracy",
            system="mosaicbert",
            rival="bert",
            by=1.0,
        ),
        Claim(
            statement="lower held-out loss than BERT after equal time",
            metric="mlm_loss",
            system="mosaicbert",
            rival="bert",
            better="lower",
        ),
        Claim(
            statement="it sees more samples in a second",
            metric="samples_per_second",
            system="mosaicbert",
            rival="bert",
            kind="speed",
        ),
        Claim(
            statement="it has learned more than the most frequent token",
            metric="mlm_accuracy",
            system="mosaicbert",
            rival="mosaicbert",
            rival_metric="majority_accuracy",
            by=1.0,
            kind="target",
        ),
        Claim(
            statement="without padding it computes the numbers of the padded encoder",
            metric="unpadding_error",
            system="mosaicbert",
            bound=1e-5,
            better="lower",
            kind="exact",
        ),
        Claim(
            statement="token-wise operations without padding are those with it times the share of real tokens",
            metric="operations_error",
            system="mosaicbert",
            bound=1e-6,
            better="lower",
            kind="exact",
        ),
        Claim(
            statement="inputs twice as long as in training keep the perplexity (at most 5 % more)",
            metric="perplexity_2x",
            system="mosaicbert",
            rival="mosaicbert",
            rival_metric="perplexity_1x",
            better="lower",
            times=1.05,
        ),
    ]
    return Experiment(
        data=_few if smoke else "kjv+pydocs",
        systems={"mosaicbert": ours, "bert": rival},
        claims=claims,
        seeds=2,
        prepare=prepare,
        compare=compare,
        pictures=_pictures,
        columns={
            "mlm_accuracy": "accuracy at 15 %, %",
            "mlm_loss": "loss at 15 %, nats",
            "samples_per_second": "samples/s",
            "steps": "steps",
            "accuracy_at_equal_steps": "accuracy at equal steps, %",
            "majority_accuracy": "most frequent token, %",
            "real_tokens": "real tokens, %",
            "perplexity_1x": "perplexity at 128",
            "perplexity_2x": "at 256",
            "perplexity_4x": "at 512",
        },
        fairness="Both have the same width, layers, batch, optimiser, learning rate, schedule over the time budget and "
        "fused exact attention; both run the last layer and the output head on hidden tokens only, which published "
        "BERT code does not. BERT is padded to the longest text of its batch and trained without dropout, with its own "
        "15 % masking. Every evaluation hides the same 15 % of the same held-out tokens. Accuracy at equal steps is "
        "read off the validation curves at the last step of the slower system; the faster one has not yet lowered its "
        "learning rate there.",
    )


def _few() -> Splits:
    """Enough for the tests."""
    whole = room.load("kjv", "text")
    return replace(
        whole,
        name="kjv, 1,000 verses",
        train=whole.train.select(range(0, 20_000, 20)),
        validation=whole.validation.select(range(100)),
        test=whole.test.select(range(200)),
        fingerprint=f"{whole.fingerprint}-few",
    )


def _recipe(*, lr: float, **changes: Any) -> TrainingConfig:
    paper = MosaicBERT.Config().training
    optimiser = paper.optimiser.replace(lr=lr)
    schedule = paper.schedule.replace(final=0.0)
    return TrainingConfig(**{"optimiser": optimiser, "schedule": schedule, "evaluate_every": 50, **changes})


def _undropped(config: MosaicBERT.Config) -> Mlp.Config | Glu.Config:
    return config.encoder.feed_forward.replace(dropout=0.0)


@torch.no_grad()
def _exact(trial: Trial) -> dict[str, dict[str, float]]:
    """What follows from the mechanism: equality with padding, operations, longer inputs; and accuracy at equal
    steps."""
    ours, corpus = trial.systems["mosaicbert"], trial.prepared
    assert isinstance(ours, MosaicBERT)
    found: dict[str, dict[str, float]] = {"mosaicbert": {}, "bert": {}}
    size = min(ours.config.training.batch_size, len(corpus.test))
    lengths = corpus.test.lengths[:size]
    ids = corpus.test.ids[corpus.test.places(torch.arange(size))]
    flat, whole = Layout.from_lengths(lengths), Layout.from_lengths(lengths, padded=True)
    encoder = ours.encoder.cpu()
    there = whole.pad(encoder.flat(whole.arrange(ids, encoder.pad), whole))
    here = flat.pad(encoder.flat(flat.arrange(ids), flat))
    layer = encoder.layers[0]
    operations = [
        flops(lambda n=n: layer(torch.zeros(n, encoder.config.dim), lambda qkv, _: qkv[:, 2].flatten(1)))
        for n in (flat.entries, whole.entries)
    ]
    found["mosaicbert"] |= {
        "unpadding_error": float((here - there).abs().max()),
        "operations_error": abs(operations[0] / operations[1] - flat.real_fraction),
        "real_tokens": 100 * flat.real_fraction,
    }
    found["bert"]["real_tokens"] = found["mosaicbert"]["real_tokens"]
    texts, base = _long_texts(trial.data), ours.config.length
    for times in (1, 2, 4):
        found["mosaicbert"][f"perplexity_{times}x"] = ours.window_scores(texts, times * base).perplexity
    curves = {arm: trial.curves[arm].get("eval/mlm_accuracy", ()) for arm in found}
    last = min((points[-1][0] for points in curves.values() if points), default=0)
    for arm, points in curves.items():
        if points:
            found[arm]["accuracy_at_equal_steps"] = _at(points, last)
    return found


def _at(points: Sequence[tuple[int, float, float]], step: int) -> float:
    """A curve at a step, between its points in a straight line."""
    before = [p for p in points if p[0] <= step] or [points[0]]
    after = [p for p in points if p[0] >= step] or [points[-1]]
    (a, _, low), (b, _, high) = before[-1], after[0]
    return low if a == b else low + (high - low) * (step - a) / (b - a)


def _long_texts(data: Splits, most: int = 20) -> list[str]:
    """Whole documents (chapters, pages) of the test split."""
    parts: dict[str, list[str]] = {}
    for row in data.test:
        parts.setdefault(str(row.get("document", "")), []).append(row["text"])
    joined = sorted((" ".join(part) for part in parts.values()), key=len, reverse=True)
    return joined[:most]


def _ladder(trial: Trial, rival: BERT.Config, seconds: float) -> dict[str, dict[str, float]]:
    """From BERT to MosaicBERT, switch after switch, each for the same short time."""
    found: dict[str, dict[str, float]] = {}
    changes: list[str] = []
    for name, more in _LADDER:
        changes += more
        config = rival.override(changes)
        config = config.replace(training=config.training.replace(seconds=seconds, evaluate_every=None))
        system = config.build()
        system.start_from(trial.prepared)
        folder = trial.folder / "ladder" / name.strip("+ ").replace(" ", "-").replace("%", "percent")
        system.fit(trial.data, Trainer(folder, seed=trial.seed, progress=False))
        measured = system.evaluate(trial.data)
        found[f"{name}, {seconds:g} s"] = {
            key: measured[key] for key in ("mlm_accuracy", "mlm_loss", "samples_per_second", "steps")
        }
    return found


def _pictures(trial: Trial) -> list[Picture]:
    found = []
    names = {"mosaicbert": "MosaicBERT", "bert": "BERT"}
    points = {names[arm]: trial.curves[arm].get("eval/mlm_accuracy", ()) for arm in names}
    if all(points.values()):
        found += [
            picture.curves(
                {name: [(p[1], p[2]) for p in line] for name, line in points.items()},
                "accuracy-over-time",
                "Hidden tokens predicted right on held-out text (15 % hidden, the same for both), over training time.",
                x="seconds of training",
                y="accuracy, %",
                docs=True,
            ),
            picture.curves(
                {name: [(float(p[0]), p[2]) for p in line] for name, line in points.items()},
                "accuracy-over-steps",
                "The same over steps of equal batches: what is left when speed is taken out.",
                x="steps",
                y="accuracy, %",
            ),
        ]
    rungs = {name: values for name, values in trial.metrics.items() if "mlm_accuracy" in values and name not in names}
    if rungs:
        made, axis = picture.figure(7.0, 3.2)
        axis.barh(
            [name.split(",")[0] for name in rungs],
            [v["mlm_accuracy"] for v in rungs.values()],
            color=picture.COLOURS[0],
        )
        axis.invert_yaxis()
        axis.set_xlabel("accuracy after equal short time, %")
        caption = "From BERT to MosaicBERT, one switch after another, each trained for the same short time."
        found.append(picture.from_figure(made, "ladder", caption, docs=True))
    return found
