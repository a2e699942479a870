"""Saving and opening, on a real small system."""

import json
from pathlib import Path

import pytest
import torch

from encyclo import experiment as engine
from encyclo.errors import InputError
from encyclo.system import System, open_system


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    config = next(iter(engine.declared("faster-diffusion", "smoke").systems.values()))
    folder: Path = config.build().save_pretrained(tmp_path_factory.mktemp("run"), results={"kid": 0.5})
    return folder


def copied(saved: Path, target: Path) -> Path:
    target.mkdir()
    for path in saved.iterdir():
        (target / path.name).write_bytes(path.read_bytes())
    return target


def test_the_folder_has_hub_layout(saved: Path) -> None:
    assert {p.name for p in saved.iterdir()} == {"config.json", "model.safetensors", "README.md", "labels.json"}
    described = json.loads((saved / "config.json").read_text())
    assert described["library_name"] == "encyclo"
    assert described["system"] == "faster-diffusion"
    card = (saved / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: encyclo\n")
    assert "| kid | 0.5 |" in card


def test_opening_gives_the_object_alone_and_equal(saved: Path) -> None:
    first, second = open_system(saved), open_system(saved)
    assert isinstance(first, System)
    assert not first.training
    assert first.fingerprint() == second.fingerprint()
    with torch.no_grad():
        next(second.parameters()).add_(1)
    assert first.fingerprint() != second.fingerprint()


def test_damage_is_refused_in_one_line(saved: Path, tmp_path: Path) -> None:
    cut = copied(saved, tmp_path / "cut")
    whole = (cut / "model.safetensors").read_bytes()
    (cut / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match="does not fit"):
        open_system(cut)
    lacking = copied(saved, tmp_path / "lacking")
    (lacking / "labels.json").unlink()
    with pytest.raises(InputError, match=r"lacks labels\.json"):
        open_system(lacking)
    other = copied(saved, tmp_path / "other")
    described = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**described, "class": "Nothing"}))
    with pytest.raises(InputError, match="no class 'Nothing'"):
        open_system(other)
    (other / "config.json").write_text(json.dumps({**described, "system": "nothing"}))
    with pytest.raises(InputError, match="no system is called"):
        open_system(other)
    wrong = {**described, "config": {**described["config"], "image_size": 64, "fold": 1}}
    (other / "config.json").write_text(json.dumps(wrong))
    with pytest.raises(InputError, match="does not fit"):
        open_system(other)


def test_saving_over_a_run_keeps_other_files(saved: Path, tmp_path: Path) -> None:
    run = copied(saved, tmp_path / "run")
    (run / "metrics.jsonl").write_text("{}\n")
    open_system(saved).save_pretrained(run)
    assert (run / "metrics.jsonl").read_text() == "{}\n"
    assert not list(run.glob(".saving-*"))


def test_an_unbuildable_name_is_no_hub_lookup(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no run folder"):
        open_system(tmp_path / "missing")
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="is a file"):
        open_system(tmp_path / "file")
