"""Whether a circuit is true: sums that must close, ablations that must tell, features against neurons."""

import math
from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Int64
from torch import Tensor, nn

from encyclo import picture
from encyclo.nn.attribution import Attribution, input_invariant
from encyclo.nn.decoder_view import DecoderView
from encyclo.nn.sparse_dictionary import SparseDictionary
from encyclo.picture import Picture

Dictionaries = Mapping[int, SparseDictionary]
Feature = tuple[int, int, int]
"""Layer, number, token."""


@torch.no_grad()
def exactness(
    view: DecoderView, dictionaries: Dictionaries, prompts: Sequence[Int64[Tensor, " _"]], *, count: int = 10
) -> dict[str, float]:
    """How far attribution is from being an identity: largest relative errors over prompts and strong features.

    Args:
        view: the language model.
        dictionaries: transcoders by layer; features of the last are taken apart.
        prompts: their last tokens are used.
        count: features per prompt.

    Returns:
        `identity_error`: all contributions against a feature's pre-activation. `path_error`: the same for every step of
        an uncapped search, against the step's own attribution. `logit_error`: a logit difference, through all layers.
        `invariant_error`: activation x weights x norm scale against the contribution, the weights' factor being
        computed once, without a prompt.
    """
    layer = max(dictionaries)
    worst = dict.fromkeys(("identity_error", "path_error", "logit_error", "invariant_error"), 0.0)

    def note(name: str, found: float, exact: float) -> None:
        worst[name] = max(worst[name], abs(found - exact) / max(abs(exact), 1e-3))

    for ids in prompts:
        token = len(ids) - 1
        trace = view.trace(ids)
        attribution = Attribution(view, trace, dictionaries)
        exact = dictionaries[layer].preactivations(trace.mlp_in[layer, token])
        for feature in exact.topk(count).indices.tolist():
            reader = attribution.feature_reader(layer, feature, token)
            parts = attribution.contributions(reader)
            note("identity_error", parts.total(), float(exact[feature]))
            fold = view.layers[layer].norm_mlp.fold(dictionaries[layer].encoder[feature])
            scale = (reader.direction @ fold) / (fold @ fold)
            for lower, factor in input_invariant(view, dictionaries, layer, feature).items():
                product = attribution.features[lower][token] * factor * scale
                i = int(parts.features[lower].abs().argmax())
                note("invariant_error", float(product[i]), float(parts.features[lower][i]))
        reader = attribution.feature_reader(layer, int(exact.argmax()), token)
        for path in (p for paths in attribution.paths(reader, depth=3, branches=5, raw=True) for p in paths):
            if path.reader is not None:
                note("path_error", attribution.contributions(path.reader).total(), path.attribution)
        first, second = trace.logits[token].topk(2).indices.tolist()
        reader = attribution.logit_reader(view.unembedding[first] - view.unembedding[second], token)
        note(
            "logit_error",
            attribution.contributions(reader).total(),
            float(trace.logits[token, first] - trace.logits[token, second]),
        )
    return worst


