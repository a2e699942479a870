"""What is made of a clip's frames before a system gets them: the first so many, a part of them, smaller."""

import logging
from typing import TYPE_CHECKING

import torch
from pydantic import Field
from torch.nn import functional

from encyclo.config import Config
from encyclo.data.video import Video, read_video
from encyclo.errors import InputError

if TYPE_CHECKING:
    from encyclo.data.splits import Splits

__all__ = ["Reading", "frame_numbers"]

logger = logging.getLogger(__name__)


class Reading(Config):
    """What is made of a file's frames before they are fitted: nothing, unless asked for."""

    frames: int | None = Field(None, ge=1, description="only the first so many")
    crop: tuple[int, int] | None = Field(None, description="height and width of the part in the middle that is kept")
    shrink: int = Field(1, ge=1, description="replace squares of so many pixels a side by their mean")

    def clip(self, data: "Splits") -> Video:
        """The first clip of a data set, prepared.

        Raises:
            InputError: no clip, or one that cannot be read or prepared.
        """
        if data.streaming or not len(data.train):
            raise InputError(f"'{data.name}' holds no clip: give one video file")
        if len(data.train) > 1:
            logger.warning("'%s' holds %d clips, only the first is coded", data.name, len(data.train))
        row = data.train[0]
        clip = read_video(row["video"], max_frames=self.frames)
        return self.apply(Video(clip.frames, clip.fps, str(row.get("name") or data.name), clip.notes))

    def apply(self, video: Video) -> Video:
        """The prepared clip; what was left out stands in its notes.

        Raises:
            InputError: a crop larger than the frames, or a size that `shrink` does not divide.
        """
        frames, notes = video.frames, list(video.notes)
        if self.frames is not None and len(frames) > self.frames:
            notes.append(f"{video.name}: only the first {self.frames} of {len(frames)} frames taken")
            frames = frames[: self.frames]
        height, width = frames.shape[2:]
        if self.crop is not None and self.crop != (height, width):
            if self.crop[0] > height or self.crop[1] > width:
                raise InputError(
                    f"reading.crop={list(self.crop)} exceeds frames of {height}x{width}: give larger ones, or"
                    " reading.crop=null"
                )
            top, left = (height - self.crop[0]) // 2, (width - self.crop[1]) // 2
            frames = frames[:, :, top : top + self.crop[0], left : left + self.crop[1]]
            notes.append(f"{video.name}: frames of {width}x{height} cropped to {self.crop[1]}x{self.crop[0]}")
        height, width = frames.shape[2:]
        if self.shrink > 1:
            if height % self.shrink or width % self.shrink:
                raise InputError(
                    f"reading.shrink={self.shrink} does not divide {height}x{width}: give reading.shrink=1"
                )
            means = [
                functional.avg_pool2d(part.float(), self.shrink).round().to(torch.uint8)
                for part in torch.split(frames, 16)
            ]
            frames = torch.cat(means)
            notes.append(f"{video.name}: shrunk {self.shrink} times, to {width // self.shrink}x{height // self.shrink}")
        return Video(frames.contiguous(), video.fps, video.name, tuple(notes))


def frame_numbers(words: str, count: int) -> list[int]:
    """'3,40-50' as numbers below `count`; 'all' is all.

    Raises:
        InputError: a word that is no number or range, or one that `count` frames do not have.
    """
    if words.strip() == "all":
        return list(range(count))
    chosen: list[int] = []
    for word in words.split(","):
        first, dash, last = word.strip().partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()):
            raise InputError(
                f"frames={words}: '{word.strip()}' is no frame; write numbers and ranges as 3,40-50, or all"
            )
        low, high = int(first), int(last) if dash else int(first)
        if max(low, high) >= count or high < low:
            raise InputError(f"frames={words}: '{word.strip()}' is not within the clip's frames 0-{count - 1}")
        chosen += range(low, high + 1)
    return chosen
