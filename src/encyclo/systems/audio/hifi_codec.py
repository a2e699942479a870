"""HiFi-Codec: speech as four discrete codes a frame, by group-residual vector quantisation, and back."""

from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from encyclo.card import Card
from encyclo.data import Splits, load
from encyclo.data.audio import read_audio
from encyclo.errors import InputError
from encyclo.experiment import Claim, Experiment, Preset, Trial
from encyclo.losses.adversarial import Hinge
from encyclo.losses.spectral import MelLoss
from encyclo.nn.hifigan import HifiganEncoder, HifiganGenerator, ResidualBlock
from encyclo.nn.seanet import SeanetDecoder, SeanetEncoder
from encyclo.nn.vector_quantize import (
    Codebooks,
    EmaLearning,
    GroupResidualVectorQuantize,
    NoQuantize,
    ProductVectorQuantize,
    Quantizer,
    ResidualVectorQuantize,
)
from encyclo.nn.wave_discriminators import (
    MultiPeriodDiscriminator,
    MultiScaleDiscriminator,
    MultiStftDiscriminator,
    PeriodDiscriminator,
    ScaleDiscriminator,
    StftDiscriminator,
    WaveDiscriminators,
)
from encyclo.picture import Picture, curves
from encyclo.systems.audio_checkpoints import encodec_fields, load_academicodec, load_encodec, open_transformers_encodec
from encyclo.systems.audio_codec import Evaluation
from encyclo.systems.audio_pictures import codebook_picture, heard, spectrograms
from encyclo.systems.audio_training import AdversarialCodec, AdversarialCodecConfig, Objective
from encyclo.tokens.mel import LogMel
from encyclo.training import Trainer
from encyclo.training.config import AdamW, Schedule, TrainingConfig
from encyclo.verbs import Result

CARD = Card(
    slug="hifi-codec",
    title="HiFi-Codec: Group-residual Vector quantization for High Fidelity Audio Codec",
    authors="Dongchao Yang, Songxiang Liu, Rongjie Huang, Jinchuan Tian, Chao Weng, Yuexian Zou",
    year=2023,
    arxiv="2305.02765",
    wing="audio",
    summary="Speech as four codes a frame: each half of the latent is coded by a residual quantiser of two levels.",
    verbs=("encode", "decode", "compress", "decompress", "reconstruct", "inspect", "import"),
    code="https://github.com/yangdongchao/AcademiCodec",
    code_licence="MIT (stated in the readme)",
    keywords=("neural audio codec", "vector quantisation", "GRVQ", "HiFi-GAN", "adversarial training", "speech tokens"),
)


class HifiCodec(AdversarialCodec):
    """A mirrored HiFi-GAN encoder, GRVQ with a codebook per level and group, and a HiFi-GAN decoder (arXiv 2305.02765).

    A wave [b, 1, n] at `rate` becomes frames [b, dim, n / hop], frames become levels * groups codes, codes become a
    wave. Trained on random segments: each batch one step of the discriminators, then one of the codec. Weight
    normalisation is on while training and folded after it.

    Errors: InputError for recordings without samples or with some that are not finite, foreign files and codes.
    """

    card = CARD

    class Config(AdversarialCodecConfig):
        """The published numbers at 24 kHz, 320 samples a frame; what is marked so is not published."""

        discriminators: WaveDiscriminators.Config | None = WaveDiscriminators.Config()
        training: TrainingConfig = TrainingConfig(
            steps=14_000_000,
            batch_size=80,
            optimiser=AdamW(lr=2e-4, betas=(0.5, 0.9)),
            schedule=Schedule(shape="exponential", final=0.98**2000),
        )

    # -- published weights -----------------------------------------------------------------------------------------

    @classmethod
    def from_academicodec(cls, weights: str | Path, config: "HifiCodec.Config | None" = None) -> "HifiCodec":
        """Published weights (see `systems.audio_checkpoints.load_academicodec`); the default is 24k-320d."""
        codec: HifiCodec = (config or published()["24k-320d"]).build()
        load_academicodec(codec, Path(weights))
        return codec.eval()

    @classmethod
    def import_(
        cls,
        weights: Path,
        *,
        layout: Literal["24k-320d", "24k-240d", "16k-320d"] = "24k-320d",
        levels: int | None = None,
        out: Path | None = None,
    ) -> Result:
        """Open published weights as a run.

        Args:
            weights: a .safetensors file with the keys `generator.*`, `encoder.*`, `quantizer.*`; the official
                checkpoint itself (read without running any code in it); or a folder of transformers' `EncodecModel`.
            layout: which published configuration a HiFi-Codec checkpoint has.
            levels: of an EnCodec, how many levels are used; None: all.
            out: the run folder.

        Raises:
            InputError: other files or sizes, or no run folder.
        """
        if out is None:
            raise InputError("'import' writes a run folder: name it with --out DIR")
        codec: HifiCodec
        if weights.is_dir():
            codec = Encodec.from_transformers(weights, levels=levels)
        else:
            codec = HifiCodec.from_academicodec(weights, published()[layout])
        report = {"class": type(codec).__name__, "bits_per_second": codec.bits_per_second}
        return Result(codec.save_pretrained(out), report)


