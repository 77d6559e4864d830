"""Print an optimizer as its sentence: parts, values, formulas, state, source."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from hasten.engine import Optimizer
from hasten.engine.composition import Composition, Place


@dataclass(frozen=True)
class PartDescription:
    """One part: its word, name, formula, options and hyperparameters (place in the group, value)."""

    word: str
    name: str
    formula: str
    options: dict[str, Any]
    hyperparameters: dict[str, Any]
    buffers: tuple[str, ...]


@dataclass(frozen=True)
class Description:
    """An optimizer in words; ``str()`` is the printed form."""

    name: str
    source: str
    parts: tuple[PartDescription, ...]
    floats_per_parameter: float

    def __str__(self) -> str:
        lines = [f"{self.name}" + (f"  ({self.source})" if self.source else "")]
        for part in self.parts:
            values = {**part.hyperparameters, **part.options}
            listed = ", ".join(f"{k}={_short(v)}" for k, v in values.items())
            lines.append(f"  {part.word:<9} {part.name}({listed})")
            if part.formula:
                lines.append(f"            {part.formula}")
        lines.append(f"  state     {self.floats_per_parameter:g} floats per parameter")
        return "\n".join(lines)


def describe(optimizer: Optimizer) -> Description:
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
    composition = optimizer.compositions[0]
    group = optimizer.param_groups[0]
    parts = tuple(_part(composition, i, group) for i in range(len(composition.parts)))
    return Description(type(optimizer).__name__, optimizer.source, parts, floats_per_parameter(composition))


def floats_per_parameter(composition: Composition, shape: tuple[int, int] = (1024, 1024)) -> float:
    """State per entry of a large matrix, in numbers."""
    import torch

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
        from hasten.schedules import Schedule

        data = group["schedules"][str(place)]
        return "function of the step" if data["schedule"] == "function" else Schedule.from_plain(data)
    return group[place.key] if place.index is None else group[place.key][place.index]


def _short(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else repr(value)
