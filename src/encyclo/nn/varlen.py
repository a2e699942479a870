"""Sequences of unequal length without padding: a flat layout of their real tokens, and exact attention on it.

A batch of B sequences is one tensor [n, d] of all their tokens, the sequences behind one another in order of length.
Only attention needs to know where one ends; five ways to compute it are offered, all equal to padded attention on real
tokens.
"""

import functools
import importlib.util
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64, Shaped
from torch import Tensor

from encyclo.errors import InputError
from encyclo.nn.alibi import Alibi

AttentionPath = Literal["auto", "buckets", "lengths", "repadded", "block", "nested", "flex", "varlen", "flash", "math"]
"""How attention over unequal lengths is computed; see `attention_over`."""


@dataclass(frozen=True)
class Bucket:
    """Neighbouring sequences of a layout that attend side by side, padded to the longest of them.

    Attributes:
        rows, width: sequences, and the length they are padded to.
        tokens: tokens they hold.
        slots: token of each of the rows * width slots (a padding slot names some token, which is never looked at);
            None where all sequences are `width` long.
        places: slot of each token; None likewise.
        real: which slots hold tokens; None likewise.
    """

    rows: int
    width: int
    tokens: int
    slots: Int64[Tensor, " slots"] | None
    places: Int64[Tensor, " tokens"] | None
    real: Bool[Tensor, "rows width"] | None


