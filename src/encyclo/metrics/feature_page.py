"""A page about one feature: where it fires, what drives it, what it does, which earlier features feed it."""

import html
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from encyclo import page
from encyclo.metrics.circuit_page import Circuit

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
    circuit: Circuit | None = None,
    blind: bool = False,
) -> tuple[str, dict[str, Any]]:
    """The page and its figures.

    Args:
        title: of the page.
        ids: contexts of tokens.
        activations: of the feature, at every token.
        word: a token as text.
        direct: rows of the table of tokens that drive the feature, or that it raises.
        upstream: by heading, per lower layer the weight of every feature there.
        circuit: what causes it where it is strongest.
        blind: show the circuit without its words and fold the texts away, so that the meaning can be guessed first.
    """
    frequency, best = float((activations > 0).float().mean()), float(activations.max())
    texts = "".join(_bands(ids, activations, word, best)) or "<p>It never fires on this text.</p>"
    drawn = "" if circuit is None else page.figure(circuit.drawing()) + page.table(circuit.rows()[:12])
    shown = f"log10 {math.log10(frequency):.2f}" if frequency else "never"
    head = f"<p>fires on {frequency:.3%} of tokens ({shown}), strongest {best:.3g}</p>{_histogram(activations, best)}"
    weights = (
        f"<h2>Earlier features that feed it</h2>{''.join(_upstream(upstream))}"
        f"<h2>Without any input</h2>{page.table([dict(row) for row in direct])}"
    )
    where = f"<h2>Where it fires</h2>{texts}"
    causes = f"<h2>What causes it where it is strongest</h2>{drawn}" if drawn else ""
    if not blind:
        return page.page(title, head + where + causes + weights), {"frequency": frequency, "strongest": best}
    if circuit is not None:
        hidden = circuit.hidden()
        hidden_drawing = page.figure(hidden.drawing("hidden")) + page.table(hidden.rows()[:12])
        causes = f"<h2>What causes it where it is strongest, words hidden</h2>{hidden_drawing}"
    reveal = f"<details><summary>Reveal where it fires</summary>{where}{drawn}</details>"
    return page.page(title, head + causes + weights + reveal), {"frequency": frequency, "strongest": best}


@dataclass(frozen=True)
class Survey:
    """All features of a layer over a text."""

    best: Float[Tensor, " f"]
    """The strongest activation of each feature."""
    where: Int64[Tensor, " f"]
    """Its place, counted through the contexts."""
    frequency: Float[Tensor, " f"]
    """Share of tokens on which it fires."""


def survey_all(activities: Iterable[Mapping[int, Float[Tensor, "b t f"]]], layer: int) -> Survey:
    """Strongest place and frequency of every feature of a layer.

    Args:
        activities: per batch of contexts, feature activations by layer.
        layer: which.
    """
    peaks, places, fired, seen = [], [], [], 0
    for found in activities:
        z = found[layer].flatten(0, 1)
        peak, place = z.max(0)
        peaks.append(peak.cpu())
        places.append(place.cpu() + seen)
        fired.append((z > 0).sum(0).cpu())
        seen += len(z)
    best, batch = torch.stack(peaks).max(0)
    where = torch.stack(places).gather(0, batch[None])[0]
    return Survey(best, where, torch.stack(fired).sum(0) / seen)


def survey_feature(
    activities: Iterable[Mapping[int, Float[Tensor, "b t f"]]], layer: int, feature: int
) -> tuple[Float[Tensor, "n t"], dict[int, Float[Tensor, " f"]]]:
    """Where a feature fires, and how active all features of other layers are then.

    Args:
        activities: per batch of contexts, feature activations by layer.
        layer: of the feature.
        feature: its number.

    Returns:
        Its activations, and by other layer the mean activation of every feature, weighted by the feature's own.
    """
    values: list[Tensor] = []
    sums: dict[int, Tensor] = {}
    for found in activities:
        z = found[layer][..., feature]
        values.append(z.cpu())
        for other, active in found.items():
            if other != layer:
                sums[other] = sums.get(other, 0) + torch.einsum("bt,btf->f", z, active)
    strength = torch.cat(values)
    return strength, {other: total / strength.sum().clamp(min=1e-9) for other, total in sums.items()}


def overview_page(
    title: str, ids: Int64[Tensor, "n t"], survey: Survey, word: Callable[[int], str], *, most: int = 100
) -> tuple[str, dict[str, Any]]:
    """A table of the features to look at: those with the strongest activations, among all that fire now and then.

    Args:
        title: of the page.
        ids: contexts of tokens.
        survey: of all features over them; those that fire on more than a tenth of the tokens come last.
        word: a token as text.
        most: rows.
    """
    best = survey.best
    order = (best - (survey.frequency > 0.1) * 1e6).argsort(descending=True)[:most].tolist()
    rows = []
    for feature in (f for f in order if float(best[f]) > 0):
        row, at = divmod(int(survey.where[feature]), ids.shape[1])
        before, here, after = (
            "".join(word(int(i)) for i in ids[row, start:stop])
            for start, stop in ((max(0, at - 12), at), (at, at + 1), (at + 1, at + 4))
        )
        rows.append(
            {
                "feature": feature,
                "fires on": f"{float(survey.frequency[feature]):.2%}",
                "strongest": float(best[feature]),
                "where it is strongest": f"{before} «{here}» {after}",
            }
        )
    silent = int((best <= 0).sum())
    body = f"<p>{len(best)} features, of which {silent} never fire on this text.</p>{page.table(list(rows))}"
    return page.page(title, body), {"features": [row["feature"] for row in rows[:10]], "silent": silent}


def _histogram(activations: Tensor, best: float) -> str:
    """How strong it is where it fires, as a drawing of thirty bars on a log scale."""
    if best <= 0:
        return ""
    counts = torch.histc(activations[activations > 0].float(), bins=30, min=0, max=best).log1p()
    bars = "".join(
        f"<rect x='{i * 10}' y='{60 - 58 * h:.1f}' width='8' height='{58 * h:.1f}' fill='#2457a6'/>"
        for i, h in enumerate((counts / counts.max()).tolist())
    )
    caption = f"activations above 0, up to {best:.3g}; heights on a log scale"
    return (
        f"<figure><svg viewBox='0 0 300 60' width='300' height='60'>{bars}</svg>"
        f"<figcaption>{caption}</figcaption></figure>"
    )


def _upstream(upstream: Mapping[str, Mapping[int, Tensor]]) -> list[str]:
    lines = []
    for heading, layers in upstream.items():
        best = [(float(v), layer, int(i)) for layer, values in layers.items() for v, i in _top(values, 5)]
        best.sort(reverse=True)
        listed = ", ".join(f"layer {layer} feature {i} ({v:.3g})" for v, layer, i in best[:8] if v > 0)
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
