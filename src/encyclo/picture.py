"""Pictures and sounds that a run makes, kept as bytes until a report or a page shows them."""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from jaxtyping import UInt8
from torch import Tensor

INK = "#1f2430"
COLOURS = ("#2457a6", "#d1495b", "#2e8b57", "#e0912f", "#7b4fa3", "#5b6b7a", "#0b8a9e", "#b0578d")


@dataclass(frozen=True)
class Picture:
    """One figure (or recording) of a report.

    `name` is a file name without suffix, `kind` one of svg, webp, png, wav, html; `caption` says what is seen.
    """

    name: str
    caption: str
    kind: str
    content: bytes
    docs: bool = False
    """Also shown in the documentation: kept in git, so at most 150 KB."""


def figure(width: float = 7.0, height: float = 4.0, rows: int = 1, columns: int = 1) -> tuple[Any, Any]:
    """A matplotlib figure and its axes in the house style (no global state is touched); sizes in inches."""
    from matplotlib.figure import Figure

    made = Figure(figsize=(width, height), layout="constrained")
    axes = made.subplots(rows, columns, squeeze=False)
    for axis in axes.flat:
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(True, color="#e6e8ec", linewidth=0.8)
        axis.set_axisbelow(True)
        axis.set_prop_cycle(color=COLOURS)
        axis.tick_params(colors=INK, labelsize=9)
    return made, axes[0][0] if rows * columns == 1 else axes


def from_figure(made: Any, name: str, caption: str, *, docs: bool = False) -> Picture:
    """A matplotlib figure as SVG, without dates or random ids, so that equal data give equal bytes."""
    import matplotlib

    out = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": name, "svg.fonttype": "path", "font.family": "DejaVu Sans"}):
        made.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
    return Picture(name, caption, "svg", out.getvalue(), docs)


def logarithmic(axis: Any, which: Literal["x", "y"]) -> None:
    """A logarithmic axis with plain numbers at 1, 2 and 5 of each decade (over four decades: at powers of ten)."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    getattr(axis, f"set_{which}scale")("log")
    low, high = getattr(axis, f"get_{which}lim")()
    if 0 < low < high < 1e4 * low:
        along = getattr(axis, f"{which}axis")
        along.set_major_locator(LogLocator(subs=(1, 2, 5)))
        along.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        along.set_minor_formatter(NullFormatter())


def curves(
    series: Mapping[str, Sequence[tuple[float, float]]],
    name: str,
    caption: str,
    *,
    x: str,
    y: str,
    log_x: bool = False,
    log_y: bool = False,
    markers: bool = False,
    docs: bool = False,
) -> Picture:
    """A line per named series of (x, y) points."""
    made, axis = figure()
    for label, points in series.items():
        axis.plot(
            [p[0] for p in points], [p[1] for p in points], label=label, marker="o" if markers else None, markersize=4
        )
    axis.set_xlabel(x)
    axis.set_ylabel(y)
    if log_x:
        logarithmic(axis, "x")
    if log_y:
        logarithmic(axis, "y")
    axis.legend(frameon=False, fontsize=9)
    return from_figure(made, name, caption, docs=docs)


def grid(
    rows: Mapping[str, UInt8[Tensor, "n c h w"]],
    name: str,
    caption: str,
    *,
    scale: int = 1,
    docs: bool = False,
    quality: int = 90,
) -> Picture:
    """Images in labelled rows (one label a row), as WebP.

    Args:
        rows: by label, images of equal size, uint8; one channel is shown grey.
        scale: each pixel becomes scale x scale (nearest neighbour), so that small images can be seen.
    """
    from PIL import Image, ImageDraw

    tiles = list(rows.items())
    height, width = (int(tiles[0][1].shape[-2]) * scale, int(tiles[0][1].shape[-1]) * scale)
    most = max(int(images.shape[0]) for _, images in tiles)
    gap, band = 4, 16
    sheet = Image.new("RGB", (most * (width + gap) + gap, len(tiles) * (height + gap + band) + gap), "white")
    draw = ImageDraw.Draw(sheet)
    for r, (label, images) in enumerate(tiles):
        top = gap + r * (height + gap + band)
        draw.text((gap, top + 1), label, fill=INK)
        for c, image in enumerate(images.cpu()):
            array = image.permute(1, 2, 0).numpy()
            tile = Image.fromarray(array[..., 0] if array.shape[-1] == 1 else array[..., :3])
            tile = tile.resize((width, height), Image.Resampling.NEAREST)
            sheet.paste(tile, (gap + c * (width + gap), top + band))
    out = io.BytesIO()
    sheet.save(out, format="WEBP", quality=quality, method=6)
    return Picture(name, caption, "webp", out.getvalue(), docs)
