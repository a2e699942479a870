"""Lossless image codecs on a test set: bits per dimension in both packings and speed, beside a trained circuit.

    python benchmarks/image_codecs.py --run runs/mnist --data mnist-5k --out image_codecs.json

The circuit's tables are not counted in its rate; their size is printed beside it. The three ways to all prefix
marginals are timed in turns too; of the naive one only a part of its passes, which all cost the same, is run.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import torch

import encyclo
from encyclo.data.exact_pixels import plain_grey
from encyclo.data.images import to_tensor
from encyclo.experiment import environment
from encyclo.metrics.cost import interleaved
from encyclo.metrics.lossless_codecs import codec_arms, codecs
from encyclo.nn.part import parameter_count
from encyclo.tokens.circuit_codec import compare_schedules


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--run", type=Path, help="a trained pc-compression run; without it only the codecs")
    parser.add_argument("--data", default="mnist-5k")
    parser.add_argument("--images", type=int, default=500)
    parser.add_argument("--naive", type=int, default=24, help="images that the naive coder is timed on")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    images = plain_grey(to_tensor(encyclo.load(given.data, "image").test["image"][: given.images]))
    size = images.numel()
    arms: dict[str, dict[str, Any]] = dict(codec_arms(images))
    found: dict[str, Any] = {"data": given.data, "images": len(images), "codecs": arms}
    if given.run is not None:
        codec: Any = encyclo.open(given.run)
        blobs = {streams: codec.encode_images(images, streams=streams) for streams in ("one", "each")}
        arrays = [image.permute(1, 2, 0).squeeze(-1).contiguous().numpy() for image in images]
        turns: dict[str, Any] = {
            "circuit, encode": lambda: codec.encode_images(images),
            "circuit, decode": lambda: codec.decode_images(blobs["one"]),
        }
        known = codecs()
        for name in {"png", "jxl-7"} & set(known):
            turns[f"{name}, encode"] = lambda encode=known[name][0]: [encode(array) for array in arrays]
        seconds = interleaved(turns, rounds=given.rounds)
        theory = float(codec.likelihood([images]).value.mean())
        rows = images[: given.naive].flatten(1)
        d = rows.shape[1]
        part = max(1, d // 16)
        coder = codec.coder
        taken = interleaved(
            {
                "sweep": lambda: coder.swept(rows),
                "structured": lambda: coder.structured(rows),
                "naive": lambda: coder.naive(rows, variables=part),
            },
            rounds=given.rounds,
        )
        taken["naive"] *= d / part
        found["circuit"] = {
            "theory": theory,
            "one_file": 8 * len(blobs["one"]) / size,
            "stream_each": 8 * len(blobs["each"]) / size,
            "over_theory": 8 * len(blobs["one"]) / size / theory,
            "over_best_codec": theory / arms["best codec"]["bits_per_dimension"],
            "exact": all(torch.equal(codec.decode_images(blob), images) for blob in blobs.values()),
            "model_bytes_not_counted": 4 * parameter_count(codec),
            "mb_per_second": {name: size / 1e6 / value for name, value in seconds.items()},
            "schedules": compare_schedules(coder, rows[:4]),
            "seconds_of_schedules": taken,
            "naive_over_structured": taken["naive"] / taken["structured"],
            "naive_over_sweep": taken["naive"] / taken["sweep"],
        }
    text = json.dumps({**found, "environment": environment()}, indent=1)
    print(text)
    if given.out is not None:
        given.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
