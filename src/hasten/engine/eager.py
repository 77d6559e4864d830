"""The pass that needs no compiler: torch operations over cache-sized tiles.

Run naively, every operation of a formula streams whole tensors through memory.  Here the traced
formula runs tile by tile with temporaries that stay in cache: each operation writes into a
buffer whose content is dead or straight into the tensor it updates, so nothing is allocated on
the way.  Small tensors are gathered into one tile.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from hasten.hashing import words
from hasten.shared_object import Unsupported

from .formula import Constant, Formula, Layout, Operand, Pass, Program, built_once, trace
from .rounding import random_bits, round_stochastically
from .square_root import sqrt

TILE = 2**18
"""Entries of a tile on a CPU; elsewhere a tile is a whole tensor."""

SMALL = 2**13
"""Tensors of at most this many entries are gathered."""

_ALLOCATING = frozenset({"isfinite", "isnan", "isinf"})  # torch gives these no ``out``


class _Noise:
    """The random bits of a tile: entries ``start, start + 1, ...`` of the tensors in it."""

    def __init__(self, keys: Sequence[int], sizes: Sequence[int], start: int, device: str) -> None:
        self.keys, self.sizes, self.start, self.device = keys, sizes, start, device

    def bits(self) -> Tensor:
        return torch.cat(
            [
                random_bits(*words(key), torch.arange(self.start, self.start + size, device=self.device))
                for key, size in zip(self.keys, self.sizes, strict=True)
            ]
        )


Tiles = Sequence[Tensor]
"""One flat tensor for each input, in the input's own dtype."""

RunTile = Callable[[Tiles, _Noise | None], Sequence[Tensor]]
"""Updates the tiles in place and returns the summands."""


def _stored(value: Tensor, noise: _Noise | None) -> Tensor:
    return value if noise is None else round_stochastically(value.float(), noise.bits())