@dataclass(frozen=True)
class Layout:
    """Where the tokens of a batch lie in its flat tensor.

    Attributes:
        lengths: tokens of each sequence, in the layout's order.
        order: row of the batch that each sequence of the layout is.
        width: columns of the padded batch.
        indices: cell (row * width + column) of the padded batch that each entry of the flat tensor comes from.
        sources: for batches given as one row of concatenated sequences: which entry of it each entry of the flat tensor
            is. In the padded layout padding names entry 0.
        positions: column of each entry.
        starts: where each sequence begins in the flat tensor, and the total (`cu_seqlens`, int32, B + 1 numbers).
        grid: set where the flat tensor is the padded batch itself, padding included (what a plain encoder computes on).
    """

    lengths: tuple[int, ...]
    order: Int64[Tensor, " batch"]
    width: int
    indices: Int64[Tensor, " n"]
    sources: Int64[Tensor, " n"]
    positions: Int64[Tensor, " n"]
    starts: Shaped[Tensor, " batch_1"]
    grid: Bucket | None = None
    _buckets: dict[int | None, list[Bucket]] = field(default_factory=dict, repr=False, compare=False)

    @staticmethod
    def from_lengths(
        lengths: Sequence[int] | Int64[Tensor, " batch"],
        *,
        padded: bool = False,
        width: int | None = None,
        first: Int64[Tensor, " batch"] | None = None,
        device: torch.device | str = "cpu",
    ) -> "Layout":
        """The layout of sequences of these lengths.

        Args:
            lengths: tokens of each row of the batch.
            padded: keep the padding (up to `width`, by default the longest).
            width: columns of the padded batch; the longest length if not given.
            first: column at which each row's tokens begin; 0 if not given.

        Raises:
            InputError: a row without tokens.
        """
        given = torch.as_tensor(lengths, dtype=torch.int64, device="cpu")
        if given.numel() == 0:
            raise InputError("the batch has no rows: give at least one text")
        if int(given.min()) < 1:
            raise InputError(f"row {int(given.argmin())} holds no token: drop empty texts")
        width = width or int(given.max())
        begin = given.cumsum(0) - given
        first = torch.zeros_like(given) if first is None else first.cpu()
        if padded:
            count = given.numel()
            column = torch.arange(width).repeat(count)
            row = torch.arange(count).repeat_interleave(width)
            inside = column - first[row]
            sources = torch.where((inside >= 0) & (inside < given[row]), begin[row] + inside, 0)
            starts = torch.arange(count + 1, dtype=torch.int32) * width
            order, sizes, indices = torch.arange(count), given, torch.arange(count * width)
            positions = column
        else:
            order = given.argsort(stable=True)
            sizes = given[order]
            ends = sizes.cumsum(0)
            inside = torch.arange(int(ends[-1])) - (ends - sizes).repeat_interleave(sizes)
            row = order.repeat_interleave(sizes)
            positions = inside + first[row]
            sources = begin[row] + inside
            indices = row * width + positions
            starts = F.pad(ends, (1, 0)).int()
        return Layout(
            lengths=tuple(sizes.tolist()),
            order=order.to(device),
            width=width,
            indices=indices.to(device),
            sources=sources.to(device),
            positions=positions.to(device),
            starts=starts.to(device),
            grid=_grid(given, width, first, device) if padded else None,
        )

    @staticmethod
    def from_mask(mask: Shaped[Tensor, "batch width"], *, padded: bool = False) -> "Layout":
        """The layout of a padded batch with a 0/1 mask of real tokens (padding on either side).

        Raises:
            InputError: a row that is all padding, or one with a gap between its tokens: closing the gap would change
                distances in silence.
        """
        real = mask.bool()
        sizes = real.sum(1)
        first = real.int().argmax(1)
        column = torch.arange(real.shape[1], device=real.device)
        run = (column >= first[:, None]) & (column < (first + sizes)[:, None])
        wrong = (run != real).any(1).nonzero()
        if len(wrong):
            raise InputError(
                f"the mask of row {int(wrong[0])} has a gap (0 between two 1s): hide tokens only at the ends of a row"
            )
        return Layout.from_lengths(sizes.cpu(), padded=padded, width=real.shape[1], first=first, device=mask.device)

    def to(self, device: torch.device | str) -> "Layout":
        """The same layout with its index tensors on a device."""
        if self.indices.device == torch.device(device):
            return self
        moved = {
            name: getattr(self, name).to(device, non_blocking=True)
            for name in ("order", "indices", "sources", "positions", "starts")
        }
        grid = self.grid
        if grid is not None and grid.real is not None:
            grid = replace(grid, real=grid.real.to(device, non_blocking=True))
        return replace(self, **moved, grid=grid, _buckets={})

    @property
    def padded(self) -> bool:
        """Whether the padding is kept."""
        return self.grid is not None

    @property
    def entries(self) -> int:
        """Rows of the flat tensor."""
        return self.indices.shape[0]

    @property
    def tokens(self) -> int:
        """Real tokens in the batch."""
        return sum(self.lengths)

    @property
    def real_fraction(self) -> float:
        """Real tokens per cell of the padded batch, nnz / (B S)."""
        return self.tokens / (len(self.lengths) * self.width)

    def arrange(self, joined: Shaped[Tensor, " total"], fill: int = 0) -> Shaped[Tensor, " n"]:
        """The flat tensor of a batch given as its rows' tokens behind one another; `fill` stands in padding."""
        flat = joined[self.sources]
        return flat if self.grid is None else flat.masked_fill_(~self.real(), fill)

    def unpad(self, x: Shaped[Tensor, "batch width *rest"]) -> Shaped[Tensor, "n *rest"]:
        """The flat tensor of a padded one."""
        flat = x.flatten(0, 1)
        return flat if self.padded else flat[self.indices]

    def pad(self, x: Shaped[Tensor, "n *rest"]) -> Shaped[Tensor, "batch width *rest"]:
        """The padded tensor of a flat one, with zeros in the cells that hold no token."""
        rows = len(self.lengths)
        if self.grid is not None:
            shaped, real = x.view(rows, self.width, *x.shape[1:]), self.grid.real
            return shaped if real is None else shaped * real.view(rows, self.width, *[1] * (x.ndim - 1))
        out = x.new_zeros(rows * self.width, *x.shape[1:])
        return out.index_copy(0, self.indices, x).view(rows, self.width, *x.shape[1:])

    def real(self) -> Bool[Tensor, " n"]:
        """Which entries of the flat tensor are tokens (all, unless the layout is padded)."""
        if self.grid is None or self.grid.real is None:
            return torch.ones(self.entries, dtype=torch.bool, device=self.indices.device)
        return self.grid.real.flatten()

    def mean(self, x: Float[Tensor, "n dim"]) -> Float[Tensor, "batch dim"]:
        """The mean over each row's tokens, in float32 at least, in the order of the batch."""
        wide = x if x.dtype == torch.float64 else x.float()
        if self.padded:
            sums = self.pad(wide).sum(1)
        else:
            sums = torch.segment_reduce(wide, "sum", lengths=self.starts.diff().long(), axis=0, unsafe=True)
        means = sums / torch.tensor(self.lengths, device=x.device, dtype=wide.dtype)[:, None]
        return torch.empty_like(means).index_copy(0, self.order, means)

    def first(self, x: Float[Tensor, "n dim"]) -> Float[Tensor, "batch dim"]:
        """Each row's first token, in the order of the batch."""
        if self.padded:
            real = self.real().view(len(self.lengths), self.width)
            return x[self.starts[:-1].long() + real.int().argmax(1)]
        chosen = x[self.starts[:-1].long()]
        return torch.empty_like(chosen).index_copy(0, self.order, chosen)

    def buckets(self, count: int | None) -> list[Bucket]:
        """The layout cut into `count` runs of neighbours of about equal length (None: one run per distinct length)."""
        if self.grid is not None:
            return [self.grid]
        if count not in self._buckets:
            self._buckets[count] = [
                _bucket(self.lengths[a:b], self.indices.device) for a, b in _cuts(self.lengths, count)
            ]
        return self._buckets[count]


