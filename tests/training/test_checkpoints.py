import json
import os
import shutil
import time

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from encyclo.errors import InputError
from encyclo.training import SGD, AdamW, Loss, Trainer, TrainingConfig
from encyclo.training import checkpoint as files
from training.jobs import CONFIG, Net, Positions, lines, noisy_loss, same, train

SAVING = CONFIG.replace(steps=12, checkpoint_seconds=0.0, keep_checkpoints=3, log_every=5, evaluate_every=None)


def test_state_and_tensors_come_back_as_they_were(tmp_path):
    shared = torch.arange(6.0)
    tensors = {
        "model": {"a": torch.randn(3, 2).T, "b": shared[:2], "c": shared[2:], "d": torch.tensor(4, dtype=torch.int64)}
    }
    state = {"step": 7, "nested": [{"noise": torch.rand(4)}, None, 0.1, float("inf")], "words": torch.arange(3)}
    path = files.write(tmp_path / "checkpoints", "fit-7", tensors, state)
    assert sorted(p.name for p in path.iterdir()) == ["model.safetensors", "optimiser.safetensors", "state.json"]
    read = files.read(path)
    assert read["step"] == 7
    assert read["nested"][1:] == [None, 0.1, float("inf")]
    assert torch.equal(read["nested"][0]["noise"], state["nested"][0]["noise"])
    assert same(files.tensors(path, "model"), tensors["model"])
    json.loads((path / "state.json").read_text())


def damage_cut(path):
    with open(path / "model.safetensors", "r+b") as file:
        file.truncate(100)


def damage_bit(path):
    with open(path / "optimiser.safetensors", "r+b") as file:
        file.seek(-3, os.SEEK_END)
        byte = file.read(1)
        file.seek(-3, os.SEEK_END)
        file.write(bytes([byte[0] ^ 1]))


def damage_state(path):
    text = (path / "state.json").read_text()
    (path / "state.json").write_text(text.replace('"step": 12', '"step": 13'))


def damage_half(path):
    text = (path / "state.json").read_text()
    (path / "state.json").write_text(text[: len(text) // 2])


def damage_gone(path):
    (path / "model.safetensors").unlink()


def damage_empty(path):
    for file in path.iterdir():
        file.unlink()


@pytest.mark.parametrize("damage", [damage_cut, damage_bit, damage_state, damage_half, damage_gone, damage_empty])
def test_a_damaged_checkpoint_is_skipped_for_the_one_before(tmp_path, capfd, damage):
    whole = train(tmp_path / "run", config=SAVING)
    assert [p.name for p in files.found(tmp_path / "run" / "checkpoints", "first")] == [
        "first-12",
        "first-11",
        "first-10",
    ]
    written = lines(tmp_path / "run")
    damage(tmp_path / "run" / "checkpoints" / "first-12")
    capfd.readouterr()
    again = train(tmp_path / "run", config=SAVING, resume=True)
    said = capfd.readouterr().err
    assert said.count(" is damaged (") == 1
    assert "first-12 is damaged (" in said
    assert "goes on from step 11" in said
    assert same(again, whole)
    assert sorted(lines(tmp_path / "run"), key=lambda line: (line["stage"], line["step"])) == written


def test_what_a_killed_run_left_is_cleared_away(tmp_path):
    train(tmp_path / "run", config=SAVING)
    root = tmp_path / "run" / "checkpoints"
    for name in (".writing-first-40", ".removing-first-3"):
        shutil.copytree(root / "first-12", root / name)
        (root / name / "state.json").unlink()
    with open(tmp_path / "run" / "metrics.jsonl", "a") as file:
        file.write('{"stage": "second", "step": 29, "se')
    whole = lines_before = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[:-1]
    train(tmp_path / "run", config=SAVING, resume=True)
    assert not [p for p in root.iterdir() if p.name.startswith(".")]
    assert (tmp_path / "run" / "metrics.jsonl").read_text().splitlines() == whole == lines_before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"optimiser": AdamW(lr=0.5, weight_decay=0.1)},
            r"optimiser\.lr=0\.5, but checkpoint .*first-12 was made with optimiser\.lr=0\.01",
        ),
        ({"optimiser": SGD(lr=1e-2)}, r"optimiser\.kind=sgd, but .* optimiser\.kind=adamw"),
        ({"steps": 13}, "steps=13, but checkpoint .* steps=12"),
        ({"clip": None}, r"clip=None, but checkpoint .* clip=1\.0"),
        ({"seed": 4}, "seed=4, but checkpoint .* seed=3"),
    ],
)
def test_another_configuration_is_refused_by_name(tmp_path, change, message):
    train(tmp_path, config=SAVING)
    before = (tmp_path / "metrics.jsonl").read_bytes()
    seed = change.get("seed", 3)
    config = SAVING.replace(**{name: value for name, value in change.items() if name != "seed"})
    with pytest.raises(InputError, match=f"stage 'first': {message}: resume with that, or start in another folder"):
        train(tmp_path, config=config, resume=True, seed=seed)
    assert (tmp_path / "metrics.jsonl").read_bytes() == before


