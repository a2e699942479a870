"""HiFi-Codec: speech as four discrete codes a frame, by group-residual vector quantisation, and back."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from jaxtyping import Float
from pydantic import Field, model_validator
from torch import Tensor, nn

from encyclo.card import Card
from encyclo.config import Config
from encyclo.data import Batches, Splits, load
from encyclo.data.audio import encode_audio, read_audio
from encyclo.errors import InputError
from encyclo.experiment import Claim, Experiment, Preset, Trial
from encyclo.losses.adversarial import Adversarial, Hinge, LeastSquares, feature_matching
from encyclo.losses.spectral import MelLoss
from encyclo.metrics.codebook import code_counts, perplexity
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
    group_basis,
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
from encyclo.nn.weight_norm import fold_weight_norm, put_weight_norm
from encyclo.picture import Picture, curves
from encyclo.systems.audio_checkpoints import encodec_fields, load_academicodec, load_encodec, open_transformers_encodec
from encyclo.systems.audio_codec import AudioCodec, AudioCodecConfig, Evaluation, codebook_picture, spectrograms
from encyclo.tokens.mel import LogMel
from encyclo.tokens.waveform import RandomSegments, decoded
from encyclo.training import Loss, Trainer
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


class Objective(Config):
    """Weights of the generator's loss. The paper writes a general weighted sum; these are the numbers of its code."""

    adversarial: Adversarial = LeastSquares()
    adversarial_weight: float = Field(1.0, ge=0)
    features: float = Field(2.0, ge=0, description="feature matching, over all families of discriminators")
    relative_features: bool = Field(False, description="divide each feature's distance by its mean size (EnCodec)")
    mel: MelLoss.Config = MelLoss.Config()
    wave: float = Field(0.0, ge=0, description="mean |x - y|; the code has no such term")
    wave_square: float = Field(0.0, ge=0, description="mean (x - y)^2; the code has no such term")
    quantizer: float = Field(10.0, ge=0)
    from_step: int = Field(0, ge=0, description="of the discriminators; the generator learns alone before it")

    def distance(
        self, mel: nn.Module, real: Float[Tensor, "b n"], fake: Float[Tensor, "b n"]
    ) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
        """The weighted mel and wave terms, and what to log."""
        spectral, gap = mel(real, fake), fake.float() - real
        value = spectral + self.wave * gap.abs().mean() + self.wave_square * gap.square().mean()
        return value, {"mel": spectral, "wave": gap.abs().mean()}


