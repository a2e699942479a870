"""FSDP2 undone: modules whole and plain again after a stage, for saving, use, and the next stage."""

from typing import Any

from torch import nn

from encyclo.training.averaging import full

_MARKS = ("_is_fsdp_managed_module", "_fsdp_use_orig_params")


class Unsharded:
    """Remembers modules as they are before `fully_shard`, which torch has no way to take back."""

    def __init__(self, module: nn.Module) -> None:
        self._before = [(part, type(part), _hooks(part)) for part in module.modules()]

    def restore(self) -> None:
        """Whole parameters, the classes and hooks of before; all processes together."""
        from torch.distributed import _composable_state
        from torch.distributed._composable.contract import REGISTRY_KEY, STATE_KEY

        whole: dict[int, nn.Parameter] = {}  # a parameter used in two places stays one
        for part, kind, _ in self._before:
            reshard = getattr(part, "reshard", None)
            if type(part) is not kind and callable(reshard):
                reshard()
        for part, _, _ in self._before:
            for name, p in list(part._parameters.items()):
                if p is not None and hasattr(p, "full_tensor"):
                    if id(p) not in whole:
                        whole[id(p)] = nn.Parameter(full(p.detach()).clone(), requires_grad=p.requires_grad)
                    part._parameters[name] = whole[id(p)]
        for part, kind, hooks in self._before:
            part.__class__ = kind
            for name, value in hooks.items():
                part.__dict__[name] = value
            for mark in (STATE_KEY, REGISTRY_KEY, *_MARKS):
                part.__dict__.pop(mark, None)
            _composable_state._module_state_mapping.pop(part, None)


def _hooks(module: nn.Module) -> dict[str, Any]:
    return {name: value.copy() for name, value in module.__dict__.items() if "hook" in name and isinstance(value, dict)}
