"""What a language model loses when some of its MLPs are replaced, and two kinds of substitute at equal sparsity."""

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from jaxtyping import Int64
from torch import Tensor

from encyclo import picture
from encyclo.nn.decoder_view import DecoderView
from encyclo.nn.sparse_dictionary import SparseDictionary
from encyclo.picture import Picture

Substitute = Callable[[Tensor, Tensor], Tensor]
"""An MLP's input and output -> what is given in place of the output."""


def stand_in(dictionary: SparseDictionary, *, autoencode: bool = False, skip: int = 1) -> Substitute:
    """A dictionary in an MLP's place; the first `skip` positions keep the MLP's own output.

    Dictionaries are not trained on the first position, whose norm is far from all others.
    """

    def give(inputs: Tensor, output: Tensor) -> Tensor:
        made = dictionary(output if autoencode else inputs).to(output.dtype)
        return torch.cat([output[:, :skip], made[:, skip:]], 1)

    return give


def substituted_loss(
    view: DecoderView,
    contexts: Int64[Tensor, "n t"],
    substitutes: Mapping[int, Substitute],
    *,
    residual: bool = False,
    batch: int = 8,
) -> float:
    """Mean next-token cross-entropy in nats with the MLPs of some layers replaced; position 0 is left out."""
    with view.replaced(substitutes, residual=residual):
        parts = [view.cross_entropy(b.to(view.embedding.device)).cpu() * len(b) for b in contexts.split(batch)]
    return float(torch.stack(parts).sum()) / len(contexts)


def reference_losses(view: DecoderView, contexts: Int64[Tensor, "n t"], layers: Sequence[int]) -> dict[str, float]:
    """Cross-entropy of the model itself, with the MLPs' outputs zeroed, and with their mean over the batch."""

    def zero(inputs: Tensor, output: Tensor) -> Tensor:
        return torch.cat([output[:, :1], torch.zeros_like(output[:, 1:])], 1)

    def mean(inputs: Tensor, output: Tensor) -> Tensor:
        rest = output[:, 1:]
        return torch.cat([output[:, :1], rest.mean((0, 1), keepdim=True).expand_as(rest)], 1)

    return {
        "ce_model": substituted_loss(view, contexts, {}),
        "ce_zero": substituted_loss(view, contexts, dict.fromkeys(layers, zero)),
        "ce_mean": substituted_loss(view, contexts, dict.fromkeys(layers, mean)),
    }


def recovered(loss: float, references: Mapping[str, float]) -> float:
    """How much of the way from zero-ablation to the model itself a substitute keeps, in percent."""
    span = references["ce_zero"] - references["ce_model"]
    return 100 * (references["ce_zero"] - loss) / span if span > 0 else math.nan


def gap_at_equal_sparsity(
    ours: Sequence[tuple[float, float]], theirs: Sequence[tuple[float, float]]
) -> dict[str, float]:
    """Mean difference (ours - theirs) in cross-entropy over the shared range of L0, both interpolated in log L0.

    Args:
        ours: (L0, cross-entropy) of one kind at several penalties.
        theirs: of the other.

    Returns:
        The gap, its largest value, and the ends of the shared range; all nan where there is none.
    """
    curves = [sorted((math.log(l0), ce) for l0, ce in points if l0 > 0) for points in (ours, theirs)]
    names = ("gap", "worst_gap", "shared_l0_low", "shared_l0_high")
    if any(len(curve) < 2 for curve in curves):
        return dict.fromkeys(names, math.nan)
    low, high = max(curve[0][0] for curve in curves), min(curve[-1][0] for curve in curves)
    if high <= low:
        return dict.fromkeys(names, math.nan)
    places = [low + (high - low) * i / 8 for i in range(9)]
    gaps = [_on_line(curves[0], x) - _on_line(curves[1], x) for x in places]
    return dict(zip(names, (sum(gaps) / 9, max(gaps), math.exp(low), math.exp(high)), strict=True))


def _on_line(points: Sequence[tuple[float, float]], x: float) -> float:
    right = next((i for i in range(1, len(points)) if x <= points[i][0]), len(points) - 1)
    (x0, y0), (x1, y1) = points[right - 1], points[right]
    return y0 + (y1 - y0) * (x - x0) / (x1 - x0)


def pareto_picture(kinds: Mapping[str, Sequence[tuple[float, float]]], model: float, *, docs: bool = False) -> Picture:
    """(L0, cross-entropy) of each kind as a curve, beside the loss of the model itself."""
    reach = [l0 for points in kinds.values() for l0, _ in points]
    return picture.curves(
        {**kinds, "the model itself": [(min(reach), model), (max(reach), model)]},
        "pareto",
        "Cross-entropy with one MLP replaced, against how many features are active per token: lower left is better.",
        x="active features per token (L0)",
        y="next-token cross-entropy, nats",
        log_x=True,
        markers=True,
        docs=docs,
    )
