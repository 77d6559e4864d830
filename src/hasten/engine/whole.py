"""Formulas that need whole matrices, over matrices that are divided among workers."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor

from hasten.engine.composition import Composition
from hasten.engine.flow import Flow
from hasten.engine.matrix import Converted, alike, one_of, through, together_with
from hasten.engine.owners import Owners, Piece, balanced, batches, cost
from hasten.engine.structure import PLAIN, Structure
from hasten.sharding import Division
from hasten.wire import wait

Slots: TypeAlias = "Mapping[str, Sequence[Tensor]]"
"""This worker's parts of the inputs, by name and member."""

BATCH = 2**26
"""Bytes of whole tensors that a worker gathers at a time: matrices that fit in together travel together."""


@dataclass(frozen=True)
class Journey:
    """What travels for the parts of matrix grain: a buffer, ``"param"``, ``"direction"`` or ``"grad"``, by name.

    Attributes:
        gathered: to the owner, from everyone's shards.
        writable: buffers that the owner may write; they travel back where it did.
        changed: whether the gradient that later parts see is a third one.
        follows: whether it is the new direction.
    """

    gathered: tuple[str, ...]
    writable: tuple[str, ...]
    changed: bool
    follows: bool


@dataclass
class Visit:
    """A batch on its way to its owners."""

    flows: Mapping[int, Flow]
    journeys: Mapping[int, Journey]
    travelling: Sequence[tuple[int, str]]
    arrive: Any


