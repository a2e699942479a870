"""What every masked language model of the library offers: texts in, masked-token training, and the verbs fill, encode,
extend, finetune and classify.

A system of the text wing derives from `MaskedText`, gives its encoder, its masking and its training, and has these.
"""

import copy
import logging
import zlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from pydantic import Field
from torch import Tensor

from encyclo import data as room
from encyclo.data import Batches, Splits
from encyclo.data.text import Unit, read_units
from encyclo.errors import InputError
from encyclo.losses.masked_lm import Masked, Masking, masked_lm_loss, noise
from encyclo.metrics.language import TokenScores, majority_accuracy
from encyclo.nn.text_classifier import TextClassifier
from encyclo.nn.text_encoder import MaskedLMHead, TextEncoder
from encyclo.nn.varlen import Layout, runs_by_length
from encyclo.pretrained import base_folder
from encyclo.system import System, SystemConfig
from encyclo.tokens.text_corpus import TextCorpus, texts_of, tokenise
from encyclo.tokens.wordpiece import Encoded, WordPiece
from encyclo.training import AdamW, Loss, Schedule, Trainer, TrainingConfig
from encyclo.verbs import Result

__all__ = ["MaskedText", "MaskedTextConfig", "corpus_of", "model_folder", "tokenizer_folder"]

logger = logging.getLogger(__name__)

_EVALUATION_SEED = 15
"""Decides which tokens are hidden in every evaluation, so that all arms are asked the same."""


class MaskedTextConfig(SystemConfig):
    """What all masked language models have."""

    encoder: TextEncoder.Config = TextEncoder.Config()
    head: MaskedLMHead.Config = MaskedLMHead.Config()
    tokenizer: str | None = Field(None, description="folder, bundled model or hub id; None: fitted on train")
    lowercase: bool = Field(True, description="of a tokenizer fitted on train")
    length: int = Field(128, ge=3, description="tokens to which texts are cut in training, both ends included")
    mask_ratio: float = Field(0.15, gt=0, lt=1, description="share of tokens hidden in training")
    evaluation_ratio: float = Field(0.15, gt=0, lt=1, description="share of tokens hidden in evaluation")
    masked_only: bool = Field(True, description="last layer (behind attention) and head on hidden tokens only")
    evaluated: int | None = Field(None, description="most held-out texts that are looked at; None: all")
    labels: tuple[str, ...] = Field((), description="classes of a fine-tuned classifier")


class MaskedText(System):
    """A text encoder with a head for hidden tokens, and what a user does with it."""

    reads = "text"
    Config = MaskedTextConfig

    config: Any

    def __init__(self, config: Any) -> None:
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
        self.use_tokenizer(prepared.tokenizer)

    def assets(self) -> dict[str, bytes]:
        """The tokenizer."""
        return {} if self.tokenizer is None else {"tokenizer.json": self.tokenizer.to_json()}

    def load_assets(self, assets: Mapping[str, bytes]) -> None:
        """Take the tokenizer back."""
        if "tokenizer.json" in assets:
            self.use_tokenizer(WordPiece.from_json(assets["tokenizer.json"]))

    def use_tokenizer(self, tokenizer: WordPiece) -> None:
        """Take a tokenizer; special tokens, and rows of the word table beyond it, are never hidden nor drawn.

        Raises:
            InputError: more tokens than the word table has rows.
        """
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
        folders = [text for text in texts if "/" in text and len(text.split()) == 1 and Path(text).is_dir()]
        if folders:
            raise InputError(f"'{folders[0]}' is a folder: give the files in it, or texts")
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

    def _changed(self, **changes: Any) -> "MaskedText":
        """A new system of this class with some of the configuration changed, and the same tokenizer."""
        made: MaskedText = self.config.replace(**changes).build()
        if self.tokenizer is not None:
            made.use_tokenizer(self.tokenizer)
        return made.to(self.device).eval()


def model_folder(source: str) -> Path:
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


def tokenizer_folder(source: str | None) -> Path:
    """The folder of a tokenizer; by default bert-base-uncased's, whose vocabulary all-MiniLM-L6-v2 shares."""
    if source is not None:
        return model_folder(source)
    try:
        return model_folder("all-minilm-l6-v2")
    except InputError:
        return model_folder("google-bert/bert-base-uncased")


def corpus_of(data: Splits, config: MaskedTextConfig) -> TextCorpus:
    """The data set as tokens, with the tokenizer that a configuration names or one fitted on the train split."""

    def fitted(texts: Iterable[str]) -> WordPiece:
        return WordPiece.train(texts, config.encoder.vocabulary, lowercase=config.lowercase)

    given = None if config.tokenizer is None else WordPiece.from_folder(model_folder(config.tokenizer))
    corpus = tokenise(data, given or fitted, limit=config.length, most=config.evaluated)
    for note in corpus.notes:
        logger.warning(note)
    return corpus


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
