"""Pictures of models of whole small images: their trees, rates and learning curves."""

import math
from collections.abc import Mapping, Sequence

from encyclo.nn.chow_liu import Tree
from encyclo.picture import COLOURS, INK, Picture, curves, figure, from_figure

__all__ = ["learning_curves", "rate_bars", "tree_picture"]


def tree_picture(tree: Tree, shape: Sequence[int], *, docs: bool = False) -> Picture:
    """A tree over the pixels of images [c, h, w], each pixel joined to its parent, coloured by depth."""
    c, h, w = shape
    made, axis = figure(5.2, 5.2 * h / w + 0.3)
    depth = {v: d for d, level in enumerate(tree.levels) for v in level}
    bands: dict[int, tuple[list[float], list[float]]] = {}
    for child, parent in enumerate(tree.parent.tolist()):
        if parent < 0:
            continue
        xs, ys = bands.setdefault(min(depth[child] * 6 // len(tree.levels), 5), ([], []))
        for node in (child, parent):  # channels of one pixel stand side by side
            xs.append(node % w + 0.25 * (node // (h * w) - (c - 1) / 2))
            ys.append(node // w % h)
        xs.append(math.nan)
        ys.append(math.nan)
    for band, (xs, ys) in sorted(bands.items()):
        axis.plot(xs, ys, color=COLOURS[band], linewidth=1.1, solid_capstyle="round")
    axis.plot([tree.root % w], [tree.root // w % h], "o", color=INK, markersize=6)
    axis.set_xlim(-1, w)
    axis.set_ylim(h, -1)
    axis.set_aspect("equal")
    axis.set_axis_off()
    caption = f"The Chow-Liu tree of the pixels: {len(tree.levels)} levels below the root (dot), coloured by depth."
    return from_figure(made, "tree", caption, docs=docs)


def rate_bars(rates: Mapping[str, float], models: Sequence[str], name: str, axis_label: str) -> Picture:
    """Bits per dimension as bars, largest first; `models` are told from codecs by their colour."""
    names = sorted(rates, key=lambda n: -rates[n])
    made, axis = figure(7.0, 0.6 + 0.36 * len(names))
    for row, arm in enumerate(names):
        axis.barh(row, rates[arm], color=COLOURS[0] if arm in models else COLOURS[5], height=0.7)
        axis.text(rates[arm], row, f" {rates[arm]:.3f}", va="center", fontsize=9, color=INK)
    axis.set_yticks(range(len(names)), names)
    axis.grid(axis="y", visible=False)
    axis.set_xlabel(axis_label)
    return from_figure(made, name, "Bits per pixel: models (blue) and codecs (grey).", docs=True)


def learning_curves(
    traces: Mapping[str, Mapping[str, Sequence[tuple[int, float, float]]]], metric: str, stages: Sequence[str]
) -> Picture:
    """A metric in training and validation over the stages of learning, which follow one another, by arm."""
    series = {}
    for name, traced in traces.items():
        for key, label in ((metric, "training"), (f"eval/{metric}", "validation")):
            points: list[tuple[float, float]] = []
            for stage in stages:
                last = points[-1][0] if points else 0.0
                points += [(last + step, value) for step, _, value in traced.get(f"{stage}/{key}", ())]
            if points:
                series[f"{name}, {label}"] = points
    return curves(series, "learning", f"Learning: {', then '.join(stages)}.", x="steps", y="bits per pixel")
