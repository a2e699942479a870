"""Encoder propagation (Faster Diffusion, arXiv 2312.09608): run a UNet's encoder only at key steps.

Works on any diffusers pipeline, or any UNet with its scheduler: while installed, the UNet's forward and the scheduler's
step are intercepted, the sampling loop itself is not touched.
"""

import inspect
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

_CPU_BYTES = 8 << 20

PAPER_50 = (0, 1, 2, 3, 5, 10, 15, 25, 35)
"""Key steps of Stable Diffusion with 50 DDIM steps, counted from the noisiest."""

NAMED: dict[str, Callable[[int], tuple[int, ...]]] = {
    "all": lambda steps: tuple(range(steps)),
    "paper": lambda steps: tuple(i for i in PAPER_50 if i < steps),
    "if-stage-1": lambda steps: tuple(i for i in range(steps) if i < 10 or i > 85 or i % 5 == 0),
    "if-stage-2": lambda steps: tuple(i for i in range(steps) if i < 20 or i > 40 or i % 2 == 0),
    "if-stage-3": lambda steps: tuple(i for i in range(steps) if math.isqrt(9 + 8 * i) ** 2 == 9 + 8 * i),
    "ablation-1": lambda steps: tuple(i for i in (0, 10, 11, 12, 15, 20, 25, 30, 35, 45) if i < steps),
    "ablation-2": lambda steps: tuple(i for i in (0, 20, 25, 30, 35, 45, 46, 47, 48, 49) if i < steps),
    "ablation-3": lambda steps: tuple(i for i in (0, 9, 13, 14, 15, 28, 29, 32, 36, 45) if i < steps),
}
"""Published key sets by name, as functions of the number of sampler steps. `paper` is that of Stable Diffusion: 9 keys
of 50 DDIM steps, cut off (7 keys) for 20 steps of DPM-Solver; the ablation sets were published as worse than it."""


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
    """Largest decoder batch in samples; longer gaps are decoded in chunks, with the same numbers. None: the whole gap;
    on a CPU only so many steps that no feature map exceeds 8 MiB, since beyond that a larger batch is slower."""
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
    """Samples in the largest decoder batch."""
    control_calls: int = 0
    """Forward passes of the ControlNet; several in one pipeline count as one."""


