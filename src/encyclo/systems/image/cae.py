"""Context autoencoder: an image encoder that learns by predicting, in its own latents, the patches it does not see."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64, UInt8
from pydantic import Field, model_validator
from torch import Tensor, nn

from encyclo import page
from encyclo.card import Card
from encyclo.data import Splits
from encyclo.data.augment import IMAGENET_MEAN, IMAGENET_STD, Augment
from encyclo.data.images import write_image
from encyclo.errors import InputError
from encyclo.experiment import Claim, Experiment, Preset, Trial
from encyclo.metrics.latent_bypass import HEADLINES, bypass_metrics, bypass_page, bypass_sheet
from encyclo.nn.latent_regressor import LatentRegressor
from encyclo.nn.masked_autoencoder import MaskedDecoder
from encyclo.nn.patch import gather_tokens, patchify, unpatchify
from encyclo.nn.sincos import sincos_2d
from encyclo.nn.vit import Init, ViT, ViTBlocks
from encyclo.picture import Picture, curves, grid
from encyclo.sampling.masks import BlockMask, Mask, RandomMask, split_mask
from encyclo.systems.image_checkpoints import cae_layout, read_weights
from encyclo.systems.image_encoder import ImageEncoder, ImageEncoderConfig
from encyclo.systems.image_rivals import MaskedAutoencoder, MaskedAutoencoderConfig, UntrainedEncoder
from encyclo.tokens.image_codebook import KMeansCodebook, PatchTokenizer
from encyclo.training import AdamW, Loss, Schedule, Trainer, TrainingConfig
from encyclo.verbs import Result

CARD = Card(
    slug="cae",
    title="Context Autoencoder for Self-Supervised Representation Learning",
    authors="Chen, Ding, Wang, Xin, Mo, Wang, Han, Luo, Zeng, Wang",
    year=2022,
    arxiv="2202.03026",
    venue="IJCV 2024",
    wing="image",
    summary="Masked image modelling with a regressor that predicts hidden patches in the encoder's own latent space.",
    verbs=("encode", "probe", "finetune", "classify", "reconstruct", "inspect", "import"),
    code="https://github.com/Atten4Vis/CAE",
    code_licence="none stated",
    keywords=("masked image modelling", "vision transformer", "self-supervised", "latent regression", "alignment"),
)


class Latents(NamedTuple):
    """One pass over m hidden patches: predicted latents, the encoder's own latents of them, logits of k codes."""

    predicted: Float[Tensor, "b m d"]
    target: Float[Tensor, "b m d"]
    logits: Float[Tensor, "b m k"]


