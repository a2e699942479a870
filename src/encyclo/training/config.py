"""Every number of a training stage."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from encyclo.config import Config


class AdamW(Config):
    """Adam with decoupled weight decay (Loshchilov & Hutter 2019, arXiv 1711.05101); decay 0 is Adam.

    With `decay_by="schedule"` the decay is not multiplied by the learning rate itself but by lr_t / lr_peak:
    `theta -= (lr_t / lr_peak) * weight_decay * theta` (MosaicBERT's "decoupled" variant).
    """

    kind: Literal["adamw"] = "adamw"
    lr: float = Field(1e-3, gt=0)
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = Field(0.0, ge=0)
    decay_by: Literal["lr", "schedule"] = "lr"
    decay_vectors: bool = Field(False, description="also decay biases, norms and other tensors of one dimension")


class SGD(Config):
    """Stochastic gradient descent with momentum."""

    kind: Literal["sgd"] = "sgd"
    lr: float = Field(0.1, gt=0)
    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = Field(0.0, ge=0)


Optimiser = Annotated[AdamW | SGD, Field(discriminator="kind")]


class Schedule(Config):
    """Learning-rate factor over the progress u in [0, 1] of the budget (steps or seconds).

    For u < warmup the factor rises linearly from `start` to 1; after it the shape falls from 1 to `final`:
    constant, linear, cosine, or exponential (`final` reached geometrically).
    """

    shape: Literal["constant", "linear", "cosine", "exponential"] = "cosine"
    warmup: float = Field(0.0, ge=0, lt=1, description="fraction of the budget")
    start: float = Field(0.0, ge=0, le=1, description="factor at the very first step")
    final: float = Field(0.0, ge=0, le=1, description="factor at the end")


class TrainingConfig(Config):
    """Budget, optimiser and habits of one call of `Trainer.fit`. The budget is steps OR seconds, not both."""

    alternatives = ("steps", "seconds")

    steps: int | None = Field(None, ge=1)
    seconds: float | None = Field(None, gt=0)
    batch_size: int = Field(64, ge=1, description="global: over all processes and accumulated micro-batches")
    accumulate: int = Field(1, ge=1, description="micro-batches per step; batch_size is split among them")
    optimiser: Optimiser = AdamW()
    optimisers: dict[str, Optimiser] = Field(
        default_factory=dict, description="per objective, where a stage has several (adversarial training)"
    )
    schedule: Schedule = Schedule()
    precision: Literal["fp32", "bf16"] = "fp32"
    clip: float | None = Field(None, gt=0, description="largest gradient norm")
    ema: float | None = Field(None, gt=0, lt=1, description="decay of the running average of weights; None: off")
    log_every: int = Field(10, ge=1, description="steps between two points of the curves")
    evaluate_every: int | None = Field(None, ge=1, description="steps between two evaluations on held-out data")
    checkpoint_seconds: float = Field(60.0, ge=0, description="least time between two checkpoints; 0: every step")
    keep_checkpoints: int = Field(2, ge=1)

    @model_validator(mode="after")
    def _one_budget(self) -> "TrainingConfig":
        if (self.steps is None) == (self.seconds is None):
            raise ValueError("give a budget: either steps or seconds")
        if self.batch_size % self.accumulate:
            raise ValueError(f"batch_size {self.batch_size} is not a multiple of accumulate {self.accumulate}")
        return self
