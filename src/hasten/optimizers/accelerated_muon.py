"""Accelerated dynamics in Muon's geometry: points of the design space with a name of their own.

In all of them the scale is Moonlight's: learning rates and decay are AdamW's, one for matrices and the rest alike.
"""

from __future__ import annotations

from typing import Any, ClassVar

from typing_extensions import Unpack

from hasten.checks import unpacked
from hasten.engine import EngineOptions, Optimizer, Sentence
from hasten.iterates import Plain, ScheduleFree
from hasten.optimizers.adam import adamw_sentence
from hasten.oracles import Backpropagation, Mars
from hasten.transforms import EMA, ClipTensorNorm, Orthogonalize, SecondMoment, TwoMomenta, WeightDecay
from hasten.words import Value


class ScheduleFreeMuon(Optimizer):
    """Muon without a schedule and without a momentum buffer: orthogonalised gradients, averaged by Schedule-Free.

    Gradients are taken at y, between the average x and the point z that moves; train at y, evaluate at x (``with
    opt.evaluating(): ...``). `momentum` is that interpolation. All other parameters move by Schedule-Free AdamW.

    Example:
        >>> import torch, hasten
        >>> model = torch.nn.Linear(8, 4)
        >>> opt = hasten.ScheduleFreeMuon(model, lr=4e-3, warmup_steps=100)
        >>> print(opt.sentence)
        Backpropagation → Orthogonalize → WeightDecay → ScheduleFree
    """

    source: ClassVar[str] = "Defazio et al. 2024, arXiv:2405.15682, with the geometry of Jordan et al. 2024"

    def __init__(
        self,
        params: Any,
        lr: Value = 2.5e-3,
        momentum: Value = 0.9,
        weight_decay: Value = 0.0,
        warmup_steps: Value = 0,
        backend: str = "polar_express",
        fallback_beta2: Value = 0.95,
        fallback_eps: Value = 1e-8,
        **engine: Unpack[EngineOptions],
    ) -> None:
        iterate, decay = ScheduleFree(lr, momentum, warmup_steps), WeightDecay(weight_decay)
        adam = SecondMoment(fallback_beta2, fallback_eps)
        super().__init__(
            params,
            Orthogonalize(backend, scale="match_rms_adamw"),
            decay,
            iterate=iterate,
            vectors=Sentence(Backpropagation(), (adam, decay), iterate),
            **engine,
        )


class AdEMAMixMuon(Optimizer):
    """Muon with AdEMAMix's two momenta, a fast and a slow average of gradients, orthogonalised together.

    `alpha` is the weight of the slow one. All other parameters move by AdEMAMix with the same averages.

    Example:
        >>> import torch, hasten
        >>> opt = hasten.AdEMAMixMuon(torch.nn.Linear(8, 4), lr=4e-3)
        >>> print(opt.sentence)
        Backpropagation → TwoMomenta → Orthogonalize → WeightDecay → Plain
    """

    source: ClassVar[str] = (
        "Pagliardini, Ablin & Grangier 2024, arXiv:2409.03137, with the geometry of Jordan et al. 2024"
    )

    def __init__(
        self,
        params: Any,
        lr: Value = 1e-3,
        betas: tuple[Value, Value] = (0.95, 0.999),
        alpha: Value = 2.0,
        weight_decay: Value = 0.1,
        backend: str = "polar_express",
        fallback_beta2: Value = 0.95,
        fallback_eps: Value = 1e-8,
        **engine: Unpack[EngineOptions],
    ) -> None:
        fast, slow = unpacked(self, "betas", betas, 2)
        momenta = TwoMomenta(fast, slow, alpha).rename(beta3="beta2")
        adam = SecondMoment(fallback_beta2, fallback_eps).rename(beta2="fallback_beta2")
        super().__init__(
            params,
            momenta,
            Orthogonalize(backend, scale="match_rms_adamw"),
            lr=lr,
            weight_decay=weight_decay,
            vectors=Sentence(Backpropagation(), (momenta, adam, WeightDecay(weight_decay)), Plain(lr)),
            **engine,
        )


class MARSMuon(Optimizer):
    """Muon on MARS's gradient, which is corrected by γ β₁/(1−β₁) of its change since the last step.

    The clipped correction, an average of it, orthogonalised. All other parameters move by AdamW on plain gradients.

    Example:
        >>> import torch, hasten
        >>> opt = hasten.MARSMuon(torch.nn.Linear(8, 4), lr=4e-3)
        >>> print(opt.sentence)
        Mars → ClipTensorNorm → EMA → Orthogonalize → WeightDecay → Plain
    """

    source: ClassVar[str] = "Yuan et al. 2024, arXiv:2411.10438, with the geometry of Jordan et al. 2024"

    def __init__(
        self,
        params: Any,
        lr: Value = 1e-3,
        momentum: Value = 0.95,
        gamma: Value = 0.025,
        weight_decay: Value = 0.1,
        backend: str = "polar_express",
        fallback_betas: tuple[Value, Value] = (0.9, 0.95),
        fallback_eps: Value = 1e-8,
        **engine: Unpack[EngineOptions],
    ) -> None:
        super().__init__(
            params,
            ClipTensorNorm(1.0),
            EMA(momentum, debias=False).rename(beta1="momentum"),
            Orthogonalize(backend, scale="match_rms_adamw"),
            oracle=Mars(gamma, momentum).rename(beta1="momentum"),
            lr=lr,
            weight_decay=weight_decay,
            vectors=adamw_sentence(lr, fallback_betas, fallback_eps, weight_decay, owner=self),
            **engine,
        )
