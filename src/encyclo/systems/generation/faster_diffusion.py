"""Faster Diffusion: reuse the UNet encoder's features between sampler steps (arXiv 2312.09608).

The mechanism stands in `encyclo.sampling.encoder_propagation` and `encyclo.nn.split_unet` and works on any diffusers
UNet; here are the class-conditional diffusion model it is shown on, its use on a pipeline of one's own, and the
experiment.
"""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int64
from pydantic import Field
from torch import Tensor

from encyclo import page, picture
from encyclo.card import Card
from encyclo.data import Splits
from encyclo.data.augment import Augment
from encyclo.data.images import Image
from encyclo.errors import InputError
from encyclo.experiment import Claim, Experiment, Preset, Trial
from encyclo.metrics.cost import flops, interleaved
from encyclo.metrics.feature_change import FeatureStudy, draw, evenly_spaced, feature_study, mean_change
from encyclo.metrics.judge import accuracy, kid_difference
from encyclo.metrics.unet_halves import Halves, encoder_time_share, half_macs
from encyclo.nn.diffusion_unet import ClassConditionalUNet, TextConditionalUNet
from encyclo.picture import Picture
from encyclo.sampling.diffusion import NoiseSchedule
from encyclo.sampling.encoder_propagation import (
    Counts,
    EncoderPropagation,
    Propagation,
    accelerate_sampling,
    key_steps,
)
from encyclo.sampling.pipelines import call_pipeline, open_pipeline
from encyclo.system import System
from encyclo.systems.image_diffusion import ImageDiffusion, ImageDiffusionConfig
from encyclo.training import AdamW, Schedule, Trainer, TrainingConfig
from encyclo.training.denoising import unfold
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