def runs_by_length(lengths: Int64[Tensor, " texts"], cells: int) -> list[Int64[Tensor, " rows"]]:
    """Texts of like length put together: rows by rising length, cut into runs whose padded batch has at most `cells`
    cells (a longer text is a run by itself)."""
    order = lengths.argsort(stable=True)
    sizes = lengths[order].tolist()
    cuts, start = [], 0
    for index, size in enumerate(sizes):
        if index > start and (index - start + 1) * size > cells:
            cuts.append(index - start)
            start = index
    return list(torch.split(order, [*cuts, len(sizes) - start]))


def _cuts(lengths: Sequence[int], count: int | None) -> list[tuple[int, int]]:
    """First and last sequence of each bucket; `lengths` rise."""
    size = len(lengths)
    if count is None:
        edges = [0, *(i for i in range(1, size) if lengths[i] != lengths[i - 1]), size]
    else:
        edges = sorted({round(size * i / count) for i in range(count + 1)})
    return list(pairwise(edges))


def _bucket(lengths: Sequence[int], device: torch.device) -> Bucket:
    rows, width, tokens = len(lengths), lengths[-1], sum(lengths)
    if lengths[0] == width:
        return Bucket(rows, width, tokens, None, None, None)
    sizes = torch.tensor(lengths)
    column = torch.arange(width)
    real = column < sizes[:, None]
    slots = torch.where(real, (sizes.cumsum(0) - sizes)[:, None] + column, 0).flatten()
    places = real.flatten().nonzero().flatten()
    return Bucket(rows, width, tokens, slots.to(device), places.to(device), real.to(device))


def _grid(
    lengths: Int64[Tensor, " batch"], width: int, first: Int64[Tensor, " batch"], device: torch.device | str
) -> Bucket:
    """The one bucket of a padded layout: its slots are the entries themselves."""
    column = torch.arange(width)
    real = (column >= first[:, None]) & (column < (first + lengths)[:, None])
    return Bucket(len(lengths), width, len(lengths) * width, None, None, None if bool(real.all()) else real.to(device))


