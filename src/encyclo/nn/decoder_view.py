"""One view of a transformers decoder language model, whatever its family calls its parts."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional

from encyclo.errors import InputError

_SUM_TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-3}
"""Relative error allowed to `a block adds its attention and its MLP`; half precisions get 5 %."""


class _Stop(Exception):
    """Everything wanted has been seen; leaves the model's forward."""


@dataclass(frozen=True)
class NormView:
    """A LayerNorm or RMSNorm as a linear map per token, its scale frozen at the token's own."""

    module: nn.Module
    weight: Tensor
    bias: Tensor | None
    eps: float
    centred: bool
    """LayerNorm subtracts the mean, RMSNorm does not."""

    def pull(self, direction: Float[Tensor, "... d"], x: Float[Tensor, "... d"]) -> Float[Tensor, "... d"]:
        """u below the norm such that u . x + `bias_term` = direction . norm(x), with x's scale held fixed.

        RMSNorm: u = g direction / rms(x). LayerNorm: u = centre(g direction) / std(x).
        """
        u = self.weight * direction
        if not self.centred:
            return u * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps)
        deviation = x - x.mean(-1, keepdim=True)
        return (u - u.mean(-1, keepdim=True)) * torch.rsqrt(deviation.square().mean(-1, keepdim=True) + self.eps)

    def bias_term(self, direction: Float[Tensor, "... d"]) -> Float[Tensor, "..."]:
        """direction . b, zero for a norm without bias."""
        if self.bias is None:
            return direction.new_zeros(direction.shape[:-1])
        return direction @ self.bias

    def fold(self, direction: Float[Tensor, "... d"]) -> Float[Tensor, "... d"]:
        """The direction seen from below, without any token's scale: for reads that depend on no input."""
        u = self.weight * direction
        return u - u.mean(-1, keepdim=True) if self.centred else u


@dataclass(frozen=True)
class LayerView:
    """One block: resid_mid = resid_pre + attention(norm_in(resid_pre)); resid_post = resid_mid + mlp(norm_mlp(...))."""

    block: nn.Module
    attention: nn.Module
    mlp: nn.Module
    norm_in: NormView
    norm_mlp: NormView
    values: Float[Tensor, "h e d"]
    """W_V per head: value = W_V norm_in(x)."""
    outputs: Float[Tensor, "h d e"]
    """W_O per head."""
    value_bias: Float[Tensor, "h e"] | None
    output_bias: Float[Tensor, " d"] | None

    def attend(self, pattern: Float[Tensor, "h q k"], normed: Float[Tensor, "k d"]) -> Float[Tensor, "q d"]:
        """The attention's output from its pattern: sum over heads of W_O (pattern (W_V normed + b_V)), plus b_O."""
        values = torch.einsum("hed,kd->hke", self.values, normed)
        if self.value_bias is not None:
            values = values + self.value_bias[:, None]
        out = torch.einsum("hqk,hke,hde->qd", pattern, values, self.outputs)
        return out if self.output_bias is None else out + self.output_bias


@dataclass(frozen=True)
class Trace:
    """What one prompt did, layer by layer; T tokens."""

    ids: Int64[Tensor, " t"]
    embedding: Float[Tensor, "t d"]
    before: Float[Tensor, "l t d"]
    """resid_pre."""
    middle: Float[Tensor, "l t d"]
    """What the pre-MLP norm reads."""
    mlp_in: Float[Tensor, "l t d"]
    mlp_out: Float[Tensor, "l t d"]
    attention_out: Float[Tensor, "l t d"]
    patterns: Float[Tensor, "l h t t"]
    final: Float[Tensor, "s d"]
    """What the final norm reads; empty where the run stopped below it."""
    logits: Float[Tensor, "s v"]