class FasterDiffusion(ImageDiffusion):
    """A diffusion model whose sampler runs the UNet's encoder at key steps and only the decoder in between.

    The model is `ImageDiffusion`'s; sampling is DDIM (eta 0) or DPM-Solver++. The retrofit itself trains nothing: with
    `base` it is put on a diffusers pipeline instead (`FasterPipeline`).
    """

    card = CARD

    class Config(ImageDiffusionConfig):
        """The model, its sampler and the propagation."""

        base: str | None = Field(
            None, description="a diffusers pipeline (folder or hub id) to speed up; None: a model trained here"
        )
        propagation: Propagation = Propagation()

        def build(self, **context: Any) -> "FasterDiffusion":
            """A `FasterPipeline` where there is a base."""
            return FasterPipeline(self) if self.base else super().build(**context)  # type: ignore[no-any-return]

    evaluated: Tensor
    """Latents that `evaluate` drew, the same noise and classes in every arm."""

    # -- sampling --------------------------------------------------------------------------------------------------

    def draw(
        self,
        noise: Float[Tensor, "b d p q"],
        labels: Int64[Tensor, " b"] | None,
        propagation: Propagation | None,
        *,
        steps: int | None = None,
        sampler: str | None = None,
        together: int = 200,
    ) -> tuple[Float[Tensor, "b d p q"], Counts]:
        """Latents from noise, and what one sampling ran.

        Args:
            noise: z_T.
            labels: classes.
            propagation: None runs every step in full.
            steps: sampler steps; default the configuration's.
            sampler: "ddim" or "dpm++"; default the configuration's.
            together: images sampled at a time.
        """
        config = self.config
        scheduler = config.noise.sampler(sampler or config.sampler)
        told = propagation or Propagation(keys="all", mode="serial", alpha=0.0)
        parts, counts = [], Counts()
        for at in range(0, len(noise), together):
            chosen = None if labels is None else labels[at : at + together]
            with EncoderPropagation(self.unet, scheduler, told) as running:
                parts.append(self.denoise(noise[at : at + together], chosen, scheduler, steps or config.steps))
            counts = running.counts if at == 0 else counts
        return torch.cat(parts), counts

    @torch.no_grad()
    def evaluate(self, data: Splits) -> dict[str, float]:
        """Distances to the test images in the classifier's features, accuracy of the asked class, calls and MACs."""
        config = self.config
        noise, labels = self.noise_and_labels(config.samples, seed=1234 + self.noise_seed)
        began = time.perf_counter()
        latents, counts = self.draw(noise, labels, config.propagation)
        seconds = time.perf_counter() - began
        self.evaluated = latents
        return {
            **self.judged(unfold(latents, config.fold), labels, self.images(data.test)[0]),
            "encoder_calls": float(counts.encoder_calls),
            "decoder_evaluations": float(counts.decoded),
            "sample_seconds": seconds,
            "macs_per_image": self.call_macs().sampling(counts.encoder_calls, counts.decoded),
        }

    def call_macs(self) -> Halves:
        """Multiply-accumulates of one call of each half for one image, counted."""
        noise, labels = self.noise_and_labels(1, seed=0)
        return half_macs(self.unet, noise.to(self.device), self.conditions(labels))

    @torch.no_grad()
    def counted_macs(self, propagation: Propagation | None) -> float:
        """Multiply-accumulates of one whole sampling of one image, every operation counted while it runs."""
        noise, labels = self.noise_and_labels(1, seed=0)
        return flops(lambda: self.draw(noise, labels, propagation)) / 2

    # -- verbs -------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def generate(
        self,
        *,
        label: str | None = None,
        prompt: str | None = None,
        count: int = 16,
        seed: int = 0,
        speedup: bool = True,
        keys: str | None = None,
        mode: str | None = None,
        alpha: float | None = None,
        sampler: str | None = None,
        steps: int | None = None,
    ) -> Result:
        """Draw images, one after the other class or of one class.

        Args:
            label: a class by name; None goes through all.
            prompt: for a pipeline that is guided by text.
            count: images.
            seed: of the noise.
            speedup: False runs the encoder at every step.
            keys: another key set (`paper`, `uniform:4`, `0,1,2,5` ...).
            mode: parallel or serial.
            alpha: strength of the noise injection.
            sampler: ddim or dpm++.
            steps: sampler steps.
        """
        if prompt is not None:
            raise InputError("prompt: this model knows classes, not text; give label=, or train with base=PIPELINE")
        if label is not None and label not in self.labels:
            raise InputError(f"label={label} is none of the model's classes: {', '.join(self.labels) or 'it has none'}")
        if sampler not in (None, "ddim", "dpm++"):
            raise InputError(f"sampler={sampler} is none of ddim, dpm++")
        steps = self.config.steps if steps is None else steps
        told = self._told(count, speedup, keys, mode, alpha, steps)
        noise, labels = self.noise_and_labels(count, seed)
        if label is not None:
            labels = torch.full_like(labels, self.labels.index(label))
        began = time.perf_counter()
        latents, counts = self.draw(noise, labels, told, steps=steps, sampler=sampler)
        report = _report(counts, time.perf_counter() - began)
        report["macs_per_image"] = self.call_macs().sampling(counts.encoder_calls, counts.decoded)
        return Result(_images(unfold(latents, self.config.fold)), report)

    def _told(
        self, count: int, speedup: bool, keys: str | None, mode: str | None, alpha: float | None, steps: int
    ) -> Propagation | None:
        """The propagation a user asked for, refused before sampling where it makes no sense."""
        if count < 1:
            raise InputError(f"count={count}: at least one image is drawn")
        if steps < 1:
            raise InputError(f"steps={steps}: at least one step is needed")
        words = {"mode": mode, "alpha": alpha}
        told = self.config.propagation.override([f"{k}={v}" for k, v in words.items() if v is not None])
        told = told.replace(keys=told.keys if keys is None else keys)
        key_steps(told.keys, steps)
        return told if speedup else None

    @torch.no_grad()
    def inspect(
        self, *, budget: float = 0.8, count: int = 16, prompt: str | None = None, out: Path | None = None
    ) -> Result:
        """Show how much each block's features change between steps, and propose key steps for a budget of MACs.

        Args:
            budget: share of the full sampling's MACs that the proposal may use.
            count: images to average over.
            prompt: for a pipeline that is guided by text.
            out: an HTML page; default inspect.html.
        """
        if not 0 < budget <= 1:
            raise InputError(f"budget={budget:g} is no share of the MACs: above 0, at most 1")
        if count < 1:
            raise InputError(f"count={count}: at least one image is drawn")
        study, halves, steps = self._studied(count, prompt)
        least = halves.sampling(1, steps) / halves.sampling(steps, steps)
        if budget < least:
            raise InputError(f"budget={budget:g} is below what the decoders alone cost: at least {least:.2f}")
        affordable = int((budget * halves.sampling(steps, steps) - steps * halves.decoder) / halves.encoder + 1e-9)
        proposal = evenly_spaced(study.change, max(1, min(steps, affordable)))
        listed = ", ".join(map(str, proposal))
        rows: list[dict[str, object]] = [
            {
                "block": name,
                "mean squared change": float(change[1:].mean()),
                "in units of its mean square": float(study.relative[name][1:].mean()),
                "mean norm": float(study.norm[name].mean()),
            }
            for name, change in study.change.items()
        ]
        body = page.figure(draw(study)) + page.table(rows)
        body += f"<p>Key steps proposed within {budget:.0%} of the MACs: {listed}</p>"
        written = page.write(out or Path("inspect.html"), page.page("How features change while sampling", body))
        report = {f"change_{name}": float(values[1:].mean()) for name, values in study.relative.items()}
        return Result(written, {**report, "proposed_keys": listed})

    def study(self, count: int = 16) -> FeatureStudy:
        """Change and norm of every block's features over a full sampling of `count` images."""
        noise, labels = self.noise_and_labels(count, seed=99 + self.noise_seed)
        return feature_study(self.unet, lambda: self.draw(noise, labels, None))

    def _studied(self, count: int, prompt: str | None) -> tuple[FeatureStudy, Halves, int]:
        if prompt is not None:
            raise InputError("prompt: this model knows classes, not text")
        return self.study(count), self.call_macs(), self.config.steps


