"""The gradient, as backpropagation gives it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.distributed as dist
from torch import Tensor

from hasten.words import Observation, Oracle


@dataclass(frozen=True)
class Backpropagation(Oracle):
    """The gradient in ``p.grad``, or that of a closure's loss.

    A closure may compute the gradient itself, as torch's do (``zero_grad``, ``backward``, return the loss), or only
    return the loss: then it is differentiated here, and ``p.grad`` stays as it was.

    With `loss`, the value of the objective is needed as well: ``step`` then insists on a closure that returns it.
    """

    loss: bool = False
    formula: ClassVar[str] = "g = ∇f(y)"

    @property
    def delivers(self) -> tuple[str, ...]:
        """The loss, where it is asked for."""
        return ("loss",) if self.loss else ()

    def observe(self, optimizer: Any, closure: Callable[[], Any] | None) -> Observation:
        """Evaluate the closure."""
        if closure is None:
            if self.loss:
                raise TypeError(
                    f"{optimizer.name}: step() needs a closure that returns the loss: "
                    "opt.step(lambda: loss_fn(model(x), y))"
                )
            return Observation()
        params = [p for group in optimizer.param_groups for p in group["params"] if p.requires_grad]
        loss, gradients = differentiate(closure, params)
        if self.loss and loss is None:
            raise TypeError(f"{optimizer.name}: the closure returned None; it must return the loss")
        value = loss.detach() if isinstance(loss, Tensor) else loss
        return Observation(loss, gradients, numbers={"loss": float(value)} if self.loss else {})


def differentiate(
    closure: Callable[[], Any], params: list[Tensor]
) -> tuple[Any, dict[Tensor, Tensor] | None]:
    """The closure's loss, and its gradient by parameter; None if the closure itself left it in ``p.grad``.

    Example:
        >>> w = torch.ones(2, requires_grad=True)
        >>> differentiate(lambda: (w**2).sum(), [w])[1][w], w.grad
        (tensor([2., 2.]), None)
    """
    before = [_Left(p) for p in params]
    with torch.enable_grad():
        loss = closure()
    left = all(seen.alone(p) for seen, p in zip(before, params, strict=True))
    if not left or not (isinstance(loss, Tensor) and loss.requires_grad):
        return loss, None
    try:
        if dist.is_available() and dist.is_initialized():
            return loss, _accumulated(loss, params)
        found = torch.autograd.grad(loss, params, allow_unused=True)
    except RuntimeError as error:
        if "second time" in str(
            error
        ):  # its gradient went through a hook or a scaler, not into these parameters
            return loss, None
        raise
    return loss, {p: g for p, g in zip(params, found, strict=True) if g is not None}


def _accumulated(loss: Tensor, params: Sequence[Tensor]) -> dict[Tensor, Tensor]:
    """What ``backward`` leaves in ``p.grad``, which is then as it was.

    Wrappers of torch.distributed average gradients on their way there, which ``torch.autograd.grad`` does not go.
    """
    with _grads_aside(params):
        loss.backward()  # type: ignore[no-untyped-call]  # torch does not annotate it
        return {p: p.grad for p in params if p.grad is not None}


def local_gradients(closure: Callable[[], Any], params: Sequence[Tensor]) -> list[Tensor | None]:
    """The gradient of the closure's loss on this worker, whether it calls ``backward`` or not; ``p.grad`` stays.

    Example:
        >>> w = torch.ones(2, requires_grad=True)
        >>> local_gradients(lambda: (w**2).sum(), [w]), w.grad
        ([tensor([2., 2.])], None)
    """
    with _grads_aside(params):
        with torch.enable_grad():
            loss = closure()
        if any(p.grad is not None for p in params) or not (isinstance(loss, Tensor) and loss.requires_grad):
            return [p.grad for p in params]
        return list(torch.autograd.grad(loss, list(params), allow_unused=True))


@contextlib.contextmanager
def _grads_aside(params: Sequence[Tensor]) -> Iterator[None]:
    kept = [p.grad for p in params]
    for p in params:
        p.grad = None
    try:
        yield
    finally:
        for p, g in zip(params, kept, strict=True):
            p.grad = g


class _Left:
    """A gradient as it was before a closure ran."""

    def __init__(self, p: Tensor) -> None:
        self.version = _version(p)
        self.view = p.grad if p.grad is not None and p.grad._is_view() else None

    def alone(self, p: Tensor) -> bool:
        """Whether it is as it was; DistributedDataParallel's forward may have moved it into another bucket."""
        if _version(p) == self.version:
            return True
        old, new = self.view, p.grad
        if old is None or new is None or self.version is None or old._version != self.version[1]:
            return False
        return not new.numel() or (
            new.data_ptr() != old.data_ptr() and torch.allclose(new, old, 0, 0, equal_nan=True)
        )


def _version(p: Tensor) -> tuple[int, int] | None:
    return None if p.grad is None else (id(p.grad), p.grad._version)