class DecoderView:
    """A decoder language model whose MLPs can be watched and replaced.

    Families taken apart to the last weight, so that `trace` and attribution are exact (`exact` is true): Llama and
    those built like it (Mistral, Qwen2, Qwen3, SmolLM, Phi-3, StarCoder2 ...), GPT-2 and GPT-NeoX (Pythia). Of any
    other decoder whose blocks hold an MLP module the MLPs are found, watched and replaced; tracing it is refused.

    Raises:
        InputError: for a model in which no MLPs are found.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model: Any = model
        found = next((make(model) for match, make in _FAMILIES if match(model)), None)
        self.exact = found is not None
        if found is None:
            found = _other(model)
        self.layers: list[LayerView] = found["layers"]
        self.final_norm: NormView = found["final_norm"]
        self.embedding: Tensor = found["embedding"]
        self.unembedding: Tensor = model.get_output_embeddings().weight  # type: ignore[operator]
        self.parallel: bool = found.get("parallel", False)
        """The MLP reads the block's input, not resid_mid (GPT-NeoX)."""
        self.dim = int(self.embedding.shape[1])

    def layer(self, index: int) -> LayerView:
        """A layer by number.

        Raises:
            InputError: a number the model does not have.
        """
        if not 0 <= index < len(self.layers):
            raise InputError(
                f"layer {index} is outside the model's {len(self.layers)} layers (0 to {len(self.layers) - 1})"
            )
        return self.layers[index]

    @torch.no_grad()
    def harvest(
        self, ids: Int64[Tensor, "b t"], layers: Sequence[int], *, residual: bool = False
    ) -> dict[int, tuple[Float[Tensor, "b t d"], Float[Tensor, "b t d"]]]:
        """Input and output of the MLPs of some layers; the model runs no further than the last of them.

        Args:
            ids: tokens.
            layers: which.
            residual: take the input before the norm instead of after it.
        """
        wanted = {index: self.layer(index) for index in layers}
        before: dict[int, Tensor] = {}
        seen: dict[int, tuple[Tensor, Tensor]] = {}
        last = max(wanted)

        def keep_residual(index: int) -> Callable[..., None]:
            def hook(module: nn.Module, args: tuple[Tensor, ...]) -> None:
                before[index] = args[0]

            return hook

        def keep(index: int) -> Callable[..., None]:
            def hook(module: nn.Module, args: tuple[Tensor, ...], output: Any) -> None:
                # mixtures of experts give their router's scores beside the output
                seen[index] = (before[index] if residual else args[0], output[0] if type(output) is tuple else output)
                if index == last:
                    raise _Stop

            return hook

        hooks = [view.mlp.register_forward_hook(keep(i)) for i, view in wanted.items()]
        if residual:
            hooks += [v.norm_mlp.module.register_forward_pre_hook(keep_residual(i)) for i, v in wanted.items()]
        try:
            self.model.base_model(input_ids=ids, use_cache=False)
        except _Stop:
            pass
        finally:
            for handle in hooks:
                handle.remove()
        return seen

    @contextmanager
    def replaced(
        self, substitutes: Mapping[int, Callable[[Tensor, Tensor], Tensor]], *, residual: bool = False
    ) -> Iterator[None]:
        """Inside, the MLPs of some layers give `substitute(input, output)` in place of their output.

        Args:
            substitutes: by layer.
            residual: hand over the residual stream before the norm as the input.
        """
        before: dict[int, Tensor] = {}
        handles = []
        for index, substitute in substitutes.items():
            view = self.layer(index)

            def keep(module: nn.Module, args: tuple[Tensor, ...], index: int = index) -> None:
                before[index] = args[0]

            def hook(
                module: nn.Module, args: tuple[Tensor, ...], output: Any, index: int = index, new: Any = substitute
            ) -> Any:
                inputs = before[index] if residual else args[0]
                if type(output) is tuple:
                    return (new(inputs, output[0]), *output[1:])
                return new(inputs, output)

            if residual:
                handles.append(view.norm_mlp.module.register_forward_pre_hook(keep))
            handles.append(view.mlp.register_forward_hook(hook))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    @torch.no_grad()
    def cross_entropy(self, ids: Int64[Tensor, "b t"], *, skip: int = 1) -> Float[Tensor, ""]:
        """Mean next-token cross-entropy in nats, the first `skip` positions left out."""
        logits = self.model(input_ids=ids, use_cache=False).logits[:, skip:-1]
        return functional.cross_entropy(logits.flatten(0, 1).float(), ids[:, skip + 1 :].flatten())

    @torch.no_grad()
    def trace(self, ids: Int64[Tensor, " t"], depth: int | None = None) -> Trace:
        """Run one prompt and keep everything attribution needs, of the first `depth` layers (all by default).

        With a depth the model runs no further than that, and there are no logits.

        Raises:
            InputError: a family whose attention is not known, or blocks that are more than the sum of attention and MLP
                (outputs scaled or normed again), so that attributions would not add up.
        """
        if not self.exact:
            raise InputError(
                f"{type(self.model).__name__}: the parts of its attention are not known, so its circuits cannot be "
                "traced (Llama-like models, GPT-2 and GPT-NeoX can)"
            )
        count = len(self.layers) if depth is None else min(depth, len(self.layers))
        whole = count == len(self.layers)
        kept: dict[str, dict[int, Tensor]] = {n: {} for n in ("before", "middle", "in", "out", "attention", "pattern")}
        handles = []
        for index, view in enumerate(self.layers[:count]):
            handles += [
                view.norm_in.module.register_forward_pre_hook(_keep_input(kept["before"], index)),
                view.norm_mlp.module.register_forward_pre_hook(_keep_input(kept["middle"], index)),
                view.attention.register_forward_hook(_keep_attention(kept["attention"], kept["pattern"], index)),
                view.mlp.register_forward_hook(_keep_both(kept["in"], kept["out"], index)),
            ]
        if not whole:
            handles.append(self.layers[count].block.register_forward_pre_hook(_stop))
        final: dict[int, Tensor] = {}
        handles.append(self.final_norm.module.register_forward_pre_hook(_keep_input(final, 0)))
        before = self.model.config._attn_implementation
        try:
            self.model.set_attn_implementation("eager")  # the fused kernels do not give the pattern
            logits = self.model(input_ids=ids[None], use_cache=False).logits[0]
        except _Stop:
            final[0], logits = self.embedding.new_zeros(0, self.dim), self.embedding.new_zeros(0, len(self.unembedding))
        finally:
            self.model.set_attn_implementation(before)
            for handle in handles:
                handle.remove()
        stacked = {n: torch.stack([v[i] for i in range(count)]) for n, v in kept.items()}
        self._check_sums(stacked, final[0] if whole else None)
        return Trace(
            ids=ids,
            embedding=stacked["before"][0],
            before=stacked["before"],
            middle=stacked["middle"],
            mlp_in=stacked["in"],
            mlp_out=stacked["out"],
            attention_out=stacked["attention"],
            patterns=stacked["pattern"],
            final=final[0],
            logits=logits,
        )

    def _check_sums(self, kept: Mapping[str, Tensor], final: Tensor | None) -> None:
        """Refuse a model whose stream is not the sum of what its parts give, or whose heads were split wrongly."""
        after = kept["before"] + kept["attention"] + kept["out"]
        true = kept["before"][1:] if final is None else torch.cat([kept["before"][1:], final[None]])
        view = self.layers[len(after) - 1]
        attended = view.attend(kept["pattern"][-1], view.norm_in.module(kept["before"][-1]))
        allowed = _SUM_TOLERANCE.get(after.dtype, 0.05)
        for ours, theirs in ((after[: len(true)], true), (attended, kept["attention"][-1])):
            if theirs.numel() and float((ours - theirs).norm()) > allowed * float(theirs.norm()):
                raise InputError(
                    f"{type(self.model).__name__}: its blocks are more than the sum of attention and MLP, so circuits "
                    "would not add up; training, replacing and inspecting work"
                )


