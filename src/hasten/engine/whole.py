"""Formulas that need whole matrices, over matrices that are divided among workers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hasten.engine.composition import Composition, Flow
from hasten.engine.matrix import compute_dtype, store
from hasten.engine.owners import Owners
from hasten.sharding import Division


@dataclass(frozen=True)
class Needs:
    """What the parts of matrix grain read and make, for tensors of some number of dimensions.

    Attributes:
        param: whether they read the parameter.
        grad: whether they read the gradient beside the direction.
        new_grad: what the gradient is after them: ``"direction"``, ``"same"`` or ``"other"``.
        writes: the names of what they write.
    """

    param: bool
    grad: bool
    new_grad: str
    writes: tuple[str, ...]


class Whole:
    """Runs a composition with parts of matrix grain over divided tensors.

    The parts up to the first one of matrix grain, and those after the last one, run on every worker's shards. Between
    them the directions, and what else is read there, are gathered to their owners (:class:`Owners`), and the new
    directions scattered back; buffers of another shape than the parameter's are copied to every worker.

    Args:
        composition: with at least one part of matrix grain.
        divisions: how the tensors are divided, all among the same workers.
        device: where they are.
    """

    def __init__(
        self, composition: Composition, divisions: Sequence[Division], device: torch.device | str
    ) -> None:
        self.composition = composition
        self.divisions = list(divisions)
        grains = [part.grain for part in composition.parts]
        self.first = grains.index("matrix")
        self.end = len(grains) - grains[::-1].index("matrix")
        self.members = [m for m, d in enumerate(divisions) if d.shape.numel()]
        """The tensors that have entries."""
        self.owners = Owners([divisions[m] for m in self.members], device) if self.members else None
        self._needs: dict[tuple[int, int | None], Needs] = {}

    def __call__(
        self,
        slots: Mapping[str, Sequence[Tensor]],
        numbers: Sequence[Mapping[str, float]],
        noise: Sequence[int] | None,
        stop: int | None,
    ) -> list[list[float]]:
        """Run a pass; the rows of sums are this worker's terms only.

        Args:
            slots: this worker's shards by name of the input, in their own shapes; buffers of another shape whole.
            numbers: of each tensor.
            noise: a key for each tensor, if parameters are rounded at random.
            stop: the part to measure for; None to move the parameters.
        """
        composition = self.composition
        compute = compute_dtype(slots["param"][0])
        entries = [
            _Converted({name: slot[m] for name, slot in slots.items()}, compute)
            for m in range(len(self.divisions))
        ]
        flows = {m: composition.start(entries[m]) for m in self.members}
        for m, flow in flows.items():
            composition.follow(flow, entries[m], numbers[m], range(self.first), stop)
        if stop is None or stop >= self.first:
            self._together(flows, slots, numbers, compute, stop)
        if stop is None or stop >= self.end:
            for m, flow in flows.items():
                after = range(self.end, len(composition.parts))
                composition.follow(flow, entries[m], numbers[m], after, stop)
        rows = [[0.0] * len(composition.stage(stop).sums) for _ in self.divisions]
        for m, flow in flows.items():
            for name, value in flow.writes.items():
                store(slots[name][m], value, noise[m] if noise and name == "param" else None)
            if flow.terms:
                rows[m] = [float(term.sum(dtype=torch.float64)) for term in flow.terms.values()]
        return rows

    def _together(
        self,
        flows: Mapping[int, Flow],
        slots: Mapping[str, Sequence[Tensor]],
        numbers: Sequence[Mapping[str, float]],
        compute: torch.dtype,
        stop: int | None,
    ) -> None:
        """The parts of matrix grain, and those between them."""
        if self.owners is None:
            return
        composition, parts = self.composition, range(self.first, self.end)
        needs = {m: self._needed(len(self.divisions[m].shape), stop) for m in self.members}
        carried = {m: self._carried(needs[m], flows[m], slots) for m in self.members}
        wholes = self.owners.gather(
            [[_piece(name, flows[m], slots, m) for name in carried[m]] for m in self.members]
        )
        shared = {
            slot.name for slot in composition.slots if slot.buffer.shape is not None and slot.part in parts
        }
        done: dict[int, Flow] = {}
        for position, found in wholes.items():
            m = self.members[position]
            given = dict(zip(carried[m], found, strict=True))
            flow = Flow(given["direction"], given.get("grad", given["direction"]), flows[m].decay)
            given.update({name: slots[name][m] for name in shared})
            composition.follow(flow, _Converted(given, compute), numbers[m], parts, stop)
            done[position] = flow
            flows[m].terms = flow.terms
        within = stop is not None and stop < self.end
        kept = {m: () if stop is not None and not within else needs[m].writes for m in self.members}
        own = {m: [n for n in kept[m] if n not in shared] for m in self.members}
        copied = {m: [n for n in kept[m] if n in shared] for m in self.members}
        steps = {
            m: [] if within else ["direction", *(["grad"] if needs[m].new_grad == "other" else [])]
            for m in self.members
        }
        results = {}
        for position, flow in done.items():
            m = self.members[position]
            made = {"direction": flow.direction, "grad": flow.grad}
            results[position] = (
                [*(made[n] for n in steps[m]), *(flow.writes[n] for n in own[m])],
                [flow.writes[n] for n in copied[m]],
            )
        dtypes = [
            [compute for _ in steps[m]] + [compute if n == "param" else slots[n][m].dtype for n in own[m]]
            for m in self.members
        ]
        parts_back = self.owners.scatter(
            results, dtypes, [[slots[n][m] for n in copied[m]] for m in self.members]
        )
        for m, pieces in zip(self.members, parts_back, strict=True):
            arrived = dict(zip((*steps[m], *own[m]), pieces, strict=True))
            flow = flows[m]
            if within:
                flow.writes = {}
            else:
                flow.direction = arrived.pop("direction")
                if needs[m].new_grad != "same":
                    flow.grad = arrived.pop("grad", flow.direction)
            flow.writes.update(arrived)

    def _carried(self, needs: Needs, flow: Flow, slots: Mapping[str, Sequence[Tensor]]) -> tuple[str, ...]:
        """The names of what is gathered for a tensor."""
        parts = range(self.first, self.end)
        buffers = [
            slot.name for slot in self.composition.slots if slot.part in parts and slot.buffer.shape is None
        ]
        return (
            "direction",
            *(["grad"] if needs.grad and flow.grad is not flow.direction else []),
            *(["param"] if needs.param else []),
            *buffers,
            *(self.composition.extra_inputs if self.first == 0 else ()),
        )

    def _needed(self, dimensions: int, stop: int | None) -> Needs:
        """Found out on a small tensor."""
        if (dimensions, stop) not in self._needs:
            composition = self.composition
            shape = torch.Size((2,) * dimensions)
            entries = {n: torch.full(shape, 0.5) for n in ("param", "grad", *composition.extra_inputs)}
            for slot in composition.slots:
                to = slot.buffer.shape
                entries[slot.name] = torch.full(shape if to is None else to(shape), 0.5)
            numbers = dict.fromkeys(composition.stage(stop).numbers, 0.5)
            flow = composition.start(entries)
            composition.follow(flow, entries, numbers, range(self.first))
            grad, flow.asked, flow.writes = flow.grad, set(), {}
            composition.follow(flow, entries, numbers, range(self.first, self.end), stop)
            fate = "direction" if flow.grad is flow.direction else "same" if flow.grad is grad else "other"
            self._needs[dimensions, stop] = Needs(
                "param" in flow.asked, "grad" in flow.asked, fate, tuple(flow.writes)
            )
        return self._needs[dimensions, stop]


class _Converted:
    """Tensors by name, in the dtype of the arithmetic when they are read."""

    def __init__(self, tensors: Mapping[str, Tensor], compute: torch.dtype) -> None:
        self.tensors, self.compute = tensors, compute

    def __getitem__(self, name: str) -> Tensor:
        return self.tensors[name].detach().to(self.compute)


def _piece(name: str, flow: Flow, slots: Mapping[str, Sequence[Tensor]], m: int) -> Tensor:
    found: Tensor = getattr(flow, name) if name in ("direction", "grad") else slots[name][m].detach()
    return found
