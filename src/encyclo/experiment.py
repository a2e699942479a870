"""An experiment: real data x systems x seeds -> a table, and claims judged on it.

`verify` runs one and returns its record; nothing else writes the files in `results/`.
"""

import ast
import datetime
import hashlib
import json
import math
import os
import platform
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from encyclo import catalogue
from encyclo.errors import InputError
from encyclo.picture import Picture
from encyclo.system import System, SystemConfig

if TYPE_CHECKING:
    from encyclo.data import Splits
    from encyclo.training import Trainer


class Preset(StrEnum):
    """A named size of an experiment."""

    SMOKE = "smoke"
    """Seconds; the tests."""
    LAPTOP = "laptop"
    """Minutes on two CPU cores; the recorded proof."""
    GPU = "gpu"
    """At most ten minutes on one H100."""
    PAPER = "paper"
    """The published configuration; builds on the `meta` device and trains as it stands on a cluster."""


@dataclass(frozen=True, kw_only=True)
class Claim:
    """A sentence of the paper as a comparison in the experiment's table.

    Compares `metric` of `system` with `rival_metric` (default: the same) of `rival`, or, without a rival, with the
    fixed `bound`. With `better="higher"` it asks for system - rival >= `by`, or system / rival >= `times` where that is
    given; with `better="lower"` for rival - system >= `by`, or system / rival <= `times`.
    """

    statement: str
    metric: str
    system: str
    rival: str | None = None
    rival_metric: str | None = None
    better: Literal["higher", "lower"] = "higher"
    by: float = 0.0
    times: float | None = None
    bound: float | None = None
    every_seed: bool = True
    """Must hold for each seed, not only for the mean."""
    beyond_spread: bool = False
    """The mean difference must also exceed the larger standard deviation over seeds of the two."""
    kind: Literal["paper", "exact", "speed", "target"] = "paper"
    """A claim of the paper; an identity that must hold at any size; a speed ratio; a target of this library."""


@dataclass(frozen=True, kw_only=True)
class Trial:
    """All arms of an experiment for one seed, fitted."""

    seed: int
    data: "Splits"
    systems: Mapping[str, System]
    metrics: Mapping[str, dict[str, float]]
    curves: Mapping[str, Mapping[str, Sequence[tuple[int, float, float]]]]
    """By arm and name: (step, seconds, value)."""
    folder: Path
    prepared: Any = None


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """What is run, on what, and what must come out."""

    data: str | Callable[[], "Splits"]
    """A spec for `encyclo.data.load`, or a function that makes the splits."""
    systems: Mapping[str, SystemConfig]
    """The arms; the first is the published system. Budgets stand in each configuration's training fields."""
    claims: Sequence[Claim]
    seeds: int = 3
    kind: str | None = None
    """Which view of the data (see `encyclo.data.load`); None: what the first system reads."""
    prepare: Callable[["Splits", "Trainer", int], Any] | None = None
    """Made once per seed, before the arms, and given to each by `System.start_from`. A fit must also do without it:
    `encyclo train` prepares nothing."""
    compare: Callable[[Trial], Mapping[str, Mapping[str, float]]] | None = None
    """Once per seed, after all arms: further metrics by arm (what needs several arms at once)."""
    pictures: Callable[[Trial], Sequence[Picture]] | None = None
    """Of the first seed."""
    columns: Mapping[str, str] = field(default_factory=dict)
    """Metric name -> heading with unit, in the order of the table; metrics not named stay in the record only."""
    fairness: str = ""
    """One or two sentences: what was held equal, how the rivals were tuned, what the reader should know."""


# -- running -----------------------------------------------------------------------------------------------------


def declared(slug: str, preset: str | Preset) -> Experiment:
    """The experiment that a system's file declares for a preset."""
    try:
        wanted = Preset(preset)
    except ValueError:
        raise InputError(f"preset '{preset}' is none of {', '.join(p.value for p in Preset)}") from None
    made = catalogue.module(slug).experiment(wanted)
    assert isinstance(made, Experiment)
    return made


def load_data(experiment: Experiment, *, spec: str | None = None) -> "Splits":
    """The experiment's data, or the user's own in their place."""
    from encyclo import data

    if spec is None and callable(experiment.data):
        return experiment.data()
    kind = experiment.kind or _class(next(iter(experiment.systems.values()))).reads
    return data.load(spec if spec is not None else str(experiment.data), kind)


