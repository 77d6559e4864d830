"""AdEMAMix and its simplification: Adam with a long memory."""

from __future__ import annotations

from typing import Any, ClassVar

from typing_extensions import Unpack

from hasten.checks import flag, is_zero, number, unpacked
from hasten.engine import EngineOptions, Optimizer
from hasten.schedules import ademamix_alpha, half_life
from hasten.transforms import Accumulation, SecondMoment, TwoMomenta
from hasten.words import NONNEGATIVE, POSITIVE, UNIT, Value


def _steps(owner: Optimizer, name: str, value: int) -> int:
    return int(number(owner, name, value, POSITIVE))


class AdEMAMix(Optimizer):
    """Adam with a second, slow average of gradients.

    alpha 4 to 10, beta3 0.999 (short runs) to 0.9999, both warmed up over all steps of the run (`alpha_warmup`,
    `beta3_warmup`); lr as AdamW's. With ``betas[0] = 0`` the fast buffer is dropped. The slow average has no bias
    correction. The default alpha is that of the authors' PyTorch code; their optax code has 5.

    Example:
        >>> import torch, hasten
        >>> w = [torch.ones(3, requires_grad=True)]
        >>> opt = hasten.AdEMAMix(w, alpha=8.0, alpha_warmup=1000, beta3_warmup=1000)
    """

    source: ClassVar[str] = "Pagliardini, Ablin & Grangier 2024, arXiv:2409.03137"

    def __init__(
        self,
        params: Any,
        lr: Value = 1e-3,
        betas: tuple[Value, Value, Value] = (0.9, 0.999, 0.9999),
        alpha: Value = 2.0,
        eps: Value = 1e-8,
        weight_decay: Value = 0.0,
        alpha_warmup: int | None = None,
        beta3_warmup: int | None = None,
        **engine: Unpack[EngineOptions],
    ) -> None:
        beta1, beta2, beta3 = unpacked(self, "betas", betas, 3)
        if alpha_warmup is not None:
            alpha = ademamix_alpha(
                number(self, "alpha", alpha, NONNEGATIVE), _steps(self, "alpha_warmup", alpha_warmup)
            )
        if beta3_warmup is not None:
            steps = _steps(self, "beta3_warmup", beta3_warmup)
            beta3 = half_life(
                number(self, "betas[0]", beta1, UNIT), number(self, "betas[2]", beta3, UNIT), steps
            )
        momenta = TwoMomenta(beta1, beta3, alpha, fast=not is_zero(beta1))
        super().__init__(
            params, momenta, SecondMoment(beta2, eps), lr=lr, weight_decay=weight_decay, **engine
        )


class SimplifiedAdEMAMix(Optimizer):
    """AdEMAMix with one buffer fewer: an undamped sum of gradients, plus α times the gradient.

    lr is Adam's times √((1−min_beta1)(1−β₁)), so `weight_decay` must be rescaled too; β₁ in {0.95, 0.99, 0.999},
    smaller for larger batches; `beta1_warmup` the whole run. α is about the noise-to-signal ratio of the gradient:
    large for small batches, towards 1/β₁ (Nesterov) for large ones.

    Example:
        >>> import torch, hasten
        >>> opt = hasten.SimplifiedAdEMAMix([torch.ones(3, requires_grad=True)], alpha=10.0)
    """

    source: ClassVar[str] = "Morwani, Vyas, Zhang & Kakade 2025, arXiv:2502.02431"

    def __init__(
        self,
        params: Any,
        lr: Value = 1e-4,
        betas: tuple[Value, Value] = (0.99, 0.95),
        alpha: Value = 0.0,
        eps: Value = 1e-8,
        weight_decay: Value = 0.0,
        beta1_warmup: int | None = None,
        min_beta1: float = 0.9,
        bias_correction1: bool = False,
        bias_correction2: bool = True,
        **engine: Unpack[EngineOptions],
    ) -> None:
        beta1, beta2 = unpacked(self, "betas", betas, 2)
        lowest = number(self, "min_beta1", min_beta1, UNIT)
        if beta1_warmup is not None:
            steps = _steps(self, "beta1_warmup", beta1_warmup)
            beta1 = half_life(lowest, number(self, "betas[0]", beta1, UNIT), steps)
        momentum = Accumulation(beta1, alpha, debias=flag(self, "bias_correction1", bias_correction1))
        geometry = SecondMoment(beta2, eps, debias=flag(self, "bias_correction2", bias_correction2))
        super().__init__(params, momentum, geometry, lr=lr, weight_decay=weight_decay, **engine)
