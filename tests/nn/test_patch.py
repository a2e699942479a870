import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import ViTMAEConfig, ViTMAEForPreTraining

from encyclo.errors import InputError
from encyclo.nn.patch import PatchEmbed, gather_tokens, patchify, unpatchify


@given(
    rows=st.integers(1, 4),
    columns=st.integers(1, 4),
    patch=st.integers(1, 5),
    channels=st.integers(1, 4),
    batch=st.integers(1, 3),
)
def test_unpatchify_undoes_patchify(rows: int, columns: int, patch: int, channels: int, batch: int) -> None:
    images = torch.randint(0, 256, (batch, channels, rows * patch, columns * patch), dtype=torch.uint8)
    patches = patchify(images, patch)
    assert patches.shape == (batch, rows * columns, patch * patch * channels)
    assert torch.equal(unpatchify(patches, (rows, columns), channels), images)


def test_patches_lie_as_in_mae() -> None:
    model = ViTMAEForPreTraining(ViTMAEConfig(image_size=8, patch_size=4, hidden_size=16, num_hidden_layers=1))
    images = torch.rand(2, 3, 8, 8)
    assert torch.equal(patchify(images, 4), model.patchify(images))


def test_the_embedding_is_a_linear_map_of_each_patch() -> None:
    embed = PatchEmbed.Config(patch=2, channels=3).build(dim=5)
    images = torch.rand(2, 3, 4, 6)
    weight = embed.proj.weight.permute(0, 2, 3, 1).flatten(1)  # [dim, (row, column, channel)]
    torch.testing.assert_close(embed(images), patchify(images, 2) @ weight.T + embed.proj.bias)


def test_gather_takes_tokens_image_by_image() -> None:
    tokens = torch.arange(12.0).view(2, 3, 2)
    index = torch.tensor([[2, 0], [1, 1]])
    assert torch.equal(gather_tokens(tokens, index), torch.stack((tokens[0, [2, 0]], tokens[1, [1, 1]])))


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(InputError, match="7x8"):
        patchify(torch.zeros(1, 1, 7, 8), 4)
    with pytest.raises(InputError, match="1 channels"):
        PatchEmbed.Config(patch=2).build(dim=4)(torch.zeros(1, 1, 4, 4))
    with pytest.raises(InputError, match="2x2"):
        unpatchify(torch.zeros(1, 3, 4), (2, 2), 1)
