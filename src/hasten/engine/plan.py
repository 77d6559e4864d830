"""What stays the same from step to step: which parameters move together, their flat views, and their passes.

Looking at every tensor from Python costs more than stepping small ones, so a plan is made once and kept for as long as
a few cheap comparisons find every tensor where it was.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Sequence
from functools import cached_property
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from hasten.engine.composition import Composition
from hasten.engine.formula import Pass
from hasten.engine.parameters import ParameterGroups
from hasten.engine.segments import Segments
from hasten.engine.sharded import Sharding
from hasten.engine.structure import structure_of
from hasten.engine.whole import Whole
from hasten.numbers import Names
from hasten.sharding import Division, division, is_distributed, local
from hasten.wire import Wire

_version = operator.attrgetter("_version")


class Bucket:
    """Parameters of one group that share their numbers and their layout."""

    def __init__(
        self, index: int, group: dict[str, Any], composition: Composition, counters: dict[str, float]
    ) -> None:
        self.index = index
        self.group = group
        self.composition = composition
        self.counters = counters
        self.states: list[dict[str, Tensor]] = []
        self.params: list[Tensor] = []
        self.ordinals: list[int] = []
        self.distributed = False
        """Whether the tensors are DTensors."""
        self.divisions: list[Division] = []
        """How the parameters are divided among workers, if they are."""
        self.structure = structure_of(group)
        self.passes: dict[int | str | None, Pass] = {}
        self.h: list[Names] = []
        self.numbers: dict[str, float] = {}
        self.after: list[Names] = []
        self._views: dict[str, list[Tensor] | None] = {}

    @property
    def wire(self) -> Wire | None:
        """The workers among whom the parameters are divided."""
        return self.divisions[0].wire if self.divisions else None

    @cached_property
    def whole(self) -> Whole | None:
        """Runs formulas of matrix grain, where that needs other workers."""
        if not self.divisions or self.composition.grain == "element":
            return None
        own = [slot.name for slot in self.composition.slots if slot.buffer.shape is not None]
        divisions = [
            {
                "param": division(p, replicated=True),
                **{name: division(state[name], of=p, replicated=True) for name in own},
            }
            for p, state in zip(self.params, self.states, strict=True)
        ]
        return Whole(self.composition, self.structure, divisions, self.params[0].device)

    @cached_property
    def segments(self) -> Segments:
        """The fused passes around parts that need more than one entry."""
        return Segments(self.composition)

    @property
    def k(self) -> float:
        """The number of this step, from 1."""
        return self.counters["step"] + 1

    def tensors(self, name: str) -> list[Tensor]:
        """The parameters, or the buffers of one name; of those that are divided, this worker's parts."""
        found = self.params if name == "param" else [state[name] for state in self.states]
        return [local(t) for t in found] if self.distributed else found

    def views(self, name: str) -> list[Tensor] | None:
        """Flat views of them; None if one is not contiguous, so that it has none."""
        if name not in self._views:
            tensors = self.tensors(name)
            self._views[name] = (
                [flat(t) for t in tensors] if all(t.is_contiguous() for t in tensors) else None
            )
        return self._views[name]


def flat(t: Tensor) -> Tensor:
    """One-dimensional view of a contiguous tensor; of a complex one, its real and imaginary parts."""
    t = t.detach()
    return torch.view_as_real(t).view(-1) if t.is_complex() else t.view(-1)


