"""All prefix marginals F_i = p(x_1..x_i) of a hidden Chow-Liu tree, three ways, with the work of each counted.

A lossless coder needs for each variable the pair l_i = p(x_<i, X_i < x_i), h_i = p(x_<i, X_i <= x_i), over F_{i-1}.
Liu, Mandt & Van den Broeck 2022 (arXiv 2111.11632, section 3) get all of them in O(log(D) |p|) instead of D passes over
the |p| units of the circuit.

- `IntegerCircuit.naive`: one full pass over the circuit for each variable.
- `IntegerCircuit.structured`: the paper's algorithm. Depth-first order, the heavier child first; while the prefix lies
  inside the scope of a node, F_i = sum_n p_down(n) p_n(x_1..x_i) over that node's units (the head units); only units
  between X_i and the head are evaluated, those whose scope is complete are kept.
- `IntegerCircuit.sweep`: messages along the same order; every edge is passed once down and once up. The same numbers
  for less than 2 |p| units.

The coder uses the sweep, in arithmetic that is exact by construction. Probabilities are whole numbers of 2^-22, and a
message enters a matrix product as two whole numbers so short that every sum fits into the 53 bits of a float64; what is
rounded is rounded elementwise. No order of summation, thread count, batch size, BLAS or device can change a bit of it.
(Splitting of operands: Ozaki, Ogita, Oishi & Rump 2012, "Error-free transformations of matrix multiplication".)
"""

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import torch
from jaxtyping import Float64, Int32, Int64, UInt8
from torch import Tensor

from encyclo.nn.chow_liu import Tree
from encyclo.nn.hidden_chow_liu_tree import HiddenChowLiuTree, power_of_two
from encyclo.tokens.entropy import BITS, cumulative_frequencies

__all__ = ["IntegerCircuit", "Intervals", "Weights", "Work"]

TABLE_BITS: Final = 22
"""Probabilities of the integer circuit are multiples of 2^-22, at least one of them."""
MANTISSA: Final = 53
"""Bits of a float64."""


@dataclass
class Work:
    """Evaluations for one sample."""

    units: int = 0
    """Input, product and sum units."""
    edges: int = 0
    """Weighted edges of sum units."""


@dataclass
class Intervals:
    """What a schedule found for n samples of d variables, all in coding order."""

    log_prefix: Float64[Tensor, "n d"]
    """ln F_i."""
    starts: Int64[Tensor, "n d"]
    """l_i as a whole number of 2^-24 (see `IntegerCircuit.grid`)."""
    frequencies: Int64[Tensor, "n d"]
    """h_i - l_i likewise, >= 1."""
    work: Work = field(default_factory=Work)


