"""How neural audio codecs are trained: a continuous stage, codebooks from data, the game against discriminators.

`AdversarialCodec` adds `fit` to the verbs of `AudioCodec`: encoder, quantiser and decoder are parts chosen by
configuration, and so are the discriminators and the weights of the losses.
"""

from collections.abc import Mapping
from typing import Annotated, Any

import torch
from jaxtyping import Float
from pydantic import Field, model_validator
from torch import Tensor, nn

from encyclo.config import Config
from encyclo.data import Batches, Splits
from encyclo.losses.adversarial import Adversarial, LeastSquares, feature_matching
from encyclo.losses.spectral import MelLoss
from encyclo.metrics.codebook import code_counts, perplexity
from encyclo.nn.hifigan import HifiganEncoder, HifiganGenerator
from encyclo.nn.seanet import SeanetDecoder, SeanetEncoder
from encyclo.nn.vector_quantize import GroupResidualVectorQuantize, NoQuantize, Quantizer, group_basis
from encyclo.nn.wave_discriminators import WaveDiscriminators
from encyclo.nn.weight_norm import fold_weight_norm, put_weight_norm
from encyclo.systems.audio_codec import AudioCodec, AudioCodecConfig
from encyclo.tokens.waveform import RandomSegments, decoded
from encyclo.training import Loss, Trainer
from encyclo.training.config import TrainingConfig

__all__ = ["AdversarialCodec", "AdversarialCodecConfig", "Game", "Objective"]


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


class AdversarialCodecConfig(AudioCodecConfig):
    """Both halves, the quantiser, the discriminators and the losses; each a choice by `kind`."""

    encoder: Annotated[HifiganEncoder.Config | SeanetEncoder.Config, Field(discriminator="kind")] = (
        HifiganEncoder.Config()
    )
    quantizer: Quantizer = GroupResidualVectorQuantize.Config()
    decoder: Annotated[HifiganGenerator.Config | SeanetDecoder.Config, Field(discriminator="kind")] = (
        HifiganGenerator.Config()
    )
    discriminators: WaveDiscriminators.Config | None = None
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
    latent_deviation: float | None = Field(
        None,
        gt=0,
        description="before the codebooks are set, scale the latent to this standard deviation (not published): it"
        " weighs the commitment against the other losses; training from scratch finds its own",
    )
    survey_files: int = Field(500, ge=1, description="training files that codebooks and tables are set from")

    @model_validator(mode="after")
    def _fit_together(self) -> "AdversarialCodecConfig":
        if self.encoder.hop != self.decoder.hop:
            raise ValueError(f"the encoder's hop is {self.encoder.hop}, the decoder's {self.decoder.hop}")
        if self.segment % self.encoder.hop:
            raise ValueError(f"segment {self.segment} is not a multiple of the hop {self.encoder.hop}")
        return self


class AdversarialCodec(AudioCodec):
    """A codec of `encoder`, `quantizer` and `decoder` that learns on random segments of recordings.

    Each batch is one step of the discriminators (where there are any), then one of the codec. Weight normalisation is
    on while training and folded after it.
    """

    Config = AdversarialCodecConfig

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.encoder = config.encoder.build(dim=config.dim)
        self.quantizer = config.quantizer.build(dim=config.dim)
        self.decoder = config.decoder.build(dim=config.dim)
        self.make_tables()
        self._started = False

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
        if not (from_data or config.decorrelate or config.latent_deviation):
            return
        batches = self._batches(data, trainer, config.training)
        enough = 40 * config.quantizer.codebooks.size
        latents: list[Tensor] = []
        self.eval()
        while sum(map(len, latents)) < enough:
            wave = next(batches).to(trainer.device)
            latents.append(self.encoder(wave[:, None]).transpose(1, 2).flatten(0, 1))
        z = torch.cat(latents)[:enough]
        basis = torch.eye(config.dim, device=z.device)
        if config.decorrelate and config.quantizer.groups > 1:
            basis = group_basis(z, config.quantizer.groups)
        if config.latent_deviation is not None:
            basis = basis * (config.latent_deviation / z.var(0).mean().sqrt())
        self.turn(basis)
        if from_data:
            self.quantizer.initialise(z @ basis.t())

    @torch.no_grad()
    def turn(self, basis: Float[Tensor, "d d"]) -> None:
        """Express the latent in another (invertible) basis: the layers on both sides take it up, no wave changes."""
        to, back = self.encoder.to_latent, self.decoder.from_latent
        to.weight.copy_(torch.einsum("ij,jck->ick", basis, to.weight))
        to.bias.copy_(basis @ to.bias)
        back.weight.copy_(torch.einsum("ij,wik->wjk", torch.linalg.inv(basis), back.weight))


class Game:
    """The two losses of a codec and its discriminators."""

    def __init__(self, codec: AdversarialCodec, trainer: Trainer) -> None:
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
