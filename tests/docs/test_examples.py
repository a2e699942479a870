"""The examples of the documentation: commands name what exists, Python runs."""

import ast
import inspect
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer.main

from encyclo import catalogue
from encyclo import experiment as engine
from encyclo.cli import _ASSIGNMENT, app
from encyclo.verbs import VERBS, method_name

ROOT = Path(__file__).parents[2]
PAGES = sorted([ROOT / "README.md", *ROOT.glob("docs/*.md"), *ROOT.glob("docs/texts/*.md")])
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def blocks(page: Path, language: str) -> list[str]:
    return [body for kind, body in BLOCK.findall(page.read_text(encoding="utf-8")) if kind == language]


def commands() -> Iterator[tuple[str, list[str]]]:
    """Every call of encyclo in the pages, as (page, words)."""
    for page in PAGES:
        for body in blocks(page, "bash"):
            for line in body.replace("\\\n", " ").splitlines():
                for part in re.split(r"&&|;", line):
                    words = shlex.split(part, comments=True)
                    if "-m" in words and "encyclo" in words:
                        words = words[words.index("encyclo") :]
                    while words and "=" in words[0] and words[0].split("=")[0].isupper():
                        words = words[1:]
                    if words and words[0] == "encyclo":
                        yield str(page.relative_to(ROOT)), words[1:]


def cases() -> list[object]:
    return [pytest.param(page, words, id=f"{page}: {' '.join(words)[:70]}") for page, words in commands()]


def owner(page: str, words: list[str]) -> str | None:
    """The system a command is about: named by it, else the one whose page it stands on."""
    if "--system" in words:
        return words[words.index("--system") + 1]
    if words[0] in ("train", "verify", "show"):
        return words[1]
    slug = Path(page).stem
    return slug if slug in catalogue.cards() else None


@pytest.mark.parametrize(("page", "words"), cases())
def test_a_command_names_what_exists(page: str, words: list[str]) -> None:
    group = typer.main.get_command(app)
    command = group.commands[words[0]]  # type: ignore[attr-defined]
    flags = {flag for p in command.params for flag in p.opts}
    if words[0] == "data":
        assert words[1] in command.commands
        return
    assert {w for w in words if re.fullmatch(r"--?[a-z]+", w)} <= flags
    options = [w for w in words if _ASSIGNMENT.match(w)]
    slug = owner(page, words)
    if words[0] == "train":
        next(iter(engine.declared(words[1], "laptop").systems.values())).override(options)
    elif words[0] in VERBS and slug is not None:
        assert words[0] in catalogue.card(slug).verbs
        signature = inspect.signature(getattr(catalogue.system(slug), method_name(words[0])))
        known = {n for n, p in signature.parameters.items() if p.kind is p.KEYWORD_ONLY}
        others = [w for w in options if w.split("=")[0] not in known]
        if "--system" in words:  # what is no option of the verb is a field of the system fitted to the input
            next(iter(engine.declared(slug, "laptop").systems.values())).override(others)
        else:
            assert not others


@pytest.mark.parametrize("page", sorted(ROOT.glob("docs/texts/*.md")), ids=lambda p: p.stem)
def test_python_on_a_systems_page_calls_what_the_system_has(page: Path) -> None:
    kind = catalogue.system(page.stem)
    called = 0
    for body in blocks(page, "python"):
        for node in ast.walk(ast.parse(body)):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
                continue
            target = node.func.value
            if isinstance(target, ast.Name) and target.id in ("system", "codec", "opened"):
                signature = inspect.signature(getattr(kind, node.func.attr))
                names = {word.arg for word in node.keywords if word.arg}
                assert names <= set(signature.parameters), f"{node.func.attr} of {page.stem}"
                called += 1
    assert called, "the page shows no use from Python"


@pytest.mark.parametrize("name", ["start.md", "at-scale.md"])
def test_python_on_a_general_page_runs(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ENCYCLO_DEVICE", "cpu")
    declared = engine.declared("mosaicbert", "smoke")
    config = next(iter(declared.systems.values())).override(["training.steps=3"])
    engine.train(config, engine.load_data(declared), tmp_path / "runs" / "mine", progress=False)
    for body in blocks(ROOT / "docs" / name, "python"):
        exec(compile(body.replace('verify("hnerv"', 'verify("mosaicbert"'), name, "exec"), {})
