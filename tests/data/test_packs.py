"""The bundled packs: checksums, disjoint splits, cards, and a listing that needs no heavy library."""

import functools
import gzip
import hashlib
import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from encyclo import data
from encyclo.data.bundled import pack_folder
from encyclo.data.images import to_tensor
from encyclo.data.splitting import SPLITS
from encyclo.data.video import read_video
from encyclo.errors import InputError

load = functools.cache(data.load)
NAMES = ["bikes", "bunny", "carphone", "clipart", "digits", "glosses", "kjv", "mnist-5k", "prompts", "pydocs"]
VIEWS = [(name, view) for name in NAMES for view in data.manifest(name).views]


def test_all_packs_are_there_and_small():
    assert data.names() == NAMES
    assert sum(file.bytes for name in NAMES for file in data.manifest(name).files) <= 36_000_000


@pytest.mark.parametrize("name", NAMES)
def test_files_match_their_manifest(name):
    pack = data.manifest(name)
    for file in pack.files:
        content = (pack_folder(name) / file.path).read_bytes()
        assert len(content) == file.bytes
        assert hashlib.sha256(content).hexdigest() == file.sha256
    assert all((pack.title, pack.source, pack.package, pack.licence, pack.attribution))
    assert pack.licence_url.startswith("https://")


@pytest.mark.parametrize("name", NAMES)
def test_cards_have_the_front_matter_that_the_hub_reads(name):
    _, front, text = (pack_folder(name) / "README.md").read_text(encoding="utf-8").split("---\n", 2)
    card = yaml.safe_load(front)
    assert {"license", "pretty_name", "size_categories", "source_datasets", "configs"} <= set(card)
    listed = {file["path"] for config in card["configs"] for file in config["data_files"]}
    assert listed == {file.path for file in data.manifest(name).files}
    assert data.manifest(name).attribution in text


@pytest.mark.parametrize(("name", "view"), VIEWS)
def test_views_load_with_the_rows_of_the_manifest(name, view):
    pack, splits = data.manifest(name), load(name, view)
    assert splits.kind == view
    expected = pack.rows_by_view.get(view, pack.rows)
    assert {split: len(getattr(splits, split)) for split in SPLITS} == expected
    assert splits.train.column_names == splits.test.column_names
    assert len(splits.fingerprint) == 64


def _values(rows, column):
    return rows.data.column(column).to_pylist()  # `rows[column]` reads one by one


@pytest.mark.parametrize(
    ("name", "view", "column"),
    [
        ("kjv", "text", "document"),
        ("pydocs", "text", "document"),
        ("pydocs", "text", "text"),
        ("pydocs", "pair", "file"),
        ("pydocs", "pair", "document"),
        ("glosses", "pair", "query"),
        ("glosses", "pair", "document"),
        ("glosses", "text", "synset"),
        ("clipart", "image", "image"),
        ("mnist-5k", "image", "image"),
        ("digits", "image", "image"),
        ("prompts", "audio", "name"),
        ("prompts", "audio", "audio"),
    ],
)
def test_splits_are_disjoint(name, view, column):
    splits = load(name, view)
    train, validation, test = (set(_values(getattr(splits, split), column)) for split in SPLITS)
    assert all((train, validation, test))
    assert not train & validation
    assert not train & test
    assert not validation & test


def test_glosses_keep_lemmas_apart_whatever_their_case():
    splits = load("glosses", "pair")
    train, test = ({lemma.lower() for lemma in _values(rows, "lemma")} for rows in (splits.train, splits.test))
    assert not train & test


def test_known_content():
    kjv = load("kjv", "text").train
    assert kjv[0]["text"] == "In the beginning God created the heaven and the earth."
    assert kjv[0]["document"] == "Genesis 1"
    pairs = load("glosses", "pair").train
    assert set(pairs.column_names) >= {"query", "document"}
    texts = load("glosses", "text").train
    assert texts[0]["text"].startswith(pairs[0]["query"])


def test_mnist_is_balanced_and_white_on_black():
    splits = load("mnist-5k", "image")
    for split, count in (("train", 400), ("validation", 50), ("test", 50)):
        labels = list(getattr(splits, split)["label"])
        assert {digit: labels.count(digit) for digit in set(labels)} == {str(digit): count for digit in range(10)}
    pictures = to_tensor(splits.test["image"], mode="L")
    assert pictures.shape == (500, 1, 28, 28)
    assert pictures.float().mean() < 64


def test_digits_keep_their_values():
    splits = load("digits", "image")
    pictures = to_tensor(splits.train["image"], mode="L")
    assert (int(pictures.min()), int(pictures.max()), splits.peak) == (0, 16, 16)
    spec = importlib.util.find_spec("sklearn")  # its own file, without the cost of importing it
    assert spec is not None
    folder = Path(spec.submodule_search_locations[0]) / "datasets" / "data"
    with gzip.open(folder / "digits.csv.gz", "rt") as file:
        theirs = {line.strip() for line in file}
    for picture, label in zip(pictures, splits.train["label"]):
        assert ",".join(map(str, [*picture.flatten().tolist(), label])) in theirs


def test_clipart_pictures():
    splits = load("clipart", "image")
    assert sum(len(getattr(splits, split)) for split in SPLITS) >= 6000
    rows = splits.validation[:64]
    assert to_tensor(rows["image"]).shape == (64, 3, 64, 64)
    assert all([*rows["label"], *rows["caption"]])


def test_clips_are_the_original_files():
    bunny = read_video(data.load("bunny").train[0]["video"], max_frames=2)
    assert bunny.frames.shape == (2, 3, 720, 1280)
    assert bunny.fps == 25
    assert len(read_video(data.load("carphone").train[0]["video"]).frames) == 120
    joined = data.load("bunny+bikes+carphone").train
    assert list(joined["name"]) == ["bunny.mp4", "bikes.mp4", "carphone.mp4"]


def test_prompts_can_be_read_and_hold_five_languages():
    from encyclo.data.audio import read_audio

    splits = load("prompts", "audio")
    assert set(splits.train["language"]) == {"en", "es", "fr", "it", "ru"}
    for row in splits.test.select(range(3)):
        audio = read_audio(row["audio"])
        assert audio.rate == 16000
        assert audio.samples.shape[0] == 1
        assert audio.samples.abs().max() > 0.05
        assert row["text"]


def test_listing_is_light():
    code = (
        "import sys; from encyclo import data; [data.manifest(n) for n in data.names()];"
        "print([m for m in ('torch', 'datasets', 'numpy', 'pyarrow') if m in sys.modules])"
    )
    said = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert said.stdout.strip() == "[]"


def test_a_view_that_a_pack_lacks_names_those_that_have_it():
    with pytest.raises(InputError, match=r"'kjv' holds texts, a picture is needed: use clipart, digits, mnist-5k"):
        data.load("kjv", "image")


def test_a_damaged_pack_is_refused(tmp_path, monkeypatch):
    import shutil

    from encyclo.data import bundled, loading

    shutil.copytree(pack_folder("digits"), tmp_path / "digits")
    monkeypatch.setattr(loading, "pack_folder", lambda name: tmp_path / name)
    path = tmp_path / "digits" / "train.parquet"
    content = bytearray(path.read_bytes())
    content[1000] ^= 1
    path.write_bytes(content)
    with pytest.raises(InputError, match="does not match its checksum"):
        data.load("digits")
    path.unlink()
    with pytest.raises(InputError, match="is missing"):
        data.load("digits")
    assert bundled.names() == NAMES
