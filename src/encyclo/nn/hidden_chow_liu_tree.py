"""The hidden Chow-Liu tree: a probabilistic circuit whose sum, product and input units follow a tree learned from data.

Liu, Mandt & Van den Broeck 2022 (arXiv 2111.11632, section 4). Every variable X_i hangs on a latent Z_i with M states;
the latents form the Chow-Liu tree of the variables. Written as a circuit, node i has M input units B_i[z, x_i], M
product units and, towards its parent, M sum units, each weighing the M product units below:

    m_i[z] = B_i[z, x_i] prod_{c child of i} u_c[z],  u_c[z] = sum_z' A_c[z, z'] m_c[z'],  p(x) = sum_z pi[z] m_root[z]

with m_i[z] = p(observations below i | Z_i = z). All nodes of one depth are computed in one batched product.
"""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int, Int64, UInt8
from pydantic import Field
from torch import Tensor, nn

from encyclo.nn.backoff import Backoff
from encyclo.nn.chow_liu import Tree
from encyclo.nn.part import Part, PartConfig

__all__ = ["Counts", "HiddenChowLiuTree", "Upward", "power_of_two"]

TINY = 1e-30
"""Least value of a scaled message in float32: keeps quotients finite; below any probability that matters."""


@dataclass
class Counts:
    """Expected counts of a batch, which are the circuit's flows: F_{n,c} summed over samples, by edge.

    Attributes:
        prior: of the root's states, [m].
        transition: of (parent's state, own state), [d-1, m, m], nodes in the order of levels without the root.
        emission: of (state, value), [d, m, values], nodes in the order of levels.
        log_likelihood: summed over the batch, in nats.
        samples: how many (their weights' sum).
    """

    prior: Float[Tensor, " m"]
    transition: Float[Tensor, "edges m m"]
    emission: Float[Tensor, "d m values"]
    log_likelihood: Float[Tensor, ""]
    samples: Float[Tensor, ""]

    def add(self, other: "Counts") -> None:
        """Add another batch's."""
        for mine, theirs in zip(self.tensors(), other.tensors(), strict=True):
            mine += theirs

    def tensors(self) -> tuple[Tensor, ...]:
        """All of them, for an all-reduce over processes."""
        return self.prior, self.transition, self.emission, self.log_likelihood, self.samples


@dataclass(frozen=True)
class Upward:
    """What a pass from the leaves to the root found: p = value * 2^exponent for each sample."""

    value: Float[Tensor, " n"]
    exponent: Int64[Tensor, " n"]
    products: Float[Tensor, "d m n"]
    """Product units of each node, scaled per node and sample so that the largest lies in [1/2, 1)."""
    sums: Float[Tensor, "d m n"]
    """Sum units of each node towards its parent (those of the root are not set)."""

    def log(self) -> Float[Tensor, " n"]:
        """ln p, in float64."""
        return self.value.double().log() + math.log(2) * self.exponent.double()


def power_of_two(
    positive: Float[Tensor, "*shape"],
) -> tuple[Float[Tensor, "*shape"], Int64[Tensor, "*shape"]]:
    """Exact 2^-e, and e, for the e with x 2^-e in [1/2, 1): read off the bits of positive normal floats."""
    if positive.dtype == torch.float64:
        biased = positive.contiguous().view(torch.int64) >> 52
        return ((2045 - biased) << 52).view(torch.float64), biased - 1022
    biased32 = positive.contiguous().view(torch.int32) >> 23
    return ((253 - biased32) << 23).view(torch.float32), biased32.long() - 126


@dataclass(frozen=True)
class _Level:
    """Nodes start..stop of one depth; `ranks` pairs first children with their parents, then second ones, and so on."""

    start: int
    stop: int
    ranks: tuple[tuple[Int64[Tensor, " _"], Int64[Tensor, " _"]], ...]
    parents: Int64[Tensor, " n"]


