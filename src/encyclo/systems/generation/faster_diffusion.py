"""Faster Diffusion: reuse the UNet encoder's features between sampler steps (arXiv 2312.09608).

The mechanism stands in `encyclo.sampling.encoder_propagation` and `encyclo.nn.split_unet` and works on any diffusers
UNet; here are the class-conditional diffusion model it is shown on, and the experiment.
"""

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from jaxtyping import Float, Int64, UInt8
from pydantic import Field
from torch import Tensor

from encyclo import page, picture
from encyclo.card import Card
from encyclo.data import Splits
from encyclo.data.images import Image, to_tensor
from encyclo.errors import InputError
from encyclo.experiment import Claim, Experiment, Preset, Trial
from encyclo.metrics.cost import flops, interleaved
from encyclo.metrics.feature_change import draw, evenly_spaced, feature_changes, mean_change
from encyclo.metrics.judge import fit_judge, judged
from encyclo.nn.diffusion_unet import ClassConditionalUNet, TextConditionalUNet
from encyclo.nn.small_classifier import SmallClassifier
from encyclo.nn.split_unet import SplitUNet
from encyclo.picture import Picture
from encyclo.sampling.diffusion import NoiseSchedule, sample
from encyclo.sampling.encoder_propagation import Counts, EncoderPropagation, Propagation, key_steps
from encyclo.system import System, SystemConfig
from encyclo.training import AdamW, Schedule, Trainer, TrainingConfig
from encyclo.training.denoising import fit_denoiser, unfold
from encyclo.verbs import Result

CARD = Card(
    slug="faster-diffusion",
    title="Faster Diffusion: Rethinking the Role of UNet Encoder in Diffusion Models",
    authors="Li, Hu et al.",
    year=2023,
    arxiv="2312.09608",
    venue="NeurIPS 2024",
    wing="generation",
    summary="Samples faster from any diffusion UNet, without training: its encoder runs only at a few key steps.",
    verbs=("generate", "inspect"),
    code="hutaiHang/Faster-Diffusion",
    code_licence="Apache-2.0",
    keywords=("diffusion", "acceleration", "training-free"),
    retrofit=True,
)


