"""Reports, records and the scoreboard, from one small real experiment."""

import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import yaml

from encyclo import catalogue
from encyclo import experiment as engine
from encyclo.errors import InputError
from encyclo.report import citation, page, scoreboard


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("verify")
    record = engine.verify("mosaicbert", preset="smoke", seeds=1, folder=folder, results=folder / "results")
    return folder, record


class Outside(HTMLParser):
    """Collects what a page would fetch."""

    def __init__(self) -> None:
        super().__init__()
        self.fetched: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if (name == "src" or (tag == "link" and name == "href")) and not (value or "").startswith("data:"):
                self.fetched.append(f"{tag} {value}")


def test_the_report_needs_nothing_beside_it(made: tuple[Path, dict[str, Any]]) -> None:
    folder, record = made
    text = page.write(record, folder / "mosaicbert-smoke").read_text(encoding="utf-8")
    parser = Outside()
    parser.feed(text)
    assert parser.fetched == []
    for claim in record["claims"]:
        assert claim["verdict"] in text
    assert record["command"] in text


def test_the_record_is_what_was_written(made: tuple[Path, dict[str, Any]]) -> None:
    folder, record = made
    path = folder / "results" / "smoke" / "mosaicbert.json"
    assert json.loads(path.read_text()) == json.loads(json.dumps(record))
    assert set(record["hashes"]["sources"]) >= {"systems/text/mosaicbert.py", "nn/text_encoder.py"}
    assert record["environment"]["versions"]["torch"]


def test_a_record_goes_stale_when_a_part_changes(made: tuple[Path, dict[str, Any]]) -> None:
    _, record = made
    assert engine.stale(record) == []
    changed = json.loads(json.dumps(record))
    changed["hashes"]["sources"]["nn/text_encoder.py"] = "0" * 16
    changed["hashes"]["configs"]["bert"] = "0" * 16
    assert engine.stale(changed) == ["nn/text_encoder.py", "configuration of bert"]


def test_the_scoreboard_is_made_of_records_alone(made: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    folder, _ = made
    table = scoreboard.table(folder / "results", "smoke")
    assert table.count("\n") == 2
    assert "[mosaicbert]" in table
    assert "current" in table
    bad = tmp_path / "smoke"
    bad.mkdir()
    (bad / "hnerv.json").write_text("{")
    with pytest.raises(InputError, match="damaged"):
        scoreboard.table(tmp_path, "smoke")


def test_the_papers_are_cited() -> None:
    text = (Path(__file__).parents[2] / "CITATION.cff").read_text(encoding="utf-8")
    assert citation.updated(text) == citation.updated(citation.updated(text))
    read = yaml.safe_load(citation.updated(text))
    assert {"cff-version", "message", "title", "authors"} <= set(read)
    assert [r["identifiers"][0]["value"] for r in read["references"]] == [
        f"arXiv:{card.arxiv}" for card in catalogue.cards().values()
    ]
