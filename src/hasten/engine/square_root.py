"""The correctly rounded square root, which torch on a CPU does not always give.

Where torch is built with MKL, ``torch.sqrt`` of a CPU tensor is MKL's vector routine, which is one
unit in the last place off for about 0.7% of all arguments.  Compiled loops use the processor's
instruction, which IEEE 754 requires to be exact; so that the eager pass agrees with them bit for
bit, it takes the same root from NumPy, or corrects torch's where NumPy is not installed.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor


@lru_cache
def _numpy() -> Any:
    return importlib.import_module("numpy") if importlib.util.find_spec("numpy") else None


def sqrt(x: Tensor, *, out: Tensor | None = None) -> Tensor:
    """The correctly rounded square root of float32 or float64 ``x``, into ``out`` if given.

    Example:
        >>> sqrt(torch.tensor([2.0, 4.0]))
        tensor([1.4142, 2.0000])
    """
    if out is None:
        out = torch.empty_like(x)
    mkl_is_available: Callable[[], bool] = torch.backends.mkl.is_available
    if x.device.type != "cpu" or not mkl_is_available():
        return torch.sqrt(x, out=out)
    numpy = _numpy()
    if numpy is not None:
        with numpy.errstate(invalid="ignore"):
            numpy.sqrt(x.detach().numpy(), out=out.detach().numpy())
        return out
    # A float64 root, even one unit off, is too close to the true one to round to another float32.
    return out.copy_(torch.sqrt(x.double()) if x.dtype is torch.float32 else _corrected(x))


def _corrected(x: Tensor) -> Tensor:
    """One Newton step from torch's float64 root, with a residual exact by Dekker's product."""
    tiny = (x < 2.0**-900).to(x)  # scaled by 2^200, so that the residual is a normal number
    x = x * (1.0 - tiny + tiny * 2.0**200)
    root = torch.sqrt(x)
    big = root * (2.0**27 + 1)
    high = big - (big - root)
    low = root - high
    square = root * root
    error = ((high * high - square) + 2.0 * high * low) + low * low
    better = root + ((x - square) - error) / (2.0 * root)
    return torch.where(torch.isfinite(better), better, root) / (1.0 - tiny + tiny * 2.0**100)
