"""The user's own files and folders, hub layouts and streams of shards, and every bad input."""

import io
import json
import tarfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from encyclo import data
from encyclo.data.audio import Audio, write_audio
from encyclo.data.bundled import pack_folder
from encyclo.data.images import encode_image, write_image
from encyclo.data.splitting import SPLITS
from encyclo.data.text import decode, read_records, read_text, read_units
from encyclo.data.video import Video, write_video
from encyclo.errors import InputError


def _picture(value: int) -> torch.Tensor:
    return torch.full((3, 8, 8), value, dtype=torch.uint8)


def _all(splits, column):
    return [value for split in SPLITS for value in getattr(splits, split)[column]]


@pytest.fixture
def prose(tmp_path):
    """A book of a hundred paragraphs."""
    path = tmp_path / "book.txt"
    path.write_text("\n\n".join(f"Paragraph number {i},\nwrapped over two lines." for i in range(100)))
    return path


@pytest.fixture
def pictures(tmp_path):
    """A folder of forty pictures in two classes."""
    for i in range(40):
        folder = tmp_path / "pictures" / ("dark" if i % 2 else "bright")
        folder.mkdir(parents=True, exist_ok=True)
        write_image(_picture(i), folder / f"{i:02}.png")
    return tmp_path / "pictures"


def test_one_text_file_is_split_in_blocks_that_stay_whole(prose):
    splits = data.load(str(prose))
    assert splits.kind == "text"
    assert sorted(_all(splits, "text")) == sorted(f"Paragraph number {i}, wrapped over two lines." for i in range(100))
    documents = [set(getattr(splits, split)["document"]) for split in SPLITS]
    assert all(documents)
    assert len(set.union(*documents)) == sum(map(len, documents))


def test_splits_are_stable_and_follow_the_seed(prose):
    first, again, other = data.load(str(prose)), data.load(str(prose)), data.load(str(prose), seed=1)
    assert list(first.test["text"]) == list(again.test["text"])
    assert first.fingerprint == again.fingerprint
    assert sorted(_all(first, "text")) == sorted(_all(other, "text"))
    assert list(first.test["text"]) != list(other.test["text"])
    assert first.fingerprint != other.fingerprint


def test_fingerprint_follows_content(prose):
    before = data.load(str(prose)).fingerprint
    prose.write_text(prose.read_text().replace("number 7,", "number seven,"))
    assert data.load(str(prose)).fingerprint != before


def test_many_files_are_split_whole(tmp_path):
    for i in range(60):
        (tmp_path / f"{i}.md").write_text(f"# Title {i}\n\nfirst {i}\n\nsecond {i}")
    splits = data.load(str(tmp_path))
    assert len(_all(splits, "text")) == 180
    assert set(_all(splits, "document")) == {f"{i}.md" for i in range(60)}
    assert not set(splits.train["document"]) & set(splits.test["document"])


def test_folders_named_for_splits_decide(tmp_path):
    for split in ("train", "val", "test"):
        (tmp_path / split).mkdir()
        (tmp_path / split / "a.txt").write_text(f"{split} one\n\n{split} two")
    splits = data.load(str(tmp_path))
    assert list(splits.train["text"]) == ["train one", "train two"]
    assert list(splits.validation["text"]) == ["val one", "val two"]
    assert list(splits.test["text"]) == ["test one", "test two"]


def test_a_missing_split_folder_is_drawn_from_train_and_said(tmp_path):
    for i in range(40):
        folder = tmp_path / ("test" if i < 10 else "train")
        folder.mkdir(exist_ok=True)
        write_image(_picture(i), folder / f"{i}.png")
    splits = data.load(str(tmp_path))
    assert len(splits.test) == 10
    assert len(splits.validation) >= 1
    assert len(splits.train) + len(splits.validation) == 30
    assert any("validation taken from train" in note for note in splits.notes)


