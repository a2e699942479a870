"""Sampling from a diffusers UNet with and without encoder propagation: seconds, calls and operations, latents beside.

    python benchmarks/diffusion_sampling.py [--size 32] [--batch 16] [--steps 50] [--rounds 5] [--out FILE.json]

A UNet2DModel of 5.65 M parameters with random weights (neither time nor equality needs trained ones) and DDIM. Arms
take turns in one process from the same noise: the plain loop as diffusers writes it, the accelerated one decoding in
parallel and serially, and plain and accelerated in channels-last memory. The bound of what can be saved is
the encoder's share of a call's time, measured in the same process, times the share of steps without it. Beside the
clock stand how far apart the latents of parallel and serial decoding lie, those of all-key and plain sampling, and the
outputs of one call in both memory layouts.
"""

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from diffusers import DDIMScheduler, UNet2DModel
from torch import Tensor

from encyclo.experiment import environment
from encyclo.metrics.cost import flops
from encyclo.metrics.unet_halves import encoder_time_share, half_macs
from encyclo.nn.part import parameter_count
from encyclo.sampling.encoder_propagation import Counts, EncoderPropagation, Propagation, key_steps

PLAIN, FASTER = "diffusers", "faster, parallel"


def network(size: int) -> UNet2DModel:
    """5.65 M parameters, three levels, attention at the two lower ones."""
    torch.manual_seed(0)
    return UNet2DModel(
        sample_size=size,
        in_channels=3,
        out_channels=3,
        block_out_channels=(64, 96, 128),
        layers_per_block=2,
        norm_num_groups=32,
        down_block_types=("DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
    ).eval()


@torch.no_grad()
def loop(unet: UNet2DModel, scheduler: DDIMScheduler, noise: Tensor, steps: int) -> Tensor:
    """The sampling loop of diffusers' own pipelines."""
    scheduler.set_timesteps(steps)
    latent = noise
    for t in scheduler.timesteps:
        latent = scheduler.step(unet(latent, t).sample, t, latent).prev_sample
    return latent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--keys", default="paper", help="a key set; see encyclo.sampling.encoder_propagation")
    parser.add_argument("--out", type=Path, default=Path("results/benchmarks/diffusion_sampling.json"))
    options = parser.parse_args()
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    device = "cuda" if torch.cuda.is_available() else "cpu"
    unet = network(options.size).to(device)
    last = network(options.size).to(device, memory_format=torch.channels_last)
    noise = torch.randn(options.batch, 3, options.size, options.size, generator=torch.Generator().manual_seed(1))
    noise = noise.to(device)
    scheduler = DDIMScheduler()
    counts: dict[str, Counts] = {}

    def faster(name: str, net: UNet2DModel, **told: Any) -> Callable[[], Tensor]:
        def run() -> Tensor:
            with EncoderPropagation(net, scheduler, Propagation(keys=options.keys, alpha=0.003, **told)) as running:
                made = loop(net, scheduler, noise, options.steps)
            counts[name] = running.counts
            return made

        return run

    arms: dict[str, Callable[[], Tensor]] = {
        PLAIN: lambda: loop(unet, scheduler, noise, options.steps),
        FASTER: faster(FASTER, unet),
        "faster, serial": faster("faster, serial", unet, mode="serial"),
        "diffusers, channels-last": lambda: loop(last, scheduler, noise, options.steps),
        "faster, channels-last, serial": faster("faster, channels-last, serial", last, mode="serial"),
    }
    latents: dict[str, Tensor] = {}
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    shares: list[float] = []
    arms[PLAIN]()  # warms up
    for turn in range(options.rounds):
        for name, run in arms.items():
            began = time.perf_counter()
            latents[name] = run()
            if device == "cuda":
                torch.cuda.synchronize()
            seconds[name].append(time.perf_counter() - began)
        shares.append(encoder_time_share(unet, noise, rounds=5))
        print(f"turn {turn + 1} of {options.rounds}", file=sys.stderr, flush=True)

    with EncoderPropagation(unet, scheduler, Propagation(keys="all", alpha=0.0)):
        everything = loop(unet, scheduler, noise, options.steps)
    # of one call: over many steps of a network with random weights every rounding grows to the size of the picture
    with torch.no_grad():
        one_call = last(noise, 500).sample - unet(noise, 500).sample
    apart = {
        "parallel and serial": (latents[FASTER] - latents["faster, serial"]),
        "all keys and diffusers": (everything - latents[PLAIN]),
        "channels-last and diffusers, one call": one_call,
    }
    keys = key_steps(options.keys, options.steps)
    skipped = 1 - len(keys) / options.steps
    share = statistics.median(shares)
    halves = half_macs(unet, noise[:1])
    with EncoderPropagation(unet, scheduler, Propagation(keys=options.keys)):
        counted = flops(lambda: loop(unet, scheduler, noise[:1], options.steps)) / 2
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    saved = {name: 1 - value / medians[PLAIN] for name, value in medians.items()}
    told = {
        "benchmark": "diffusion_sampling",
        "settings": {k: v for k, v in vars(options).items() if k != "out"},
        "parameters": parameter_count(unet),
        "keys": list(keys),
        "encoder_share_of_time": share,
        "encoder_share_of_macs": halves.share,
        "bound_of_time_saved": skipped * share,
        "macs_per_image": {"full": options.steps * (halves.encoder + halves.decoder), "faster, counted": counted},
        "macs_saved": 1 - counted / (options.steps * (halves.encoder + halves.decoder)),
        "arms": {
            name: {
                "seconds": medians[name],
                "all_seconds": seconds[name],
                "saved": saved[name],
                "saved_over_bound": saved[name] / (skipped * share),
                "calls": vars(counts[name]) if name in counts else None,
            }
            for name in arms
        },
        "largest_difference_of_latents": {name: float(gap.abs().max()) for name, gap in apart.items()},
        "environment": environment(),
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
    print(f"{told['parameters'] / 1e6:.2f} M parameters; encoder {share:.1%} of time, {halves.share:.1%} of MACs")
    print(f"{len(keys)} of {options.steps} steps are keys: time saved is bounded by {skipped * share:.1%}")
    for name, value in medians.items():
        print(
            f"{name:32} {value:7.2f} s   saved {saved[name]:6.1%}   {saved[name] / (skipped * share):5.2f} of the bound"
        )
    for name, gap in apart.items():
        print(f"latents of {name}: at most {float(gap.abs().max()):.1e} apart")


if __name__ == "__main__":
    main()
