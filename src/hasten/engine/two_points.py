"""Optimizers that take gradients at one point and are evaluated at another: the switch between both."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from hasten.engine.composition import Composition
from hasten.numbers import Names

if TYPE_CHECKING:
    from hasten.engine.optimizer import Optimizer


@torch.no_grad()
def switch(optimizer: Optimizer, to_training: bool) -> None:
    """Put the training point, or the point to evaluate, into the parameters that hold the other."""
    for group in optimizer.param_groups:
        if group["train_mode"] == to_training:
            continue
        for p in group["params"]:
            composition = optimizer.composition_of(p)
            if composition.sentence.iterate.two_points and p in optimizer.state and optimizer.state[p]["step"] > 0:
                _move(optimizer, group, p, composition, to_training)
        group["train_mode"] = to_training


def _move(
    optimizer: Optimizer, group: dict[str, Any], p: Tensor, composition: Composition, to_training: bool
) -> None:
    i, iterate, state = len(composition.parts) - 1, composition.sentence.iterate, optimizer.state[p]
    h = composition.values(group, float)[i]
    own = {x.formal: float(state[x.name]) for x in composition.counters if x.part == i}
    shared = {x.formal: float(group[x.name]) for x in composition.group_counters if x.part == i}
    c = Names(**own, **shared)
    n = Names(**iterate.switch(h, float(state["step"]), c))
    buffers = {slot.formal: state[slot.name] for slot in composition.slots if slot.part == i}
    wide = torch.promote_types(p.dtype, torch.float32)
    s = Names(param=p.detach().to(wide), **buffers)
    p.copy_(iterate.training(s, n) if to_training else iterate.evaluation(s, n))


def watch(module: nn.Module, optimizer: Optimizer) -> None:
    """Warn once when the module is evaluated while its parameters hold the training point."""
    reference = weakref.ref(optimizer)

    def hook(module: nn.Module, inputs: Any) -> None:
        opt = reference()
        if opt is not None and not module.training and opt.training and opt.param_groups[0]["step"] > 0:
            opt.warn_once(
                "evaluating",
                f"{opt.name}: the model is in eval mode but its parameters hold the training point; "
                "evaluate inside `with opt.evaluating():`",
            )

    module.register_forward_pre_hook(hook)