class FasterDiffusion(System):
    """A diffusion model whose sampler runs the UNet's encoder at key steps and only the decoder in between.

    The model is trained by noise prediction (Ho et al. 2020) on images in [-1, 1], folded by pixel-unshuffle into a
    lossless "latent". Sampling is DDIM (eta 0) or DPM-Solver++; the retrofit itself trains nothing.
    """

    card = CARD
    reads = "image"

    class Config(SystemConfig):
        """The model, its sampler and the propagation."""

        unet: Annotated[ClassConditionalUNet.Config | TextConditionalUNet.Config, Field(discriminator="kind")] = (
            ClassConditionalUNet.Config()
        )
        noise: NoiseSchedule = NoiseSchedule()
        propagation: Propagation = Propagation()
        sampler: Literal["ddim", "dpm++"] = "ddim"
        steps: int = Field(50, ge=1, description="sampler steps")
        image_size: int = Field(32, ge=8)
        channels: Literal[1, 3] = 1
        fold: int = Field(2, ge=1, description="pixel-unshuffle factor; 1: none")
        classes: int = Field(10, ge=0, description="0: unconditional")
        judge: SmallClassifier.Config = SmallClassifier.Config()
        training: TrainingConfig = TrainingConfig(steps=1500, batch_size=64, optimiser=AdamW(lr=1e-3), ema=0.995)
        judging: TrainingConfig = TrainingConfig(steps=300, batch_size=64, optimiser=AdamW(lr=2e-3, weight_decay=0.05))
        """Training of the classifier whose features measure the samples."""
        samples: int = Field(400, ge=8, description="images drawn for the metrics")

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        depth = config.channels * config.fold**2
        self.unet = config.unet.build(size=config.image_size // config.fold, channels=depth, classes=config.classes)
        self.judge = config.judge.build(channels=config.channels, classes=max(config.classes, 2))
        self.labels: list[str] = [str(i) for i in range(config.classes)]
        self._started = False

    # -- learning ------------------------------------------------------------------------------------------------

    def start_from(self, prepared: "FasterDiffusion") -> None:
        """Take a trained model: the arms of the experiment differ only in how they sample."""
        self.load_state_dict(prepared.state_dict())
        self.labels = list(prepared.labels)
        self._started = True

    def fit(self, data: Splits, trainer: Trainer) -> None:
        """Train the UNet (with a running average of weights), then the classifier that measures samples."""
        if self._started:
            return
        config = self.config
        if config.unet.kind == "text":
            raise InputError("a text-conditional UNet is not trained here: give a pipeline to accelerate_sampling")
        images, labels = self._images(data.train, learn_labels=True)
        # the yardstick learns from images that the generator does not see
        order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
        own, held = order.tensor_split([int(len(images) * 0.75)])
        classes = labels[own] if config.classes else None
        scheduler = config.noise.training_scheduler()
        fit_denoiser(self.unet, images[own], classes, scheduler, trainer, config.training, factor=config.fold)
        if config.classes:
            fit_judge(self.judge, images[held], labels[held], trainer, config.judging)

    def _images(self, rows: Any, *, learn_labels: bool = False) -> tuple[UInt8[Tensor, "n c h w"], Int64[Tensor, " n"]]:
        config = self.config
        images = to_tensor(rows["image"], config.image_size, mode="L" if config.channels == 1 else "RGB", fit="pad")
        if not config.classes:
            return images, torch.zeros(len(images), dtype=torch.long)
        if "label" not in rows.column_names:
            raise InputError("the images have no labels (folders by class): set classes=0 for an unconditional model")
        names = [str(name) for name in rows["label"]]
        if learn_labels:
            found = sorted(set(names))
            if len(found) > config.classes:
                raise InputError(
                    f"the data has {len(found)} classes, the model {config.classes}: set classes={len(found)}"
                )
            self.labels = found + [f"unused {i}" for i in range(len(found), config.classes)]
        index = {name: i for i, name in enumerate(self.labels)}
        return images, torch.tensor([index.get(name, 0) for name in names])

    def assets(self) -> dict[str, bytes]:
        """Class names."""
        return {"labels.json": json.dumps(self.labels).encode()}

    def load_assets(self, assets: Mapping[str, bytes]) -> None:
        """Class names."""
        self.labels = [str(name) for name in json.loads(assets["labels.json"])]

    # -- sampling --------------------------------------------------------------------------------------------------

    def draw(
        self,
        noise: Float[Tensor, "b d p q"],
        labels: Int64[Tensor, " b"] | None,
        propagation: Propagation | None,
        *,
        steps: int | None = None,
    ) -> tuple[Float[Tensor, "b d p q"], Counts]:
        """Latents from noise with the given propagation (None: every step in full), and what was run."""
        config = self.config
        scheduler = config.noise.sampler(config.sampler)
        told = propagation or Propagation(keys="all", mode="serial", alpha=0.0)
        noise = noise.to(self.device)
        labels = labels.to(self.device) if labels is not None and config.classes else None
        with EncoderPropagation(self.unet, scheduler, told) as running:
            latents = sample(self.unet, scheduler, noise, steps=steps or config.steps, labels=labels)
            return latents, running.counts

    def noise_and_labels(self, count: int, seed: int) -> tuple[Float[Tensor, "b d p q"], Int64[Tensor, " b"]]:
        """The same noise and labels for every arm: drawn on the CPU from `seed`."""
        generator = torch.Generator().manual_seed(seed)
        config = self.config
        side, depth = config.image_size // config.fold, config.channels * config.fold**2
        noise = torch.randn(count, depth, side, side, generator=generator)
        return noise, torch.arange(count) % max(config.classes, 1)

    @torch.no_grad()
    def evaluate(self, data: Splits) -> dict[str, float]:
        """Distances to the test images in the classifier's features, accuracy of the asked class, calls and MACs."""
        config = self.config
        real, _ = self._images(data.test)
        noise, labels = self.noise_and_labels(config.samples, seed=1234)
        began = time.perf_counter()
        drawn, counts = [], Counts()
        for part, asked in zip(noise.split(200), labels.split(200)):
            latents, counts = self.draw(part, asked, config.propagation)
            drawn.append(latents)
        seconds = time.perf_counter() - began
        images = unfold(torch.cat(drawn), config.fold)
        return {
            **judged(self.judge, images, real, labels if config.classes else None),
            "encoder_calls": float(counts.encoder_calls),
            "decoder_evaluations": float(counts.decoded),
            "sample_seconds": seconds,
            "macs_per_image": self.macs(counts),
        }

    @torch.no_grad()
    def call_macs(self) -> tuple[float, float]:
        """Multiply-accumulates of one call of the encoder half and of the decoder half for one image, counted."""
        noise, labels = self.noise_and_labels(1, seed=0)
        noise = noise.to(self.device)
        told = {"class_labels": labels.to(self.device)} if self.config.classes else {}
        split = SplitUNet(self.unet)
        kept = split.encode(noise, 0, told)
        return flops(lambda: split.encode(noise, 0, told)) / 2, flops(lambda: split.decode(kept, 0, told)) / 2

    def macs(self, counts: Counts) -> float:
        """Multiply-accumulates per image of a sampling, from the calls it made."""
        encoder, decoder = self.call_macs()
        return counts.encoder_calls * encoder + counts.decoded * decoder

    def counted_macs(self, propagation: Propagation | None) -> float:
        """The same of one whole sampling of one image, every operation counted while it runs."""
        noise, labels = self.noise_and_labels(1, seed=0)
        return flops(lambda: self.draw(noise, labels, propagation)) / 2

    # -- verbs -------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def generate(
        self,
        *,
        label: str | None = None,
        count: int = 16,
        seed: int = 0,
        speedup: bool = True,
        keys: str | None = None,
        steps: int | None = None,
    ) -> Result:
        """Draw images, one after the other class or of one class.

        Args:
            label: a class by name; None goes through all.
            count: images.
            seed: of the noise.
            speedup: False runs the encoder at every step.
            keys: another key set (`paper`, `uniform:4`, `0,1,2,5` ...).
            steps: sampler steps.
        """
        if count < 1:
            raise InputError(f"count={count}: at least one image is drawn")
        if label is not None and label not in self.labels:
            raise InputError(f"label={label} is none of the model's classes: {', '.join(self.labels) or 'it has none'}")
        noise, labels = self.noise_and_labels(count, seed)
        if label is not None:
            labels = torch.full_like(labels, self.labels.index(label))
        told = self.config.propagation.replace(**({"keys": keys} if keys else {}))
        key_steps(told.keys, steps or self.config.steps)  # refused before sampling, not in the middle
        began = time.perf_counter()
        latents, counts = self.draw(noise, labels, told if speedup else None, steps=steps)
        report = {
            "seconds": time.perf_counter() - began,
            "encoder_calls": counts.encoder_calls,
            "decoder_evaluations": counts.decoded,
            "largest_batch": counts.largest_batch,
            "macs_per_image": self.macs(counts),
        }
        images = [Image(pixels, f"{i:04d}") for i, pixels in enumerate(unfold(latents, self.config.fold))]
        return Result(images, report)

    @torch.no_grad()
    def inspect(self, *, budget: float = 0.8, count: int = 16, out: Path | None = None) -> Result:
        """Show how much each block's features change between steps, and propose key steps for a budget of MACs.

        Args:
            budget: share of the full sampling's MACs that the proposal may use.
            count: images to average over.
            out: an HTML page; default inspect.html.
        """
        changes = self.feature_changes(count)
        proposal = self.propose_keys(changes, budget)
        listed = ", ".join(map(str, proposal))
        body = page.figure(draw(changes)) + f"<p>Key steps proposed within {budget:.0%} of the MACs: {listed}</p>"
        written = page.write(out or Path("inspect.html"), page.page("How features change while sampling", body))
        report = {f"change_{name}": float(values[1:].mean()) for name, values in changes.items()}
        return Result(written, {**report, "proposed_keys": listed})

    def feature_changes(self, count: int = 16) -> dict[str, Float[Tensor, " t"]]:
        """Change of every block's features over a sampling of `count` images; see `encyclo.metrics.feature_change`."""
        noise, labels = self.noise_and_labels(count, seed=99)
        return feature_changes(self.unet, lambda: self.draw(noise, labels, None))

    def propose_keys(self, changes: Mapping[str, Tensor], budget: float) -> tuple[int, ...]:
        """Key steps at equal accumulated change of the encoder, as many as `budget` (share of all MACs) allows."""
        encoder, decoder = self.call_macs()
        affordable = int((budget * (encoder + decoder) - decoder) * self.config.steps / encoder)
        return evenly_spaced(changes, max(1, min(self.config.steps, affordable)))


