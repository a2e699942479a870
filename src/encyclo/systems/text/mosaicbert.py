"""MosaicBERT: a BERT recipe that pretrains faster on the same machine (arXiv 2312.17482).

Training, evaluation and verbs stand in `encyclo.systems.masked_text`, the encoder and its exchangeable parts in
`encyclo.nn.text_encoder`, attention without padding in `encyclo.nn.varlen`, the distance penalty in
`encyclo.nn.alibi`, the objective in `encyclo.losses.masked_lm`, the reading of published weights in
`encyclo.nn.text_checkpoint`.
"""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int64
from pydantic import Field
from torch import Tensor

from encyclo import data as room
from encyclo import picture
from encyclo.card import Card
from encyclo.data import Splits
from encyclo.errors import InputError
from encyclo.experiment import Claim, Experiment, Preset, Trial
from encyclo.metrics.cost import flops
from encyclo.nn.alibi import Alibi
from encyclo.nn.feed_forward import Glu, Mlp
from encyclo.nn.text_checkpoint import encoder_config, head_config, read_description, read_tensors, renamed
from encyclo.nn.text_encoder import LearnedPositions, TextEncoder
from encyclo.nn.varlen import Layout
from encyclo.picture import Picture
from encyclo.systems.masked_text import MaskedText, MaskedTextConfig, corpus_of, model_folder, tokenizer_folder
from encyclo.tokens.text_corpus import TextCorpus
from encyclo.tokens.wordpiece import WordPiece
from encyclo.training import AdamW, Schedule, Trainer, TrainingConfig
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


class MosaicBERT(MaskedText):
    """A masked language model whose encoder exchanges five parts of BERT for faster ones (section 2).

    Fused attention, ALiBi in place of position embeddings, GeGLU, no computation on padding, LayerNorm in 16 bit:
    each is a switch of `config.encoder`. 30 % of the tokens are hidden in training (section 3.1), always 15 % in
    evaluation.
    """

    card = CARD

    class Config(MaskedTextConfig):
        """The defaults are the published MosaicBERT-base."""

        encoder: TextEncoder.Config = TextEncoder.Config(
            attention="auto",
            positions=Alibi.Config(),
            feed_forward=Glu.Config(kind="geglu", dropout=0.1),
            unpad=True,
            low_precision_norm=True,
        )
        mask_ratio: float = Field(0.30, gt=0, lt=1, description="share of tokens hidden in training")
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

    @classmethod
    def import_(
        cls, checkpoint: str, *, tokenizer: str | None = None, length: int | None = None, out: Path | None = None
    ) -> Result:
        """Convert published weights: MosaicBERT's, or those of any BERT for masked tokens. No code of theirs is run.

        Args:
            checkpoint: a folder with config.json and weights, or a hub id (mosaicml/mosaic-bert-base,
                bert-base-uncased).
            tokenizer: folder, bundled model or hub id, where the checkpoint brings none; by default that of
                bert-base-uncased.
            length: tokens of a text that the weights were trained on, to which later training cuts; by default what
                the name (...-seqlen-512) or BERT's table of positions tells, else 128.
            out: folder for the converted model.
        """
        if out is None:
            raise InputError("import writes a folder: name it with --out DIR")
        made = from_checkpoint(checkpoint, tokenizer=tokenizer, length=length)
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


def from_checkpoint(source: str, *, tokenizer: str | None = None, length: int | None = None) -> MosaicBERT:
    """A MosaicBERT or BERT with published weights, told apart by the names of their tensors.

    Args:
        source: a folder, a bundled model, or a hub id.
        tokenizer: likewise, where `source` brings none.
        length: tokens of a text that the weights were trained on; see `MosaicBERT.import_`.

    Raises:
        InputError: no such folder or repository, weights that are laid out otherwise, or no tokenizer.
    """
    folder = model_folder(source)
    described = read_description(folder)
    state = renamed(read_tensors(folder))
    encoder = encoder_config(described, state)
    if "head.bias" not in state:
        raise InputError(f"'{source}' has no head for masked tokens: take a checkpoint of the kind BertForMaskedLM")
    own = any((folder / name).is_file() for name in ("tokenizer.json", "vocab.txt"))
    words = WordPiece.from_folder(folder if own and tokenizer is None else tokenizer_folder(tokenizer))
    kind = MosaicBERT if encoder.positions.kind == "alibi" else BERT
    if length is None and isinstance(encoder.positions, LearnedPositions.Config):
        length = encoder.positions.length
    elif length is None:
        told = re.search(r"seqlen-(\d+)", source)
        length = int(told[1]) if told else 128
    if length < 3:
        raise InputError(f"length={length} leaves no room for a word: give at least 3")
    if isinstance(encoder.positions, LearnedPositions.Config) and length > encoder.positions.length:
        raise InputError(
            f"length={length}: '{source}' has {encoder.positions.length} learned positions, give at most so many"
        )
    made: MosaicBERT = kind.Config(encoder=encoder, head=head_config(described), length=length).build()
    made.use_tokenizer(words)
    kept = {name: tensor.float() for name, tensor in state.items() if not name.startswith("classifier.")}
    lacking = sorted(set(made.state_dict()) - set(kept))
    if lacking:
        raise InputError(f"'{source}' lacks {lacking[0]}{f' and {len(lacking) - 1} more' if lacking[1:] else ''}")
    try:
        made.load_state_dict(kept)
    except RuntimeError as error:
        raise InputError(f"the weights of '{source}' do not fit: {str(error).splitlines()[-1].strip()}") from None
    return made.eval()


