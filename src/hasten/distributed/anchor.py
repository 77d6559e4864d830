"""The point that workers set out from and return to, and the optimizer that moves it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor

from hasten.engine import Optimizer
from hasten.optimizers import SGD, Nesterov

INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
"""By bytes."""
PIECE = 2**18
"""Entries whose checksum is formed at a time: what a cache holds."""

Outer: TypeAlias = Callable[[list[Tensor]], torch.optim.Optimizer]
"""What makes an outer optimizer from a list of tensors."""


def nesterov(params: list[Tensor]) -> torch.optim.Optimizer:
    """What DiLoCo advises outside (arXiv:2311.08105): Nesterov's momentum.

    Example:
        >>> nesterov([torch.zeros(1, requires_grad=True)]).param_groups[0]["momentum"]
        0.9
    """
    return Nesterov(params, lr=0.7, momentum=0.9)


def mean_of_workers(params: list[Tensor]) -> torch.optim.Optimizer:
    """θ becomes the mean of the θ_i, as in local SGD and federated averaging.

    Example:
        >>> mean_of_workers([torch.zeros(1, requires_grad=True)]).param_groups[0]["lr"]
        1.0
    """
    return SGD(params, lr=1.0)


class Anchor:
    """θ, of which workers have copies θ_i, and an outer optimizer that steps on the mean of their θ − θ_i.

    Args:
        parameters: what θ is a copy of, in their dtype but at least float32.
        outer: makes the outer optimizer.

    Raises:
        TypeError: `outer` is not a function that makes an optimizer, or a parameter is not a plain real tensor.

    Example:
        >>> import hasten
        >>> w = torch.zeros(2)
        >>> anchor = Anchor([w], lambda params: hasten.SGD(params, lr=0.5))
        >>> w += 1
        >>> anchor.displacements([w])
        [tensor([-1., -1.])]
        >>> anchor.step(anchor.displacements([w])), anchor.point[0].detach()
        (True, tensor([0.5000, 0.5000]))
    """

    def __init__(self, parameters: Sequence[Tensor], outer: Outer) -> None:
        if not callable(outer):
            raise TypeError(
                f"outer = {type(outer).__name__} is not allowed; it must be a function that makes an optimizer from a "
                "list of tensors, such as lambda params: hasten.Nesterov(params, lr=0.7)"
            )
        for p in parameters:
            if not p.is_floating_point() or hasattr(p, "to_local"):
                raise TypeError(
                    f"a parameter of {type(p).__name__}, shape {tuple(p.shape)}, {p.dtype} is not allowed; it must be "
                    "a plain tensor of a real floating dtype"
                )
        wide = [torch.promote_types(p.dtype, torch.float32) for p in parameters]
        self.point = [
            p.detach().to(dtype, copy=True).requires_grad_()
            for p, dtype in zip(parameters, wide, strict=True)
        ]
        """θ, for each parameter."""
        self.outer = Nesterov(self.point, lr=0.7, momentum=0.9) if outer is None else outer(list(self.point))
        if not isinstance(self.outer, torch.optim.Optimizer):
            raise TypeError(f"outer gave {self.outer!r}, which is not allowed; it must give an optimizer")

    @torch.no_grad()
    def displacements(self, parameters: Sequence[Tensor]) -> list[Tensor]:
        """θ − θ_i."""
        return [anchor - p for anchor, p in zip(self.point, parameters, strict=True)]

    @torch.no_grad()
    def step(self, displacements: Sequence[Tensor]) -> bool:
        """An outer step with these as the gradient; refused, and False, if one is not finite."""
        if not all(bool(d.isfinite().all()) for d in displacements):
            return False
        try:
            for anchor, d in zip(self.point, displacements, strict=True):
                anchor.grad = d
            self.outer.step()
        finally:
            for anchor in self.point:
                anchor.grad = None
        return True

    @torch.no_grad()
    def move(self, parameters: Sequence[Tensor]) -> None:
        """Start again from here: θ becomes a copy of the parameters, which the outer optimizer has not stepped on."""
        for anchor, p in zip(self.point, parameters, strict=True):
            if not torch.equal(anchor.to(p.dtype), p):
                anchor.copy_(p)
                if isinstance(self.outer, Optimizer):
                    self.outer.initialise(anchor)

    @torch.no_grad()
    def place(self, parameters: Sequence[Tensor]) -> None:
        """θ_i ← θ."""
        for anchor, p in zip(self.point, parameters, strict=True):
            p.copy_(anchor)

    def state_dict(self) -> dict[str, Any]:
        """θ, and the outer optimizer's state."""
        return {"point": [anchor.detach() for anchor in self.point], "outer": self.outer.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what `state_dict` returned.

        Raises:
            ValueError: it was saved with other parameters or another optimizer. Nothing is changed.
        """
        found = [tuple(t.shape) for t in state_dict["point"]]
        own = [tuple(anchor.shape) for anchor in self.point]
        if found != own:
            raise ValueError(
                f"the anchor in the state dict has shapes {found}, the parameters {own}; "
                "was it saved with another model?"
            )
        self.outer.load_state_dict(state_dict["outer"])
        with torch.no_grad():
            for anchor, saved in zip(self.point, state_dict["point"], strict=True):
                anchor.copy_(saved)


def load_together(parts: Sequence[tuple[Any, Any]]) -> None:
    """Load each object's state dict; if one fails, all are as before, and its error is raised.

    Example:
        >>> one, other = (torch.optim.SGD([torch.zeros(n)], lr=0.1) for n in (1, 2))
        >>> bad = {"state": {}, "param_groups": []}
        >>> saved = torch.optim.SGD([torch.zeros(1)], lr=0.7).state_dict()
        >>> try:
        ...     load_together([(one, saved), (other, bad)])
        ... except ValueError:
        ...     one.param_groups[0]["lr"]
        0.1
    """
    before: list[tuple[Any, Any]] = []
    try:
        for part, state in parts:
            before.append((part, copy.deepcopy(part.state_dict())))
            part.load_state_dict(state)
    except BaseException:  # Ctrl-C, too, leaves nothing half-loaded
        for part, state in before:
            part.load_state_dict(state)
        raise


def checksum(tensors: Iterable[Tensor]) -> int:
    """A number that tells tensors apart that differ in any bit (about one difference in 2⁶⁴ is missed).

    The sum modulo 2⁶⁴, over all entries, of a mixture of their bits and their place (the mixer of splitmix64, but for
    its shifts, which are arithmetic here), the same on every device.

    Example:
        >>> checksum([torch.zeros(3)]) == checksum([torch.zeros(3)])
        True
        >>> checksum([torch.zeros(3)]) == checksum([torch.tensor([0.0, 1e-45, 0.0])])
        False
        >>> checksum([torch.tensor([1.0, 2.0])]) == checksum([torch.tensor([2.0, 1.0])])
        False
    """
    total = entries = 0
    for t in tensors:
        bits = t.detach().contiguous().reshape(-1).view(INTEGERS[t.element_size()])
        for part in torch.split(bits, PIECE):
            place = torch.arange(entries + 1, entries + 1 + part.numel(), device=t.device)
            x = part.to(torch.int64) + place * 0x1E3779B97F4A7C15
            x = (x ^ (x >> 30)) * 0x3F58476D1CE4E5B9
            x = (x ^ (x >> 27)) * 0x14D049BB133111EB
            total += int((x ^ (x >> 31)).sum())
            entries += part.numel()
    return total & (2**64 - 1)
