"""Transcoders: sparse stand-ins for a language model's MLPs, and the circuits they reveal (arXiv 2406.11944)."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float, Int64
from pydantic import Field
from torch import Tensor, nn

from encyclo import page, picture, pretrained
from encyclo.card import Card
from encyclo.data import Batches, Splits
from encyclo.data.contexts import token_contexts
from encyclo.errors import InputError
from encyclo.experiment import Claim, Experiment, Preset, Trial
from encyclo.losses import sparse_dictionary as objective
from encyclo.metrics.circuits import ablation_test, draw, features_and_neurons, identity_error, node_name
from encyclo.metrics.feature_page import feature_page
from encyclo.nn.attribution import Attribution, graph, input_invariant, logit_effect
from encyclo.nn.decoder_view import DecoderView
from encyclo.nn.published_transcoders import from_published
from encyclo.nn.sparse_dictionary import SparseDictionary
from encyclo.picture import Picture
from encyclo.system import System, SystemConfig
from encyclo.training import AdamW, Loss, Schedule, Trainer, TrainingConfig
from encyclo.verbs import Result

CARD = Card(
    slug="transcoders",
    title="Transcoders Find Interpretable LLM Feature Circuits",
    authors="Dunefsky, Chlenski, Nanda",
    year=2024,
    arxiv="2406.11944",
    venue="NeurIPS 2024",
    wing="interpret",
    summary="Replaces a language model's MLPs by wide sparse ones, so that one can read which features cause what.",
    verbs=("encode", "inspect", "circuit", "deembed", "replace"),
    code="jacobdunefsky/transcoder_circuits",
    keywords=("interpretability", "sparse features", "circuits"),
    retrofit=True,
)


@dataclass
class Harvest:
    """MLP inputs and outputs of some layers over the same tokens, in half precision, and what the arms share."""

    activations: dict[int, tuple[Tensor, Tensor]]
    view: DecoderView
    tokenizer: Any
    references: dict[str, float]


class Transcoders(System):
    """A sparse dictionary per chosen layer of a decoder language model, trained to imitate its MLP.

    `z = relu(W_enc (x - b_in) + b_enc)`, `TC(x) = W_dec z + b_dec`; the loss is the squared error to MLP(x) plus
    `l1` times the L1 norm of z, decoder rows kept at unit length. `kind="sae"` is the rival: the same module, input
    and target both the MLP's output. The base model is not changed and not saved.
    """

    card = CARD
    reads = "text"

    class Config(SystemConfig):
        """What is trained, on which activations."""

        base: str = "smollm2-135m"
        depth: int | None = Field(None, ge=1, description="keep only the base's first layers; None: all")
        layers: tuple[int, ...] = (6,)
        kind: Literal["transcoder", "sae"] = "transcoder"
        reads_from: Literal["mlp_in", "resid_mid"] = "mlp_in"
        dictionary: SparseDictionary.Config = SparseDictionary.Config(expansion=32)
        l1: float = Field(1.4e-4, ge=0)
        loss: Literal["normalised", "plain"] = "normalised"
        """The published `l1` belongs to the normalised form."""
        ghost: bool = True
        dead_window: int = Field(5000, ge=1, description="steps of silence after which a feature counts as dead")
        context: int = Field(128, ge=8)
        tokens: int = Field(150_000, ge=256, description="harvested for training")
        held_out: int = Field(4096, ge=64, description="tokens for evaluation")
        training: TrainingConfig = TrainingConfig(
            steps=14_600,
            batch_size=4096,
            optimiser=AdamW(lr=4e-4),
            schedule=Schedule(shape="constant", warmup=0.34),
        )

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        dim = int(pretrained.open_config(config.base).hidden_size)
        if len(set(config.layers)) != len(config.layers) or not config.layers:
            raise InputError(f"layers={list(config.layers)}: name each layer once, and at least one")
        self.dictionaries = nn.ModuleDict({str(layer): config.dictionary.build(dim=dim) for layer in config.layers})
        self._shared: dict[str, Any] = {}  # the base model: neither a submodule nor saved

    # -- the base model ------------------------------------------------------------------------------------------

    @property
    def view(self) -> DecoderView:
        """The base model, opened at first use."""
        if "view" not in self._shared:
            model, tokenizer = pretrained.open_causal_lm(self.config.base, depth=self.config.depth)
            view = DecoderView(model.to(self.device).eval())
            for layer in self.config.layers:
                view.layer(layer)
            self._shared |= {"view": view, "tokenizer": tokenizer}
        return self._shared["view"]  # type: ignore[no-any-return]

    @property
    def tokenizer(self) -> Any:
        """The base model's tokenizer."""
        _ = self.view
        return self._shared["tokenizer"]

    @property
    def residual(self) -> bool:
        """Whether the dictionaries read the stream before the norm."""
        return bool(self.config.reads_from == "resid_mid")

    def dictionary(self, layer: int) -> SparseDictionary:
        """The dictionary of a layer.

        Raises:
            InputError: a layer without one.
        """
        if str(layer) not in self.dictionaries:
            raise InputError(f"layer {layer} has no transcoder here; trained are {list(self.config.layers)}")
        found = self.dictionaries[str(layer)]
        assert isinstance(found, SparseDictionary)
        return found

    @property
    def trained(self) -> dict[int, SparseDictionary]:
        """All dictionaries by layer."""
        return {layer: self.dictionary(layer) for layer in self.config.layers}

    # -- learning ------------------------------------------------------------------------------------------------

    def start_from(self, prepared: Harvest) -> None:
        """Take activations harvested once for all arms."""
        self._shared |= {
            "view": prepared.view,
            "tokenizer": prepared.tokenizer,
            "harvest": prepared.activations,
            "references": prepared.references,
        }

    def harvest(self, rows: Any, layers: Sequence[int], tokens: int, seed: int) -> dict[int, tuple[Tensor, Tensor]]:
        """MLP input and output of some layers over `tokens` tokens, position 0 of every context left out, as fp16.

        Returns:
            By layer, ([n, d], [n, d]).
        """
        contexts = token_contexts(
            rows, self.tokenizer, length=self.config.context, count=math.ceil(tokens / self.config.context), seed=seed
        )
        parts: dict[int, tuple[list[Tensor], list[Tensor]]] = {layer: ([], []) for layer in layers}
        for batch in contexts.split(8):
            seen = self.view.harvest(batch.to(self.device), layers, residual=self.residual)
            for layer, (inputs, outputs) in seen.items():
                parts[layer][0].append(inputs[:, 1:].flatten(0, 1).half().cpu())
                parts[layer][1].append(outputs[:, 1:].flatten(0, 1).half().cpu())
        return {layer: (torch.cat(i), torch.cat(o)) for layer, (i, o) in parts.items()}

    def fit(self, data: Splits, trainer: Trainer) -> None:
        """Harvest activations of `data.train`, then train one dictionary per layer, each a stage of its own."""
        config = self.config
        stored = self._shared.get("harvest")
        if stored is None:
            stored = self.harvest(data.train, config.layers, config.tokens, trainer.seed)
        for layer in config.layers:
            inputs, outputs = (part[: config.tokens] for part in stored[layer])
            if config.kind == "sae":
                inputs = outputs
            self._train_layer(layer, inputs, outputs, trainer)

    def _train_layer(self, layer: int, inputs: Tensor, outputs: Tensor, trainer: Trainer) -> None:
        config, dictionary = self.config, self.dictionary(layer)
        dictionary.to(trainer.device)
        first = torch.arange(min(len(inputs), 32_768))
        dictionary.centre(inputs[first].float(), outputs[first].float())
        silent = torch.zeros(dictionary.features, device=trainer.device)

        def loss(index: Tensor) -> Loss:
            x = inputs[index.cpu()].to(trainer.device).float()
            target = outputs[index.cpu()].to(trainer.device).float()
            before = dictionary.preactivations(x)
            z = before.relu()
            y = dictionary.decode(z)
            fired = (z > 0).any(0)
            silent.add_(1).masked_fill_(fired, 0)
            main = objective.reconstruction(y, target, config.loss)
            penalty = config.l1 * objective.sparsity(z)
            logs = {"error": main.detach(), "l0": (z > 0).float().sum(1).mean()}
            if config.ghost:
                dead = silent > config.dead_window
                main = main + objective.ghost(before, dictionary.decoder, target - y, dead, main)
            return Loss(main + penalty, float(len(x)), logs)

        trainer.fit(
            dictionary,
            loss,
            Batches(len(inputs), config.training.batch_size, seed=trainer.seed),
            config.training,
            stage=f"layer{layer}",
            before_step=lambda step: dictionary.normalise_decoder(),
            before_update=lambda step: dictionary.drop_parallel_gradient(),
        )
        dictionary.normalise_decoder()

    # -- measuring -----------------------------------------------------------------------------------------------

    def substitutes(self, layers: Sequence[int] | None = None) -> dict[int, Callable[[Tensor, Tensor], Tensor]]:
        """What stands in for the MLPs of some layers: for `DecoderView.replaced`."""
        sae = self.config.kind == "sae"

        def stand_in(dictionary: SparseDictionary) -> Callable[[Tensor, Tensor], Tensor]:
            def give(inputs: Tensor, output: Tensor) -> Tensor:
                made = dictionary(output if sae else inputs)
                # position 0 was left out of training: its norm is far from all others
                return torch.cat([output[:, :1], made[:, 1:]], 1)

            return give

        return {layer: stand_in(self.dictionary(layer)) for layer in layers or self.config.layers}

    @torch.no_grad()
    def evaluate(self, data: Splits) -> dict[str, float]:
        """Sparsity, and the next-token cross-entropy (nats) of the model with its MLPs replaced, on held-out text."""
        config = self.config
        contexts = self._held_out(data)
        store = self.harvest(data.test, config.layers, config.held_out, seed=1)
        metrics: dict[str, float] = {}
        counts, dead, explained = [], [], []
        for layer in config.layers:
            dictionary = self.dictionary(layer)
            x, target = (part.float().to(self.device) for part in store[layer])
            z = dictionary.encode(target if config.kind == "sae" else x)
            counts.append(float((z > 0).float().sum(1).mean()))
            dead.append(float((~(z > 0).any(0)).float().mean() * 100))
            error = (dictionary.decode(z) - target).square().sum()
            explained.append(1 - float(error / (target - target.mean(0)).square().sum()))
        metrics["l0"] = sum(counts) / len(counts)
        metrics["dead"] = sum(dead) / len(dead)
        metrics["explained_variance"] = sum(explained) / len(explained)
        references = self._shared.get("references") or self.references(contexts, config.layers)
        metrics |= references
        metrics["ce"] = self._cross_entropy(contexts, self.substitutes())
        span = references["ce_zero"] - references["ce_model"]
        metrics["recovered"] = 100 * (references["ce_zero"] - metrics["ce"]) / span if span > 0 else float("nan")
        return metrics

    def _held_out(self, data: Splits) -> Int64[Tensor, "n t"]:
        count = max(1, self.config.held_out // self.config.context)
        return token_contexts(data.test, self.tokenizer, length=self.config.context, count=count, seed=1)

    def _cross_entropy(self, contexts: Tensor, substitutes: Mapping[int, Callable[[Tensor, Tensor], Tensor]]) -> float:
        with self.view.replaced(substitutes, residual=self.residual):
            parts = [self.view.cross_entropy(batch.to(self.device)) for batch in contexts.split(8)]
        weights = torch.tensor([len(batch) for batch in contexts.split(8)], dtype=torch.float)
        return float((torch.stack(parts).cpu() * weights).sum() / weights.sum())

    def references(self, contexts: Int64[Tensor, "n t"], layers: Sequence[int]) -> dict[str, float]:
        """Cross-entropy of the model itself, with the MLP outputs zeroed, and set to their mean."""
        zero = {layer: (lambda x, y: torch.cat([y[:, :1], torch.zeros_like(y[:, 1:])], 1)) for layer in layers}
        mean = {
            layer: (lambda x, y: torch.cat([y[:, :1], y[:, 1:].mean((0, 1), keepdim=True).expand_as(y[:, 1:])], 1))
            for layer in layers
        }
        return {
            "ce_model": self._cross_entropy(contexts, {}),
            "ce_zero": self._cross_entropy(contexts, zero),
            "ce_mean": self._cross_entropy(contexts, mean),
        }

    # -- verbs ---------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def encode(self, texts: Sequence[str], *, layer: int | None = None, pool: Literal["max", "mean"] = "max") -> Result:
        """Feature activations of each text, [n, features]: the largest (or mean) over its tokens.

        Args:
            texts: to read.
            layer: which dictionary; default the first.
            pool: over tokens, the first left out.
        """
        layer = self.config.layers[0] if layer is None else layer
        dictionary = self.dictionary(layer)
        rows, notes = [], []
        for text in texts:
            ids, cut = self._ids(text, longest=1024)
            notes += [cut] if cut else []
            x, y = self.view.harvest(ids[None], [layer], residual=self.residual)[layer]
            z = dictionary.encode(y if self.config.kind == "sae" else x)[0, 1:]
            rows.append(z.amax(0) if pool == "max" else z.mean(0))
        return Result(torch.stack(rows).cpu(), {"layer": layer, "features": dictionary.features}, notes)

    @torch.no_grad()
    def replace(self, prompt: str, *, tokens: int = 30, layers: str = "all") -> Result:
        """Continue a prompt greedily with the MLPs replaced, beside what the model itself says.

        Args:
            prompt: to continue.
            tokens: how many to add.
            layers: which MLPs to replace: `all` trained ones, or numbers with commas.
        """
        chosen = (
            list(self.config.layers) if layers == "all" else [_number(part, "layers") for part in layers.split(",")]
        )
        ids, cut = self._ids(prompt, longest=1024)
        told = {"max_new_tokens": tokens, "do_sample": False, "pad_token_id": self.tokenizer.eos_token_id}
        # without a cache every pass sees the whole text, so that position 0 is the text's first token
        told["use_cache"] = False
        plain = self.view.model.generate(ids[None], **told)[0]
        with self.view.replaced(self.substitutes(chosen), residual=self.residual):
            changed = self.view.model.generate(ids[None], **told)[0]
        texts = {
            "model": self.tokenizer.decode(plain[len(ids) :]),
            "replaced": self.tokenizer.decode(changed[len(ids) :]),
        }
        agree = (
            float(
                (plain[len(ids) :][: len(changed) - len(ids)] == changed[len(ids) :][: len(plain) - len(ids)])
                .float()
                .mean()
            )
            if len(plain) == len(changed)
            else 0.0
        )
        return Result(texts["replaced"], {"model_alone": texts["model"], "equal_tokens": agree}, [cut] if cut else [])

    @torch.no_grad()
    def deembed(self, *, feature: int, layer: int | None = None, top: int = 10) -> Result:
        """Which tokens' embeddings drive a feature directly, and which tokens' logits it raises, without any input."""
        layer = self.config.layers[0] if layer is None else layer
        dictionary = self._feature(layer, feature)
        drive = self._deembedding(layer, feature)
        effect = logit_effect(self.view, dictionary, feature)
        rows = [
            {
                "rank": i + 1,
                "drives it": self._token(a),
                "by": float(drive[a]),
                "it raises": self._token(b),
                "by ": float(effect[b]),
            }
            for i, (a, b) in enumerate(
                zip(drive.topk(top).indices.tolist(), effect.topk(top).indices.tolist(), strict=True)
            )
        ]
        return Result(rows, {"layer": layer, "feature": feature})

    @torch.no_grad()
    def inspect(
        self,
        *,
        feature: int,
        layer: int | None = None,
        data: str = "pydocs",
        contexts: int = 200,
        blind: bool = False,
        out: Path | None = None,
    ) -> Result:
        """A page about one feature: where it fires, what drives it, what it does, which earlier features feed it.

        Args:
            feature: its number.
            layer: its layer; default the last trained.
            data: text to look through.
            contexts: how many contexts of it.
            blind: hide the texts until asked, to guess the meaning from the circuit alone.
            out: the page; default feature-LAYER-NUMBER.html.
        """
        from encyclo import data as room

        layer = self.config.layers[-1] if layer is None else layer
        self._feature(layer, feature)
        rows = room.load(data, "text").test
        ids = token_contexts(rows, self.tokenizer, length=self.config.context, count=contexts, seed=2)
        values = []
        lower = [index for index in self.config.layers if index < layer]
        feeds = {index: torch.zeros(self.dictionary(index).features) for index in lower}
        invariant = input_invariant(self.view, self.trained, layer, feature, residual=self.residual)
        for batch in ids.split(8):
            seen = self.view.harvest(batch.to(self.device), [*lower, layer], residual=self.residual)
            x, y = seen[layer]
            z = self.dictionary(layer).encode(y if self.config.kind == "sae" else x)[..., feature].cpu()
            z[:, 0] = 0
            values.append(z)
            for index in lower:
                active = self.dictionary(index).encode(seen[index][0])[:, 1:].cpu()
                weight = z[:, 1:, None]
                feeds[index] += (active * weight).sum((0, 1)) * invariant[index].cpu()
        text, report = feature_page(
            f"Layer {layer}, feature {feature}",
            ids,
            torch.cat(values),
            self._token,
            direct=self.deembed(feature=feature, layer=layer).value,
            upstream={"by weights alone": invariant, "mean over the text": feeds},
            blind=blind,
        )
        return Result(page.write(out or Path(f"feature-{layer}-{feature}.html"), text), report)

    @torch.no_grad()
    def circuit(
        self,
        prompt: str,
        *,
        root: str,
        token: int = -1,
        depth: int = 3,
        branches: int = 8,
        raw: bool = False,
        errors_only_for: str = "",
        out: Path | None = None,
    ) -> Result:
        """Trace what causes a feature or a logit difference on a prompt: ranked paths, a graph, a drawing.

        Args:
            prompt: at least two tokens.
            root: `feature:LAYER:NUMBER`, or `logit:A-B` (the difference of two single-token words).
            token: where the root is read; negative counts from the end.
            depth: rounds of the search.
            branches: paths kept per round.
            raw: do not cap attributions at the activation above.
            errors_only_for: `missing` treats lower layers without a transcoder as error nodes; else they are refused.
            out: an HTML page with the drawing; the graph goes beside it as JSON.
        """
        ids, cut = self._ids(prompt, longest=256)
        if len(ids) < 2:
            raise InputError("the prompt is a single token: a circuit needs a word before the one it explains")
        position = token if token >= 0 else len(ids) + token
        if not 0 <= position < len(ids):
            raise InputError(f"token={token} is outside the prompt's {len(ids)} tokens")
        if self.config.kind != "transcoder":
            raise InputError("circuits need transcoders; this run holds sparse autoencoders")
        kind, _, rest = root.partition(":")
        trained = self.trained
        if kind == "feature":
            layer_text, _, number = rest.partition(":")
            layer = _number(layer_text, "root")
            self._feature(layer, _number(number, "root"))
            depth_needed = layer + 1
        elif kind == "logit" and "-" in rest:
            depth_needed = len(self.view.layers)
        else:
            raise InputError(f"root={root}: give feature:LAYER:NUMBER or logit:A-B")
        missing = [i for i in range(depth_needed - (kind == "feature")) if i not in trained]
        if missing and errors_only_for != "missing":
            raise InputError(
                f"layers {', '.join(map(str, missing))} have no transcoder: train them, or take them as error nodes "
                "with errors_only_for=missing"
            )
        trace = self.view.trace(ids, depth_needed)
        attribution = Attribution(self.view, trace, trained, residual=self.residual)
        if kind == "feature":
            reader = attribution.feature_reader(layer, int(number), position)
        else:
            first, _, second = rest.partition("-")
            a, b = self._single(first), self._single(second)
            reader = attribution.logit_reader(self.view.unembedding[a] - self.view.unembedding[b], position)
        parts = attribution.contributions(reader)
        rounds = attribution.paths(reader, depth=depth, branches=branches, raw=raw)
        made = graph(rounds, parts.value)
        words = [self._token(i) for i in ids.tolist()]
        rows = [
            {"attribution": p.attribution, "path": " <- ".join([root, *(node_name(s.node, words) for s in p.steps)])}
            for paths in rounds
            for p in paths
        ]
        report = {
            "value": parts.value,
            "embedding": parts.embedding,
            "heads": float(parts.heads.sum()),
            "features": sum(float(f.sum()) for f in parts.features.values()),
            "errors": sum(parts.errors.values()),
            "biases": parts.biases,
        }
        if out is None:
            return Result(rows, report, [cut] if cut else [])
        drawing = draw(made, words, root)
        told = {
            "root": root,
            "prompt": words,
            "contributions": report,
            "nodes": [
                {"id": node_name(n, words), "attribution": v, "error": made.errors.get(n)}
                for n, v in made.nodes.items()
            ],
            "edges": [
                {"from": node_name(a, words), "to": node_name(b, words), "attribution": v}
                for (a, b), v in made.edges.items()
            ],
        }
        page.write(out.with_suffix(".json"), json.dumps(told, indent=1, ensure_ascii=False))
        text = page.page(f"{root} on “{prompt[:80]}”", page.figure(drawing) + page.table(rows))
        page.write(out, text)
        return Result(out, report, [cut] if cut else [])

    @classmethod
    def import_published(cls, path: Path, *, layer: int = 0, base: str = "openai-community/gpt2") -> "Transcoders":
        """A released GPT-2 transcoder as a system; see `encyclo.nn.published_transcoders`.

        Args:
            path: the released checkpoint.
            layer: which layer it stands for.
            base: the plain transformers model it is to be used on.
        """
        model, tokenizer = pretrained.open_causal_lm(base)
        view = DecoderView(model)
        dictionary, _ = from_published(path, view.layer(layer).norm_mlp)
        config = cls.Config(base=base, layers=(layer,), dictionary=dictionary.config)
        system = cls(config)
        system.dictionary(layer).load_state_dict(dictionary.state_dict())
        system._shared |= {"view": view, "tokenizer": tokenizer}
        return system

    # -- small things ----------------------------------------------------------------------------------------------

    def _ids(self, text: str, *, longest: int) -> tuple[Int64[Tensor, " t"], str]:
        ids = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        if not ids:
            raise InputError("the text is empty")
        first = self.tokenizer.bos_token_id
        ids = ([first] if first is not None else []) + ids
        note = f"text cut from {len(ids)} to {longest} tokens" if len(ids) > longest else ""
        return torch.tensor(ids[:longest], device=self.device), note

    def _single(self, word: str) -> int:
        ids = self.tokenizer(word, add_special_tokens=False)["input_ids"]
        if len(ids) != 1:
            raise InputError(f"'{word}' is {len(ids)} tokens, a logit root needs words of one token")
        return int(ids[0])

    def _closers(self, line: str) -> tuple[int, int]:
        """The right and the wrong closing bracket."""
        round_, square = self._single(")"), self._single("]")
        return (round_, square) if "(" in line else (square, round_)

    def _token(self, index: int) -> str:
        return str(self.tokenizer.decode([index])).replace("\n", "⏎")

    def _feature(self, layer: int, feature: int) -> SparseDictionary:
        dictionary = self.dictionary(layer)
        if not 0 <= feature < dictionary.features:
            raise InputError(f"feature={feature} is outside the dictionary's {dictionary.features}")
        return dictionary

    def _deembedding(self, layer: int, feature: int) -> Float[Tensor, " v"]:
        whole = self.dictionary(layer)
        direction = whole.encoder[feature]
        folded = direction if self.residual else self.view.layers[layer].norm_mlp.fold(direction)
        return self.view.embedding @ folded


def _number(text: str, name: str) -> int:
    if not text.isdigit():
        raise InputError(f"{name}: '{text}' is no number")
    return int(text)


# -- the experiment -------------------------------------------------------------------------------------------------


def _on_curve(points: Sequence[tuple[float, float]], at: Sequence[float]) -> list[float]:
    """Cross-entropy at given log L0, linear between measured points."""
    xs, ys = zip(*sorted((math.log(l0), ce) for l0, ce in points), strict=True)
    values = []
    for x in at:
        right = next(i for i in range(1, len(xs)) if x <= xs[i] + 1e-12)
        share = (x - xs[right - 1]) / (xs[right] - xs[right - 1])
        values.append(ys[right - 1] + share * (ys[right] - ys[right - 1]))
    return values


def _compare(trial: Trial) -> dict[str, dict[str, float]]:
    """The Pareto gap at equal L0, causal tests of circuits, features against neurons, exactness of attribution."""
    told: dict[str, dict[str, float]] = {}
    curves = {
        kind: [(m["l0"], m["ce"]) for name, m in trial.metrics.items() if name.startswith(kind) and m["l0"] > 0]
        for kind in ("tc", "sae")
    }
    names = [n for n in trial.metrics if n.startswith("tc")]
    first = names[0]
    low = max(min(math.log(p[0]) for p in points) for points in curves.values())
    high = min(max(math.log(p[0]) for p in points) for points in curves.values())
    if high > low and all(len(points) > 1 for points in curves.values()):
        at = [low + (high - low) * i / 8 for i in range(9)]
        gaps = [a - b for a, b in zip(_on_curve(curves["tc"], at), _on_curve(curves["sae"], at), strict=True)]
        told[first] = {
            "ce_over_sae": sum(gaps) / len(gaps),
            "shared_l0_low": math.exp(low),
            "shared_l0_high": math.exp(high),
        }
    told.setdefault(first, {})["worst_recovered"] = min(trial.metrics[n]["recovered"] for n in names)
    circuits = trial.systems["circuits"]
    assert isinstance(circuits, Transcoders)
    contexts = circuits._held_out(trial.data).to(circuits.device)
    told["circuits"] = {
        "identity_error": identity_error(circuits.view, circuits.trained, contexts[0, :24]),
        **ablation_test(circuits.view, circuits.trained, [c[:48] for c in contexts], seed=trial.seed),
    }
    name = names[len(names) // 2]
    middle = trial.systems[name]
    assert isinstance(middle, Transcoders)
    layer = middle.config.layers[0]
    brackets = [(middle._ids(line, longest=64)[0], middle._closers(line)) for line in _bracket_lines()]
    prompts, answers = [b[0] for b in brackets], [b[1] for b in brackets]
    kept = features_and_neurons(middle.view, middle.dictionary(layer), layer, prompts, answers)
    told[name] = {**told.get(name, {}), **kept}
    return told


def _bracket_lines() -> list[str]:
    """Lines of code in which one bracket is open, and the next token should close it."""
    words = ("value", "items", "data", "name", "index", "total", "count", "key", "row", "text", "result", "number")
    return [f"x = {stem}{word}" for word in words for stem in ("print(", "len(", "table[", "cells[")]


def _pictures(trial: Trial) -> list[Picture]:
    series = {
        title: sorted((m["l0"], m["ce"]) for name, m in trial.metrics.items() if name.startswith(kind) and m["l0"] > 0)
        for kind, title in (("tc", "transcoder"), ("sae", "sparse autoencoder on the MLP's output"))
    }
    base = next(iter(trial.metrics.values()))
    span = [min(p[0] for s in series.values() for p in s), max(p[0] for s in series.values() for p in s)]
    series["the model itself"] = [(x, base["ce_model"]) for x in span]
    pareto = picture.curves(
        series,
        "pareto",
        "Cross-entropy with one MLP replaced, against how many features are active per token: lower left is better.",
        x="active features per token (L0)",
        y="next-token cross-entropy, nats",
        log_x=True,
        markers=True,
        docs=True,
    )
    system = trial.systems["circuits"]
    assert isinstance(system, Transcoders)
    layer = system.config.layers[-1]
    with torch.no_grad():
        ids, _ = system._ids("In the beginning God created the heaven and the earth", longest=64)
        trained = system.trained
        attribution = Attribution(system.view, system.view.trace(ids, layer + 1), trained)
        token = len(ids) - 1
        feature = int(attribution.features[layer][token].argmax())
        reader = attribution.feature_reader(layer, feature, token)
        rounds = attribution.paths(reader, depth=3, branches=10)
        made = graph(rounds, attribution.contributions(reader).value)
    words = [system._token(i) for i in ids.tolist()]
    return [pareto, draw(made, words, f"feature {layer}/{feature}", docs=True)]


def experiment(preset: Preset) -> Experiment:
    """Transcoders and sparse autoencoders at three penalties on one layer, and transcoders for the first layers."""
    if preset is Preset.PAPER:
        release = Transcoders.Config(base="openai-community/gpt2", layers=tuple(range(12)))
        return Experiment(data="pydocs+kjv", systems={"transcoders": release}, claims=[])
    base = Transcoders.Config()
    penalties: tuple[float, ...] = (3e-5, 1e-4, 3e-4)
    circuits: tuple[int, ...] = (0, 1, 2, 3)
    if preset is Preset.SMOKE:
        small = TrainingConfig(steps=8, batch_size=128, optimiser=AdamW(lr=2e-3))
        base = base.replace(
            depth=3, layers=(1,), dictionary=SparseDictionary.Config(expansion=2), tokens=1024, held_out=256,
            context=32, training=small,
        )  # fmt: skip
        penalties, circuits = (1e-5, 1e-3), (0, 1)
    elif preset is Preset.LAPTOP:
        base = base.replace(
            dictionary=SparseDictionary.Config(expansion=4),
            tokens=80_000,
            held_out=3072,
            training=TrainingConfig(
                steps=130,
                batch_size=2048,
                optimiser=AdamW(lr=1.5e-3),
                schedule=Schedule(shape="cosine", warmup=0.1, final=0.1),
            ),
        )
    elif preset is Preset.GPU:
        base = base.replace(
            dictionary=SparseDictionary.Config(expansion=32),
            layers=(15,),
            tokens=2_000_000,
            held_out=100_000,
            training=TrainingConfig(
                steps=3000,
                batch_size=4096,
                optimiser=AdamW(lr=4e-4),
                precision="bf16",
                schedule=Schedule(shape="constant", warmup=0.1),
            ),
        )
        penalties = (2e-5, 5e-5, 1e-4, 2e-4)
    layer = base.layers[0]
    # a sparse autoencoder's activations are smaller than a transcoder's at equal L0, so its penalties are its own
    systems = {f"tc-{p:g}": base.replace(l1=p) for p in penalties}
    systems |= {f"sae-{p:g}": base.replace(l1=p, kind="sae") for p in penalties}
    shorter = base.training.replace(steps=max(8, int((base.training.steps or 100) * 0.8)))
    few = SparseDictionary.Config(expansion=max(2, base.dictionary.expansion // 2))
    systems["circuits"] = base.replace(
        layers=circuits, l1=penalties[len(penalties) // 2], dictionary=few, training=shorter
    )
    first, middle = f"tc-{penalties[0]:g}", f"tc-{penalties[len(penalties) // 2]:g}"

    def prepare(data: Splits, trainer: Trainer, seed: int) -> Harvest:
        reader = Transcoders(base)
        wanted = sorted({layer, *circuits})
        stored = reader.harvest(data.train, wanted, base.tokens, seed)
        references = reader.references(reader._held_out(data), base.layers)
        return Harvest(stored, reader.view, reader.tokenizer, references)

    claims = [
        Claim(
            statement="at equal L0 a transcoder costs at most 0.02 nats more than a sparse autoencoder",
            metric="ce_over_sae",
            system=first,
            bound=0.02,
            better="lower",
        ),
        Claim(
            statement="every transcoder recovers at least 80 % of the loss from zero-ablation to the model",
            metric="worst_recovered",
            system=first,
            bound=80.0,
        ),
        Claim(
            statement="all contributions add up to a feature's pre-activation (relative error)",
            metric="identity_error",
            system="circuits",
            bound=1e-4,
            better="lower",
            kind="exact",
        ),
        Claim(
            statement="ablating the five features a circuit names drops the root 3 times as far as others",
            metric="drop_ratio",
            system="circuits",
            bound=3.0,
        ),
        Claim(
            statement="16 transcoder features keep more of a behaviour than 16 neurons",
            metric="behaviour_features_16",
            system=middle,
            rival=middle,
            rival_metric="behaviour_neurons_16",
        ),
    ]
    if preset is Preset.SMOKE:  # after a few steps the two kinds share no L0 at which to compare them
        claims = claims[1:]
    return Experiment(
        data="pydocs+kjv",
        systems=systems,
        claims=claims,
        seeds=1,
        prepare=prepare,
        compare=_compare,
        pictures=_pictures,
        columns={
            "l0": "active features (L0)",
            "ce": "cross-entropy, nats",
            "recovered": "loss recovered, %",
            "explained_variance": "explained variance",
            "dead": "never active, %",
            "named_drop": "root drop, named, %",
            "other_drop": "root drop, others, %",
        },
        fairness="Same activations, width, steps and seed for both kinds; penalties are not comparable between them, "
        "so they are compared at equal L0. Position 0 is left out of training and evaluation for all.",
    )
