"""Trainings killed without warning and gone on with, against one that ran through."""

import multiprocessing
import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from training.jobs import lines, same, train_in_child

STEP = 0.004  # seconds, so that there is time to be killed in
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["torch", "numpy", "safetensors.torch", "pydantic", "jaxtyping", "rich"])
MIB = 1 << 20


def start(folder: Path, **options: Any):
    process = PROCESSES.Process(target=train_in_child, args=(folder,), kwargs=options)
    process.start()
    return process


def finish(folder: Path, **options: Any) -> dict[str, Any]:
    out = folder.with_suffix(".pt")
    process = start(folder, out=out, **options)
    process.join(60)
    assert process.exitcode == 0, Path(f"{folder}.log").read_text()
    return torch.load(out, weights_only=False)


def checkpoints(folder: Path) -> list[Path]:
    return list((folder / "checkpoints").glob("[a-z]*-*"))


def wait_for(condition, process, seconds: float = 30.0) -> bool:
    """Whether the condition came true before the process ended."""
    end = time.monotonic() + seconds
    while time.monotonic() < end and process.is_alive():
        if condition():
            return True
        time.sleep(0.0002)
    return False


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The run that nothing interrupts."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    result = finish(folder, ballast=8 * MIB)
    return result, lines(folder)


def test_killed_at_random_moments_it_ends_as_if_nothing_had_happened(tmp_path, whole):
    dice = random.Random(7)
    folder = tmp_path / "run"
    kills, resume = 0, False
    while kills < 6:
        process = start(folder, ballast=8 * MIB, seconds_per_step=STEP, resume=resume)
        metrics = folder / "metrics.jsonl"
        before = metrics.stat().st_mtime_ns if metrics.exists() else None
        # Not before it has come to train again, or it would never get anywhere.
        wait_for(lambda: metrics.exists() and metrics.stat().st_mtime_ns != before, process)  # noqa: B023
        process.join(dice.uniform(0.0, 0.2))
        if process.exitcode is not None:
            assert process.exitcode == 0, Path(f"{folder}.log").read_text()
            break
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        assert process.exitcode == -signal.SIGKILL
        kills, resume = kills + 1, True
    assert kills >= 3
    result = finish(folder, ballast=8 * MIB, resume=True)
    assert same(result, whole[0])
    assert lines(folder) == whole[1]


def test_killed_in_the_middle_of_writing_a_checkpoint(tmp_path, whole):
    folder = tmp_path / "run"
    resume = False
    caught = 0
    for _ in range(3):
        stale = {path.name for path in folder.glob("checkpoints/*")}
        process = start(folder, ballast=8 * MIB, seconds_per_step=STEP, resume=resume)

        def writing(stale: set[str] = stale) -> bool:
            """A temporary folder of this life, after it has finished a checkpoint."""
            fresh = {path.name for path in folder.glob("checkpoints/*")} - stale
            return len(fresh) > 1 and any(name.startswith(".writing-") for name in fresh)

        if not wait_for(writing, process):
            break
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        caught += bool(list(folder.glob("checkpoints/.writing-*")))  # else it was renamed in the last instant
        resume = True
    assert caught >= 1
    result = finish(folder, ballast=8 * MIB, resume=True)
    assert same(result, whole[0])
    assert lines(folder) == whole[1]
    assert not list(folder.glob("checkpoints/.*"))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_it_saves_says_how_to_go_on_and_exits(tmp_path, whole, number):
    folder = tmp_path / "run"
    process = start(folder, ballast=8 * MIB, seconds_per_step=STEP)
    assert wait_for(lambda: (folder / "metrics.jsonl").exists(), process)
    os.kill(process.pid, number)
    process.join(30)
    assert process.exitcode == 128 + number
    log = Path(f"{folder}.log").read_text()
    assert "Traceback" not in log
    step = int(log.split("stopped at step ")[1].split()[0])
    assert f"checkpoint {folder}/checkpoints/first-{step}" in log
    assert "--resume goes on from there" in log
    result = finish(folder, ballast=8 * MIB, resume=True)
    assert f"goes on from step {step}" in Path(f"{folder}.log").read_text()
    assert same(result, whole[0])
    assert lines(folder) == whole[1]


def test_a_full_disk_keeps_the_last_good_checkpoint(tmp_path, whole):
    """A limit on the size of files stands for the disk; it rises above the ballast only after the first stage."""
    folder = tmp_path / "run"
    out = tmp_path / "said"
    process = start(folder, out=out, ballast=8 * MIB, seconds_per_step=STEP)
    assert wait_for(lambda: checkpoints(folder), process)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    kept = sorted(path.name for path in checkpoints(folder))
    process = start(folder, out=out, ballast=8 * MIB, resume=True, limit=MIB)
    process.join(60)
    said = out.read_text()
    assert said.startswith("TrainingStopped: stage 'first': File too large (writing a checkpoint at step ")
    assert f"the last good checkpoint is {folder}/checkpoints/{kept[-1]}; free some space, then resume" in said
    assert sorted(path.name for path in checkpoints(folder)) == kept
    assert not list(folder.glob("checkpoints/.*"))
    result = finish(folder, ballast=8 * MIB, resume=True)
    assert same(result, whole[0])
    assert lines(folder) == whole[1]
