"""Exact linear attribution through transcoders, and the paths that carry it (arXiv 2406.11944, sections 4 and 5).

A direction read from the residual stream is a sum: the embedding, every attention head from every source token, every
transcoder feature of every lower layer, biases, and what the transcoders miss. With each norm's scale held at the
token's own value the sum is an identity.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from encyclo.errors import InputError
from encyclo.nn.decoder_view import DecoderView, Trace
from encyclo.nn.sparse_dictionary import SparseDictionary


@dataclass(frozen=True)
class Reader:
    """A direction, where it is read: at `token`, above the attention and MLP outputs of that many layers."""

    direction: Float[Tensor, " d"]
    token: int
    attentions: int
    mlps: int
    constant: float = 0.0
    """What is added to direction . x: biases on the way."""


@dataclass(frozen=True)
class Contributions:
    """What a reader's value is made of; all parts together are `value`."""

    value: float
    embedding: float
    heads: Float[Tensor, "l h t"]
    """Per layer, head and source token."""
    features: dict[int, Float[Tensor, " f"]]
    """Per layer with a transcoder."""
    errors: dict[int, float]
    """Per layer: what the transcoder misses, or the whole MLP where there is no transcoder."""
    biases: float

    def total(self) -> float:
        """The sum of all parts."""
        features = sum(float(f.sum()) for f in self.features.values())
        return self.embedding + float(self.heads.sum()) + features + sum(self.errors.values()) + self.biases


@dataclass(frozen=True)
class Step:
    """One node of a path: a feature, a head's source, or the embedding of a token."""

    kind: str
    layer: int
    index: int
    token: int
    attribution: float

    @property
    def node(self) -> "Node":
        """What the step is, without its weight."""
        return (self.kind, self.layer, self.index, self.token)


@dataclass(frozen=True)
class Path:
    """From the root downwards."""

    steps: tuple[Step, ...]
    reader: Reader | None
    """None where the path has ended in an embedding."""
    missed: tuple[tuple[int, int, float], ...] = ()
    """What the step above got from the transcoders' errors: (layer, token, attribution)."""

    @property
    def attribution(self) -> float:
        """Of the last step."""
        return self.steps[-1].attribution


Node = tuple[str, int, int, int]
"""Kind (root, feature, head, embedding, error), layer, index, token."""


@dataclass
class Graph:
    """Nodes with their attribution to the root, edges from cause to effect, and error nodes that make it add up.

    The node ("error", layer, 0, token) is what a layer's transcoder misses of its MLP there (the whole MLP, where the
    layer has no transcoder).
    """

    nodes: dict[Node, float] = field(default_factory=dict)
    edges: dict[tuple[Node, Node], float] = field(default_factory=dict)
    errors: dict[Node, float] = field(default_factory=dict)
    """Per node with children: its attribution minus theirs (causes that were not kept, inhibition, biases)."""


