"""Images <-> sequences of square patches."""

from jaxtyping import Float, Int64, Shaped
from torch import Tensor, nn
from torch.nn import functional

from encyclo.errors import InputError
from encyclo.nn.part import Part, PartConfig

__all__ = ["PatchEmbed", "gather_tokens", "grid_of", "patchify", "unpatchify"]


def grid_of(height: int, width: int, patch: int) -> tuple[int, int]:
    """Rows and columns of patches in an image of height x width pixels.

    Raises:
        InputError: a side that is not a multiple of the patch.
    """
    if patch < 1 or height < patch or width < patch or height % patch or width % patch:
        raise InputError(
            f"an image of {height}x{width} pixels does not split into patches of {patch}: give multiples of it"
        )
    return height // patch, width // patch


def patchify(images: Shaped[Tensor, "b c h w"], patch: int) -> Shaped[Tensor, "b n p"]:
    """Cut images into patches, row by row.

    Args:
        images: any type; both sides multiples of `patch`.
        patch: side of a patch in pixels.

    Returns:
        n = (h / patch) * (w / patch) patches of p = patch * patch * c values, ordered (row, column, channel) as in the
        masked autoencoder (He et al. 2021).

    Raises:
        InputError: a side that is not a multiple of the patch.
    """
    batch, channels, height, width = images.shape
    rows, columns = grid_of(height, width, patch)
    cut = images.reshape(batch, channels, rows, patch, columns, patch).permute(0, 2, 4, 3, 5, 1)
    return cut.reshape(batch, rows * columns, patch * patch * channels)


def unpatchify(patches: Shaped[Tensor, "b n p"], grid: tuple[int, int], channels: int) -> Shaped[Tensor, "b c h w"]:
    """Put patches in the order of `patchify` back together; its inverse.

    Raises:
        InputError: patches that do not fill the grid, or whose size is not that of a square patch.
    """
    batch, count, size = patches.shape
    rows, columns = grid
    patch = round((size / channels) ** 0.5)
    if count != rows * columns or patch * patch * channels != size:
        raise InputError(
            f"{count} patches of {size} values do not make a {rows}x{columns} grid with {channels} channels"
        )
    pieces = patches.reshape(batch, rows, columns, patch, patch, channels).permute(0, 5, 1, 3, 2, 4)
    return pieces.reshape(batch, channels, rows * patch, columns * patch)


def gather_tokens(tokens: Shaped[Tensor, "b n d"], index: Int64[Tensor, "b k"]) -> Shaped[Tensor, "b k d"]:
    """The tokens at `index`, image by image."""
    return tokens.gather(1, index.unsqueeze(-1).expand(-1, -1, tokens.shape[-1]))


class PatchEmbed(Part):
    """A linear map of each patch (Dosovitskiy et al. 2021, eq. 1), as a convolution with the stride of a patch.

    The weight has the layout [dim, channels, patch, patch] of every published ViT.
    """

    class Config(PartConfig):
        """Side of a patch in pixels, and channels of the image."""

        patch: int = 16
        channels: int = 3
        bias: bool = True

    def __init__(self, config: Config, *, dim: int) -> None:
        super().__init__()
        self.config = config
        self.proj = nn.Conv2d(config.channels, dim, config.patch, stride=config.patch, bias=config.bias)
        self.init_own()

    def init_own(self) -> None:
        """Xavier-uniform over the weight seen as one linear layer, zero bias (as MAE does)."""
        weight = self.proj.weight
        bound = (6 / (weight.shape[0] + weight[0].numel())) ** 0.5
        nn.init.uniform_(weight, -bound, bound)
        if self.proj.bias is not None:
            nn.init.zeros_(self.proj.bias)

    def forward(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b n d"]:
        """Images -> one vector a patch, row by row.

        Raises:
            InputError: another number of channels than configured, or sides that are not multiples of the patch.
        """
        if images.shape[1] != self.config.channels:
            raise InputError(f"images with {images.shape[1]} channels given to a model for {self.config.channels}")
        patch = self.config.patch
        rows, columns = grid_of(images.shape[-2], images.shape[-1], patch)
        # the convolution as one matrix product: on a CPU its gradient takes a third of the time
        pieces = images.unflatten(-1, (columns, patch)).unflatten(-3, (rows, patch)).permute(0, 2, 4, 1, 3, 5)
        embedded: Tensor = functional.linear(
            pieces.flatten(3).flatten(1, 2), self.proj.weight.flatten(1), self.proj.bias
        )
        return embedded
