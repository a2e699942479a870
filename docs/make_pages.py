"""Writes the generated pages of the site: systems, rooms, commands, data. Run by `make docs`."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from encyclo import catalogue, data
from encyclo.report.page import rows
from encyclo.verbs import VERBS

DOCS = Path(__file__).parent
ROOT = DOCS.parent
PACKAGE = ROOT / "src" / "encyclo"
ROOMS = ("data", "tokens", "nn", "losses", "sampling", "training", "metrics", "search", "report", "studio")
WORDS = {"paper": "the paper claims", "exact": "holds exactly", "speed": "speed", "target": "our target"}


def main() -> None:
    """Write all generated pages anew."""
    for name in ("systems", "rooms", "reference"):
        shutil.rmtree(DOCS / name, ignore_errors=True)
        (DOCS / name).mkdir()
    systems()
    rooms()
    commands()
    packs()


def systems() -> None:
    """One page per system: card, text, pictures, claims, table, configuration, interface."""
    lines = ["# Systems", "", "| system | wing | year | what it is | verbs |", "|---|---|---|---|---|"]
    for slug, card in catalogue.cards().items():
        verbs = ", ".join(f"`{v}`" for v in card.verbs)
        lines.append(
            f"| [{slug}]({slug}.md) | {card.wing.replace('_', ' ')} | {card.year} | {card.summary} | {verbs} |"
        )
        (DOCS / "systems" / f"{slug}.md").write_text(system_page(slug), encoding="utf-8")
    lines += ["", "```{toctree}", ":hidden:", "", *catalogue.cards(), "```", ""]
    (DOCS / "systems" / "index.md").write_text("\n".join(lines), encoding="utf-8")


def system_page(slug: str) -> str:
    """The page of one system."""
    card = catalogue.card(slug)
    text = ROOT / "docs" / "texts" / f"{slug}.md"
    page = [
        f"# {card.title}",
        "",
        f"{card.summary}",
        "",
        f"{card.authors}, {card.year}{', ' + card.venue if card.venue else ''} · [arXiv {card.arxiv}]({card.url}) · "
        f"wing *{card.wing.replace('_', ' ')}* · verbs {', '.join(f'`{v}`' for v in card.verbs)}",
        "",
    ]
    pictures = sorted((ROOT / "results" / "laptop" / "pictures" / slug).glob("*.*"))
    record_file = ROOT / "results" / "laptop" / f"{slug}.json"
    record = json.loads(record_file.read_text(encoding="utf-8")) if record_file.is_file() else None
    captions = {p["name"]: p["caption"] for p in record["pictures"]} if record else {}
    kept = DOCS / "systems" / "pictures" / slug
    for picture in pictures:
        kept.mkdir(parents=True, exist_ok=True)
        shutil.copy(picture, kept / picture.name)
        caption = captions.get(picture.stem, "")
        page += [f"```{{figure}} pictures/{slug}/{picture.name}", f":alt: {caption}", "", caption, "```", ""]
    if text.is_file():
        page += [text.read_text(encoding="utf-8").strip(), ""]
    if record is not None:
        page += measured(record)
    path = catalogue.source(slug).relative_to(PACKAGE.parent)
    page += ["## Interface", "", f"Everything that is this paper's own stands in `src/{path}`.", ""]
    page += ["```{eval-rst}", f".. automodule:: {card.module}", "   :members:", "```", ""]
    return "\n".join(page)


def measured(record: dict[str, Any]) -> list[str]:
    """Claims and table of a record."""
    made = record["environment"]
    lines = [
        "## What a run shows",
        "",
        f"`{record['command']}`, {record['seeds']} seeds, {record['seconds'] / 60:.0f} minutes on {made['device']}, "
        f"{made['date']}. Data: {record['data']['name']}. {record['fairness']}",
        "",
        "| claim | verdict | measured |",
        "|---|---|---|",
    ]
    lines += [
        f"| {claim['statement']} *({WORDS[claim['kind']]})* | **{claim['verdict']}** | {claim['sentence']} |"
        for claim in record["claims"]
    ]
    lines += ["", "| arm | parameters | " + " | ".join(record["columns"].values()) + " |"]
    lines.append("|---|---|" + "---|" * len(record["columns"]))
    for row in rows(record):
        cells = " | ".join(f"{value} {spread}".strip() for value, spread in row["cells"])
        lines.append(f"| {row['name']} | {row['parameters']} | {cells} |")
    return [*lines, ""]


def rooms() -> None:
    """One page per room, from its docstrings."""
    index = ["# Rooms", "", "Each room holds parts of one sort; imports point downwards only.", "", "```{toctree}", ""]
    for room in ROOMS:
        folder = PACKAGE / room
        modules = sorted(p.stem for p in folder.glob("*.py") if p.stem != "__init__")
        if not modules:
            continue
        index.append(room)
        page = [f"# {room}", "", "```{eval-rst}", f".. automodule:: encyclo.{room}", "   :no-members:", "```", ""]
        for module in modules:
            page += [
                f"## {module}",
                "",
                "```{eval-rst}",
                f".. automodule:: encyclo.{room}.{module}",
                "   :members:",
                "```",
                "",
            ]
        (DOCS / "rooms" / f"{room}.md").write_text("\n".join(page), encoding="utf-8")
    core = ["# core", "", "What every system stands on.", ""]
    for module in ("catalogue", "card", "config", "system", "verbs", "experiment", "pretrained", "picture", "errors"):
        core += [f"## {module}", "", "```{eval-rst}", f".. automodule:: encyclo.{module}", "   :members:", "```", ""]
    (DOCS / "rooms" / "core.md").write_text("\n".join(core), encoding="utf-8")
    index += ["core", "```", ""]
    (DOCS / "rooms" / "index.md").write_text("\n".join(index), encoding="utf-8")


def commands() -> None:
    """The help text of every command, from the commands themselves."""
    page = ["# Commands", ""]
    for name in ("list", "show", "train", "verify", "encode", "data", "doctor", "studio"):
        done = subprocess.run(
            [sys.executable, "-m", "encyclo", name, "--help"],
            capture_output=True,
            text=True,
            check=True,
            env={"COLUMNS": "100", "PATH": "/usr/bin", "NO_COLOR": "1", "TERM": "dumb"},
        )
        page += [f"## encyclo {name}", "", "```text", done.stdout.strip("\n"), "```", ""]
    page += ["## The verbs", "", "All take the same words as `encode`; which a system has stands on its page.", ""]
    page += ["| verb | what it does |", "|---|---|", *(f"| `{verb}` | {told} |" for verb, told in VERBS.items()), ""]
    (DOCS / "reference" / "commands.md").write_text("\n".join(page), encoding="utf-8")


def packs() -> None:
    """The bundled data sets with source and licence."""
    page = ["# Data packs", "", "Real and small, bundled with the package; `encyclo data show NAME` tells more.", ""]
    page += ["| pack | kind | rows | source | licence | attribution |", "|---|---|---|---|---|---|"]
    for name in data.names():
        m = data.manifest(name)
        count = ", ".join(f"{split} {n:,}" for split, n in m.rows.items())
        page.append(
            f"| `{name}` | {m.kind} | {count} | {m.package} | [{m.licence}]({m.licence_url}) | {m.attribution} |"
        )
    (DOCS / "reference" / "data.md").write_text("\n".join([*page, ""]), encoding="utf-8")


if __name__ == "__main__":
    main()