class Attribution:
    """Attribution on one prompt.

    Args:
        view: the language model.
        trace: what the prompt did.
        transcoders: by layer. Layers without one are error nodes.
        residual: the transcoders read the residual stream before the norm.
    """

    def __init__(
        self,
        view: DecoderView,
        trace: Trace,
        transcoders: Mapping[int, SparseDictionary],
        *,
        residual: bool = False,
    ) -> None:
        self.view, self.trace, self.transcoders, self.residual = view, trace, dict(transcoders), residual
        depth = len(trace.before)
        self._normed = [view.layers[i].norm_in.module(trace.before[i]) for i in range(depth)]
        self.features = {
            i: t.encode(trace.middle[i] if residual else trace.mlp_in[i])
            for i, t in self.transcoders.items()
            if i < depth
        }
        """By layer, [t, f]."""

    # -- readers -------------------------------------------------------------------------------------------------

    def feature_reader(self, layer: int, feature: int, token: int, scale: float = 1.0) -> Reader:
        """The pre-activation of a feature, times `scale`, read at the stream before its layer's MLP.

        Raises:
            InputError: no transcoder at the layer, or a feature or token that does not exist.
        """
        if layer not in self.transcoders:
            raise InputError(f"there is no transcoder for layer {layer}; there are {sorted(self.transcoders)}")
        dictionary = self.transcoders[layer]
        if not 0 <= feature < dictionary.features:
            raise InputError(f"feature {feature} is outside the dictionary's {dictionary.features}")
        self._check(token)
        u = dictionary.encoder[feature] * scale
        constant = float(dictionary.encoder_bias[feature] * scale - u @ dictionary.input_bias)
        norm = self.view.layers[layer].norm_mlp
        attentions = layer if self.view.parallel else layer + 1
        if self.residual:
            return Reader(u, token, attentions, layer, constant)
        below = norm.pull(u, self.trace.middle[layer][token])
        return Reader(below, token, attentions, layer, constant + float(norm.bias_term(u)))

    def logit_reader(self, direction: Float[Tensor, " d"], token: int) -> Reader:
        """A direction after the final norm (W_U e_a - W_U e_b for a logit difference), read below it."""
        self._check(token)
        if not len(self.trace.final):
            raise InputError("the trace stopped below the final norm: trace the whole model to read logits")
        norm, depth = self.view.final_norm, len(self.view.layers)
        return Reader(
            norm.pull(direction, self.trace.final[token]), token, depth, depth, float(norm.bias_term(direction))
        )

    def head_reader(self, reader: Reader, layer: int, head: int, source: int) -> Reader:
        """What a head carries from `source` into `reader`, as a direction at the source's stream before the layer."""
        view = self.view.layers[layer]
        weight = self.trace.patterns[layer, head, reader.token, source]
        inner = (reader.direction @ view.outputs[head]) @ view.values[head] * weight
        below = view.norm_in.pull(inner, self.trace.before[layer][source])
        return Reader(below, source, layer, layer, float(view.norm_in.bias_term(inner)))

    # -- the identity --------------------------------------------------------------------------------------------

    @torch.no_grad()
    def contributions(self, reader: Reader) -> Contributions:
        """All parts of direction . x + constant at the reader's place."""
        u, t, trace = reader.direction, reader.token, self.trace
        biases = reader.constant
        rows = []
        for i in range(reader.attentions):
            view = self.view.layers[i]
            through = torch.einsum("d,hde->he", u, view.outputs)
            carried = torch.einsum("he,hed,td->ht", through, view.values, self._normed[i])
            rows.append(trace.patterns[i, :, t, :] * carried)
            if view.value_bias is not None:  # the pattern's row sums to one
                biases += float((through * view.value_bias).sum())
            if view.output_bias is not None:
                biases += float(u @ view.output_bias)
        heads = torch.stack(rows) if rows else u.new_zeros(0, trace.patterns.shape[1], len(trace.ids))
        features, errors = {}, {}
        for i in range(reader.mlps):
            whole = float(trace.mlp_out[i, t] @ u)
            dictionary = self.transcoders.get(i)
            if dictionary is None:
                errors[i] = whole
                continue
            parts = self.features[i][t] * (dictionary.decoder @ u)
            bias = float(dictionary.output_bias @ u)
            features[i] = parts
            biases += bias
            errors[i] = whole - float(parts.sum()) - bias
        stream = trace.embedding[t]
        value = float(u @ self._stream(reader)) + reader.constant
        return Contributions(value, float(u @ stream), heads, features, errors, biases)

    def _stream(self, reader: Reader) -> Float[Tensor, " d"]:
        t, trace = reader.token, self.trace
        attention = trace.attention_out[: reader.attentions, t].sum(0)
        return trace.embedding[t] + attention + trace.mlp_out[: reader.mlps, t].sum(0)

    # -- paths ---------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def paths(
        self,
        root: Reader,
        *,
        depth: int = 2,
        branches: int = 5,
        raw: bool = False,
        skip_first: bool = True,
    ) -> list[list[Path]]:
        """Greedy search downwards: per round, the best paths of that length.

        Each path is extended by its top features of every lower layer, its top (head, source) pairs and its embedding;
        the best of them are kept, and over all paths the best again.

        Args:
            root: where the search begins.
            depth: rounds.
            branches: kept per path and per round.
            raw: leave attributions uncapped. By default a step's attribution is at most that of the step above, and the
                first at most the root's value: ablating a cause cannot take a feature below zero.
            skip_first: leave out the first token as a source (beginning-of-text tokens draw attention for no reason).
        """
        live = [Path((), root)]
        rounds: list[list[Path]] = []
        for _ in range(depth):
            grown = [p for path in live for p in self._extended(path, root, branches, raw, skip_first)]
            grown.sort(key=lambda p: p.attribution, reverse=True)
            kept = grown[:branches]
            if not kept:
                break
            rounds.append(kept)
            live = [p for p in kept if p.reader is not None]
        return rounds

    def _extended(self, path: Path, root: Reader, branches: int, raw: bool, skip_first: bool) -> list[Path]:
        reader = path.reader
        assert reader is not None
        parts = self.contributions(reader)
        cap = path.attribution if path.steps else parts.value
        found: list[tuple[float, str, int, int, int]] = [(parts.embedding, "embedding", 0, 0, reader.token)]
        for layer, values in parts.features.items():
            best = torch.topk(values, min(branches, len(values)))
            found += [(float(v), "feature", layer, int(i), reader.token) for v, i in zip(best.values, best.indices)]
        if parts.heads.numel():
            heads = parts.heads.clone()
            if skip_first and heads.shape[2] > 1:
                heads[:, :, 0] = -torch.inf
            best = torch.topk(heads.flatten(), min(branches, heads.numel()))
            for v, i in zip(best.values, best.indices):
                layer, head, source = (int(x) for x in torch.unravel_index(i, heads.shape))
                found.append((float(v), "head", layer, head, source))
        found = [f for f in found if f[0] > 0]
        found.sort(reverse=True)
        missed = tuple((layer, reader.token, value) for layer, value in parts.errors.items())
        extended = []
        for value, kind, layer, index, token in found[:branches]:
            step = Step(kind, layer, index, token, value if raw else min(value, cap))
            extended.append(Path((*path.steps, step), self._below(reader, step), missed))
        return extended

    def _below(self, reader: Reader, step: Step) -> Reader | None:
        if step.kind == "embedding":
            return None
        if step.kind == "head":
            return self.head_reader(reader, step.layer, step.index, step.token)
        scale = float(self.transcoders[step.layer].decoder[step.index] @ reader.direction)
        return self.feature_reader(step.layer, step.index, step.token, scale)

    def _check(self, token: int) -> None:
        if not 0 <= token < len(self.trace.ids):
            raise InputError(f"token {token} is outside the prompt's {len(self.trace.ids)} tokens")


