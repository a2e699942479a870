"""One circuit as something to read: rows of paths, a graph as JSON, a drawing, a page."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any

from encyclo import page, picture
from encyclo.nn.attribution import Attribution, Contributions, Graph, Node, Path, Reader, graph
from encyclo.picture import Picture


@dataclass(frozen=True)
class Circuit:
    """What a search found on one prompt."""

    root: str
    words: Sequence[str]
    """The prompt's tokens as text."""
    token: int
    """Where the root is read."""
    parts: Contributions
    """Of the root: they add up to its value."""
    rounds: Sequence[Sequence[Path]]
    graph: Graph

    def report(self) -> dict[str, float]:
        """The root's value and what each kind of cause gives to it."""
        return {
            "value": self.parts.value,
            "embedding": self.parts.embedding,
            "heads": float(self.parts.heads.sum()),
            "features": sum(float(f.sum()) for f in self.parts.features.values()),
            "errors": sum(self.parts.errors.values()),
            "biases": self.parts.biases,
        }

    def rows(self) -> list[dict[str, Any]]:
        """The paths, round after round, the strongest first."""
        return [
            {
                "attribution": path.attribution,
                "path": " <- ".join([self.root, *(node_name(step.node, self.words) for step in path.steps)]),
            }
            for paths in self.rounds
            for path in paths
        ]

    def as_json(self) -> str:
        """Nodes, edges and parts, as networkx's `node_link_graph(..., edges="edges")` reads them."""
        told = {
            "directed": True,
            "multigraph": False,
            "graph": {"root": self.root, "prompt": list(self.words), "contributions": self.report()},
            "nodes": [
                {
                    "id": node_name(node, self.words),
                    "kind": node[0],
                    "layer": node[1],
                    "index": node[2],
                    "token": node[3],
                    "attribution": value,
                    "unexplained": self.graph.errors.get(node),
                }
                for node, value in self.graph.nodes.items()
            ],
            "edges": [
                {"source": node_name(a, self.words), "target": node_name(b, self.words), "attribution": value}
                for (a, b), value in self.graph.edges.items()
            ],
        }
        return json.dumps(told, indent=1, ensure_ascii=False)

    def hidden(self) -> "Circuit":
        """The same without the prompt's words."""
        return replace(self, words=["·" for _ in self.words])

    def drawing(self, name: str = "circuit", *, docs: bool = False) -> Picture:
        """See `draw`."""
        return draw(self.graph, self.words, self.root, token=self.token, name=name, docs=docs)

    def page(self) -> str:
        """Drawing, parts and paths as one HTML document."""
        parts = [{"part of the root": name, "attribution": value} for name, value in self.report().items()]
        left = [
            {"node": node_name(node, self.words), "attribution": self.graph.nodes[node], "unexplained": value}
            for node, value in self.graph.errors.items()
        ]
        body = (
            page.figure(self.drawing())
            + f"<h2>What adds up to the root</h2>{page.table(parts)}"
            + f"<h2>Paths</h2>{page.table(self.rows())}"
            + f"<h2>What the drawn causes leave unexplained</h2>{page.table(left)}"
        )
        return page.page(f"{self.root} on “{''.join(self.words)[:80]}”", body)


def find_circuit(
    attribution: Attribution,
    reader: Reader,
    root: str,
    word: Callable[[int], str],
    *,
    depth: int = 3,
    branches: int = 8,
    raw: bool = False,
) -> Circuit:
    """Search downwards from a reader.

    Args:
        attribution: on the prompt.
        reader: the root.
        root: its name, for people.
        word: a token id as text.
        depth: rounds of the search.
        branches: paths kept per round.
        raw: do not cap attributions, see `Attribution.paths`.
    """
    parts = attribution.contributions(reader)
    rounds = attribution.paths(reader, depth=depth, branches=branches, raw=raw)
    words = [word(i) for i in attribution.trace.ids.tolist()]
    return Circuit(root, words, reader.token, parts, rounds, graph(rounds, parts.value))


def node_name(node: Node, words: Sequence[str]) -> str:
    """A node of a circuit in words: `L3/17 @5 'cat'` is feature 17 of layer 3 at token 5."""
    kind, layer, index, token = node
    if kind == "root":
        return "root"
    place = f"@{token} {words[token]!r}"
    named = {
        "embedding": "embedding",
        "feature": f"L{layer}/{index}",
        "head": f"head L{layer}.{index}",
        "error": f"error L{layer}",
    }
    return f"{named[kind]} {place}"


