"""A page about one feature: where it fires, what drives it, what it does, which earlier features feed it."""

import html
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from encyclo import page

BANDS = ((1.0, 0.8), (0.8, 0.5), (0.5, 0.2), (0.2, 0.0))
"""Of the strongest activation, upper and lower end."""


def feature_page(
    title: str,
    ids: Int64[Tensor, "n t"],
    activations: Float[Tensor, "n t"],
    word: Callable[[int], str],
    *,
    direct: Sequence[Mapping[str, Any]],
    upstream: Mapping[str, Mapping[int, Float[Tensor, " f"]]],
    blind: bool,
) -> tuple[str, dict[str, Any]]:
    """The page and its figures.

    Args:
        title: of the page.
        ids: contexts of tokens.
        activations: of the feature, at every token.
        word: a token as text.
        direct: rows of the table of tokens that drive the feature, or that it raises.
        upstream: by heading, per lower layer the weight of every feature there.
        blind: fold the texts away, so that the meaning can be guessed from the circuit alone.
    """
    frequency, best = float((activations > 0).float().mean()), float(activations.max())
    texts = "".join(_bands(ids, activations, word, best)) or "<p>It never fires on this text.</p>"
    if blind:
        texts = f"<details><summary>Reveal where it fires</summary>{texts}</details>"
    shown = f"log10 {math.log10(frequency):.2f}" if frequency else "never"
    body = (
        f"<p>fires on {frequency:.3%} of tokens ({shown}), strongest {best:.3g}</p>"
        f"<h2>Earlier features that feed it</h2>{''.join(_upstream(upstream))}"
        f"<h2>Without any input</h2>{page.table([dict(row) for row in direct])}"
        f"<h2>Where it fires</h2>{texts}"
    )
    return page.page(title, body), {"frequency": frequency, "strongest": best}


def _upstream(upstream: Mapping[str, Mapping[int, Tensor]]) -> list[str]:
    lines = []
    for heading, layers in upstream.items():
        best = [(float(v), layer, int(i)) for layer, values in layers.items() for v, i in _top(values, 5)]
        best.sort(reverse=True)
        listed = ", ".join(f"layer {layer} feature {i} ({v:.3g})" for v, layer, i in best[:8])
        lines.append(f"<p>{html.escape(heading)}: {listed or 'no lower layer has a transcoder'}</p>")
    return lines


def _top(values: Tensor, count: int) -> list[tuple[float, int]]:
    best = torch.topk(values, min(count, len(values)))
    return list(zip(best.values.tolist(), best.indices.tolist(), strict=True))


def _bands(ids: Tensor, activations: Tensor, word: Callable[[int], str], best: float) -> list[str]:
    peak = activations.amax(1)
    parts = []
    for high, low in BANDS:
        inside = ((peak <= best * high) & (peak > best * low)).nonzero().flatten()
        strongest = inside[peak[inside].argsort(descending=True)[:5]].tolist()
        lines = "".join(f"<p>{_snippet(ids[i], activations[i], word, best)}</p>" for i in strongest)
        if lines:
            parts.append(f"<h3>{low:.0%} to {high:.0%} of the strongest</h3>{lines}")
    return parts


def _snippet(ids: Tensor, activations: Tensor, word: Callable[[int], str], best: float) -> str:
    at = int(activations.argmax())
    spans = []
    for i in range(max(0, at - 20), min(len(ids), at + 8)):
        shade = float(activations[i]) / best if best > 0 else 0.0
        text = html.escape(word(int(ids[i])))
        spans.append(f"<span style='background:rgba(224,145,47,{shade:.2f})'>{text}</span>")
    return "".join(spans)