class _Spread(torch.autograd.Function):
    """Tokens into the slots of a bucket. The gradient reads the tokens' slots only: padding slots get none, because
    their keys have probability 0 and their queries are dropped."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, slots: Tensor, places: Tensor) -> Tensor:
        ctx.save_for_backward(places)
        return x.index_select(0, slots)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (places,) = ctx.saved_tensors
        return gradients[0].index_select(0, places), None, None


def spread(
    x: Float[Tensor, "tokens dim"], slots: Int64[Tensor, " slots"], places: Int64[Tensor, " tokens"]
) -> Float[Tensor, "slots dim"]:
    """Tokens into the slots of a bucket; `places` is the slot of each token (see `Bucket`)."""
    out: Tensor = _Spread.apply(x, slots, places)  # type: ignore[no-untyped-call]
    return out


def collect(x: Float[Tensor, "slots dim"], places: Int64[Tensor, " tokens"]) -> Float[Tensor, "tokens dim"]:
    """Tokens out of the slots of a bucket."""
    out: Tensor = _Collect.apply(x, places)  # type: ignore[no-untyped-call]
    return out


class _Collect(torch.autograd.Function):
    """Tokens out of the slots of a bucket; torch's own gradient of indexing adds up where nothing can coincide."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, places: Tensor) -> Tensor:
        ctx.save_for_backward(places)
        ctx.slots = x.shape[0]
        return x.index_select(0, places)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (places,) = ctx.saved_tensors
        out = gradients[0].new_zeros(ctx.slots, *gradients[0].shape[1:])
        return out.index_copy_(0, places, gradients[0]), None


Attention = Callable[[Float[Tensor, "n three heads width"], float], Float[Tensor, "n dim"]]
"""From queries, keys and values of all tokens (and a dropout rate) to the mixed values, heads side by side."""


def attention_over(
    layout: Layout,
    alibi: Alibi | None,
    *,
    path: AttentionPath = "auto",
    buckets: int = 6,
    dtype: torch.dtype = torch.float32,
    dropout: float = 0.0,
) -> Attention:
    """Exact attention within each sequence of a layout, prepared once for all layers.

    Args:
        layout: where the sequences lie.
        alibi: the distance penalty, or None.
        path: `buckets`: neighbours in length padded to the longest of their bucket (the fastest on a CPU); `lengths`:
            one bucket per distinct length, no padding at all; `repadded`: one bucket; `math`: the same with the scores
            written out instead of a fused kernel; `block`: one block-diagonal mask over all tokens (quadratic in the
            batch); `nested`: torch's jagged tensors (no ALiBi); `flex`: flex_attention; `varlen`: torch's flash
            attention for unequal lengths (GPU, 16 bit, no ALiBi); `flash`: the flash-attn package (GPU, 16 bit);
            `auto`: what suits the device.
        buckets: number of buckets for `buckets`.
        dtype: of the queries to come.
        dropout: of the attention weights; only decides what `auto` may choose.

    Raises:
        InputError: a path that this device, precision or position scheme does not allow.
    """
    device = layout.indices.device
    if path == "auto":
        path = _choose(device, alibi is not None, dtype, dropout)
    if layout.padded and path not in ("math", "repadded"):
        path = "repadded"  # the flat tensor is the padded batch: one bucket, whatever was asked for
    match path:
        case "buckets" | "lengths" | "repadded" | "math":
            count = {"buckets": buckets, "lengths": None}.get(path, 1)
            return _bucketed(layout, alibi, count, dtype, written_out=path == "math")
        case "block":
            return _block_diagonal(layout, alibi, dtype)
        case "nested":
            return _nested(layout, alibi)
        case "flex":
            return _flex(layout, alibi)
        case "varlen" | "flash":
            if device.type != "cuda" or dtype not in (torch.float16, torch.bfloat16):
                raise InputError(f"attention={path} needs a GPU and 16-bit precision: take 'buckets' or 'auto'")
            return _varlen(layout, alibi) if path == "varlen" else _flash(layout, alibi)
    raise InputError(f"attention={path} is unknown")


