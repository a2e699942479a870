"""Crops of films: their places, their number, and the data set made of them."""

import pytest
import torch

from encyclo.data.crops import frame_crops, picture_splits
from encyclo.data.images import to_tensor


def test_crops_are_parts_of_the_frames():
    frames = torch.randint(0, 256, (3, 3, 9, 13), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    crops = frame_crops(frames, side=4)
    assert torch.equal(crops[0], frames[0, :, :4, :4])
    assert torch.equal(crops[1], frames[0, :, :4, 4:8])
    whole = frames.unfold(2, 4, 1).unfold(3, 4, 1).permute(0, 2, 3, 1, 4, 5).flatten(0, 2)
    assert all((whole == crop).flatten(1).all(1).any() for crop in crops)


def test_frames_are_skipped_and_shrunk():
    frames = torch.arange(4, dtype=torch.uint8)[:, None, None, None].expand(-1, 1, 8, 8)
    crops = frame_crops(frames, side=4, shrink=2, every=2)
    assert crops.shape == (2, 1, 4, 4)
    assert crops.flatten(1).unique(dim=1).flatten().tolist() == [0, 2]
    with pytest.raises(ValueError, match="no crop"):
        frame_crops(frames, side=5, shrink=2)


def test_a_data_set_of_pictures():
    pictures = torch.randint(0, 256, (6, 3, 4, 4), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    made = picture_splits("some", pictures[:3], pictures[3:4], pictures[4:])
    assert torch.equal(to_tensor(made.train["image"], None, "RGB"), pictures[:3])
    assert (len(made.validation), len(made.test), made.kind) == (1, 2, "image")
    assert made.fingerprint != picture_splits("some", pictures[:3], pictures[4:5], pictures[4:]).fingerprint
