import pytest
import torch

from encyclo.errors import InputError
from encyclo.nn.patch import patchify
from encyclo.tokens.image_codebook import KMeansCodebook


def pictures(count: int = 200, side: int = 8) -> torch.Tensor:
    return torch.randint(0, 256, (count, 1, side, side), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


def learned(codes: int = 16) -> KMeansCodebook:
    codebook = KMeansCodebook.Config(codes=codes, patch=2).build()
    assert not codebook.ready
    codebook.learn(pictures())
    assert codebook.ready
    return codebook


def test_each_patch_gets_its_nearest_centre() -> None:
    codebook, images = learned(), pictures(20)
    patches = patchify(images, 2).float() / 255
    expected = torch.cdist(patches, codebook.centres[None].expand(20, -1, -1)).argmin(-1)
    assert torch.equal(codebook.encode(images, (4, 4)), expected)


def test_codes_survive_decoding_and_encoding() -> None:
    codebook = learned()
    codes = torch.arange(16).view(1, 16)
    assert torch.equal(codebook.encode(codebook.decode(codes, (4, 4)), (4, 4)), codes)


def test_centres_rise_in_brightness_and_follow_the_seed() -> None:
    codebook = learned()
    brightness = codebook.centres.sum(1)
    assert bool((brightness[1:] >= brightness[:-1]).all())
    assert torch.equal(learned().centres, codebook.centres)


def test_few_different_patches_are_found_exactly() -> None:
    tiles = torch.tensor([0, 80, 160, 240], dtype=torch.uint8)
    choice = torch.randint(0, 4, (100, 16), generator=torch.Generator().manual_seed(1))
    images = tiles[choice].view(100, 1, 4, 4).repeat_interleave(2, 2).repeat_interleave(2, 3)
    codebook = KMeansCodebook.Config(codes=4, patch=2).build()
    codebook.learn(images)
    assert torch.equal(codebook.decode(codebook.encode(images, (4, 4)), (4, 4)), images)
    with pytest.raises(InputError, match="only 4 different"):
        KMeansCodebook.Config(codes=5, patch=2).build().learn(images)


def test_other_sizes_are_resized_to_the_grid() -> None:
    codebook = learned()
    assert codebook.encode(pictures(2, 32), (4, 4)).shape == (2, 16)
    with pytest.raises(InputError, match="3 channels"):
        codebook.encode(torch.zeros(1, 3, 8, 8, dtype=torch.uint8), (4, 4))
