"""How much a UNet's features change from one sampler step to the next (arXiv 2312.09608, section 3)."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from encyclo import picture
from encyclo.picture import Picture


@torch.no_grad()
def feature_changes(unet: nn.Module, run: Callable[[], Any]) -> dict[str, Float[Tensor, " t"]]:
    """Per block, the mean squared change of its output against the step before.

    Each block is scaled by its mean square over all steps, so that blocks compare; means over elements and images.

    Args:
        unet: a diffusers UNet.
        run: samples once with it.

    Returns:
        By name ("encoder 1" ..., "middle", "decoder 1" ...) a value per sampler step, 0 for the first.
    """
    names = {f"encoder {i + 1}": f"down_blocks.{i}" for i in range(len(unet.down_blocks))}  # type: ignore[arg-type]
    names["middle"] = "mid_block"
    names |= {f"decoder {i + 1}": f"up_blocks.{i}" for i in range(len(unet.up_blocks))}  # type: ignore[arg-type]
    last: dict[str, Tensor] = {}
    changes: dict[str, list[Tensor]] = {name: [] for name in names}
    squares: dict[str, list[Tensor]] = {name: [] for name in names}

    def keep(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            now = (output[0] if isinstance(output, tuple) else output).float()
            changes[name].append((now - last[name]).square().mean() if name in last else now.new_zeros(()))
            squares[name].append(now.square().mean())
            last[name] = now

        return hook

    hooks = [unet.get_submodule(path).register_forward_hook(keep(name)) for name, path in names.items()]
    try:
        run()
    finally:
        for hook in hooks:
            hook.remove()
    return {name: torch.stack(changes[name]).cpu() / torch.stack(squares[name]).mean().cpu() for name in names}


def mean_change(changes: Mapping[str, Tensor], half: str) -> float:
    """The mean over steps and blocks of one half, `encoder` or `decoder`."""
    return float(torch.stack([v[1:].mean() for n, v in changes.items() if n.startswith(half)]).mean())


def evenly_spaced(changes: Mapping[str, Tensor], count: int) -> tuple[int, ...]:
    """Key steps that split the accumulated change of the encoder and middle into `count` equal parts (assumed)."""
    total = torch.stack([v for n, v in changes.items() if not n.startswith("decoder")]).mean(0).cumsum(0)
    targets = torch.linspace(0, float(total[-1]), count + 1)[:-1]
    return tuple(sorted({0, *torch.searchsorted(total, targets).clamp(max=len(total) - 1).tolist()}))


def draw(changes: Mapping[str, Tensor], name: str = "change", *, docs: bool = False) -> Picture:
    """The curves."""
    made, axis = picture.figure()
    for label, values in changes.items():
        style = "-" if label.startswith("decoder") else "--" if label == "middle" else ":"
        axis.plot(range(1, len(values)), values[1:], style, label=label, linewidth=1.6)
    axis.set_yscale("log")
    axis.set_xlabel("sampler step (from noise to image)")
    axis.set_ylabel("relative change of features")
    axis.legend(frameon=False, fontsize=8, ncol=2)
    caption = "How much each block's output changes from one step to the next: dotted the encoder, solid the decoder."
    return picture.from_figure(made, name, caption, docs=docs)
