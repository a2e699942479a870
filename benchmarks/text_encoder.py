"""Text encoders against their peers: training and embedding, in real (not padding) tokens a second.

    python benchmarks/text_encoder.py [--part training|embedding|all] [--rounds 5] [--out results.json]

All arms take turns in one process on the same batches; each figure is a median over rounds. Beside the clock stands an
equality check: arms with equal weights must give the loss of `transformers.BertForMaskedLM`, and embeddings must point
where `SentenceTransformer.encode()` points. On a GPU (`--device cuda`) the arms run in bf16.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from encyclo.data import load
from encyclo.experiment import environment
from encyclo.losses.masked_lm import Masked, Masking, masked_lm_loss
from encyclo.nn.alibi import Alibi
from encyclo.nn.feed_forward import Glu, Mlp
from encyclo.nn.text_checkpoint import read_encoder, renamed
from encyclo.nn.text_encoder import LearnedPositions, MaskedLMHead, TextEncoder
from encyclo.nn.varlen import Layout
from encyclo.pretrained import base_folder
from encyclo.tokens.wordpiece import Encoded, WordPiece

RATIO = 0.3
SHAPES = {
    "small": {"vocabulary": 8192, "dim": 256, "layers": 4, "heads": 4, "batch": 64},
    "base": {"vocabulary": 30_528, "dim": 768, "layers": 12, "heads": 12, "batch": 512},
}


class Own(nn.Module):
    """Our encoder with its head, as one module."""

    def __init__(self, config: TextEncoder.Config) -> None:
        super().__init__()
        self.encoder: TextEncoder = config.build()
        self.head: MaskedLMHead = MaskedLMHead.Config().build(encoder=config)


class Batch:
    """One batch of texts with the same tokens hidden for every arm, padded and not."""

    def __init__(self, texts: Encoded, masking: Masking, seed: int, device: torch.device) -> None:
        numbers = torch.arange(len(texts.ids))
        self.tokens = len(texts.ids)
        self.masked: dict[bool, Masked] = {}
        self.layouts: dict[bool, Layout] = {}
        for padded in (False, True):
            layout = Layout.from_lengths(texts.lengths, padded=padded)
            ids, given = layout.arrange(texts.ids), layout.arrange(numbers, -1)
            self.masked[padded] = masking.hide(ids, given, ratio=RATIO, seed=seed, layout=layout).to(device)
            self.layouts[padded] = layout.to(device)
        shown = self.masked[True]
        self.ids = shown.tokens.view(len(texts), -1)
        self.mask = self.layouts[True].real().view(len(texts), -1).long()
        labels = torch.full_like(shown.tokens, -100)
        self.labels = labels.index_copy(0, shown.chosen, shown.targets).view(len(texts), -1)


def peer_loss(model: Any, batch: Batch) -> Tensor:
    loss: Tensor = model(input_ids=batch.ids, attention_mask=batch.mask, labels=batch.labels).loss
    return loss


def own_loss(model: Own, batch: Batch, masked_only: bool = True) -> Tensor:
    padded = not model.encoder.config.unpad
    masked, layout = batch.masked[padded], batch.layouts[padded]
    words = model.encoder.words.weight
    if masked_only:
        hidden = model.encoder.flat(masked.tokens, layout, chosen=masked.chosen)
        return masked_lm_loss(model.head(hidden, words), masked.targets).value
    labels = torch.full_like(masked.tokens, -100).index_copy(0, masked.chosen, masked.targets)
    return F.cross_entropy(model.head(model.encoder.flat(masked.tokens, layout), words), labels)


# -- training ----------------------------------------------------------------------------------------------------------


def training(rounds: int, device: torch.device, shape: dict[str, int], only: str | None) -> dict[str, Any]:
    from transformers import BertConfig, BertForMaskedLM, ModernBertConfig, ModernBertForMaskedLM

    verses = list(load("kjv", "text").train["text"])
    words = WordPiece.train(verses, min(shape["vocabulary"], 8192))
    masking = Masking.of(words.special(), words.mask, shape["vocabulary"])
    order = torch.randperm(len(verses), generator=torch.Generator().manual_seed(0))
    batches = []
    for turn in range(rounds + 1):
        rows = order[turn * shape["batch"] : (turn + 1) * shape["batch"]].tolist()
        batches.append(Batch(words.encode([verses[row] for row in rows], limit=128), masking, turn, device))

    common = {
        "vocab_size": shape["vocabulary"],
        "hidden_size": shape["dim"],
        "num_hidden_layers": shape["layers"],
        "num_attention_heads": shape["heads"],
        "max_position_embeddings": 128,
    }
    plain = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    torch.manual_seed(0)
    bert = BertForMaskedLM(BertConfig(**common, **plain, intermediate_size=4 * shape["dim"]))
    weights = {name: value.clone() for name, value in renamed(bert.state_dict()).items()}
    dropped = BertForMaskedLM(BertConfig(**common, intermediate_size=4 * shape["dim"]))
    ends = {"pad_token_id": 0, "cls_token_id": 2, "bos_token_id": 2, "sep_token_id": 3, "eos_token_id": 3}
    # a gated feed-forward of half the width has three quarters of BERT's parameters in it, as in the published model
    modern = {**common, **ends, "intermediate_size": 2 * shape["dim"], "global_attn_every_n_layers": 1}
    modern_bert = ModernBertForMaskedLM(ModernBertConfig(**modern))
    sparse = ModernBertForMaskedLM(ModernBertConfig(**modern, sparse_prediction=True))

    def own(**changes: Any) -> Own:
        config = TextEncoder.Config(
            vocabulary=shape["vocabulary"],
            vocabulary_multiple=1,
            dim=shape["dim"],
            layers=shape["layers"],
            heads=shape["heads"],
            dropout=0.0,
            feed_forward=Mlp.Config(),
            positions=LearnedPositions.Config(length=128),
        ).replace(**changes)
        torch.manual_seed(0)
        made = Own(config)
        if config.feed_forward.kind == "mlp" and config.positions.kind == "learned":
            made.load_state_dict(weights)
        return made

    mosaic = {"feed_forward": Glu.Config(kind="geglu"), "positions": Alibi.Config(starting_length=128)}
    arms: dict[str, tuple[nn.Module, Callable[[Any, Batch], Tensor]]] = {
        "transformers BERT, dropout 0.1": (dropped, peer_loss),
        "transformers BERT, dropout 0": (bert, peer_loss),
        "transformers ModernBERT": (modern_bert, peer_loss),
        "transformers ModernBERT, sparse prediction": (sparse, peer_loss),
        "ours, padded, head on all": (own(unpad=False), lambda m, b: own_loss(m, b, False)),
        "ours, padded": (own(unpad=False), own_loss),
        "ours, unpadded, head on all": (own(), lambda m, b: own_loss(m, b, False)),
        "ours, unpadded": (own(), own_loss),
        "MosaicBERT, padded": (own(unpad=False, **mosaic), own_loss),
        "MosaicBERT, unpadded": (own(**mosaic), own_loss),
    }
    if device.type == "cpu":
        arms |= {
            "ours, unpadded, a bucket per length": (own(attention="lengths"), own_loss),
            "ours, unpadded, repadded attention": (own(attention="repadded"), own_loss),
            "ours, unpadded, nested tensors": (own(attention="nested"), own_loss),
        }
    else:
        arms |= {
            "ours, unpadded, buckets": (own(attention="buckets"), own_loss),
            "MosaicBERT, unpadded, buckets": (own(attention="buckets", **mosaic), own_loss),
        }
    if only:
        arms = {name: arm for name, arm in arms.items() if any(part in name for part in only.split(","))}

    cast = torch.autocast(device.type, torch.bfloat16) if device.type == "cuda" else nullcontext()
    steps, first = {}, {}
    for name, (model, loss) in arms.items():
        model.to(device).train()
        optimiser = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)

        def step(batch: Batch, model: Any = model, loss: Any = loss, optimiser: Any = optimiser) -> float:
            optimiser.zero_grad(set_to_none=True)
            with cast:
                value = loss(model, batch)
            value.backward()
            optimiser.step()
            return float(value.detach())

        first[name] = step(batches[0])  # the first losses are those of the untrained weights
        steps[name] = step
    speeds: dict[str, list[float]] = {name: [] for name in arms}
    for turn, batch in enumerate(batches[1:]):
        for name, step in steps.items():
            began = time.perf_counter()
            step(batch)
            speeds[name].append(batch.tokens / (time.perf_counter() - began))
        say(f"round {turn + 1} of {rounds}")
    speed = {name: statistics.median(values) for name, values in speeds.items()}
    real = statistics.fmean(batch.layouts[True].real_fraction for batch in batches[1:])

    def ratio(a: str, b: str) -> float | None:
        if a not in speed or b not in speed:
            return None
        return statistics.median(x / y for x, y in zip(speeds[a], speeds[b], strict=True))

    reference = first.get("transformers BERT, dropout 0")
    same = [n for n in first if n.startswith("ours")]
    found: dict[str, Any] = {
        "shape": shape,
        "real_token_fraction": real,
        "tokens_per_second": speed,
        "spread": {name: [min(values), max(values)] for name, values in speeds.items()},
        "parameters": {name: sum(p.numel() for p in model.parameters()) for name, (model, _) in arms.items()},
        "first_loss": first,
        "loss_error": {name: abs(first[name] - reference) for name in same} if reference is not None else {},
        "mosaic_loss_error": abs(first["MosaicBERT, unpadded"] - first["MosaicBERT, padded"])
        if {"MosaicBERT, unpadded", "MosaicBERT, padded"} <= set(first)
        else None,
        "ladder": {
            "no dropout": ratio("transformers BERT, dropout 0", "transformers BERT, dropout 0.1"),
            "plainer code": ratio("ours, padded, head on all", "transformers BERT, dropout 0"),
            "head and last layer on hidden tokens only": ratio("ours, padded", "ours, padded, head on all"),
            "no padding": ratio("ours, unpadded", "ours, padded"),
            "no padding, head on all": ratio("ours, unpadded, head on all", "ours, padded, head on all"),
        },
        "targets": {
            "over BERT without dropout (3.3)": ratio("ours, unpadded", "transformers BERT, dropout 0"),
            "over ModernBERT with sparse prediction (1.25)": ratio(
                "ours, unpadded", "transformers ModernBERT, sparse prediction"
            ),
            f"unpadding alone ({0.9 / real:.2f} = 0.9 / real tokens)": ratio(
                "ours, unpadded, head on all", "ours, padded, head on all"
            ),
            "MosaicBERT over BERT without dropout": ratio("MosaicBERT, unpadded", "transformers BERT, dropout 0"),
        },
    }
    if device.type == "cuda" and "MosaicBERT, unpadded" in speed:
        layer = shape["dim"] ** 2 * (4 + 12)  # qkv, out, gate and up, down: multiply-accumulates a token
        head = RATIO * (shape["dim"] ** 2 + shape["dim"] * shape["vocabulary"])
        found["linear_flops_per_second"] = 6 * (shape["layers"] * layer + head) * speed["MosaicBERT, unpadded"]
        found["share_of_h100_bf16_peak"] = found["linear_flops_per_second"] / 989e12
    return found


# -- embedding ---------------------------------------------------------------------------------------------------------


def embedding(rounds: int, device: torch.device, count: int) -> dict[str, Any]:
    from sentence_transformers import SentenceTransformer

    folder = base_folder("all-minilm-l6-v2")
    assert folder is not None
    theirs = SentenceTransformer(str(folder), device=str(device))
    words, encoder = WordPiece.from_folder(folder), read_encoder(folder).to(device)
    limit = int(theirs.max_seq_length or 512)
    verses = list(load("kjv", "text").train["text"])
    generator = torch.Generator().manual_seed(0)
    texts = []
    for size in torch.tensor([1, 2, 8])[torch.randint(3, (count,), generator=generator)].tolist():
        start = int(torch.randint(len(verses) - 8, (1,), generator=generator))
        texts.append(" ".join(verses[start : start + size]))

    def ours(model: TextEncoder, given: list[str] = texts) -> Tensor:
        encoded = words.encode(given, limit=limit)
        return F.normalize(model.embed(encoded.ids, encoded.lengths), dim=1)

    def peer(dtype: torch.dtype) -> Tensor:
        theirs.to(dtype)
        found = theirs.encode(texts, convert_to_tensor=True, show_progress_bar=False)
        assert isinstance(found, Tensor)
        return found.float().cpu()

    arms: dict[str, Callable[[], Tensor]] = {
        "SentenceTransformer.encode()": lambda: peer(torch.float32),
        "ours": lambda: ours(encoder),
    }
    half = device.type == "cuda" or computes_bf16()
    if half:
        short = read_encoder(folder).to(device, torch.bfloat16)
        arms["SentenceTransformer.encode(), bf16 weights"] = lambda: peer(torch.bfloat16)
        arms["ours, bf16"] = lambda: ours(short)
    times: dict[str, list[float]] = {name: [] for name in arms}
    vectors: dict[str, Tensor] = {}
    for turn in range(rounds + 1):
        for name, arm in arms.items():
            began = time.perf_counter()
            vectors[name] = arm()
            if turn:
                times[name].append(time.perf_counter() - began)
        say(f"round {turn} of {rounds}")
    encoded = words.encode(texts, limit=limit)
    reference = vectors["SentenceTransformer.encode()"]
    seconds = {name: statistics.median(values) for name, values in times.items()}

    def ratio(name: str) -> float:
        base = times["SentenceTransformer.encode()"]
        return statistics.median(b / a for a, b in zip(times[name], base, strict=True))

    found: dict[str, Any] = {
        "texts": count,
        "tokens": len(encoded.ids),
        "cut_texts": encoded.cut,
        "texts_per_second": {name: count / value for name, value in seconds.items()},
        "tokens_per_second": {name: len(encoded.ids) / value for name, value in seconds.items()},
        "worst_cosine": {n: float(torch.cosine_similarity(v, reference).min()) for n, v in vectors.items()},
        "targets": {"fp32 over encode() (1.15, cosine 0.99999)": ratio("ours")},
    }
    if half:
        found["targets"]["bf16 over encode() (2.0, cosine 0.999)"] = ratio("ours, bf16")
    else:
        found["bf16"] = "this CPU does not compute in bf16 (neither avx512_bf16 nor amx_bf16): speed not measured"
        few = ours(read_encoder(folder).to(torch.bfloat16), texts[:40])  # how near it comes can be told anywhere
        found["worst_cosine"]["ours, bf16 (40 texts)"] = float(torch.cosine_similarity(few, reference[:40]).min())
    return found


def computes_bf16() -> bool:
    """Whether the CPU multiplies in bf16 by itself; elsewhere torch emulates it, slower than float32."""
    try:
        flags = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return False
    return "avx512_bf16" in flags or "amx_bf16" in flags


# -- the program -------------------------------------------------------------------------------------------------------


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def table(title: str, rows: dict[str, Any], unit: str) -> None:
    print(f"\n{title}")
    for name, value in rows.items():
        print(f"  {name:<52} {'-' if value is None else f'{value:,.4g}':>12} {unit}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--part", choices=("training", "embedding", "all"), default="all")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--shape", choices=tuple(SHAPES), default="small")
    parser.add_argument("--texts", type=int, default=400)
    parser.add_argument("--only", help="training: arms whose names contain one of these parts, by commas")
    parser.add_argument("--out", type=Path, help="JSON file")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    found: dict[str, Any] = {"benchmark": "text_encoder", "environment": environment(), "rounds": options.rounds}
    if options.part in ("training", "all"):
        found["training"] = part = training(options.rounds, device, SHAPES[options.shape], options.only)
        print(f"training: {part['real_token_fraction']:.3f} of the cells of a padded batch are real tokens")
        table("real tokens a second (median)", part["tokens_per_second"], "tokens/s")
        table("the ladder, each rung over the one before", part["ladder"], "x")
        table("targets", part["targets"], "x")
        table("loss, difference to transformers' BERT", part["loss_error"], "nats")
        if "share_of_h100_bf16_peak" in part:
            table("linear layers", {"share of an H100's bf16 peak": part["share_of_h100_bf16_peak"]}, "")
    if options.part in ("embedding", "all"):
        found["embedding"] = part = embedding(options.rounds, device, options.texts)
        print(f"\nembedding: {part['texts']} texts, {part['tokens']} tokens")
        table("texts a second (median)", part["texts_per_second"], "texts/s")
        table("worst cosine to encode()", part["worst_cosine"], "")
        table("targets", part["targets"], "x")
        if "bf16" in part:
            print(f"  {part['bf16']}")
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=options.out.parent or ".", prefix=".writing-")
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            json.dump(found, file, indent=1)
        os.chmod(name, 0o644)
        os.replace(name, options.out)


if __name__ == "__main__":
    main()
