"""Quantisers of audio codecs beside their peers: time of the search, with equal codes beside the clock.

    python benchmarks/audio_codec.py [--frames 1500] [--rounds 7] [--out FILE.json]

Arms, interleaved on one thread: residual VQ with four codebooks of 1024 by this library, by transformers' EnCodec and,
if installed, by vector-quantize-pytorch, on the same tables and vectors; and group-residual VQ (two groups, two
levels), whose search has half the multiply-accumulates. Then the share of the range coder in `compress`.
"""

import argparse
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

from encyclo.data.audio import Audio
from encyclo.experiment import environment
from encyclo.metrics.cost import interleaved
from encyclo.nn.vector_quantize import Codebooks, EmaLearning, GroupResidualVectorQuantize, ResidualVectorQuantize
from encyclo.systems.audio.hifi_codec import published

SIZE, DIM, LEVELS = 1024, 512, 4


def quantisers(frames: int, rounds: int) -> dict[str, Any]:
    """Milliseconds of each arm, and whether all residual arms chose the same codes."""
    from transformers import EncodecConfig
    from transformers.models.encodec.modeling_encodec import EncodecResidualVectorQuantizer

    torch.manual_seed(0)
    books = Codebooks.Config(size=SIZE, learning=EmaLearning(), init="normal")
    rvq = ResidualVectorQuantize.Config(levels=LEVELS, codebooks=books).build(dim=DIM).eval()
    grvq = GroupResidualVectorQuantize.Config(codebooks=books).build(dim=DIM).eval()
    x = torch.randn(1, frames, DIM)
    theirs = EncodecResidualVectorQuantizer(
        EncodecConfig(codebook_size=SIZE, codebook_dim=DIM, hidden_size=DIM, target_bandwidths=[3.0])
    )
    for layer, level in zip(theirs.layers, rvq.levels, strict=False):
        layer.codebook.embed.copy_(level.weight[0])
    turned = x.transpose(1, 2).contiguous()
    bandwidth = LEVELS * 10 * theirs.frame_rate / 1000
    arms: dict[str, Callable[[], Any]] = {
        "rvq-4 encyclo": lambda: rvq(x),
        "rvq-4 transformers": lambda: theirs.decode(theirs.encode(turned, bandwidth)),
        "grvq-2x2 encyclo": lambda: grvq(x),
    }
    codes = {"transformers": theirs.encode(turned, bandwidth)[:, 0].t()}
    try:
        from vector_quantize_pytorch import ResidualVQ
    except ImportError:
        pass
    else:
        other = ResidualVQ(dim=DIM, num_quantizers=LEVELS, codebook_size=SIZE).eval()
        for layer, level in zip(other.layers, rvq.levels, strict=True):
            layer._codebook.embed.copy_(level.weight)
        arms["rvq-4 vector-quantize-pytorch"] = lambda: other(x)
        codes["vector-quantize-pytorch"] = other(x)[1][0]
    with torch.inference_mode():
        seconds = interleaved(arms, rounds=rounds)
        own = rvq(x).codes[0]
    return {
        "frames": frames,
        "milliseconds": {name: 1000 * value for name, value in seconds.items()},
        "share_of_equal_codes": {name: float((own == found).float().mean()) for name, found in codes.items()},
    }


def files(rounds: int) -> dict[str, Any]:
    """What of `compress` and `decompress` is the range coder, for ten seconds at the published size."""
    codec: Any = published()["24k-320d"].build().eval()
    codes = torch.randint(1024, (1, 750, 4))
    payload = codec._written(codes, "range")
    audio = Audio(0.1 * torch.randn(1, 24_000), 24_000)
    seconds = interleaved(
        {
            "write 10 s of codes": lambda: codec._written(codes, "range"),
            "read 10 s of codes": lambda: codec._read(payload, 1, 750, "range"),
            "encoder and search, 1 s": lambda: codec.codes(audio.samples),
            "decoder, 1 s": lambda: codec.wave(codes[:, :75]),
        },
        rounds=rounds,
    )
    restored = bool(torch.equal(codec._read(payload, 1, 750, "range"), codes))
    return {"milliseconds": {k: 1000 * v for k, v in seconds.items()}, "codes_restored": restored}


def main() -> None:
    """Run both parts, print JSON and write it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=1500)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path, default=Path("results/benchmarks/audio_codec.json"))
    given = parser.parse_args()
    torch.set_num_threads(1)
    found = {
        "quantisers": quantisers(given.frames, given.rounds),
        "files": files(min(given.rounds, 5)),
        "environment": environment(),
    }
    text = json.dumps(found, indent=1)
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(text + "\n", encoding="utf-8")
    sys.stdout.write(text + "\n")


if __name__ == "__main__":
    main()