def _choose(device: torch.device, alibi: bool, dtype: torch.dtype, dropout: float) -> AttentionPath:
    if device.type != "cuda" or dropout > 0:
        return "buckets"
    half = dtype in (torch.float16, torch.bfloat16)
    if half and _installed("flash_attn"):
        return "flash"
    if half and not alibi and _installed("torch.nn.attention.varlen"):
        return "varlen"
    return "buckets"  # flex_attention must be compiled first, which takes longer than short trainings


@functools.cache
def _installed(name: str) -> bool:
    return importlib.util.find_spec(name) is not None


def _bucketed(
    layout: Layout, alibi: Alibi | None, count: int | None, dtype: torch.dtype, *, written_out: bool
) -> Attention:
    groups = layout.buckets(count)
    masks = [_mask(bucket, alibi, dtype) for bucket in groups]
    sizes = [bucket.tokens for bucket in groups]

    def attend(qkv: Tensor, dropout: float) -> Tensor:
        heads, width = qkv.shape[-2:]
        mixed = []
        # one split for all buckets: its gradient is one concatenation, that of slices a zeroed copy for each
        for part, bucket, mask in zip(torch.split(qkv.flatten(1), sizes), groups, masks, strict=True):
            if bucket.slots is not None and bucket.places is not None:
                part = spread(part, bucket.slots, bucket.places)
            q, k, v = part.view(bucket.rows, bucket.width, 3, heads, width).permute(2, 0, 3, 1, 4).unbind(0)
            if written_out:
                out = _written_out(q, k, v, mask, dropout)
            else:
                out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout)
            out = out.transpose(1, 2).reshape(bucket.rows * bucket.width, heads * width)
            if bucket.places is not None:
                out = collect(out, bucket.places)
            mixed.append(out)
        return mixed[0] if len(mixed) == 1 else torch.cat(mixed)

    return attend


def _mask(bucket: Bucket, alibi: Alibi | None, dtype: torch.dtype) -> Tensor | None:
    """The additive mask of a bucket: distance penalty, and -inf on keys that are padding."""
    bias: Tensor | None = None if alibi is None else alibi(bucket.width).to(dtype)[None]
    if bucket.real is None:
        return bias
    hidden = torch.zeros_like(bucket.real, dtype=dtype).masked_fill_(~bucket.real, -math.inf)[:, None, None]
    if bias is not None:
        return bias + hidden
    return hidden.expand(-1, -1, bucket.width, -1)


def _written_out(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, dropout: float) -> Tensor:
    """softmax(q k' / sqrt(d) + mask) v, step by step."""
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
    if mask is not None:
        scores = scores + mask
    weights = scores.softmax(-1, dtype=torch.float32).to(q.dtype) if q.dtype != torch.float64 else scores.softmax(-1)
    return F.dropout(weights, dropout) @ v if dropout else weights @ v


def _documents(layout: Layout) -> Int64[Tensor, " n"]:
    """Which sequence of the layout each entry belongs to."""
    sizes = torch.tensor(layout.lengths, device=layout.indices.device)
    return torch.arange(len(sizes), device=sizes.device).repeat_interleave(sizes, output_size=layout.entries)


def _block_diagonal(layout: Layout, alibi: Alibi | None, dtype: torch.dtype) -> Attention:
    document = _documents(layout)
    mask = torch.zeros(layout.entries, layout.entries, dtype=dtype, device=document.device)
    mask.masked_fill_(document[:, None] != document, -math.inf)
    mask = mask[None, None]
    if alibi is not None:
        place = layout.positions.to(dtype)
        mask = mask - alibi.slopes.to(dtype)[:, None, None] * (place[:, None] - place).abs()

    def attend(qkv: Tensor, dropout: float) -> Tensor:
        q, k, v = qkv.permute(1, 2, 0, 3).unsqueeze(1).unbind(0)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout)
        return out[0].transpose(0, 1).flatten(1)

    return attend