class FasterPipeline(FasterDiffusion):
    """The retrofit on a diffusers pipeline (`base`): nothing is trained, and of the pipeline only its name is saved."""

    def __init__(self, config: Any) -> None:
        System.__init__(self, config)
        self.register_buffer("place", torch.zeros(0), persistent=False)  # follows `.to`, as the pipeline then does
        self._opened: list[Any] = []

    @property
    def pipe(self) -> Any:
        """The pipeline, opened at first use."""
        if not self._opened:
            pipe = open_pipeline(str(self.config.base))
            accelerate_sampling(pipe).remove()  # refuses one without a UNet
            self._opened.append(pipe)
        return self._opened[0].to(self.device)

    def fit(self, data: Splits, trainer: Trainer) -> None:
        """Nothing is learnt; the pipeline is opened, so that a wrong one is refused now."""
        _ = self.pipe

    def assets(self) -> dict[str, bytes]:
        """None."""
        return {}

    def load_assets(self, assets: Mapping[str, bytes]) -> None:
        """None."""

    def _call(
        self, prompt: str | None, count: int, seed: int, told: Propagation | None, steps: int | None = None
    ) -> tuple[Tensor, Counts]:
        told = told or Propagation(keys="all", mode="serial", alpha=0.0)
        with accelerate_sampling(self.pipe, told) as running:
            images = call_pipeline(self.pipe, count=count, seed=seed, steps=steps or self.config.steps, prompt=prompt)
        return images, running.counts

    @torch.no_grad()
    def evaluate(self, data: Splits) -> dict[str, float]:
        """One image with and without, from the same noise: calls, MACs (of the whole pipeline) and seconds."""
        told: dict[str, float] = {}
        for name, chosen in (("full", None), ("faster", self.config.propagation)):
            counts: list[Counts] = []
            began = time.perf_counter()
            macs = flops(lambda chosen=chosen, counts=counts: counts.append(self._call("", 1, 0, chosen)[1])) / 2
            told |= {
                f"{name}_encoder_calls": float(counts[0].encoder_calls),
                f"{name}_macs": macs,
                f"{name}_seconds": time.perf_counter() - began,
            }
        return {**told, "macs_saved": 100 * (1 - told["faster_macs"] / told["full_macs"])}

    @torch.no_grad()
    def generate(
        self,
        *,
        label: str | None = None,
        prompt: str | None = None,
        count: int = 1,
        seed: int = 0,
        speedup: bool = True,
        keys: str | None = None,
        mode: str | None = None,
        alpha: float | None = None,
        sampler: str | None = None,
        steps: int | None = None,
    ) -> Result:
        """Draw images with the pipeline; words as for `FasterDiffusion.generate`, the sampler is the pipeline's own."""
        if label is not None or sampler is not None:
            raise InputError("label= and sampler= are for models trained here; the pipeline has its own scheduler")
        steps = self.config.steps if steps is None else steps
        told = self._told(count, speedup, keys, mode, alpha, steps)
        began = time.perf_counter()
        images, counts = self._call(prompt, count, seed, told, steps)
        return Result(_images(images), _report(counts, time.perf_counter() - began))

    def _studied(self, count: int, prompt: str | None) -> tuple[FeatureStudy, Halves, int]:
        unet, first = self.pipe.unet, list[tuple[Any, Any]]()
        hook = unet.register_forward_pre_hook(
            lambda _, a, k: first.append((a, k)) if not first else None, with_kwargs=True
        )
        try:
            study = feature_study(
                unet, lambda: call_pipeline(self.pipe, count=count, seed=99, steps=self.config.steps, prompt=prompt)
            )
        finally:
            hook.remove()
        (sample, step, *more), told = first[0]
        if more:
            raise InputError(f"{type(self.pipe).__name__} calls its UNet in a way that cannot be counted")
        told = {k: v for k, v in told.items() if k != "return_dict"}
        return study, half_macs(unet, sample, told, step), len(self.pipe.scheduler.timesteps)


