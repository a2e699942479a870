"""CAE's second small run: scikit-learn's digits, 8x8 pixels, patches of 2, all arms of the experiment, three seeds.

    python benchmarks/cae_on_digits.py [--steps 600] [--seeds 3] [--out FILE.json]

The same arms as `encyclo verify cae`, on pictures of another kind: alignment error, latent bypass and probes, by seed.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

from encyclo import experiment as engine
from encyclo.sampling.masks import RandomMask

SETTINGS = ("training.batch_size=32", "training.optimiser.lr=2e-3", "probe_epochs=20")


def main() -> None:
    """Train and measure all arms; print (or write) JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    declared = engine.declared("cae", "smoke")
    splits = engine.load_data(declared)
    settings = [f"training.steps={given.steps}", *SETTINGS]
    values: dict[str, dict[str, list[float]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(given.seeds):
            for arm, config in declared.systems.items():
                place = Path(folder) / f"{arm}-{seed}"
                trained = config.override(settings)
                if arm.startswith("cae"):  # as at laptop size: a rectangle of a 4x4 grid would be half a picture
                    trained = trained.replace(mask=RandomMask(ratio=0.5))
                _, metrics, _ = engine.train(trained, splits, place, seed=seed, label=arm)
                for name, value in metrics.items():
                    values.setdefault(arm, {}).setdefault(name, []).append(value)
    ours, unaligned = values["cae"], values["cae-unaligned"]
    bypass = [a - b for a, b in zip(ours["bypass_accuracy"], unaligned["bypass_accuracy"], strict=True)]
    error = [b / a for a, b in zip(ours["alignment_error"], unaligned["alignment_error"], strict=True)]
    arms: dict[str, Any] = {
        arm: {name: {"mean": statistics.fmean(v), "values": v} for name, v in metrics.items()}
        for arm, metrics in values.items()
    }
    found = {
        "data": splits.name,
        "settings": settings,
        "bypass_points_over_unaligned": bypass,
        "alignment_error_times_smaller": error,
        "arms": arms,
        "environment": engine.environment(),
    }
    text = json.dumps(found, indent=1)
    if given.out:
        given.out.parent.mkdir(parents=True, exist_ok=True)
        given.out.write_text(text + "\n", encoding="utf-8")
    sys.stdout.write(text + "\n")


if __name__ == "__main__":
    main()
