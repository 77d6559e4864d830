"""Adafactor: a second moment in rows and columns."""

from __future__ import annotations

from typing import Any, ClassVar

from typing_extensions import Unpack

from hasten.engine import EngineOptions, Optimizer
from hasten.iterates import Plain
from hasten.transforms import FactoredSecondMoment, RelativeStep, WeightDecay
from hasten.words import Value


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
        if not isinstance(eps, tuple | list) or len(eps) != 2 or (eps[0] is not None and not eps[0] >= 0):
            raise ValueError(f"Adafactor: eps = {eps!r} is not allowed; it must be two numbers ≥ 0, the first may be None")
        geometry = FactoredSecondMoment(beta2_decay, d, eps1=eps[0]).rename(clip="d")
        step = RelativeStep(lr, eps[1])
        # The decay is relative to lr, not to the relative step, so it follows it.
        super().__init__(params, geometry, step, WeightDecay(weight_decay), iterate=Plain(lr), **engine)
