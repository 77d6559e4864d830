"""Functions of matrices, for stacks of them, differentiable.

| function | of matrices | |
|---|---|---|
| `polar` | any [..., m, n] | the orthogonal polar factor U Vᵀ, exactly or by an iteration |
| `sqrtm`, `inv_sqrtm` | symmetric positive definite [..., n, n] | A^(1/2), A^(-1/2), for layers that whiten or pool |
| `inv_root` | the same | A^(-1/p) with eigenvalues lifted, for preconditioners |

    from hasten.linalg import inv_root, inv_sqrtm, polar, sqrtm
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from hasten.linalg.inverse_root import inv_root
from hasten.linalg.polar import polar

if TYPE_CHECKING:
    from hasten.linalg.square_root import inv_sqrtm, sqrtm

__all__ = ["inv_root", "inv_sqrtm", "polar", "sqrtm"]

_LATER = ("inv_sqrtm", "sqrtm")
"""Optimizers do not need square roots: they are imported when they are first asked for."""


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module 'hasten.linalg' has no attribute {name!r}")
    return getattr(importlib.import_module("hasten.linalg.square_root"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_LATER})
