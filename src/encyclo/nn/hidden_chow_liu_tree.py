"""The hidden Chow-Liu tree: a probabilistic circuit whose sum, product and input units follow a tree learned from data.

Liu, Mandt & Van den Broeck 2022 (arXiv 2111.11632, section 4). Every variable X_i hangs on a latent Z_i with M states;
the latents form the Chow-Liu tree of the variables. Written as a circuit, node i has M input units B_i[z, x_i], M
product units and, towards its parent, M sum units, each weighing the M product units below:

    m_i[z] = B_i[z, x_i] * prod_{c child of i} u_c[z],    u_c[z] = sum_z' A_c[z, z'] m_c[z'],    p(x) = sum_z pi[z] m_root[z]

with m_i[z] = p(observations below i | Z_i = z). All nodes of one depth are computed in one batched product.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Int64, Shaped, UInt8
from pydantic import Field
from torch import Tensor, nn

from encyclo.nn.chow_liu import Tree
from encyclo.nn.part import Part, PartConfig

__all__ = ["Counts", "HiddenChowLiuTree"]

TINY = 1e-30
"""Least value of a scaled message in float32: keeps quotients finite; below any probability that matters."""


@dataclass
class Counts:
    """Expected counts of a batch, which are the circuit's flows: F_{n,c} summed over samples, by edge.

    Attributes:
        prior: of the root's states, [m].
        transition: of (parent's state, own state), [d, m, m], nodes in the order of levels; the root's are zero.
        emission: of (value, state), [d, values, m], nodes in the order of levels.
        log_likelihood: summed over the batch, in nats.
        samples: how many (their weights' sum).
    """

    prior: Float[Tensor, " m"]
    transition: Float[Tensor, "d m m"]
    emission: Float[Tensor, "d values m"]
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
class _Level:
    """Nodes start..stop, whose children are the next level; `ranks` pairs (children, parents) that may be done at once."""

    start: int
    stop: int
    ranks: tuple[tuple[Int64[Tensor, " k"], Int64[Tensor, " k"]], ...]
    parents: Int64[Tensor, " n"]


class HiddenChowLiuTree(Part):
    """The circuit's parameters, its likelihood in float64 or float32, its flows, exact sampling and posteriors.

    Parameters (probabilities, not logits; rows sum to 1): `prior` [m], `transition` [d-1, m, m] (parent's state, own
    state) and `emission` [d, values, m] (so that looking up a value reads m neighbours). Nodes stand in the order of the
    tree's levels, `variables` names the variable of each. In all (d-1) m^2 + d m values + m numbers.
    """

    class Config(PartConfig):
        """Size of the circuit beside the tree."""

        latents: int = Field(16, ge=1, description="M, states of each latent variable")
        values: int = Field(256, ge=2, description="size of the variables' alphabet")

    def __init__(self, config: Config, *, tree: Tree) -> None:
        super().__init__()
        self.config = config
        d, m, values = len(tree), config.latents, config.values
        self.prior = nn.Parameter(torch.empty(m), requires_grad=False)
        self.transition = nn.Parameter(torch.empty(d - 1, m, m), requires_grad=False)
        self.emission = nn.Parameter(torch.empty(d, values, m), requires_grad=False)
        self.parent: Tensor
        self.register_buffer("parent", torch.from_numpy(tree.parent.copy()))
        self.tree = tree

    def init_own(self) -> None:
        """Uniform rows: a saddle point, from which `start` leads away."""
        self.parent.copy_(torch.from_numpy(self.tree.parent))
        self.prior.fill_(1 / self.config.latents)
        self.transition.fill_(1 / self.config.latents)
        self.emission.fill_(1 / self.config.values)

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
        super()._apply(fn, recurse)
        return self

    # -- likelihood ----------------------------------------------------------------------------------------------

    def inputs(
        self, data: Int[Tensor, "n d"] | UInt8[Tensor, "n d"], observed: Bool[Tensor, "*n d"] | None = None,
        *, dtype: torch.dtype = torch.float64,
    ) -> Float[Tensor, "d n m"]:
        """Input units B_i[z, x_i]; 1 where a variable is not observed."""
        values = self.config.values
        d = len(self.tree)
        rows = data[:, self.variables].T.long() + values * torch.arange(d, device=data.device)[:, None]
        out = self.emission.to(dtype).view(d * values, -1)[rows]
        if observed is not None:
            seen = observed.expand(data.shape)[:, self.variables].T
            out = torch.where(seen[..., None], out, torch.ones((), dtype=dtype, device=data.device))
        return out

    def upward(
        self, inputs: Float[Tensor, "d n m"]
    ) -> tuple[Float[Tensor, " n"], Float[Tensor, "d n m"], Float[Tensor, "d n m"]]:
        """One pass from the leaves to the root.

        Args:
            inputs: values of the input units; overwritten by the product units.

        Returns:
            log p in nats; product units m and sum units u of each node (the root's sum units are those of the prior,
            unused), scaled per node and sample so that the largest product unit is 1.
        """
        m, u = inputs, torch.empty_like(inputs)
        log = torch.zeros(inputs.shape[1], dtype=inputs.dtype, device=inputs.device)
        weights = self.transition.to(inputs.dtype)
        for level in reversed(self._levels):
            for children, parents in level.ranks:
                m[parents] = m[parents] * u[children]
            here = m[level.start : level.stop]
            scale = here.amax(-1, keepdim=True)
            here /= scale
            here.clamp_(min=TINY)
            log += scale.log().sum((0, 2))
            if level.start:
                torch.bmm(here, weights[level.start - 1 : level.stop - 1].mT, out=u[level.start : level.stop])
        top = m[0] @ self.prior.to(inputs.dtype)
        return log + top.log(), m, u

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
            parts.append(self.upward(self.inputs(data[part], seen, dtype=dtype))[0])
        return torch.cat(parts) if parts else torch.zeros(0, dtype=dtype, device=data.device)

    # -- flows ---------------------------------------------------------------------------------------------------

    def posteriors(
        self, m: Float[Tensor, "d n m"], u: Float[Tensor, "d n m"], counts: Counts | None = None
    ) -> Float[Tensor, "d n m"]:
        """Flows of the product units, F_i[z] = p(Z_i = z | observations), by a pass from the root to the leaves.

        Args:
            m, u: from `upward`; u is overwritten.
            counts: takes the flows of the sum units' edges, summed over the samples.
        """
        flows = torch.empty_like(m)
        weights = self.transition.to(m.dtype)
        root = self.prior.to(m.dtype) * m[0]
        flows[0] = root / root.sum(-1, keepdim=True)
        for level in self._levels[1:]:
            here, above = slice(level.start, level.stop), slice(level.start - 1, level.stop - 1)
            ratio = torch.div(flows[level.parents], u[here], out=u[here])
            torch.bmm(ratio, weights[above], out=flows[here])
            flows[here] *= m[here]
            if counts is not None:
                counts.transition[above] += weights[above] * torch.bmm(ratio.mT, m[here])
        return flows

    def counts(
        self, data: Int[Tensor, "n d"] | UInt8[Tensor, "n d"], *, dtype: torch.dtype = torch.float32, batch: int = 256
    ) -> Counts:
        """Expected counts of all edges over a batch of complete samples (section 4, EM by circuit flows).

        Args:
            data: values 0..values-1.
            dtype: of the computation.
            batch: samples at a time; the sums are over all of `data`.
        """
        out = Counts(*(torch.zeros_like(p, dtype=dtype) for p in (self.prior, self.transition, self.emission)),
            *(torch.zeros((), dtype=torch.float64, device=data.device) for _ in range(2)))  # fmt: skip
        d, values = len(self.tree), self.config.values
        flat = out.emission.view(d * values, -1)
        offsets = values * torch.arange(d, device=data.device)[:, None]
        for start in range(0, len(data), batch):
            part = data[start : start + batch]
            log, m, u = self.upward(self.inputs(part, dtype=dtype))
            flows = self.posteriors(m, u, out)
            rows = (part[:, self.variables].T.long() + offsets).flatten()
            flat.index_add_(0, rows, flows.flatten(0, 1))
            out.prior += flows[0].sum(0)
            out.log_likelihood += log.double().sum()
            out.samples += len(part)
        return out
