"""Vector quantisation: plain, residual, product, group-residual; codebooks learned by gradient or running averages.

One class does the work for all: `levels` sequential stages, each of which cuts the residual into `groups` slices of
its channels and has one codebook per slice. levels = groups = 1 is VQ-VAE's bottleneck (van den Oord et al. 2017, arXiv
1711.00937), groups = 1 residual VQ (SoundStream, 2107.03312; EnCodec, 2210.13438), levels = 1 product quantisation,
both above one HiFi-Codec's GRVQ (2305.02765).
"""

import math
from typing import Annotated, Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from pydantic import Field
from torch import Tensor, distributed, nn

from encyclo.config import Config
from encyclo.nn.part import Part, PartConfig

__all__ = [
    "Codebooks",
    "EmaLearning",
    "GradientLearning",
    "GroupResidualVectorQuantize",
    "NoQuantize",
    "ProductVectorQuantize",
    "Quantized",
    "Quantizer",
    "ResidualVectorQuantize",
    "VectorQuantize",
    "group_basis",
    "k_means",
    "rotate",
    "straight_through",
]

_MOST_DISTANCES = 1 << 26
"""Distances held at a time (256 MiB)."""


class Quantized(NamedTuple):
    """What a quantiser makes of vectors [..., d]."""

    values: Tensor
    """[..., d]: the sum of the chosen codes; its gradient goes to the input by the chosen estimator."""
    codes: Tensor
    """[..., levels * groups] int64: level 1 group 1, level 1 group 2, ..., level 2 group 1, ..."""
    loss: Tensor
    """Codebook and commitment terms, averaged over the levels."""


class GradientLearning(Config):
    """Codes follow the gradient of codebook * mean (q - sg[r])^2, the encoder that of commitment * mean (sg[q] - r)^2.

    This is VQ-VAE's loss, equation 3.
    """

    kind: Literal["gradient"] = "gradient"
    codebook: float = Field(1.0, ge=0)
    commitment: float = Field(0.25, ge=0)


class EmaLearning(Config):
    """Codes are running means of the vectors that chose them (VQ-VAE, appendix A.1); the loss is commitment alone."""

    kind: Literal["ema"] = "ema"
    decay: float = Field(0.99, gt=0, lt=1)
    eps: float = Field(1e-5, gt=0, description="Laplace smoothing of the counts")
    commitment: float = Field(1.0, ge=0)


Learning = Annotated[GradientLearning | EmaLearning, Field(discriminator="kind")]