class IntegerCircuit:
    """A hidden Chow-Liu tree with whole-number tables, from which encoder and decoder get the same bits everywhere.

    Args:
        model: the trained circuit; its rows are rounded by `cumulative_frequencies`.

    Messages are [m, n]: states x samples.
    """

    def __init__(self, model: HiddenChowLiuTree) -> None:
        self.tree: Tree = model.tree
        self.latents, self.values = model.config.latents, model.values
        self.device = model.prior.device
        self.places = {v: place for place, v in enumerate(model.variables.tolist())}
        self.prior = self._table(model.prior).diff().double()
        self.transition = self._table(model.transition).diff()
        self.cumulative = self._table(model.emission)
        """[d, m, values + 1], as int32."""
        self.half = min(26, MANTISSA - TABLE_BITS - math.ceil(math.log2(max(self.latents, 2))))
        """Bits of each half of a split message."""
        if self.half < 16:
            raise ValueError(f"{self.latents} latent states are too many for exact sums in float64")
        digest = hashlib.sha256(self.tree.parent.astype("<i4").tobytes())
        for table in (self.prior.int(), self.transition, self.cumulative):
            digest.update(repr(tuple(table.shape)).encode() + table.cpu().numpy().astype("<i4").tobytes())
        self.digest = digest.hexdigest()[:16]
        """SHA-256 (16 hex digits) of tree and tables: equal for all that code alike."""

    def _table(self, rows: Tensor) -> Tensor:
        found = cumulative_frequencies(rows.detach().cpu().double().numpy(), bits=TABLE_BITS)
        return torch.from_numpy(found.astype(np.int32)).to(self.device)

    @property
    def units(self) -> int:
        """|p|: d m input units, (d-1) m product units (binary), (d-1) m + 1 sum units."""
        d = len(self.tree)
        return (3 * d - 2) * self.latents + 1

    # -- exact arithmetic ----------------------------------------------------------------------------------------

    def split(self, message: Float64[Tensor, "m n"]) -> Float64[Tensor, "m both"]:
        """A positive message as two whole numbers below 2^half for each entry: high halves, then low ones.

        Each sample is scaled by the power of two that brings its largest entry into [1/2, 1); entries below
        2^(-2 half) of that are raised to it, so that no state ever becomes impossible.
        """
        unit = float(1 << self.half)
        scaled = (message * power_of_two(message.amax(0))[0]).clamp_(min=unit**-2).mul_(unit)
        high = scaled.floor()
        return torch.cat([high, scaled.sub_(high).mul_(unit).floor_()], 1)

    def merge(self, parts: Float64[Tensor, "k both"]) -> Float64[Tensor, "k n"]:
        """One number from its two halves."""
        high, low = parts.chunk(2, 1)
        return torch.add(low, high, alpha=float(1 << self.half))

    def product(self, table: Float64[Tensor, "k m"], message: Float64[Tensor, "m n"]) -> Float64[Tensor, "k n"]:
        """table @ message, with sums that are exact; the result's largest entry for each sample lies in [1/2, 1)."""
        out = self.merge(table @ self.split(message))
        return out * power_of_two(out.amax(0))[0]

    def grid(
        self, sums: Float64[Tensor, "*n"], total: Float64[Tensor, "*m"], symbols: Int64[Tensor, "*k"]
    ) -> Int64[Tensor, "*n"]:
        """Cumulative sums as whole numbers of 2^-24: floor(sum / total (2^24 - values)) + number of symbols below.

        The rule of `cumulative_frequencies`; one rounded division, one rounded product, elementwise.
        """
        return torch.floor(sums / total * float((1 << BITS) - self.values)).long() + symbols

    # -- the sweep -----------------------------------------------------------------------------------------------

    @torch.no_grad()
    def sweep(self, n: int, answer: Callable[[int, "Weights"], Int64[Tensor, " n"]]) -> None:
        """Walk the coding order for n samples at once.

        Going down into a child, the message p(Z_c, x so far) is formed from the parent's; coming back, the finished
        subtree's p(x below | Z_parent) is multiplied into the parent's product.

        Args:
            n: samples.
            answer: called with each variable and the weights of its latent states; gives the variable's n values
                (which it knows, or decodes with the help of the weights).
        """
        down = {self.tree.root: self.prior[:, None].expand(-1, n)}
        done: dict[int, Tensor] = {}
        path = [(self.tree.root, iter(self.tree.heavier_first(self.tree.root)))]
        while path:
            node, children = path[-1]
            here = down[node] * done[node] if node in done else down[node]
            child = next(children, None)
            if child is not None:
                down[child] = self.product(self.transition[self.places[child] - 1].double().T, here)
                path.append((child, iter(self.tree.heavier_first(child))))
                continue
            path.pop()
            del down[node]
            place = self.places[node]
            values = answer(node, Weights(self, place, here))
            if path:
                row = self.cumulative[place]
                message = (row[:, values + 1] - row[:, values]).double()
                message = message * done.pop(node) if node in done else message
                message = self.product(self.transition[place - 1].double(), message)
                parent = path[-1][0]
                if parent in done:
                    message = message * done[parent]
                    message *= power_of_two(message.amax(0))[0]
                done[parent] = message

    def swept(self, data: Int64[Tensor, "n d"] | UInt8[Tensor, "n d"]) -> Intervals:
        """All intervals and prefix marginals of complete samples, by the sweep."""
        out = self._empty(data)
        columns: list[tuple[Tensor, Tensor, Tensor]] = []

        def answer(variable: int, weights: Weights) -> Int64[Tensor, " n"]:
            values = data[:, variable].long()
            columns.append(weights.interval(values))
            return values

        self.sweep(len(data), answer)
        starts, frequencies, shares = zip(*columns, strict=True)
        out.starts, out.frequencies = torch.stack(starts, 1), torch.stack(frequencies, 1)
        out.log_prefix = torch.stack(shares, 1).log().cumsum(1)
        # each node: its input units and binary products; each edge: one message down, one up
        d, m = len(self.tree), self.latents
        out.work = Work(d * m + (d - 1) * m + 2 * (d - 1) * m, 2 * (d - 1) * m * m)
        return out

    def _empty(self, data: Int64[Tensor, "n d"] | UInt8[Tensor, "n d"]) -> Intervals:
        shape, device = tuple(data.shape), self.device
        starts, frequencies = (torch.zeros(shape, dtype=torch.int64, device=device) for _ in range(2))
        return Intervals(torch.zeros(shape, dtype=torch.float64, device=device), starts, frequencies)

    # -- the two schedules it is held against ----------------------------------------------------------------------

    @torch.no_grad()
    def naive(self, data: Int64[Tensor, "n d"] | UInt8[Tensor, "n d"], *, variables: int | None = None) -> Intervals:
        """The same by a full bottom-up pass over all units for each variable, in float64.

        Args:
            data: complete samples.
            variables: stop after so many.
        """
        model = self.dequantised()
        out = self._empty(data)
        n = len(data)
        inputs = model.inputs(data)
        seen = torch.ones_like(inputs)
        before = _Scaled.one(n, self.device)
        for i, variable in enumerate(self.tree.order[:variables]):
            place, values = self.places[variable], data[:, variable].long()
            pair = torch.cat([seen, seen], 2)
            pair[place] = torch.cat([self._below(place, values), inputs[place]], 1)
            up = model.upward(pair)
            low, exact = _Scaled(up.value, up.exponent).chunk()
            before = self._record(out, i, values, low, exact, before)
            seen[place] = inputs[place]
            out.work.units += self.units
            out.work.edges += (len(self.tree) - 1) * self.latents**2
        return out

    @torch.no_grad()
    def structured(self, data: Int64[Tensor, "n d"] | UInt8[Tensor, "n d"]) -> Intervals:
        """The same by the paper's algorithm, in float64: p_down above the head, below it only its path to X_i."""
        model = self.dequantised()
        out, m = self._empty(data), self.latents
        n, order, parent = len(data), self.tree.order, self.tree.parent.tolist()
        inputs = model.inputs(data)
        p_down = self._p_down(model)
        first = self._starts_the_order()
        kept: dict[int, _Scaled] = {}  # of each node: the product of its children that are complete
        before = _Scaled.one(n, self.device)
        for i, variable in enumerate(order):
            place, values = self.places[variable], data[:, variable].long()
            node, unit = variable, _Scaled.of(torch.cat([self._below(place, values), inputs[place]], 1))
            out.work.units += m
            finished: _Scaled | None = None  # this variable's sum units with its own value: complete from now on
            while True:
                if node in kept:
                    unit = unit * kept[node].twice()
                    out.work.units += m
                if first[node]:  # the prefix lies wholly below: these are the head units
                    break
                unit = unit.through(model.transition[self.places[node] - 1])
                out.work.units, out.work.edges = out.work.units + m, out.work.edges + m * m
                if node == variable:
                    finished = unit.chunk()[1]
                node = parent[node]
            low, exact = unit.dot(p_down[self.places[node]]).chunk()
            before = self._record(out, i, values, low, exact, before)
            kept.pop(variable, None)
            above = parent[variable]
            if above >= 0:
                if finished is None:  # the variable itself was the head; its sum units are needed from the next step on
                    finished = unit.chunk()[1].through(model.transition[place - 1])
                    out.work.units, out.work.edges = out.work.units + m, out.work.edges + m * m
                kept[above] = kept[above] * finished if above in kept else finished
        return out

    def _record(
        self, out: Intervals, i: int, values: Int64[Tensor, " n"], low: "_Scaled", exact: "_Scaled", before: "_Scaled"
    ) -> "_Scaled":
        total = before.at(exact.exponent)
        below = low.at(exact.exponent)
        upto = torch.where(values == self.values - 1, total, below + exact.value)  # nothing lies above the last value
        start = self.grid(below, total, values)
        out.starts[:, i] = start
        out.frequencies[:, i] = self.grid(upto, total, values + 1) - start
        out.log_prefix[:, i] = exact.value.log() + math.log(2) * exact.exponent.double()
        return exact

    def _below(self, place: int, values: Int64[Tensor, " n"]) -> Float64[Tensor, "m n"]:
        return self.cumulative[place][:, values].double() / (1 << TABLE_BITS)

    def dequantised(self) -> HiddenChowLiuTree:
        """The integer circuit's probabilities as an ordinary circuit in float64."""
        model = HiddenChowLiuTree.Config(latents=self.latents).build(tree=self.tree, values=self.values)
        model = model.to(self.device, torch.float64)
        unit = 1 << TABLE_BITS
        with torch.no_grad():
            model.prior.copy_(self.prior / unit)
            model.transition.copy_(self.transition.double() / unit)
            model.emission.copy_(self.cumulative.diff().double() / unit)
        built: HiddenChowLiuTree = model
        return built

    def _p_down(self, model: HiddenChowLiuTree) -> Float64[Tensor, "d m"]:
        """Top-down probabilities of the product units of each place: here the prior of each latent."""
        out = torch.empty(len(self.tree), self.latents, dtype=torch.float64, device=self.device)
        out[0] = model.prior
        for place, variable in enumerate(model.variables.tolist()[1:], start=1):
            out[place] = out[self.places[int(self.tree.parent[variable])]] @ model.transition[place - 1]
        return out

    def _starts_the_order(self) -> list[bool]:
        """Whether each variable's subtree holds the first variable of the order."""
        out = [False] * len(self.tree)
        node = self.tree.order[0]
        while node >= 0:
            out[node], node = True, int(self.tree.parent[node])
        return out


