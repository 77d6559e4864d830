"""What a jump of the parameters means to the optimizer that was stepping them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from hasten.engine import Optimizer


def switches(inner: torch.optim.Optimizer) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """What puts the optimizer's point to evaluate into the parameters, and what its training point.

    Example:
        >>> import hasten
        >>> opt = hasten.ScheduleFreeSGD([torch.zeros(1, requires_grad=True)])
        >>> to_evaluation_point, to_training_point = switches(opt)
        >>> to_evaluation_point()
        >>> opt.training
        False
    """
    return getattr(inner, "eval", _nothing), getattr(inner, "train", _nothing)


def _nothing() -> None:
    return None


@torch.no_grad()
def carry(inner: torch.optim.Optimizer, p: Tensor, way: Tensor) -> None:
    """Move the optimizer's buffers that are points in the parameter's space (Schedule-Free's z) along with it.

    Averages of gradients stay, and so do all buffers of an optimizer from elsewhere.

    Example:
        >>> import hasten
        >>> w = torch.zeros(2, requires_grad=True)
        >>> opt = hasten.ScheduleFreeSGD([w])
        >>> carry(opt, w, torch.ones(2))
        >>> opt.state[w]["z"]
        tensor([1., 1.])
    """
    if isinstance(inner, Optimizer) and p in inner.state:
        for slot in inner.composition_of(p).slots:
            if slot.buffer.start == "param":
                inner.state[p][slot.name].add_(way)


@torch.no_grad()
def renew(inner: torch.optim.Optimizer, parameters: Sequence[Tensor]) -> None:
    """Start the averages of those parameters anew of which an entry is not finite: it would never go away.

    Example:
        >>> w = torch.zeros(2, requires_grad=True)
        >>> opt = torch.optim.SGD([w], lr=0.1, momentum=0.9)
        >>> w.grad = torch.tensor([1.0, torch.nan])
        >>> opt.step()
        >>> renew(opt, [w])
        >>> opt.state[w]["momentum_buffer"]
        tensor([1., 0.])
    """
    for p in parameters:
        kept = [t for t in inner.state.get(p, {}).values() if isinstance(t, Tensor)]
        spoilt = [t for t in kept if t.is_floating_point() and not bool(t.isfinite().all())]
        if spoilt and isinstance(inner, Optimizer):
            inner.initialise(p)
        else:
            for t in spoilt:
                t.nan_to_num_(0.0, 0.0, 0.0)