class Codebooks(Part):
    """The codebooks of one level: `groups` tables of `size` codes of width d, searched at once.

    Shapes: vectors [groups, n, d], codes [groups, n]. Distances are fp32 whatever the autocast. In distributed training
    counts and sums are added over the processes, and what is drawn at random is drawn on the first one for all.
    """

    class Config(PartConfig):
        """Size, learning, first values and revival."""

        size: int = Field(1024, ge=2, description="codes in each codebook")
        learning: Learning = GradientLearning()
        init: Literal["uniform", "normal", "samples", "k-means"] = Field(
            "uniform", description="uniform(-1/size, 1/size), N(0, 1); or from the first vectors seen in training"
        )
        rounds: int = Field(50, ge=1, description="of k-means")
        revive_below: float = Field(
            0.0,
            ge=0,
            description="a code whose running count per batch falls below this becomes a vector of the batch; 0: off",
        )
        use_decay: float = Field(0.99, gt=0, lt=1, description="of the running counts, where learning has no decay")
        distance: Literal["euclidean", "cosine"] = "euclidean"

    weight: Tensor
    use: Float[Tensor, "g k"]
    sums: Float[Tensor, "g k d"]
    ready: Bool[Tensor, ""]

    def __init__(self, config: Config, *, groups: int, dim: int) -> None:
        super().__init__()
        self.config = config
        weight = torch.empty(groups, config.size, dim)
        if config.learning.kind == "ema":
            self.register_buffer("weight", weight)
            self.register_buffer("sums", torch.empty_like(weight))
        else:
            self.weight = nn.Parameter(weight)
        self.register_buffer("use", torch.empty(groups, config.size))
        self.register_buffer("ready", torch.empty((), dtype=torch.bool))
        self.init_own()

    def init_own(self) -> None:
        with torch.no_grad():
            if self.config.init == "normal":
                self.weight.normal_()
            else:
                bound = 1.0 / self.config.size
                self.weight.uniform_(-bound, bound)
            self.ready.fill_(self.config.init in ("uniform", "normal"))
            self._restart()

    def _restart(self) -> None:
        """Begin the running averages anew at the present codes."""
        self.use.fill_(1.0)
        if self.config.learning.kind == "ema":
            self.sums.copy_(self.weight)

    # -- coding --

    def nearest(self, x: Float[Tensor, "g n d"]) -> Int64[Tensor, "g n"]:
        """For each vector its nearest code: least |x - e|^2, or greatest cosine."""
        with torch.autocast(x.device.type, enabled=False), torch.no_grad():
            table = self.weight.float()
            if self.config.distance == "cosine":
                table = F.normalize(table, dim=-1)
                bias = table.new_zeros(())
            else:
                bias = table.square().sum(-1)[:, None]
            turned = table.transpose(1, 2)
            step = max(1, _MOST_DISTANCES // (table.shape[0] * table.shape[1]))
            # |x|^2 is the same for all codes and left out
            found = [
                torch.baddbmm(bias, part, turned, alpha=-2.0).argmin(-1) for part in torch.split(x.float(), step, 1)
            ]
            return torch.cat(found, 1) if len(found) != 1 else found[0]

    def lookup(self, codes: Int64[Tensor, "g n"]) -> Float[Tensor, "g n d"]:
        """The codes' vectors, differentiable in the table where that is a parameter."""
        groups, size, dim = self.weight.shape
        offset = torch.arange(groups, device=codes.device)[:, None] * size
        return F.embedding(codes + offset, self.weight.reshape(groups * size, dim))

    def loss(
        self, x: Float[Tensor, "g n d"], q: Float[Tensor, "g n d"], weight: Float[Tensor, " n"] | None = None
    ) -> Float[Tensor, ""]:
        """Codebook and commitment terms: means over vectors (weighted) and channels of all groups."""
        learning = self.config.learning
        commitment = _mean_square(q.detach() - x, weight)
        if isinstance(learning, EmaLearning):
            return learning.commitment * commitment
        return learning.codebook * _mean_square(q - x.detach(), weight) + learning.commitment * commitment

    # -- learning from the data, outside the gradient --

    @torch.no_grad()
    def initialise(self, x: Float[Tensor, "g n d"]) -> None:
        """Set the codes from data: k-means, or vectors drawn from them (with repetition where there are too few)."""
        x = x.float()
        size = self.config.size
        if self.config.init == "k-means":
            fresh = k_means(x, size, self.config.rounds)
        else:
            fresh = _drawn(x, size)
        _share_first(fresh)
        self.weight.copy_(fresh)
        self.ready.fill_(True)
        self._restart()

    @torch.no_grad()
    def learn(self, x: Float[Tensor, "g n d"], codes: Int64[Tensor, "g n"]) -> None:
        """One update of the running counts (and means), then revival of the codes that too few vectors choose."""
        c = self.config
        x = x.float()
        groups, size, dim = self.weight.shape
        flat = codes + torch.arange(groups, device=codes.device)[:, None] * size
        counts = torch.bincount(flat.reshape(-1), minlength=groups * size).reshape(groups, size).float()
        _add_over_processes(counts)
        decay = c.learning.decay if isinstance(c.learning, EmaLearning) else c.use_decay
        self.use.lerp_(counts, 1 - decay)
        if isinstance(c.learning, EmaLearning):
            sums = torch.zeros_like(self.sums).view(-1, dim).index_add_(0, flat.reshape(-1), x.reshape(-1, dim))
            _add_over_processes(sums)
            self.sums.lerp_(sums.view_as(self.sums), 1 - decay)
            total = self.use.sum(-1, keepdim=True)
            smoothed = (self.use + c.learning.eps) / (total + size * c.learning.eps) * total
            self.weight.copy_(self.sums / smoothed[..., None])
        if c.revive_below > 0 and x.shape[1]:
            self._revive(x)

    def _revive(self, x: Float[Tensor, "g n d"]) -> None:
        dead = self.use < self.config.revive_below
        if not bool(dead.any()):
            return
        fresh = _drawn(x, self.config.size)
        _share_first(fresh)
        self.weight.copy_(torch.where(dead[..., None], fresh, self.weight))
        self.use.masked_fill_(dead, self.config.revive_below)
        if self.config.learning.kind == "ema":
            self.sums.copy_(torch.where(dead[..., None], fresh * self.config.revive_below, self.sums))


class _QuantizerConfig(PartConfig):
    """Fields of every quantiser."""

    levels: int = Field(1, ge=1)
    groups: int = Field(1, ge=1)
    codebooks: Codebooks.Config = Codebooks.Config()
    estimator: Literal["straight-through", "rotation"] = Field(
        "straight-through", description="gradient through the choice; rotation: Fifty et al. 2024, arXiv 2410.06424"
    )
    residual_gradient: Literal["blocked", "open"] = Field(
        "blocked",
        description="blocked (HiFi-Codec): each level's estimator cuts the next residual's gradient, so that only the"
        " first level's commitment moves the encoder; open: every level's does",
    )


class GroupResidualVectorQuantize(Part):
    """GRVQ: every level codes each channel group of what the levels before it left, from a codebook of its own.

    r_1 = z; q_l = nearest codes of the groups of r_l, joined; r_{l+1} = r_l - q_l; output sum_l q_l.
    """

    class Config(_QuantizerConfig):
        """Levels, groups and their codebooks."""

        kind: Literal["group-residual"] = "group-residual"
        levels: int = Field(2, ge=1)
        groups: int = Field(2, ge=1)

    def __init__(self, config: _QuantizerConfig, *, dim: int) -> None:
        super().__init__()
        if dim % config.groups:
            raise ValueError(f"dim {dim} cannot be cut into {config.groups} groups")
        self.config, self.dim = config, dim
        width = dim // config.groups
        self.levels = nn.ModuleList(
            config.codebooks.build(groups=config.groups, dim=width) for _ in range(config.levels)
        )

    # -- what it costs, exactly --

    @property
    def books(self) -> int:
        """Codebooks, which is codes per vector."""
        return self.config.levels * self.config.groups

    @property
    def bits(self) -> float:
        """Bits per vector, not entropy-coded."""
        return self.books * math.log2(self.config.codebooks.size)

    @property
    def table_parameters(self) -> int:
        """Numbers in all codebooks."""
        return self.config.levels * self.config.codebooks.size * self.dim

    @property
    def search_macs(self) -> int:
        """Multiply-accumulates of the search, per vector."""
        return self.config.levels * self.config.codebooks.size * self.dim

    @property
    def sequential_steps(self) -> int:
        """Searches that must wait for one another."""
        return self.config.levels

    # -- coding --

    def forward(
        self,
        x: Float[Tensor, "*b d"],
        *,
        levels: int | None = None,
        keep: Bool[Tensor, "*b"] | None = None,
        learn: bool | None = None,
    ) -> Quantized:
        """Quantise vectors.

        Args:
            x: [..., dim].
            levels: use only the first so many (bit rate chosen per call); None: all.
            keep: False where a vector is padding: it counts in no loss and no running average.
            learn: update running averages, revive codes; None: in training mode.
        """
        learn = self.training if learn is None else learn
        kept = None if keep is None else keep.reshape(-1)
        differentiable = torch.is_grad_enabled() and (x.requires_grad or self.training)
        z = self._split(x)
        residual, values = z, torch.zeros_like(z)
        codes, losses = [], []
        for level in self._levels(levels):
            seen = residual.detach() if kept is None else residual.detach()[:, kept]
            if learn and not bool(level.ready):
                level.initialise(seen)
            chosen = level.nearest(residual)
            q = level.lookup(chosen)
            losses.append(level.loss(residual, q, None if kept is None else kept.float()))
            if learn:
                level.learn(seen, chosen if kept is None else chosen[:, kept])
            if not differentiable:
                residual, values = residual - q, values + q
            elif self.config.residual_gradient == "blocked":
                passed = self._pass(residual, q)
                residual, values = residual - passed, values + passed
            else:
                residual, values = residual - q.detach(), values + q.detach()
            codes.append(chosen)
        if differentiable and self.config.residual_gradient == "open":
            values = self._pass(z, values)
        joined = torch.stack(codes, 0).flatten(0, 1).t().reshape(*x.shape[:-1], -1)
        return Quantized(self._join(values, x), joined, torch.stack(losses).mean())

    def decode(self, codes: Int64[Tensor, "*b books"]) -> Float[Tensor, "*b d"]:
        """The vectors that codes stand for; codes of the first few levels alone give the coarser vector."""
        return self._join(torch.stack(self._looked_up(codes)).sum(0), codes)

    def decode_levels(self, codes: Int64[Tensor, "*b books"]) -> Float[Tensor, "levels *b d"]:
        """As `decode`, after 1, 2, ... levels."""
        parts = torch.stack(self._looked_up(codes)).cumsum(0)
        return torch.stack([self._join(part, codes) for part in parts])

    @torch.no_grad()
    def initialise(self, x: Float[Tensor, "*b d"]) -> None:
        """Set all codebooks from data now, level by level, as their `init` says (nothing for uniform and normal)."""
        if self.config.codebooks.init in ("uniform", "normal"):
            return
        residual = self._split(x.detach())
        for level in self._levels(None):
            level.initialise(residual)
            residual = residual - level.lookup(level.nearest(residual))

    # -- within --

    def _levels(self, count: int | None) -> list[Codebooks]:
        if count is not None and not 1 <= count <= len(self.levels):
            raise ValueError(f"levels={count}: there are 1 to {len(self.levels)}")
        return [level for level in list(self.levels)[:count] if isinstance(level, Codebooks)]

    def _split(self, x: Float[Tensor, "*b d"]) -> Float[Tensor, "g n e"]:
        if x.shape[-1] != self.dim:
            raise ValueError(f"vectors of {x.shape[-1]} channels, {self.dim} are expected")
        return x.reshape(-1, self.config.groups, self.dim // self.config.groups).transpose(0, 1).float()

    def _join(self, parts: Float[Tensor, "g n e"], like: Tensor) -> Tensor:
        joined = parts.transpose(0, 1).reshape(*like.shape[:-1], self.dim)
        return joined.to(like.dtype) if like.is_floating_point() else joined

    def _looked_up(self, codes: Int64[Tensor, "*b books"]) -> list[Float[Tensor, "g n e"]]:
        count, left = divmod(codes.shape[-1], self.config.groups)
        if left:
            raise ValueError(
                f"{codes.shape[-1]} codes per vector are no whole number of levels of {self.config.groups}"
            )
        flat = codes.reshape(-1, codes.shape[-1]).t()
        groups = self.config.groups
        return [level.lookup(flat[i * groups : (i + 1) * groups]) for i, level in enumerate(self._levels(count))]

    def _pass(self, x: Float[Tensor, "g n e"], q: Float[Tensor, "g n e"]) -> Float[Tensor, "g n e"]:
        return rotate(x, q) if self.config.estimator == "rotation" else straight_through(x, q)


class ResidualVectorQuantize(GroupResidualVectorQuantize):
    """RVQ: each level codes what the levels before it left, over all channels."""

    class Config(_QuantizerConfig):
        """As GRVQ, with one group."""

        kind: Literal["residual"] = "residual"
        levels: int = Field(4, ge=1)
        groups: Literal[1] = 1


class ProductVectorQuantize(GroupResidualVectorQuantize):
    """Product quantisation: one level, the channels cut into groups."""

    class Config(_QuantizerConfig):
        """As GRVQ, with one level."""

        kind: Literal["product"] = "product"
        levels: Literal[1] = 1
        groups: int = Field(4, ge=1)


class VectorQuantize(GroupResidualVectorQuantize):
    """One codebook over all channels."""

    class Config(_QuantizerConfig):
        """As GRVQ, with one level and one group."""

        kind: Literal["plain"] = "plain"
        levels: Literal[1] = 1
        groups: Literal[1] = 1


class NoQuantize(Part):
    """Lets vectors through: the continuous autoencoder."""

    class Config(PartConfig):
        """No choices."""

        kind: Literal["none"] = "none"

    def __init__(self, config: Config, *, dim: int) -> None:
        super().__init__()
        self.config, self.dim = config, dim

    def forward(
        self,
        x: Float[Tensor, "*b d"],
        *,
        levels: int | None = None,
        keep: Bool[Tensor, "*b"] | None = None,
        learn: bool | None = None,
    ) -> Quantized:
        """The vectors themselves, no codes, loss 0."""
        return Quantized(x, torch.empty(*x.shape[:-1], 0, dtype=torch.long, device=x.device), x.new_zeros(()).float())


Quantizer = Annotated[
    VectorQuantize.Config
    | ResidualVectorQuantize.Config
    | ProductVectorQuantize.Config
    | GroupResidualVectorQuantize.Config
    | NoQuantize.Config,
    Field(discriminator="kind"),
]
"""Any quantiser, chosen by `kind`."""


def straight_through(x: Float[Tensor, "*b d"], q: Float[Tensor, "*b d"]) -> Float[Tensor, "*b d"]:
    """q, with the gradient of x (Bengio et al. 2013)."""
    return x + (q - x).detach()


def rotate(x: Float[Tensor, "*b d"], q: Float[Tensor, "*b d"]) -> Float[Tensor, "*b d"]:
    """q as a rotation and rescaling of x that is held fixed in the gradient (Fifty et al. 2024, section 4.2)."""
    size_x = x.norm(dim=-1, keepdim=True).clamp(min=1e-6)
    size_q = q.norm(dim=-1, keepdim=True)
    e, h = (x / size_x).detach(), (q / size_q.clamp(min=1e-6)).detach()
    w = F.normalize(e + h, dim=-1)
    turned = x - 2 * (x * w).sum(-1, keepdim=True) * w + 2 * (x * e).sum(-1, keepdim=True) * h
    passed: Tensor = turned * (size_q / size_x).detach()
    return passed


@torch.no_grad()
def group_basis(x: Float[Tensor, "n d"], groups: int) -> Float[Tensor, "d d"]:
    """An orthogonal basis whose rows, cut into `groups`, give uncorrelated groups of about equal weight.

    Principal components of `x`, handed out in the order of their variance, each to the group whose variances have the
    smallest product so far (optimised product quantisation, Ge et al. 2013, section 3.2). Where a linear layer stands
    on both sides it costs nothing: `b @ z` is what the one makes and `b.T` undoes it in the other. One group gains
    nothing, for distances do not change.

    Args:
        x: vectors to be quantised.
        groups: a divisor of d.
    """
    centred = (x - x.mean(0)).double()
    variances, vectors = torch.linalg.eigh(centred.t() @ centred / max(len(x) - 1, 1))
    dim = x.shape[1]
    # relative to the smallest: a factor below 1 would shrink the product and draw the next component to the same group
    gains = (variances.clamp(min=1e-6 * float(variances[-1].clamp(min=1e-30))) / variances[-1].clamp(min=1e-30)).log()
    gains = (gains - gains[0]).tolist()
    members: list[list[int]] = [[] for _ in range(groups)]
    weights = [0.0] * groups
    for i in reversed(range(dim)):
        open_groups = [g for g in range(groups) if len(members[g]) < dim // groups]
        chosen = min(open_groups, key=lambda g: weights[g])
        members[chosen].append(i)
        weights[chosen] += gains[i]
    rows = [i for group in members for i in group]
    basis: Tensor = vectors.t()[rows].to(x.dtype)
    return basis


@torch.no_grad()
def k_means(x: Float[Tensor, "g n d"], size: int, rounds: int) -> Float[Tensor, "g k d"]:
    """Lloyd's algorithm in each group on its own, from vectors drawn at random; an empty cluster keeps its centre."""
    groups, _, dim = x.shape
    centres = _drawn(x, size)
    offset = torch.arange(groups, device=x.device)[:, None] * size
    step = max(1, _MOST_DISTANCES // (groups * size))
    for _ in range(rounds):
        bias = centres.square().sum(-1)[:, None]
        turned = centres.transpose(1, 2)
        parts = [torch.baddbmm(bias, part, turned, alpha=-2.0).argmin(-1) for part in torch.split(x, step, 1)]
        flat = (torch.cat(parts, 1) + offset).reshape(-1)
        counts = torch.bincount(flat, minlength=groups * size).reshape(groups, size, 1)
        sums = torch.zeros(groups * size, dim, device=x.device).index_add_(0, flat, x.reshape(-1, dim))
        moved = torch.where(counts > 0, sums.view(groups, size, dim) / counts.clamp(min=1), centres)
        if torch.equal(moved, centres):
            break
        centres = moved
    return centres


def _drawn(x: Float[Tensor, "g n d"], count: int) -> Float[Tensor, "g k d"]:
    """`count` of the vectors at random, other ones in each group; each at most once where there are enough."""
    groups, n, dim = x.shape
    if n == 0:
        raise ValueError("no vectors to draw codes from")
    # on the CPU's generator, so that all devices draw alike
    if n >= count:
        picks = torch.stack([torch.randperm(n)[:count] for _ in range(groups)])
    else:
        picks = torch.randint(n, (groups, count))
    return x.gather(1, picks.to(x.device)[..., None].expand(-1, -1, dim)).clone()


def _mean_square(difference: Float[Tensor, "g n d"], weight: Float[Tensor, " n"] | None) -> Float[Tensor, ""]:
    if weight is None:
        return difference.square().mean()
    per_vector = difference.square().mean((0, 2))
    return (per_vector * weight).sum() / weight.sum().clamp(min=1)


def _together() -> bool:
    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1


def _add_over_processes(tensor: Tensor) -> None:
    if _together():
        distributed.all_reduce(tensor)


def _share_first(tensor: Tensor) -> None:
    if _together():
        distributed.broadcast(tensor, 0)