class Weights:
    """Weights of a variable's latent states given all that was coded before it, and what a coder wants from them."""

    def __init__(self, circuit: IntegerCircuit, place: int, message: Float64[Tensor, "m n"]) -> None:
        self.circuit = circuit
        self.table = circuit.cumulative[place]
        self.parts = circuit.split(message)

    def rows(self) -> Float64[Tensor, "n values"]:
        """Probabilities of all values, unnormalised and exact: rows for a bulk coder."""
        return self._every(self.table.diff())

    def cumulatives(self) -> Int64[Tensor, "n bounds"]:
        """Cumulatives of all values in 0..2^24: the decoder's side of `interval`."""
        sums = self._every(self.table)
        return self.circuit.grid(sums, sums[:, -1:], torch.arange(sums.shape[1], device=sums.device))

    def interval(
        self, values: Int64[Tensor, " n"]
    ) -> tuple[Int64[Tensor, " n"], Int64[Tensor, " n"], Float64[Tensor, " n"]]:
        """Start and frequency of the given values, equal to those of `cumulatives`, and their probabilities."""
        low, high = (self._halves(self.table[:, at].double()) for at in (values, values + 1))
        total = self._sum(torch.full_like(self.parts[:, : len(values)], float(1 << TABLE_BITS)))
        start = self.circuit.grid(self._merged(low), total, values)
        stop = self.circuit.grid(self._merged(high), total, values + 1)
        # subtracted while still whole numbers: a rare value's probability keeps all its digits
        return start, stop - start, self._merged(high - low) / total

    def _every(self, table: Int32[Tensor, "m k"]) -> Float64[Tensor, "n k"]:
        high, low = (self.parts.T @ table.double()).chunk(2)
        return torch.add(low, high, alpha=float(1 << self.circuit.half))

    def _sum(self, table: Float64[Tensor, "m n"]) -> Float64[Tensor, " n"]:
        return self._merged(self._halves(table))

    def _halves(self, table: Float64[Tensor, "m n"]) -> Float64[Tensor, "2 n"]:
        return (self.parts.view(len(table), 2, -1) * table[:, None]).sum(0)

    def _merged(self, halves: Float64[Tensor, "2 n"]) -> Float64[Tensor, " n"]:
        return self.circuit.merge(halves.view(1, -1))[0]


