"""What every system that starts from a diffusion model of pictures shares: the model, its training, its yardstick.

A system of the generation wing derives from `ImageDiffusion` and adds its mechanism and its verbs; `fit`, the fixed
noise and classes, plain sampling and the judgement of samples are here.
"""

import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import torch
from jaxtyping import Float, Int64, UInt8
from pydantic import Field
from torch import Tensor

from encyclo.data import Splits
from encyclo.data.augment import Augment
from encyclo.data.images import to_tensor
from encyclo.errors import InputError
from encyclo.metrics.judge import fit_judge, judged
from encyclo.nn.diffusion_unet import ClassConditionalUNet, TextConditionalUNet
from encyclo.nn.small_classifier import SmallClassifier
from encyclo.sampling.diffusion import NoiseSchedule, sample
from encyclo.system import System, SystemConfig
from encyclo.training import AdamW, Trainer, TrainingConfig
from encyclo.training.denoising import fit_denoiser

__all__ = ["ImageDiffusion", "ImageDiffusionConfig"]


class ImageDiffusionConfig(SystemConfig):
    """The model, its sampler and its yardstick."""

    unet: Annotated[ClassConditionalUNet.Config | TextConditionalUNet.Config, Field(discriminator="kind")] = (
        ClassConditionalUNet.Config()
    )
    noise: NoiseSchedule = NoiseSchedule()
    sampler: Literal["ddim", "dpm++"] = "ddim"
    steps: int = Field(50, ge=1, description="sampler steps")
    image_size: int = Field(32, ge=8)
    channels: Literal[1, 3] = 1
    fold: int = Field(2, ge=1, description="pixel-unshuffle factor; 1: none")
    classes: int = Field(10, ge=0, description="0: unconditional")
    judge: SmallClassifier.Config = SmallClassifier.Config()
    training: TrainingConfig = TrainingConfig(steps=1500, batch_size=64, optimiser=AdamW(lr=1e-3), ema=0.995)
    judging: TrainingConfig = TrainingConfig(steps=600, batch_size=64, optimiser=AdamW(lr=2e-3, weight_decay=0.05))
    """Training of the classifier whose features measure the samples."""
    augment: Augment = Augment()
    """Of the classifier's training images."""
    samples: int = Field(400, ge=8, description="images drawn for the metrics")


class ImageDiffusion(System):
    """A diffusion model trained to predict noise or velocity (`noise.prediction`) on images in [-1, 1].

    Images are folded by pixel-unshuffle into a lossless "latent" of `channels * fold^2` channels. With classes, a
    classifier trained on the half of the images that the model never sees gives the features in which samples are
    measured.
    """

    reads = "image"
    Config = ImageDiffusionConfig
    config: Any

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        depth = config.channels * config.fold**2
        self.unet = config.unet.build(size=config.image_size // config.fold, channels=depth, classes=config.classes)
        self.judge = config.judge.build(channels=config.channels, classes=max(config.classes, 2))
        self.labels: list[str] = [str(i) for i in range(config.classes)]
        self.noise_seed = 0  # of the noise that `evaluate` starts from
        self._started = False

    def start_from(self, prepared: "ImageDiffusion") -> None:
        """Take a trained model: the arms of an experiment then differ only in how they sample."""
        self.load_state_dict(prepared.state_dict())
        self.labels, self.noise_seed = list(prepared.labels), prepared.noise_seed
        self._started = True

    def fit(self, data: Splits, trainer: Trainer) -> None:
        """Train the UNet (with a running average of weights), then the classifier that measures samples."""
        if self._started:
            return
        config = self.config
        if config.unet.kind == "text":
            raise InputError("a text-conditional UNet is not trained here: give a trained pipeline instead")
        images, labels = self.images(data.train, learn_labels=True)
        # the yardstick learns from images that the generator does not see
        order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
        own, held = order.tensor_split([len(images) // 2])
        classes = labels[own] if config.classes else None
        scheduler = config.noise.training_scheduler()
        fit_denoiser(self.unet, images[own], classes, scheduler, trainer, config.training, factor=config.fold)
        if config.classes:
            fit_judge(self.judge, images[held], labels[held], trainer, config.judging, augment=config.augment)

    def images(self, rows: Any, *, learn_labels: bool = False) -> tuple[UInt8[Tensor, "n c h w"], Int64[Tensor, " n"]]:
        """Images and class numbers of a table with the columns `image` and (with classes) `label`.

        Args:
            rows: a data set.
            learn_labels: its labels become the model's class names.

        Raises:
            InputError: no labels, or more than the model has classes.
        """
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

    def noise_and_labels(self, count: int, seed: int) -> tuple[Float[Tensor, "b d p q"], Int64[Tensor, " b"]]:
        """The same noise and labels for every arm: drawn on the CPU from `seed`, classes in turn."""
        generator = torch.Generator().manual_seed(seed)
        config = self.config
        side, depth = config.image_size // config.fold, config.channels * config.fold**2
        noise = torch.randn(count, depth, side, side, generator=generator)
        return noise, torch.arange(count) % max(config.classes, 1)

    def conditions(self, labels: Int64[Tensor, " b"] | None) -> dict[str, Tensor]:
        """Keyword arguments of the UNet's forward for these classes; empty for an unconditional model."""
        return {} if labels is None or not self.config.classes else {"class_labels": labels.to(self.device)}

    def denoise(
        self, noise: Float[Tensor, "b d p q"], labels: Int64[Tensor, " b"] | None, scheduler: Any, steps: int
    ) -> Float[Tensor, "b d p q"]:
        """Latents from noise, with the given scheduler."""
        told = self.conditions(labels)
        return sample(self.unet, scheduler, noise.to(self.device), steps=steps, labels=told.get("class_labels"))

    def judged(
        self, images: UInt8[Tensor, "n c h w"], labels: Int64[Tensor, " n"], real: UInt8[Tensor, "m c h w"]
    ) -> dict[str, float]:
        """KID, Fréchet distance and accuracy in the classifier's eyes; nothing without classes (no classifier)."""
        return judged(self.judge, images, real, labels) if self.config.classes else {}
