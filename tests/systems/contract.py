"""What every system must pass, driven by a small description per system: real classes at `smoke`, no mocks.

A test module writes::

    class TestContract(SystemContract):
        slug = "hnerv"
        published = {"hnerv": 1_505_172}
        verbs = {"inspect": []}

        def files(self, folder):                # files that verbs and bad inputs name as {clip}
            return {"clip": folder / "clip.mp4"}
"""

import inspect
import math
import typing
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

from encyclo import catalogue, verbs
from encyclo import experiment as engine
from encyclo.errors import InputError
from encyclo.nn.part import parameter_count
from encyclo.report import page
from encyclo.system import open_system


class Finished:
    """One smoke experiment, run once for all tests of a class."""

    def __init__(self, slug: str, folder: Path) -> None:
        self.folder = folder
        self.declared = engine.declared(slug, "smoke")
        self.arm, self.config = next(iter(self.declared.systems.items()))
        self.record = engine.verify(slug, preset="smoke", seeds=1, folder=folder, results=folder / "results")
        self.base = folder / f"{slug}-smoke"
        self.run = self.base / "seed0" / self.arm


class SystemContract:
    """Shared tests of a system; class attributes describe it."""

    slug: ClassVar[str]
    published: ClassVar[dict[str, int]] = {}
    """Arm of the `paper` preset -> published number of parameters (1 % is allowed)."""
    verbs: ClassVar[dict[str, list[str]]] = {}
    """Verb -> words of its command line after RUN (inputs, then name=value); {name} stands for a file of `files`."""
    bad: ClassVar[list[tuple[str, list[str], str]]] = []
    """(verb, words, part of the message): each must be refused in one line."""
    deterministic: ClassVar[bool] = True

    def files(self, folder: Path) -> dict[str, Path]:
        """Inputs for verbs and bad inputs, by name."""
        return {}

    def counted(self, system: Any) -> int:
        """Parameters that the paper counts; override where it leaves some out."""
        return parameter_count(system)

    @pytest.fixture(scope="class")
    def finished(self, tmp_path_factory: pytest.TempPathFactory) -> Finished:
        return Finished(self.slug, tmp_path_factory.mktemp(self.slug))

    @pytest.fixture(scope="class")
    def given(self, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
        folder = tmp_path_factory.mktemp(f"{self.slug}-files")
        (folder / "empty").write_bytes(b"")
        return {"missing": folder / "missing.bin", "empty": folder / "empty", **self.files(folder)}

    def _call(self, finished: Finished, given: dict[str, Path], verb: str, words: list[str], out: Path) -> list[Any]:
        filled = [word.format(**given) for word in words]
        options = [w for w, plain in zip(filled, words, strict=True) if "=" in plain and not plain.startswith("{")]
        inputs = [w for w in filled if w not in options]
        return verbs.call(open_system(finished.run), verb, inputs, options, out)

    def test_the_card_is_true(self) -> None:
        card = catalogue.card(self.slug)
        kind = catalogue.system(self.slug)
        assert card == catalogue.module(self.slug).CARD
        for verb in card.verbs:
            assert verb in verbs.VERBS
            method = getattr(kind, verbs.method_name(verb))
            assert method.__doc__, f"{verb} has no docstring"
            typing.get_type_hints(method)
            assert inspect.signature(method).return_annotation is not inspect.Signature.empty
        assert set(self.verbs) >= set(card.verbs), "a verb of the card is not tried here"
        assert (Path(__file__).parents[2] / "docs" / "texts" / f"{self.slug}.md").is_file()

    def test_the_published_size_builds_without_memory(self) -> None:
        declared = engine.declared(self.slug, "paper")
        assert set(self.published) <= set(declared.systems)
        for name, count in self.published.items():
            with torch.device("meta"):
                built = declared.systems[name].build()
            assert self.counted(built) == pytest.approx(count, rel=0.01)

    def test_an_experiment_gives_a_record_and_a_report(self, finished: Finished) -> None:
        record = finished.record
        assert record["claims"]
        for claim in record["claims"]:
            assert claim["verdict"] in ("shown", "not shown")
            assert "was not measured" not in claim["sentence"], claim
        for name in finished.declared.columns:
            assert any(name in arm["metrics"] for arm in record["arms"].values()), f"column {name} is empty"
        text = page.write(record, finished.base).read_text(encoding="utf-8")
        assert catalogue.card(self.slug).arxiv in text
        for picture in record["pictures"]:
            size = (finished.base / "pictures" / f"{picture['name']}.{picture['kind']}").stat().st_size
            assert 0 < size <= (150_000 if picture["docs"] else 10_000_000)
        assert not engine.stale(record)

    def test_a_saved_system_opens_the_same(self, finished: Finished, tmp_path: Path) -> None:
        opened = open_system(finished.run)
        again = open_system(opened.save_pretrained(tmp_path / "again"))
        assert again.fingerprint() == opened.fingerprint()
        assert again.config == opened.config
        kept = {p.name for p in (tmp_path / "again").iterdir()}
        assert not [name for name in kept if name.startswith(".")], "temporary files were left"
        assert not [name for name in kept if name.endswith((".pkl", ".pt", ".bin", ".pth"))]

    def test_every_verb_runs_on_files(self, finished: Finished, given: dict[str, Path], tmp_path: Path) -> None:
        for verb, words in self.verbs.items():
            for result in self._call(finished, given, verb, words, tmp_path / verb):
                for value in result.report.values():
                    assert not isinstance(value, float) or not math.isnan(value), f"{verb}: {result.report}"

    def test_bad_input_is_refused_in_one_line(self, finished: Finished, given: dict[str, Path], tmp_path: Path) -> None:
        for verb, words, message in self.bad:
            out = tmp_path / f"bad-{verb}"
            with pytest.raises(InputError) as caught:
                self._call(finished, given, verb, words, out)
            text = str(caught.value)
            assert "\n" not in text
            assert message.lower() in text.lower(), f"{verb} {words}: {text}"
            assert not out.exists(), f"{verb} {words} left something behind"

    def test_the_same_seed_gives_the_same_system(self, finished: Finished, tmp_path: Path) -> None:
        if not self.deterministic:
            pytest.skip("not deterministic by nature; see the system's docstring")
        splits = engine.load_data(finished.declared)
        prepared = None
        if finished.declared.prepare is not None:
            from encyclo.training import Trainer

            prepared = finished.declared.prepare(splits, Trainer(tmp_path / "prepared", seed=0, progress=False), 0)
        system, _, _ = engine.train(finished.config, splits, tmp_path / "run", prepared=prepared, progress=False)
        assert system.fingerprint() == open_system(finished.run).fingerprint()
