"""What all workers must have in common, checked before the first step, so that a stranger is named and not averaged."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from hasten.wire import Wire


class Disagreement(ValueError):
    """A worker differs from the others in something that must be equal."""


def description(model: nn.Module) -> str:
    """The names, shapes and dtypes of a model's parameters, and which of them are trained."""
    return "\n".join(
        f"{name} {tuple(p.shape)} {p.dtype}{'' if p.requires_grad else ' frozen'}"
        for name, p in model.named_parameters()
    )


def agree(wire: Wire, facts: Mapping[str, Any]) -> None:
    """Raise `Disagreement` on every worker, naming those that are alone with a value, unless all have the same facts.

    Example:
        >>> import torch.distributed as dist
        >>> dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
        >>> agree(Wire(), {"seed": 0})
        >>> dist.destroy_process_group()
    """
    everyone = wire.objects(dict(facts))
    for name in {name: None for each in everyone for name in each}:
        holders: dict[Any, list[int]] = {}
        for rank, each in enumerate(everyone):
            holders.setdefault(each.get(name), []).append(rank)
        if len(holders) > 1:
            raise Disagreement(_difference(name, holders))


def _difference(name: str, holders: Mapping[Any, list[int]]) -> str:
    usual = max(holders, key=lambda value: len(holders[value]))
    others = [value for value in holders if value != usual]
    said = "; ".join(f"{_ranks(holders[value])} with {_first_difference(value, usual)}" for value in others)
    return (
        f"the workers do not have the same {name}: {said}, but {_ranks(holders[usual])} with "
        f"{_first_difference(usual, others[0])}"
    )


def _ranks(ranks: list[int]) -> str:
    return ("rank " if len(ranks) == 1 else "ranks ") + ", ".join(map(str, ranks))


def _first_difference(value: Any, other: Any) -> str:
    """The first line that differs, of texts of several lines; otherwise the value."""
    if not (isinstance(value, str) and isinstance(other, str) and "\n" in value + other):
        return repr(value)
    mine, theirs = value.splitlines(), other.splitlines()
    return next((repr(a) for a, b in zip(mine, theirs, strict=False) if a != b), f"{len(mine)} lines")
