"""Schedule-Free optimizers: no learning-rate schedule, no horizon."""

from __future__ import annotations

from typing import Any, ClassVar

from typing_extensions import Unpack

from hasten.checks import optional_number, unpacked
from hasten.engine import EngineOptions, Optimizer
from hasten.iterates import ScheduleFree
from hasten.transforms import SecondMoment, WeightDecay
from hasten.words import POSITIVE, Value


class ScheduleFreeSGD(Optimizer):
    """Schedule-Free SGD: train at y, evaluate at x (``with opt.evaluating(): ...``).

    lr 10 to 50 times SGD's, always with warm-up, never with a decaying schedule; momentum 0.95 to 0.98 for long runs.
    `refined` decouples the averaging width from momentum (advice: 50 or 200). Recompute batch-norm statistics at x
    before evaluating.

    Example:
        >>> import torch, hasten
        >>> w = torch.ones(3, requires_grad=True)
        >>> opt = hasten.ScheduleFreeSGD([w], lr=1.0, warmup_steps=100)
        >>> (w**2).sum().backward()
        >>> opt.step()
        >>> with opt.evaluating():
        ...     loss = (w**2).sum()
    """

    source: ClassVar[str] = "Defazio et al. 2024, arXiv:2405.15682"

    def __init__(
        self,
        params: Any,
        lr: Value = 1.0,
        momentum: Value = 0.9,
        weight_decay: Value = 0.0,
        warmup_steps: Value = 0,
        r: Value = 0.0,
        weight_lr_power: Value = 2.0,
        refined: float | None = None,
        **engine: Unpack[EngineOptions],
    ) -> None:
        iterate = ScheduleFree(
            lr,
            momentum,
            warmup_steps,
            r,
            weight_lr_power,
            optional_number(self, "refined", refined, POSITIVE),
        )
        super().__init__(params, WeightDecay(weight_decay), iterate=iterate, **engine)


class ScheduleFreeAdamW(Optimizer):
    """Schedule-Free AdamW: train at y, evaluate at x (``with opt.evaluating(): ...``).

    lr 1 to 10 times AdamW's, always with warm-up. ``betas[0]`` is the interpolation of Schedule-Free, not a momentum.
    Weight decay is evaluated at y and enters y and z.

    Example:
        >>> import torch, hasten
        >>> opt = hasten.ScheduleFreeAdamW([torch.ones(3, requires_grad=True)], warmup_steps=100)
    """

    source: ClassVar[str] = "Defazio et al. 2024, arXiv:2405.15682"

    def __init__(
        self,
        params: Any,
        lr: Value = 2.5e-3,
        betas: tuple[Value, Value] = (0.9, 0.999),
        eps: Value = 1e-8,
        weight_decay: Value = 0.0,
        warmup_steps: Value = 0,
        r: Value = 0.0,
        weight_lr_power: Value = 2.0,
        refined: float | None = None,
        **engine: Unpack[EngineOptions],
    ) -> None:
        beta1, beta2 = unpacked(self, "betas", betas, 2)
        iterate = ScheduleFree(
            lr, beta1, warmup_steps, r, weight_lr_power, optional_number(self, "refined", refined, POSITIVE)
        ).rename(momentum="beta1")
        super().__init__(
            params, SecondMoment(beta2, eps), WeightDecay(weight_decay), iterate=iterate, **engine
        )
