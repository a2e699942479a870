"""Encoder propagation (Faster Diffusion, arXiv 2312.09608): run a UNet's encoder only at key steps.

Works on any diffusers pipeline, or any UNet with its scheduler: while installed, the UNet's forward and the scheduler's
step are intercepted, the sampling loop itself is not touched.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from encyclo.config import Config
from encyclo.errors import InputError
from encyclo.nn.split_unet import Features, SplitUNet

PAPER_50 = (0, 1, 2, 3, 5, 10, 15, 25, 35)
"""Key steps of Stable Diffusion with 50 DDIM steps, counted from the noisiest."""

NAMED: dict[str, Callable[[int], tuple[int, ...]]] = {
    "all": lambda steps: tuple(range(steps)),
    "paper": lambda steps: tuple(i for i in PAPER_50 if i < steps),
    "if-stage-1": lambda steps: tuple(i for i in range(steps) if i < 10 or i > 85 or i % 5 == 0),
    "if-stage-2": lambda steps: tuple(i for i in range(steps) if i < 20 or i > 40 or i % 2 == 0),
    "if-stage-3": lambda steps: tuple(i for i in range(steps) if math.isqrt(9 + 8 * i) ** 2 == 9 + 8 * i),
}
"""Published key sets by name, as functions of the number of sampler steps."""


def key_steps(keys: str | Sequence[int], steps: int) -> tuple[int, ...]:
    """The key steps for a sampler of `steps` steps, counted from the noisiest.

    Args:
        keys: a published set (`paper`, `if-stage-1` ...), `uniform:M` (every M-th), `all`, or the indices.
        steps: sampler steps.

    Raises:
        InputError: an unknown name, M < 1, indices outside [0, steps), duplicates, or a set without 0.
    """
    if isinstance(keys, str):
        if keys in NAMED:
            return NAMED[keys](steps)
        word, _, number = keys.partition(":")
        if word == "uniform" and number.lstrip("-").isdigit():
            if int(number) < 1:
                raise InputError(f"keys={keys}: every M-th step needs M of at least 1")
            return tuple(range(0, steps, int(number)))
        if all(part.strip().isdigit() for part in keys.split(",")):
            return key_steps([int(part) for part in keys.split(",")], steps)
        raise InputError(f"keys={keys} is none of {', '.join(NAMED)}, uniform:M, or a list of indices")
    chosen = tuple(keys)
    if 0 not in chosen:
        raise InputError(f"keys={list(chosen)} lacks step 0: the first step has nothing to reuse")
    outside = [i for i in chosen if not 0 <= i < steps]
    if outside:
        raise InputError(f"keys: {outside[0]} lies outside the sampler's {steps} steps (0 to {steps - 1})")
    if len(set(chosen)) != len(chosen):
        raise InputError(f"keys={list(chosen)} names a step twice")
    return tuple(sorted(chosen))


class Propagation(Config):
    """How encoder features are reused."""

    keys: str | tuple[int, ...] = "paper"
    mode: Literal["parallel", "serial"] = "parallel"
    """parallel: the decoders of all steps up to the next key run as one batch; serial: one by one, with less memory.
    Both give the same numbers."""
    alpha: float = Field(0.003, ge=0)
    """Prior noise injection: z <- z + alpha z_T before each late scheduler step; 0 leaves it out."""
    tau: float = Field(0.5, ge=0, le=1)
    """Injection where t / T_train < tau."""
    max_batch: int | None = Field(None, ge=1)
    """Largest decoder batch in samples; longer gaps are decoded in chunks, with the same numbers."""
    reuse: Literal["encoder", "decoder"] = "encoder"
    """decoder: the opposite, as a control: the encoder runs at every step, the prediction is that of the key step."""


@dataclass
class Counts:
    """What has been run since the last reset."""

    encoder_calls: int = 0
    decoder_calls: int = 0
    """Forward passes of the decoder half; one parallel batch is one pass."""
    decoded: int = 0
    """Decoder evaluations: one for every sampler step."""
    largest_batch: int = 0


class EncoderPropagation:
    """Encoder propagation installed on a UNet and its scheduler; `remove()` (or leaving the context) restores both.

    Args:
        unet: a diffusers UNet.
        scheduler: the sampler's scheduler.
        config: key steps, mode, injection.
        control: ControlNets of the pipeline, which then run at key steps only.
    """

    def __init__(
        self, unet: nn.Module, scheduler: Any, config: Propagation, *, control: Sequence[nn.Module] = ()
    ) -> None:
        self.split = SplitUNet(unet)
        self.unet, self.scheduler, self.config = self.split.unet, scheduler, config
        self.counts = Counts()
        self._control = list(control)
        self._control_outputs: dict[int, Any] = {}
        self._times: Tensor | None = None
        self._keys: tuple[int, ...] = ()
        self._index = 0
        self._features: Features | None = None
        self._conditions: dict[str, Any] = {}
        self._ready: dict[int, Tensor] = {}
        self._first: Tensor | None = None
        if "forward" in vars(self.unet):
            raise InputError("encoder propagation is already installed on this UNet: remove() it first")
        self._step = scheduler.step
        self.unet.forward = self._forward  # type: ignore[method-assign]
        scheduler.step = self._injected_step
        for number, net in enumerate(self._control):
            net.forward = self._controlled(number, net)  # type: ignore[method-assign]

    def remove(self) -> None:
        """Restore the UNet, the scheduler and the ControlNets."""
        for module in (self.unet, *self._control):
            vars(module).pop("forward", None)
        vars(self.scheduler).pop("step", None)
        self._features, self._ready, self._control_outputs = None, {}, {}

    def __enter__(self) -> "EncoderPropagation":
        return self

    def __exit__(self, *_: Any) -> None:
        self.remove()

    # -- the UNet -----------------------------------------------------------------------------------------------

    def _forward(
        self,
        sample: Tensor,
        timestep: Any,
        encoder_hidden_states: Any = None,
        return_dict: bool = True,
        **conditions: Any,
    ) -> Any:
        if encoder_hidden_states is not None:
            conditions["encoder_hidden_states"] = encoder_hidden_states
        index = self._locate(timestep)
        noise = self._predict(index, sample, timestep, conditions)
        self._index = index + 1
        if not return_dict:
            return (noise,)
        from diffusers.models.unets.unet_2d import UNet2DOutput

        return UNet2DOutput(sample=noise)

    def _predict(self, index: int, sample: Tensor, timestep: Any, conditions: dict[str, Any]) -> Tensor:
        if index in self._keys or (self._features is None and index not in self._ready):
            return self._at_key(index, sample, timestep, conditions)
        if self.config.reuse == "decoder":
            self.split.encode(sample, timestep, conditions)
            self.counts.encoder_calls += 1
            return self._ready[-1]
        if index in self._ready:
            return self._ready.pop(index)
        assert self._features is not None
        # residuals of a ControlNet belong to the remembered features; all other conditions are this step's own
        kept = {k: v for k, v in self._conditions.items() if k.endswith("additional_residuals")}
        kept |= {k: v for k, v in self._conditions.items() if k.endswith("additional_residual")}
        return self._decode(timestep, {**conditions, **kept})

    def _at_key(self, index: int, sample: Tensor, timestep: Any, conditions: dict[str, Any]) -> Tensor:
        self._features = self.split.encode(sample, timestep, conditions)
        self._conditions = conditions
        self._ready.clear()
        self.counts.encoder_calls += 1
        if self.config.reuse == "decoder":
            self._ready[-1] = self._decode(timestep, conditions)
            return self._ready[-1]
        if self.config.mode == "serial":
            return self._decode(timestep, conditions)
        assert self._times is not None
        end = next((k for k in self._keys if k > index), len(self._times))
        batch = self._features.batch
        chunk = max(1, self.config.max_batch // batch) if self.config.max_batch else end - index
        for start in range(index, end, chunk):
            stop = min(end, start + chunk)
            noise = self._decode(self._times[start:stop], conditions)
            self._ready |= dict(zip(range(start, stop), noise.split(batch), strict=True))
        return self._ready.pop(index)

    def _decode(self, timesteps: Any, conditions: Mapping[str, Any]) -> Tensor:
        assert self._features is not None
        times = torch.as_tensor(timesteps, device=self._features.sample.device).reshape(-1)
        if len(times) == self._features.batch > 1 and bool((times == times[0]).all()):
            times = times[:1]  # a pipeline that gives one (equal) time per sample
        self.counts.decoder_calls += 1
        self.counts.decoded += len(times)
        self.counts.largest_batch = max(self.counts.largest_batch, len(times) * self._features.batch)
        return self.split.decode(self._features, times, conditions)

    def _locate(self, timestep: Any) -> int:
        """Which sampler step this call is; a new set of time steps starts over."""
        times = self.scheduler.timesteps
        if self._times is None or times is not self._times or self._index >= len(times):
            self._times, self._index = times, 0
            self._keys = key_steps(self.config.keys, len(times))
            self._features, self._first = None, None
            self._ready.clear()
        now = torch.as_tensor(timestep).reshape(-1)[0].to(times)
        if bool(times[self._index] == now):
            return self._index
        found = (times == now).nonzero()
        if not len(found):
            raise InputError(f"time step {now.item():g} is none of the scheduler's: call set_timesteps before sampling")
        return int(found[0])

    # -- the scheduler and ControlNets --------------------------------------------------------------------------------

    def _injected_step(self, model_output: Tensor, timestep: Any, sample: Tensor, *args: Any, **kwargs: Any) -> Any:
        if self._first is None:
            self._first = sample
        late = float(torch.as_tensor(timestep)) / self.scheduler.config.num_train_timesteps < self.config.tau
        if self.config.alpha and late:
            sample = sample + self.config.alpha * self._first
        return self._step(model_output, timestep, sample, *args, **kwargs)

    def _controlled(self, number: int, net: nn.Module) -> Callable[..., Any]:
        def forward(sample: Tensor, timestep: Any, *args: Any, **kwargs: Any) -> Any:
            index = self._locate(timestep)
            if index in self._keys or number not in self._control_outputs:
                self._control_outputs[number] = type(net).forward(net, sample, timestep, *args, **kwargs)
            return self._control_outputs[number]

        return forward


def accelerate_sampling(pipe: Any, config: Propagation | None = None, **settings: Any) -> EncoderPropagation:
    """Make a diffusers pipeline sample faster, without training and without changing its loop.

    `accelerate_sampling(pipe, keys="uniform:2")`; the pipeline is then called as before. The returned object counts
    what was run and undoes itself by `remove()` or as a context.

    Args:
        pipe: any pipeline with a UNet and a scheduler (Stable Diffusion 1/2/XL, ControlNet, DDIM ...).
        config: how; or its fields as keyword arguments.

    Raises:
        InputError: a pipeline without a UNet, or bad settings.
    """
    unet, scheduler = getattr(pipe, "unet", None), getattr(pipe, "scheduler", None)
    if unet is None or scheduler is None:
        raise InputError(f"a {type(pipe).__name__} has no UNet with a scheduler: encoder propagation needs both")
    control = getattr(pipe, "controlnet", None)
    nets = [] if control is None else list(getattr(control, "nets", [control]))
    return EncoderPropagation(unet, scheduler, config or Propagation(**settings), control=nets)