@torch.no_grad()
def ablation_test(
    view: DecoderView,
    dictionaries: Dictionaries,
    contexts: Sequence[Int64[Tensor, " _"]],
    *,
    seed: int,
    roots: int = 20,
    named: int = 5,
) -> dict[str, float]:
    """Take the features that a path search names out of the real model, and others as the control.

    Per context the root is the strongest feature of the last layer; how far its activation falls is the effect. One
    control is random: equally active features of the same layers, at any token up to the root's. A harder one knows the
    right places: at the named features' own layers and tokens, those whose activations come nearest (they are often
    weaker; how much, is told).

    Args:
        view: the language model; its own MLPs run, minus the features' contributions.
        dictionaries: transcoders of the first layers, without a gap.
        contexts: prompts.
        seed: of the choice of controls.
        roots: tested at most.
        named: features ablated per root.

    Returns:
        Drops in percent of the root's activation (`named_drop`, `other_drop`, `same_place_drop`), the ratios of the
        first to the others (a control counts as 1 % at least), the activation of the harder control as a share of the
        named features', and how many roots were tested.
    """
    layer = max(dictionaries)
    generator = torch.Generator().manual_seed(seed)
    drops: list[list[float]] = []
    strengths: list[float] = []
    for ids in contexts:
        attribution = Attribution(view, view.trace(ids, layer + 1), dictionaries)
        active = attribution.features[layer]
        token = int(active[8:].amax(1).argmax()) + 8  # the first tokens have too little before them
        root = (layer, int(active[token].argmax()), token)
        chosen = _named_causes(attribution, root, named)
        others = _equally_active(attribution, chosen, token, generator)
        nearest = _nearest_in_place(attribution, chosen)
        if any(len(group) < named for group in (chosen, others, nearest)):
            continue
        before = float(active[token, root[1]])
        drops.append(
            [
                1 - _activation_without(view, attribution, ids, group, root) / before
                for group in (chosen, others, nearest)
            ]
        )
        sizes = [sum(float(attribution.features[i][t, n]) for i, n, t in group) for group in (chosen, nearest)]
        strengths.append(sizes[1] / sizes[0])
        if len(drops) == roots:
            break
    if not drops:
        names = ("named_drop", "other_drop", "same_place_drop", "drop_ratio", "same_place_ratio", "same_place_strength")
        return {"roots_tested": 0.0, **dict.fromkeys(names, math.nan)}
    ours, control, nearby = torch.tensor(drops).mean(0).tolist()
    return {
        "roots_tested": float(len(drops)),
        "named_drop": 100 * ours,
        "other_drop": 100 * control,
        "same_place_drop": 100 * nearby,
        "drop_ratio": ours / max(control, 0.01),
        "same_place_ratio": ours / max(nearby, 0.01),
        "same_place_strength": sum(strengths) / len(strengths),
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


def _nearest_in_place(attribution: Attribution, chosen: Sequence[Feature]) -> list[Feature]:
    """For each chosen feature another active one of its layer and token, the nearest in activation."""
    others: list[Feature] = []
    for layer, number, token in chosen:
        values = attribution.features[layer][token]
        order = (values - values[number]).abs().argsort().tolist()
        free = ((layer, n, token) for n in order if float(values[n]) > 0)
        others += [next((f for f in free if f not in chosen and f not in others), None) or (layer, number, token)]
    return [f for f in others if f not in chosen]


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
    prompts: Sequence[Int64[Tensor, " _"]],
    answers: Sequence[tuple[int, int]],
    *,
    kept: Sequence[int] = (0, 2, 4, 8, 16, 32, 64, 128),
) -> dict[str, float]:
    """Keep k features, or k neurons, of one MLP at the last token, by their variance: what of a behaviour is left?

    The output bias of a transcoder holds the MLP's mean output, so beside neurons whose companions are zeroed (as in
    the paper) stand neurons whose companions keep their mean over the prompts.

    Args:
        view: the language model.
        dictionary: the layer's transcoder.
        layer: which MLP.
        prompts: each to be continued.
        answers: per prompt the right and the wrong token; the behaviour is the mean difference of their logits.
        kept: the numbers k.

    Returns:
        `behaviour_whole`, and by k `behaviour_features_K`, `behaviour_neurons_K`, `behaviour_neurons_mean_K`.
    """
    mlp = view.layer(layer).mlp
    down = next(m for n, m in mlp.named_modules() if n in ("down_proj", "c_proj", "dense_4h_to_h"))

    lengths = torch.tensor([len(ids) for ids in prompts], device=prompts[0].device)
    rows, last = torch.arange(len(prompts), device=lengths.device), lengths - 1
    ids = nn.utils.rnn.pad_sequence(list(prompts), batch_first=True)  # attention looks back only: padding is not seen
    right, wrong = torch.tensor(answers, device=ids.device).T

    def behaviour() -> float:
        hidden = view.model.base_model(input_ids=ids, use_cache=False).last_hidden_state[rows, last]
        logits = view.model.get_output_embeddings()(hidden)
        return float((logits[rows, right] - logits[rows, wrong]).mean())

    def with_neurons(mask: Tensor, others: Tensor) -> float:
        def hook(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor]:
            hidden = args[0].clone()
            hidden[rows, last] = torch.where(mask, hidden[rows, last], others)
            return (hidden,)

        handle = down.register_forward_pre_hook(hook)
        try:
            return behaviour()
        finally:
            handle.remove()

    features = dictionary.encode(view.harvest(ids, [layer])[layer][0][rows, last])
    seen: list[Tensor] = []
    handle = down.register_forward_pre_hook(lambda module, args: seen.append(args[0][rows, last]))
    told = {"behaviour_whole": behaviour()}
    handle.remove()
    neurons = seen[0]
    by_feature, by_neuron = (values.var(0).argsort(descending=True) for values in (features, neurons))
    for k in kept:
        few = torch.zeros_like(features[0]).index_fill(0, by_feature[:k], 1.0)

        def only_features(x: Tensor, y: Tensor, few: Tensor = few) -> Tensor:
            made = y.clone()
            made[rows, last] = dictionary.decode(features * few)
            return made

        with view.replaced({layer: only_features}):
            told[f"behaviour_features_{k}"] = behaviour()
        mask = torch.zeros_like(neurons[0], dtype=torch.bool).index_fill(0, by_neuron[:k], True)
        told[f"behaviour_neurons_{k}"] = with_neurons(mask, torch.zeros_like(neurons[0]))
        told[f"behaviour_neurons_mean_{k}"] = with_neurons(mask, neurons.mean(0))
    return told


def behaviour_picture(told: Mapping[str, float], behaviour: str, *, docs: bool = False) -> Picture:
    """What `features_and_neurons` found, as curves over k.

    Args:
        told: its result (other entries are left out).
        behaviour: what the numbers are, for the axis.
        docs: also for the documentation.
    """
    titles = {
        "features": "k transcoder features",
        "neurons": "k neurons, the others zero",
        "neurons_mean": "k neurons, the others at their mean",
    }
    lines: dict[str, list[tuple[float, float]]] = {title: [] for title in titles.values()}
    for name, value in told.items():
        kind, _, number = name.removeprefix("behaviour_").rpartition("_")
        if kind in titles and number.isdigit():
            lines[titles[kind]].append((float(number), value))
    lines["the whole MLP"] = [(k, told["behaviour_whole"]) for k, _ in lines[titles["features"]]]
    return picture.curves(
        lines,
        "behaviour",
        "What is left of a behaviour when only k features, or k neurons, of one MLP are kept at the last token.",
        x="kept (k)",
        y=behaviour,
        markers=True,
        docs=docs,
    )
