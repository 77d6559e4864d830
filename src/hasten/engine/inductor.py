"""The pass that ``torch.compile`` builds: for GPUs, and where the native pass cannot serve.

One kernel of a dynamic length is compiled for each formula and layout, before any real tensor is
touched.  Numbers come in one tensor, so a schedule recompiles nothing; small tensors are gathered
and stepped in one call, so their shapes recompile nothing either.
"""

from __future__ import annotations

import itertools
import types
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from hasten.hashing import words
from hasten.shared_object import NoCompiler

from .eager import gathered
from .formula import Formula, Layout, Pass
from .rounding import random_bits, round_stochastically

SMALL = 2**15
"""Tensors of at most this many entries are gathered."""

LIMIT = 2**20
"""Entries gathered into one call."""

_EXAMPLE = 2**17
"""Length of the dummy compiled for: from a short one inductor concludes that one thread is enough."""

_serial = itertools.count()

Kernel = Callable[..., tuple[Tensor, ...]]


def _distinct(function: Kernel, name: str) -> Kernel:
    """A copy with a code object of its own, since dynamo counts recompilations by code object."""
    code = function.__code__.replace(co_name=f"{name}_{next(_serial)}")
    return types.FunctionType(code, function.__globals__, code.co_name, None, function.__closure__)


def _kernel(formula: Formula, layout: Layout, gathers: bool) -> Kernel:
    """One step over tiles.

    When the layout is stochastic, ``low``, ``high`` and ``index`` are given for each entry if the
    tiles are gathered from many tensors; for one tensor the words are scalars, and the index is
    counted here.
    """
    inputs, names, compute = formula.inputs, formula.numbers, layout.compute
    writes = [(name, inputs.index(name)) for name in formula.writes]
    stochastic = layout.stochastic
    function = formula.function

    def step(numbers: Tensor, low: Tensor, high: Tensor, index: Tensor, *tiles: Tensor) -> tuple[Tensor, ...]:
        entries: dict[str, Any] = {name: tile.to(compute) for name, tile in zip(inputs, tiles, strict=True)}
        written, summed = function(entries, {name: numbers[i] for i, name in enumerate(names)})
        terms = tuple(
            torch.as_tensor(summed[name], device=tiles[0].device).to(compute).expand_as(tiles[0]).clone()
            for name in formula.sums
        )
        for name, i in writes:
            value = torch.as_tensor(written[name], device=tiles[i].device)
            if stochastic and name == "param":
                own = index if gathers else torch.arange(tiles[0].numel(), device=tiles[0].device)
                value = round_stochastically(value.float(), random_bits(low, high, own))
            tiles[i].copy_(value)
        return terms

    return _distinct(step, "hasten_step")


def inductor_pass(formula: Formula, layout: Layout) -> Pass:
    """Compile a formula with ``torch.compile``.

    Raises:
        NoCompiler: ``torch.compile`` cannot build the pass here.

    Example:
        >>> def descend(entry, number):
        ...     return {"param": entry["param"] - number["lr"] * entry["grad"]}, {}
        >>> formula = Formula(("param", "grad"), ("lr",), ("param",), (), descend, "descend")
        >>> step = inductor_pass(
        ...     formula, Layout((torch.float32,) * 2, torch.float32, "cpu")
        ... )  # doctest: +SKIP
    """
    layout.check(formula)
    device = torch.device(layout.device)
    noisy = layout.stochastic
    blank = torch.zeros(len(formula.numbers), dtype=layout.compute, device=device)
    nothing = torch.zeros(2, dtype=torch.int64, device=device)

    def of_one(noise: Sequence[int] | None, t: int) -> tuple[Tensor, Tensor, Tensor]:
        if noise is None or not noisy:
            return nothing, nothing, nothing
        low, high = torch.tensor(words(noise[t]), dtype=torch.int64).to(device).unbind()
        return low, high, nothing

    def of_each(
        noise: Sequence[int] | None, group: Sequence[int], sizes: Sequence[int]
    ) -> tuple[Tensor, Tensor, Tensor]:
        if noise is None or not noisy:
            return nothing, nothing, nothing
        mixed = torch.tensor([words(noise[t]) for t in group], dtype=torch.int64).to(device)
        low, high = mixed.repeat_interleave(torch.tensor(sizes).to(device), 0).T
        return low.clone(), high.clone(), torch.cat([torch.arange(n, device=device) for n in sizes])

    def build(gathers: bool) -> Kernel:
        kernel = _kernel(formula, layout, gathers)

        def run(step: Kernel, size: int) -> None:
            tiles = [torch.zeros(size, dtype=dtype, device=device) for dtype in layout.dtypes]
            step(blank, *(of_each([0], [0], [size]) if gathers else of_one([0], 0)), *tiles)

        run(kernel, 2)  # a formula that does not run at all shall say so itself
        try:
            compiled: Kernel = torch.compile(kernel, dynamic=True, fullgraph=True)
            run(compiled, _EXAMPLE)
        except Exception as error:
            # Dynamo, inductor and the compilers below it each have their own exceptions.
            lines = [line for line in str(error).splitlines() if line.strip()]
            reason = lines[0] if lines else type(error).__name__
            raise NoCompiler(f"torch.compile cannot build the pass: {reason}") from error
        return compiled

    with torch.no_grad():
        step_many = build(gathers=True)
        step_one = build(gathers=False) if noisy else step_many

    written = [formula.inputs.index(name) for name in formula.writes]

    @torch.no_grad()
    def call(
        slots: Sequence[Sequence[Tensor]], numbers: Sequence[float], noise: Sequence[int] | None
    ) -> list[list[float]]:
        sizes = [tensor.numel() for tensor in slots[0]]
        scalars = torch.tensor(list(numbers), dtype=layout.compute).to(device, non_blocking=True)
        sums = [[0.0] * len(formula.sums) for _ in sizes]
        for t, size in enumerate(sizes):
            if size > SMALL:
                terms = step_one(scalars, *of_one(noise, t), *[slot[t] for slot in slots])
                sums[t] = [term.sum(dtype=torch.float64).item() for term in terms]
        for group in gathered(sizes, SMALL, LIMIT):
            lengths = [sizes[t] for t in group]
            members = [[slot[t] for t in group] for slot in slots]
            # One entry more: a length of 1 would be compiled for its own sake.
            packed = [torch.cat([*tensors, tensors[0][:1]]) for tensors in members]
            terms = step_many(scalars, *of_each(noise, [*group, group[0]], [*lengths, 1]), *packed)
            for s, term in enumerate(terms):
                pieces = torch.split(term[:-1], lengths)
                totals = torch.stack([piece.sum(dtype=torch.float64) for piece in pieces]).tolist()
                for t, total in zip(group, totals, strict=True):
                    sums[t][s] = total
            for i in written:
                torch._foreach_copy_(members[i], torch.split(packed[i][:-1], lengths))
        return sums

    return call