# -- the experiment ---------------------------------------------------------------------------------------------------


def _fewer(config: FasterDiffusion.Config) -> int:
    """Steps of a plain sampler that cost the MACs of the accelerated one, counted on the network itself."""
    with torch.no_grad():
        encoder, decoder = FasterDiffusion(config).call_macs()
    keys = len(key_steps(config.propagation.keys, config.steps))
    return max(1, round((keys * encoder + config.steps * decoder) / (encoder + decoder)))


def _compare(trial: Trial) -> dict[str, dict[str, float]]:
    """Paired distance to full sampling, and time of all arms taking turns."""
    arms = {n: s for n, s in trial.systems.items() if isinstance(s, FasterDiffusion)}
    full = arms["full"]
    together = min(64, full.config.samples)
    noise, labels = full.noise_and_labels(together, seed=77)
    told: dict[str, dict[str, float]] = {name: {} for name in arms}
    with torch.no_grad():
        reference = full.draw(noise, labels, full.config.propagation)[0]
        for name, system in arms.items():
            if system.config.sampler == full.config.sampler:
                drawn = system.draw(noise, labels, system.config.propagation)[0]
                told[name]["mse_to_full"] = float((drawn - reference).square().mean())
        serial = arms["faster"].config.propagation.replace(mode="serial")
        parallel = arms["faster"].config.propagation.replace(mode="parallel")
        both = [arms["faster"].draw(noise, labels, p)[0] for p in (serial, parallel)]
        told["faster"]["serial_parallel_gap"] = float((both[0] - both[1]).abs().max())
        calls = {
            name: (lambda system=system: system.draw(noise, labels, system.config.propagation))
            for name, system in arms.items()
            if name in ("full", "faster", "full-dpm", "faster-dpm")
        }
        seconds = interleaved(calls, rounds=3)
        encoder = _encoder_share(full)
    for name, value in seconds.items():
        told[name]["draw_seconds"] = value
    for ours, theirs in (("faster", "full"), ("faster-dpm", "full-dpm")):
        if ours not in arms:
            continue
        steps, keys = (
            arms[ours].config.steps,
            len(key_steps(arms[ours].config.propagation.keys, arms[ours].config.steps)),
        )
        skipped = 1 - keys / steps
        macs = 1 - arms[ours].counted_macs(arms[ours].config.propagation) / arms[theirs].counted_macs(None)
        saved = 1 - seconds[ours] / seconds[theirs]
        told[ours] |= {
            "macs_saved": macs * 100,
            "macs_expected": skipped * encoder["macs"] * 100,
            "macs_error": abs(macs - skipped * encoder["macs"]) * 100,
            "time_saved": saved * 100,
            "time_over_macs": saved / macs,
            "time_over_bound": saved / (skipped * encoder["seconds"]),
        }
    changes = full.feature_changes(16)
    told["full"]["encoder_change"] = mean_change(changes, "encoder")
    told["full"]["decoder_change"] = mean_change(changes, "decoder")
    told["full"]["encoder_time_share"] = encoder["seconds"] * 100
    told["full"]["encoder_macs_share"] = encoder["macs"] * 100
    return told


