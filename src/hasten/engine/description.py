"""Print an optimizer as its sentence: parts, values, formulas, state, source."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch

from hasten.engine.composition import Composition, Place
from hasten.engine.parameters import STRUCTURE, ParameterGroups
from hasten.schedules import Schedule


@dataclass(frozen=True)
class PartDescription:
    """One part: its word, name, formula, options and hyperparameters (place in the group, value)."""

    word: str
    name: str
    formula: str
    options: dict[str, Any]
    hyperparameters: dict[str, Any]
    buffers: tuple[str, ...]

    def lines(self) -> list[str]:
        """The part with its values, and below it the formula."""
        listed = ", ".join(f"{k}={_short(v)}" for k, v in {**self.hyperparameters, **self.options}.items())
        stated = [f"            {self.formula}"] if self.formula else []
        return [f"  {self.word:<9} {self.name}({listed})", *stated]


@dataclass(frozen=True)
class Description:
    """An optimizer in words; ``str()`` is the printed form."""

    name: str
    source: str
    parts: tuple[PartDescription, ...]
    floats_per_parameter: float
    vectors: tuple[PartDescription, ...] = ()
    """The parts for parameters with fewer than two dimensions, where they have a sentence of their own."""
    roles: dict[str, tuple[PartDescription, ...]] = field(default_factory=dict)
    """The parts of the sentences that parameter groups name, where they name any."""
    matrices: bool = False
    """Whether the parts work on matrices."""
    overrides: tuple[str, ...] = ()
    """What the other parameter groups have instead, a line each."""

    def __str__(self) -> str:
        lines = [f"{self.name}" + (f"  ({self.source})" if self.source else "")]
        for part in self.parts:
            lines += part.lines()
        lines.append(f"  state     {self.floats_per_parameter:g} floats per parameter")
        if self.vectors:
            lines.append(
                "  all other parameters:" if self.matrices else "  parameters with fewer than two dimensions:"
            )
            lines += [f"  {line}" for part in self.vectors for line in part.lines()]
        for role, parts in self.roles.items():
            lines.append(f"  {role}:")
            lines += [f"  {line}" for part in parts for line in part.lines()]
        return "\n".join([*lines, *(f"  {line}" for line in self.overrides)])


def describe(optimizer: ParameterGroups) -> Description:
    """The sentence of an optimizer: its parts with their values and formulas, its state and its source.

    Example:
        >>> import torch, hasten
        >>> print(hasten.describe(hasten.Lion([torch.ones(3, requires_grad=True)])))
        Lion  (Chen et al. 2023, arXiv:2302.06675)
          oracle    Backpropagation()
                    g = ∇f(y)
          momentum  Interpolation(betas[0]=0.9, betas[1]=0.99)
                    u = β₁ m + (1−β₁) d;  m ← β₂ m + (1−β₂) d
          geometry  Sign()
                    u = sign(d)
          step      WeightDecay(weight_decay=0)
                    u = d + λ y
          iterate   Plain(lr=0.0001)
                    y ← y − lr · u
          state     1 floats per parameter
    """
    first, group = optimizer.compositions[0], optimizer.param_groups[0]
    named = {
        g[optimizer.role_key]: g for g in optimizer.param_groups if g.get(optimizer.role_key) is not None
    }
    return Description(
        type(optimizer).__name__,
        optimizer.source,
        _parts(first, group),
        floats_per_parameter(first),
        _parts(optimizer.others, _group_of_others(optimizer)) if optimizer.others is not None else (),
        {f"{optimizer.role_key} {r!r}": _parts(optimizer.roles[r], own) for r, own in named.items()},
        first.grain == "matrix",
        tuple(_overrides(optimizer)),
    )


def _parts(composition: Composition, group: dict[str, Any]) -> tuple[PartDescription, ...]:
    return tuple(_part(composition, i, group) for i in range(len(composition.parts)))


def _group_of_others(optimizer: ParameterGroups) -> dict[str, Any]:
    groups = optimizer.param_groups
    return next((group for group in groups if group.get("matrices") is False), groups[0])


def _overrides(optimizer: ParameterGroups) -> Iterator[str]:
    first, *others = optimizer.param_groups
    for number, group in enumerate(others, start=1):
        places = [
            place for place in optimizer.places.values() if _value(group, place) != _value(first, place)
        ]
        differing = [f"{place}={_short(_value(group, place))}" for place in places]
        said = [key for key in STRUCTURE if group.get(key) != first.get(key)]
        differing = [*(f"{key}={group.get(key)!r}" for key in said), *differing]
        if group.get(optimizer.role_key) is not None:
            differing = [f"{optimizer.role_key}={group[optimizer.role_key]!r}", *differing]
        yield f"group {number}: " + ", ".join([f"{len(group['params'])} parameters", *differing])


def floats_per_parameter(composition: Composition, shape: tuple[int, int] = (1024, 1024)) -> float:
    """State per entry of a large matrix, in numbers."""
    size = torch.Size(shape)
    total = 0
    for slot in composition.slots:
        total += torch.Size(slot.buffer.shape(size) if slot.buffer.shape else size).numel()
    return total / size.numel()


def _part(composition: Composition, i: int, group: dict[str, Any]) -> PartDescription:
    part = composition.parts[i]
    values = {str(place): _value(group, place) for _, place in composition.bound[i]}
    buffers = tuple(slot.name for slot in composition.slots if slot.part == i)
    changed = {k: v for k, v in part.options().items() if v not in (None, False)}
    return PartDescription(part.word, type(part).__name__, part.formula, changed, values, buffers)


def _value(group: dict[str, Any], place: Place) -> Any:
    if str(place) in group["schedules"]:
        data = group["schedules"][str(place)]
        return "function of the step" if data["schedule"] == "function" else Schedule.from_plain(data)
    return place.read(group)


def _short(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else repr(value)