class Whole:
    """Takes divided tensors through the parts of matrix grain, in batches.

    The parts up to the first one of matrix grain, and those after the last one, run on every worker's shards. Between
    them the directions, and what else is read there, are gathered to their owners (:class:`Owners`), and the new
    directions, and what was written, scattered back. Buffers of a shape of their own are divided by rows.

    Tensors that every worker has whole, as under ``DistributedDataParallel``, do not come here: every worker does
    all the work on them.

    Args:
        composition: with at least one part of tensor or matrix grain.
        structure: how the tensors are read as matrices.
        divisions: how each tensor (``"param"``) and its buffers of other shapes are divided, with all replicas; None
            for a buffer that every worker has whole. All tensors are among the same workers.
        device: where they are.
    """

    def __init__(
        self,
        composition: Composition,
        structure: Structure,
        divisions: Sequence[Mapping[str, Division | None]],
        device: torch.device | str,
    ) -> None:
        self.composition, self.structure = composition, structure
        self.divisions = divisions
        self.first, self.end = composition.together.start, composition.together.stop
        self.shapes = [own["param"].shape for own in divisions if own["param"] is not None]
        members = [m for m, shape in enumerate(self.shapes) if shape.numel()]
        one = divisions[0]["param"]
        assert one is not None
        costs = [cost(self.shapes[m], structure) for m in members]
        found = balanced(costs, one.wire.world)
        self.owner = dict(zip(members, found, strict=True))
        """Of each tensor that has entries."""
        self.owners = Owners(one.wire, one.replicas, device)
        self.buffers = [slot.name for slot in composition.slots if slot.part in composition.together]
        sizes = [4 * (1 + len(self.buffers)) * self.shapes[m].numel() for m in members]
        self.batches = [
            [members[i] for i in batch] for batch in batches(found, costs, sizes, one.wire.world, BATCH)
        ]
        """The tensors that travel together."""
        self._journeys: dict[Any, Journey] = {}

    def depart(
        self,
        flows: Mapping[int, Flow],
        slots: Slots,
        numbers: Mapping[int, Mapping[str, float]],
        stop: int | None = None,
        last: int | None = None,
    ) -> Visit:
        """Start gathering the tensors of a batch to their owners.

        Args:
            flows: of each of its members, as the parts before have left it.
            slots: this worker's parts.
            numbers: of each of its members.
            stop: the part to measure for, if any.
            last: the last part to apply, where those after it wait until it is prepared.
        """
        journeys = {m: self._journey(len(self.shapes[m]), numbers[m], stop, last) for m in flows}
        travelling = [
            (m, name) for m in flows for name in journeys[m].gathered if self._division(m, name) is not None
        ]
        pieces = [
            Piece(self.owner[m], division, _before(name, flows[m], slots, m))
            for m, name in travelling
            if (division := self._division(m, name)) is not None
        ]
        return Visit(flows, journeys, travelling, self.owners.gather(pieces))

    def arrive(
        self,
        visit: Visit,
        slots: Slots,
        numbers: Mapping[int, Mapping[str, float]],
        compute: torch.dtype,
        stop: int | None = None,
        last: int | None = None,
    ) -> None:
        """Apply the parts of matrix grain where the tensors are whole, and hand the flows of the batch back."""
        me, flows = self.owners.wire.rank, visit.flows
        wholes = dict(zip(visit.travelling, visit.arrive(), strict=True))
        mine = [m for m in flows if self.owner[m] == me]
        given = {
            m: {
                name: slots[name][m] if self._division(m, name) is None else wholes[m, name]
                for name in visit.journeys[m].gathered
            }
            for m in mine
        }
        results = dict(self._worked_on(given, visit, numbers, compute, stop, last))
        if stop is not None:
            for m, flow in flows.items():
                flow.terms = results[m].terms if m in results else {}
        on = (stop is None or stop >= self.end) and last is None
        returning = [
            (m, name)
            for m in flows
            for name in ("direction", *(("grad",) if visit.journeys[m].changed else ()))
            if on
        ]
        # What a part writes before another one measures is written again when the parameters move.
        if stop is None or stop < self.end:
            returning += self._written(visit, results)
        parts = self.owners.scatter(
            [
                Piece(
                    self.owner[m],
                    self._division(m, name) or self._everywhere(),
                    _after(name, results[m]) if m in results else None,
                    slots[name][m].dtype if name in self.buffers else compute,
                )
                for m, name in returning
            ]
        )
        for flow in flows.values():
            flow.writes = {}
        for (m, name), part in zip(returning, parts, strict=True):
            if name in self.buffers:
                flows[m].writes[name] = part
            else:
                setattr(flows[m], name, part)
        for m, flow in flows.items():
            if on and visit.journeys[m].follows:
                flow.grad = flow.direction

    def _written(self, visit: Visit, results: Mapping[int, Flow]) -> list[tuple[int, str]]:
        """The buffers that their owners have written, as all workers are told."""
        writable = [(m, name) for m in visit.flows for name in visit.journeys[m].writable]
        if not writable:
            return []
        flags = [m in results and name in results[m].writes for m, name in writable]
        told = torch.tensor(flags, dtype=torch.int32, device=self.owners.device)
        told = wait(self.owners.wire.sum(told, self.owners.part))
        return [which for which, flag in zip(writable, told.tolist(), strict=True) if flag]

    def _worked_on(
        self,
        given: Mapping[int, Mapping[str, Tensor]],
        visit: Visit,
        numbers: Mapping[int, Mapping[str, float]],
        compute: torch.dtype,
        stop: int | None,
        last: int | None,
    ) -> Iterator[tuple[int, Flow]]:
        """The tensors that this worker owns, each with its flow after the parts of matrix grain."""
        members = list(given)
        keys = [(id(numbers[m]), m if stop is not None else 0) for m in members]
        for lot in alike([self.shapes[m] for m in members], keys, torch.device(self.owners.device).type):
            own = [members[i] for i in lot]
            starts, apart = [], visit.flows[own[0]].apart
            for m in own:
                d = given[m]["direction"]
                starts.append(Flow(d, given[m].get("grad", d), visit.flows[m].decay))
            entries = [Converted(_Gathered(given[m]), compute) for m in own]
            before = together_with(starts)
            flow = through(
                self.composition, self.structure, before, entries, numbers[own[0]], stop, last
            )  # fmt: skip
            if apart and "grad" in flow.asked and "grad" not in given[own[0]]:
                _Gathered()["grad"]
            for j, m in enumerate(own):
                yield m, one_of(flow, j)

    def _division(self, m: int, name: str) -> Division | None:
        own = self.divisions[m]
        return own[name] if name in own else own["param"]

    def _everywhere(self) -> Division:
        """That of what every worker has whole, and which has no dimensions."""
        wire = self.owners.wire
        return Division(torch.Size(), wire, ((),) * wire.world, wire.rank)

    def _journey(
        self, dimensions: int, numbers: Mapping[str, float], stop: int | None, last: int | None
    ) -> Journey:
        """Found out by running the parts on small tensors of so many dimensions.

        A part may branch on numbers that are 0 or 1, and on which side of a matrix is the longer one: all are tried.
        """
        if (dimensions, stop, last) not in self._journeys:
            found = [self._tried(shape, numbers, stop, last) for shape in _small(dimensions)]
            for value in (0.0, 1.0):
                tried = {name: value if x in (0, 1) else x for name, x in numbers.items()}
                if tried != numbers:
                    for shape in _small(dimensions):
                        with contextlib.suppress(
                            ArithmeticError, RuntimeError
                        ):  # a pair that never comes together
                            found.append(self._tried(shape, tried, stop, last))
            self._journeys[dimensions, stop, last] = Journey(
                tuple(dict.fromkeys(name for journey in found for name in journey.gathered)),
                tuple(dict.fromkeys(name for journey in found for name in journey.writable)),
                any(journey.changed for journey in found),
                all(journey.follows for journey in found),
            )
        return self._journeys[dimensions, stop, last]

    def _tried(
        self, shape: torch.Size, numbers: Mapping[str, float], stop: int | None, last: int | None
    ) -> Journey:
        composition = self.composition
        entries = {n: torch.full(shape, 0.5) for n in ("param", "grad", *composition.extra_inputs)}
        for slot in composition.slots:
            entries[slot.name] = torch.full(composition.kept_shape(slot, shape), 0.5)
        flow = composition.start(entries)
        composition.follow(flow, entries, numbers, range(self.first))
        apart, flow = flow.apart, together_with([flow])
        before = flow.grad
        flow.asked = set()
        flow = through(composition, PLAIN, flow, [entries], numbers, stop, last)
        follows = not flow.apart
        gathered = [
            "direction",
            *(["grad"] if apart and "grad" in flow.asked else []),
            *(["param"] if "param" in flow.asked else []),
            *self.buffers,
            *(composition.extra_inputs if self.first == 0 else ()),
        ]
        writable = [
            slot.name for slot in composition.slots if slot.name in self.buffers and stop in (None, slot.part)
        ]
        return Journey(tuple(gathered), tuple(writable), flow.grad is not before and not follows, follows)


class _Gathered(dict[str, Any]):
    def __missing__(self, name: str) -> Any:
        raise RuntimeError(
            f"a part of matrix grain reads {name!r} in some steps, or for some shapes, only; of parameters that are "
            "divided among workers it must read it in every step"
        )


def _small(dimensions: int) -> list[torch.Size]:
    """Small shapes of so many dimensions, square, wide and tall."""
    ends = [(2, 2), (2, 3), (3, 2)] if dimensions > 1 else [(2,) * dimensions]
    return [torch.Size(((2,) * (dimensions - 2)) + end) for end in ends]


def _before(name: str, flow: Flow, slots: Slots, m: int) -> Tensor:
    found: Tensor = getattr(flow, name) if name in ("direction", "grad") else slots[name][m].detach()
    return found


def _after(name: str, flow: Flow) -> Tensor:
    found: Tensor = getattr(flow, name) if name in ("direction", "grad") else flow.writes[name]
    return found