def _encoder_share(system: FasterDiffusion) -> dict[str, float]:
    """The encoder half's share of a network call, in MACs and in seconds."""
    noise, labels = system.noise_and_labels(min(64, system.config.samples), seed=5)
    noise = noise.to(system.device)
    told = {"class_labels": labels.to(system.device)} if system.config.classes else {}
    split = SplitUNet(system.unet)
    arms = {
        "encoder": lambda: split.encode(noise, 500, told),
        "whole": lambda: system.unet(noise, 500, return_dict=False, **told),
    }
    taken = interleaved(arms, rounds=7, warm_up=2)
    encoder, decoder = system.call_macs()
    return {"seconds": taken["encoder"] / taken["whole"], "macs": encoder / (encoder + decoder)}


def _pictures(trial: Trial) -> list[Picture]:
    full = trial.systems["full"]
    assert isinstance(full, FasterDiffusion)
    noise, labels = full.noise_and_labels(10, seed=3)
    rows = {}
    for name, title in {
        "full": "every step in full",
        "faster": "encoder at 9 of 50 steps",
        "no-injection": "the same without noise injection",
        "decoder-propagation": "decoder reused instead: the control",
    }.items():
        if name in trial.systems:
            system = trial.systems[name]
            assert isinstance(system, FasterDiffusion)
            with torch.no_grad():
                rows[title] = unfold(system.draw(noise, labels, system.config.propagation)[0], system.config.fold)
    with torch.no_grad():
        changes = full.feature_changes(16)
    return [
        picture.grid(rows, "samples", "The same noise and classes, sampled in four ways.", scale=2, docs=True),
        draw(changes, docs=True),
    ]