def test_habits_of_saving_may_change(tmp_path):
    whole = train(tmp_path, config=SAVING)
    assert same(train(tmp_path, config=SAVING.replace(checkpoint_seconds=9.0, keep_checkpoints=1), resume=True), whole)


def test_another_model_is_refused(tmp_path):
    def fit(model: nn.Module, resume: bool) -> None:
        trainer = Trainer(tmp_path, resume=resume, device="cpu")
        trainer.fit(model, lambda b: Loss(model(b).mean()), [torch.ones(2, 3)], TrainingConfig(steps=2))

    fit(nn.Linear(3, 2), False)
    with pytest.raises(InputError, match=r"of another model .*differ in 'weight'"):
        fit(nn.Linear(3, 5), True)
    with pytest.raises(InputError, match=r"of another model .*differ in '0\.bias'"):
        fit(nn.Sequential(nn.Linear(3, 2)), True)


def test_a_folder_with_a_run_is_not_written_over(tmp_path):
    train(tmp_path, config=SAVING)
    with pytest.raises(InputError, match=r"holds a run already .*resume it, or choose another folder"):
        train(tmp_path, config=SAVING)
    with pytest.raises(InputError, match="cannot write to"):
        Trainer(tmp_path / "metrics.jsonl" / "below")


def test_resuming_where_there_is_nothing_starts_from_the_beginning(tmp_path, capfd):
    fresh = train(tmp_path / "a", config=SAVING, resume=True)
    assert "there is no checkpoint in" in capfd.readouterr().err
    assert same(fresh, train(tmp_path / "b", config=SAVING))
    assert same(fresh, train(None, config=SAVING))


def test_a_finished_run_resumes_to_the_same_end_without_a_step(tmp_path):
    whole = train(tmp_path, config=SAVING)

    def never(step: int) -> None:
        raise AssertionError

    before = lines(tmp_path)
    assert same(train(tmp_path, config=SAVING, resume=True, before_step=never), whole)
    assert lines(tmp_path) == before


def test_the_weights_on_disk_are_the_models_own_names(tmp_path):
    net = Net()
    trainer = Trainer(tmp_path, device="cpu")
    trainer.fit(net, noisy_loss(trainer, net), Positions(), TrainingConfig(steps=3, ema=0.5))
    stored = load_file(tmp_path / "checkpoints" / "fit-3" / "model.safetensors")
    assert same(stored, dict(net.state_dict()))
    assert (
        set(load_file(tmp_path / "checkpoints" / "fit-3" / "average.safetensors"))
        == dict(net.named_parameters()).keys()
    )


def test_tied_weights_are_stored_once_and_stay_tied(tmp_path):
    def fit(resume: bool) -> nn.ModuleDict:
        torch.manual_seed(0)
        model = nn.ModuleDict({"embed": nn.Embedding(5, 4), "head": nn.Linear(4, 5, bias=False)})
        model["head"].weight = model["embed"].weight

        def loss(batch):
            return Loss(nn.functional.cross_entropy(model["head"](model["embed"](batch)), batch))

        config = TrainingConfig(steps=6, checkpoint_seconds=0)
        Trainer(tmp_path, resume=resume, device="cpu").fit(model, loss, [torch.arange(5)], config)
        return model

    first = fit(False)
    assert list(load_file(tmp_path / "checkpoints" / "fit-5" / "model.safetensors")) == ["embed.weight"]
    shutil.rmtree(tmp_path / "checkpoints" / "fit-6")
    second = fit(True)
    assert second["head"].weight is second["embed"].weight
    assert torch.equal(first["embed"].weight, second["embed"].weight)


def test_a_budget_of_seconds_goes_on_where_its_clock_stood(tmp_path):
    def fit(resume: bool, stop: bool) -> float:
        net = Net()
        trainer = Trainer(tmp_path, resume=resume, device="cpu", progress=False)
        shares = []

        def after(step: int) -> None:
            time.sleep(0.01)
            shares.append(trainer.done)
            if stop and trainer.done > 0.6:
                raise KeyboardInterrupt

        config = TrainingConfig(seconds=0.8, checkpoint_seconds=0.05)
        try:
            history = trainer.fit(net, noisy_loss(trainer, net), Positions(), config, after_step=after)
        except KeyboardInterrupt:
            return shares[-1]
        assert 0.8 <= history.seconds < 1.0
        return shares[0]

    stopped = fit(False, True)
    assert 0.4 < fit(True, False) <= stopped + 0.1
