"""Where a formula stands between two of its parts."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass
class Flow:
    """Where a formula stands between two parts.

    Attributes:
        direction: what the parts so far have made of the gradient.
        grad: the gradient as the parts to come see it.
        decay: the weight decay that the iterate shall apply.
        writes: new values by name.
        terms: to be summed, by name.
        asked: which of ``"param"`` and ``"grad"`` a part has read.
    """

    direction: Any
    grad: Any
    decay: Any = None
    writes: dict[str, Any] = field(default_factory=dict)
    terms: dict[str, Any] = field(default_factory=dict)
    asked: set[str] = field(default_factory=set)