def experiment(preset: Preset) -> Experiment:
    """One trained model per seed; the arms differ only in how they sample from it."""
    if preset is Preset.PAPER:
        stable = FasterDiffusion.Config(
            unet=TextConditionalUNet.Config(),
            noise=NoiseSchedule(beta_schedule="scaled_linear", clip_sample=False),
            image_size=64,
            channels=1,
            fold=2,
            classes=0,
        )
        return Experiment(data="clipart", systems={"faster": stable}, claims=[])
    base = FasterDiffusion.Config()
    if preset is Preset.SMOKE:
        base = FasterDiffusion.Config(
            unet=ClassConditionalUNet.Config(widths=(8, 16, 16), norm_groups=4, layers=1),
            training=TrainingConfig(steps=12, batch_size=16, optimiser=AdamW(lr=2e-3), ema=0.9),
            judging=TrainingConfig(steps=12, batch_size=32, optimiser=AdamW(lr=2e-3)),
            steps=10,
            samples=16,
        )
    elif preset is Preset.LAPTOP:
        base = base.replace(
            unet=ClassConditionalUNet.Config(layers=1),
            samples=200,
            training=TrainingConfig(
                steps=1500,
                batch_size=32,
                optimiser=AdamW(lr=2e-3),
                ema=0.99,
                clip=1.0,
                schedule=Schedule(warmup=0.03, final=0.02),
            ),
        )
    elif preset is Preset.GPU:
        base = base.replace(
            unet=ClassConditionalUNet.Config(widths=(128, 256, 256), norm_groups=32),
            image_size=64,
            channels=3,
            classes=0,
            samples=2000,
            training=TrainingConfig(
                steps=6000,
                batch_size=128,
                optimiser=AdamW(lr=2e-4),
                ema=0.999,
                precision="bf16",
                schedule=Schedule(warmup=0.05),
            ),
        )

    def arm(**changes: Any) -> FasterDiffusion.Config:
        told = {k: changes.pop(k) for k in ("keys", "alpha", "reuse", "mode") if k in changes}
        return base.replace(propagation=base.propagation.replace(**told), **changes)

    plain: dict[str, Any] = {"keys": "all", "alpha": 0.0, "mode": "serial"}
    systems = {
        "faster": arm(),
        "full": arm(**plain),
        "no-injection": arm(alpha=0.0),
        "uniform-2": arm(keys="uniform:2"),
        "uniform-4": arm(keys="uniform:4"),
        "decoder-propagation": arm(reuse="decoder", alpha=0.0, mode="serial"),
        "fewer-steps": arm(**plain, steps=_fewer(base)),
        "faster-dpm": arm(sampler="dpm++", steps=20),
        "full-dpm": arm(**plain, sampler="dpm++", steps=20),
    }
    if preset is Preset.SMOKE:
        systems = {k: v for k, v in systems.items() if k in ("faster", "full", "decoder-propagation")}

    def prepare(data: Splits, trainer: Trainer, seed: int) -> FasterDiffusion:
        torch.manual_seed(seed)
        system = FasterDiffusion(base)
        system.fit(data, trainer)
        return system

    keys = len(key_steps(base.propagation.keys, base.steps))
    claims = [
        Claim(
            statement=f"the encoder runs at {keys} of {base.steps} steps",
            metric="encoder_calls",
            system="faster",
            bound=keys,
            better="lower",
            kind="exact",
        ),
        Claim(
            statement="MACs saved are the skipped steps times the encoder's share",
            metric="macs_error",
            system="faster",
            bound=0.5,
            better="lower",
            kind="exact",
        ),
        Claim(
            statement="parallel decoding gives the numbers of serial decoding",
            metric="serial_parallel_gap",
            system="faster",
            bound=1e-3,
            better="lower",
            kind="exact",
        ),
        Claim(
            statement="wall time saved is at least 70 % of the MACs saved",
            metric="time_over_macs",
            system="faster",
            bound=0.7,
            kind="speed",
            every_seed=False,
        ),
        Claim(
            statement="wall time saved is at least 0.85 of the encoder's share of time x skipped steps",
            metric="time_over_bound",
            system="faster",
            bound=0.85,
            kind="target",
            every_seed=False,
        ),
        Claim(
            statement="the model is good enough to tell: accuracy of full sampling at least 95 %",
            metric="accuracy",
            system="full",
            bound=95.0,
            kind="exact",
        ),
        Claim(
            statement="sample quality (KID in classifier features) stays within 15 % of full sampling",
            metric="kid",
            system="faster",
            rival="full",
            better="lower",
            times=1.15,
        ),
        Claim(
            statement="accuracy drops by at most 2 points",
            metric="accuracy",
            system="faster",
            rival="full",
            by=-2.0,
        ),
        Claim(
            statement="reusing the decoder instead is clearly worse (KID at least twice)",
            metric="kid",
            system="decoder-propagation",
            rival="full",
            times=2.0,
        ),
        Claim(
            statement="encoder features change less between steps than decoder features",
            metric="encoder_change",
            system="full",
            rival="full",
            rival_metric="decoder_change",
            better="lower",
        ),
    ]
    if base.classes == 0:
        claims = [c for c in claims if c.metric not in ("accuracy", "kid")]
    return Experiment(
        data="clipart" if preset is Preset.GPU else "mnist-5k",
        systems=systems,
        claims=claims,
        seeds=2,
        prepare=prepare,
        compare=_compare,
        pictures=_pictures,
        columns={
            "encoder_calls": "encoder calls",
            "macs_per_image": "MACs per image",
            "draw_seconds": "s per 64 images",
            "kid": "KID (classifier features)",
            "frechet": "Fréchet (classifier features)",
            "accuracy": "asked class, %",
            "mse_to_full": "MSE to full",
        },
        fairness="All arms sample from the same trained weights with the same noise and classes; the classifier behind "
        "KID and accuracy was trained on images the generator never saw. On a CPU the time saved cannot exceed the "
        "encoder's share of time; the paper's 41 % against 27 % of MACs is a GPU effect of the parallel batch.",
    )
