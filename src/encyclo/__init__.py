"""Encyclo: published encoders as one library. Importing it loads neither torch nor any system."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from encyclo.catalogue import cards
    from encyclo.config import Config
    from encyclo.data import load
    from encyclo.errors import InputError
    from encyclo.experiment import verify
    from encyclo.sampling.encoder_propagation import accelerate_sampling
    from encyclo.system import System
    from encyclo.system import open_system as open
    from encyclo.training import Trainer

_WHERE = {
    "Config": ("encyclo.config", "Config"),
    "InputError": ("encyclo.errors", "InputError"),
    "System": ("encyclo.system", "System"),
    "Trainer": ("encyclo.training", "Trainer"),
    "accelerate_sampling": ("encyclo.sampling.encoder_propagation", "accelerate_sampling"),
    "cards": ("encyclo.catalogue", "cards"),
    "load": ("encyclo.data", "load"),
    "open": ("encyclo.system", "open_system"),
    "verify": ("encyclo.experiment", "verify"),
}

__all__ = [
    "Config",
    "InputError",
    "System",
    "Trainer",
    "__version__",
    "accelerate_sampling",
    "cards",
    "load",
    "open",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name in _WHERE:
        module, attribute = _WHERE[name]
        return getattr(import_module(module), attribute)
    raise AttributeError(f"module 'encyclo' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted(__all__)