def _images(pixels: Tensor) -> list[Image]:
    return [Image(image, f"{i:04d}") for i, image in enumerate(pixels)]


def _report(counts: Counts, seconds: float) -> dict[str, Any]:
    return {
        "seconds": seconds,
        "encoder_calls": counts.encoder_calls,
        "decoder_calls": counts.decoder_calls,
        "decoder_evaluations": counts.decoded,
        "largest_batch": counts.largest_batch,
    }


# -- the experiment ---------------------------------------------------------------------------------------------------


def _fewer(config: FasterDiffusion.Config) -> int:
    """Steps of a plain sampler that cost the MACs of the accelerated one, counted on the network itself."""
    halves = FasterDiffusion(config).call_macs()
    keys = len(key_steps(config.propagation.keys, config.steps))
    return max(1, round(halves.sampling(keys, config.steps) / halves.sampling(1, 1)))


def experiment(preset: Preset) -> Experiment:
    """One trained model; the arms differ only in how they sample from it, the seeds in the noise they start from."""
    if preset is Preset.PAPER:
        stable = FasterDiffusion.Config(
            unet=TextConditionalUNet.Config(),
            noise=NoiseSchedule(beta_schedule="scaled_linear", clip_sample=False),
            image_size=128,  # 64 x 64 latents of 4 channels
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
            noise=NoiseSchedule(beta_schedule="squaredcos_cap_v2", prediction="velocity", clip_sample=False),
            judging=TrainingConfig(steps=1500, batch_size=64, optimiser=AdamW(lr=2e-3, weight_decay=0.05)),
            augment=Augment(scale=(0.7, 1.0), ratio=(0.85, 1.18)),
            training=TrainingConfig(
                steps=3000,
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

    trained: dict[str, FasterDiffusion] = {}

    def prepare(data: Splits, trainer: Trainer, seed: int) -> FasterDiffusion:
        system = trained.get(data.fingerprint)
        if system is None:
            torch.manual_seed(seed)
            system = trained[data.fingerprint] = FasterDiffusion(base)
            system.fit(data, trainer)
        system.noise_seed = seed
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
            statement="sample quality (KID) stays within 15 % of full sampling, or within two paired standard errors",
            metric="kid_excess",
            system="faster",
            bound=0.0,
            better="lower",
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
            statement="encoder features change less between steps than decoder features (mean squared change)",
            metric="encoder_change",
            system="full",
            rival="full",
            rival_metric="decoder_change",
            better="lower",
        ),
        Claim(
            statement="and less also in units of each block's own mean square",
            metric="encoder_relative_change",
            system="full",
            rival="full",
            rival_metric="decoder_relative_change",
            better="lower",
        ),
    ]
    if "faster-dpm" in systems:
        claims.append(
            Claim(
                statement="and so it does on DPM-Solver++ with 20 steps",
                metric="kid_excess",
                system="faster-dpm",
                bound=0.0,
                better="lower",
            )
        )
    if base.classes == 0:
        claims = [c for c in claims if c.metric not in ("accuracy", "kid", "kid_excess")]
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
            "draw_seconds": "s per 16 images",
            "macs_saved": "MACs saved, %",
            "time_saved": "time saved, %",
            "kid": "KID (classifier features)",
            "frechet": "Fréchet (classifier features)",
            "accuracy": "asked class, %",
            "mse_to_full": "MSE to full",
        },
        fairness="All arms sample from the same trained weights with the same noise and classes; the method trains "
        "nothing, so one model serves all seeds, which differ in the noise. The classifier behind KID and accuracy was "
        "trained on images the generator never saw. Errors of KID are paired over eight blocks of the "
        "drawn images. Time saved beyond the encoder's share is what larger decoder batches gain: little on a CPU; the "
        "paper's 41 % against 27 % of MACs is that effect on a GPU.",
    )


