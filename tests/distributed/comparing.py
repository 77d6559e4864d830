"""What workers' results are compared by."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def same(one: Any, other: Any) -> bool:
    """Equal to the bit, through dicts and lists."""
    if isinstance(one, Tensor):
        return isinstance(other, Tensor) and torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[k], other[k]) for k in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


def refusal(kind: type[Exception], action: Callable[[], Any]) -> str:
    """What an action that must be refused says."""
    try:
        action()
    except kind as error:
        return str(error)
    raise AssertionError(f"not refused with {kind.__name__}")