def _nested(layout: Layout, alibi: Alibi | None) -> Attention:
    if alibi is not None:
        raise InputError("attention=nested takes no distance penalty: take 'buckets', or positions=learned")
    longest, starts = max(layout.lengths), layout.starts.long()

    def attend(qkv: Tensor, dropout: float) -> Tensor:
        q, k, v = (
            torch.nested.nested_tensor_from_jagged(x.contiguous(), starts, min_seqlen=1, max_seqlen=longest).transpose(
                1, 2
            )
            for x in qkv.unbind(1)
        )
        out = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout)
        return out.transpose(1, 2).values().flatten(1)

    return attend


@functools.cache
def _compiled_flex() -> Any:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=True)


def flex_blocks(layout: Layout, block: int = 128) -> Any:
    """The block mask of a layout for flex_attention: which blocks of keys each block of queries reaches into.

    Made from the lengths; the usual way looks at every pair of tokens.
    """
    from torch.nn.attention.flex_attention import BlockMask

    size, device = layout.entries, layout.indices.device
    lengths = torch.tensor(layout.lengths)
    ends = lengths.cumsum(0)
    document = torch.arange(len(lengths)).repeat_interleave(lengths)
    first = torch.arange(0, size, block)
    last = (first + block).clamp(max=size) - 1
    low = (ends - lengths)[document[first]] // block
    high = (ends[document[last]] - 1) // block
    indices = (low[:, None] + torch.arange(len(first))) % len(first)
    owner = document.to(device)
    return BlockMask.from_kv_blocks(
        (high - low + 1).int().to(device)[None, None],
        indices.int().to(device)[None, None],
        BLOCK_SIZE=block,
        mask_mod=lambda batch, head, query, key: owner[query] == owner[key],
        seq_lengths=(size, size),
    )


def _flex(layout: Layout, alibi: Alibi | None) -> Attention:
    from torch.nn.attention.flex_attention import flex_attention

    penalty: Callable[..., Tensor] | None = None
    if alibi is not None:
        slopes = alibi.slopes
        # within a sequence, entries lie as far apart as positions
        penalty = lambda score, batch, head, query, key: score - slopes[head] * (query - key).abs()  # noqa: E731
    blocks = flex_blocks(layout)
    kernel = _compiled_flex() if layout.indices.device.type == "cuda" else flex_attention

    def attend(qkv: Tensor, dropout: float) -> Tensor:
        if dropout:
            raise InputError("attention=flex has no dropout: set attention_dropout=0 or take 'buckets'")
        q, k, v = qkv.permute(1, 2, 0, 3).unsqueeze(1).unbind(0)
        out: Tensor = kernel(q, k, v, score_mod=penalty, block_mask=blocks)
        return out[0].transpose(0, 1).flatten(1)

    return attend


def _varlen(layout: Layout, alibi: Alibi | None) -> Attention:
    if alibi is not None:
        raise InputError("attention=varlen takes no distance penalty: take 'flex', 'flash' or 'buckets'")
    from torch.nn.attention.varlen import varlen_attn

    longest = max(layout.lengths)

    def attend(qkv: Tensor, dropout: float) -> Tensor:
        if dropout:
            raise InputError("attention=varlen has no dropout: set attention_dropout=0 or take 'buckets'")
        q, k, v = qkv.unbind(1)
        out = varlen_attn(q, k, v, layout.starts, layout.starts, longest, longest)
        assert isinstance(out, Tensor)
        return out.flatten(1)

    return attend


def _flash(layout: Layout, alibi: Alibi | None) -> Attention:
    if not _installed("flash_attn"):
        raise InputError("attention=flash needs the package flash-attn: install it, or take 'auto'")
    from flash_attn import flash_attn_varlen_qkvpacked_func  # type: ignore[import-not-found]

    longest = max(layout.lengths)
    slopes = None if alibi is None else alibi.slopes.float()  # without causality the kernel's penalty is symmetric

    def attend(qkv: Tensor, dropout: float) -> Tensor:
        out = flash_attn_varlen_qkvpacked_func(qkv, layout.starts, longest, dropout_p=dropout, alibi_slopes=slopes)
        assert isinstance(out, Tensor)
        return out.flatten(1)

    return attend