class Encodec(HifiCodec):
    """The rival: EnCodec (arXiv 2210.13438) as AcademiCodec trains it: SEANet with LSTM, RVQ with running averages,
    k-means init and restarts, hinge loss, STFT discriminators from step 500, mel and wave loss.

    `from_transformers` opens EnCodec as transformers stores it (`facebook/encodec_24khz`, say).
    """

    class Config(HifiCodec.Config):
        """EnCodec's numbers, at HiFi-Codec's bit rate."""

        dim: int = 128
        encoder: SeanetEncoder.Config = SeanetEncoder.Config()
        decoder: SeanetDecoder.Config = SeanetDecoder.Config()
        quantizer: Quantizer = ResidualVectorQuantize.Config(
            levels=4,
            codebooks=Codebooks.Config(learning=EmaLearning(), init="k-means", revive_below=2.0),
            residual_gradient="open",
        )
        discriminators: WaveDiscriminators.Config | None = WaveDiscriminators.Config(period=None, scale=None)
        objective: Objective = Objective(
            adversarial=Hinge(), relative_features=True, wave=1.0, quantizer=1000.0, from_step=500
        )
        level_dropout: bool = True

    @classmethod
    def from_transformers(cls, folder: str | Path, *, levels: int | None = None) -> "Encodec":
        """EnCodec from a folder with config.json and model.safetensors; `levels` of its codebooks, or all.

        Raises:
            InputError: another kind of model, or one with stereo or normalised loudness (the 48 kHz model).
        """
        base = open_transformers_encodec(Path(folder))
        fields = encodec_fields(base, levels)
        books = Codebooks.Config(size=fields.pop("size"), learning=EmaLearning(), init="k-means", revive_below=2.0)
        quantizer = ResidualVectorQuantize.Config(
            levels=fields.pop("levels"), codebooks=books, residual_gradient="open"
        )
        mel = MelLoss.Config(resolutions=tuple(r.replace(rate=fields["rate"]) for r in MelLoss.Config().resolutions))
        objective = cls.Config().objective.replace(mel=mel)
        config = cls.Config(quantizer=quantizer, objective=objective, segment=50 * fields["encoder"].hop, **fields)
        codec: Encodec = config.build()
        load_encodec(codec, base)
        return codec.eval()


# -- the experiment ----------------------------------------------------------------------------------------------------

UNSEEN = "ru"
"""Language that is left out of training and tested apart."""


def prompts() -> Splits:
    """Recorded telephone prompts in five languages, of which one is in the test split alone."""
    data = load("prompts", "audio")

    def without(rows: Any) -> Any:
        return rows.select([i for i, name in enumerate(rows["language"]) if name != UNSEEN])

    note = f"'{UNSEEN}' is left out of training and validation and tested apart"
    train, validation = without(data.train), without(data.validation)
    return Splits(data.name, data.kind, train, validation, data.test, data.fingerprint, (*data.notes, note))


