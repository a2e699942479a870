"""The commands as a user meets them: flags, exit statuses, one-line errors. What systems do is tested with each."""

import json
from pathlib import Path

import pytest
import typer.main

from encyclo import catalogue
from encyclo.cli import app, run
from encyclo.verbs import VERBS

FLAGS = {
    "list": {"--wing", "--json"},
    "show": {"--json"},
    "train": {"--data", "--preset", "--out", "--seed", "--resume"},
    "verify": {"--preset", "--seeds", "--json"},
    "doctor": {"--json"},
    "studio": {"--port", "--runs"},
}
VERB_FLAGS = {"--out", "--system", "--index", "--preset", "--json"}


def test_the_commands_and_their_flags_are_these() -> None:
    group = typer.main.get_command(app)
    commands = group.commands  # type: ignore[attr-defined]
    assert set(commands) == {*FLAGS, *VERBS, "data"}
    for name, command in commands.items():
        if name == "data":
            assert set(command.commands) == {"list", "show", "export"}
            continue
        flags = {flag for p in command.params for flag in p.opts if flag.startswith("--")} - {"--help"}
        assert flags == FLAGS.get(name, VERB_FLAGS), name


def told(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    status = run(list(words))
    captured = capsys.readouterr()
    return status, captured.out, captured.err.strip()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("list", "--wing", "poetry"), "none of text"),
        (("show", "hnrv"), "did you mean 'hnerv'"),
        (("train", "hnerv", "colour=3"), "no field 'colour'"),
        (("train", "hnerv", "steps"), "field=value"),
        (("train", "hnerv", "--preset", "huge"), "smoke, laptop, gpu, paper"),
        (("train", "mosaicbert", "--data", "/no/such/folder"), "/no/such/folder"),
        (("verify", "hnervv"), "did you mean 'hnerv'"),
        (("verify", "hnerv", "--preset", "paper"), "nothing to verify"),
        (("encode", "/no/such/run", "x"), "/no/such/run"),
        (("encode",), "needs a run folder"),
        (("compress", "clip.mp4", "--system", "mosaicbert"), "mosaicbert"),
        (("compress", "/no/clip.mp4", "--system", "hnerv"), "/no/clip.mp4"),
        (("data", "show", "kjw"), "kjv"),
        (("verfiy", "hnerv"), "verify"),
        (("train",), "slug"),
    ],
)
def test_bad_usage_is_one_line_and_status_2(
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    words: tuple[str, ...],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    status, out, err = told(capsys, *words)
    assert status == 2, err
    assert out == ""
    assert err.startswith("encyclo: ")
    assert "\n" not in err
    assert message.lower() in err.lower()
    assert not list(tmp_path.rglob("*.json")), "something was written"


@pytest.mark.parametrize("verb", ["encode", "decompress", "inspect", "search"])
@pytest.mark.parametrize("content", [b"", b"plain text", b"\x89PNG\r\n\x1a\n" + bytes(40)])
def test_a_file_that_is_no_run_is_refused(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, verb: str, content: bytes
) -> None:
    path = tmp_path / "thing.bin"
    path.write_bytes(content)
    status, _, err = told(capsys, verb, str(path), "x")
    assert status == 2
    assert "\n" not in err
    assert "thing.bin" in err or "run folder" in err or "container" in err.lower()


def test_a_folder_that_is_no_run_is_refused(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert "no saved system" in told(capsys, "encode", str(tmp_path), "x")[2]
    (tmp_path / "config.json").write_text("{broken")
    assert "damaged" in told(capsys, "encode", str(tmp_path), "x")[2]
    (tmp_path / "config.json").write_text('{"library_name": "other"}')
    assert "not written by encyclo" in told(capsys, "encode", str(tmp_path), "x")[2]


def test_a_run_folder_is_not_overwritten(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    status, _, err = told(capsys, "train", "hnerv", "--preset", "smoke", "--out", str(tmp_path))
    assert status == 2
    assert "not empty" in err
    assert [p.name for p in tmp_path.iterdir()] == ["notes.txt"]
    status, _, err = told(
        capsys, "train", "cae", "--preset", "smoke", "--out", str(tmp_path / "odd"), "encoder.patch=5"
    )
    assert (status, "5" in err) == (2, True)
    assert not (tmp_path / "odd").exists(), "a refused training left something behind"
    assert "nothing to resume" in told(capsys, "train", "hnerv", "--out", str(tmp_path / "new"), "--resume")[2]


def test_json_is_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert {card["slug"] for card in json.loads(told(capsys, "list", "--json")[1])} == set(catalogue.cards())
    assert json.loads(told(capsys, "show", "hnerv", "--json")[1])["arxiv"] == "2304.02633"
    assert any(pack["name"] == "kjv" for pack in json.loads(told(capsys, "data", "list", "--json")[1]))
    assert json.loads(told(capsys, "doctor", "--json")[1])["versions"]["torch"]


def test_train_save_and_use_from_the_command_line(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    status, out, err = told(capsys, "train", "mosaicbert", "--preset", "smoke", "--out", "mine", "training.steps=4")
    assert status == 0, err
    assert "saved in mine" in out
    recorded = json.loads((tmp_path / "mine" / "run.json").read_text())
    assert recorded["config"]["training"]["steps"] == 4
    status, out, err = told(capsys, "fill", "mine", "In the [MASK] God created the heaven", "top=3", "--json")
    assert status == 0, err
    assert len(json.loads(out)["results"][0]["value"]) == 3
    status, out, err = told(capsys, "encode", "mine", "In the beginning", "God", "-o", "vectors.npy")
    assert status == 0, err
    assert (tmp_path / "vectors.npy").is_file()
    status, _, err = told(capsys, "encode", "mine", "In the beginning", "-o", "vectors.docx")
    assert status == 2
    assert ".parquet" in err
    assert not (tmp_path / "vectors.docx").exists()
    status, _, err = told(capsys, "fill", "mine", "no mask here")
    assert (status, "[MASK]" in err) == (2, True)
    status, _, err = told(capsys, "compress", "mine", "x")
    assert (status, "cannot 'compress'" in err) == (2, True)
    status, out, err = told(capsys, "train", "mosaicbert", "--out", "mine", "--resume")
    assert status == 0, err
