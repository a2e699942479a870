"""Pictures of sparse retrieval: quality against sparsity, the terms of a text, and active terms over training."""

from collections.abc import Mapping, Sequence
from typing import Any

from encyclo.picture import Picture, curves, figure, from_figure
from encyclo.search.text_model import SparseTextModel

__all__ = ["active_picture", "sharpness_picture", "terms_picture"]

_SAID, _ADDED = "#2457a6", "#e0912f"


def sharpness_picture(learned: Mapping[str, Sequence[tuple[float, float]]], level: Mapping[str, float]) -> Picture:
    """nDCG@10 when only the heaviest terms are kept.

    Args:
        learned: by arm, (terms kept of a document, nDCG@10).
        level: arms without such a choice, drawn as flat lines.
    """
    lines = {name: list(points) for name, points in learned.items()}
    ends = [x for points in lines.values() for x, _ in points]
    lines |= {name: [(min(ends), value), (max(ends), value)] for name, value in level.items()}
    return curves(
        lines,
        "sharpness",
        "Quality against sparsity on held-out pairs: nDCG@10 when only the heaviest terms of each text are kept.",
        x="terms kept of a document (mean)",
        y="nDCG@10",
        log_x=True,
        markers=True,
        docs=True,
    )


def active_picture(logged: Mapping[str, Mapping[str, Sequence[tuple[int, float, float]]]]) -> Picture:
    """Active terms of a text over training, by arm and side.

    Args:
        logged: by arm and curve, (step, seconds, value); of `active_query` and `active_document`.
    """
    lines = {
        f"{name}, {side}": [(float(step), value) for step, _, value in curve[f"active_{side}"]]
        for name, curve in logged.items()
        for side in ("query", "document")
        if f"active_{side}" in curve
    }
    caption = "Active terms of a text while the sparsity penalty is let in."
    return curves(lines, "active", caption, x="step", y="active terms", log_y=True)


def terms_picture(model: SparseTextModel, text: str, *, longest: int, terms: int = 24) -> Picture:
    """The heaviest terms of one document, those that stand in it apart from those the model added."""
    vectors = model.sparse([text], "document", longest=longest)[0].top(terms)
    numbers, weights = vectors.row(0)
    order = weights.argsort(descending=True).tolist()
    said: set[int] = set(model.tokenizer(f" {text}", add_special_tokens=False).input_ids)
    colours = [_SAID if int(numbers[i]) in said else _ADDED for i in order]
    made, axis = figure(7.0, 4.4)
    place = list(range(len(order)))
    axis.barh(place, [float(weights[i]) for i in order], color=colours)
    axis.set_yticks(place, [model.names[int(numbers[i])] for i in order], fontsize=8)
    axis.invert_yaxis()
    axis.set_xlabel("weight")
    axis.set_title(_shortened(text), fontsize=9, loc="left")
    key: dict[str, Any] = {"stands in the text": _SAID, "added by the model": _ADDED}
    for label, colour in key.items():
        axis.barh([0], [0], color=colour, label=label)
    axis.legend(frameon=False, fontsize=8, loc="lower right")
    caption = "The heaviest terms of a held-out text: those that stand in it, and those the model added."
    return from_figure(made, "terms", caption, docs=True)


def _shortened(text: str, most: int = 90) -> str:
    return f"“{text}”" if len(text) <= most else f"“{text[:most]} …”"
