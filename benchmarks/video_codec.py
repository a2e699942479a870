"""Decoding of HNeRV beside the processor's own GEMM rate and x264, and the entropy coder's share.

    python benchmarks/video_codec.py [--size laptop|paper] [--rounds 7] [--threads 1] [--out FILE.json]

The bound is the GEMM rate measured in the same run (2048 x 2048, a product and a decode in turn) divided by the
decoder's multiply-accumulates: what a machine that did nothing else would need. The weights are fresh; they do
not change the time. Beside the clock: a frame decoded alone equals the same among others, the file decodes to what was
coded, and the worst difference of bf16 from fp32 in levels of 255. bf16 is timed only where the processor has it.
"""

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from encyclo.data.reading import Reading
from encyclo.data.video import Video, read_video, write_video
from encyclo.experiment import Preset, environment
from encyclo.metrics.cost import interleaved
from encyclo.systems.video.hnerv import HNeRV, experiment

SIDE = 2048


def has_bf16() -> bool:
    """Whether the processor multiplies bf16 itself."""
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def fitted(size: str) -> HNeRV:
    """An HNeRV of the preset's size that takes its embeddings for fitted."""
    preset = Preset.LAPTOP if size == "laptop" else Preset.PAPER
    config = experiment(preset).systems["hnerv"]
    torch.manual_seed(0)
    system = config.build()
    assert isinstance(system, HNeRV)
    with torch.no_grad():
        system.embeddings.copy_(torch.randn(system.embeddings.shape).cumsum(0) * 0.2)
    system.clip = {"fps": "25", "name": "fresh weights", "digest": ""}
    return system.eval()


def main(words: list[str] | None = None) -> dict[str, Any]:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=("laptop", "paper"), default="laptop")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--video", type=Path, help="for x264; default: the bundled bunny")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args(words)
    torch.set_num_threads(given.threads)
    system = fitted(given.size)
    config = system.config
    count = 8 if given.size == "laptop" else 1
    times = torch.arange(count, dtype=torch.float32)
    matrix = torch.randn(SIDE, SIDE)

    with FlopCounterMode(display=False) as counter, torch.no_grad():
        system.decoder(system.embeddings[:1])
    assert counter.get_total_flops() == 2 * system.multiplications, "the counted operations are not those done"

    arms: dict[str, Callable[[], Any]] = {"gemm": lambda: matrix @ matrix, "decode": lambda: system.render(times)}
    whole = system.render(times)
    checks: dict[str, Any] = {
        "frame_alone_equals_frame_among_all": bool(torch.equal(system.render(times[-1:])[0], whole[-1]))
    }
    if has_bf16():
        half = fitted(given.size).to(torch.bfloat16)
        arms["gemm_bf16"] = lambda: matrix.bfloat16() @ matrix.bfloat16()
        arms["decode_bf16"] = lambda: half.render(times)
        checks["bf16_worst_difference"] = int((half.render(times).int() - whole.int()).abs().max())
    seconds = interleaved(arms, rounds=given.rounds)

    began = time.perf_counter()
    blob = system.compress().value
    packed = time.perf_counter() - began
    began = time.perf_counter()
    opened = HNeRV.open_container(blob)
    unpacked = time.perf_counter() - began
    decoder, stored, _ = system.restored(config.coding)
    checks["file_decodes_to_what_was_coded"] = bool(
        torch.equal(opened.render(times), system.render(times, decoder=decoder, stored=stored))
    )

    gemm = 2 * SIDE**3 / seconds["gemm"]
    rate = count / seconds["decode"]
    bound = gemm / (2 * system.multiplications)
    peer = x264(given.video, given.size, given.rounds)
    result = {
        "size": given.size,
        "threads": given.threads,
        "environment": environment(),
        "multiply_accumulates_per_frame": system.multiplications,
        "gemm_gflops": gemm / 1e9,
        "frames_per_second": rate,
        "bound_frames_per_second": bound,
        "share_of_bound": rate / bound,
        "bf16": {
            "frames_per_second": count / seconds["decode_bf16"],
            "times_fp32": seconds["decode"] / seconds["decode_bf16"],
            "gemm_times_fp32": seconds["gemm"] / seconds["gemm_bf16"],
        }
        if "decode_bf16" in seconds
        else "not timed: this processor has no bf16 arithmetic",
        "pack_seconds": packed,
        "unpack_seconds": unpacked,
        "unpack_share_of_decompressing": unpacked / (unpacked + config.frames / rate),
        "x264": peer,
        "checks": checks,
    }
    print(json.dumps(result, indent=1))
    if given.out is not None:
        given.out.parent.mkdir(parents=True, exist_ok=True)
        given.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    if not all(value for name, value in checks.items() if isinstance(value, bool)):
        sys.exit("a check beside the clock failed")
    return result


def x264(path: Path | None, size: str, rounds: int) -> dict[str, float]:
    """Frames/s of x264's decoder (and PyAV's conversion to RGB) on the same frames, one thread."""
    import tempfile

    from encyclo.data.bundled import pack_folder

    source = path if path is not None else pack_folder("bunny") / "bunny.mp4"
    reading = Reading(frames=132, crop=(640, 1280), shrink=8 if size == "laptop" else 1)
    video = reading.apply(read_video(source))
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "clip.mp4"
        write_video(Video(video.frames, Fraction(25)), file, crf=28)
        taken = []
        for _ in range(rounds):
            began = time.perf_counter()
            frames = len(read_video(file).frames)
            taken.append(time.perf_counter() - began)
    return {"frames_per_second_with_rgb": frames / statistics.median(taken)}


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
