"""The user's function as methods see it: values and gradients of flat vectors, counted."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from hasten.numbers import Number
from hasten.solvers.space import Mask, Single, Space, Stack, isfinite
from hasten.solvers.structure import Structure
from hasten.solvers.terms import Term


class Objective:
    """``F(x) = f(x) + h(x)``: f by the user's function, h by a term that a method handles through its prox.

    Attributes:
        space: the operations on vectors and numbers for one problem or for a stack.
        structure: how flat vectors are cut into the user's tensors.
        term: h, or None.
        counts: evaluations so far, by name; a stack counts for each problem, while it is running.
        running: the problems that have not ended; the driver keeps it.
    """

    def __init__(
        self,
        fun: Callable[..., Any],
        structure: Structure,
        like: Tensor,
        *,
        jac: Callable[..., Any] | bool | None = None,
        args: tuple[Any, ...] = (),
        term: Term | None = None,
    ) -> None:
        self.space: Space = Stack(like) if structure.batch else Single(like)
        self.structure = structure
        self.term = term
        self.jac = jac
        self._fun = fun
        self._args = args
        self.running: Mask = self.space.number(1.0) > 0
        self.counts: dict[str, Number] = {
            name: self.space.number(0) for name in ("nfev", "njev", "nhev", "nproj")
        }

    def count(self, name: str, times: int = 1) -> None:
        """Add evaluations to ``"nfev"``, ``"njev"``, ``"nhev"`` or ``"nproj"``."""
        self.counts[name] = self.counts[name] + times * self.running

    def function(self, x: Tensor) -> Tensor:
        """f at a flat vector as a differentiable tensor, ``()`` or ``(B,)``; not counted."""
        value = self._fun(self.structure.restore(self.structure.leaves(x)), *self._args)
        return self._checked(value[0] if self.jac is True else value)

    def value(self, x: Tensor) -> Number:
        """f at a flat vector."""
        with torch.no_grad():
            value = self.function(x.clone())  # fun may change its argument
        self.count("nfev")
        return self._as_number(value)

    def value_and_gradient(self, x: Tensor) -> tuple[Number, Tensor]:
        """f and its gradient at a flat vector. A gradient that is not finite makes the value nan."""
        self.count("nfev")
        self.count("njev")
        value, gradient = self._differentiated(x) if self.jac is None else self._given(x)
        return value, gradient

    def whole(self, smooth: Number, x: Tensor) -> Number:
        """F = f + h, from f at `x`."""
        return smooth if self.term is None else smooth + self.term.value(x, self.space)

    def _differentiated(self, x: Tensor) -> tuple[Number, Tensor]:
        leaves = [leaf.detach().requires_grad_() for leaf in self.structure.leaves(x)]
        with torch.enable_grad():
            value = self._checked(self._fun(self.structure.restore(leaves), *self._args))
            if not value.requires_grad:
                raise ValueError(
                    "minimize: the value of fun does not depend on x through differentiable torch operations; "
                    "compute it from x without .item(), .detach() or NumPy, or pass jac="
                )
            grads = torch.autograd.grad(value.sum() if value.ndim else value, leaves, allow_unused=True)
        filled = [
            torch.zeros_like(leaf) if grad is None else grad for grad, leaf in zip(grads, leaves, strict=True)
        ]
        return self._as_number(value.detach()), self.structure.flatten(filled)

    def _given(self, x: Tensor) -> tuple[Number, Tensor]:
        point = self.structure.copy(x)  # fun may change its argument
        with torch.no_grad():
            found = self._fun(point, *self._args)
            if callable(self.jac):
                value, gradient = found, self.jac(point, *self._args)
            elif isinstance(found, tuple | list) and len(found) == 2:
                value, gradient = found
            else:
                raise ValueError("minimize: with jac=True, fun must return the pair (value, gradient)")
        flat = self.structure.read(gradient, "the gradient")
        return self._as_number(self._checked(value)), flat.to(x)

    def _checked(self, value: Any) -> Tensor:
        found = value if isinstance(value, Tensor) else torch.as_tensor(value, dtype=torch.float64)
        if found.is_complex():
            raise ValueError("minimize: fun returned a complex number; it must be real")
        if self.space.batched:
            if found.shape != self.structure.batch:
                raise ValueError(
                    f"minimize: with batched=True fun must return a value for each of the {self.structure.batch[0]} "
                    f"problems, shape {self.structure.batch}; it returned shape {tuple(found.shape)}"
                )
            return found
        if found.numel() != 1:
            raise ValueError(
                f"minimize: fun must return a scalar; it returned shape {tuple(found.shape)} "
                "(a missing .sum(), or batched=True?)"
            )
        return found if found.ndim == 0 else found.reshape(())

    def _as_number(self, value: Tensor) -> Number:
        return value.detach().double() if self.space.batched else value.item()


def finite(value: Number, gradient_size: Number) -> Mask:
    """Whether a value and some norm of the gradient are both finite."""
    return isfinite(value) & isfinite(gradient_size)
