"""What a masked image encoder is compared with: a masked autoencoder, and the encoder as it was drawn.

A system's file derives its rivals from these: a class with the file's card, and the defaults of its experiment.
"""

import torch
from jaxtyping import UInt8
from torch import Tensor

from encyclo.data import Splits
from encyclo.data.augment import IMAGENET_MEAN, IMAGENET_STD, Augment
from encyclo.losses.masked_pixels import masked_pixel_loss, patch_targets
from encyclo.nn.masked_autoencoder import MaskedDecoder
from encyclo.sampling.masks import Mask, RandomMask, split_mask
from encyclo.systems.image_encoder import ImageEncoder, ImageEncoderConfig
from encyclo.training import Loss, Trainer

__all__ = ["MaskedAutoencoder", "MaskedAutoencoderConfig", "UntrainedEncoder"]


class MaskedAutoencoderConfig(ImageEncoderConfig):
    """Encoder, decoder and how much is hidden; by default the published ViT-base."""

    decoder: MaskedDecoder.Config = MaskedDecoder.Config()
    mask: Mask = RandomMask(ratio=0.75)
    normalise_pixels: bool = True
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    augment: Augment = Augment(scale=(0.2, 1.0), ratio=(3 / 4, 4 / 3), flip=0.5)


class MaskedAutoencoder(ImageEncoder):
    """Masked autoencoder (He et al. 2021, arXiv 2111.06377): pixels of hidden patches from visible and mask tokens."""

    Config = MaskedAutoencoderConfig

    def __init__(self, config: MaskedAutoencoderConfig) -> None:
        super().__init__(config)
        out = config.encoder.patch**2 * config.encoder.channels
        self.decoder = config.decoder.build(encoder_dim=config.encoder.dim, grid=self.grid, out_dim=out)

    def loss(self, images: UInt8[Tensor, "b c h w"]) -> Loss:
        """Mean squared error over the pixels of hidden patches."""
        images = self.config.augment(images)
        mask = self.config.mask.draw(len(images), self.grid)
        visible, hidden = (index.to(images.device) for index in split_mask(mask))
        pixels = self.prepared(images)
        target = patch_targets(pixels, self.config.encoder.patch, normalise=self.config.normalise_pixels)
        predicted = self.decoder(self.encoder(pixels, visible), torch.cat((visible, hidden), 1))
        loss = masked_pixel_loss(predicted.float(), target, mask.to(images.device))
        return Loss(loss, float(hidden.numel()))

    def fit(self, data: Splits, trainer: Trainer) -> None:
        """One stage."""
        _, batches = self.batches(data, trainer)
        trainer.fit(self, self.loss, batches, self.config.training)

    def evaluate(self, data: Splits) -> dict[str, float]:
        """The probes, if there are labels; accuracies in percent."""
        return self.probe_metrics(data)


class UntrainedEncoder(ImageEncoder):
    """The encoder as it was drawn: what the probes read off random features."""

    def fit(self, data: Splits, trainer: Trainer) -> None:
        """Nothing to learn; the weights are drawn from the run's seed, as those of the other arms are."""

    def evaluate(self, data: Splits) -> dict[str, float]:
        """The probes, if there are labels; accuracies in percent."""
        return self.probe_metrics(data)
