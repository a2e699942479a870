"""The index of a folder: incremental, crash-safe, bound to its tokenizer; a counting encoder stands for the model."""

import hashlib
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from encyclo.errors import InputError
from encyclo.search.exact import ExactIndex
from encyclo.search.qdrant import QdrantIndex
from encyclo.search.seismic import SeismicIndex
from encyclo.search.text_index import TextIndex, passage
from encyclo.search.vectors import SparseVectors

VOCABULARY = 5000


class Words:
    """Each word is a term; keeps count of what it was asked to encode."""

    def __init__(self, fail_after=None):
        self.seen = []
        self.fail_after = fail_after

    def __call__(self, texts):
        if self.fail_after is not None and len(self.seen) + len(texts) > self.fail_after:
            raise KeyboardInterrupt
        self.seen += texts
        return SparseVectors.from_rows([{term(w): 1.0 for w in t.lower().split()} for t in texts], VOCABULARY)


def term(word):
    return int(hashlib.sha256(word.strip(".,").encode()).hexdigest(), 16) % VOCABULARY


def opened(folder, **changes):
    return TextIndex(folder, **{"tokenizer": "t1", "model": "m1", "vocabulary": VOCABULARY, "words": 20, **changes})


def find(index, word, config=None):
    opened, _, table = index.engine(config or ExactIndex.Config())
    hits = opened.search(SparseVectors.from_rows([{term(word): 1.0}], VOCABULARY), 5)
    return [passage(table, row) for row in hits.documents[0].tolist() if row >= 0]