class _Interpreter:
    """Executes a program's instructions on tiles, with planned registers.

    Register ``v`` holds value ``v`` of the program; behind the values come the tiles in their own
    dtypes, the workspace buffers and the constants.
    """

    def __init__(self, formula: Formula, layout: Layout, program: Program) -> None:
        self.formula, self.layout, self.program = formula, layout, program
        values = len(program.flags)
        self.tiles = range(values, values + program.inputs)
        self.registers: list[Any] = [None] * (values + program.inputs)
        self.buffers: list[int] = []
        self._free: list[int] = []
        self._held: dict[int, int] = {}
        self.steps: list[tuple[Callable[..., Any], tuple[int, ...], int, int]] = []
        self._uses = self._last_uses()
        self._plan()

    def _last_uses(self) -> dict[int, int]:
        end = len(self.program.flags)
        uses: dict[int, int] = {}
        for v, instruction in enumerate(self.program.instructions, self.program.first):
            uses.update({o: v for o in instruction.operands if isinstance(o, int)})
        uses.update({o: end for o in self.program.writes + self.program.sums if isinstance(o, int)})
        return uses

    def _buffer(self) -> int:
        if self._free:
            return self._free.pop()
        self.registers.append(None)
        self.buffers.append(len(self.registers) - 1)
        return self.buffers[-1]

    def _hold(self, value: int) -> int:
        self._held[value] = self._buffer()
        return self._held[value]

    def _register(self, operand: Operand, raw: bool) -> int:
        if isinstance(operand, int):
            return operand
        value = operand.value
        if not raw and value is not None:
            self.registers.append(torch.tensor(value, dtype=self.layout.compute, device=self.layout.device))
        else:
            self.registers.append(value)
        return len(self.registers) - 1

    def _load(self, operand: Operand) -> None:
        """Convert an input to the compute dtype before its first use."""
        if not isinstance(operand, int) or operand >= self.program.inputs or operand in self._held:
            return
        if self.layout.dtypes[operand] is not self.layout.compute:
            buffer = self._hold(operand)
            self.steps.append((Tensor.copy_, (buffer, self.tiles[operand]), operand, -1))

    def _destinations(self) -> dict[int, int]:
        """Which instructions may write straight into the tensor that they update."""
        writes = self.program.writes
        direct: dict[int, int] = {}
        for name, value in zip(self.formula.writes, writes, strict=True):
            i = self.formula.inputs.index(name)
            if (
                isinstance(value, int)
                and value >= self.program.first
                and writes.count(value) == 1
                and self.program.spread[value]
                and not self.program.flags[value]
                and self.layout.dtypes[i] is self.layout.compute
                and self._uses.get(i, -1) <= value
            ):
                direct[value] = i
        return direct

    def _plan(self) -> None:
        program, direct = self.program, self._destinations()
        for v, (operation, operands) in enumerate(program.instructions, program.first):
            for operand in operands:
                self._load(operand)
            raw = [operation == "clamp" and _bounds_are_plain(operands)] * len(operands)
            if operation == "pow":
                raw[1] = True
            registers = tuple(self._register(o, r) for o, r in zip(operands, raw, strict=True))
            for operand in {o for o in operands if isinstance(o, int)}:
                if self._uses[operand] == v and operand in self._held:
                    self._free.append(self._held.pop(operand))
            out = -1
            if v in direct:
                out = self.tiles[direct[v]]
            elif program.spread[v] and not program.flags[v] and operation not in _ALLOCATING:
                tile = self._dying_tile(v, operands, direct)
                out = self._hold(v) if tile is None else tile
            function = sqrt if operation == "sqrt" else getattr(torch, operation)
            self.steps.append((function, registers, v, out))
        self._plan_stores(direct)

    def _dying_tile(self, v: int, operands: Sequence[Operand], direct: dict[int, int]) -> int | None:
        """The tile of an operand that nothing reads again, to be overwritten after ``v`` is dead."""
        for final, i in direct.items():
            if i in operands and self._uses[i] == v and self._uses.get(v, v) <= final:
                return self.tiles[i]
        return None

    def _plan_stores(self, direct: dict[int, int]) -> None:
        """What is not yet in its tensor goes there now; copies of inputs first, before they change."""
        sources: list[tuple[int, int]] = []
        for name, value in zip(self.formula.writes, self.program.writes, strict=True):
            i = self.formula.inputs.index(name)
            if value == i or (isinstance(value, int) and direct.get(value) == i):
                continue
            self._load(value)
            register = self._register(value, raw=False)
            if isinstance(value, int) and value < self.program.inputs and value not in self._held:
                copy = self._buffer()
                self.steps.append((Tensor.copy_, (copy, register), copy, -1))
                register = copy
            sources.append((i, register))
        for value in self.program.sums:
            self._load(value)
        self.stores = [
            (self.tiles[i], register, self.layout.stochastic and self.formula.inputs[i] == "param")
            for i, register in sources
        ]
        self.sums = [self._register(value, raw=False) for value in self.program.sums]

    def runner(self, numbers: Sequence[Tensor], size: int) -> RunTile:
        """Bind the numbers and a workspace for tiles of up to ``size`` entries."""
        registers = self.registers.copy()
        registers[self.program.inputs : self.program.first] = numbers
        workspace = torch.empty(
            (len(self.buffers), size), dtype=self.layout.compute, device=self.layout.device
        ).unbind()
        steps, stores, sums = self.steps, self.stores, self.sums
        bound = -1

        def run(tiles: Tiles, noise: _Noise | None) -> Sequence[Tensor]:
            nonlocal bound
            count = tiles[0].numel()
            registers[: len(tiles)] = tiles
            registers[self.tiles.start : self.tiles.stop] = tiles
            if count != bound:
                for register, buffer in zip(self.buffers, workspace, strict=True):
                    registers[register] = buffer[:count]
                bound = count
            for function, arguments, value, out in steps:
                if out < 0:
                    registers[value] = function(*[registers[a] for a in arguments])
                else:
                    registers[value] = function(*[registers[a] for a in arguments], out=registers[out])
            # The summands are taken first: one may be an input that is about to change.
            terms = [registers[s].double().expand(count) for s in sums]
            if sums:
                terms = [term.clone() for term in terms]
            for tile, register, stochastic in stores:
                registers[tile].copy_(_stored(registers[register], noise if stochastic else None))
            return terms

        return run


def _bounds_are_plain(operands: Sequence[Operand]) -> bool:
    return all(isinstance(bound, Constant) for bound in operands[1:])


