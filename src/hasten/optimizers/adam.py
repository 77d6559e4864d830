"""Adam and its relatives: momentum after, or before, a diagonal second moment."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from typing_extensions import Unpack

from hasten.checks import check_choice, flag, unpacked
from hasten.engine import EngineOptions, Optimizer, Sentence
from hasten.iterates import Plain
from hasten.oracles import Backpropagation
from hasten.transforms import (
    EMA,
    BoundedSecondMoment,
    Friction,
    InfinityNorm,
    NesterovMoment,
    QuasiHyperbolic,
    QuasiHyperbolicSecondMoment,
    RectifiedSecondMoment,
    SecondMoment,
    WeightDecay,
)
from hasten.words import Step, Transform, Value


def _decayed(transforms: list[Transform], weight_decay: Value, decoupled: bool) -> list[Transform]:
    """Weight decay as part of the step (last) or as an L2 penalty (first)."""
    decay: Step = WeightDecay(weight_decay)
    return [*transforms, decay] if decoupled else [decay, *transforms]


def adamw_sentence(
    lr: Value, betas: tuple[Value, Value], eps: Value, weight_decay: Value, *, owner: object = None
) -> Sentence:
    """AdamW as a sentence: for the parameters that an optimizer which works on matrices leaves to it.

    Example:
        >>> from hasten.optimizers.adam import adamw_sentence
        >>> print(adamw_sentence(3e-4, (0.9, 0.95), 1e-8, 0.1))
        Backpropagation → EMA → SecondMoment → WeightDecay → Plain
    """
    beta1, beta2 = unpacked(owner, "fallback_betas", betas, 2)
    transforms = (EMA(beta1), SecondMoment(beta2, eps), WeightDecay(weight_decay))
    return Sentence(Backpropagation(), transforms, Plain(lr))


class AdamW(Optimizer):
    """Adam with decoupled weight decay. A drop-in for torch's, whose checkpoints it loads.

    Example:
        >>> import torch, hasten
        >>> model = torch.nn.Linear(4, 2)
        >>> opt = hasten.AdamW(model.parameters(), lr=1e-3, weight_decay=0.1)
        >>> model(torch.randn(8, 4)).square().mean().backward()
        >>> opt.step()
    """

    source: ClassVar[str] = "Loshchilov & Hutter 2019, arXiv:1711.05101"

    def __init__(
        self,
        params: Any,
        lr: Value = 1e-3,
        betas: tuple[Value, Value] = (0.9, 0.999),
        eps: Value = 1e-8,
        weight_decay: Value = 1e-2,
        amsgrad: bool = False,
        **engine: Unpack[EngineOptions],
    ) -> None:
        beta1, beta2 = unpacked(self, "betas", betas, 2)
        chain: list[Transform] = [
            EMA(beta1),
            SecondMoment(beta2, eps, maximum=flag(self, "amsgrad", amsgrad)),
        ]
        super().__init__(params, *_decayed(chain, weight_decay, True), lr=lr, **engine)


class Adam(Optimizer):
    """Adam; weight decay is an L2 penalty, as torch's.

    Example:
        >>> import torch, hasten
        >>> opt = hasten.Adam([torch.ones(3, requires_grad=True)], lr=1e-3)
    """

    source: ClassVar[str] = "Kingma & Ba 2015, arXiv:1412.6980"

    def __init__(
        self,
        params: Any,
        lr: Value = 1e-3,
        betas: tuple[Value, Value] = (0.9, 0.999),
        eps: Value = 1e-8,
        weight_decay: Value = 0.0,
        amsgrad: bool = False,
        **engine: Unpack[EngineOptions],
    ) -> None:
        beta1, beta2 = unpacked(self, "betas", betas, 2)
        chain: list[Transform] = [
            EMA(beta1),
            SecondMoment(beta2, eps, maximum=flag(self, "amsgrad", amsgrad)),
        ]
        super().__init__(params, *_decayed(chain, weight_decay, False), lr=lr, **engine)


class AMSGrad(Adam):
    """Adam with the running maximum of the second moment, so that the rate of no coordinate grows again.

    Example:
        >>> import torch, hasten
        >>> opt = hasten.AMSGrad([torch.ones(3, requires_grad=True)], lr=1e-3)
    """

    source: ClassVar[str] = "Reddi, Kale & Kumar 2018, On the convergence of Adam and beyond"

    def __init__(
        self,
        params: Any,
        lr: Value = 1e-3,
        betas: tuple[Value, Value] = (0.9, 0.999),
        eps: Value = 1e-8,
        weight_decay: Value = 0.0,
        **engine: Unpack[EngineOptions],
    ) -> None:
        super().__init__(params, lr, betas, eps, weight_decay, amsgrad=True, **engine)


class AdaMax(Optimizer):
    """Adam under the infinity norm. No bias correction of the norm; eps inside the maximum, as torch.

    Example:
        >>> import torch, hasten
        >>> opt = hasten.AdaMax([torch.ones(3, requires_grad=True)])
    """

    source: ClassVar[str] = "Kingma & Ba 2015, arXiv:1412.6980, section 7.1"

    def __init__(
        self,
        params: Any,
        lr: Value = 2e-3,
        betas: tuple[Value, Value] = (0.9, 0.999),
        eps: Value = 1e-8,
        weight_decay: Value = 0.0,
        **engine: Unpack[EngineOptions],
    ) -> None:
        beta1, beta2 = unpacked(self, "betas", betas, 2)
        super().__init__(
            params, WeightDecay(weight_decay), EMA(beta1), InfinityNorm(beta2, eps), lr=lr, **engine
        )


class NAdamW(Optimizer):
    """Adam with Nesterov's look-ahead, and decoupled weight decay.

    Two inequivalent algorithms bear this name. `variant="torch"` (the default; torch.optim.NAdam with
    decoupled_weight_decay) has a momentum schedule with `momentum_decay`; `variant="optax"` has none.
    `decoupled=False` gives torch's NAdam with its L2 penalty.

    Example:
        >>> import torch, hasten
        >>> opt = hasten.NAdamW([torch.ones(3, requires_grad=True)], variant="optax")
    """

    source: ClassVar[str] = (
        "Dozat 2016, Incorporating Nesterov momentum into Adam; torch.optim.NAdam; optax.nadamw"
    )

    def __init__(
        self,
        params: Any,
        lr: Value = 2e-3,
        betas: tuple[Value, Value] = (0.9, 0.999),
        eps: Value = 1e-8,
        weight_decay: Value = 0.0,
        momentum_decay: Value = 4e-3,
        variant: Literal["torch", "optax"] = "torch",
        decoupled: bool = True,
        **engine: Unpack[EngineOptions],
    ) -> None:
        beta1, beta2 = unpacked(self, "betas", betas, 2)
        check_choice("NAdamW", "variant", variant, ("torch", "optax"))
        moment = NesterovMoment(beta1, momentum_decay, schedule=variant)
        super().__init__(
            params,
            *_decayed([moment, SecondMoment(beta2, eps)], weight_decay, flag(self, "decoupled", decoupled)),
            lr=lr,
            **engine,
        )


class RAdam(Optimizer):
    """Adam with a rectified rate while few squares have been seen; no warm-up needed.

    Weight decay is an L2 penalty, or decoupled, as torch's.

    Example:
        >>> import torch, hasten
        >>> opt = hasten.RAdam([torch.ones(3, requires_grad=True)])
    """

    source: ClassVar[str] = "Liu et al. 2020, arXiv:1908.03265"

    def __init__(
        self,
        params: Any,
        lr: Value = 1e-3,
        betas: tuple[Value, Value] = (0.9, 0.999),
        eps: Value = 1e-8,
        weight_decay: Value = 0.0,
        decoupled: bool = False,
        **engine: Unpack[EngineOptions],
    ) -> None:
        beta1, beta2 = unpacked(self, "betas", betas, 2)
        chain: list[Transform] = [EMA(beta1), RectifiedSecondMoment(beta2, eps)]
        super().__init__(
            params, *_decayed(chain, weight_decay, flag(self, "decoupled", decoupled)), lr=lr, **engine
        )


class QHAdam(Optimizer):
    """Adam with quasi-hyperbolic first and second moments.

    Its authors' code defaults to nus = (1, 1), which is Adam; they advise ν₁ 0.7 to 0.8, β₁ 0.99 to 0.995, ν₂ 1.

    Example:
        >>> import torch, hasten
        >>> opt = hasten.QHAdam([torch.ones(3, requires_grad=True)], betas=(0.995, 0.999), nus=(0.7, 1.0))
    """

    source: ClassVar[str] = "Ma & Yarats 2019, arXiv:1810.06801"

    def __init__(
        self,
        params: Any,
        lr: Value = 1e-3,
        betas: tuple[Value, Value] = (0.9, 0.999),
        nus: tuple[Value, Value] = (1.0, 1.0),
        eps: Value = 1e-8,
        weight_decay: Value = 0.0,
        decoupled: bool = False,
        **engine: Unpack[EngineOptions],
    ) -> None:
        beta1, beta2 = unpacked(self, "betas", betas, 2)
        nu1, nu2 = unpacked(self, "nus", nus, 2)
        momentum = QuasiHyperbolic(beta1, nu1, debias=True).rename(momentum="beta1", nu="nu1")
        chain: list[Transform] = [momentum, QuasiHyperbolicSecondMoment(beta2, eps, nu2=nu2)]
        super().__init__(
            params, *_decayed(chain, weight_decay, flag(self, "decoupled", decoupled)), lr=lr, **engine
        )


class AdaBound(Optimizer):
    """Adam whose rates are clipped between bounds that close in on SGD's rate.

    A schedule on lr scales the bounds too, relative to `base_lr`, the lr a group was given. Weight decay is an L2
    penalty, as in the authors' AdaBound (their AdaBoundW forgets to multiply the decay by lr and is not offered).

    Example:
        >>> import torch, hasten
        >>> opt = hasten.AdaBound([torch.ones(3, requires_grad=True)], final_lr=0.1)
    """

    source: ClassVar[str] = "Luo et al. 2019, arXiv:1902.09843"

    def __init__(
        self,
        params: Any,
        lr: Value = 1e-3,
        betas: tuple[Value, Value] = (0.9, 0.999),
        final_lr: Value = 0.1,
        gamma: Value = 1e-3,
        eps: Value = 1e-8,
        weight_decay: Value = 0.0,
        amsbound: bool = False,
        **engine: Unpack[EngineOptions],
    ) -> None:
        beta1, beta2 = unpacked(self, "betas", betas, 2)
        bounded = BoundedSecondMoment(
            beta2,
            eps,
            maximum=flag(self, "amsbound", amsbound),
            beta1=beta1,
            final_lr=final_lr,
            gamma=gamma,
            base_lr=1.0,
        )
        super().__init__(
            params, WeightDecay(weight_decay), EMA(beta1, debias=False), bounded, lr=lr, **engine
        )

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """As for every optimizer; the bounds are relative to the learning rate that the group starts with."""
        if isinstance(param_group, dict):
            lr = param_group.get("lr", self.defaults["lr"])
            self.check("lr", lr)
            start = float(lr(0) if callable(lr) else lr)
            param_group = {"base_lr": start or 1.0, **param_group}
        super().add_param_group(param_group)


class AMSBound(AdaBound):
    """AdaBound with the running maximum of the second moment.

    Example:
        >>> import torch, hasten
        >>> opt = hasten.AMSBound([torch.ones(3, requires_grad=True)])
    """

    source: ClassVar[str] = "Luo et al. 2019, arXiv:1902.09843"

    def __init__(
        self,
        params: Any,
        lr: Value = 1e-3,
        betas: tuple[Value, Value] = (0.9, 0.999),
        final_lr: Value = 0.1,
        gamma: Value = 1e-3,
        eps: Value = 1e-8,
        weight_decay: Value = 0.0,
        **engine: Unpack[EngineOptions],
    ) -> None:
        super().__init__(params, lr, betas, final_lr, gamma, eps, weight_decay, amsbound=True, **engine)


class DiffGrad(Optimizer):
    """Adam with a friction that damps entries whose gradient changes little.

    The experiments of the paper used code that overwrote the previous gradient first, so that the friction was ½
    throughout: Adam at half the learning rate. This is the formula as stated; for gradients well below 1 its friction
    is within a few percent of ½ all the same.

    Example:
        >>> import torch, hasten
        >>> opt = hasten.DiffGrad([torch.ones(3, requires_grad=True)])
    """

    source: ClassVar[str] = "Dubey et al. 2020, arXiv:1909.11015"

    def __init__(
        self,
        params: Any,
        lr: Value = 1e-3,
        betas: tuple[Value, Value] = (0.9, 0.999),
        eps: Value = 1e-8,
        weight_decay: Value = 0.0,
        **engine: Unpack[EngineOptions],
    ) -> None:
        beta1, beta2 = unpacked(self, "betas", betas, 2)
        chain: list[Transform] = [EMA(beta1), SecondMoment(beta2, eps, eps_on="raw"), Friction()]
        super().__init__(params, *_decayed(chain, weight_decay, False), lr=lr, **engine)