class HiddenChowLiuTree(Part):
    """The circuit's parameters, its likelihood in float64 or float32, its flows, exact sampling and posteriors.

    Parameters (probabilities, not logits; rows sum to 1): `prior` [m], `transition` [d-1, m, m] (parent's state, own
    state) and `emission` [d, m, values]. Nodes stand in the order of the
    tree's levels, `variables` names the variable of each. In all (d-1) m^2 + d m values + m numbers.
    """

    class Config(PartConfig):
        """Size of the circuit beside the tree."""

        latents: int = Field(16, ge=1, description="M, states of each latent variable")
        pseudo_count: float = Field(0.1, ge=0, description="kappa, spread over the M edges of each sum unit")
        backoff: Backoff.Config = Backoff.Config()

    def __init__(self, config: Config, *, tree: Tree, values: int = 256) -> None:
        super().__init__()
        self.config, self.values = config, values
        d, m = len(tree), config.latents
        self.prior = nn.Parameter(torch.empty(m))
        self.transition = nn.Parameter(torch.empty(d - 1, m, m))
        self.emission = nn.Parameter(torch.empty(d, m, values))
        self.parent: Tensor
        self.register_buffer("parent", torch.from_numpy(tree.parent.copy()))
        self.backoff = config.backoff.build(variables=d, values=values)
        self.tree = tree
        self.init_own()

    @torch.no_grad()
    def init_own(self) -> None:
        """Uniform rows: a saddle point of the likelihood, from which `start` leads away."""
        self.parent.copy_(torch.from_numpy(self.tree.parent))
        self.prior.fill_(1 / self.config.latents)
        self.transition.fill_(1 / self.config.latents)
        self.emission.fill_(1 / self.values)

    # -- layout --------------------------------------------------------------------------------------------------

    @cached_property
    def variables(self) -> Int64[Tensor, " d"]:
        """The variable at each place of the order of levels."""
        return torch.tensor([v for level in self.tree.levels for v in level], device=self.prior.device)

    @cached_property
    def _places(self) -> dict[int, int]:
        return {v: place for place, v in enumerate(self.variables.tolist())}

    @cached_property
    def _levels(self) -> list[_Level]:
        out, start = [], 0
        device = self.prior.device
        for level in self.tree.levels:
            ranks: list[list[tuple[int, int]]] = []
            for node in level:
                for rank, child in enumerate(self.tree.children[node]):
                    if rank == len(ranks):
                        ranks.append([])
                    ranks[rank].append((self._places[child], self._places[node]))
            pairs = tuple(
                (torch.tensor([c for c, _ in rank], device=device), torch.tensor([p for _, p in rank], device=device))
                for rank in ranks
            )
            above = [self._places[int(p)] if p >= 0 else 0 for p in self.tree.parent[level]]
            out.append(_Level(start, start + len(level), pairs, torch.tensor(above, device=device)))
            start += len(level)
        return out

    def _apply(self, fn: Any, recurse: bool = True) -> "HiddenChowLiuTree":
        for name in ("variables", "_levels"):  # index tensors follow the parameters to their device
            self.__dict__.pop(name, None)
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self

    # -- likelihood ----------------------------------------------------------------------------------------------

    @torch.no_grad()
    def inputs(
        self,
        data: Int[Tensor, "n d"] | UInt8[Tensor, "n d"],
        observed: Bool[Tensor, "*n d"] | None = None,
        *,
        dtype: torch.dtype = torch.float64,
    ) -> Float[Tensor, "d m n"]:
        """Input units B_i[z, x_i]; 1 where a variable is not observed."""
        at = data[:, self.variables].T.long()[:, None].expand(-1, self.config.latents, -1)
        out = self.emission.gather(2, at).to(dtype)
        if observed is not None:
            hidden = ~observed.expand(data.shape)[:, self.variables].T
            out.masked_fill_(hidden[:, None], 1.0)
        return out

    @torch.no_grad()
    def upward(self, inputs: Float[Tensor, "d m n"]) -> "Upward":
        """One pass from the leaves to the root.

        Args:
            inputs: values of the input units; overwritten by the product units.
        """
        m, u = inputs, torch.empty_like(inputs)
        exponent = torch.zeros(inputs.shape[2], dtype=torch.int64, device=inputs.device)
        weights = self.transition.to(inputs.dtype)
        for level in reversed(self._levels):
            for children, parents in level.ranks:
                m[parents] = m[parents].mul_(u[children])
            here = m[level.start : level.stop]
            factor, shift = power_of_two(here.amax(1, keepdim=True))
            here.mul_(factor).clamp_(min=TINY)
            exponent += shift.sum((0, 1))
            if level.start:
                torch.bmm(weights[level.start - 1 : level.stop - 1], here, out=u[level.start : level.stop])
        return Upward(self.prior.to(inputs.dtype) @ m[0], exponent, m, u)

    @torch.no_grad()
    def log_likelihood(
        self,
        data: Int[Tensor, "n d"] | UInt8[Tensor, "n d"],
        observed: Bool[Tensor, "*n d"] | None = None,
        *,
        dtype: torch.dtype = torch.float64,
        batch: int = 256,
    ) -> Float[Tensor, " n"]:
        """ln p of the observed values of each sample, all others summed out exactly; nats.

        Args:
            data: values 0..values-1; what stands at unobserved places does not matter.
            observed: which variables are known, one mask for all or one for each sample; None: all.
            dtype: of the computation.
            batch: samples at a time.
        """
        parts = []
        for start in range(0, len(data), batch):
            part = slice(start, start + batch)
            seen = observed if observed is None or observed.ndim == 1 else observed[part]
            parts.append(self.upward(self.inputs(data[part], seen, dtype=dtype)).log())
        return torch.cat(parts) if parts else torch.zeros(0, dtype=dtype, device=data.device)

    # -- flows ---------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def posteriors(self, up: "Upward", counts: Counts | None = None) -> Float[Tensor, "d m n"]:
        """Flows of the product units, F_i[z] = p(Z_i = z | observations), by a pass from the root to the leaves.

        Args:
            up: from `upward`; its sum units are overwritten.
            counts: takes the flows of the sum units' edges, summed over the samples.
        """
        m, u = up.products, up.sums
        flows = torch.empty_like(m)
        weights = self.transition.to(m.dtype)
        root = self.prior.to(m.dtype)[:, None] * m[0]
        flows[0] = root / root.sum(0)
        for level in self._levels[1:]:
            here, above = slice(level.start, level.stop), slice(level.start - 1, level.stop - 1)
            ratio = flows[level.parents].div_(u[here])
            torch.bmm(weights[above].mT, ratio, out=flows[here])
            flows[here] *= m[here]
            if counts is not None:
                counts.transition[above] += torch.bmm(ratio, m[here].mT).mul_(weights[above])
        return flows

    @torch.no_grad()
    def counts(
        self, data: Int[Tensor, "n d"] | UInt8[Tensor, "n d"], *, dtype: torch.dtype = torch.float32, batch: int = 256
    ) -> Counts:
        """Expected counts of all edges over a batch of complete samples (section 4, EM by circuit flows).

        Args:
            data: values 0..values-1.
            dtype: of the computation.
            batch: samples at a time; the sums are over all of `data`.
        """
        out = Counts(
            *(torch.zeros_like(p, dtype=dtype) for p in (self.prior, self.transition, self.emission)),
            *(torch.zeros((), dtype=torch.float64, device=data.device) for _ in range(2)),
        )
        for start in range(0, len(data), batch):
            part = data[start : start + batch]
            up = self.upward(self.inputs(part, dtype=dtype))
            flows = self.posteriors(up, out)
            out.emission.scatter_add_(2, part[:, self.variables].T.long()[:, None].expand_as(flows), flows)
            out.prior += flows[0].sum(1)
            out.log_likelihood += up.log().sum()
            out.samples += len(part)
        return out

    # -- what can be asked of it -----------------------------------------------------------------------------------

    @torch.no_grad()
    def conditionals(
        self, data: Int[Tensor, "n d"] | UInt8[Tensor, "n d"], observed: Bool[Tensor, "*n d"]
    ) -> Float[Tensor, "n d values"]:
        """p(X_i = v | observed values) for every variable, exact; at observed ones, what all others say about them."""
        inputs = self.inputs(data, observed)
        up = self.upward(inputs.clone())
        flows = self.posteriors(up) / inputs  # without the variable's own evidence
        rows = torch.bmm(flows.mT, self.emission.double())
        rows /= rows.sum(-1, keepdim=True)
        out = torch.empty_like(rows)
        out[self.variables] = rows
        return out.transpose(0, 1)

    @torch.no_grad()
    def sample(
        self,
        generator: torch.Generator,
        data: Int[Tensor, "n d"] | UInt8[Tensor, "n d"],
        observed: Bool[Tensor, "*n d"] | None = None,
    ) -> UInt8[Tensor, "n d"]:
        """Draw from p(unobserved | observed), exactly: evidence goes up, states are drawn on the way down.

        Args:
            generator: on the CPU, so that all devices draw alike.
            data: what was observed; its length says how many are drawn.
            observed: None: nothing is.
        """
        seen = torch.zeros(len(self.tree), dtype=torch.bool, device=data.device) if observed is None else observed
        products = self.upward(self.inputs(data, seen)).products
        out = data.to(torch.uint8).clone()
        n = len(data)
        states = torch.zeros(len(self.tree), n, dtype=torch.int64, device=data.device)
        for level in self._levels:
            here = slice(level.start, level.stop)
            size = level.stop - level.start
            weights = products[here].mT
            if level.start:
                rows = self.transition[level.start - 1 : level.stop - 1].double()
                weights = weights * rows[torch.arange(size, device=data.device)[:, None], states[level.parents]]
            else:
                weights = weights * self.prior.double()
            states[here] = _draw(weights, generator)
            rows = self.emission[here].double()[torch.arange(size, device=data.device)[:, None], states[here]]
            variables = self.variables[here]
            kept = seen.expand(n, -1)[:, variables]
            out[:, variables] = torch.where(kept, out[:, variables], _draw(rows, generator).T.to(torch.uint8))
        return out

    # -- learning ------------------------------------------------------------------------------------------------

    def nll(self, data: Int[Tensor, "n d"] | UInt8[Tensor, "n d"]) -> Float[Tensor, ""]:
        """Mean negative log-likelihood in nats, differentiable: the flows are its gradient times the parameters.

        F_{n,c} = theta_{n,c} d ln p / d theta_{n,c}, so a trainer that averages gradients over micro-batches and
        processes averages flows, and `em_step` reads them off again.
        """
        loss: Tensor = _NegativeLogLikelihood.apply(  # type: ignore[no-untyped-call]
            self.prior, self.transition, self.emission, self, data
        )
        return loss

    @torch.no_grad()
    def em_step(self, samples: int, eta: float) -> None:
        """One step of EM from the gradients of `nll`: theta <- (1 - eta) theta + eta theta_new; clears the gradients.

        theta_new is the normalised flow with its pseudo-counts: kappa / M for each edge of a sum unit, `Backoff` for
        the input units.

        Args:
            samples: size of the whole training set, to which a batch's mean flows are scaled.
            eta: 1 is full EM; a mini-batch takes a part of the way.
        """
        flows = []
        for p in (self.prior, self.transition, self.emission):
            assert p.grad is not None
            flows.append(p.grad.mul_(p).mul_(-samples))
            p.grad = None
        prior, transition, emission = flows
        kappa = self.config.pseudo_count / self.config.latents
        self.prior.lerp_(_rows(prior.add_(kappa)), eta)
        self.transition.lerp_(_rows(transition.add_(kappa)), eta)
        self.emission.lerp_(self.backoff(emission), eta)

    @torch.no_grad()
    def start(
        self,
        data: Int[Tensor, "n d"] | UInt8[Tensor, "n d"],
        generator: torch.Generator,
        *,
        kind: Literal["prototypes", "random"] = "prototypes",
        radius: int = 3,
        noise: float = 0.3,
    ) -> None:
        """First parameters, away from the saddle point where all latent states are alike (assumed, not published).

        Args:
            data: training samples; also teaches the backoff.
            generator: on the CPU.
            kind: "random": transitions drawn evenly from the simplex, emissions the variables' histograms with noise.
                "prototypes": M training samples are drawn; each latent's state in a sample is the prototype that is
                nearest on the variables within `radius` edges of the tree, and the tables are counted from that.
            radius: of the neighbourhood.
            noise: relative, of the random emissions.
        """
        m, d = self.config.latents, len(self.tree)
        self.backoff.learn(data[:, self.variables])
        uniform = torch.rand(self.transition.shape, generator=generator).clamp_(min=1e-6)
        if kind == "random" or d == 1:
            factor = 1 - noise + 2 * noise * torch.rand(self.emission.shape, generator=generator)
            self.prior.fill_(1 / m)
            self.transition.copy_(_rows(-uniform.log()))
            self.emission.copy_(_rows(self.backoff(torch.zeros_like(self.emission)) * factor.to(data.device)))
            return
        states = self._nearest_prototypes(data, generator, radius)
        counts = torch.zeros(d - 1, m * m, device=data.device)
        above = torch.cat([level.parents for level in self._levels])[1:]
        one = torch.ones((), device=data.device)
        counts.scatter_add_(1, states[above] * m + states[1:], one.expand(d - 1, len(data)))
        self.prior.copy_(_rows(torch.bincount(states[0], minlength=m) + 1.0))
        self.transition.copy_(_rows(counts.view(d - 1, m, m) + 1.0))
        joint = torch.zeros(d, m * self.values, device=data.device)
        values = data[:, self.variables].T.long()
        joint.scatter_add_(1, states * self.values + values, one.expand(d, len(data)))
        self.emission.copy_(self.backoff(joint.view_as(self.emission)))

    def _nearest_prototypes(
        self, data: Int[Tensor, "n d"] | UInt8[Tensor, "n d"], generator: torch.Generator, radius: int
    ) -> Int64[Tensor, "d n"]:
        """For each place and sample, which of M drawn samples is nearest around that place."""
        d, m = len(self.tree), self.config.latents
        near = torch.eye(d, dtype=torch.bool)
        edges = torch.tensor([[c, p] for c, p in enumerate(self.tree.parent.tolist()) if p >= 0])
        adjacent = torch.eye(d)
        adjacent[edges[:, 0], edges[:, 1]] = adjacent[edges[:, 1], edges[:, 0]] = 1.0
        for _ in range(radius):
            near = (near.float() @ adjacent) > 0
        ball = near[self.variables.cpu()].to(data.device, torch.float32)
        chosen = torch.randperm(len(data), generator=generator)[:m]
        chosen = chosen.repeat(-(-m // len(chosen)))[:m]
        x = data.to(torch.float32).T.contiguous()
        best = torch.full((d, len(data)), torch.inf, device=data.device)
        states = torch.zeros(d, len(data), dtype=torch.int64, device=data.device)
        for state, index in enumerate(chosen.tolist()):
            distance = ball @ (x - x[:, index, None]).square_()
            # ties (empty margins) are broken at random, so that no state starves
            distance += torch.rand(distance.shape, generator=generator).to(data.device)
            closer = distance < best
            best = torch.where(closer, distance, best)
            states.masked_fill_(closer, state)
        return states


def _draw(weights: Float[Tensor, "*n k"], generator: torch.Generator) -> Int64[Tensor, "*n"]:
    """An index for each row, with probability proportional to its weight."""
    sums = weights.cumsum(-1)
    u = torch.rand(sums.shape[:-1], generator=generator, dtype=torch.float64).to(sums.device)
    return (sums[..., :-1] <= (u[..., None] * sums[..., -1:])).sum(-1)


def _rows(positive: Float[Tensor, "*rows k"]) -> Float[Tensor, "*rows k"]:
    return positive / positive.sum(-1, keepdim=True)


class _NegativeLogLikelihood(torch.autograd.Function):
    """Mean -ln p; its gradient is minus the mean flows over the parameters."""

    @staticmethod
    def forward(
        ctx: Any, prior: Tensor, transition: Tensor, emission: Tensor, model: HiddenChowLiuTree, data: Tensor
    ) -> Tensor:
        counts = model.counts(data)
        ctx.save_for_backward(
            *(
                flow.div_(p).div_(-len(data))
                for flow, p in zip(counts.tensors()[:3], (prior, transition, emission), strict=True)
            )
        )
        return (-counts.log_likelihood / len(data)).to(prior.dtype)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> Any:
        return (*(gradient * upstream[0] for gradient in ctx.saved_tensors), None, None)
