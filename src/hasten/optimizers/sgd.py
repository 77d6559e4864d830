"""Stochastic gradient descent and its constant-coefficient momenta."""

from __future__ import annotations

from typing import Any, ClassVar

from typing_extensions import Unpack

from hasten.checks import flag, is_zero
from hasten.engine import EngineOptions, Optimizer
from hasten.transforms import HeavyBall as HeavyBallMomentum
from hasten.transforms import QuasiHyperbolic, WeightDecay
from hasten.words import Value


class SGD(Optimizer):
    """Stochastic gradient descent, as torch's: momentum, dampening, Nesterov, L2 penalty.

    Example:
        >>> import torch, hasten
        >>> w = torch.ones(3, requires_grad=True)
        >>> opt = hasten.SGD([w], lr=0.1, momentum=0.9, nesterov=True)
    """

    source: ClassVar[str] = "Robbins & Monro 1951; conventions of torch.optim.SGD"

    def __init__(
        self,
        params: Any,
        lr: Value = 1e-3,
        momentum: Value = 0.0,
        dampening: Value = 0.0,
        weight_decay: Value = 0.0,
        nesterov: bool = False,
        **engine: Unpack[EngineOptions],
    ) -> None:
        plain = is_zero(momentum)
        if flag(self, "nesterov", nesterov) and (plain or not is_zero(dampening)):
            raise ValueError("SGD: nesterov = True is not allowed without momentum, or with dampening")
        memory = [] if plain else [HeavyBallMomentum(momentum, dampening, nesterov)]
        super().__init__(params, WeightDecay(weight_decay), *memory, lr=lr, **engine)


class HeavyBall(Optimizer):
    """Polyak's heavy ball: SGD with an undamped momentum buffer and an L2 penalty.

    Example:
        >>> import torch, hasten
        >>> opt = hasten.HeavyBall([torch.ones(3, requires_grad=True)], lr=0.1)
    """

    source: ClassVar[str] = "Polyak 1964, Some methods of speeding up the convergence of iteration methods"

    def __init__(
        self,
        params: Any,
        lr: Value = 1e-3,
        momentum: Value = 0.9,
        weight_decay: Value = 0.0,
        **engine: Unpack[EngineOptions],
    ) -> None:
        super().__init__(params, WeightDecay(weight_decay), HeavyBallMomentum(momentum), lr=lr, **engine)


class Nesterov(Optimizer):
    """Nesterov's momentum in the form of deep-learning codes: the parameter is the look-ahead point.

    Example:
        >>> import torch, hasten
        >>> opt = hasten.Nesterov([torch.ones(3, requires_grad=True)], lr=0.1)
    """

    source: ClassVar[str] = "Nesterov 1983; Sutskever et al. 2013"

    def __init__(
        self,
        params: Any,
        lr: Value = 1e-3,
        momentum: Value = 0.9,
        weight_decay: Value = 0.0,
        **engine: Unpack[EngineOptions],
    ) -> None:
        super().__init__(
            params, WeightDecay(weight_decay), HeavyBallMomentum(momentum, nesterov=True), lr=lr, **engine
        )


class QHM(Optimizer):
    """Quasi-hyperbolic momentum: a mixture of an average of gradients and the gradient.

    The authors advise ν = 0.7, β = 0.999, which are the defaults here (their code has none). `decoupled` chooses
    decoupled weight decay instead of the L2 penalty.

    Example:
        >>> import torch, hasten
        >>> opt = hasten.QHM([torch.ones(3, requires_grad=True)], lr=1.0)
    """

    source: ClassVar[str] = "Ma & Yarats 2019, arXiv:1810.06801"

    def __init__(
        self,
        params: Any,
        lr: Value = 1e-1,
        momentum: Value = 0.999,
        nu: Value = 0.7,
        weight_decay: Value = 0.0,
        decoupled: bool = False,
        **engine: Unpack[EngineOptions],
    ) -> None:
        chain = [WeightDecay(weight_decay), QuasiHyperbolic(momentum, nu)]
        super().__init__(
            params, *(reversed(chain) if flag(self, "decoupled", decoupled) else chain), lr=lr, **engine
        )