def test_pictures_with_labels_captions_and_flaws(pictures):
    (pictures / "dark" / "01.txt").write_text("a dark square\n")
    (pictures / "dark" / "empty.png").write_bytes(b"")
    (pictures / "dark" / "cut.png").write_bytes(encode_image(torch.randint(0, 255, (3, 32, 32)).to(torch.uint8))[:200])
    (pictures / "dark" / "copy.png").write_bytes((pictures / "dark" / "01.png").read_bytes())
    (pictures / "dark" / "notes.xyz").write_bytes(b"?")
    splits = data.load(str(pictures))
    assert splits.kind == "image"
    assert len(_all(splits, "image")) == 40
    assert set(_all(splits, "label")) == {"dark", "bright"}
    assert [c for c in _all(splits, "caption") if c] == ["a dark square"]
    said = " / ".join(splits.notes)
    for flaw in ("1 file empty left out", "1 unreadable", "exact copies", "of no known kind"):
        assert flaw in said


def test_metadata_table_beside_pictures(pictures):
    lines = [json.dumps({"file_name": f"bright/{i:02}.png", "text": f"square {i}"}) for i in range(0, 40, 2)]
    (pictures / "metadata.jsonl").write_text("\n".join(lines))
    splits = data.load(str(pictures), "image")
    assert len([c for c in _all(splits, "caption") if c]) == 20


def test_sound_with_transcripts(tmp_path):
    for i in range(5):
        write_audio(Audio(torch.rand(1, 800) - 0.5, 8000), tmp_path / f"{i}.flac")
        (tmp_path / f"{i}.txt").write_text(f"words {i}")
    splits = data.load(str(tmp_path), "audio")
    assert splits.train.column_names == ["audio", "text", "name"]
    assert all(len(getattr(splits, split)) for split in SPLITS)


def test_one_video_file(tmp_path):
    write_video(Video(torch.zeros(3, 3, 16, 16, dtype=torch.uint8), data_fps()), tmp_path / "clip.mp4")
    splits = data.load(str(tmp_path / "clip.mp4"), "video")
    assert (len(splits.train), len(splits.validation), len(splits.test)) == (1, 0, 0)
    assert splits.train[0]["name"] == "clip.mp4"
    assert any("only 1 part" in note for note in splits.notes)


def data_fps():
    from fractions import Fraction

    return Fraction(25)


@pytest.mark.parametrize("form", ["jsonl", "csv", "parquet", "jsonl.gz"])
def test_records_become_pairs(tmp_path, form):
    table = pa.table({"question": [f"q{i}" for i in range(50)], "answer": [f"a,\n{i}" for i in range(50)]})
    path = tmp_path / f"faq.{form}"
    if form == "parquet":
        pq.write_table(table, path)
    elif form == "csv":
        import pyarrow.csv

        pyarrow.csv.write_csv(table, path)
    else:
        import gzip

        content = "\n".join(json.dumps(row) for row in table.to_pylist()).encode()
        path.write_bytes(gzip.compress(content) if form.endswith("gz") else content)
    splits = data.load(str(path))
    assert splits.kind == "pair"
    assert sorted(_all(splits, "query")) == sorted(f"q{i}" for i in range(50))
    assert "a,\n7" in _all(splits, "document")


def test_records_with_other_columns_are_a_table(tmp_path):
    (tmp_path / "t.csv").write_text("x,y\n" + "\n".join(f"{i},{i / 2}" for i in range(30)))
    splits = data.load(str(tmp_path / "t.csv"))
    assert splits.kind == "table"
    assert sorted(_all(splits, "x")) == list(range(30))


def test_parquet_with_pictures(tmp_path):
    struct = [{"bytes": encode_image(_picture(i)), "path": None} for i in range(30)]
    pq.write_table(pa.table({"img": struct, "label": [i % 3 for i in range(30)]}), tmp_path / "p.parquet")
    splits = data.load(str(tmp_path / "p.parquet"))
    assert splits.kind == "image"
    assert isinstance(splits.train[0]["image"], bytes)
    assert set(_all(splits, "label")) == {"0", "1", "2"}


def test_joined_sets(prose):
    splits = data.load(f"kjv+{prose}")
    assert splits.train.column_names == ["text", "document"]
    assert sum(len(getattr(splits, split)) for split in SPLITS) == 31102 + 100
    assert splits.train[0]["document"] == "kjv/Genesis 1"
    with pytest.raises(InputError, match="join one kind"):
        data.load("kjv+digits")
    with pytest.raises(InputError, match="white"):
        data.load("mnist-5k+digits")


