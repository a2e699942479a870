"""The curves of a run: one JSON line for each point, in `metrics.jsonl`.

With the environment variable ENCYCLO_TENSORBOARD set, and TensorBoard installed, they also go to the folder
`tensorboard` beside it.
"""

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO

Points = dict[str, list[tuple[int, float, float]]]


class Curves:
    """Writes points of one stage as they come and keeps them by name.

    A line is `{"stage": ..., "step": ..., "seconds": ..., NAME: value, ...}`; what is not finite is written as null.
    """

    def __init__(self, path: Path | None, stage: str) -> None:
        self.path, self.stage = path, stage
        self.points: Points = {}
        self._file: TextIO | None = None
        self._board: Any = None

    def resume(self, step: int) -> None:
        """Keep what the file tells of this stage up to `step` and cut what lies behind it, so that nothing is doubled.

        A line that was half written when the run was killed goes too.
        """
        self.points = {}
        if self.path is None or not self.path.exists():
            return
        kept = []
        for line in self.path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                point = json.loads(line)
            except json.JSONDecodeError:
                continue
            if point["stage"] == self.stage:
                if point["step"] > step:
                    continue
                self._keep(point)
            kept.append(line + "\n")
        temporary = self.path.with_name(f".{self.path.name}.new")
        with temporary.open("w", encoding="utf-8") as file:
            file.writelines(kept)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(self.path)

    def follow(self, step: int) -> bool:
        """Send points to TensorBoard from now on, those behind `step` anew; False when that is not installed."""
        if self.path is None:
            return True
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            return False
        folder = self.path.with_name("tensorboard") / self.stage
        self._board = SummaryWriter(str(folder), purge_step=step + 1)  # type: ignore[no-untyped-call]
        return True

    def add(self, step: int, seconds: float, values: Mapping[str, float]) -> None:
        """One more point."""
        point: dict[str, Any] = {"stage": self.stage, "step": step, "seconds": round(seconds, 6), **values}
        self._keep(point)
        if self.path is None:
            return
        if self._file is None:
            self._file = self.path.open("a", encoding="utf-8")
        finite = {k: v if not isinstance(v, float) or math.isfinite(v) else None for k, v in point.items()}
        self._file.write(json.dumps(finite) + "\n")
        self._file.flush()
        if self._board is not None:
            for name, value in values.items():
                self._board.add_scalar(name, value, step)

    def sync(self) -> None:
        """Have all points on the disk before a checkpoint counts on them."""
        if self._file is not None:
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()
            self._file = None
        if self._board is not None:
            self._board.close()
            self._board = None

    def _keep(self, point: Mapping[str, Any]) -> None:
        for name, value in point.items():
            if name not in ("stage", "step", "seconds"):
                number = math.nan if value is None else float(value)
                self.points.setdefault(name, []).append((int(point["step"]), float(point["seconds"]), number))