# -- the experiment ----------------------------------------------------------------------------------------------------


_LADDER: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("BERT", ()),
    ("+ unpadding", ("encoder.unpad=true",)),
    ("+ ALiBi", ("encoder.positions=alibi",)),
    ("+ GeGLU", ("encoder.feed_forward=geglu",)),
    ("+ 30 % masking", ("mask_ratio=0.3",)),
)
"""From the rival to MosaicBERT, one switch after another (low-precision LayerNorm is for GPUs, attention is exact)."""


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
    return TrainingConfig(**{"optimiser": optimiser, "schedule": schedule, "evaluate_every": 10, **changes})


def _undropped(config: MosaicBERT.Config) -> Mlp.Config | Glu.Config:
    return config.encoder.feed_forward.replace(dropout=0.0)


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
            _recipe(seconds=110, batch_size=64, lr=2e-3),
            40,
        ),
        Preset.GPU: (
            {"vocabulary": 16_320, "dim": 512, "layers": 8, "heads": 8},
            _recipe(seconds=100, batch_size=256, lr=1e-3, precision="bf16", evaluate_every=50),
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
            steps = int(trial.metrics["bert"]["steps"])
            found["MosaicBERT, as many steps as BERT"] = _short(trial, ours, "equal-steps", steps=steps, seconds=None)
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
            "majority_accuracy": "most frequent token, %",
            "real_tokens": "real tokens, %",
            "perplexity_1x": "perplexity at 128",
            "perplexity_2x": "at 256",
            "perplexity_4x": "at 512",
        },
        fairness="Both have the same width, layers, batch, optimiser, learning rate, schedule over the time budget and "
        "fused exact attention; both run the last layer and the output head on hidden tokens only, which published "
        "BERT code does not. BERT is padded to the longest text of its batch and trained without dropout, with its own "
        "15 % masking. Every evaluation hides the same 15 % of the same held-out tokens. Beside equal time stands, for "
        "one seed, MosaicBERT trained for no more steps than BERT got.",
    )


@torch.no_grad()
def _exact(trial: Trial) -> dict[str, dict[str, float]]:
    """What follows from the mechanism: equality with padding, operations, longer inputs."""
    ours, corpus = trial.systems["mosaicbert"], trial.prepared
    assert isinstance(ours, MosaicBERT)
    found: dict[str, dict[str, float]] = {"mosaicbert": {}, "bert": {}}
    batch = corpus.test.sample(ours.config.training.batch_size)
    ids, lengths = batch.ids, batch.lengths
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
        "real_tokens": 100 * _real_tokens(corpus.train.lengths, len(lengths)),
    }
    found["bert"]["real_tokens"] = found["mosaicbert"]["real_tokens"]
    texts, base = _long_texts(trial.data), ours.config.length
    for times in (1, 2, 4):
        found["mosaicbert"][f"perplexity_{times}x"] = ours.window_scores(texts, times * base).perplexity
    return found


def _real_tokens(lengths: Int64[Tensor, " texts"], size: int) -> float:
    """Share of real tokens in batches drawn at random, each padded to its longest text."""
    drawn = torch.randperm(len(lengths), generator=torch.Generator().manual_seed(0))[: 100 * size]
    batches = lengths[drawn[: len(drawn) // size * size]].view(-1, size)
    return float(batches.sum() / (size * batches.amax(1).sum()))


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
        folder = name.strip("+ ").replace(" ", "-").replace("%", "percent")
        found[f"{name}, {seconds:g} s"] = _short(trial, rival.override(changes), folder, seconds=seconds)
    return found


def _short(trial: Trial, config: MosaicBERT.Config, folder: str, **budget: float | None) -> dict[str, float]:
    """One further training of a trial, with another budget."""
    config = config.replace(training=config.training.replace(evaluate_every=None, **budget))
    system = config.build()
    system.start_from(trial.prepared)
    system.fit(trial.data, Trainer(trial.folder / "further" / folder, seed=trial.seed, progress=False))
    measured = system.eval().evaluate(trial.data)
    return {key: measured[key] for key in ("mlm_accuracy", "mlm_loss", "samples_per_second", "steps")}


def _pictures(trial: Trial) -> list[Picture]:
    found = []
    names = {"mosaicbert": "MosaicBERT", "bert": "BERT"}
    points = {names[arm]: list(trial.curves[arm].get("eval/mlm_accuracy", ())) for arm in names}
    majority = trial.metrics.get("mosaicbert", {}).get("majority_accuracy")
    if all(points.values()):
        ends = [point for line in points.values() for point in line]
        if majority is not None:  # what a model that has learned nothing else gets
            points["most frequent token"] = [(p[0], p[1], majority) for p in (min(ends), max(ends))]
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
    steps = tuple(f"{name}, " for name, _ in _LADDER)
    rungs = {name: values for name, values in trial.metrics.items() if name.startswith(steps)}
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
        if majority is not None:
            axis.axvline(majority, color=picture.INK, linestyle="--", linewidth=1)
            caption += " Dashed: always naming the most frequent token."
        found.append(picture.from_figure(made, "ladder", caption, docs=True))
    return found