class Plan:
    """The buckets of the parameters that have a gradient, and how to tell that they still hold."""

    def __init__(self, optimizer: ParameterGroups, params: list[Tensor], grads: list[Tensor | None]) -> None:
        for p, g in zip(params, grads, strict=True):
            if g is not None:
                _refuse(optimizer, p, g)
                if p not in optimizer.state:
                    optimizer.initialise(p)
        _forget_replaced(optimizer, params)
        self.sharding = (
            Sharding(params, lambda p: f"{optimizer.name}: {optimizer.name_of(p)}")
            if any(map(is_distributed, params))
            else None
        )
        """How parameters are divided among workers; None where none is a DTensor."""
        self.buckets = _buckets(optimizer, params, grads, self.sharding)
        self._params = params
        self._kinds = _kinds(grads)
        self._engine = optimizer.engine
        self._state = optimizer.state
        self._groups = list(optimizer.param_groups)
        self._tensors = list(_everything(optimizer))
        self._places = self._addresses(params)
        self._counters = [
            optimizer.state[p][name]
            for bucket in self.buckets
            for p in bucket.params
            for name in bucket.counters
        ]
        self.seal()

    def seal(self) -> None:
        """Take note that the counters in the state are those of the buckets."""
        self._versions = list(map(_version, self._counters))

    def fits(self, optimizer: ParameterGroups, params: list[Tensor], grads: list[Tensor | None]) -> bool:
        """Whether nothing was replaced, moved, or counted by someone else."""
        return (
            _identical(self._params, params)
            and self._kinds == _kinds(grads)
            and self._engine == optimizer.engine
            and self._state is optimizer.state
            and _identical(self._groups, optimizer.param_groups)
            and _identical(self._tensors, list(_everything(optimizer)))
            and self._places == self._addresses(params)
            and self._versions == list(map(_version, self._counters))
        )

    def _addresses(self, params: list[Tensor]) -> list[int]:
        everything: Iterable[Tensor] = chain(params, self._tensors)
        return list(map(Tensor.data_ptr, everything if self.sharding is None else map(local, everything)))


def _identical(a: Sequence[Any], b: Sequence[Any]) -> bool:
    return len(a) == len(b) and all(map(operator.is_, a, b))


def _everything(optimizer: ParameterGroups) -> Iterable[Tensor]:
    return chain.from_iterable(map(dict.values, optimizer.state.values()))


def _kinds(grads: list[Tensor | None]) -> list[Any]:
    return [g if g is None else (g.dtype, g.layout) for g in grads]


def _forget_replaced(optimizer: ParameterGroups, params: list[Tensor]) -> None:
    """Frameworks put sharded parameters into the groups in place of those that the optimizer was made with."""
    present = {id(p) for p in params}
    for p in [p for p in optimizer.state if id(p) not in present]:
        del optimizer.state[p]


def _refuse(optimizer: ParameterGroups, p: Tensor, g: Tensor) -> None:
    """Raise RuntimeError if the gradient is of a kind that is not supported."""
    if g.layout is not torch.strided:
        raise RuntimeError(
            f"{optimizer.name}: {optimizer.name_of(p)} has a sparse gradient, which is not supported; "
            "use nn.Embedding(..., sparse=False), or torch.optim.SparseAdam for this parameter"
        )
    composition = optimizer.composition_of(p)
    if p.is_complex() and composition.grain != "element":
        part = composition.parts[composition.together.start]
        raise RuntimeError(
            f"{optimizer.name}: {optimizer.name_of(p)} is complex, which {type(part).__name__} does not support"
        )


def _buckets(
    optimizer: ParameterGroups, params: list[Tensor], grads: list[Tensor | None], sharding: Sharding | None
) -> list[Bucket]:
    found: dict[Any, Bucket] = {}
    ordinal = -1
    for index, group in enumerate(optimizer.param_groups):
        for p in group["params"]:
            ordinal += 1
            g = grads[ordinal]
            if g is None:
                continue
            composition = optimizer.composition_of(p)
            names = ("step", *(counter.name for counter in composition.counters))
            counters = {name: float(optimizer.state[p][name]) for name in names}
            divided = None if sharding is None else sharding.divisions.get(p)
            among = None if divided is None else id(divided.wire)
            distributed = sharding is not None and is_distributed(p)
            key = (index, id(composition), p.device, p.dtype, g.dtype, distributed, among, *counters.values())
            if key not in found:
                found[key] = Bucket(index, group, composition, counters)
            found[key].params.append(p)
            found[key].states.append(optimizer.state[p])
            found[key].ordinals.append(ordinal)
            found[key].distributed = distributed
            if divided is not None:
                found[key].divisions.append(divided)
    return list(found.values())