@dataclass(frozen=True)
class _Scaled:
    """Positive numbers value * 2^exponent, one exponent for each sample; columns may stand for two evidences each."""

    value: Float64[Tensor, "*m n"]
    exponent: Int64[Tensor, " n"]

    @classmethod
    def one(cls, n: int, device: torch.device) -> "_Scaled":
        return cls(torch.ones(n, dtype=torch.float64, device=device), torch.zeros(n, dtype=torch.int64, device=device))

    @classmethod
    def of(cls, value: Float64[Tensor, "m n"], exponent: Int64[Tensor, " n"] | int = 0) -> "_Scaled":
        """Scaled anew; a sample that is all zero (no mass below the first value) stays so."""
        factor, shift = power_of_two(value.amax(0).clamp(min=1e-300))
        return cls(value * factor, shift + exponent)

    def __mul__(self, other: "_Scaled") -> "_Scaled":
        return self.of(self.value * other.value, self.exponent + other.exponent)

    def through(self, table: Float64[Tensor, "m m"]) -> "_Scaled":
        return self.of(table @ self.value, self.exponent)

    def dot(self, weights: Float64[Tensor, " m"]) -> "_Scaled":
        return _Scaled(weights @ self.value, self.exponent)

    def twice(self) -> "_Scaled":
        return _Scaled(self.value.repeat(1, 2), self.exponent.repeat(2))

    def chunk(self) -> tuple["_Scaled", "_Scaled"]:
        (a, b), (c, d) = self.value.chunk(2, -1), self.exponent.chunk(2)
        return _Scaled(a, c), _Scaled(b, d)

    def at(self, exponent: Int64[Tensor, " n"]) -> Float64[Tensor, "*m n"]:
        """The numbers in units of 2^exponent."""
        return self.value * torch.exp2((self.exponent - exponent).double())
