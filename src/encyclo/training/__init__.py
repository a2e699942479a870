"""The fit loop: one trainer for every system."""

from encyclo.training.config import SGD, AdamW, Optimiser, Schedule, TrainingConfig
from encyclo.training.loss import Loss
from encyclo.training.trainer import History, Trainer

__all__ = ["SGD", "AdamW", "History", "Loss", "Optimiser", "Schedule", "Trainer", "TrainingConfig"]
