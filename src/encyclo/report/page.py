"""The report of one experiment: a single HTML file that needs nothing beside it."""

import base64
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from encyclo import catalogue
from encyclo.report.plots import training_curves


def write(record: Mapping[str, Any], folder: Path) -> Path:
    """Write `folder/report.html` from a record and the pictures in `folder/pictures`; returns its path."""
    target = folder / "report.html"
    text = render(record, folder / "pictures")
    handle, name = tempfile.mkstemp(dir=folder, prefix=".writing-")
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        file.write(text)
    os.chmod(name, 0o644)
    os.replace(name, target)
    return target


def render(record: Mapping[str, Any], pictures: Path) -> str:
    """The page as text; pictures are put in as data."""
    shown = [
        {"caption": p["caption"], "body": _embed(p["kind"], pictures / f"{p['name']}.{p['kind']}")}
        for p in record["pictures"]
        if (pictures / f"{p['name']}.{p['kind']}").is_file()
    ]
    curves = [{"caption": p.caption, "body": Markup(_svg(p.content))} for p in training_curves(record)]
    environment = Environment(
        loader=PackageLoader("encyclo.report", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
    )
    return environment.get_template("page.html").render(
        record=record,
        card=catalogue.card(record["slug"]),
        shown=sum(c["verdict"] == "shown" for c in record["claims"]),
        rows=rows(record),
        pictures=shown,
        curves=curves,
        configs={name: json.dumps(arm["config"], indent=1) for name, arm in record["arms"].items() if arm["config"]},
        words={"paper": "the paper claims", "exact": "holds exactly", "speed": "speed", "target": "our target"},
    )


def rows(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The table: per arm its parameters and, per column, mean and spread as text."""
    table = []
    for name, arm in record["arms"].items():
        cells = []
        for metric in record["columns"]:
            value = arm["metrics"].get(metric)
            if value is None or value["mean"] is None:
                cells.append(("–", ""))
            else:
                cells.append((number(value["mean"]), f"± {number(value['std'])}" if record["seeds"] > 1 else ""))
        table.append(
            {"name": name, "parameters": f"{arm['parameters']:,}" if arm["parameters"] else "–", "cells": cells}
        )
    return table


def number(value: float) -> str:
    """A figure with four significant digits, thousands separated."""
    if value == int(value) and abs(value) < 1e15:
        return f"{int(value):,}"
    if abs(value) >= 10000:
        return f"{value:,.0f}"
    return f"{value:.4g}"


def _embed(kind: str, path: Path) -> Markup:
    content = path.read_bytes()
    if kind == "svg":
        return Markup(_svg(content))
    data = base64.b64encode(content).decode()
    if kind == "wav":
        return Markup(f'<audio controls preload="none" src="data:audio/wav;base64,{data}"></audio>')
    return Markup(f'<img alt="" src="data:image/{kind};base64,{data}">')


def _svg(content: bytes) -> str:
    text = content.decode()
    return text[text.index("<svg") :]
