"""Sign descent: Lion and Signum."""

from __future__ import annotations

from typing import Any, ClassVar

from typing_extensions import Unpack

from hasten.checks import unpacked
from hasten.engine import EngineOptions, Optimizer
from hasten.transforms import EMA, Interpolation, Sign
from hasten.words import Value


class Lion(Optimizer):
    """Lion: the sign of a momentum that looks ahead of its own average.

    Learning rates are 3 to 10 times smaller than AdamW's, weight decay as many times larger; betas (0.95, 0.98) for
    stability.

    Example:
        >>> import torch, hasten
        >>> opt = hasten.Lion([torch.ones(3, requires_grad=True)], lr=1e-4, weight_decay=1.0)
    """

    source: ClassVar[str] = "Chen et al. 2023, arXiv:2302.06675"

    def __init__(
        self,
        params: Any,
        lr: Value = 1e-4,
        betas: tuple[Value, Value] = (0.9, 0.99),
        weight_decay: Value = 0.0,
        **engine: Unpack[EngineOptions],
    ) -> None:
        beta1, beta2 = unpacked(self, "betas", betas, 2)
        super().__init__(
            params, Interpolation(beta1, beta2), Sign(), lr=lr, weight_decay=weight_decay, **engine
        )


class Signum(Optimizer):
    """The sign of an average of gradients: Lion with equal betas.

    Example:
        >>> import torch, hasten
        >>> opt = hasten.Signum([torch.ones(3, requires_grad=True)], lr=1e-4)
    """

    source: ClassVar[str] = "Bernstein et al. 2018, arXiv:1802.04434"

    def __init__(
        self,
        params: Any,
        lr: Value = 1e-4,
        momentum: Value = 0.9,
        weight_decay: Value = 0.0,
        **engine: Unpack[EngineOptions],
    ) -> None:
        average = EMA(momentum, debias=False).rename(beta1="momentum")
        super().__init__(params, average, Sign(), lr=lr, weight_decay=weight_decay, **engine)