def graph(rounds: Sequence[Sequence[Path]], root_value: float) -> Graph:
    """Paths as a graph: shared prefixes count once; error nodes hold what transcoders miss, `errors` what is left."""
    made, seen, expanded = Graph(), set[tuple[Step, ...]](), set[tuple[Step, ...]]()
    root: Node = ("root", -1, -1, -1)
    made.nodes[root] = root_value

    def add(child: Node, parent: Node, value: float) -> None:
        made.nodes[child] = made.nodes.get(child, 0.0) + value
        made.edges[child, parent] = made.edges.get((child, parent), 0.0) + value

    for path in (p for paths in rounds for p in paths):
        above = path.steps[:-1]
        if above not in expanded:
            expanded.add(above)
            for layer, token, value in path.missed:
                add(("error", layer, 0, token), above[-1].node if above else root, value)
        for length in range(1, len(path.steps) + 1):
            prefix = path.steps[:length]
            if prefix not in seen:
                seen.add(prefix)
                add(prefix[-1].node, prefix[-2].node if length > 1 else root, prefix[-1].attribution)
    children: dict[Node, float] = {}
    for (_, parent), value in made.edges.items():
        children[parent] = children.get(parent, 0.0) + value
    made.errors = {node: made.nodes[node] - value for node, value in children.items()}
    return made


