"""What the functions of symmetric matrices share: checks, symmetric parts, eigenvalues that do not raise."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor
from typing_extensions import ParamSpec

from hasten.words import Interval

Inputs = ParamSpec("Inputs")
Output = TypeVar("Output")
_DidNotConverge: type[Exception] = torch.linalg.LinAlgError  # type: ignore[attr-defined]


def check_matrices(owner: str, a: Any) -> None:
    """Raise ValueError unless `a` is a tensor of square matrices [..., n, n] in float32 or float64."""
    if not isinstance(a, Tensor):
        raise ValueError(f"{owner}: a must be a tensor, not {type(a).__name__}")
    if a.ndim < 2 or a.shape[-1] != a.shape[-2]:
        raise ValueError(
            f"{owner}: a of shape {tuple(a.shape)} is not allowed; it must hold square matrices [..., n, n]"
        )
    if a.dtype not in (torch.float32, torch.float64):
        raise ValueError(
            f"{owner}: a of {a.dtype} is not allowed; it must be in torch.float32 or torch.float64"
        )


def check_number(owner: str, name: str, value: Any, allowed: Interval) -> None:
    """Raise ValueError unless `value` is a plain number in the interval."""
    if isinstance(value, bool) or not isinstance(value, int | float) or value not in allowed:
        raise ValueError(f"{owner}: {name} = {value!r} is not allowed; it must be a number in {allowed}")


def in_full_precision(f: Callable[Inputs, Output]) -> Callable[Inputs, Output]:
    """The function with products of matrices in their own dtype, also where autocast is on.

    Example:
        >>> import torch
        >>> with torch.autocast("cpu", torch.bfloat16):
        ...     in_full_precision(torch.matmul)(torch.eye(2), torch.eye(2)).dtype
        torch.float32
    """

    @functools.wraps(f)
    def wrapped(*args: Inputs.args, **kwargs: Inputs.kwargs) -> Output:
        device = next((x.device.type for x in args if isinstance(x, Tensor)), "cpu")
        with torch.autocast(device, enabled=False):
            return f(*args, **kwargs)

    return wrapped


def symmetric(a: Tensor) -> Tensor:
    """The symmetric part (A + Aᵀ)/2, [..., n, n]."""
    return (a + a.mT) / 2


def identity(a: Tensor) -> Tensor:
    """I of the size, dtype and device of the matrices, [n, n]."""
    return torch.eye(a.shape[-1], dtype=a.dtype, device=a.device)


def largest_entry(a: Tensor) -> Tensor:
    """max |a_ij| of every matrix, or the least positive number where that is 0, [..., 1, 1]."""
    if not a.numel():
        return a.new_ones(*a.shape[:-2], 1, 1)
    return a.abs().amax((-2, -1), keepdim=True).clamp(min=torch.finfo(a.dtype).tiny)


def finite(a: Tensor) -> Tensor:
    """Which matrices [..., n, n] hold finite numbers only, [..., 1, 1]."""
    return a.isfinite().all(-1, keepdim=True).all(-2, keepdim=True)


def eigh(a: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues in ascending order [..., n] and orthonormal eigenvectors [..., n, n].

    Where the decomposition fails for one matrix of a stack, the eigenvalues of that matrix are NaN, and the others'
    are found all the same.

    Example:
        >>> import torch
        >>> values, vectors = eigh(torch.stack([torch.eye(2), torch.full((2, 2), torch.nan)]))
        >>> values
        tensor([[1., 1.],
                [nan, nan]])
    """
    usable = finite(a)
    a = torch.where(usable, a, identity(a))
    try:
        values, vectors = torch.linalg.eigh(a)
    except _DidNotConverge:
        values, vectors = _one_by_one(a)
    return torch.where(usable.squeeze(-1), values, torch.nan), vectors


def _one_by_one(a: Tensor) -> tuple[Tensor, Tensor]:
    n = a.shape[-1]
    values, vectors = (
        a.new_full((a.shape[:-2].numel(), n), torch.nan),
        identity(a).repeat(*a.shape[:-2], 1, 1),
    )
    flat = vectors.view(-1, n, n)
    for i, matrix in enumerate(a.reshape(-1, n, n)):
        with contextlib.suppress(_DidNotConverge):
            values[i], flat[i] = torch.linalg.eigh(matrix)
    return values.view(a.shape[:-1]), vectors
