"""Training a diffusion network on pictures: what every generation system that starts from one shares."""

from collections.abc import Mapping
from typing import Any

from jaxtyping import Float, Int64, UInt8
from torch import Tensor, nn
from torch.nn import functional

from encyclo.data.batches import Batches
from encyclo.losses.denoising import denoising_error
from encyclo.training.config import TrainingConfig
from encyclo.training.loss import Loss
from encyclo.training.trainer import Trainer


def fold(images: UInt8[Tensor, "b c h w"], factor: int) -> Float[Tensor, "b d p q"]:
    """Pixels 0..255 to [-1, 1], `factor` x `factor` of them folded into channels: nothing is lost."""
    return functional.pixel_unshuffle(images.float() / 127.5 - 1, factor)


def unfold(latents: Float[Tensor, "b d p q"], factor: int) -> UInt8[Tensor, "b c h w"]:
    """Back to pixels 0..255, on the CPU."""
    pixels = functional.pixel_shuffle(latents.float(), factor)
    return ((pixels.clamp(-1, 1) + 1) * 127.5).round().byte().cpu()


def fit_denoiser(
    unet: nn.Module,
    images: UInt8[Tensor, "n c h w"],
    labels: Int64[Tensor, " n"] | None,
    scheduler: Any,
    trainer: Trainer,
    config: TrainingConfig,
    *,
    factor: int = 1,
    stage: str = "diffusion",
) -> None:
    """Train a diffusers UNet to predict the noise (or velocity); it ends with the running average of its weights.

    Args:
        unet: called as `unet(noisy, t, class_labels=..., return_dict=False)`.
        images: the training set.
        labels: classes, or None for an unconditional network.
        scheduler: a diffusers scheduler with `add_noise`.
        trainer: the loop.
        config: budget, optimiser, EMA.
        factor: of the fold.
        stage: name of the stage.
    """

    def loss(batch: Mapping[str, Tensor]) -> Loss:
        clean = fold(batch["image"], factor)
        told = {"class_labels": batch["label"]} if labels is not None else {}
        value = denoising_error(
            lambda noisy, times: unet(noisy, times, return_dict=False, **told)[0], clean, scheduler, trainer.generator
        )
        return Loss(value, float(len(clean)))

    source = {"image": images} if labels is None else {"image": images, "label": labels}
    unet.train()
    trainer.fit(unet, loss, Batches(source, config.batch_size, seed=trainer.seed), config, stage=stage)
    with trainer.averaged(unet):
        averaged = {name: tensor.clone() for name, tensor in unet.state_dict().items()}
    unet.load_state_dict(averaged)
    unet.eval()