# -- reads that depend on no input ----------------------------------------------------------------------------------


def pulled_back(
    view: DecoderView,
    transcoders: Mapping[int, SparseDictionary],
    layer: int,
    feature: int,
    through: Sequence[tuple[str, int, int]] = (),
    *,
    residual: bool = False,
) -> Float[Tensor, " d"]:
    """The direction in the stream that a feature reads, itself or through a path, with activations left out.

    One step down through feature i is `f_enc,i (f_dec,i . u)`, through head h `W_V,h^T W_O,h^T u`; norms count by their
    gain. Activations, attention patterns and the norms' scales, which depend on the input, are taken as 1.

    Args:
        view: the language model.
        transcoders: by layer.
        layer: of the feature.
        feature: its number.
        through: ("feature", layer, number) or ("head", layer, number), from the feature downwards.
        residual: the transcoders read the residual stream before the norm.

    Raises:
        InputError: a step that does not lie below the one before it, or names what does not exist.
    """
    u = _read(view, transcoders, layer, feature, residual)
    attentions, mlps = layer if view.parallel else layer + 1, layer
    for kind, at, number in through:
        limit = mlps if kind == "feature" else attentions
        if not 0 <= at < limit:
            raise InputError(
                f"{kind} {at}.{number} does not lie below the step above it, which reads layers 0 to {limit - 1}"
            )
        if kind == "feature":
            inner = _read(view, transcoders, at, number, residual)
            u = inner * (transcoders[at].decoder[number] @ u)
            attentions, mlps = at if view.parallel else at + 1, at
        else:
            block = view.layers[at]
            if not 0 <= number < len(block.outputs):
                raise InputError(f"head {at}.{number}: the layer has {len(block.outputs)} heads")
            u = block.norm_in.fold((u @ block.outputs[number]) @ block.values[number])
            attentions = mlps = at
    return u


def _read(
    view: DecoderView, transcoders: Mapping[int, SparseDictionary], layer: int, feature: int, residual: bool
) -> Float[Tensor, " d"]:
    if layer not in transcoders:
        raise InputError(f"there is no transcoder for layer {layer}; there are {sorted(transcoders)}")
    if not 0 <= feature < transcoders[layer].features:
        raise InputError(f"feature {feature} is outside the dictionary's {transcoders[layer].features}")
    direction = transcoders[layer].encoder[feature]
    return direction if residual else view.layers[layer].norm_mlp.fold(direction)


def deembed(view: DecoderView, direction: Float[Tensor, "... d"]) -> Float[Tensor, "... v"]:
    """W_E u: how much each vocabulary token's embedding alone would drive a direction of `pulled_back`."""
    return direction @ view.embedding.T


def logit_effect(view: DecoderView, dictionary: SparseDictionary, feature: int) -> Float[Tensor, " v"]:
    """f_dec W_U: what a feature adds to each token's logit directly, up to the final norm's scale."""
    return view.unembedding @ view.final_norm.fold(dictionary.decoder[feature])


def input_invariant(
    view: DecoderView,
    transcoders: Mapping[int, SparseDictionary],
    layer: int,
    feature: int,
    *,
    residual: bool = False,
) -> dict[int, Float[Tensor, " f"]]:
    """f_dec,i . f_enc,j for all features i of all lower layers: the factor of attribution that no input changes."""
    direction = _read(view, transcoders, layer, feature, residual)
    return {i: t.decoder @ direction for i, t in transcoders.items() if i < layer}