class CAE(ImageEncoder):
    """Encoder, latent contextual regressor and decoder (Chen et al. 2022, section 3).

    The encoder F sees the visible patches alone: Z_v = F(x_v). The regressor H predicts the latents of the hidden ones
    from Z_v and the positions. The decoder G sees these predictions alone and names the code of each hidden patch. An
    alignment branch, the same encoder without gradients on the hidden patches, gives Z*_m = F(x_m).
    Loss: CE(G(H(Z_v)), codes) + lambda * MSE(H(Z_v), stop_gradient(Z*_m)), lambda = 2, means over hidden patches.
    """

    card = CARD

    class Config(ImageEncoderConfig):
        """Every number of the method; the defaults are the published base model."""

        encoder: ViT.Config = ViT.Config(blocks=ViTBlocks.Config(bias="qv", layer_scale=0.1, drop_path=0.1))
        regressor: LatentRegressor.Config = LatentRegressor.Config(layer_scale=0.1, drop_path=0.1)
        decoder: ViTBlocks.Config = ViTBlocks.Config(depth=4, bias="qv", layer_scale=0.1, drop_path=0.1)
        decoder_dim: int | None = Field(None, description="width of regressor and decoder; None: the encoder's")
        codebook: PatchTokenizer = KMeansCodebook.Config(codes=8192, patch=16, channels=3)
        mask: Mask = BlockMask()
        alignment: float = Field(2.0, ge=0, description="lambda; 0 trains without alignment")
        mean: tuple[float, ...] = IMAGENET_MEAN
        std: tuple[float, ...] = IMAGENET_STD
        augment: Augment = Augment(scale=(0.08, 1.0), ratio=(3 / 4, 4 / 3), flip=0.5)

        @model_validator(mode="after")
        def _channels_agree(self) -> "CAE.Config":
            ours, theirs = self.encoder.channels, self.codebook.channels
            if ours != theirs:
                raise ValueError(f"encoder.channels={ours} and codebook.channels={theirs} must be equal")
            return self

    config: Config
    positions: Tensor

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        outer, inner = config.encoder.dim, config.decoder_dim or config.encoder.dim
        # only where the widths differ: latents, and targets too, are brought to the regressor's width
        self.bridge = nn.Sequential(nn.Linear(outer, inner), nn.LayerNorm(inner, eps=1e-6)) if inner != outer else None
        self.regressor = config.regressor.build(dim=inner)
        self.decoder = config.decoder.build(dim=inner)
        self.codebook = config.codebook.build()
        self.to_codes = nn.Linear(inner, self.codebook.codes)
        self.register_buffer("positions", torch.zeros(self.encoder.count, inner), persistent=False)
        self.init_own()

    def init_own(self) -> None:
        """Draw the layers between the parts as the decoder's are drawn, and fill in the fixed positions."""
        for layer in (self.to_codes, *(self.bridge or ())):
            if isinstance(layer, nn.Linear):
                if self.config.decoder.init == "xavier":
                    nn.init.xavier_uniform_(layer.weight)
                else:
                    nn.init.trunc_normal_(layer.weight, std=0.02, a=-0.02, b=0.02)
                nn.init.zeros_(layer.bias)
        with torch.no_grad():
            first = self.config.encoder.sincos_first
            self.positions.copy_(sincos_2d(self.grid, self.positions.shape[1], first=first))

    # -- the method ------------------------------------------------------------------------------------------------

    def encode_patches(self, tokens: Float[Tensor, "b n e"], index: Int64[Tensor, "b k"]) -> Float[Tensor, "b k d"]:
        """F on some of the embedded patches, at the regressor's width; the class token goes along and is dropped."""
        latents: Tensor = self.encoder.encode(gather_tokens(tokens, index))[:, int(self.config.encoder.cls_token) :]
        return latents if self.bridge is None else self.bridge(latents)

    def decode_latents(self, latents: Float[Tensor, "b m d"], hidden: Int64[Tensor, "b m"]) -> Float[Tensor, "b m k"]:
        """G: logits of codes from latents of hidden patches and their places; nothing else is seen."""
        logits: Tensor = self.to_codes(self.decoder(latents + self.positions[hidden]))
        return logits

    def predict(
        self, pixels: Float[Tensor, "b c h w"], visible: Int64[Tensor, "b v"], hidden: Int64[Tensor, "b m"]
    ) -> Latents:
        """All parts once, on normalised pixels and the indices of visible and hidden patches."""
        tokens = self.encoder.embed(pixels)
        seen = self.encode_patches(tokens, visible)
        with torch.no_grad():
            target = self.encode_patches(tokens, hidden)
        predicted = self.regressor(seen, self.positions[visible], self.positions[hidden])
        return Latents(predicted, target, self.decode_latents(predicted, hidden))

    def loss(self, images: UInt8[Tensor, "b c h w"]) -> Loss:
        """The loss of a batch: augmented, masked, with the codes of the very same crop as targets."""
        images = self.config.augment(images)
        mask = self.config.mask.draw(len(images), self.grid)
        visible, hidden = (index.to(images.device) for index in split_mask(mask))
        codes = self.codebook.encode(images, self.grid).gather(1, hidden)
        found = self.predict(self.prepared(images), visible, hidden)
        reconstruction = F.cross_entropy(found.logits.float().flatten(0, 1), codes.flatten())
        alignment = F.mse_loss(found.predicted.float(), found.target.float())
        logs = {
            "cross_entropy": reconstruction,
            "alignment_mse": alignment,
            "token_accuracy": (found.logits.detach().argmax(-1) == codes).float().mean(),
        }
        return Loss(reconstruction + self.config.alignment * alignment, float(codes.numel()), logs)

    def fit(self, data: Splits, trainer: Trainer) -> None:
        """Learn the codebook on the training pictures, then all parts together."""
        sample, batches = self.batches(data, trainer)
        if not self.codebook.ready:
            self.codebook.learn(sample)
        trainer.fit(self, self.loss, batches, self.config.training)

    # -- measuring -------------------------------------------------------------------------------------------------

    def paths(
        self, images: UInt8[Tensor, "n c h w"], mask: Mask | None = None, *, seed: int = 0, batch_size: int = 250
    ) -> dict[str, Tensor]:
        """Both ways from a picture to the codes of its hidden patches, on masks that `seed` fixes.

        Returns:
            hidden [n, m]: indices of the hidden patches. codes [n, m]: their true codes. blank [n, m]: whether all
            pixels of the patch are alike. regressed [n, m]: codes named through regressor and decoder. bypassed
            [n, m]: codes that the decoder names from the encoder's own latents of the hidden patches. predicted,
            target [n, m, d]: the regressor's latents and the encoder's.
        """
        if not self.codebook.ready:
            raise InputError("this run has no codebook (imported weights?): it encodes, but cannot name codes")
        self.eval()
        generator = torch.Generator().manual_seed(seed)
        found: dict[str, list[Tensor]] = {}
        for part in torch.split(images, batch_size):
            drawn = (mask or self.config.mask).draw(len(part), self.grid, generator)
            visible, hidden = (index.to(self.device) for index in split_mask(drawn))
            here = part.to(self.device)
            with torch.no_grad():
                latents = self.predict(self.prepared(here), visible, hidden)
                bypassed = self.decode_latents(latents.target, hidden).argmax(-1)
            patches = patchify(here, self.config.encoder.patch)
            values = {
                "hidden": hidden,
                "codes": self.codebook.encode(here, self.grid).gather(1, hidden),
                "blank": (patches.amax(-1) == patches.amin(-1)).gather(1, hidden),
                "regressed": latents.logits.argmax(-1),
                "bypassed": bypassed,
                "predicted": latents.predicted,
                "target": latents.target,
            }
            for name, value in values.items():
                found.setdefault(name, []).append(value.cpu())
        return {name: torch.cat(values) for name, values in found.items()}

    def evaluate(self, data: Splits) -> dict[str, float]:
        """On test pictures: how often both paths name the right code, alignment error, and probes if there are labels.

        Accuracies in percent. `alignment_error` is the mean squared error over the latents' variance (1: no better than
        their mean), `latent_std` their deviation (0: collapsed), `majority` the rate of the most frequent code.
        """
        pixels = self.held_out(data)
        if pixels is None:
            return {}
        return {**bypass_metrics(self.paths(pixels)), **self.probe_metrics(data)}

    # -- verbs -----------------------------------------------------------------------------------------------------

    def reconstruct(
        self,
        images: Sequence[Path | Tensor],
        *,
        mask_ratio: float | None = None,
        seed: int = 0,
        out: Path | None = None,
    ) -> Result:
        """Show pictures, what is hidden of them, and what the model makes of the hidden patches.

        Args:
            images: picture files, folders of them, or uint8 tensors [c, h, w] of the model's size.
            mask_ratio: share of the patches to hide; None hides as in training.
            seed: of the masks.
            out: a picture file (.png, .webp) with a column a picture and rows as below; or a folder, for one such
                file a picture.

        Returns:
            The file, or uint8 [n, 4, c, h, w]: the picture; hidden patches grey; hidden patches from the regressor;
            hidden patches from the encoder's own latents of them (latent bypass). A code is drawn as its centre.
        """
        if mask_ratio is not None and not 0 < mask_ratio < 1:
            raise InputError(f"mask_ratio={mask_ratio:g} is no share: give a number between 0 and 1")
        notes: list[str] = []
        pixels = self.read(images, notes)
        mask = self.config.mask if mask_ratio is None else self.config.mask.replace(ratio=mask_ratio)
        found = self.paths(pixels, mask, seed=seed)
        rows = self._drawn(pixels, found)
        report = {name: value for name, value in bypass_metrics(found).items() if name in HEADLINES}
        if out is None:
            return Result(rows, report, notes)
        # [n, row, c, h, w]: rows below one another, pictures side by side
        sheets = [(out, rows)] if out.suffix else [(out / f"{i:04d}.png", row[None]) for i, row in enumerate(rows)]
        for path, part in sheets:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_image(part.permute(2, 1, 3, 0, 4).flatten(3, 4).flatten(1, 2), path)
        return Result(out, report, notes)

    def inspect(self, images: Sequence[Path | Tensor], *, seed: int = 0, out: Path | None = None) -> Result:
        """A page that shows whether predictions live in the encoder's latent space: latent bypass and alignment error.

        Args:
            images: picture files, folders of them, or uint8 tensors [c, h, w] of the model's size.
            seed: of the masks.
            out: the page (.html); None gives its text.
        """
        notes: list[str] = []
        pixels = self.read(images, notes)
        found = self.paths(pixels, seed=seed)
        measured = bypass_metrics(found)
        shown = self._drawn(pixels[:16], {name: value[:16] for name, value in found.items()})
        sheet = bypass_sheet(shown, "bypass", "The first pictures.", side=112)
        codes = torch.arange(min(self.codebook.codes, 256))[None]
        side = max(1, int(codes.shape[1] ** 0.5))
        centres = self.codebook.decode(codes[:, : side * side].to(self.device), (side, side)).cpu()
        atlas = grid(
            {"codes": centres}, "codes", "The codes, each as its centre.", scale=max(1, 256 // centres.shape[-1])
        )
        text = bypass_page(measured, len(pixels), (sheet, atlas))
        return Result(text if out is None else page.write(out, text), measured, notes)

    @classmethod
    def import_(cls, checkpoint: Path, *, heads: int | None = None, out: Path | None = None) -> Result:
        """Open published `cae_*` weights (the layout of the official code) as a run.

        Args:
            checkpoint: .safetensors, or .pth (read without running code from it).
            heads: of encoder, regressor and decoder; None: one per 64 channels, as in base and large.
            out: the run folder.

        Returns:
            The run folder. Its codebook is empty (the published one is OpenAI's dVAE, which is not in the file): the
            run encodes, probes and fine-tunes; `reconstruct` and `inspect` need codes.

        Raises:
            InputError: a file that is no such checkpoint.
        """
        if out is None:
            raise InputError("import makes a new run: say where with --out DIR")
        system = from_published(read_weights(checkpoint), heads)
        system.save_pretrained(out)
        config = system.config
        report = {
            "encoder": f"{config.encoder.blocks.depth} blocks, {config.encoder.dim} wide",
            "image_size": config.encoder.image_size,
            "patch": config.encoder.patch,
        }
        return Result(out, report, ["the codebook is empty: OpenAI's dVAE is not part of the checkpoint"])

    def _drawn(self, pixels: UInt8[Tensor, "n c h w"], found: Mapping[str, Tensor]) -> UInt8[Tensor, "n 4 c h w"]:
        """The four rows of `reconstruct`."""
        patch, channels = self.config.encoder.patch, self.config.encoder.channels
        patches = patchify(pixels, patch)
        where = found["hidden"].unsqueeze(-1).expand(-1, -1, patches.shape[-1])
        rows = [pixels, unpatchify(patches.scatter(1, where, 128), self.grid, channels)]
        for name in ("regressed", "bypassed"):
            codes = found["codes"].new_zeros(len(pixels), self.encoder.count).scatter(1, found["hidden"], found[name])
            drawn = self.codebook.decode(codes.to(self.device), self.grid).cpu()
            if drawn.shape != pixels.shape:
                drawn = F.interpolate(drawn.float(), size=(self.size, self.size)).to(torch.uint8)
            rows.append(
                unpatchify(patches.scatter(1, where, patchify(drawn, patch).gather(1, where)), self.grid, channels)
            )
        return torch.stack(rows, 1)


def from_published(state: Mapping[str, Tensor], heads: int | None = None) -> CAE:
    """A system out of weights in the official layout; its codebook is empty.

    Raises:
        InputError: names or shapes of another model.
    """
    fields, renamed = cae_layout(state, heads)
    system: CAE = CAE.Config.model_validate(fields).build()
    try:
        system.load_state_dict({**renamed, "codebook.centres": system.codebook.centres}, strict=True)
    except RuntimeError as error:
        raise InputError(f"the checkpoint does not fit: {' '.join(str(error).split())[:200]}") from None
    system.eval()
    return system


# -- rivals ----------------------------------------------------------------------------------------------------------


class MAE(MaskedAutoencoder):
    """The rival: masked autoencoder, with its own decoder over visible and mask tokens, and pixels as the target."""

    card = CARD

    class Config(MaskedAutoencoderConfig):
        """As published, base."""

        encoder: ViT.Config = ViT.Config(sincos_first="column")


class Untrained(UntrainedEncoder):
    """The encoder as it was drawn."""

    card = CARD

    class Config(ImageEncoderConfig):
        """As for any encoder."""


# -- the experiment ----------------------------------------------------------------------------------------------------


_SAMPLE = 10
"""Pictures in a sheet."""


def _small(
    side: int, patch: int, channels: int, blocks: dict[str, Any], dim: int, training: TrainingConfig
) -> dict[str, Any]:
    """What all arms of a small experiment share."""
    return {
        "encoder": ViT.Config(
            image_size=side, patch=patch, channels=channels, dim=dim, blocks=ViTBlocks.Config(**blocks)
        ),
        "mean": (0.5,),
        "std": (0.5,),
        "augment": Augment(),
        "training": training,
    }


def _arms(
    shared: dict[str, Any], depths: tuple[int, int], mask: Mask, codes: int, heads: int
) -> dict[str, ImageEncoderConfig]:
    """CAE, CAE without alignment, MAE at two mask ratios, and the untrained encoder, on equal terms."""
    encoder: ViT.Config = shared["encoder"]
    regressor, decoder = depths
    cae = CAE.Config(
        **shared,
        regressor=LatentRegressor.Config(depth=regressor, heads=heads, layer_scale=0.1),
        decoder=ViTBlocks.Config(depth=decoder, heads=heads, bias="qv", layer_scale=0.1),
        codebook=KMeansCodebook.Config(codes=codes, patch=encoder.patch, channels=encoder.channels),
        mask=mask,
    )
    mae = MAE.Config(
        **shared,
        decoder=MaskedDecoder.Config(
            dim=encoder.dim,
            sincos_first="row",
            blocks=ViTBlocks.Config(depth=regressor + decoder, heads=heads, bias="qv", layer_scale=0.1),
        ),
    )
    return {
        "cae": cae,
        "cae-unaligned": cae.replace(alignment=0.0),
        "mae-75": mae,
        "mae-50": mae.replace(mask=RandomMask(ratio=0.5)),
        "untrained": Untrained.Config(**shared),
    }


def experiment(preset: Preset) -> Experiment:
    """Smoke: 8x8 digits. Laptop: MNIST, 28x28. GPU: clip art, 64x64. Paper: ImageNet-1K, base and large."""
    if preset is Preset.PAPER:
        return _paper()
    if preset is Preset.SMOKE:
        data, seeds = "digits", 1
        training = TrainingConfig(steps=15, batch_size=96, optimiser=AdamW(lr=2e-3), schedule=Schedule(warmup=0.1))
        blocks = {"depth": 2, "heads": 2, "bias": "qv", "layer_scale": 0.1}
        shared = _small(8, 2, 1, blocks, 32, training) | {"probe_epochs": 3}
        systems = _arms(shared, (1, 1), BlockMask(min_block=2), 32, 2)
    elif preset is Preset.GPU:
        data, seeds = "clipart", 1
        training = TrainingConfig(
            steps=2500,
            batch_size=512,
            optimiser=AdamW(lr=1e-3, weight_decay=0.05),
            schedule=Schedule(warmup=0.05),
            clip=3.0,
            precision="bf16",
        )
        blocks = {"depth": 12, "heads": 6, "bias": "qv", "layer_scale": 0.1, "drop_path": 0.1}
        shared = _small(64, 8, 3, blocks, 384, training)
        systems = _arms(shared, (4, 4), BlockMask(min_block=8), 1024, 6)
    else:
        # 7x7 patches: a 4x4 grid, so that a quarter of an hour on one core holds three seeds of every arm. Small
        # batches: what is short here is steps. Masks patch by patch: a rectangle of this grid would be half a digit.
        data, seeds = "mnist-5k", 3
        training = TrainingConfig(
            steps=2800,
            batch_size=32,
            optimiser=AdamW(lr=3e-3, betas=(0.9, 0.95), weight_decay=0.05),
            schedule=Schedule(warmup=0.1),
            clip=3.0,
        )
        blocks = {"depth": 3, "heads": 4, "bias": "qv", "layer_scale": 0.1}
        shared = _small(28, 7, 1, blocks, 64, training) | {"mean": (0.1307,), "std": (0.3081,)}
        systems = _arms(shared, (2, 2), RandomMask(ratio=0.5), 64, 4)
    return Experiment(
        data=data,
        systems=systems,
        seeds=seeds,
        claims=_CLAIMS,
        pictures=_pictures,
        columns=_COLUMNS,
        fairness=(
            "All arms: the same encoder, pictures, steps, batch, optimiser and seed; MAE's decoder is as deep as"
            " regressor and decoder together. CAE hides half of the patches; MAE three quarters, as published, or half."
            " CAE runs the encoder on the hidden patches too (without gradients); seconds are in the table. Each"
            " probe's settings are chosen on validation, for each arm."
        ),
    )


def _paper() -> Experiment:
    """1600 epochs of ImageNet-1K at batch 2048; the codes are those of a codebook of the same size learned there."""

    def training(warmup: float) -> TrainingConfig:
        return TrainingConfig(
            steps=1_000_800,
            batch_size=2048,
            optimiser=AdamW(lr=1.5e-3, weight_decay=0.05),
            schedule=Schedule(shape="cosine", warmup=warmup, final=1 / 150),
            clip=3.0,
            precision="bf16",
        )

    def stack(depth: int, heads: int, init: Init, scale: float) -> dict[str, Any]:
        return {"depth": depth, "heads": heads, "bias": "qv", "layer_scale": scale, "drop_path": 0.1, "init": init}

    def model(dim: int, depth: int, heads: int, init: Init, scale: float) -> CAE.Config:
        return CAE.Config(
            encoder=ViT.Config(dim=dim, blocks=ViTBlocks.Config(**stack(depth, heads, init, scale))),
            regressor=LatentRegressor.Config(**stack(4, heads, init, scale)),
            decoder=ViTBlocks.Config(**stack(4, heads, init, scale)),
            training=training(40 / 1600),
        )

    return Experiment(
        data="hf:ILSVRC/imagenet-1k",
        systems={
            "cae": model(768, 12, 12, "xavier", 0.1),
            "cae-large": model(1024, 24, 16, "trunc_normal_rescaled", 1e-5),
        },
        claims=(),
        columns=_COLUMNS,
    )


_COLUMNS = {
    "token_accuracy": "hidden codes right (%)",
    "bypass_accuracy": "bypass (%)",
    "token_accuracy_ink": "not blank (%)",
    "bypass_accuracy_ink": "bypass, not blank (%)",
    "majority": "most frequent code (%)",
    "alignment_error": "alignment error / variance",
    "latent_std": "latent std",
    "linear": "linear probe (%)",
    "linear_mean": "linear probe, mean of patches (%)",
    "attentive": "attentive probe (%)",
    "knn": "kNN probe (%)",
    "fit_seconds": "training (s)",
}


_CLAIMS = (
    Claim(
        statement="Alignment makes the predicted latents at least 3 times closer to the encoder's own",
        metric="alignment_error",
        system="cae",
        rival="cae-unaligned",
        better="lower",
        times=1 / 3,
    ),
    Claim(
        statement="Latent bypass names at least 15 points more hidden codes rightly than without alignment",
        metric="bypass_accuracy",
        system="cae",
        rival="cae-unaligned",
        by=15.0,
    ),
    Claim(
        statement="Latent bypass reaches at least 80 % of the accuracy through the regressor",
        metric="bypass_share",
        system="cae",
        bound=80.0,
    ),
    *(
        Claim(
            statement=f"The {probe} probe reads classes off CAE's encoder better than off MAE's ({ratio} % hidden)",
            metric=probe,
            system="cae",
            rival=f"mae-{ratio}",
            by=1.0,
            every_seed=False,
            beyond_spread=True,
        )
        for probe in ("linear", "attentive")
        for ratio in (75, 50)
    ),
    Claim(
        statement="The attentive probe reads classes off CAE's encoder better than off the same encoder untrained",
        metric="attentive",
        system="cae",
        rival="untrained",
        by=1.0,
        every_seed=False,
        beyond_spread=True,
        kind="target",
    ),
)


def _pictures(trial: Trial) -> list[Picture]:
    made: list[Picture] = []
    test = trial.data.test
    chosen = test.select([i * len(test) // _SAMPLE for i in range(_SAMPLE)])  # splits may be sorted by class
    for arm in ("cae", "cae-unaligned"):
        system = trial.systems.get(arm)
        if isinstance(system, CAE):
            pixels = system.pictures_of(chosen, trial.data.peak)
            rows = system._drawn(pixels, system.paths(pixels))
            caption = (
                "Test pictures; what the encoder sees; hidden patches predicted through the regressor; and from the"
                f" encoder's own latents of the hidden patches ({'with' if arm == 'cae' else 'without'} alignment)."
            )
            made.append(bypass_sheet(rows, f"bypass-{arm}", caption, docs=True))
    series = {
        arm: [(step, value) for step, _, value in traced["alignment_mse"]]
        for arm, traced in trial.curves.items()
        if "alignment_mse" in traced
    }
    if series:
        caption = "Squared error of predicted latents against the encoder's own, over the training steps."
        made.append(curves(series, "alignment", caption, x="step", y="mean squared error", log_y=True, docs=True))
    return made
