"""A diffusers UNet run as two halves: encoder (down path and middle) and decoder (up path).

The network's own forward stays in charge; while one half runs, the modules of the other are stopped or replayed. So any
UNet of that shape works, with all its conditions, and nothing of it is written again here.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from encyclo.errors import InputError


@dataclass(frozen=True)
class Features:
    """What the encoder half gave for a batch: the output of conv_in, of each down block and of the middle."""

    outputs: tuple[Any, ...]
    sample: Tensor
    """The input, of which the decoder half uses only the shape."""

    @property
    def batch(self) -> int:
        """Number of samples."""
        return int(self.sample.shape[0])

    @property
    def largest(self) -> int:
        """Bytes of the largest feature map."""
        return max(tensor.nbytes for tensor in _tensors(self.outputs))


class _Encoded(Exception):
    """The encoder half is done; leaves the network's forward."""


class _Replay(nn.Module):
    """Stands where a module stood and gives back its remembered output; other attributes are the module's."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        object.__setattr__(self, "original", module)
        self.output: Any = None

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(object.__getattribute__(self, "original"), name)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.output


class SplitUNet:
    """Encoder and decoder half of a diffusers UNet (UNet2DModel, UNet2DConditionModel and their relatives).

    Args:
        unet: the network; it is not changed.

    Raises:
        InputError: a network without conv_in, down_blocks and up_blocks.
    """

    def __init__(self, unet: nn.Module) -> None:
        unet = getattr(unet, "_orig_mod", unet)  # a compiled module wraps the one with the blocks
        for name in ("conv_in", "down_blocks", "up_blocks"):
            if not isinstance(getattr(unet, name, None), nn.Module):
                kind = type(unet).__name__
                raise InputError(f"a {kind} has no '{name}': encoder propagation needs a UNet with down and up blocks")
        self.unet = unet
        self._names = ["conv_in"]
        if isinstance(getattr(unet, "transformer_in", None), nn.Module):  # of video networks
            self._names.append("transformer_in")
        self._names += [f"down_blocks.{i}" for i in range(len(unet.down_blocks))]  # type: ignore[arg-type]
        if isinstance(getattr(unet, "mid_block", None), nn.Module):
            self._names.append("mid_block")
        self._modules = [unet.get_submodule(name) for name in self._names]
        self._replays = [_Replay(module) for module in self._modules]

    def encode(
        self,
        sample: Float[Tensor, "b ..."],
        timestep: Tensor | float,
        conditions: Mapping[str, Any] | None = None,
    ) -> Features:
        """Run conv_in, the down blocks and the middle, and stop.

        Args:
            sample: noisy input.
            timestep: of the key step; it conditions the encoder half only.
            conditions: further keyword arguments of the network's forward.
        """
        outputs: dict[int, Any] = {}

        def keep(index: int) -> Any:
            return lambda module, args, output: outputs.__setitem__(index, output)

        def stop(module: nn.Module, args: Any) -> None:
            raise _Encoded

        hooks = [module.register_forward_hook(keep(i)) for i, module in enumerate(self._modules)]
        first = self.unet.up_blocks[0]  # type: ignore[index]
        assert isinstance(first, nn.Module)
        hooks.append(first.register_forward_pre_hook(stop))
        try:
            self._forward(sample, timestep, conditions or {})
        except _Encoded:
            pass
        finally:
            for hook in hooks:
                hook.remove()
        return Features(tuple(outputs[i] for i in range(len(self._modules))), sample)

    def decode(
        self,
        features: Features,
        timesteps: Float[Tensor, " s"] | Any,
        conditions: Mapping[str, Any] | None = None,
    ) -> Float[Tensor, "sb ..."]:
        """Run the up path on remembered features, for one or several time steps at once.

        Args:
            features: of a batch of B samples.
            timesteps: [s], each decoded with its own time embedding.
            conditions: as for `encode`; tensors of batch B are tiled.

        Returns:
            [s * B, ...], time-major: all samples of the first step, then of the second ...
        """
        times = torch.as_tensor(timesteps, device=features.sample.device).reshape(-1)
        count, batch = len(times), features.batch
        told = {
            name: _tile(value, count, batch)
            for name, value in (conditions or {}).items()
            if name != "down_intrablock_additional_residuals"  # already inside the remembered outputs
        }
        with self._replaying(features, count):
            return self._forward(_tile(features.sample, count, batch), times.repeat_interleave(batch), told)

    def _forward(self, sample: Tensor, timestep: Any, conditions: Mapping[str, Any]) -> Tensor:
        told = {k: v for k, v in conditions.items() if k != "return_dict"}
        # the class's own forward: the instance's may be the one that encoder propagation put there
        output = type(self.unet).forward(self.unet, sample, timestep, return_dict=False, **told)
        return output[0]  # type: ignore[no-any-return]

    @contextmanager
    def _replaying(self, features: Features, count: int) -> Iterator[None]:
        for replay, output in zip(self._replays, features.outputs, strict=True):
            replay.output = _tile(output, count, None)
        parents = [self.unet.get_submodule(name.rpartition(".")[0]) for name in self._names]
        keys = [name.rpartition(".")[2] for name in self._names]
        try:
            for parent, key, replay in zip(parents, keys, self._replays, strict=True):
                parent._modules[key] = replay
            yield
        finally:
            for parent, key, module, replay in zip(parents, keys, self._modules, self._replays, strict=True):
                parent._modules[key] = module
                replay.output = None


def _tensors(value: Any) -> Iterator[Tensor]:
    """All tensors in tuples, lists and mappings."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, tuple | list):
        for part in value:
            yield from _tensors(part)
    elif isinstance(value, Mapping):
        yield from _tensors(tuple(value.values()))


def _tile(value: Any, count: int, batch: int | None) -> Any:
    """Repeat tensors `count` times along the first axis, through tuples, lists and mappings.

    With `batch` only those whose first axis has that length (conditions may hold others); with None all (remembered
    features: in a video network their first axis counts the frames of all samples).
    """
    if count == 1:
        return value
    if isinstance(value, Tensor):
        fits = value.dim() > 0 and batch in (None, value.shape[0])
        return value.repeat(count, *(1,) * (value.dim() - 1)) if fits else value
    if isinstance(value, tuple | list):
        return type(value)(_tile(v, count, batch) for v in value)
    if isinstance(value, Mapping):
        return {k: _tile(v, count, batch) for k, v in value.items()}
    return value
