"""What all workers must have in common, checked before the first step, so that a stranger is named and not averaged."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

import hasten
from hasten.wire import Wire


class Disagreement(ValueError):
    """A worker differs from the others in something that must be equal."""


def agree_on(
    model: nn.Module | None = None, optimizer: Any = None, hook: Any = None, *, group: Any = None
) -> None:
    """Compare model, optimizer and hook over all workers; a worker that differs is named, on every worker.

    Call it before ``DistributedDataParallel(model)``. That constructor compares shapes only, and only rank by rank: of
    a model of another dtype it takes the process down, and of one whose layers come in another order it takes note of
    nothing and averages what does not belong together. What is compared here:

    * of the model: names, order, shapes and dtypes of parameters and buffers, and which parameters are trained (their
      values may differ: DistributedDataParallel copies those of rank 0);
    * of the optimizer: its class and parts, and every value in every parameter group, the count of steps among them;
    * of the hook: its exchange, with sketch and seed (:meth:`Hook.register` compares these as well);
    * the versions of torch and hasten.

    Args:
        model: a module, wrapped or not.
        optimizer: any optimizer with ``param_groups``.
        hook: a :class:`~hasten.distributed.Hook` or an :class:`~hasten.distributed.Exchange`.
        group: a process group; None for the default one.

    Raises:
        Disagreement: on every worker, naming the ranks that deviate and both values.
        TypeError: an argument is of another kind.
        WorkerLost: a worker did not take part within the group's timeout.

    Example:
        >>> import torch.distributed as dist
        >>> dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
        >>> net = nn.Linear(3, 1)
        >>> agree_on(net, hasten.AdamW(net, lr=1e-3))
        >>> dist.destroy_process_group()
    """
    exchange = getattr(hook, "exchange", hook)
    for name, value, fits, kind in (
        ("model", model, hasattr(model, "named_parameters"), "a torch.nn.Module"),
        ("optimizer", optimizer, hasattr(optimizer, "param_groups"), "an optimizer"),
        ("hook", hook, hasattr(exchange, "facts"), "a Hook or an Exchange"),
    ):
        if value is not None and not fits:
            raise TypeError(f"agree_on: {name} = {value!r} is not allowed; it must be {kind}")
    facts: dict[str, Any] = {}
    if model is not None:
        facts["model"] = description(model)
    if optimizer is not None:
        facts["optimizer"] = optimizer_description(optimizer)
    if hook is not None:
        facts |= exchange.facts
    agree(Wire(group), facts)


def description(model: nn.Module) -> str:
    """The names, shapes and dtypes of a model's parameters and buffers, and which parameters are trained.

    Example:
        >>> print(description(nn.Linear(3, 1)))
        weight (1, 3) torch.float32
        bias (1,) torch.float32
    """
    parameters = (
        f"{name} {tuple(p.shape)} {p.dtype}{'' if p.requires_grad else ' frozen'}"
        for name, p in model.named_parameters()
    )
    buffers = (f"{name} {tuple(b.shape)} {b.dtype} buffer" for name, b in model.named_buffers())
    return "\n".join([*parameters, *buffers])


def optimizer_description(optimizer: Any) -> str:
    """An optimizer's class and parts, and what its parameter groups hold.

    Example:
        >>> optimizer_description(torch.optim.SGD([torch.zeros(2)], lr=0.1)).splitlines()[:3]
        ['SGD', 'group 0: parameters = [(2,)]', 'group 0: dampening = 0']
    """
    lines = [type(optimizer).__name__]
    if isinstance(optimizer, hasten.Optimizer):  # parts first: what hyperparameters are follows from them
        said = hasten.describe(optimizer)
        lines += [f"{part.word} {part.name}({part.options})" for part in (*said.parts, *said.vectors)]
        options = ("maximize", "on_nonfinite", "seed", "state_dtype", "stochastic_rounding")
        lines += [f"{name} = {getattr(optimizer, name)!r}" for name in options]
    for number, group in enumerate(optimizer.param_groups):
        lines.append(f"group {number}: parameters = {[tuple(p.shape) for p in group['params']]}")
        lines += [f"group {number}: {key} = {_plain(group[key])}" for key in sorted(group) if key != "params"]
    return _told("\n".join(lines))


def _plain(value: Any) -> str:
    return repr(value.tolist() if isinstance(value, Tensor) else value)


def agree(wire: Wire, facts: Mapping[str, Any]) -> None:
    """Raise `Disagreement` on every worker, naming those that are alone with a value, unless all have the same facts.

    The versions of torch and hasten are facts always.

    Args:
        wire: of the workers that must agree; all of them call this.
        facts: by names that users understand, values that differ where their `repr` does.

    Raises:
        Disagreement: a worker differs.
        WorkerLost: a worker did not take part.

    Example:
        >>> import torch.distributed as dist
        >>> dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
        >>> agree(Wire(), {"seed": 0})
        >>> dist.destroy_process_group()
    """
    versions = {"version of torch": torch.__version__, "version of hasten": hasten.__version__}
    compare(wire.objects({**versions, **facts}))


def compare(everyone: list[dict[str, Any]]) -> None:
    """Raise `Disagreement` unless all, listed by rank, have the same facts.

    Example:
        >>> try:
        ...     compare([{"seed": 0}, {"seed": 0}, {"seed": 7}, {"seed": 0}])
        ... except Disagreement as error:
        ...     print(error)
        the workers do not have the same seed: rank 2 with 7, but ranks 0, 1, 3 with 0
    """
    for name in {name: None for each in everyone for name in each}:
        holders: dict[str, list[int]] = {}
        for rank, each in enumerate(everyone):
            holders.setdefault(_told(each.get(name)), []).append(rank)
        if len(holders) > 1:
            raise Disagreement(_difference(name, holders))


def _told(value: Any) -> str:
    """A value in words, without where in memory a function or an object lies: that is each worker's own affair."""
    return re.sub(r" at 0x[0-9a-fA-F]+", "", value if isinstance(value, str) else repr(value))


def _difference(name: str, holders: Mapping[str, list[int]]) -> str:
    usual = max(holders, key=lambda value: len(holders[value]))
    others = [value for value in holders if value != usual]
    said = "; ".join(f"{_ranks(holders[value])} with {_first_difference(value, usual)}" for value in others)
    return (
        f"the workers do not have the same {name}: {said}, but {_ranks(holders[usual])} with "
        f"{_first_difference(usual, others[0])}"
    )


def _ranks(ranks: list[int]) -> str:
    return ("rank " if len(ranks) == 1 else "ranks ") + ", ".join(map(str, ranks))


def _first_difference(value: str, other: str) -> str:
    """The first line that differs."""
    pairs = itertools.zip_longest(value.splitlines(), other.splitlines(), fillvalue="nothing more")
    return next((mine.strip() for mine, theirs in pairs if mine != theirs), value)