def published() -> dict[str, HifiCodec.Config]:
    """The published configurations, by sample rate and hop."""
    layouts = {
        "24k-320d": (24000, (8, 5, 4, 2), (16, 11, 8, 4), 80, 16000, (240, 1024)),
        "24k-240d": (24000, (8, 5, 3, 2), (16, 11, 7, 4), 32, 12000, (240, 1024)),
        "16k-320d": (16000, (8, 5, 4, 2), (16, 11, 8, 4), 64, 16000, (200, 800)),
    }
    made = {}
    for name, (rate, rates, kernels, batch, segment, (hop, window)) in layouts.items():
        fronts = (
            LogMel.Config(rate=rate, n_fft=1024, hop=hop, window=window),
            LogMel.Config(rate=rate, n_fft=512, hop=120),
            LogMel.Config(rate=rate, n_fft=256, hop=60),
        )
        made[name] = HifiCodec.Config(
            rate=rate,
            encoder=HifiganEncoder.Config(rates=rates, kernels=kernels),
            decoder=HifiganGenerator.Config(rates=rates, kernels=kernels),
            objective=Objective(mel=MelLoss.Config(resolutions=fronts)),
            segment=segment,
            training=HifiCodec.Config().training.replace(batch_size=batch),
        )
    return made


def _arms(base: HifiCodec.Config, size: int, init: Literal["k-means", "samples"]) -> dict[str, HifiCodec.Config]:
    """The published quantiser and its rivals on one and the same codec."""
    learned = Codebooks.Config(size=size, init=init, rounds=20)
    # EnCodec's threshold is 2 for the 4.7 vectors that a code gets from one of its batches on average
    per_code = base.training.batch_size * base.segment / base.encoder.hop / size
    averaged = learned.replace(learning=EmaLearning(), revive_below=2.0 * per_code / 4.7)
    quantizers: dict[str, Any] = {
        "hifi-codec": GroupResidualVectorQuantize.Config(levels=2, groups=2, codebooks=learned),
        "rvq-4": ResidualVectorQuantize.Config(levels=4, codebooks=learned),
        "rvq-8": ResidualVectorQuantize.Config(levels=8, codebooks=learned),
        "pq-4": ProductVectorQuantize.Config(groups=4, codebooks=learned),
        "rvq-4-ema": ResidualVectorQuantize.Config(levels=4, codebooks=averaged, residual_gradient="open"),
    }
    return {name: base.replace(quantizer=quantizer) for name, quantizer in quantizers.items()}


