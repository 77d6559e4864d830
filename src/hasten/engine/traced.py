"""The same step inside a user's ``torch.compile``: one graph, whatever the learning rate."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hasten.engine.composition import Composition
from hasten.engine.matrix import follow_all
from hasten.engine.parameters import ParameterGroups
from hasten.engine.scheduling import scheduled
from hasten.engine.structure import structure_of
from hasten.numbers import Names
from hasten.sharding import is_distributed
from hasten.words import Oracle


def refuse_tracing(oracle: Oracle) -> None:
    """Raise RuntimeError if more than ``p.grad`` is needed, which a traced step does not hand on."""
    if oracle.reads or oracle.delivers:
        raise RuntimeError(
            f"a step with {type(oracle).__name__} cannot be compiled as a whole; compile the model instead"
        )


def traced_step(optimizer: ParameterGroups) -> None:
    """Move every parameter; numbers are 0-d tensors, so that a new value never recompiles."""
    if optimizer.on_nonfinite != "propagate":
        raise RuntimeError(
            "on_nonfinite must be 'propagate' in a compiled step; compile the model instead of the step"
        )
    if optimizer.stochastic_rounding:
        raise RuntimeError("stochastic rounding cannot run in a compiled step; compile the model instead")
    if any(is_distributed(p) for group in optimizer.param_groups for p in group["params"]):
        raise RuntimeError(
            "DTensor parameters cannot be moved in a compiled step; compile the model instead of the step"
        )
    for part in (part for composition in optimizer.compositions for part in composition.parts):
        if not part.traceable or part.preparing:
            raise RuntimeError(
                f"a step with {type(part).__name__} cannot be compiled as a whole; compile the model instead"
            )
    members: list[tuple[dict[str, Any], Tensor, Composition]] = []
    for group in optimizer.param_groups:
        members += [(group, p, optimizer.composition_of(p)) for p in group["params"] if p.grad is not None]
    runs = [_Run(optimizer, *member) for member in members]
    for composition in optimizer.compositions:
        own = [run for run in runs if run.composition is composition]
        for i in composition.measuring:
            rows = [run.measure(i) for run in own]
            if composition.parts[i].measures == "all":
                total = {
                    name: torch.stack([row[name] for row in rows]).sum() for name in composition.sum_names(i)
                }
                rows = [total for _ in own]
            for run, row in zip(own, rows, strict=True):
                run.measured(i, Names(**row))
    for run in runs:
        run.move()
    for group in optimizer.param_groups:
        group["step"] += 1


def _number(x: Any) -> Tensor:
    return x.to(torch.float64) if isinstance(x, Tensor) else torch.full((), x, dtype=torch.float64)


class _Run:
    """One parameter's step."""

    def __init__(
        self, optimizer: ParameterGroups, group: dict[str, Any], p: Tensor, composition: Composition
    ) -> None:
        self.group, self.p, self.composition, self.state = group, p, composition, optimizer.state[p]
        self.h = composition.values(scheduled(optimizer, group, _number), _number)
        self.k = self.state["step"] + 1
        self.numbers: dict[str, Any] = {}
        self.after: list[Names] = []
        for i, part in enumerate(composition.parts):
            c = self._counters(i)
            for name, value in part.numbers(self.h[i], self.k, c).items():
                self.numbers[f"{i}.{name}"] = value
            self.after.append(c)
        started = self.state["step"] > 0
        for slot in composition.slots:
            if slot.buffer.start == "param":
                buffer = self.state[slot.name]
                buffer.copy_(torch.where(started, buffer, p.to(buffer.dtype)))

    def _counters(self, i: int) -> Names:
        own = {c.formal: self.state[c.name].clone() for c in self.composition.counters if c.part == i}
        shared = {
            c.formal: _number(self.group[c.name]) for c in self.composition.group_counters if c.part == i
        }
        return Names(**own, **shared)

    def _tensors(self, stop: int | None) -> dict[str, Tensor]:
        known: dict[str, Any] = {"param": self.p, "grad": self.p.grad}
        return {n: known[n] if n in known else self.state[n] for n in self.composition.stage(stop).inputs}

    def _apply(self, stop: int | None) -> dict[str, Tensor]:
        formula, originals = self.composition.stage(stop), self._tensors(stop)
        compute = torch.float64 if self.p.dtype in (torch.float64, torch.complex128) else torch.float32
        flat = not self.composition.reaches(stop)
        entries = {n: _entries(t, flat, compute) for n, t in originals.items()}
        numbers = {n: _cast(self.numbers[n], compute) for n in formula.numbers}
        if flat:
            writes, terms = self.composition.run(entries, numbers, stop)
        else:
            flow = follow_all(self.composition, structure_of(self.group), entries, numbers, stop)
            writes, terms = flow.writes, flow.terms
        for name, value in writes.items():
            target = originals[name]
            real = torch.view_as_real(target) if target.is_complex() else target
            real.copy_(value.reshape(real.shape))
        return {name: term.sum(dtype=torch.float64) for name, term in terms.items()}

    def measure(self, i: int) -> dict[str, Tensor]:
        return self._apply(i)

    def measured(self, i: int, sums: Names) -> None:
        c = self._counters(i)
        for name, value in self.composition.parts[i].measured(self.h[i], self.k, c, sums).items():
            self.numbers[f"{i}.{name}"] = value
        self.after[i] = c

    def move(self) -> None:
        self._apply(None)
        self.state["step"].copy_(self.k)
        for counter in self.composition.counters:
            self.state[counter.name].copy_(_number(getattr(self.after[counter.part], counter.formal)))
        for counter in self.composition.group_counters:
            self.group[counter.name] = getattr(self.after[counter.part], counter.formal)


def _entries(t: Tensor, flat: bool, compute: torch.dtype) -> Tensor:
    t = torch.view_as_real(t) if t.is_complex() else t
    return (t.reshape(-1) if flat else t).to(compute)


def _cast(x: Any, compute: torch.dtype) -> Any:
    return x.to(compute) if isinstance(x, Tensor) else x
