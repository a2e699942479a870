"""The scoreboard: a table made from the records in `results/` and nothing else.

`python -m encyclo.report.scoreboard --write` puts it into README.md and docs/scoreboard.md between two marks;
`--check` says (exit 1) when they are not current.
"""

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from encyclo import catalogue
from encyclo.experiment import read_records, stale
from encyclo.report.page import number

BEGIN, END = "<!-- scoreboard: made by `make scoreboard` -->", "<!-- scoreboard ends -->"


def table(folder: Path, preset: str = "laptop") -> str:
    """The scoreboard of a preset as a Markdown table."""
    rows = [
        "| system | wing | claims shown | the first claim | measured | seeds | time | state |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for slug, record in read_records(folder, preset).items():
        card = catalogue.card(slug)
        claims = record["claims"]
        first = claims[0]
        changed = stale(record)
        state = "current" if not changed else f"stale ({len(changed)} changed)"
        rows.append(
            f"| [{slug}](docs/texts/{slug}.md) | {card.wing.replace('_', ' ')} "
            f"| {sum(c['verdict'] == 'shown' for c in claims)} of {len(claims)} "
            f"| {first['statement']}: **{first['verdict']}** | {_measured(first)} "
            f"| {record['seeds']} | {record['seconds'] / 60:.0f} min | {state} |"
        )
    return "\n".join(rows)


def _measured(claim: Mapping[str, Any]) -> str:
    values, others = claim.get("values") or [], claim.get("rival_values") or []
    if not values:
        return "not measured"
    mean = sum(values) / len(values)
    text = f"{claim['metric']} {number(mean)}"
    if claim.get("rival"):
        text += f" against {number(sum(others) / len(others))}"
    return text


def _placed(text: str, board: str) -> str:
    if BEGIN not in text or END not in text:
        raise SystemExit(f"the marks '{BEGIN}' and '{END}' are missing")
    head, rest = text.split(BEGIN, 1)
    return f"{head}{BEGIN}\n{board}\n{END}{rest.split(END, 1)[1]}"


def main() -> int:
    """Write or check; returns the exit status."""
    parser = argparse.ArgumentParser(description="Scoreboard from the records.")
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--root", type=Path, default=Path())
    given = parser.parse_args()
    board = table(given.root / "results")
    status = 0
    for name in ("README.md", "docs/scoreboard.md"):
        path = given.root / name
        shown = board if name == "README.md" else board.replace("](docs/texts/", "](systems/")
        old = path.read_text(encoding="utf-8")
        new = _placed(old, shown)
        if given.write and new != old:
            path.write_text(new, encoding="utf-8")
            print(f"wrote {name}")
        if given.check and new != old:
            print(f"{name}: the scoreboard is not current; run `make scoreboard`", file=sys.stderr)
            status = 1
    if not given.write and not given.check:
        print(board)
    return status


if __name__ == "__main__":
    sys.exit(main())
