"""Start-up beside the peers': `import encyclo` and torch, `encyclo --help`, `list` and `transformers --help`.

    python benchmarks/startup.py [--rounds 9] [--out FILE.json]

Each arm is a fresh process; all arms take turns, so that they meet the same load and warm caches; medians of wall time
and of processor time. Beside the clock: what each of our arms loaded (neither torch nor, for the bare import, typer,
rich or pydantic), and that `list` printed every system.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from encyclo import catalogue
from encyclo.experiment import environment

BIN = Path(sys.executable).parent
ARMS: dict[str, list[str]] = {
    "python -c pass": [sys.executable, "-c", "pass"],
    "import torch": [sys.executable, "-c", "import torch"],
    "import encyclo": [sys.executable, "-c", "import encyclo"],
    "transformers --help": [str(BIN / "transformers"), "--help"],
    "encyclo --help": [str(BIN / "encyclo"), "--help"],
    "encyclo list": [str(BIN / "encyclo"), "list"],
    "encyclo show": [str(BIN / "encyclo"), "show", "hnerv"],
    "open one system": [sys.executable, "-c", "from encyclo import catalogue; catalogue.module('mosaicbert')"],
}
TARGETS = {
    "import encyclo": ("import torch", 0.1),
    "encyclo --help": ("transformers --help", 0.15),
    "encyclo list": ("transformers --help", 0.15),
    "encyclo show": ("transformers --help", 0.15),
    "open one system": ("import torch", 1.3),
}
HEAVY = ("torch", "transformers", "diffusers", "sentence_transformers", "numpy", "pydantic", "typer", "rich")


def timed(command: list[str]) -> tuple[float, float, str]:
    """Wall seconds, processor seconds and output of one process."""
    before, began = os.times(), time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    wall, after = time.perf_counter() - began, os.times()
    spent = after.children_user - before.children_user + after.children_system - before.children_system
    return wall, spent, done.stdout


def loaded(code: str) -> list[str]:
    """Which of the heavy packages a piece of code imports, in a fresh process."""
    told = f"import sys, json; {code}; print(json.dumps([m for m in {HEAVY!r} if m in sys.modules]), file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", told], capture_output=True, text=True, check=True)
    return list(json.loads(done.stderr.splitlines()[-1]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in ARMS}
    shown = ""
    for turn in range(given.rounds + 1):
        for name, command in ARMS.items():
            wall, spent, out = timed(command)
            if turn:  # the first round warms the caches
                seconds[name].append((wall, spent))
            if name == "encyclo list":
                shown = out
    empty = statistics.median(s for _, s in seconds["python -c pass"])
    arms: dict[str, dict[str, Any]] = {}
    for name, values in seconds.items():
        wall, spent = statistics.median(w for w, _ in values), statistics.median(s for _, s in values)
        arms[name] = {"wall_seconds": wall, "processor_seconds": spent, "beyond_python": spent - empty}
    for name, (peer, most) in TARGETS.items():
        ratios = [a[1] / b[1] for a, b in zip(seconds[name], seconds[peer], strict=True)]
        arms[name] |= {"peer": peer, "ratio": statistics.median(ratios), "asked_for_at_most": most}
    checks = {
        "every_system_is_listed": all(slug[:8] in shown for slug in catalogue.cards()),
        "import_encyclo_loads": loaded("import encyclo"),
        "encyclo_list_loads": loaded("from encyclo.cli import run; run(['list'])"),
        "one_system_loads": loaded("from encyclo import catalogue; catalogue.module('mosaicbert')"),
    }
    record = {"benchmark": "startup", "rounds": given.rounds, "arms": arms, "checks": checks}
    record["environment"] = environment()
    for name, arm in arms.items():
        ratio = (
            f"  {arm['ratio']:.3f} x {arm['peer']} (asked for: {arm['asked_for_at_most']})" if "ratio" in arm else ""
        )
        print(f"{name:22} {arm['wall_seconds']:6.3f} s  {arm['processor_seconds']:6.3f} s of processor{ratio}")
    print(json.dumps(checks, indent=1))
    if given.out is not None:
        given.out.parent.mkdir(parents=True, exist_ok=True)
        given.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
