from pathlib import Path

import pytest
import torch

from encyclo.data import export, load
from encyclo.data.images import to_tensor
from encyclo.errors import InputError


def test_pictures_come_back_with_splits_and_labels(tmp_path: Path) -> None:
    """`digits` has white at 16: the files are ordinary pictures all the same."""
    pack = load("digits", "image")
    count = export("digits", tmp_path / "out" / "digits")
    again = load(str(tmp_path / "out" / "digits"), "image")
    assert count == sum(len(part) + 1 for part in (pack.train, pack.validation, pack.test))
    assert (pack.peak, again.peak) == (16, 255)
    for split in ("train", "validation", "test"):
        ours, theirs = getattr(again, split), getattr(pack, split)
        assert len(ours) == len(theirs)
        assert sorted(map(str, ours["label"])) == sorted(map(str, theirs["label"]))
    white = [int(to_tensor(list(part.test["image"]), 8, "L").max()) for part in (again, pack)]
    assert white == [255, 16]
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["digits"], "nothing else is left"


def test_bytes_of_files_are_kept(tmp_path: Path) -> None:
    from encyclo.data.images import write_image

    for number, label in enumerate(("a b", "c/d", "e")):
        write_image(torch.full((1, 4, 4), 40 * number, dtype=torch.uint8), tmp_path / f"{number}.png")
        (tmp_path / f"{number}.txt").write_text(label)
    export(str(tmp_path), tmp_path.parent / "copy")
    again, before = load(str(tmp_path.parent / "copy"), "image"), load(str(tmp_path), "image")

    def content(data: object) -> list[tuple[bytes, str]]:
        return sorted((r["image"], r["caption"]) for s in ("train", "validation", "test") for r in getattr(data, s))

    assert content(again) == content(before)


def test_records_come_back(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "pairs.jsonl").write_text("".join(f'{{"query": "q{i}", "document": "d\u00e9{i}"}}\n' for i in range(60)))
    before = load(str(folder), "pair")
    assert export(str(folder), tmp_path / "out") == 3
    again = load(str(tmp_path / "out"), "pair")
    for split in ("train", "validation", "test"):
        assert sorted(getattr(again, split)["query"]) == sorted(getattr(before, split)["query"])


def test_a_full_folder_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "kept").write_text("x")
    with pytest.raises(InputError, match="not empty"):
        export("digits", tmp_path)
    with pytest.raises(InputError):
        export("no-such-data", tmp_path / "new")
    assert [p.name for p in tmp_path.iterdir()] == ["kept"]