class EncoderPropagation:
    """Encoder propagation installed on a UNet and its scheduler; `remove()` (or leaving the context) restores both.

    Args:
        unet: a diffusers UNet.
        scheduler: the sampler's scheduler.
        config: key steps, mode, injection.
        control: the ControlNet (or several in one module) of the pipeline, which then runs at key steps only.
    """

    def __init__(
        self, unet: nn.Module, scheduler: Any, config: Propagation, *, control: nn.Module | None = None
    ) -> None:
        self.split = SplitUNet(unet)
        self.unet, self.scheduler, self.config = self.split.unet, scheduler, config
        self.counts = Counts()
        key_steps(config.keys, 10_000)  # bad keys are refused here, not in the middle of a sampling
        for place in (vars(self.unet).get("forward"), vars(scheduler).get("step")):
            if isinstance(getattr(place, "__self__", None), EncoderPropagation):
                raise InputError("encoder propagation is already installed on this UNet: remove() it first")
        self._signature = inspect.signature(type(self.unet).forward)
        self._control: tuple[torch.Size, Any] | None = None
        self._times: Tensor | None = None
        self._keys: tuple[int, ...] = ()
        self._next = 0
        self._features: Features | None = None
        self._conditions: dict[str, Any] = {}
        self._ready: dict[int, Tensor] = {}
        self._frozen: Tensor | None = None
        self._first: Tensor | None = None
        self._step = scheduler.step
        self._before: list[tuple[Any, str, Any]] = []
        self._put(self.unet, "forward", self._forward)
        self._put(scheduler, "step", self._injected_step)
        if control is not None:
            self._put(control, "forward", self._controlled(control.forward))

    def _put(self, place: Any, name: str, value: Any) -> None:
        self._before.append((place, name, vars(place).get(name)))
        setattr(place, name, value)

    def remove(self) -> None:
        """Restore the UNet, the scheduler and the ControlNets as they were found."""
        for place, name, before in reversed(self._before):
            if before is None:
                vars(place).pop(name, None)
            else:
                setattr(place, name, before)
        self._before = []
        self._forget()

    def __enter__(self) -> "EncoderPropagation":
        return self

    def __exit__(self, *_: Any) -> None:
        self.remove()

    # -- the UNet -----------------------------------------------------------------------------------------------

    def _forward(self, *args: Any, **kwargs: Any) -> Any:
        hook = getattr(self.unet, "_hf_hook", None)  # accelerate's, which brings an offloaded network to its device
        if hook is not None:
            args, kwargs = hook.pre_forward(self.unet, *args, **kwargs)
        told = dict(self._signature.bind(self.unet, *args, **kwargs).arguments)
        sample, timestep = told.pop("sample"), told.pop("timestep")
        wrapped = told.pop("return_dict", True)
        told.pop("self")
        index = self._locate(timestep)
        noise = self._predict(index, sample, timestep, told)
        self._next = index + 1
        output: Any = (noise,)
        if wrapped:
            from diffusers.models.unets.unet_2d import UNet2DOutput

            output = UNet2DOutput(sample=noise)
        return output if hook is None else hook.post_forward(self.unet, output)

    def _predict(self, index: int, sample: Tensor, timestep: Any, conditions: dict[str, Any]) -> Tensor:
        kept = self._features
        # a first step that is no key (image to image), keys jumped over, guidance switched off half-way: encode anew
        passed = any(key in self._keys for key in range(self._next, index + 1))
        if kept is None or passed or kept.sample.shape != sample.shape:
            return self._at_key(index, sample, timestep, conditions)
        if self.config.reuse == "decoder":
            self.split.encode(sample, timestep, conditions)
            self.counts.encoder_calls += 1
            assert self._frozen is not None
            return self._frozen
        if index in self._ready:
            return self._ready.pop(index)
        # residuals of a ControlNet belong to the remembered features; all other conditions are this step's own
        residuals = {k: v for k, v in self._conditions.items() if "additional_residual" in k}
        return self._decode(_one(timestep), {**conditions, **residuals})

    def _at_key(self, index: int, sample: Tensor, timestep: Any, conditions: dict[str, Any]) -> Tensor:
        self._ready.clear()
        self._features = self.split.encode(sample, timestep, conditions)
        self._conditions = conditions
        self.counts.encoder_calls += 1
        if self.config.reuse == "decoder":
            self._frozen = self._decode(_one(timestep), conditions)
            return self._frozen
        if self.config.mode == "serial":
            return self._decode(_one(timestep), conditions)
        assert self._times is not None
        end = next((k for k in self._keys if k > index), len(self._times))
        batch = self._features.batch
        chunk = self._steps_at_once(self._features)
        for start in range(index, end, chunk):
            stop = min(end, start + chunk)
            noise = self._decode(self._times[start:stop], conditions)
            self._ready |= dict(zip(range(start, stop), noise.split(batch), strict=True))
        return self._ready.pop(index)

    def _steps_at_once(self, features: Features) -> int:
        """How many steps' decoders run as one batch at most."""
        if self.config.max_batch:
            return max(1, self.config.max_batch // features.batch)
        if features.sample.device.type != "cpu":
            return len(self._times)  # type: ignore[arg-type]
        return max(1, _CPU_BYTES // features.largest)

    def _decode(self, times: Tensor, conditions: Mapping[str, Any]) -> Tensor:
        assert self._features is not None
        self.counts.decoder_calls += 1
        self.counts.decoded += len(times)
        self.counts.largest_batch = max(self.counts.largest_batch, len(times) * self._features.batch)
        return self.split.decode(self._features, times, conditions)

    def _forget(self) -> None:
        self._features = self._frozen = self._first = self._control = None
        self._ready, self._conditions = {}, {}

    def _restart(self) -> None:
        times = self.scheduler.timesteps
        self._times, self._next = times, 0
        self._keys = key_steps(self.config.keys, len(times))
        self._forget()

    def _locate(self, timestep: Any) -> int:
        """Which sampler step this call is; a new set of time steps starts over."""
        times = self.scheduler.timesteps
        if times is not self._times or self._next >= len(times):  # type: ignore[arg-type]
            self._restart()
        now = _one(timestep)[0].to(times)
        if bool(times[self._next] == now):
            return self._next
        found = (times == now).nonzero().flatten().tolist()
        if not found:
            raise InputError(f"time step {now.item():g} is none of the scheduler's: call set_timesteps before sampling")
        later = [i for i in found if i > self._next]
        if later:  # image to image starts part of the way
            return int(later[0])
        if found[0] == 0 and self._next > 1:  # the same time steps run through once more
            self._restart()
            return 0
        raise InputError(
            f"the network is called more than once for time step {now.item():g}: encoder propagation needs the "
            "branches of guidance in one batch"
        )

    # -- the scheduler and ControlNets --------------------------------------------------------------------------------

    def _injected_step(self, model_output: Tensor, timestep: Any, sample: Tensor, *args: Any, **kwargs: Any) -> Any:
        if self._first is None:
            self._first = sample
        late = float(torch.as_tensor(timestep)) / self.scheduler.config.num_train_timesteps < self.config.tau
        if self.config.alpha and late:
            sample = sample + self.config.alpha * self._first
        return self._step(model_output, timestep, sample, *args, **kwargs)

    def _controlled(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def forward(sample: Tensor, timestep: Any, *args: Any, **kwargs: Any) -> Any:
            index = self._locate(timestep)
            passed = any(key in self._keys for key in range(self._next, index + 1))
            kept = self._control
            if kept is None or passed or kept[0] != sample.shape or self.config.reuse == "decoder":
                self.counts.control_calls += 1
                kept = sample.shape, original(sample, timestep, *args, **kwargs)
                self._control = kept
            return kept[1]

        return forward


def _one(timestep: Any) -> Tensor:
    """The step's time as [1]; a pipeline may give it once for every sample."""
    return torch.as_tensor(timestep).reshape(-1)[:1]


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
    # several ControlNets are remembered as one: their module adds them up in place
    return EncoderPropagation(
        unet, scheduler, config or Propagation(**settings), control=getattr(pipe, "controlnet", None)
    )
