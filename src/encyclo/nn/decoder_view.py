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
    final: Float[Tensor, "t d"]
    """What the final norm reads."""
    logits: Float[Tensor, "t v"]


class DecoderView:
    """A decoder language model of the Llama (Mistral, Qwen2, SmolLM ...), GPT-2 or GPT-NeoX family.

    Raises:
        InputError: for a family whose parts are not known.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model: Any = model
        found = next((make(model) for match, make in _FAMILIES if match(model)), None)
        if found is None:
            raise InputError(
                f"{type(model).__name__}: its layers are not known (Llama, GPT-2 and GPT-NeoX families are)"
            )
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
            def hook(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
                seen[index] = (before[index] if residual else args[0], output)
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
                module: nn.Module, args: tuple[Tensor, ...], output: Tensor, index: int = index, new: Any = substitute
            ) -> Tensor:
                result: Tensor = new(before[index] if residual else args[0], output)
                return result

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
        """Run one prompt and keep everything attribution needs, of the first `depth` layers (all by default)."""
        count = len(self.layers) if depth is None else depth
        kept: dict[str, dict[int, Tensor]] = {n: {} for n in ("before", "middle", "in", "out", "attention", "pattern")}
        handles = []
        for index, view in enumerate(self.layers[:count]):
            handles += [
                view.norm_in.module.register_forward_pre_hook(_keep_input(kept["before"], index)),
                view.norm_mlp.module.register_forward_pre_hook(_keep_input(kept["middle"], index)),
                view.mlp.register_forward_hook(_keep_both(kept["in"], kept["out"], index)),
                view.attention.register_forward_hook(_keep_attention(kept["attention"], kept["pattern"], index)),
            ]
        final: dict[int, Tensor] = {}
        handles.append(self.final_norm.module.register_forward_pre_hook(_keep_input(final, 0)))
        before = self.model.config._attn_implementation
        try:
            self.model.set_attn_implementation("eager")  # the fused kernels do not give the pattern
            logits = self.model(input_ids=ids[None], use_cache=False).logits[0]
        finally:
            self.model.set_attn_implementation(before)
            for handle in handles:
                handle.remove()
        stacked = {n: torch.stack([v[i] for i in range(count)]) for n, v in kept.items()}
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


def _keep_input(store: dict[int, Tensor], index: int) -> Callable[..., None]:
    def hook(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        store[index] = args[0][0].detach()

    return hook


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
        values = _split_heads(attention.v_proj.weight, heads // repeat).repeat_interleave(repeat, 0)
        bias = attention.v_proj.bias
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
            and hasattr(m.model.layers[0].self_attn, "v_proj")
            and hasattr(m.model.layers[0], "post_attention_layernorm")
        ),
        _llama,
    ),
]
