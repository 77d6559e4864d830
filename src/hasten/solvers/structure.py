"""Nested structures of tensors, seen as one flat vector (or, batched, as one flat vector a problem)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree


@dataclass(frozen=True)
class Structure:
    """How a flat vector ``(d,)`` or ``(B, d)`` is cut into the user's tensors."""

    spec: Any
    shapes: tuple[torch.Size, ...]
    batch: tuple[int, ...]

    @classmethod
    def of(cls, x0: Any, batched: bool) -> tuple[Structure, Tensor]:
        """The structure of `x0` and a flat copy of it; errors name what is wrong."""
        leaves, spec = pytree.tree_flatten(x0)
        if not leaves:
            raise ValueError("minimize: x0 is empty; it must hold at least one number")
        for leaf in leaves:
            _check_leaf(leaf, batched)
        kinds = {(leaf.dtype, leaf.device) for leaf in leaves}
        if len(kinds) > 1:
            found = ", ".join(sorted(f"{dtype} on {device}" for dtype, device in kinds))
            raise ValueError(f"minimize: the tensors of x0 must share one dtype and device; found {found}")
        sizes = {leaf.shape[0] for leaf in leaves} if batched else set()
        if len(sizes) > 1:
            raise ValueError(
                f"minimize: with batched=True the tensors of x0 must have the same first dimension, "
                f"the number of problems; found {sorted(sizes)}"
            )
        structure = cls(spec, tuple(leaf.shape for leaf in leaves), tuple(sizes))
        flat = structure.flatten(leaves)
        if flat.numel() == 0:
            raise ValueError("minimize: x0 is empty; it must hold at least one number")
        return structure, flat.clone()

    def flatten(self, leaves: list[Tensor]) -> Tensor:
        """One flat vector from the tensors."""
        flat = [leaf.detach().reshape(*self.batch, -1) for leaf in leaves]
        return flat[0] if len(flat) == 1 else torch.cat(flat, -1)

    def leaves(self, flat: Tensor) -> list[Tensor]:
        """The tensors, as views of the flat vector."""
        if len(self.shapes) == 1:
            return [flat.view(self.shapes[0])]
        sizes = [shape.numel() // (self.batch[0] if self.batch else 1) for shape in self.shapes]
        return [
            part.reshape(shape) for part, shape in zip(torch.split(flat, sizes, -1), self.shapes, strict=True)
        ]

    def restore(self, leaves: list[Tensor]) -> Any:
        """The tensors in the user's structure."""
        if self.spec.is_leaf():
            return leaves[0]
        return pytree.tree_unflatten(leaves, self.spec)

    def copy(self, flat: Tensor) -> Any:
        """A copy of the flat vector in the user's structure."""
        return self.restore([leaf.clone() for leaf in self.leaves(flat.detach())])

    def read(self, value: Any, name: str) -> Tensor:
        """The flat vector of a structure that must match `x0`, such as a gradient or a bound."""
        if isinstance(value, Tensor) and self.spec.is_leaf() and value.shape == self.shapes[0]:
            return self.flatten([value])
        leaves, _ = pytree.tree_flatten(value)
        shapes = tuple(leaf.shape if isinstance(leaf, Tensor) else type(leaf).__name__ for leaf in leaves)
        if shapes != self.shapes:
            raise ValueError(
                f"minimize: {name} has shapes {_listed(shapes)}; it must match x0: {_listed(self.shapes)}"
            )
        return self.flatten(leaves)


def _check_leaf(leaf: Any, batched: bool) -> None:
    if not isinstance(leaf, Tensor):
        raise TypeError(
            f"minimize: x0 holds a {type(leaf).__name__}; it must be a tensor or a nested structure of tensors "
            "(torch.as_tensor converts; for NumPy functions see hasten.scipy_method)"
        )
    if leaf.is_complex():
        raise TypeError(
            "minimize: x0 is complex; minimise over its real and imaginary parts (torch.view_as_real)"
        )
    if not leaf.is_floating_point():
        raise TypeError(f"minimize: x0 has dtype {leaf.dtype}; it must be floating point, e.g. x0.double()")
    if batched and leaf.ndim == 0:
        raise ValueError("minimize: with batched=True x0 must have a first dimension, the number of problems")


def _listed(shapes: tuple[Any, ...]) -> str:
    return ", ".join(str(tuple(s)) if isinstance(s, torch.Size) else s for s in shapes) or "nothing"
