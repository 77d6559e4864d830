"""Optimizers that take gradients at one point and are evaluated at another: the switch between both."""

from __future__ import annotations

import contextlib
import sys
import weakref
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from hasten.engine.composition import Composition
from hasten.engine.parameters import ParameterGroups
from hasten.numbers import Names
from hasten.sharding import is_distributed, local


@contextlib.contextmanager
def evaluation(optimizer: Any) -> Iterator[None]:
    """Inside the ``with`` block the parameters hold the point to evaluate, and after it the same as before."""
    was_training = optimizer.training
    optimizer.eval()
    try:
        yield
    finally:
        if was_training:
            optimizer.train()


@torch.no_grad()
def switch(optimizer: ParameterGroups, to_training: bool) -> None:
    """Put the training point, or the point to evaluate, into the parameters that hold the other."""
    for group in optimizer.param_groups:
        if group["train_mode"] == to_training:
            continue
        for p in group["params"]:
            composition = optimizer.composition_of(p)
            if (
                composition.sentence.iterate.two_points
                and p in optimizer.state
                and optimizer.state[p]["step"] > 0
            ):
                _move(optimizer, group, p, composition, to_training)
        group["train_mode"] = to_training
    _let_go_of_gathered(optimizer)


def _let_go_of_gathered(optimizer: ParameterGroups) -> None:
    """Modules under ``fully_shard`` may keep parameters gathered after a forward pass, which are now out of date."""
    kind = getattr(sys.modules.get("torch.distributed.fsdp"), "FSDPModule", None)
    if kind is None or not any(is_distributed(p) for g in optimizer.param_groups for p in g["params"]):
        return
    if optimizer.module is None:
        optimizer.warn_once(
            "gathered",
            f"{optimizer.name}: modules under fully_shard may keep the parameters of the last forward pass, which are "
            f"out of date now; give the optimizer the module, {optimizer.name}(model), or call model.reshard()",
        )
        return
    for module in optimizer.module.modules():
        if isinstance(module, kind):
            module.reshard()


def _move(
    optimizer: ParameterGroups, group: dict[str, Any], p: Tensor, composition: Composition, to_training: bool
) -> None:
    i, iterate, state = len(composition.parts) - 1, composition.sentence.iterate, optimizer.state[p]
    h = composition.values(group, float)[i]
    own = {x.formal: float(state[x.name]) for x in composition.counters if x.part == i}
    shared = {x.formal: float(group[x.name]) for x in composition.group_counters if x.part == i}
    c = Names(**own, **shared)
    n = Names(**iterate.switch(h, float(state["step"]), c))
    buffers = {slot.formal: local(state[slot.name]) for slot in composition.slots if slot.part == i}
    wide = torch.promote_types(p.dtype, torch.float32)
    here = local(p.detach())
    s = Names(param=here.to(wide), **buffers)
    here.copy_(iterate.training(s, n) if to_training else iterate.evaluation(s, n))
    if is_distributed(p):
        torch.autograd.graph.increment_version(p)


def watch(module: nn.Module, optimizer: ParameterGroups) -> None:
    """Warn once when the module is evaluated while its parameters hold the training point."""
    module.register_forward_pre_hook(_Watch(module, optimizer))


class _Watch:
    """A hook that keeps nothing alive, and is forgotten by copies and pickles of the module."""

    module: weakref.ref[nn.Module] | None = None
    optimizer: weakref.ref[ParameterGroups] | None = None

    def __init__(self, module: nn.Module, optimizer: ParameterGroups) -> None:
        self.module, self.optimizer = weakref.ref(module), weakref.ref(optimizer)

    def __reduce__(self) -> tuple[Any, ...]:
        return _forgotten, ()

    def __call__(self, module: nn.Module, inputs: Any) -> None:
        optimizer = self.optimizer() if self.optimizer else None
        if optimizer is None or self.module is None or self.module() is not module:
            return
        if not module.training and optimizer.training and optimizer.param_groups[0]["step"] > 0:
            optimizer.warn_once(
                "evaluating",
                f"{optimizer.name}: the model is in eval mode but its parameters hold the training point; "
                "evaluate inside `with opt.evaluating():`",
            )


def _forgotten() -> _Watch:
    return _Watch.__new__(_Watch)
