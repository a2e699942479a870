"""Training curves of all arms with their spread over seeds."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from encyclo import picture
from encyclo.picture import Picture


def training_curves(record: Mapping[str, Any], *, most: int = 4) -> list[Picture]:
    """One figure per curve name that a record holds: mean over seeds, band from the lowest to the highest."""
    names: list[str] = []
    for arm in record["arms"].values():
        for seed in arm["curves"]:
            names += [name for name in seed if name not in names]
    skipped = ("lr", "learning_rate", "grad_norm", "progress", "items_per_second")
    wanted = [n for n in names if not n.split("/")[-1].startswith(skipped)]
    shared = sorted(wanted, key=lambda n: -sum(any(n in s for s in a["curves"]) for a in record["arms"].values()))
    made = []
    for name in shared[:most]:
        figure, axis = picture.figure()
        drawn = False
        for arm, entry in record["arms"].items():
            traces = [np.array(seed[name], dtype=float) for seed in entry["curves"] if len(seed.get(name, [])) > 1]
            if not traces:
                continue
            by_time = _timed(record)
            column = 1 if by_time else 0
            end = min(t[-1, column] for t in traces)
            begin = max(t[0, column] for t in traces)
            if end <= begin:
                continue
            grid = np.linspace(begin, end, 100)
            values = np.stack([np.interp(grid, t[:, column], t[:, 2]) for t in traces])
            line = axis.plot(grid, values.mean(0), label=arm, linewidth=1.8)[0]
            if len(traces) > 1:
                axis.fill_between(grid, values.min(0), values.max(0), alpha=0.18, color=line.get_color(), linewidth=0)
            axis.set_xlabel("seconds of training" if by_time else "steps")
            drawn = True
        if drawn:
            axis.set_ylabel(name.split("/")[-1].replace("_", " "))
            axis.legend(frameon=False, fontsize=9)
            caption = f"{name.replace('_', ' ')}: mean over seeds, the band from the lowest to the highest seed."
            made.append(picture.from_figure(figure, f"curve-{name.replace('/', '-')}", caption))
    return made


def _timed(record: Mapping[str, Any]) -> bool:
    """Whether the arms were trained for equal seconds: then the axis is time."""
    return any(
        (arm["config"].get("training") or {}).get("seconds") is not None
        for arm in record["arms"].values()
        if arm["config"]
    )
