"""The processes of a launch: one without `accelerate launch`, else what it started (DDP, FSDP2, several nodes)."""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from encyclo.errors import InputError
from encyclo.training.averaging import full
from encyclo.training.sharding import Unsharded


def launched() -> bool:
    """Whether `accelerate launch` (or torchrun) started this process."""
    return "ACCELERATE_MIXED_PRECISION" in os.environ or int(os.environ.get("WORLD_SIZE", "1")) > 1


def choose_device(wanted: str | None) -> torch.device:
    """ENCYCLO_DEVICE, else the device asked for, else CUDA where there is one, else the CPU.

    Raises:
        InputError: a name that is no device, or a device that this machine lacks.
    """
    name = os.environ.get("ENCYCLO_DEVICE") or wanted or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise InputError(f"device '{name}': no such kind of device; give cpu, cuda or cuda:N") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise InputError(f"device '{name}': this machine has {torch.cuda.device_count()} CUDA devices; give cpu")
    return device


def _asked_for(variable: str) -> bool:
    return os.environ.get(variable, "").lower() in ("true", "1")


class Processes:
    """What the loop needs to know of the other processes, and what they do together.

    Without a launcher no Accelerator is made: its state is global to the process, and a rival's own trainer
    (transformers, sentence-transformers) may want it set otherwise.
    """

    def __init__(self, device: str | None = None) -> None:
        self.accelerator: Any = None
        self._unsharded: Unsharded | None = None
        if not launched():
            self.rank, self.world, self.device = 0, 1, choose_device(device)
            return
        from accelerate import Accelerator, PartialState
        from accelerate.utils import DistributedDataParallelKwargs, DistributedType, FullyShardedDataParallelPlugin

        cpu = (os.environ.get("ENCYCLO_DEVICE") or device or "") == "cpu"
        # Some systems leave parameters out of a step (skipped layers, the other objective's): DDP has to look for them.
        handlers = [DistributedDataParallelKwargs(find_unused_parameters=True)]
        # The precision is the stage's own (TrainingConfig.precision), not the launcher's.
        self.accelerator = Accelerator(mixed_precision="no", cpu=cpu, kwargs_handlers=handlers)
        if self.accelerator.distributed_type == DistributedType.MULTI_CPU and _asked_for("ACCELERATE_USE_FSDP"):
            # On CPUs accelerate would quietly run DDP in the place of FSDP; torch itself can shard there.
            self.accelerator.state.fsdp_plugin = FullyShardedDataParallelPlugin()
            self.accelerator.state.distributed_type = DistributedType.FSDP
            PartialState._shared_state["distributed_type"] = DistributedType.FSDP  # every new state copies this one
        if self.accelerator.distributed_type == DistributedType.FSDP and not self.sharded:
            raise InputError("fsdp_version: 1 is not supported: set fsdp_version: 2 in the accelerate configuration")
        self.rank, self.world = self.accelerator.process_index, self.accelerator.num_processes
        self.device = self.accelerator.device
        if self.device.type == "cpu":
            self.device = torch.device("cpu")  # not "cpu:0", which torch takes for another place

    @property
    def main(self) -> bool:
        """Whether this process writes and speaks."""
        return self.rank == 0

    @property
    def sharded(self) -> bool:
        """Whether the launcher shards parameters (FSDP2)."""
        return self.accelerator is not None and bool(self.accelerator.is_fsdp2)

    def prepare(
        self, module: nn.Module, optimisers: Sequence[torch.optim.Optimizer]
    ) -> tuple[nn.Module, list[torch.optim.Optimizer]]:
        """The module as the launcher wants it run, and the optimisers over its parameters."""
        if self.accelerator is None:
            return module, list(optimisers)
        if self.sharded:
            self._unsharded = Unsharded(module)
        prepared, *wrapped = self.accelerator.prepare(module, *optimisers)
        # The inner optimisers: the wrappers only add accumulation, which the loop does by weights.
        return prepared, [w.optimizer for w in wrapped]

    def unsynchronised(self, module: nn.Module) -> AbstractContextManager[Any]:
        """Backward passes inside add to the local gradients only."""
        return nullcontext() if self.accelerator is None else self.accelerator.no_sync(module)

    def sum(self, numbers: Tensor) -> Tensor:
        """The sum over all processes, in place."""
        if self.world > 1:
            torch.distributed.all_reduce(numbers)
        return numbers

    def gather(self, value: Any) -> list[Any]:
        """A small value of every process, by rank."""
        if self.world == 1:
            return [value]
        values: list[Any] = [None] * self.world
        torch.distributed.all_gather_object(values, value)
        return values

    def share(self, value: Any) -> Any:
        """The main process's value, on all of them."""
        if self.world == 1:
            return value
        values = [value]
        torch.distributed.broadcast_object_list(values, src=0)
        return values[0]

    def collect(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Whole tensors out of all processes' shares, for the main process alone (one by one, on its CPU)."""
        if not self.sharded:
            return dict(tensors) if self.main else {}
        collected = {}
        for name, tensor in tensors.items():
            whole = full(tensor.detach())
            if self.main:
                collected[name] = whole.cpu()
        return collected

    def release(self, together: bool) -> None:
        """Let go of the prepared modules (and so of DDP's hooks).

        What was sharded is made whole and plain again, if all processes do so `together`.
        """
        if self.accelerator is not None:
            self.accelerator.free_memory()
        if self._unsharded is not None and together:
            self._unsharded.restore()
        self._unsharded = None

    @contextmanager
    def whole(self, module: nn.Module) -> Iterator[None]:
        """Inside, sharded parameters are whole on every process."""
        shards = self._shards(module)
        for part in shards:
            part.unshard()
        try:
            yield
        finally:
            for part in shards:
                part.reshard()

    def regather(self, module: nn.Module) -> None:
        """Inside `whole`: take over shares that have changed."""
        for part in self._shards(module):
            part.reshard()
            part.unshard()

    def _shards(self, module: nn.Module) -> list[Any]:
        if not self.sharded:
            return []
        from torch.distributed.fsdp import FSDPModule

        return [part for part in module.modules() if isinstance(part, FSDPModule)]
