"""Two processes on this machine, started as a user starts them, against one."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from training.launched import one_goes_bad, two_stages

ROOT = Path(__file__).parents[2]


def launch(out: Path, config: Path) -> list[dict[str, Any]]:
    out.mkdir(exist_ok=True)
    environment = {**os.environ, "ENCYCLO_DEVICE": "cpu", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT / "tests"), environment.get("PYTHONPATH", "")])
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(config)]
    command += ["--num_processes", "2", "--main_process_port", "0", "-m", "training.launched", str(out)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-6000:]
    (out / "log").write_text(done.stderr)
    return [json.loads((out / f"result-{rank}.json").read_text()) for rank in (0, 1)]


def close(one: Any, other: Any) -> None:
    """Equal to float tolerance, however nested."""
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        for name in one:
            close(one[name], other[name])
    elif one and isinstance(one[0], int | float):
        assert one == pytest.approx(other, rel=2e-4, abs=2e-6)
    else:
        for a, b in zip(one, other, strict=True):
            close(a, b)


def without_logs(result: dict[str, Any]) -> dict[str, Any]:
    """`seen` is a mean over each micro-batch that ignores the weights: cut otherwise, it is another number."""
    result["fit"]["curves"].pop("seen")
    return result


@pytest.fixture(scope="module")
def single(monkeypatch_module):
    return without_logs(two_stages(None))


@pytest.fixture(scope="module")
def monkeypatch_module():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ENCYCLO_DEVICE", "cpu")
        yield patch


def check(results: list[dict[str, Any]], single: dict[str, Any], out: Path) -> None:
    first, second = results
    close(without_logs(first["plain"]), single)
    assert first["resumed"] == first["noisy"]  # to the bit
    assert without_logs(second["plain"])["fit"]["weights"] == first["plain"]["fit"]["weights"]
    for result in results:
        assert result["bad"] == (
            "stage 'fit': the loss is nan at step 3; there is no checkpoint yet; a lower learning rate, a longer"
            " warm-up or clipping (clip=1.0) may help"
        )
    assert first["plain"]["fit"]["weights"] != first["noisy"]["fit"]["weights"]
    # One process takes the checkpoints of two, and goes on.
    shutil.rmtree(out / "plain" / "checkpoints" / "fit-10")
    for path in (out / "plain" / "checkpoints").glob("game-*"):
        shutil.rmtree(path)
    close(without_logs(two_stages(out / "plain", resume=True)), single)


def test_one_process_needs_no_launcher(single):
    assert single["game"]["curves"]["make/loss"]
    assert "loss is 0.0" not in one_goes_bad()


@pytest.mark.slow
def test_two_processes_under_ddp_equal_one(tmp_path, single, capfd):
    results = launch(tmp_path / "out", ROOT / "configs" / "accelerate" / "ddp.yaml")
    assert [(r["world"], r["sharded"], r["device"]) for r in results] == [(2, False, "cpu")] * 2
    check(results, single, tmp_path / "out")
    said = capfd.readouterr().err
    assert "the checkpoint was made by 2 processes, there are 1 now" in said


@pytest.mark.slow
def test_two_processes_under_fsdp2_equal_one(tmp_path, single):
    config = (ROOT / "configs" / "accelerate" / "fsdp2.yaml").read_text()
    wrapped = tmp_path / "fsdp2.yaml"
    wrapped.write_text(config.replace("NO_WRAP", "TRANSFORMER_BASED_WRAP\n  fsdp_transformer_layer_cls_to_wrap: Block"))
    results = launch(tmp_path / "out", wrapped)
    assert [(r["world"], r["sharded"], r["device"]) for r in results] == [(2, True, "cpu")] * 2
    check(results, single, tmp_path / "out")


@pytest.mark.parametrize("name", ["single_device", "ddp", "fsdp2", "multi_node"])
def test_the_configurations_are_ones_accelerate_reads(name):
    from accelerate.commands.config.config_args import load_config_from_file

    config = load_config_from_file(str(ROOT / "configs" / "accelerate" / f"{name}.yaml"))
    kind = {"single_device": "NO", "ddp": "MULTI_GPU", "fsdp2": "FSDP", "multi_node": "MULTI_GPU"}[name]
    assert config.distributed_type == kind
    assert config.mixed_precision == "no"
    from accelerate.commands.launch import launch_command_parser

    known = vars(launch_command_parser().parse_args(["script.py"]))
    assert set(config.fsdp_config or {}) <= set(known)
