"""Adafactor: a second moment in rows and columns."""

from __future__ import annotations

from typing import Any, ClassVar

from typing_extensions import Unpack

from hasten.checks import optional_number, unpacked
from hasten.engine import EngineOptions, Optimizer
from hasten.iterates import Plain
from hasten.transforms import FactoredSecondMoment, RelativeStep, WeightDecay
from hasten.words import NONNEGATIVE, Value


class Adafactor(Optimizer):
    """Adafactor, as torch's: a factored second moment, clipped updates, steps relative to the parameter.

    State of an n × m matrix: n + m numbers. No momentum. `eps` is (ε₁, ε₂); ε₁ None means the machine precision.
    `d` is the largest root mean square of an update.

    Example:
        >>> import torch, hasten
        >>> opt = hasten.Adafactor(torch.nn.Linear(4, 2).parameters(), lr=1e-2)
    """

    source: ClassVar[str] = "Shazeer & Stern 2018, arXiv:1804.04235; conventions of torch.optim.Adafactor"

    def __init__(
        self,
        params: Any,
        lr: Value = 1e-2,
        beta2_decay: Value = -0.8,
        eps: tuple[float | None, Value] = (None, 1e-3),
        d: Value = 1.0,
        weight_decay: Value = 0.0,
        **engine: Unpack[EngineOptions],
    ) -> None:
        eps1, eps2 = unpacked(self, "eps", eps, 2)
        geometry = FactoredSecondMoment(
            beta2_decay, d, optional_number(self, "eps[0]", eps1, NONNEGATIVE)
        ).rename(clip="d")
        step = RelativeStep(lr, eps2)
        # The decay is relative to lr, not to the relative step, so it follows it.
        super().__init__(params, geometry, step, WeightDecay(weight_decay), iterate=Plain(lr), **engine)
