"""Bounds as SciPy writes them, or as two tensors."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from hasten.solvers.structure import Structure
from hasten.solvers.terms import Box


def read_bounds(bounds: Any, structure: Structure, x0: Tensor) -> Box:
    """The box over flat vectors, from SciPy's ``Bounds``, a sequence of (low, high), or a pair of tensors."""
    if hasattr(bounds, "lb") and hasattr(bounds, "ub"):
        low, high = _side(bounds.lb, -math.inf, structure, x0), _side(bounds.ub, math.inf, structure, x0)
    elif _is_pair_of_sides(bounds):
        low, high = _side(bounds[0], -math.inf, structure, x0), _side(bounds[1], math.inf, structure, x0)
    else:
        low, high = _from_pairs(bounds, structure, x0)
    if bool((low > high).any()) or bool(low.isnan().any()) or bool(high.isnan().any()):
        raise ValueError("minimize: bounds are not allowed to be nan, or to have a low above its high")
    return Box(low, high)


def _is_pair_of_sides(bounds: Any) -> bool:
    return (
        isinstance(bounds, tuple)
        and len(bounds) == 2
        and any(isinstance(leaf, Tensor) for leaf in pytree.tree_leaves(list(bounds)))
    )


def _side(side: Any, missing: float, structure: Structure, x0: Tensor) -> Tensor:
    """One side: None, a number, a structure like x0, or an array that broadcasts to a single tensor."""
    if side is None:
        return torch.full_like(x0, missing)
    if not any(isinstance(leaf, Tensor) for leaf in pytree.tree_leaves(side)):
        side = torch.as_tensor(side, dtype=torch.float64)
    if isinstance(side, Tensor):
        if side.ndim and len(structure.shapes) > 1:
            raise ValueError("minimize: bounds must be numbers, or have the structure of x0")
        shape = structure.shapes[0] if len(structure.shapes) == 1 else x0.shape
        try:
            return side.to(x0).broadcast_to(shape).reshape(x0.shape).clone()
        except RuntimeError:
            raise ValueError(
                f"minimize: bounds of shape {tuple(side.shape)} do not broadcast to x0's shape {tuple(shape)}"
            ) from None
    return structure.read(side, "the bound").to(x0).clone()


def _from_pairs(bounds: Any, structure: Structure, x0: Tensor) -> tuple[Tensor, Tensor]:
    problem = ValueError(
        "minimize: bounds must be scipy.optimize.Bounds, a sequence of (low, high) with None for no bound, "
        "one for each entry of x0, or a pair of tensors"
    )
    try:
        pairs = [(low, high) for low, high in bounds]
    except (TypeError, ValueError):
        raise problem from None
    if len(structure.shapes) > 1 or len(pairs) != x0.shape[-1]:
        raise ValueError(f"{problem}; x0 has {x0.shape[-1]} entries, found {len(pairs)} pairs")
    low = [-math.inf if low is None else float(low) for low, _ in pairs]
    high = [math.inf if high is None else float(high) for _, high in pairs]
    return (
        torch.tensor(low, dtype=torch.float64).to(x0).broadcast_to(x0.shape).clone(),
        torch.tensor(high, dtype=torch.float64).to(x0).broadcast_to(x0.shape).clone(),
    )