def test_a_path_with_a_plus_is_one_path(tmp_path):
    (tmp_path / "a+b.txt").write_text("one\n\ntwo")
    assert len(data.load(str(tmp_path / "a+b.txt")).train) == 2


def test_hub_layout_of_a_pack_opens_as_hub_data_set(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path)
    ours, theirs = data.load("digits"), data.load(f"hf:{pack_folder('digits')}", "image")
    assert set(theirs.train["image"]) == set(ours.train["image"])
    assert [len(getattr(theirs, split)) for split in SPLITS] == [len(getattr(ours, split)) for split in SPLITS]
    texts = data.load(f"hf:{pack_folder('pydocs')}:pair", "pair")
    assert len(texts.train) == len(data.load("pydocs", "pair").train)


def _shards(folder, count, rows=20, name="part-{:03}.jsonl"):
    for shard in range(count):
        lines = [json.dumps({"text": f"shard {shard} row {row}"}) for row in range(rows)]
        (folder / name.format(shard)).write_text("\n".join(lines))


@pytest.mark.parametrize("count", [2, 10])
def test_streamed_shards_hold_everything_once(tmp_path, count):
    _shards(tmp_path, count)
    splits = data.load(f"{tmp_path}/*.jsonl")
    assert splits.streaming
    assert splits.kind == "text"
    rows = [[row["text"] for row in getattr(splits, split)] for split in SPLITS]
    assert sorted(row for split in rows for row in split) == sorted(
        f"shard {s} row {r}" for s in range(count) for r in range(20)
    )
    assert len(rows[0]) > len(rows[1]) + len(rows[2])
    assert data.load(f"{tmp_path}/*.jsonl").fingerprint == splits.fingerprint


def test_streamed_shards_named_for_splits(tmp_path):
    _shards(tmp_path, 2, name="train-{:03}.jsonl")
    _shards(tmp_path, 1, name="validation-{:03}.jsonl")
    _shards(tmp_path, 1, name="test-{:03}.jsonl", rows=3)
    splits = data.load(f"{tmp_path}/*.jsonl")
    assert [sum(1 for _ in getattr(splits, split)) for split in SPLITS] == [40, 20, 3]


def test_streamed_tar_of_pictures(tmp_path):
    for shard in range(3):
        with tarfile.open(tmp_path / f"{shard}.tar", "w") as archive:
            for i in range(4):
                for extension, content in (("png", encode_image(_picture(i))), ("txt", f"square {i}".encode())):
                    member = tarfile.TarInfo(f"{shard}{i}.{extension}")
                    member.size = len(content)
                    archive.addfile(member, io.BytesIO(content))
    splits = data.load(f"{tmp_path}/*.tar")
    assert splits.kind == "image"
    row = next(iter(splits.train))
    assert row["caption"].startswith("square")
    assert isinstance(row["image"], bytes)


def test_glob_of_pictures_is_not_streamed(pictures):
    splits = data.load(f"{pictures}/*/*.png")
    assert not splits.streaming
    assert len(_all(splits, "image")) == 40


def _bad(tmp_path):
    write_image(_picture(1), tmp_path / "x.png")
    (tmp_path / "x.mp4").write_bytes((tmp_path / "x.png").read_bytes())
    (tmp_path / "empty.mp4").write_bytes(b"")
    (tmp_path / "empty.txt").write_bytes(b"")
    (tmp_path / "blank.txt").write_text(" \n\n \n")
    (tmp_path / "binary.txt").write_bytes(b"ab\x00cd" * 10)
    (tmp_path / "broken.mp4").write_bytes(b"\x00\x00\x00\x18ftypisom" + b"\x07" * 500)
    (tmp_path / "bad.jsonl").write_text('{"text": "ok"}\n{"text": ')
    (tmp_path / "list.jsonl").write_text("[1]\n")
    (tmp_path / "bad.csv").write_text("text,b\nx,1\ny\n")
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 and no more")
    (tmp_path / "cols.jsonl").write_text('{"alpha": 1}\n')
    (tmp_path / "what.xyz").write_bytes(b"?")
    (tmp_path / "nothing").mkdir()
    (tmp_path / "mixed").mkdir()
    write_image(_picture(1), tmp_path / "mixed" / "a.png")
    write_audio(Audio(torch.rand(1, 800) - 0.5, 8000), tmp_path / "mixed" / "a.wav")