def _codec(
    rate: int, rates: tuple[int, ...], kernels: tuple[int, ...], widths: tuple[int, int], **fields: Any
) -> HifiCodec.Config:
    """A narrow codec; `widths`: of the encoder's first and the decoder's first layer."""
    blocks = tuple(ResidualBlock.Config(kernel=k, dilations=(1, 3)) for k in fields.pop("block_kernels"))
    stack: dict[str, Any] = {"rates": rates, "kernels": kernels, "blocks": blocks, "init_std": None}
    fronts = tuple(
        LogMel.Config(rate=rate, n_fft=n, hop=n // 4, bands=bands)
        for n, bands in ((rate * 512 // 8000, 80), (rate * 256 // 8000, 40), (rate * 128 // 8000, 20))
    )
    objective, first = fields.pop("objective"), fields.pop("continuous_objective")
    return HifiCodec.Config(
        rate=rate,
        encoder=HifiganEncoder.Config(channels=widths[0], group=min(16, 2 * widths[0]), **stack),
        decoder=HifiganGenerator.Config(channels=widths[1], **stack),
        objective=objective.replace(mel=objective.mel.replace(resolutions=fronts)),
        continuous_objective=first.replace(mel=first.mel.replace(resolutions=fronts)),
        **fields,
    )


def experiment(preset: Preset) -> Experiment:
    """Smoke, laptop: prompts at 8 kHz. GPU: at 16 kHz, full width, all discriminators. Paper: three configurations."""
    if preset is Preset.PAPER:
        return Experiment(data="hf:mythicinfinity/libritts", systems=dict(published().items()), claims=())
    if preset is Preset.GPU:
        return _gpu()
    smoke = preset is Preset.SMOKE
    base = _codec(
        8000,
        (4, 5, 8),
        (8, 11, 16),
        (2, 16) if smoke else (8, 64),
        block_kernels=(3,),
        dim=16 if smoke else 64,
        segment=800 if smoke else 3200,
        discriminators=_TINY if smoke else None,
        objective=Objective(wave_square=_WAVE),
        continuous_objective=_FIRST,
        continuous=_budget(3 if smoke else 650, 2 if smoke else 8, 4e-3),
        training=_budget(4 if smoke else 200, 2 if smoke else 8, 1e-3),
        survey_files=4 if smoke else 200,
        decorrelate=True,
        latent_deviation=1.0,
        evaluation=Evaluation(files=2 if smoke else 32, unseen_files=2 if smoke else 16),
    )
    arms = _arms(base, 8 if smoke else 256, "k-means")
    if smoke:
        arms = {name: arms[name] for name in ("hifi-codec", "rvq-4")}
    return Experiment(
        data=prompts,
        systems=arms,
        seeds=1 if smoke else 3,
        prepare=_prepare(base),
        compare=_compare(base),
        claims=_EXACT if smoke else (*_QUALITY, *_EXACT),
        pictures=_pictures,
        columns=_COLUMNS,
        fairness=_FAIRNESS,
    )


def _budget(steps: int, batch: int, lr: float, **more: Any) -> TrainingConfig:
    schedule = Schedule(shape="exponential", warmup=0.02, final=0.1)
    optimiser = AdamW(lr=lr, betas=(0.5, 0.9))
    return TrainingConfig(steps=steps, batch_size=batch, optimiser=optimiser, schedule=schedule, **more)


_WAVE = 10_000.0
"""Weight of the squared error of the wave; about as large as the mel terms at the start."""
_FIRST = Objective(mel=MelLoss.Config(weights=(4.5, 0.1, 0.1)), wave_square=_WAVE)
"""Of the continuous stage: led by the wave. Led by the mel terms the phase is not learned in minutes."""
_TINY = WaveDiscriminators.Config(
    period=MultiPeriodDiscriminator.Config(periods=(2, 3), each=PeriodDiscriminator.Config(channels=(4, 8))),
    scale=MultiScaleDiscriminator.Config(
        scales=2, each=ScaleDiscriminator.Config(layers=((8, 15, 1, 1), (8, 41, 4, 4), (8, 5, 1, 1)))
    ),
    stft=MultiStftDiscriminator.Config(n_ffts=(128,), each=StftDiscriminator.Config(filters=2)),
)
"""All three families, for the tests."""


def _gpu() -> Experiment:
    """Ten minutes on one H100: each arm the same seconds, all discriminators."""
    blocks = {"rates": (8, 5, 4, 2), "kernels": (16, 11, 8, 4), "init_std": None}
    fronts = tuple(
        LogMel.Config(rate=16000, n_fft=n, hop=n // 4, bands=bands) for n, bands in ((1024, 80), (512, 80), (256, 40))
    )
    own = TrainingConfig(
        seconds=85,
        batch_size=32,
        optimiser=AdamW(lr=4e-4, betas=(0.5, 0.9)),
        schedule=Schedule(shape="exponential", warmup=0.02, final=0.1),
        precision="bf16",
    )
    base = HifiCodec.Config(
        rate=16000,
        encoder=HifiganEncoder.Config(**blocks),
        decoder=HifiganGenerator.Config(**blocks),
        objective=Objective(mel=MelLoss.Config(resolutions=fronts)),
        segment=16000,
        continuous=own.replace(seconds=60, optimiser=AdamW(lr=1e-3, betas=(0.5, 0.9))),
        continuous_objective=_FIRST.replace(mel=MelLoss.Config(weights=_FIRST.mel.weights, resolutions=fronts)),
        training=own,
        decorrelate=True,
        latent_deviation=1.0,
        evaluation=Evaluation(files=100, unseen_files=50, pesq=True),
    )
    arms: dict[str, Any] = {k: v for k, v in _arms(base, 1024, "k-means").items() if k not in ("pq-4", "rvq-4-ema")}
    arms["no-gan"] = arms["hifi-codec"].replace(discriminators=None)
    rival = Encodec.Config()
    arms["encodec"] = rival.replace(
        rate=16000,
        objective=rival.objective.replace(mel=base.objective.mel),
        segment=16000,
        continuous=base.continuous,
        continuous_objective=base.continuous_objective,
        training=own,
        evaluation=base.evaluation,
    )
    claims = (
        *_QUALITY[:1],
        Claim(
            statement="with four codebooks PESQ is above that of EnCodec with as many, trained as long on the same"
            " data",
            metric="pesq",
            system="hifi-codec",
            rival="encodec",
        ),
        Claim(statement="and so is STOI", metric="stoi", system="hifi-codec", rival="encodec"),
        *_EXACT,
    )
    return Experiment(
        data=prompts,
        systems=arms,
        seeds=1,
        prepare=_prepare(base),
        compare=_compare(base),
        claims=claims,
        pictures=_pictures,
        columns=_COLUMNS | {"pesq": "PESQ"},
        fairness=(
            "Every arm: the same recordings, batch and seconds of training on the same GPU, after the same seconds of"
            " a stage without quantiser (shared by all but EnCodec, whose halves are others). Codebooks: k-means."
        ),
    )


def _prepare(base: HifiCodec.Config) -> Any:
    def prepare(data: Splits, trainer: Trainer, seed: int) -> dict[str, dict[str, Tensor]]:
        """One continuous autoencoder per seed, copied into every arm."""
        codec: HifiCodec = base.replace(quantizer=NoQuantize.Config()).build()
        return codec.fit_continuous(data, trainer)

    return prepare


def _compare(base: HifiCodec.Config) -> Any:
    def compare(trial: Trial) -> dict[str, dict[str, float]]:
        """The autoencoder without any quantiser, as the ceiling; and whether files give back exactly what was coded."""
        ceiling: HifiCodec = base.replace(quantizer=NoQuantize.Config()).build()
        ceiling.start_from(trial.prepared)
        device = next(iter(trial.systems.values())).device
        found = {"continuous": ceiling.to(device).eval().evaluate(trial.data)}
        for name, codec in trial.systems.items():
            assert isinstance(codec, HifiCodec)
            audio = read_audio(trial.data.test[0]["audio"], codec.config.rate)
            made = codec.decompress(codec.compress(audio, piece_seconds=0.5).value).value.samples
            codes = codec.codes(audio.samples)
            gap = (made - codec.wave(codes)[:, : made.shape[1]]).abs().max()
            again = codec.decompress(codec.compress(audio, piece_seconds=0.5, coder="raw").value).value.samples
            found[name] = {"file_error": float(gap), "coder_error": float((made - again).abs().max())}
        return found

    return compare


def _pictures(trial: Trial) -> list[Picture]:
    """One recording through every arm, seen and heard; the codebooks; how training went."""
    rows = trial.data.test
    rate = next(iter(trial.systems.values())).config.rate
    # a sentence: the first recording of 2 to 4 seconds
    read = (read_audio(rows[i]["audio"], rate) for i in range(min(len(rows), 60)))
    audio = next((a for a in read if 2 <= a.seconds <= 4), read_audio(rows[0]["audio"], rate))
    waves: dict[str, Tensor] = {"original": audio.samples[0]}
    for name, codec in trial.systems.items():
        assert isinstance(codec, HifiCodec)
        waves[name] = codec.wave(codec.codes(audio.samples[:1]))[0, : audio.samples.shape[1]]
    chosen = {k: v for k, v in waves.items() if k in ("original", "hifi-codec", "rvq-4", "rvq-8")}
    made = [
        spectrograms(
            chosen,
            rate,
            "spectrograms",
            "A test prompt: the recording, and what each quantiser leaves of it.",
            docs=True,
        )
    ]
    ours = trial.systems["hifi-codec"]
    assert isinstance(ours, HifiCodec)
    caption = "GRVQ: how often each code is chosen, and the latent's energy that is left after each level."
    made.append(codebook_picture(ours.counts.cpu(), ours.energy.cpu(), "codebooks", caption, docs=True))
    series = {
        name: [(step, value) for step, _, value in traced[key]]
        for name, traced in trial.curves.items()
        for key in ("fit/mel", "fit/codec/mel", "mel", "codec/mel")
        if key in traced
    }
    if series:
        made.append(
            curves(
                series, "training", "Weighted mel loss while training on from the autoencoder.", x="step", y="mel loss"
            )
        )
    made += heard(waves, rate, "The prompt")
    return made


_QUALITY = (
    Claim(
        statement="at equal bits GRVQ reconstructs better than residual VQ: log-mel distance, beyond the seeds' spread",
        metric="mel_distance",
        system="hifi-codec",
        rival="rvq-4",
        better="lower",
        every_seed=False,
        beyond_spread=True,
    ),
    Claim(
        statement="and better than EnCodec's quantiser (running averages, k-means, restarts) at equal bits",
        metric="mel_distance",
        system="hifi-codec",
        rival="rvq-4-ema",
        better="lower",
        every_seed=False,
        beyond_spread=True,
    ),
    Claim(
        statement="four codebooks come within 5 % of the log-mel distance of residual VQ with eight, at half the bits",
        metric="mel_distance",
        system="hifi-codec",
        rival="rvq-8",
        better="lower",
        times=1.05,
        every_seed=False,
    ),
    Claim(
        statement="half the tables and half the search cost at most 5 % of log-mel distance against residual VQ",
        metric="mel_distance",
        system="hifi-codec",
        rival="rvq-4",
        better="lower",
        times=1.05,
        kind="target",
    ),
    Claim(
        statement="two levels of two groups reconstruct better than one level of four: log-mel distance at equal bits",
        metric="mel_distance",
        system="hifi-codec",
        rival="pq-4",
        better="lower",
        every_seed=False,
        beyond_spread=True,
        kind="target",
    ),
    Claim(
        statement="the same in a language that was not in training: lower log-mel distance than residual VQ",
        metric="unseen_mel_distance",
        system="hifi-codec",
        rival="rvq-4",
        better="lower",
        every_seed=False,
        beyond_spread=True,
    ),
    Claim(
        statement="no codebook has collapsed: the least perplexity is above a quarter of the codes",
        metric="perplexity_least",
        system="hifi-codec",
        bound=64.0,
        kind="target",
    ),
)

_EXACT = (
    Claim(
        statement="GRVQ costs no more bits a second than residual VQ with as many codebooks",
        metric="bits_per_second",
        system="hifi-codec",
        rival="rvq-4",
        better="lower",
        times=1.0,
        kind="exact",
    ),
    Claim(
        statement="half the numbers in the code tables",
        metric="table_parameters",
        system="hifi-codec",
        rival="rvq-4",
        better="lower",
        times=0.5,
        kind="exact",
    ),
    Claim(
        statement="half the multiply-accumulates of the search",
        metric="search_macs",
        system="hifi-codec",
        rival="rvq-4",
        better="lower",
        times=0.5,
        kind="exact",
    ),
    Claim(
        statement="two sequential searches instead of four",
        metric="sequential_steps",
        system="hifi-codec",
        rival="rvq-4",
        better="lower",
        times=0.5,
        kind="exact",
    ),
    Claim(
        statement="a file decoded in sections of half a second is the wave decoded whole (largest difference)",
        metric="file_error",
        system="hifi-codec",
        better="lower",
        bound=1e-5,
        kind="exact",
    ),
)

_COLUMNS = {
    "mel_distance": "log-mel L1",
    "mel_distance_voiced": "log-mel L1, voiced",
    "unseen_mel_distance": "log-mel L1, unseen language",
    "stoi": "STOI",
    "si_sdr": "SI-SDR (dB)",
    "latent_error": "latent error / variance",
    "perplexity": "perplexity",
    "codes_used": "codes used",
    "bits_per_second": "bit/s",
    "bits_per_second_coded": "bit/s entropy-coded",
    "table_parameters": "table numbers",
    "search_macs": "search MAC/frame",
    "sequential_steps": "searches in a row",
}

_FAIRNESS = (
    "One continuous autoencoder per seed is copied into every arm; then every arm trains on the same batches for"
    " the same steps with the same losses. In every arm the latent is first scaled to deviation 1, which changes no"
    " wave and weighs the commitment; for arms with groups its axes are turned so that the groups are uncorrelated"
    " (for residual VQ a turn changes nothing). Codebooks are set by k-means on the same latents. None of the three is"
    " published, but the published uniform draw collapses on a trained encoder, and one that was never trained in"
    " groups has none. No discriminators in this run: the claim tested is the quantiser's. The restart threshold of"
    " rvq-4-ema is EnCodec's 2, scaled to the vectors a code gets here."
)
