"""What is hidden of a clip: the papers' boxes, or what is white in a picture or a video."""

from pathlib import Path

import torch
from jaxtyping import Bool
from torch import Tensor

from encyclo.data.images import read_image
from encyclo.data.video import read_video
from encyclo.errors import InputError

__all__ = ["boxes", "moves", "read_hole"]


def moves(name: str) -> bool:
    """Whether a hole of this name is given frame by frame (a video)."""
    return Path(name).suffix.lower() in (".mp4", ".mkv", ".webm", ".avi", ".mov")


def read_hole(name: str, frames: int, height: int, width: int) -> Bool[Tensor, "t 1 h w"]:
    """True where a clip is hidden: one mask for all frames, or (a video) one for each.

    Args:
        name: 'boxes', or the path of a picture or video that is white there.
        frames, height, width: of the clip.

    Raises:
        InputError: a file that cannot be read, or of another size than the clip.
    """
    if name == "boxes":
        mask = boxes(height, width)[None, None]
    elif moves(name):
        mask = read_video(name).frames.float().mean(1, keepdim=True) >= 128
    else:
        mask = read_image(name)[None].float().mean(1, keepdim=True) >= 128
    if mask.shape != (frames if moves(name) else 1, 1, height, width):
        raise InputError(
            f"hole={name} is {list(mask.shape[2:])} in {len(mask)} frames, the clip is {[height, width]} in"
            f" {frames}: give a picture of that size, or a video of that many frames"
        )
    return mask


def boxes(height: int, width: int, side: int = 50) -> Bool[Tensor, "h w"]:
    """HNeRV's five holes: squares centred at (1/2, 1/2), (1/4, 1/4), (1/4, 3/4), (3/4, 1/4) and (3/4, 3/4).

    Their side is 50 pixels in a frame of 960x1920 as in the paper's; it shrinks with smaller frames as their height
    does, to at least one pixel.
    """
    side = min(side, max(1, round(side * height / 960))) if height < 960 else side
    mask = torch.zeros((height, width), dtype=torch.bool)
    for row, column in ((1 / 2, 1 / 2), (1 / 4, 1 / 4), (1 / 4, 3 / 4), (3 / 4, 1 / 4), (3 / 4, 3 / 4)):
        top, left = (max(0, round(place) - side // 2) for place in (row * height, column * width))
        mask[top : top + side, left : left + side] = True
    return mask