class HifiCodec(AudioCodec):
    """A mirrored HiFi-GAN encoder, GRVQ with a codebook per level and group, and a HiFi-GAN decoder (arXiv 2305.02765).

    A wave [b, 1, n] at `rate` becomes frames [b, dim, n / hop], frames become levels * groups codes, codes become a
    wave. Trained on random segments: each batch one step of the discriminators, then one of the codec. Weight
    normalisation is on while training and folded after it.

    Errors: InputError for recordings without samples or with some that are not finite, foreign files and codes.
    """

    card = CARD

    class Config(AudioCodecConfig):
        """The published numbers at 24 kHz, 320 samples a frame; what is marked so is not published."""

        encoder: Annotated[HifiganEncoder.Config | SeanetEncoder.Config, Field(discriminator="kind")] = (
            HifiganEncoder.Config()
        )
        quantizer: Quantizer = GroupResidualVectorQuantize.Config()
        decoder: Annotated[HifiganGenerator.Config | SeanetDecoder.Config, Field(discriminator="kind")] = (
            HifiganGenerator.Config()
        )
        discriminators: WaveDiscriminators.Config | None = WaveDiscriminators.Config()
        objective: Objective = Objective()
        segment: int = Field(16000, ge=1, description="samples of a training clip; a multiple of the hop")
        level_dropout: bool = Field(False, description="train each batch with a random number of levels (EnCodec)")
        continuous: TrainingConfig | None = Field(
            None, description="a first stage without quantiser and discriminators (not published)"
        )
        continuous_objective: Objective = Field(Objective(), description="of that stage: its mel and wave terms")
        decorrelate: bool = Field(
            False,
            description="before the codebooks are set, turn the latent's axes so that the groups are uncorrelated (not"
            " published): training from scratch finds its own split, a trained autoencoder has none",
        )
        survey_files: int = Field(500, ge=1, description="training files that codebooks and tables are set from")
        training: TrainingConfig = TrainingConfig(
            steps=14_000_000,
            batch_size=80,
            optimiser=AdamW(lr=2e-4, betas=(0.5, 0.9)),
            schedule=Schedule(shape="exponential", final=0.98**2000),
        )

        @model_validator(mode="after")
        def _fit_together(self) -> "HifiCodec.Config":
            if self.encoder.hop != self.decoder.hop:
                raise ValueError(f"the encoder's hop is {self.encoder.hop}, the decoder's {self.decoder.hop}")
            if self.segment % self.encoder.hop:
                raise ValueError(f"segment {self.segment} is not a multiple of the hop {self.encoder.hop}")
            return self

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.encoder = config.encoder.build(dim=config.dim)
        self.quantizer = config.quantizer.build(dim=config.dim)
        self.decoder = config.decoder.build(dim=config.dim)
        self.make_tables()
        self._started = False

    # -- learning --------------------------------------------------------------------------------------------------

    def start_from(self, prepared: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Take encoder and decoder of a continuous autoencoder; its stage is then left out of `fit`."""
        self.encoder.load_state_dict(prepared["encoder"])
        self.decoder.load_state_dict(prepared["decoder"])
        self._started = True

    def fit_continuous(self, data: Splits, trainer: Trainer) -> dict[str, dict[str, Tensor]]:
        """The stage before quantisation: mel and wave loss alone. Returns what `start_from` takes."""
        training = self.config.continuous
        assert training is not None
        halves = nn.ModuleDict({"encoder": put_weight_norm(self.encoder), "decoder": put_weight_norm(self.decoder)})
        goal = self.config.continuous_objective
        mel = goal.mel.build().to(trainer.device)

        def loss(wave: Float[Tensor, "b n"]) -> Loss:
            value, logs = goal.distance(mel, wave, self.decoder(self.encoder(wave[:, None]))[:, 0])
            return Loss(value, wave.shape[0], logs)

        trainer.fit(halves, loss, self._batches(data, trainer, training), training, stage="continuous")
        fold_weight_norm(halves)
        self._started = True
        return {
            name: {k: v.detach().cpu().clone() for k, v in half.state_dict().items()} for name, half in halves.items()
        }

    def fit(self, data: Splits, trainer: Trainer) -> None:
        """Continuous stage (where configured), codebooks from data (where their `init` says so), then the codec."""
        config = self.config
        if config.continuous is not None and not self._started:
            self.fit_continuous(data, trainer)
        self.to(trainer.device)
        if not isinstance(self.quantizer, NoQuantize):
            self._set_codebooks(data, trainer)
        parts = nn.ModuleDict({"codec": self})
        put_weight_norm(self.encoder)
        put_weight_norm(self.decoder)
        game = Game(self, trainer)
        batches = self._batches(data, trainer, config.training)
        if config.discriminators is None:
            trainer.fit(parts, game.generator_loss, batches, config.training, stage="fit")
        else:
            parts["discriminators"] = game.discriminators = config.discriminators.build()
            trainer.fit(
                parts,
                {"discriminators": game.discriminator_loss, "codec": game.generator_loss},
                batches,
                config.training,
                stage="fit",
                parameters={"discriminators": game.discriminators.parameters(), "codec": self.parameters()},
            )
        with trainer.averaged(parts):
            averaged = {name: tensor.clone() for name, tensor in self.state_dict().items()}
        self.load_state_dict(averaged)
        fold_weight_norm(self)
        self.eval()
        self.survey(data, config.survey_files)

    def _batches(self, data: Splits, trainer: Trainer, training: TrainingConfig) -> Batches:
        collate = RandomSegments(self.config.rate, self.config.segment, generator=trainer.generator)
        rows = data.train
        if training.steps is None or (hasattr(rows, "__len__") and training.steps * training.batch_size > len(rows)):
            rows = decoded(rows, self.config.rate, fingerprint=f"{data.fingerprint}/train")
        return Batches(rows, training.batch_size, seed=trainer.seed, collate=collate)

    @torch.no_grad()
    def _set_codebooks(self, data: Splits, trainer: Trainer) -> None:
        """Axes and codebooks from the latents of training segments, before the first step, where asked for."""
        config = self.config
        from_data = config.quantizer.codebooks.init not in ("uniform", "normal")
        if not (from_data or config.decorrelate):
            return
        batches = self._batches(data, trainer, config.training)
        enough = 40 * config.quantizer.codebooks.size
        latents: list[Tensor] = []
        self.eval()
        while sum(map(len, latents)) < enough:
            wave = next(batches).to(trainer.device)
            latents.append(self.encoder(wave[:, None]).transpose(1, 2).flatten(0, 1))
        z = torch.cat(latents)[:enough]
        if config.decorrelate and config.quantizer.groups > 1:
            basis = group_basis(z, config.quantizer.groups)
            self.turn(basis)
            z = z @ basis.t()
        if from_data:
            self.quantizer.initialise(z)

    @torch.no_grad()
    def turn(self, basis: Float[Tensor, "d d"]) -> None:
        """Express the latent in another orthogonal basis: the layers on both sides take it up, no wave changes."""
        to, back = self.encoder.to_latent, self.decoder.from_latent
        to.weight.copy_(torch.einsum("ij,jck->ick", basis, to.weight))
        to.bias.copy_(basis @ to.bias)
        back.weight.copy_(torch.einsum("ij,wjk->wik", basis, back.weight))

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


class Game:
    """The two losses of a codec and its discriminators."""

    def __init__(self, codec: HifiCodec, trainer: Trainer) -> None:
        self.codec, self.trainer = codec, trainer
        self.objective: Objective = codec.config.objective
        self.mel = self.objective.mel.build().to(trainer.device)
        self.discriminators: nn.Module | None = None

    @property
    def playing(self) -> bool:
        """Whether the discriminators take part in this step."""
        return self.discriminators is not None and self.trainer.step >= self.objective.from_step

    def discriminator_loss(self, wave: Float[Tensor, "b n"]) -> Loss:
        """sum over sub-discriminators of mean (1 - D(x))^2 + mean D(y)^2 (or the hinge)."""
        assert self.discriminators is not None
        if not self.playing:
            still = torch.stack([p.sum() * 0 for p in self.discriminators.parameters()]).sum()
            return Loss(still, wave.shape[0])
        real = wave[:, None]
        with torch.no_grad():
            fake, _ = self.codec(real, levels=self._levels(), learn=False)
        verdicts = self.discriminators(real), self.discriminators(fake.detach())
        return Loss(self.objective.adversarial.discriminator(*verdicts), wave.shape[0])

    def generator_loss(self, wave: Float[Tensor, "b n"]) -> Loss:
        """Adversarial + 2 features + 45 / 1 / 1 mel + 10 quantiser (+ wave, 0 as published)."""
        goal, real = self.objective, wave[:, None]
        fake, quantized = self.codec(real, levels=self._levels())
        total, logs = goal.distance(self.mel, wave, fake[:, 0])
        total = total + goal.quantizer * quantized.loss
        logs["quantizer"] = quantized.loss
        if quantized.codes.shape[-1]:
            counts = code_counts(quantized.codes.flatten(0, 1), self.codec.size)
            logs["perplexity"] = perplexity(counts).mean()
        if self.playing:
            assert self.discriminators is not None
            made = self.discriminators(fake)
            with torch.no_grad():
                true = self.discriminators(real)
            adversarial = goal.adversarial.generator(made)
            features = feature_matching(true, made, relative=goal.relative_features)
            total = total + goal.adversarial_weight * adversarial + goal.features * features
            logs |= {"adversarial": adversarial, "features": features}
        return Loss(total, wave.shape[0], logs)

    def _levels(self) -> int | None:
        if not self.codec.config.level_dropout:
            return None
        most = self.codec.config.quantizer.levels
        return 1 + int(torch.randint(most, (), generator=self.trainer.generator))


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
    waves = (read_audio(rows[i]["audio"], rate) for i in range(min(len(rows), 60)))
    audio = next((a for a in waves if 2 <= a.seconds <= 4), read_audio(rows[0]["audio"], rate))
    heard: dict[str, Tensor] = {"original": audio.samples[0]}
    for name, codec in trial.systems.items():
        assert isinstance(codec, HifiCodec)
        heard[name] = codec.wave(codec.codes(audio.samples[:1]))[0, : audio.samples.shape[1]]
    chosen = {k: v for k, v in heard.items() if k in ("original", "hifi-codec", "rvq-4", "rvq-8")}
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
    for name, wave in heard.items():
        sound = encode_audio(audio.__class__(wave[None].clamp(-1, 1), rate), ".wav")
        made.append(Picture(f"heard-{name}", f"The prompt: {name}.", "wav", sound))
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
    " the same steps with the same losses. Codebooks are set by k-means on the same latents, and for arms with"
    " groups the latent's axes are turned first so that the groups are uncorrelated; neither is published, but"
    " the published uniform draw collapses on a trained encoder, and one that was never trained in groups has"
    " none (for residual VQ a turn changes nothing). No discriminators in this run: the claim tested is the"
    " quantiser's. The restart threshold of rvq-4-ema is EnCodec's 2, scaled to the vectors a code gets here."
)