def _compare(trial: Trial) -> dict[str, dict[str, float]]:
    """Paired distance to full sampling, time of all arms taking turns, and the study of features."""
    arms = {n: s for n, s in trial.systems.items() if isinstance(s, FasterDiffusion)}
    full = arms["full"]
    noise, labels = full.noise_and_labels(min(16, full.config.samples), seed=77 + trial.seed)
    told: dict[str, dict[str, float]] = {name: {} for name in arms}

    def drawn(name: str, **changes: Any) -> Tensor:
        system = arms[name]
        return system.draw(noise, labels, system.config.propagation.replace(**changes))[0]

    with torch.no_grad():
        for name, system in arms.items():
            reference = arms["full" if system.config.sampler == "ddim" else "full-dpm"]
            told[name]["mse_to_full"] = float((system.evaluated - reference.evaluated).square().mean())
        gap = drawn("faster", mode="serial") - drawn("faster", mode="parallel")
        told["faster"]["serial_parallel_gap"] = float(gap.abs().max())
        timed = [name for name in ("full", "faster", "full-dpm", "faster-dpm") if name in arms]
        seconds = interleaved({name: lambda name=name: drawn(name) for name in timed}, rounds=5)
        macs_share = full.call_macs().share
        time_share = encoder_time_share(full.unet, noise.to(full.device), full.conditions(labels))
        study = full.study()
        real, classes = full.images(trial.data.test)
        if full.config.classes:
            told["full"]["judge_accuracy_on_real"] = accuracy(full.judge, real, classes)
    for name, value in seconds.items():
        told[name]["draw_seconds"] = value
    for ours, theirs in (("faster", "full"), ("faster-dpm", "full-dpm")):
        if ours not in arms:
            continue
        config = arms[ours].config
        skipped = 1 - len(key_steps(config.propagation.keys, config.steps)) / config.steps
        macs = 1 - arms[ours].counted_macs(config.propagation) / arms[theirs].counted_macs(None)
        saved = 1 - seconds[ours] / seconds[theirs]
        if full.config.classes:
            drawn_by = {n: unfold(arms[n].evaluated, full.config.fold) for n in (ours, theirs)}
            difference = kid_difference(full.judge, drawn_by[ours], drawn_by[theirs], real)
            kid, full_kid = trial.metrics[ours]["kid"], trial.metrics[theirs]["kid"]
            told[ours] |= {
                "kid_difference": difference.mean,
                "kid_difference_error": difference.error,
                "kid_excess": kid - max(1.15 * full_kid, full_kid + 2 * difference.error),
            }
        told[ours] |= {
            "macs_saved": macs * 100,
            "macs_error": abs(macs - skipped * macs_share) * 100,
            "time_saved": saved * 100,
            "time_over_macs": saved / macs,
            "time_over_bound": saved / (skipped * time_share),
        }
    told["full"] |= {
        "encoder_change": mean_change(study.change, "encoder"),
        "decoder_change": mean_change(study.change, "decoder"),
        "encoder_relative_change": mean_change(study.relative, "encoder"),
        "decoder_relative_change": mean_change(study.relative, "decoder"),
        "encoder_time_share": time_share * 100,
        "encoder_macs_share": macs_share * 100,
    }
    return told


def _pictures(trial: Trial) -> list[Picture]:
    arms = {n: s for n, s in trial.systems.items() if isinstance(s, FasterDiffusion)}
    full = arms["full"]
    noise, labels = full.noise_and_labels(10, seed=3)
    titles = {
        "full": "every step in full",
        "faster": "",
        "no-injection": "the same without noise injection",
        "decoder-propagation": "the control: decoder reused instead",
        "fewer-steps": "plain, with fewer steps at the same cost",
    }
    keys = arms["faster"].config
    titles["faster"] = f"encoder at {len(key_steps(keys.propagation.keys, keys.steps))} of {keys.steps} steps"
    with torch.no_grad():
        rows = {
            title: unfold(arms[name].draw(noise, labels, arms[name].config.propagation)[0], full.config.fold)
            for name, title in titles.items()
            if name in arms
        }
        study = full.study()
    caption = "The same noise and classes, sampled in five ways."
    return [picture.grid(rows, "samples", caption, scale=2, docs=True), draw(study, docs=True)]
