"""The plain iterate: the parameter moves against the direction."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from hasten.numbers import Names, Number
from hasten.words import NONNEGATIVE, Entry, Iterate, Value, hyper


@dataclass(frozen=True)
class Plain(Iterate):
    """Move against the direction."""

    lr: Value = hyper(1e-3, NONNEGATIVE, "learning rate")
    formula: ClassVar[str] = "y ← y − lr · u"

    def numbers(self, h: Names, k: Number, c: Names) -> dict[str, Number]:
        """The learning rate."""
        return {"lr": h.lr}

    def move(self, d: Entry, s: Any, n: Any) -> Entry:
        """The moved parameter."""
        return s.param - n.lr * d

    def move_decayed(self, d: Entry, decay: Entry, s: Any, n: Any) -> Entry:
        """The shrunken parameter, moved: in this order of rounding the trajectory is torch's."""
        return (1 - n.lr * decay) * s.param - n.lr * d
