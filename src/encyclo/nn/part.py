"""The base of every layer: a module described whole by a nested configuration."""

from typing import Any, ClassVar

import torch
from torch import nn

from encyclo.config import Config


class PartConfig(Config):
    """Configuration of a part; `build()` makes it.

    What only the place of use knows (a width given by the parent, say) is passed to `build` as context and may not
    repeat a field: a configuration stays the whole description.
    """

    _part: ClassVar[type["Part"]]

    def build(self, **context: Any) -> Any:
        """The part, with `context` handed to its constructor beside this configuration."""
        clash = sorted(set(context) & set(type(self).model_fields))
        if clash:
            raise TypeError(f"{type(self).__qualname__}.build: {', '.join(clash)} is a field, not context")
        return self._part(self, **context)


class Part(nn.Module):
    """A module with a nested `Config(PartConfig)` and one method that gives it all its initial values.

    A subclass that takes no configuration of its own inherits its parent's.
    """

    Config: ClassVar[type[PartConfig]] = PartConfig

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        own = cls.__dict__.get("Config")
        if own is None:
            return
        if not (isinstance(own, type) and issubclass(own, PartConfig)):
            raise TypeError(f"{cls.__name__}.Config must derive from PartConfig")
        if not own.model_config.get("frozen"):
            raise TypeError(f"{cls.__name__}.Config must be frozen")
        own._part = cls

    def init_weights(self) -> None:
        """Draw all parameters and rebuild all derived buffers, children first.

        Works on a part that was built on the `meta` device and then moved with `to_empty`.
        """
        _init_children(self)
        self.init_own()

    def init_own(self) -> None:
        """What this part sets beyond its children's defaults; override it (initial scales, position tables ...)."""


def _init_children(module: nn.Module) -> None:
    for child in module.children():
        if isinstance(child, Part):
            child.init_weights()
            continue
        reset: Any = getattr(child, "reset_parameters", None)
        if callable(reset):
            reset()
        _init_children(child)


def materialise(part: Part, device: torch.device | str = "cpu") -> Part:
    """Give a part built on `meta` real storage on `device` and its initial values."""
    part.to_empty(device=device)
    with torch.no_grad():
        part.init_weights()
    return part


def parameter_count(module: nn.Module, *, trainable: bool = False) -> int:
    """Number of parameters, shared ones once; works on `meta`."""
    return sum(p.numel() for p in module.parameters() if p.requires_grad or not trainable)