def train(
    config: SystemConfig,
    splits: "Splits",
    folder: Path,
    *,
    seed: int = 0,
    resume: bool = False,
    prepared: Any = None,
    progress: bool | None = None,
    label: str = "",
) -> tuple[System, dict[str, float], dict[str, list[tuple[int, float, float]]]]:
    """Build, fit, evaluate and save one system into `folder`; returns it with its metrics and curves."""
    from encyclo.training import Trainer

    trainer = Trainer(folder, seed=seed, resume=resume, progress=progress, label=label)
    system: System = config.build()
    if prepared is not None:
        system.start_from(prepared)
    began = time.perf_counter()
    system.fit(splits, trainer)
    fitted = time.perf_counter() - began
    system.eval()
    metrics = {name: float(value) for name, value in system.evaluate(splits).items()}
    metrics.setdefault("fit_seconds", fitted)
    system.save_pretrained(folder, results=metrics)
    return system, metrics, read_curves(folder)


def verify(
    slug: str,
    *,
    preset: str = "laptop",
    seeds: int | None = None,
    folder: str | Path = "runs/verify",
    results: str | Path | None = "results",
    progress: bool | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Run a system and its rivals, judge every claim, write `RESULTS/PRESET/SLUG.json`; returns the record.

    Args:
        slug: a system of the catalogue.
        preset: smoke, laptop or gpu.
        seeds: overrides the experiment's number of seeds.
        folder: where trained systems and curves go, into SLUG-PRESET, which is made anew.
        results: where the record goes; None writes none.
        say: called with one line per finished arm.
    """
    from encyclo.metrics.cost import peak_memory
    from encyclo.nn.part import parameter_count
    from encyclo.training import Trainer

    experiment = declared(slug, preset)
    code = sources(slug)  # now: the files may change while this runs
    if not experiment.claims or preset == Preset.PAPER:
        raise InputError(f"preset '{preset}' of '{slug}' trains, but has nothing to verify on one machine")
    began = time.perf_counter()
    splits = load_data(experiment)
    count = seeds if seeds is not None else experiment.seeds
    if count < 1:
        raise InputError(f"seeds={count}: at least one is needed")
    arms: dict[str, dict[str, Any]] = {
        name: {
            "class": _class(config).__name__,
            "config": config.model_dump(mode="json"),
            "metrics": {},
            "parameters": 0,
            "curves": [],
        }
        for name, config in experiment.systems.items()
    }
    pictures: list[Picture] = []
    base = Path(folder) / f"{slug}-{preset}"
    shutil.rmtree(base, ignore_errors=True)  # an earlier verification of the same
    for seed in range(count):
        place = base / f"seed{seed}"
        prepared = None
        if experiment.prepare is not None:
            prepared = experiment.prepare(splits, Trainer(place / "prepared", seed=seed, progress=progress), seed)
        fitted: dict[str, System] = {}
        measured: dict[str, dict[str, float]] = {}
        curves: dict[str, Any] = {}
        for name, config in experiment.systems.items():
            system, metrics, traced = train(
                config,
                splits,
                place / name,
                seed=seed,
                prepared=prepared,
                progress=progress,
                label=f"{name} seed {seed}",
            )
            fitted[name], measured[name], curves[name] = system, metrics, traced
            arms[name]["parameters"] = parameter_count(system)
            arms[name]["curves"].append({metric: _thin(points) for metric, points in traced.items()})
            shown = ", ".join(f"{m} {metrics[m]:.4g}" for m in experiment.columns if m in metrics)
            say(f"seed {seed}  {name}: {shown}")
        trial = Trial(
            seed=seed, data=splits, systems=fitted, metrics=measured, curves=curves, folder=place, prepared=prepared
        )
        if experiment.compare is not None:
            for name, more in experiment.compare(trial).items():
                measured.setdefault(name, {}).update({key: float(value) for key, value in more.items()})
                arms.setdefault(name, {"class": "", "config": {}, "metrics": {}, "parameters": 0, "curves": []})
        for name, values in measured.items():
            for metric, value in values.items():
                arms[name]["metrics"].setdefault(metric, []).append(value)
        if seed == 0 and experiment.pictures is not None:
            pictures = list(experiment.pictures(trial))
    record = {
        "slug": slug,
        "preset": str(preset),
        "title": catalogue.card(slug).title,
        "command": f"encyclo verify {slug} --preset {preset}" + (f" --seeds {seeds}" if seeds is not None else ""),
        "seeds": count,
        "seconds": round(time.perf_counter() - began, 1),
        "peak_memory_bytes": peak_memory(),
        "data": {"name": splits.name, "fingerprint": splits.fingerprint, "notes": list(splits.notes)},
        "fairness": experiment.fairness,
        "columns": dict(experiment.columns),
        "arms": arms,
        "claims": [_judge(claim, arms) for claim in experiment.claims],
        "environment": environment(),
        "hashes": {
            "configs": {name: config.fingerprint() for name, config in experiment.systems.items()},
            "sources": code,
        },
        "pictures": [{"name": p.name, "caption": p.caption, "kind": p.kind, "docs": p.docs} for p in pictures],
    }
    for arm in arms.values():
        arm["metrics"] = {metric: _spread(values) for metric, values in arm["metrics"].items()}
    for picture in pictures:
        _write(base / "pictures" / f"{picture.name}.{picture.kind}", picture.content)
    _write(base / "record.json", json.dumps(record, indent=1, allow_nan=False).encode())
    if results is not None:
        target = Path(results) / str(preset)
        for picture in pictures:
            if picture.docs:
                _write(target / "pictures" / slug / f"{picture.name}.{picture.kind}", picture.content)
        _write(target / f"{slug}.json", json.dumps(record, indent=1, allow_nan=False).encode() + b"\n")
    return record


def read_records(folder: Path, preset: str) -> dict[str, dict[str, Any]]:
    """The records of a preset by slug, in the catalogue's order; an unreadable file is an error, not a gap.

    Raises:
        InputError: a record that is no JSON.
    """
    found = {}
    for slug in catalogue.cards():
        path = folder / preset / f"{slug}.json"
        if path.is_file():
            try:
                found[slug] = json.loads(path.read_text(encoding="utf-8"))
            except json.JSONDecodeError:
                raise InputError(f"{path} is no record (damaged JSON); `encyclo verify {slug}` makes it anew") from None
    return found


def read_curves(folder: Path) -> dict[str, list[tuple[int, float, float]]]:
    """The curves in `folder/metrics.jsonl`: (step, seconds, value) by name (STAGE/NAME with several stages)."""
    path = folder / "metrics.jsonl"
    if not path.is_file():
        return {}
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    several = len({line["stage"] for line in lines}) > 1
    curves: dict[str, list[tuple[int, float, float]]] = {}
    for line in lines:
        for name, value in line.items():
            if name not in ("stage", "step", "seconds") and value is not None:
                key = f"{line['stage']}/{name}" if several else name
                curves.setdefault(key, []).append((int(line["step"]), float(line["seconds"]), float(value)))
    return curves


def _class(config: SystemConfig) -> type[System]:
    kind = config._part
    assert issubclass(kind, System)
    return kind


def _thin(points: Sequence[tuple[int, float, float]], most: int = 120) -> list[list[float]]:
    """At most `most` points of a curve, first and last kept."""
    step = max(1, math.ceil(len(points) / most))
    kept = [*points[::step]]
    if points and kept[-1] != points[-1]:
        kept.append(points[-1])
    return [[s, round(t, 3), float(f"{v:.6g}")] for s, t, v in kept if math.isfinite(v)]


def _spread(values: Sequence[float]) -> dict[str, Any]:
    finite = all(math.isfinite(v) for v in values)
    return {
        "mean": statistics.fmean(values) if finite else None,
        "std": (statistics.stdev(values) if len(values) > 1 else 0.0) if finite else None,
        "values": [v if math.isfinite(v) else None for v in values],
    }


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=".writing-")
    with os.fdopen(handle, "wb") as file:
        file.write(content)
    os.chmod(name, 0o644)
    os.replace(name, path)


# -- judging -----------------------------------------------------------------------------------------------------


def _judge(claim: Claim, arms: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The claim with its verdict and the numbers behind it. A number that is missing or not finite shows nothing."""
    described = {key: value for key, value in asdict(claim).items() if value is not None}
    ours: list[Any] = list(arms[claim.system]["metrics"].get(claim.metric, []))
    name = claim.rival_metric or claim.metric
    theirs: list[Any] = [claim.bound] * len(ours)
    if claim.rival is not None:
        theirs = list(arms[claim.rival]["metrics"].get(name, []))
    if not ours or len(ours) != len(theirs) or not all(v is not None and math.isfinite(v) for v in (*ours, *theirs)):
        return {**described, "verdict": "not shown", "sentence": f"'{claim.metric}' was not measured in every seed"}
    sign = 1.0 if claim.better == "higher" else -1.0
    a, b = statistics.fmean(ours), statistics.fmean(theirs)
    if claim.times is not None:
        margins = [sign * (x - claim.times * y) for x, y in zip(ours, theirs, strict=True)]
        middle = sign * (a - claim.times * b)
        relation = f"{a / b:.3g} x, asked for at {'least' if sign > 0 else 'most'} {claim.times:g} x" if b else "x / 0"
    elif claim.rival is None:
        margins = [sign * (x - y) for x, y in zip(ours, theirs, strict=True)]
        middle = sign * (a - b)
        relation = f"asked for at {'least' if sign > 0 else 'most'} {b:g}"
    else:
        margins = [sign * (x - y) - claim.by for x, y in zip(ours, theirs, strict=True)]
        middle = sign * (a - b) - claim.by
        asked = f"at least {claim.by:g} {'above' if sign > 0 else 'below'}" if claim.by else f"{claim.better} than it"
        relation = f"difference {a - b:+.4g}, asked for {asked}"
    holds = all(m >= 0 for m in margins) if claim.every_seed else middle >= 0
    if claim.rival is not None and claim.by == 0 and claim.times is None:
        holds = holds and middle > 0  # a tie shows nothing
    if claim.beyond_spread and claim.rival is not None:
        spread = max(_spread(ours)["std"], _spread(theirs)["std"])
        holds = holds and sign * (a - b) > spread
        relation += f", spread over seeds {spread:.3g}"
    count = len(ours)
    scope = (
        f"in each of {count} seeds"
        if claim.every_seed and count > 1
        else f"mean of {count} seeds"
        if count > 1
        else "1 seed"
    )
    against = f" against {b:.4g} ({claim.rival})" if claim.rival is not None else ""
    return {
        **described,
        "verdict": "shown" if holds else "not shown",
        "sentence": f"{claim.metric} {a:.4g} ({claim.system}){against}: {relation} ({scope})",
        "values": ours,
        "rival_values": theirs,
    }


# -- where and with what -------------------------------------------------------------------------------------------


def environment() -> dict[str, Any]:
    """Machine, versions and commit of this process."""
    import torch

    versions = {"python": platform.python_version()}
    for name in ("torch", "transformers", "accelerate", "numpy", "scikit-learn", "diffusers", "constriction"):
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    cuda = torch.cuda.is_available()
    return {
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d"),
        "commit": _git("rev-parse", "--short=12", "HEAD"),
        "device": torch.cuda.get_device_name(0) if cuda else _processor(),
        "threads": torch.get_num_threads(),
        "platform": platform.platform(terse=True),
        "versions": versions,
    }


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return f"{line.split(':', 1)[1].strip()} ({os.cpu_count()} cores)"
    except OSError:
        pass
    return f"{platform.processor() or platform.machine()} ({os.cpu_count()} cores)"


def _git(*words: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", *words], cwd=Path(__file__).parent, capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None


_MEASURED = ("nn", "losses", "sampling", "tokens", "metrics", "search", "systems")
"""Rooms whose change makes a record stale; the loop and the engine are held by their own tests."""


def sources(slug: str) -> dict[str, str]:
    """Hashes of a system's file and of all parts it imports, by path within the package; comments do not count."""
    root = Path(__file__).parent
    todo, found = [catalogue.source(slug)], dict[str, str]()
    while todo:
        path = todo.pop()
        name = str(path.relative_to(root))
        if name in found:
            continue
        tree = ast.parse(path.read_text(encoding="utf-8"))
        found[name] = hashlib.sha256(ast.dump(_without_docstrings(tree)).encode()).hexdigest()[:16]
        for node in ast.walk(tree):
            modules: list[str] = []
            if isinstance(node, ast.ImportFrom) and node.module:
                modules = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
            elif isinstance(node, ast.Import):
                modules = [alias.name for alias in node.names]
            for module in modules:
                steps = module.split(".")
                if len(steps) < 2 or steps[0] != "encyclo" or steps[1] not in _MEASURED:
                    continue
                inner = root.joinpath(*steps[1:])
                todo += [p for p in (inner.with_suffix(".py"), inner / "__init__.py") if p.is_file()]
    return dict(sorted(found.items()))


def _without_docstrings(tree: ast.Module) -> ast.Module:
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list):
            node.body = [  # type: ignore[attr-defined]
                s
                for s in body
                if not (
                    isinstance(s, ast.Expr) and isinstance(s.value, ast.Constant) and isinstance(s.value.value, str)
                )
            ]
    return tree


def stale(record: Mapping[str, Any]) -> list[str]:
    """What has changed since a record was made: names of source files and arms; empty when it is current."""
    slug, preset = str(record["slug"]), str(record["preset"])
    now, then = sources(slug), record["hashes"]["sources"]
    changed = [name for name in sorted({*now, *then}) if now.get(name) != then.get(name)]
    configs = {name: config.fingerprint() for name, config in declared(slug, preset).systems.items()}
    return changed + [f"configuration of {n}" for n, c in configs.items() if record["hashes"]["configs"].get(n) != c]