@pytest.fixture
def texts(tmp_path):
    folder = tmp_path / "texts"
    (folder / "sub").mkdir(parents=True)
    (folder / "animals.txt").write_text(
        "The horse is large.\n\n" + "The mouse is small and lives in the old house. " * 3
    )
    (folder / "sub" / "plants.md").write_text("An oak grows slowly.")
    (folder / "picture.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    (folder / ".hidden.txt").write_text("secret")
    return folder


def test_built_found_and_reused(texts, tmp_path):
    encode = Words()
    index = opened(tmp_path / "index")
    done = index.update(texts, encode)
    assert (done.encoded, done.kept, done.files) == (len(encode.seen), 0, 2)
    assert done.notes == ["1 files that are no prose left out of the index"]
    (hit,) = find(index, "oak")
    assert (hit.file, hit.text) == ("sub/plants.md", "An oak grows slowly.")
    horse = find(index, "horse")[0]
    assert (texts / "animals.txt").read_text()[horse.start : horse.end] == horse.text
    assert find(index, "secret") == []

    again, second = opened(tmp_path / "index"), Words()
    assert again.update(texts, second).encoded == 0
    assert second.seen == []
    assert find(again, "oak") == [hit]


def test_only_what_changed_is_encoded_again(texts, tmp_path):
    index = opened(tmp_path / "index")
    index.update(texts, Words())
    (texts / "sub" / "plants.md").write_text("A birch grows fast.")
    (texts / "new.rst").write_text("Granite is a stone.")
    os.utime(texts / "animals.txt", ns=(1, 1))  # another time, the same content
    encode = Words()
    done = index.update(texts, encode)
    assert sorted(encode.seen) == ["A birch grows fast.", "Granite is a stone."]
    assert done.removed == 1
    assert find(index, "oak") == []
    assert find(index, "birch")
    (texts / "animals.txt").unlink()
    done = index.update(texts, Words())
    assert done.encoded == 0
    assert find(index, "horse") == []
    assert len(index) == 2


def test_an_interruption_loses_nothing(tmp_path):
    folder = tmp_path / "texts"
    folder.mkdir()
    (folder / "one.txt").write_text("\n\n".join(f"word{i} is a passage of its own here" for i in range(40)))
    first = Words(fail_after=25)
    with pytest.raises(KeyboardInterrupt):
        opened(tmp_path / "index", words=8).update(folder, first, segment=10)
    second = Words()
    index = opened(tmp_path / "index", words=8)
    assert len(index) == 20
    done = index.update(folder, second, segment=10)
    assert (done.kept, done.encoded) == (20, 20)
    assert not set(first.seen) & set(second.seen)
    assert len(first.seen) + len(second.seen) == 40
    assert find(index, "word3")
    assert find(index, "word39")
    leftovers = [p.name for p in (tmp_path / "index").rglob("*") if p.name.startswith(".")]
    assert leftovers == []


INDEXER = """
import sys, time
from pathlib import Path
from search.test_text_index import Words, opened

class Slow(Words):
    def __call__(self, texts):
        with open(sys.argv[3], "a") as log:
            for text in texts:
                time.sleep(0.002)
                log.write(text + "\\n")
                log.flush()
        return super().__call__(texts)

index = opened(sys.argv[1], words=8)
print("ready", flush=True)
done = index.update(Path(sys.argv[2]), Slow(), segment=10)
print(done.encoded, done.kept, len(index), flush=True)
"""


def test_a_killed_process_loses_at_most_one_segment(tmp_path):
    """SIGKILL at random moments, over and over, until a run comes through."""
    folder, place, log = tmp_path / "texts", tmp_path / "index", tmp_path / "log"
    folder.mkdir()
    count = 240
    (folder / "one.txt").write_text("\n\n".join(f"word{i} is a passage of its own here" for i in range(count)))
    chance, kills = random.Random(0), 0
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    for _ in range(40):
        process = subprocess.Popen(
            [sys.executable, "-c", INDEXER, str(place), str(folder), str(log)],
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        assert process.stdout.readline() == "ready\n"
        if kills < 3:
            time.sleep(chance.uniform(0.05, 0.3))
            process.send_signal(signal.SIGKILL)
        rest = process.communicate()[0]
        if process.returncode == 0:
            break
        kills += 1
    encoded, kept, alive = map(int, rest.split())
    assert kills >= 2
    assert encoded + kept == alive == count
    # nothing that was committed is ever encoded again: a kill costs the segment under way, no more
    assert len(log.read_text().split("\n")) - 1 <= count + 10 * kills
    index = opened(place, words=8)
    whole = opened(tmp_path / "whole", words=8)
    whole.update(folder, Words())
    for word in ("word0", "word17", "word123", f"word{count - 1}"):
        assert find(index, word)[0] == find(whole, word)[0]
    left = [path.name for path in place.rglob("*") if path.name.startswith(".")]
    assert left == []


def test_a_kill_before_the_first_commit_leaves_a_usable_folder(texts, tmp_path):
    place = tmp_path / "index"
    place.mkdir()
    (place / "lock").touch()
    (place / ".state-abc").write_text('{"format"')
    index = opened(place)
    index.update(texts, Words())
    assert find(index, "oak")
    assert not (place / ".state-abc").exists()


def test_many_small_updates_are_compacted(tmp_path):
    folder = tmp_path / "texts"
    folder.mkdir()
    index = opened(tmp_path / "index")
    for i in range(40):
        (folder / f"{i}.txt").write_text(f"number{i}")
        index.update(folder, Words())
    assert len(list((tmp_path / "index" / "segments").iterdir())) < 33
    assert len(index) == 40
    assert find(opened(tmp_path / "index"), "number7")[0].file == "7.txt"


@pytest.mark.parametrize(
    ("change", "message"), [({"tokenizer": "t2"}, "another tokenizer"), ({"model": "m2"}, "another model")]
)
def test_another_tokenizer_or_model_is_refused(texts, tmp_path, change, message):
    opened(tmp_path / "index").update(texts, Words())
    with pytest.raises(InputError, match=message):
        opened(tmp_path / "index", **change)


def test_foreign_and_damaged_folders_are_refused(texts, tmp_path):
    with pytest.raises(InputError, match="is no index"):
        opened(texts)
    opened(tmp_path / "index").update(texts, Words())
    segment = next((tmp_path / "index" / "segments").iterdir())
    (segment / "passages.parquet").write_bytes(b"PAR1")
    with pytest.raises(InputError, match="damaged"):
        opened(tmp_path / "index")
    (tmp_path / "index" / "index.json").write_text("{")
    with pytest.raises(InputError, match="damaged"):
        opened(tmp_path / "index")


def test_a_folder_without_text_is_refused(tmp_path):
    (tmp_path / "texts").mkdir()
    with pytest.raises(InputError, match="holds no text"):
        opened(tmp_path / "index").update(tmp_path / "texts", Words())
    with pytest.raises(InputError, match="no folder of texts"):
        opened(tmp_path / "index").update(tmp_path / "nowhere", Words())


def test_binary_files_are_left_out_and_said(texts, tmp_path):
    (texts / "odd.txt").write_bytes(b"a\x00b")
    (texts / "latin.txt").write_bytes("caf\xe9 au lait".encode("latin-1"))
    done = opened(tmp_path / "index").update(texts, Words())
    assert any("'odd.txt'" in note for note in done.notes)
    assert any("1 bytes could not be decoded" in note for note in done.notes)


def test_a_slow_engine_is_kept_and_renewed(texts, tmp_path):
    pytest.importorskip("seismic")
    config = SeismicIndex.Config()
    index = opened(tmp_path / "index")
    index.update(texts, Words())
    assert find(index, "oak", config)[0].file == "sub/plants.md"
    (kept,) = (tmp_path / "index" / "engines").iterdir()
    stamp = (kept / "index.seismic").stat().st_mtime_ns
    assert find(opened(tmp_path / "index"), "oak", config)
    assert (kept / "index.seismic").stat().st_mtime_ns == stamp
    (texts / "more.txt").write_text("A spruce.")
    index.update(texts, Words())
    assert find(index, "spruce", config)[0].file == "more.txt"
    (renewed,) = (tmp_path / "index" / "engines").iterdir()
    assert renewed != kept


def test_engines_of_fewer_terms_are_kept_apart(texts, tmp_path):
    pytest.importorskip("seismic")
    index = opened(tmp_path / "index")
    index.update(texts, Words())
    config = SeismicIndex.Config(cut=50, heap_factor=0.0)
    query = SparseVectors.from_rows([{term(word): 1.0 for word in ("an", "oak", "grows", "slowly")}], VOCABULARY)
    few = index.engine(config, top=1)[0].search(query, 1).scores
    whole = index.engine(config)[0].search(query, 1).scores
    assert whole[0, 0] == pytest.approx(4, abs=0.01)
    assert few[0, 0] == pytest.approx(1, abs=0.01)


def test_a_server_is_told_only_what_changed(texts, tmp_path, monkeypatch):
    """The local mode stands for a server: one client is kept, as a server would keep the collection."""
    client = pytest.importorskip("qdrant_client")
    kept = client.QdrantClient(":memory:")
    monkeypatch.setattr(client, "QdrantClient", lambda *_, **__: kept)
    sent = []
    upsert = kept.upsert

    def counted(name, points, **rest):
        sent.append(len(points))
        return upsert(name, points, **rest)

    monkeypatch.setattr(kept, "upsert", counted)
    config = QdrantIndex.Config(url="http://example.invalid:6333")
    index = opened(tmp_path / "index")
    index.update(texts, Words())
    assert find(index, "oak", config)[0].text == "An oak grows slowly."
    count = len(index)
    assert sum(sent) == count
    assert find(index, "horse", config)
    assert sum(sent) == count
    (texts / "sub" / "plants.md").write_text("A birch grows fast.")
    index.update(texts, Words())
    assert find(index, "birch", config)[0].text == "A birch grows fast."
    assert find(index, "oak", config) == []
    assert sum(sent) == count + 1
    (collection,) = kept.get_collections().collections
    assert kept.count(collection.name).count == len(index)


def test_progress_is_told(texts, tmp_path):
    told = []
    opened(tmp_path / "index").update(
        texts, Words(), segment=1, progress=lambda done, total: told.append((done, total))
    )
    assert told[0][0] == 0
    assert told[-1] == (told[-1][1], told[-1][1])
    assert torch.tensor([d for d, _ in told]).diff().gt(0).all()
