"""Prodigy: Adam without a learning rate."""

from __future__ import annotations

import math
from typing import Any, ClassVar

from typing_extensions import Unpack

from hasten.checks import flag, unpacked
from hasten.engine import EngineOptions, Optimizer
from hasten.iterates import DistanceEstimate
from hasten.words import Value


class Prodigy(Optimizer):
    """Adam that estimates its own step length. Leave lr at 1; a cosine schedule on lr is fine.

    ``opt.param_groups[0]["d"]`` is the estimate. It only grows, and it grows slowly if the first steps are short: use
    `safeguard_warmup` with a warm-up of lr. Weight decay is decoupled.

    Example:
        >>> import torch, hasten
        >>> opt = hasten.Prodigy([torch.ones(3, requires_grad=True)])
        >>> opt.param_groups[0]["d"]
        0.0
    """

    source: ClassVar[str] = "Mishchenko & Defazio 2023, arXiv:2306.06101"

    def __init__(
        self,
        params: Any,
        lr: Value = 1.0,
        betas: tuple[Value, Value] = (0.9, 0.999),
        eps: Value = 1e-8,
        weight_decay: Value = 0.0,
        d0: Value = 1e-6,
        d_coef: Value = 1.0,
        growth_rate: Value = math.inf,
        use_bias_correction: bool = False,
        safeguard_warmup: bool = False,
        **engine: Unpack[EngineOptions],
    ) -> None:
        beta1, beta2 = unpacked(self, "betas", betas, 2)
        iterate = DistanceEstimate(
            lr,
            beta1,
            beta2,
            eps,
            weight_decay,
            d0,
            d_coef,
            growth_rate,
            use_bias_correction=flag(self, "use_bias_correction", use_bias_correction),
            safeguard_warmup=flag(self, "safeguard_warmup", safeguard_warmup),
        )
        super().__init__(params, iterate=iterate, **engine)