def _plain_runner(formula: Formula, layout: Layout, numbers: Sequence[Tensor]) -> RunTile:
    """Call the formula's own function on each tile."""
    scalars = dict(zip(formula.numbers, numbers, strict=True))

    def run(tiles: Tiles, noise: _Noise | None) -> Sequence[Tensor]:
        entries = {n: t.to(layout.compute) for n, t in zip(formula.inputs, tiles, strict=True)}
        written, summed = formula.function(entries, scalars)
        terms = [
            torch.as_tensor(summed[name], device=layout.device).double().expand_as(tiles[0]).clone()
            for name in formula.sums
        ]
        values = {n: torch.as_tensor(v, device=layout.device).clone() for n, v in written.items()}
        for name in formula.writes:
            tile = tiles[formula.inputs.index(name)]
            stochastic = layout.stochastic and name == "param"
            tile.copy_(_stored(values[name].expand_as(tile), noise if stochastic else None))
        return terms

    return run


def gathered(sizes: Sequence[int], small: int, limit: int) -> Iterator[list[int]]:
    """Group the positions of small, not empty tensors so that a group has about ``limit`` entries."""
    group: list[int] = []
    total = 0
    for position, size in enumerate(sizes):
        if 0 < size <= small:
            if group and total + size > limit:
                yield group
                group, total = [], 0
            group.append(position)
            total += size
    if group:
        yield group


@built_once
def eager_pass(formula: Formula, layout: Layout) -> Pass:
    """Run a formula with torch operations, tile by tile, on any device.

    Example:
        >>> def descend(entry, number):
        ...     return {"param": entry["param"] - number["lr"] * entry["grad"]}, {}
        >>> formula = Formula(("param", "grad"), ("lr",), ("param",), (), descend, "descend")
        >>> step = eager_pass(formula, Layout((torch.float32,) * 2, torch.float32, "cpu"))
        >>> param = torch.ones(2)
        >>> step([[param], [torch.ones(2)]], [0.5], None), param
        ([[]], tensor([0.5000, 0.5000]))
    """
    layout.check(formula)
    try:
        interpreter = _Interpreter(formula, layout, trace(formula))
    except Unsupported:
        interpreter = None
    written = [formula.inputs.index(name) for name in formula.writes]

    @torch.no_grad()
    def call(
        slots: Sequence[Sequence[Tensor]], numbers: Sequence[float], noise: Sequence[int] | None
    ) -> list[list[float]]:
        sizes = [tensor.numel() for tensor in slots[0]]
        keys = noise if layout.stochastic else None
        scalars = torch.tensor(list(numbers), dtype=layout.compute).to(layout.device).unbind()
        tile = TILE if layout.device == "cpu" else max(sizes, default=0)
        largest = min(max(sum(sizes), 1), max(tile, TILE))
        run = (
            interpreter.runner(scalars, largest)
            if interpreter is not None
            else _plain_runner(formula, layout, scalars)
        )
        sums = [[0.0] * len(formula.sums) for _ in sizes]
        for t, size in enumerate(sizes):
            if size <= SMALL:
                continue
            pieces = zip(*[torch.split(slot[t], tile) for slot in slots], strict=True)
            for start, tiles in zip(range(0, size, tile), pieces, strict=True):
                bits = None
                if keys is not None:
                    bits = _Noise([keys[t]], [tiles[0].numel()], start, layout.device)
                for s, term in enumerate(run(tiles, bits)):
                    sums[t][s] += term.sum().item()
        for group in gathered(sizes, SMALL, TILE):
            lengths = [sizes[t] for t in group]
            members = [[slot[t] for t in group] for slot in slots]
            packed = [torch.cat(tensors) for tensors in members]
            bits = None
            if keys is not None:
                bits = _Noise([keys[t] for t in group], lengths, 0, layout.device)
            for s, term in enumerate(run(packed, bits)):
                totals = torch.stack([piece.sum() for piece in torch.split(term, lengths)]).tolist()
                for t, total in zip(group, totals, strict=True):
                    sums[t][s] = total
            for i in written:
                torch._foreach_copy_(members[i], torch.split(packed[i], lengths))
        return sums

    return call
