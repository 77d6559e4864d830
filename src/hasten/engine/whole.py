"""Formulas that need whole matrices, over matrices that are divided among workers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hasten.engine.composition import Composition
from hasten.engine.flow import Flow
from hasten.engine.matrix import Converted, alike, compute_dtype, one_of, store, through, together_with
from hasten.engine.owners import Owners
from hasten.engine.structure import PLAIN, Structure
from hasten.sharding import Division


@dataclass(frozen=True)
class Journey:
    """What travels for the parts of matrix grain: a buffer, ``"param"``, ``"direction"`` or ``"grad"``, by name.

    Attributes:
        gathered: to the owner, from everyone's shards.
        scattered: from the owner, to everyone's shards.
        copied: from the owner, whole, to everyone.
        follows: whether the gradient that later parts see is the new direction.
    """

    gathered: tuple[str, ...]
    scattered: tuple[str, ...]
    copied: tuple[str, ...]
    follows: bool


class Whole:
    """Runs a composition with parts of matrix grain over divided tensors.

    The parts up to the first one of matrix grain, and those after the last one, run on every worker's shards. Between
    them the directions, and what else is read there, are gathered to their owners (:class:`Owners`), and the new
    directions scattered back; buffers of another shape than the parameter's are copied to every worker.

    Args:
        composition: with at least one part of tensor or matrix grain.
        structure: how the tensors are read as matrices.
        divisions: how the tensors are divided, all among the same workers.
        device: where they are.
    """

    def __init__(
        self,
        composition: Composition,
        structure: Structure,
        divisions: Sequence[Division],
        device: torch.device | str,
    ) -> None:
        self.composition = composition
        self.structure = structure
        self.divisions = list(divisions)
        self.first, self.end = composition.together.start, composition.together.stop
        self.members = [m for m, d in enumerate(divisions) if d.shape.numel()]
        """The tensors that have entries."""
        self.owners = Owners([divisions[m] for m in self.members], device) if self.members else None
        together = [slot for slot in composition.slots if slot.part in range(self.first, self.end)]
        self.divided = [slot.name for slot in together if slot.buffer.shape is None]
        """The buffers of the parts of matrix grain that are divided as the parameters are."""
        self.shared = [slot.name for slot in together if slot.buffer.shape is not None]
        """Those that every worker has whole."""
        self._journeys: dict[tuple[int, int | None], Journey] = {}

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
            Converted({name: slot[m] for name, slot in slots.items()}, compute)
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
        journeys = {m: self._journey(len(self.divisions[m].shape), stop) for m in self.members}
        wholes = self.owners.gather(
            [[_before(name, flows[m], slots, m) for name in journeys[m].gathered] for m in self.members]
        )
        results = {}
        for position, flow in self._worked_on(wholes, journeys, flows, slots, numbers, compute, stop):
            m = self.members[position]
            flows[m].terms = flow.terms
            results[position] = (
                [_after(name, flow) for name in journeys[m].scattered],
                [_after(name, flow) for name in journeys[m].copied],
            )
        dtypes = [
            [slots[name][m].dtype if name in self.divided else compute for name in journeys[m].scattered]
            for m in self.members
        ]
        copies = [[slots[name][m] for name in journeys[m].copied] for m in self.members]
        for m, pieces in zip(self.members, self.owners.scatter(results, dtypes, copies), strict=True):
            flow, arrived = flows[m], dict(zip(journeys[m].scattered, pieces, strict=True))
            if stop is not None:
                flow.writes = {}  # only those of the part that measures count
            flow.direction = arrived.pop("direction", flow.direction)
            flow.grad = arrived.pop("grad", flow.direction if journeys[m].follows else flow.grad)
            flow.writes.update(arrived)

    def _worked_on(
        self,
        wholes: Mapping[int, Sequence[Tensor]],
        journeys: Mapping[int, Journey],
        flows: Mapping[int, Flow],
        slots: Mapping[str, Sequence[Tensor]],
        numbers: Sequence[Mapping[str, float]],
        compute: torch.dtype,
        stop: int | None,
    ) -> Iterator[tuple[int, Flow]]:
        """The positions of the tensors that this worker owns, each with its flow after the parts of matrix grain."""
        positions = list(wholes)
        members = [self.members[position] for position in positions]
        keys = [
            (id(numbers[m]), position if stop is not None else 0)
            for m, position in zip(members, positions, strict=True)
        ]
        for lot in alike([self.divisions[m].shape for m in members], keys):
            starts, entries = [], []
            for i in lot:
                m = members[i]
                given = dict(zip(journeys[m].gathered, wholes[positions[i]], strict=True))
                starts.append(Flow(given["direction"], given.get("grad", given["direction"]), flows[m].decay))
                entries.append(
                    Converted({**given, **{name: slots[name][m] for name in self.shared}}, compute)
                )
            flow = through(
                self.composition,
                self.structure,
                together_with(starts),
                entries,
                numbers[members[lot[0]]],
                stop,
            )
            for j, i in enumerate(lot):
                yield positions[i], one_of(flow, j)

    def _journey(self, dimensions: int, stop: int | None) -> Journey:
        """Found out on a small tensor of so many dimensions."""
        if (dimensions, stop) in self._journeys:
            return self._journeys[dimensions, stop]
        composition, shape = self.composition, torch.Size((2,) * dimensions)
        entries = {n: torch.full(shape, 0.5) for n in ("param", "grad", *composition.extra_inputs)}
        for slot in composition.slots:
            entries[slot.name] = torch.full(composition.kept_shape(slot, shape), 0.5)
        numbers = dict.fromkeys(composition.stage(stop).numbers, 0.5)
        flow = composition.start(entries)
        composition.follow(flow, entries, numbers, range(self.first))
        apart, flow = flow.grad is not flow.direction, together_with([flow])
        before = flow.grad
        flow = through(composition, PLAIN, flow, [entries], numbers, stop)
        follows, changed = flow.grad is flow.direction, flow.grad is not before
        gathered = [
            "direction",
            *(["grad"] if apart and "grad" in flow.asked else []),
            *(["param"] if "param" in flow.asked else []),
            *self.divided,
            *(composition.extra_inputs if self.first == 0 else ()),
        ]
        goes_on = stop is None or stop >= self.end
        scattered = ["direction", *(["grad"] if changed and not follows else [])] if goes_on else []
        # What a part writes before another one measures is written again when the parameters move.
        writes = [] if goes_on and stop is not None else list(flow.writes)
        scattered += [name for name in writes if name not in self.shared]
        copied = [name for name in writes if name in self.shared]
        found = Journey(tuple(gathered), tuple(scattered), tuple(copied), follows)
        return self._journeys.setdefault((dimensions, stop), found)


def _before(name: str, flow: Flow, slots: Mapping[str, Sequence[Tensor]], m: int) -> Tensor:
    found: Tensor = getattr(flow, name) if name in ("direction", "grad") else slots[name][m].detach()
    return found


def _after(name: str, flow: Flow) -> Tensor:
    found: Tensor = getattr(flow, name) if name in ("direction", "grad") else flow.writes[name]
    return found
