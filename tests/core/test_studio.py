from pathlib import Path

import pytest
from starlette.testclient import TestClient

from encyclo import experiment as engine
from encyclo.studio.app import create_app


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> TestClient:
    runs = tmp_path_factory.mktemp("runs")
    declared = engine.declared("mosaicbert", "smoke")
    config = next(iter(declared.systems.values())).override(["training.steps=3"])
    engine.train(config, engine.load_data(declared), runs / "tiny", progress=False)
    return TestClient(create_app(runs, results=runs / "results"))


def test_pages_show_the_catalogue_and_the_runs(client: TestClient) -> None:
    home = client.get("/")
    assert home.status_code == 200
    assert "hnerv" in home.text
    assert "/run/tiny" in home.text
    assert "MosaicBERT" in client.get("/system/mosaicbert").text
    assert client.get("/system/nothing").status_code == 404


def test_a_verb_runs_from_its_form(client: TestClient) -> None:
    answer = client.post("/run/tiny", data={"verb": "fill", "text": "In the [MASK]", "options": "top=2"})
    assert answer.status_code == 200
    assert "probability" in answer.text
    bad = client.post("/run/tiny", data={"verb": "fill", "text": "nothing hidden", "options": ""})
    assert bad.status_code == 400
    assert "[MASK]" in bad.text
    assert "Traceback" not in bad.text


def test_only_known_runs_and_own_files_are_reached(client: TestClient, tmp_path: Path) -> None:
    assert client.get("/run/../../etc").status_code == 404
    assert client.get("/file/..%2F..%2Fetc%2Fpasswd").status_code == 404
    assert client.get("/", headers={"host": "evil.example"}).status_code == 400
    foreign = client.post("/run/tiny", data={"verb": "fill", "text": "x"}, headers={"origin": "https://evil.example"})
    assert foreign.status_code == 403
