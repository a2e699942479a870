"""How much a UNet's features change from one sampler step to the next (arXiv 2312.09608, section 3)."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from encyclo import picture
from encyclo.picture import Picture


@dataclass(frozen=True)
class FeatureStudy:
    """By block ("encoder 1" ..., "middle", "decoder 1" ...) a value per sampler step."""

    change: Mapping[str, Float[Tensor, " t"]]
    """Delta_t: squared difference to the step before, mean over elements and images; 0 for the first step."""
    square: Mapping[str, Float[Tensor, " t"]]
    """Mean square of the features."""
    norm: Mapping[str, Float[Tensor, " t"]]
    """Frobenius norm of one image's features, mean over images."""

    @property
    def relative(self) -> dict[str, Float[Tensor, " t"]]:
        """Change in units of the block's own mean square over all steps: blocks of different scale compare."""
        return {name: change / self.square[name].mean() for name, change in self.change.items()}


@torch.no_grad()
def feature_study(unet: nn.Module, run: Callable[[], Any]) -> FeatureStudy:
    """Follow every block's output through one sampling in full.

    Args:
        unet: a diffusers UNet.
        run: samples once with it (one call of the network per step).
    """
    names = {f"encoder {i + 1}": f"down_blocks.{i}" for i in range(len(unet.down_blocks))}  # type: ignore[arg-type]
    if isinstance(getattr(unet, "mid_block", None), nn.Module):
        names["middle"] = "mid_block"
    names |= {f"decoder {i + 1}": f"up_blocks.{i}" for i in range(len(unet.up_blocks))}  # type: ignore[arg-type]
    last: dict[str, Tensor] = {}
    seen: dict[str, dict[str, list[Tensor]]] = {kind: {n: [] for n in names} for kind in ("change", "square", "norm")}

    def keep(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            now = (output[0] if isinstance(output, tuple) else output).float()
            same = name in last and last[name].shape == now.shape
            seen["change"][name].append((now - last[name]).square().mean() if same else now.new_zeros(()))
            seen["square"][name].append(now.square().mean())
            seen["norm"][name].append(now.flatten(1).norm(dim=1).mean())
            last[name] = now

        return hook

    hooks = [unet.get_submodule(path).register_forward_hook(keep(name)) for name, path in names.items()]
    try:
        run()
    finally:
        for hook in hooks:
            hook.remove()
    change, square, norm = ({n: torch.stack(v).cpu() for n, v in kind.items()} for kind in seen.values())
    return FeatureStudy(change, square, norm)


def mean_change(changes: Mapping[str, Tensor], half: str) -> float:
    """The mean over steps and blocks of one half, `encoder` or `decoder`."""
    return float(torch.stack([v[1:].mean() for n, v in changes.items() if n.startswith(half)]).mean())


def evenly_spaced(changes: Mapping[str, Tensor], count: int) -> tuple[int, ...]:
    """Key steps that split the accumulated change of the encoder and middle into `count` equal parts (assumed)."""
    total = torch.stack([v for n, v in changes.items() if not n.startswith("decoder")]).mean(0).cumsum(0)
    targets = torch.linspace(0, float(total[-1]), count + 1)[:-1]
    return tuple(sorted({0, *torch.searchsorted(total, targets).clamp(max=len(total) - 1).tolist()}))


def draw(study: FeatureStudy, name: str = "change", *, docs: bool = False) -> Picture:
    """The curves: on the left the relative change, on the right the norm against its own mean."""
    made, axes = picture.figure(9.0, 3.8, columns=2)
    for label, values in study.relative.items():
        style = "-" if label.startswith("decoder") else "--" if label == "middle" else ":"
        axes[0][0].plot(range(1, len(values)), values[1:], style, label=label, linewidth=1.6)
        norm = study.norm[label]
        axes[0][1].plot(range(len(norm)), norm / norm.mean(), style, linewidth=1.6)
    axes[0][0].set_yscale("log")
    axes[0][0].set_ylabel("relative change of features")
    axes[0][1].set_ylabel("norm of features / its mean")
    for axis in axes[0]:
        axis.set_xlabel("sampler step (from noise to image)")
    axes[0][0].legend(frameon=False, fontsize=8, ncol=2)
    caption = (
        "How much each block's output changes from one step to the next, and its norm: "
        "dotted the encoder, dashed the middle, solid the decoder."
    )
    return picture.from_figure(made, name, caption, docs=docs)
