"""Routes of the web app: plain pages, one form per verb."""

import inspect
import tempfile
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from jinja2 import Environment, PackageLoader, StrictUndefined
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import FileResponse, HTMLResponse, Response
from starlette.routing import Route

from encyclo import catalogue, verbs
from encyclo.errors import InputError, TrainingStopped
from encyclo.experiment import read_records
from encyclo.system import CONFIG_FILE, System, open_system

LARGEST_UPLOAD = 64 * 2**20
"""Bytes of one uploaded file."""

HOSTS = ["127.0.0.1", "localhost", "testserver"]


def create_app(runs: Path, results: Path = Path("results")) -> Starlette:
    """The application over a folder of runs and a folder of records."""
    return Studio(runs, results).application()


class Studio:
    """Pages and the one system that is open at a time."""

    def __init__(self, runs: Path, results: Path) -> None:
        self.runs, self.results = runs, results
        self.pages = Environment(
            loader=PackageLoader("encyclo.studio", "templates"), autoescape=True, undefined=StrictUndefined
        )
        self._open: tuple[str, System] | None = None
        self._folder = tempfile.TemporaryDirectory(prefix="encyclo-studio-")

    def application(self) -> Starlette:
        """The routes. Foreign host names are refused, so that no other site can reach the app through the browser."""
        return Starlette(
            routes=[
                Route("/", self.home),
                Route("/system/{slug}", self.system),
                Route("/run/{name:path}", self.run, methods=["GET", "POST"]),
                Route("/file/{name}", self.file),
            ],
            middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=HOSTS)],
        )

    def _page(self, template: str, status: int = 200, /, **values: Any) -> HTMLResponse:
        return HTMLResponse(self.pages.get_template(template).render(**values), status_code=status)

    def run_names(self) -> list[str]:
        """Finished runs below the folder, newest first."""
        found = [p.parent for p in self.runs.glob("**/" + CONFIG_FILE) if not p.parent.name.startswith(".")]
        found.sort(key=lambda p: p.stat().st_mtime, reverse=True)
        return [str(p.relative_to(self.runs)) for p in found]

    async def home(self, request: Request) -> Response:
        """Catalogue and runs."""
        records = read_records(self.results, "laptop")
        return self._page("home.html", cards=list(catalogue.cards().values()), records=records, runs=self.run_names())

    async def system(self, request: Request) -> Response:
        """One system with its records."""
        try:
            card = catalogue.card(request.path_params["slug"])
        except InputError as error:
            return self._page("message.html", 404, message=str(error))
        records = {p: read_records(self.results, p).get(card.slug) for p in ("laptop", "gpu")}
        return self._page("system.html", card=card, records={p: r for p, r in records.items() if r})

    async def run(self, request: Request) -> Response:
        """A run: its verbs as forms, and their results."""
        name = request.path_params["name"]
        if name not in self.run_names():
            return self._page("message.html", 404, message=f"there is no run '{name}' in {self.runs}")
        try:
            system = await run_in_threadpool(self._opened, name)
        except InputError as error:
            return self._page("message.html", 400, message=str(error))
        told: dict[str, Any] = {"verb": "", "error": "", "results": []}
        if request.method == "POST":
            origin = request.headers.get("origin")
            if origin is not None and urlsplit(origin).hostname not in HOSTS:
                return self._page("message.html", 403, message="the form was sent from another site")
            told = await self._do(system, request)
        forms = [
            {"verb": verb, "help": verbs.VERBS[verb], "options": _options(system, verb)} for verb in system.card.verbs
        ]
        return self._page("run.html", 400 if told["error"] else 200, name=name, card=system.card, forms=forms, **told)

    def _opened(self, name: str) -> System:
        if self._open is None or self._open[0] != name:
            self._open = (name, open_system(self.runs / name))
        return self._open[1]

    async def _do(self, system: System, request: Request) -> dict[str, Any]:
        async with request.form(max_files=1, max_part_size=LARGEST_UPLOAD) as form:
            verb = str(form.get("verb", ""))
            inputs = [str(form["text"])] if form.get("text") else []
            upload = form.get("file")
            if upload is not None and not isinstance(upload, str) and upload.filename:
                content = await upload.read(LARGEST_UPLOAD + 1)
                if len(content) > LARGEST_UPLOAD:
                    return {"verb": verb, "error": f"the file is larger than {LARGEST_UPLOAD >> 20} MiB", "results": []}
                path = Path(self._folder.name) / f"input{Path(upload.filename).suffix[:8]}"
                path.write_bytes(content)
                inputs = [str(path), *inputs]
            words = str(form.get("options", "")).split()
        out = Path(self._folder.name) / "page.html"
        try:
            done = await run_in_threadpool(verbs.call, system, verb, inputs, words, out)
        except (InputError, TrainingStopped) as error:
            return {"verb": verb, "error": str(error), "results": []}
        results = [{"report": r.report, "notes": r.notes, **self._shown(r.value, i)} for i, r in enumerate(done)]
        return {"verb": verb, "error": "", "results": results}

    def _shown(self, value: Any, number: int) -> dict[str, Any]:
        """A result for the page: text, rows, or a file to see or fetch."""
        if isinstance(value, Path):
            return {"text": "", "rows": [], "link": value.name if value.parent == Path(self._folder.name) else ""}
        if isinstance(value, list) and value and isinstance(value[0], dict):
            return {"text": "", "rows": value, "link": ""}
        suffix = verbs._suffix(value)
        if suffix != ".json":
            path = Path(self._folder.name) / f"result{number}{suffix}"
            verbs.write(value, path)
            return {"text": "", "rows": [], "link": path.name}
        text = value if isinstance(value, str) else str(verbs.plain(value))
        return {"text": text[:20_000], "rows": [], "link": ""}

    async def file(self, request: Request) -> Response:
        """A file that a verb made in this session."""
        path = Path(self._folder.name) / Path(request.path_params["name"]).name
        if not path.is_file():
            return self._page("message.html", 404, message="this result is gone")
        return FileResponse(path, headers={"Content-Security-Policy": "sandbox"})


def _options(system: System, verb: str) -> str:
    """The options of a verb with their defaults, as `name=value` words."""
    signature = inspect.signature(getattr(system, verbs.method_name(verb)))
    named = [p for p in signature.parameters.values() if p.kind is p.KEYWORD_ONLY and p.name != "out"]
    return " ".join(f"{p.name}={'...' if p.default is p.empty else p.default}" for p in named)
