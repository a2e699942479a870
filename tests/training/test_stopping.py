import os
import shutil
import subprocess

import pytest
import torch
from torch import nn

from encyclo.errors import TrainingStopped
from encyclo.training import SGD, Loss, Trainer, TrainingConfig


def fit(folder, loss, *, resume: bool = False, model: nn.Module | None = None, **settings):
    model = model or nn.Linear(2, 1)
    trainer = Trainer(folder, device="cpu", resume=resume)
    config = TrainingConfig(**{"steps": 20, "checkpoint_seconds": 0.0, **settings})
    return trainer.fit(model, lambda b: loss(model, b), [torch.tensor([[float(i), 1.0]]) for i in range(20)], config)


def goes_bad(value: float):
    def loss(model, batch):
        return Loss(model(batch).square().mean() * (value if batch[0, 0] == 7 else 1.0))

    return loss


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_stops_before_it_spoils_anything(tmp_path, value):
    model = nn.Linear(2, 1)
    with pytest.raises(TrainingStopped) as caught:
        fit(tmp_path, goes_bad(value), model=model)
    said = str(caught.value)
    assert said.startswith(
        f"stage 'fit': the loss is {value} at step 8; the last good checkpoint is {tmp_path}/checkpoints/fit-7;"
    )
    assert "clip=1.0" in said
    assert all(p.isfinite().all() for p in model.parameters())
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["fit-6", "fit-7"]


def test_it_names_the_objective_and_says_when_nothing_was_kept():
    model = nn.Linear(2, 1)
    losses = {"good": lambda b: Loss(model(b).mean()), "bad": lambda b: Loss(model(b).mean() / 0)}
    parameters = {"good": model.parameters(), "bad": model.parameters()}
    with pytest.raises(
        TrainingStopped, match=r"the loss of 'bad' is -?(inf|nan) at step 1; there is no checkpoint yet"
    ):
        Trainer(device="cpu").fit(model, losses, [torch.ones(1, 2)], TrainingConfig(steps=2), parameters=parameters)


def test_a_gradient_that_is_not_finite_never_reaches_the_disk(tmp_path):
    def loss(model, batch):
        output = model(batch).square().mean()
        if batch[0, 0] == 7:
            output = output + (output * 0).sqrt()  # 0, with an infinite slope
        return Loss(output)

    with pytest.raises(
        TrainingStopped, match=r"the weights are not finite after step 8; the last good checkpoint is .*fit-7"
    ):
        fit(tmp_path, loss, optimiser=SGD(lr=0.01))
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["fit-6", "fit-7"]


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 2 MB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = shutil.which("mount")
    if mount is None or os.geteuid() != 0:
        pytest.skip("needs the right to mount")
    if subprocess.run([mount, "-t", "tmpfs", "-o", "size=2m", "none", disk], capture_output=True).returncode:
        pytest.skip("needs the right to mount")
    yield disk
    subprocess.run(["umount", "--lazy", disk], check=True)


def test_a_disk_that_is_full(small_disk):
    class Growing(nn.Linear):
        """A model that takes half of the disk, so that a second checkpoint has no room."""

        def __init__(self) -> None:
            super().__init__(2, 1)
            self.register_buffer("ballast", torch.zeros(300_000))

    def loss(model, batch):
        return Loss(model(batch).square().mean())

    with pytest.raises(TrainingStopped) as caught:
        fit(small_disk / "run", loss, model=Growing())
    assert str(caught.value) == (
        f"stage 'fit': the disk is full (writing a checkpoint at step 2); the last good checkpoint is"
        f" {small_disk}/run/checkpoints/fit-1; free some space, then resume"
    )
    assert [path.name for path in (small_disk / "run" / "checkpoints").iterdir()] == ["fit-1"]

    filler = small_disk / "filler"
    with pytest.raises(OSError, match="No space left"):
        filler.write_bytes(bytes(2_000_000))
    with pytest.raises(TrainingStopped, match=r"the disk is full \(writing .* at step 2\)"):
        fit(small_disk / "run", loss, model=Growing(), resume=True)