def _keep_input(store: dict[int, Tensor], index: int) -> Callable[..., None]:
    def hook(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        store[index] = args[0][0].detach()

    return hook


def _stop(module: nn.Module, args: Any) -> None:
    raise _Stop


def _keep_both(inputs: dict[int, Tensor], outputs: dict[int, Tensor], index: int) -> Callable[..., None]:
    def hook(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        inputs[index], outputs[index] = args[0][0].detach(), output[0].detach()

    return hook


def _keep_attention(outputs: dict[int, Tensor], patterns: dict[int, Tensor], index: int) -> Callable[..., None]:
    def hook(module: nn.Module, args: Any, output: tuple[Tensor, ...]) -> None:
        outputs[index], patterns[index] = output[0][0].detach(), output[1][0].detach()

    return hook


# -- families -------------------------------------------------------------------------------------------------------


def _norm(module: Any) -> NormView:
    bias = getattr(module, "bias", None)
    eps: Any = getattr(module, "variance_epsilon", None) or getattr(module, "eps", 1e-6)
    return NormView(module, module.weight, bias, float(eps), centred=isinstance(module, nn.LayerNorm))


def _split_heads(weight: Tensor, heads: int) -> Tensor:
    return weight.reshape(heads, -1, weight.shape[1])


def _llama(model: Any) -> dict[str, Any]:
    config, layers = model.config, []
    heads = config.num_attention_heads
    repeat = heads // (getattr(config, "num_key_value_heads", None) or heads)
    for block in model.model.layers:
        attention = block.self_attn
        if hasattr(attention, "v_proj"):
            weight, bias = attention.v_proj.weight, attention.v_proj.bias
        else:  # Phi-3: query, key and value in one matrix, the values last
            weight, bias = attention.qkv_proj.weight, attention.qkv_proj.bias
            rows = heads // repeat * (attention.o_proj.weight.shape[1] // heads)
            weight, bias = weight[-rows:], None if bias is None else bias[-rows:]
        values = _split_heads(weight, heads // repeat).repeat_interleave(repeat, 0)
        layers.append(
            LayerView(
                block=block,
                attention=attention,
                mlp=block.mlp,
                norm_in=_norm(block.input_layernorm),
                norm_mlp=_norm(block.post_attention_layernorm),
                values=values,
                outputs=attention.o_proj.weight.unflatten(1, (heads, -1)).transpose(0, 1),
                value_bias=None if bias is None else bias.reshape(heads // repeat, -1).repeat_interleave(repeat, 0),
                output_bias=attention.o_proj.bias,
            )
        )
    return {"layers": layers, "final_norm": _norm(model.model.norm), "embedding": model.model.embed_tokens.weight}


def _gpt2(model: Any) -> dict[str, Any]:
    heads, layers = model.config.n_head, []
    for block in model.transformer.h:
        attention = block.attn
        width = attention.c_proj.weight.shape[1]
        value = attention.c_attn.weight[:, 2 * width :].T  # Conv1D keeps its weight transposed
        layers.append(
            LayerView(
                block=block,
                attention=attention,
                mlp=block.mlp,
                norm_in=_norm(block.ln_1),
                norm_mlp=_norm(block.ln_2),
                values=_split_heads(value, heads),
                outputs=attention.c_proj.weight.T.unflatten(1, (heads, -1)).transpose(0, 1),
                value_bias=attention.c_attn.bias[2 * width :].reshape(heads, -1),
                output_bias=attention.c_proj.bias,
            )
        )
    return {"layers": layers, "final_norm": _norm(model.transformer.ln_f), "embedding": model.transformer.wte.weight}


def _neox(model: Any) -> dict[str, Any]:
    heads, layers = model.config.num_attention_heads, []
    for block in model.gpt_neox.layers:
        attention = block.attention
        fused = attention.query_key_value.weight.unflatten(0, (heads, 3, -1))  # per head: query, key, value
        bias = attention.query_key_value.bias
        layers.append(
            LayerView(
                block=block,
                attention=attention,
                mlp=block.mlp,
                norm_in=_norm(block.input_layernorm),
                norm_mlp=_norm(block.post_attention_layernorm),
                values=fused[:, 2],
                outputs=attention.dense.weight.unflatten(1, (heads, -1)).transpose(0, 1),
                value_bias=None if bias is None else bias.unflatten(0, (heads, 3, -1))[:, 2],
                output_bias=attention.dense.bias,
            )
        )
    return {
        "layers": layers,
        "final_norm": _norm(model.gpt_neox.final_layer_norm),
        "embedding": model.gpt_neox.embed_in.weight,
        "parallel": bool(model.config.use_parallel_residual),
    }


_MLP_NAMES = ("mlp", "feed_forward", "feedforward", "ffn", "block_sparse_moe")
_NORM_NAMES = (
    "pre_feedforward_layernorm", "post_attention_layernorm", "ln_2", "ln_mlp", "ffn_norm", "norm_2", "input_layernorm",
    "ln_1",
)  # fmt: skip
_FINAL_NAMES = ("norm", "final_layernorm", "final_layer_norm", "ln_f", "norm_f")


def _other(model: Any) -> dict[str, Any]:
    """The MLPs of a family that is not known: found by what most decoders call them; nothing of the attention."""
    name, count = type(model).__name__, int(getattr(getattr(model, "config", None), "num_hidden_layers", 0))
    base = getattr(model, "base_model", model)
    for blocks in (m for m in model.modules() if isinstance(m, nn.ModuleList) and len(m) == count > 0):
        mlp = next((n for n in _MLP_NAMES if hasattr(blocks[0], n)), None)
        norm = next((n for n in _NORM_NAMES if hasattr(blocks[0], n)), None)
        final = next((n for n in _FINAL_NAMES if hasattr(base, n)), None)
        if mlp is None or norm is None or final is None:
            continue
        empty = model.get_input_embeddings().weight.new_zeros(0, 0, 0)
        layers = [
            LayerView(
                block=block,
                attention=block,
                mlp=getattr(block, mlp),
                norm_in=_measured_norm(getattr(block, norm)),
                norm_mlp=_measured_norm(getattr(block, norm)),
                values=empty,
                outputs=empty,
                value_bias=None,
                output_bias=None,
            )
            for block in blocks
        ]
        embedding = model.get_input_embeddings().weight
        return {"layers": layers, "final_norm": _measured_norm(getattr(base, final)), "embedding": embedding}
    raise InputError(f"{name}: no MLPs are found in its layers")


@torch.no_grad()
def _measured_norm(module: Any) -> NormView:
    """A norm's gain and bias from what it does, whatever it calls its weights (Gemma's gain is 1 + weight)."""
    weight = getattr(module, "weight", None)
    if weight is None or weight.dim() != 1:
        raise InputError(f"{type(module).__name__} is no norm with a gain")
    index = torch.arange(len(weight), device=weight.device, dtype=weight.dtype)
    x = ((1 - 2 * (index % 2)) * (20 + 5 * torch.cos(index)))[None]  # far from zero everywhere, mean about zero
    y, opposite, moved = module(x)[0], module(-x)[0], module(x + 10)[0]
    centred = bool((y - moved).abs().max() < 0.02 * y.abs().max())
    bias = (y + opposite) / 2
    plain = x[0] - x.mean() if centred else x[0]
    gain = (y - bias) / plain * plain.square().mean().sqrt()
    eps: Any = getattr(module, "variance_epsilon", None) or getattr(module, "eps", 1e-6)
    return NormView(module, gain, bias if bool(bias.abs().max() > 1e-4) else None, float(eps), centred)


_FAMILIES: list[tuple[Callable[[Any], bool], Callable[[Any], dict[str, Any]]]] = [
    (lambda m: hasattr(m, "transformer") and hasattr(m.transformer, "h") and hasattr(m.transformer, "wte"), _gpt2),
    (lambda m: hasattr(m, "gpt_neox"), _neox),
    (
        # Gemma scales by 1 + weight and has further norms: another family
        lambda m: (
            "Gemma" not in type(m).__name__
            and hasattr(m, "model")
            and hasattr(m.model, "layers")
            and hasattr(m.model.layers[0], "self_attn")
            and (hasattr(m.model.layers[0].self_attn, "v_proj") or hasattr(m.model.layers[0].self_attn, "qkv_proj"))
            and hasattr(m.model.layers[0].self_attn, "o_proj")
            and hasattr(m.model.layers[0], "mlp")
            and hasattr(m.model.layers[0], "input_layernorm")
            and hasattr(m.model.layers[0], "post_attention_layernorm")
            and getattr(m.model.layers[0].input_layernorm, "weight", None) is not None
        ),
        _llama,
    ),
]
