"""Small natural pictures: crops of the frames of films."""

import hashlib

import torch
from jaxtyping import UInt8
from torch import Tensor
from torch.nn import functional

from encyclo.data.images import encode_image
from encyclo.data.splits import Splits

__all__ = ["frame_crops", "picture_splits"]


def frame_crops(
    frames: UInt8[Tensor, "t c h w"], *, side: int, shrink: int = 1, every: int = 1
) -> UInt8[Tensor, "n c side side"]:
    """A grid of square crops from every so many frames, which are shrunk first (that also removes coding artefacts).

    The grid moves by a few pixels from frame to frame, so that what stands still is not cropped alike twice.

    Args:
        side: of the crops.
        shrink: factor by which height and width shrink (mean of the area).
        every: frames from one used frame to the next.

    Raises:
        ValueError: frames smaller than a crop.
    """
    small = functional.avg_pool2d(frames[::every].float(), shrink).round().to(torch.uint8)
    if min(small.shape[2:]) < side:
        raise ValueError(f"frames of {small.shape[2]}x{small.shape[3]} hold no crop of {side}x{side}")
    out = []
    for number, frame in enumerate(small):
        spare = [min(side, length - side + 1) for length in frame.shape[1:]]
        top, left = 5 * number % spare[0], 7 * number % spare[1]
        windows = frame[:, top:, left:].unfold(1, side, side).unfold(2, side, side)
        out.append(windows.permute(1, 2, 0, 3, 4).flatten(0, 1))
    return torch.cat(out) if out else small.new_zeros(0, frames.shape[1], side, side)


def picture_splits(
    name: str,
    train: UInt8[Tensor, "n c h w"],
    validation: UInt8[Tensor, "v c h w"],
    test: UInt8[Tensor, "m c h w"],
    *,
    notes: tuple[str, ...] = (),
) -> Splits:
    """Pictures in memory as a data set of PNG files, as `load` would give it."""
    import datasets

    digest = hashlib.sha256()
    made = {}
    for split, images in (("train", train), ("validation", validation), ("test", test)):
        digest.update(split.encode() + repr(tuple(images.shape)).encode() + images.contiguous().numpy().tobytes())
        features = datasets.Features({"image": datasets.Value("binary")})
        made[split] = datasets.Dataset.from_dict(
            {"image": [encode_image(image) for image in images]}, features=features
        )
    return Splits(name, "image", made["train"], made["validation"], made["test"], digest.hexdigest(), notes)