_COLOURS = {"feature": "#2457a6", "head": "#e0912f", "embedding": "#2e8b57", "root": "#d1495b", "error": "#8a93a0"}
_NAMES = {
    "feature": "feature (layer/number)",
    "head": "attention head, at its source token",
    "embedding": "token embedding",
    "error": "what a transcoder misses",
}


def draw(
    made: Graph, words: Sequence[str], root: str, *, token: int = -1, name: str = "circuit", docs: bool = False
) -> Picture:
    """A circuit: the tokens it uses from left to right, layers from below upwards, edges as wide as their attribution.

    Inhibiting edges are dashed. Error nodes below a tenth of the strongest edge are left out (the JSON has them all).
    """
    largest = max((abs(v) for (child, _), v in made.edges.items() if child[0] != "error"), default=1.0)
    edges = {ends: v for ends, v in made.edges.items() if ends[0][0] != "error" or abs(v) >= 0.1 * largest}
    last = token if token >= 0 else len(words) - 1
    nodes = [n for n in made.nodes if n[0] == "root" or any(n in ends for ends in edges)]
    tokens = sorted({last, *(n[3] for n in nodes if n[0] != "root")})
    top = 1 + max((n[1] for n in nodes if n[0] != "root"), default=0)
    levels: dict[str, Callable[[int], float]] = {
        "root": lambda layer: top + 0.3,
        "embedding": lambda layer: -0.8,
        "feature": lambda layer: layer + 0.45,
        "head": lambda layer: float(layer),
        "error": lambda layer: layer + 0.75,
    }
    crowd: dict[tuple[int, float], list[Node]] = {}
    for node in nodes:
        crowd.setdefault((last if node[0] == "root" else node[3], levels[node[0]](node[1])), []).append(node)
    # a column is as wide as its fullest row needs
    widths = {t: max(1.0, *(0.5 * len(row) for (column, _), row in crowd.items() if column == t)) for t in tokens}
    ends_at = dict(zip(tokens, accumulate(widths[t] for t in tokens), strict=True))
    middles = {t: ends_at[t] - widths[t] / 2 for t in tokens}
    places = {
        node: (middles[column] + widths[column] * 0.9 * ((i + 0.5) / len(row) - 0.5), height)
        for (column, height), row in crowd.items()
        for i, node in enumerate(row)
    }
    span = ends_at[tokens[-1]]
    made_figure, axis = picture.figure(max(7.0, min(15.0, 0.8 * span + 2.5)), max(4.5, 0.8 * top + 2.2))
    for (child, parent), weight in edges.items():
        (x0, y0), (x1, y1) = places[child], places[parent]
        style = "-" if weight > 0 else "--"
        width = min(4.0, 0.4 + 3 * abs(weight) / largest)
        axis.plot([x0, x1], [y0, y1], style, color="#b5bcc6", linewidth=width, alpha=0.8, zorder=1)
    for kind, label in _NAMES.items():
        shown = [places[n] for n in nodes if n[0] == kind]
        if shown:
            marker = "s" if kind == "error" else "o"
            axis.scatter(*zip(*shown, strict=True), s=36, color=_COLOURS[kind], marker=marker, label=label, zorder=2)
    for node, place in places.items():
        kind, layer, index, _ = node
        if kind == "root":
            axis.scatter(*place, s=60, color=_COLOURS["root"], label=f"root: {root}".replace("$", r"\$"), zorder=2)
        label = {"feature": f"{layer}/{index}", "head": f"{layer}.{index}"}.get(kind, "")
        crowded = len(crowd[last if kind == "root" else node[3], place[1]]) > 2
        turn, side = (45, "left") if crowded else (0, "center")
        axis.annotate(
            label, place, textcoords="offset points", xytext=(0, 5), ha=side, fontsize=7, rotation=turn,
            rotation_mode="anchor",
        )  # fmt: skip
    names = [f"{t}\n{words[t][:12]}" for t in tokens]
    axis.set_xticks([middles[t] for t in tokens], names, fontsize=8, parse_math=False)
    axis.set_xlabel("token")
    axis.set_ylabel("layer")
    axis.set_yticks(range(top + 1))
    axis.set_xlim(0, span)
    axis.grid(False)
    axis.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return picture.from_figure(
        made_figure,
        name,
        f"A circuit: what causes {root}, from the tokens' embeddings upwards; wider lines carry more.",
        docs=docs,
    )