@pytest.mark.parametrize(
    ("spec", "kind", "message"),
    [
        ("x.png", "video", "is a picture, a video is needed: give .mp4"),
        ("x.mp4", "video", "is a picture, a video is needed: give .mp4"),
        ("x.png", "text", "is a picture, a text is needed"),
        ("empty.mp4", "video", "is empty"),
        ("empty.txt", None, "is empty"),
        ("blank.txt", None, "only blank lines"),
        ("binary.txt", None, "is a binary file"),
        ("broken.mp4", None, "cannot be read as a video"),
        ("bad.jsonl", None, "line 2 is no JSON"),
        ("list.jsonl", None, "line 1 is no JSON object"),
        ("bad.csv", None, "is damaged"),
        ("bad.parquet", None, "is damaged"),
        ("cols.jsonl", "text", "has no column 'text', which texts need; it has alpha"),
        ("what.xyz", None, "is of no known kind"),
        ("nothing", None, "is an empty folder"),
        ("mixed", None, "holds 1 pictures and 1 sound recordings"),
        ("mixed", "video", "a video is needed"),
        ("missing.txt", None, "does not exist: check the path"),
        ("*.nope", None, "no file matches"),
    ],
)
def test_bad_input_is_one_clear_line(tmp_path, spec, kind, message):
    _bad(tmp_path)
    with pytest.raises(InputError, match=message.replace("*", r"\*")) as caught:
        data.load(f"{tmp_path}/{spec}", kind)
    assert "\n" not in str(caught.value)
    assert spec.split(".")[0].strip("*") in str(caught.value)


def test_unknown_names_and_kinds():
    with pytest.raises(InputError, match="did you mean 'kjv'"):
        data.load("kjw")
    with pytest.raises(InputError, match="did you mean 'mnist-5k'"):
        data.manifest("mnist5k")
    with pytest.raises(InputError, match="'vido' is no kind of data"):
        data.load("bunny", "vido")
    with pytest.raises(InputError, match="no data set is named"):
        data.load("  ")
    with pytest.raises(InputError, match="names no data set"):
        data.load("hf:")


def test_hub_sets_that_cannot_be_opened_are_one_line(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match="cannot be loaded") as caught:
        data.load("hf:nobody/nothing-at-all")
    assert "\n" not in str(caught.value)


def test_undecodable_bytes_are_counted(tmp_path):
    path = tmp_path / "latin.txt"
    path.write_bytes("Grüße".encode("latin-1") + b"\n\nplain")
    assert decode("Grüße".encode("latin-1")) == ("Gr\ufffd\ufffde", 2)
    assert read_text(path).undecodable == 2
    assert any(note.startswith("2 bytes could not be decoded") for note in data.load(str(path)).notes)
    assert decode("Grüße".encode("utf-16")) == ("Grüße", 0)


def test_units():
    text = "one\ntwo\n\n- a\n- b\n\n  code\n    more\n"
    assert read_units(text) == ["one two", "- a\n- b", "code\n    more"]
    assert read_units(text, "line")[:2] == ["one", "two"]
    assert len(read_units(text, "file")) == 1


def test_records_keep_columns_that_appear_late(tmp_path):
    (tmp_path / "r.jsonl").write_text('{"text": "a"}\n{"text": "b", "extra": 1}\n')
    table, _ = read_records(tmp_path / "r.jsonl")
    assert table.to_pylist() == [{"text": "a", "extra": None}, {"text": "b", "extra": 1}]


def test_large_media_go_through_the_disk(pictures, tmp_path, monkeypatch):
    from encyclo.data import own

    small = data.load(str(pictures))
    monkeypatch.setattr(own, "_IN_MEMORY", 100)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    large = data.load(str(pictures))
    assert large.fingerprint == small.fingerprint
    assert sorted(_all(large, "image")) == sorted(_all(small, "image"))
    assert sorted(_all(large, "label")) == sorted(_all(small, "label"))
