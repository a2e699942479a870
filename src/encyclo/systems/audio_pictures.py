"""What an audio codec shows: spectrograms, the use of its codebooks, recordings to listen to."""

import html
import io
import math
from collections.abc import Mapping
from typing import Any, Literal

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from encyclo.data.audio import Audio, encode_audio
from encyclo.picture import Picture, figure, from_figure
from encyclo.tokens.mel import magnitude_spectrogram

__all__ = ["codebook_page", "codebook_picture", "heard", "spectrograms"]


def spectrograms(
    waves: Mapping[str, Float[Tensor, " _"]],
    rate: int,
    name: str,
    caption: str,
    *,
    kind: Literal["webp", "png"] = "webp",
    docs: bool = False,
) -> Picture:
    """Spectrograms of several waves, one above the other, on one scale (dB under loud parts of the first)."""
    from PIL import Image

    made, axes = figure(7.0, 0.9 + 1.3 * len(waves), rows=len(waves))
    grid = list(axes.flat) if len(waves) > 1 else [axes]
    hop, size = max(1, rate // 200), 1 << round(math.log2(rate * 0.032))
    window = torch.hann_window(size)
    shown = {
        label: 20 * magnitude_spectrogram(wave.cpu(), size, hop, window).clamp(min=1e-5).log10()
        for label, wave in waves.items()
    }
    first = next(iter(shown.values()))
    top = float(torch.quantile(first.flatten()[: 1 << 24], 0.99))
    shown = {label: values - top for label, values in shown.items()}
    for axis, (label, values) in zip(grid, shown.items(), strict=True):
        axis.grid(False)
        extent = (0, values.shape[1] * hop / rate, 0, rate / 2000)
        look = {"origin": "lower", "aspect": "auto", "vmin": -60, "vmax": 0, "cmap": "magma"}
        drawn = axis.imshow(values.numpy(), extent=extent, **look)
        axis.set_ylabel("kHz", fontsize=8)
        axis.set_title(label, fontsize=9, loc="left", pad=2)
        if axis is not grid[-1]:
            axis.set_xticklabels([])
    grid[-1].set_xlabel("seconds", fontsize=8)
    made.colorbar(drawn, ax=grid, shrink=0.8, pad=0.01).set_label("dB", fontsize=8)
    raw, out = io.BytesIO(), io.BytesIO()
    made.savefig(raw, format="png", dpi=120, metadata={"Software": None})
    # a spectrogram is all noise and texture, which vector graphics would store as an uncompressed picture
    Image.open(raw).convert("RGB").save(out, format=kind.upper(), quality=82, method=6)
    return Picture(name, caption, kind, out.getvalue(), docs)


def codebook_picture(
    counts: Int64[Tensor, "books size"],
    energy: Float[Tensor, "levels_and_one groups"],
    name: str = "codebooks",
    caption: str = "",
    *,
    docs: bool = False,
) -> Picture:
    """Left: how often each codebook's codes are chosen, most frequent first; right: energy left after each level."""
    made, axes = figure(7.0, 2.8, columns=2)
    left, right = axes.flat
    groups = energy.shape[1]
    for book, row in enumerate(counts):
        share = row.double().sort(descending=True).values / row.sum().clamp(min=1)
        left.plot(share.clamp(min=1e-6).numpy(), label=f"level {book // groups + 1}, group {book % groups + 1}")
    left.set_yscale("log")
    left.set_xlabel("code, by rank")
    left.set_ylabel("share of frames")
    left.legend(frameon=False, fontsize=7)
    for group in range(groups):
        right.plot(
            (energy[:, group] / energy[0].sum().clamp(min=1e-12)).numpy(),
            marker="o",
            markersize=4,
            label=f"group {group + 1}",
        )
    right.set_xticks(range(energy.shape[0]))
    right.set_ylim(0, None)
    right.set_xlabel("levels used")
    right.set_ylabel("energy left")
    right.legend(frameon=False, fontsize=7)
    return from_figure(made, name, caption, docs=docs)


def codebook_page(title: str, rows: list[dict[str, Any]], report: Mapping[str, Any], picture: Picture) -> str:
    """An HTML page: facts, one row a codebook, the SVG picture of `codebook_picture`."""

    def cell(value: Any) -> str:
        return html.escape(f"{value:.4g}" if isinstance(value, float) else str(value))

    head = "".join(f"<th>{html.escape(name.replace('_', ' '))}</th>" for name in rows[0])
    body = "".join("<tr>" + "".join(f"<td>{cell(v)}</td>" for v in row.values()) + "</tr>" for row in rows)
    facts = "".join(f"<li>{html.escape(k.replace('_', ' '))}: {cell(v)}</li>" for k, v in report.items())
    svg = picture.content.decode()
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>Codebooks of {html.escape(title)}</title>'
        "<style>body{font:15px/1.5 system-ui,sans-serif;max-width:48rem;margin:2rem auto;padding:0 1rem;color:#1f2430}"
        "table{border-collapse:collapse}td,th{padding:.2rem .7rem;text-align:right;border-bottom:1px solid #e6e8ec}"
        "svg{max-width:100%;height:auto}</style>"
        f"<h1>Codebooks</h1><ul>{facts}</ul><table><tr>{head}</tr>{body}</table>{svg[svg.index('<svg') :]}</html>\n"
    )


def heard(waves: Mapping[str, Float[Tensor, " _"]], rate: int, caption: str) -> list[Picture]:
    """Each wave as a recording of the report, 16 bit; the caption is followed by the wave's name."""
    return [
        Picture(
            f"heard-{name}", f"{caption}: {name}.", "wav", encode_audio(Audio(wave[None].clamp(-1, 1), rate), ".wav")
        )
        for name, wave in waves.items()
    ]
