"""Whether a circuit is true: sums that must close, ablations that must tell, and a drawing."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Int64
from torch import Tensor, nn

from encyclo import picture
from encyclo.nn.attribution import Attribution, Graph
from encyclo.nn.decoder_view import DecoderView
from encyclo.nn.sparse_dictionary import SparseDictionary
from encyclo.picture import Picture

Dictionaries = Mapping[int, SparseDictionary]
Feature = tuple[int, int, int]
"""Layer, number, token."""


@torch.no_grad()
def identity_error(
    view: DecoderView, dictionaries: Dictionaries, ids: Int64[Tensor, " t"], *, count: int = 10
) -> float:
    """Largest relative error of 'all contributions add up to the pre-activation', over the strongest features.

    Args:
        view: the language model.
        dictionaries: transcoders by layer; features of the last are taken apart.
        ids: a prompt; its last token is used.
        count: features.
    """
    layer, token = max(dictionaries), len(ids) - 1
    attribution = Attribution(view, view.trace(ids, layer + 1), dictionaries)
    exact = dictionaries[layer].preactivations(attribution.trace.mlp_in[layer, token])
    worst = 0.0
    for feature in exact.topk(count).indices.tolist():
        total = attribution.contributions(attribution.feature_reader(layer, feature, token)).total()
        worst = max(worst, abs(total - float(exact[feature])) / max(abs(float(exact[feature])), 1e-3))
    return worst


@torch.no_grad()
def ablation_test(
    view: DecoderView,
    dictionaries: Dictionaries,
    contexts: Sequence[Int64[Tensor, " t"]],
    *,
    seed: int,
    roots: int = 20,
    named: int = 5,
) -> dict[str, float]:
    """Take the features that a path search names out of the real model, and equally active others as the control.

    Per context the root is the strongest feature of the last layer; how far its activation falls is the effect.

    Args:
        view: the language model; its own MLPs run, minus the features' contributions.
        dictionaries: transcoders of the first layers, without a gap.
        contexts: prompts.
        seed: of the choice of controls.
        roots: tested at most.
        named: features ablated per root.

    Returns:
        Drops in percent of the root's activation, their ratio (the control counts as 1 % at least), and how many roots
        were tested.
    """
    layer = max(dictionaries)
    generator = torch.Generator().manual_seed(seed)
    drops: list[tuple[float, float]] = []
    for ids in contexts:
        attribution = Attribution(view, view.trace(ids, layer + 1), dictionaries)
        active = attribution.features[layer]
        token = int(active[8:].amax(1).argmax()) + 8  # the first tokens have too little before them
        root = (layer, int(active[token].argmax()), token)
        chosen = _named_causes(attribution, root, named)
        others = _equally_active(attribution, chosen, token, generator)
        if len(chosen) < named or len(others) < named:
            continue
        before = float(active[token, root[1]])
        effects = [1 - _activation_without(view, attribution, ids, group, root) / before for group in (chosen, others)]
        drops.append((effects[0], effects[1]))
        if len(drops) == roots:
            break
    if not drops:
        return {"roots_tested": 0.0, "named_drop": math.nan, "other_drop": math.nan, "drop_ratio": math.nan}
    ours, control = (sum(d[i] for d in drops) / len(drops) for i in (0, 1))
    return {
        "roots_tested": float(len(drops)),
        "named_drop": 100 * ours,
        "other_drop": 100 * control,
        "drop_ratio": ours / max(control, 0.01),
    }


def _named_causes(attribution: Attribution, root: Feature, count: int) -> list[Feature]:
    """The features with the largest attribution among the ends of the best paths of up to two steps."""
    found: dict[Feature, float] = {}
    for paths in attribution.paths(attribution.feature_reader(*root), depth=2, branches=15):
        for step in (path.steps[-1] for path in paths):
            if step.kind == "feature" and step.token > 0:
                key = (step.layer, step.index, step.token)
                found[key] = max(found.get(key, 0.0), step.attribution)
    return sorted(found, key=lambda key: found[key], reverse=True)[:count]


def _equally_active(
    attribution: Attribution, chosen: Sequence[Feature], last: int, generator: torch.Generator
) -> list[Feature]:
    """For each chosen feature another of its layer, somewhere before the root, with an activation within a quarter."""
    others: list[Feature] = []
    for layer, number, token in chosen:
        pool = attribution.features[layer][1 : last + 1]
        size = pool[token - 1, number]
        near = ((pool > 0.8 * size) & (pool < 1.25 * size)).nonzero()
        for row in near[torch.randperm(len(near), generator=generator)].tolist():
            other = (layer, row[1], row[0] + 1)
            if other not in chosen and other not in others:
                others.append(other)
                break
    return others


def _activation_without(
    view: DecoderView, attribution: Attribution, ids: Tensor, group: Sequence[Feature], root: Feature
) -> float:
    """The root's activation when the group's contributions are subtracted from the MLP outputs."""
    removed: dict[int, Tensor] = {}
    for layer, number, token in group:
        delta = removed.setdefault(layer, torch.zeros_like(attribution.trace.mlp_out[layer]))
        delta[token] += attribution.features[layer][token, number] * attribution.transcoders[layer].decoder[number]
    changes = {layer: (lambda x, y, d=delta: y - d) for layer, delta in removed.items()}
    with view.replaced(changes):
        inputs, _ = view.harvest(ids[None], [root[0]])[root[0]]
    return float(attribution.transcoders[root[0]].encode(inputs[0, root[2]])[root[1]])


@torch.no_grad()
def features_and_neurons(
    view: DecoderView,
    dictionary: SparseDictionary,
    layer: int,
    prompts: Sequence[Int64[Tensor, " t"]],
    answers: Sequence[tuple[int, int]],
    *,
    kept: Sequence[int] = (4, 16, 64),
) -> dict[str, float]:
    """Keep k features, or k neurons, of one MLP at the last token, by their variance: what of a behaviour is left?

    Args:
        view: the language model.
        dictionary: the layer's transcoder.
        layer: which MLP.
        prompts: each to be continued.
        answers: per prompt the right and the wrong token; the behaviour is the mean difference of their logits.
        kept: the numbers k.
    """
    mlp = view.layer(layer).mlp
    down = next(m for n, m in mlp.named_modules() if n in ("down_proj", "c_proj", "dense_4h_to_h"))

    def behaviour() -> float:
        rows = [view.model(input_ids=ids[None], use_cache=False, logits_to_keep=1).logits[0, -1] for ids in prompts]
        return float(torch.stack([r[a] - r[b] for r, (a, b) in zip(rows, answers, strict=True)]).mean())

    features = torch.stack([dictionary.encode(view.harvest(i[None], [layer])[layer][0][0, -1]) for i in prompts])
    neurons: list[Tensor] = []
    handle = down.register_forward_pre_hook(lambda module, args: neurons.append(args[0][0, -1]))
    told = {"behaviour_whole": behaviour()}
    handle.remove()
    by_feature = features.var(0).argsort(descending=True)
    by_neuron = torch.stack(neurons).var(0).argsort(descending=True)
    for k in kept:
        few = torch.zeros_like(features[0]).index_fill(0, by_feature[:k], 1.0)

        def only_features(x: Tensor, y: Tensor, few: Tensor = few) -> Tensor:
            made = dictionary.decode(dictionary.encode(x[:, -1:]) * few)
            return torch.cat([y[:, :-1], made], 1)

        with view.replaced({layer: only_features}):
            told[f"behaviour_features_{k}"] = behaviour()
        mask = torch.zeros_like(neurons[0]).index_fill(0, by_neuron[:k], 1.0)

        def only_neurons(module: nn.Module, args: tuple[Tensor, ...], mask: Tensor = mask) -> tuple[Tensor]:
            hidden = args[0].clone()
            hidden[:, -1] *= mask
            return (hidden,)

        handle = down.register_forward_pre_hook(only_neurons)
        told[f"behaviour_neurons_{k}"] = behaviour()
        handle.remove()
    return told


# -- names and drawings -----------------------------------------------------------------------------------------------


def node_name(node: tuple[str, int, int, int], words: Sequence[str]) -> str:
    """A node of a circuit in words: `L3/17 @5 'cat'` is feature 17 of layer 3 at token 5."""
    kind, layer, index, token = node
    if kind == "root":
        return "root"
    place = f"@{token} {words[token]!r}"
    if kind == "embedding":
        return f"embedding {place}"
    return f"L{layer}/{index} {place}" if kind == "feature" else f"head L{layer}.{index} {place}"


_COLOURS = {"feature": "#2457a6", "head": "#e0912f", "embedding": "#2e8b57", "root": "#d1495b"}


def draw(made: Graph, words: Sequence[str], root: str, *, name: str = "circuit", docs: bool = False) -> Picture:
    """A circuit: tokens from left to right, layers from below upwards, edges as wide as their attribution."""
    figure, axis = picture.figure(8.0, 5.0)
    top = 1 + max((node[1] for node in made.nodes if node[0] != "root"), default=0)
    heights: dict[str, Callable[[int], float]] = {
        "root": lambda layer: top + 0.6,
        "embedding": lambda layer: -0.8,
        "feature": lambda layer: layer + 0.35,
        "head": lambda layer: float(layer),
    }
    places: dict[tuple[str, int, int, int], tuple[float, float]] = {}
    crowd: dict[tuple[int, float], int] = {}
    for node in made.nodes:
        kind, layer, _, token = node
        column, height = len(words) - 1 if kind == "root" else token, heights[kind](layer)
        beside = crowd.get((column, height), 0)
        crowd[column, height] = beside + 1
        places[node] = (column + 0.22 * beside, height)
    largest = max(made.edges.values(), default=1.0)
    for (child, parent), weight in made.edges.items():
        ends: Any = zip(places[child], places[parent], strict=True)
        axis.plot(*ends, color="#8a93a0", linewidth=0.4 + 3 * weight / largest, alpha=0.7, zorder=1)
    for (kind, layer, index, _), place in places.items():
        axis.scatter(*place, s=40, color=_COLOURS[kind], zorder=2)
        label = {"root": root, "embedding": "", "feature": f"{layer}/{index}", "head": f"{layer}.{index}"}[kind]
        axis.annotate(label, place, textcoords="offset points", xytext=(4, 4), fontsize=7)
    axis.set_xticks(range(len(words)), [word[:10] for word in words], rotation=40, ha="right", fontsize=8)
    axis.set_ylabel("layer")
    axis.grid(False)
    caption = "A circuit: features (blue), attention heads (orange) and embeddings (green) that cause the root (red)."
    return picture.from_figure(figure, name, caption, docs=docs)
