"""Accelerated SGD: methods that hold three sequences, and evaluate another point than they take gradients at."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from typing_extensions import Self, Unpack

from hasten.checks import optional_number
from hasten.engine import EngineOptions, Optimizer
from hasten.iterates import (
    Canonical,
    EstimatedCanonical,
    Jain,
    Kidambi,
    Mass,
    StrongGrowth,
    VaswaniConvex,
)
from hasten.iterates import TripleMomentum as TripleMomentumIterate
from hasten.oracles import Backpropagation
from hasten.transforms import WeightDecay
from hasten.words import POSITIVE, Iterate, Value


class AcceleratedSGD(Optimizer):
    """Accelerated SGD in the parameters of Kidambi et al.; other parameterisations as class methods.

    Advice of its authors: `kappa` 1e2 to 1e4 (larger for deeper, harder problems), 1 ≤ `xi` ≤ √kappa; multiply xi by
    √j when the batch grows j times. Too large an xi or lr oscillates. If curvature and noise are known or can be
    guessed, :meth:`canonical` needs no tuning.

    Example:
        >>> import torch, hasten
        >>> w = torch.ones(3, requires_grad=True)
        >>> opt = hasten.AcceleratedSGD.canonical([w], smoothness=10.0, strong_convexity=0.1, noise=20.0)
    """

    source: ClassVar[str] = (
        "Kidambi et al. 2018, arXiv:1803.05591; canonical form: Gupta et al. 2023, arXiv:2302.05515"
    )

    def __init__(
        self,
        params: Any,
        lr: Value = 0.1,
        kappa: Value = 1000.0,
        xi: Value = 10.0,
        small_const: Value = 0.7,
        weight_decay: Value = 0.0,
        **engine: Unpack[EngineOptions],
    ) -> None:
        iterate = Kidambi(lr, kappa, xi, small_const)
        super().__init__(params, WeightDecay(weight_decay), iterate=iterate, **engine)

    @classmethod
    def _with(
        cls, params: Any, iterate: Iterate, weight_decay: Value, engine: EngineOptions, loss: bool = False
    ) -> Self:
        made, oracle = cls.__new__(cls), Backpropagation(loss)
        Optimizer.__init__(made, params, WeightDecay(weight_decay), iterate=iterate, oracle=oracle, **engine)
        return made

    @classmethod
    def canonical(
        cls,
        params: Any,
        smoothness: Value | Literal["estimate"],
        strong_convexity: Value,
        noise: Value | Literal["estimate"] = 1.0,
        lr: Value = 1.0,
        weight_decay: Value = 0.0,
        **engine: Unpack[EngineOptions],
    ) -> Self:
        """The canonical triple: AGNES, Vaswani et al. and MaSS in one, with nothing to tune.

        Batch size: when the batch shrinks j times and noise dominates, multiply `noise` by j; the step then divides
        by j, the momentum window grows j times, and the weight of the average does not change.

        Args:
            params: as for every optimizer.
            smoothness: L, the largest curvature; if `noise` is estimated, R² = ρL, the inverse of the largest step that
                SGD survives. "estimate" takes R² from gradients and losses;
                ``step`` then needs a closure.
            strong_convexity: μ, the smallest; 0 chooses the schedule for convex functions.
            noise: ρ, with E‖g‖² ≤ ρ‖∇f‖²; roughly 1 + variance/batch relative to the gradient. "estimate" compares
                gradients with their running mean. Both estimates are heuristics, good where the curvature is nearly
                diagonal: see :class:`~hasten.iterates.EstimatedCanonical` for their evidence.
            lr: factor on both steps, for schedulers.
            weight_decay: L2 penalty.
            engine: see :class:`~hasten.engine.EngineOptions`.
        """
        iterate: Iterate
        if isinstance(smoothness, str) or isinstance(noise, str):
            for name, value in (("smoothness", smoothness), ("noise", noise)):
                if isinstance(value, str) and value != "estimate":
                    raise ValueError(
                        f'{cls.__name__}: {name} = {value!r} is not allowed; it must be a number or "estimate"'
                    )
            iterate = EstimatedCanonical(
                lr,
                1.0 if isinstance(smoothness, str) else smoothness,
                strong_convexity,
                1e3 if isinstance(noise, str) else noise,
                estimate_noise=isinstance(noise, str),
                estimate_smoothness=isinstance(smoothness, str),
            )
        elif strong_convexity == 0:
            iterate = VaswaniConvex(lr, smoothness, noise)
        else:
            iterate = Canonical(lr, smoothness, strong_convexity, noise)
        return cls._with(params, iterate, weight_decay, engine, loss=isinstance(smoothness, str))

    @classmethod
    def jain(
        cls,
        params: Any,
        smoothness: Value,
        condition: Value,
        statistical_condition: Value,
        lr: Value = 1.0,
        weight_decay: Value = 0.0,
        **engine: Unpack[EngineOptions],
    ) -> Self:
        """The proven constants for least squares; safe, but they waste most of the gain."""
        return cls._with(params, Jain(lr, smoothness, condition, statistical_condition), weight_decay, engine)


class MaSS(Optimizer):
    """Momentum-added stochastic solver: Nesterov's method with a correction that makes it converge under noise.

    Its code defaults to κ̃ = 12, its training script to 2. Restart the buffers when lr is cut.

    Example:
        >>> import torch, hasten
        >>> opt = hasten.MaSS([torch.ones(3, requires_grad=True)], lr=0.1)
    """

    source: ClassVar[str] = "Liu & Belkin 2020, arXiv:1810.13395"

    def __init__(
        self,
        params: Any,
        lr: Value = 0.1,
        alpha: Value = 0.05,
        kappa_t: Value = 12.0,
        weight_decay: Value = 0.0,
        **engine: Unpack[EngineOptions],
    ) -> None:
        super().__init__(params, WeightDecay(weight_decay), iterate=Mass(lr, alpha, kappa_t), **engine)


class TripleMomentum(Optimizer):
    """The triple momentum method, for smooth strongly convex functions without noise.

    Example:
        >>> import torch, hasten
        >>> opt = hasten.TripleMomentum([torch.ones(3, requires_grad=True)], smoothness=10.0, strong_convexity=0.1)
    """

    source: ClassVar[str] = "Van Scoy, Freeman & Lynch 2018, IEEE Control Systems Letters 2(1)"

    def __init__(
        self,
        params: Any,
        smoothness: Value = 1.0,
        strong_convexity: Value = 1e-2,
        lr: Value = 1.0,
        weight_decay: Value = 0.0,
        **engine: Unpack[EngineOptions],
    ) -> None:
        iterate = TripleMomentumIterate(lr, smoothness, strong_convexity)
        super().__init__(params, WeightDecay(weight_decay), iterate=iterate, **engine)


class StochasticNesterov(Optimizer):
    """Stochastic acceleration under interpolation, with the growth constant of the noise.

    For deterministic or nearly deterministic oracles. It is mean-square unstable for coordinate-type noise already at
    growth 2, although such noise satisfies its assumption exactly (see the spectral-radii benchmark): for noisy
    oracles use :meth:`AcceleratedSGD.canonical`, in which the noise enters the momentum as well.

    Example:
        >>> import torch, hasten
        >>> opt = hasten.StochasticNesterov([torch.ones(3, requires_grad=True)], smoothness=10.0, growth=1.5)
    """

    source: ClassVar[str] = "Mishkin, Pilanci & Schmidt 2024, arXiv:2404.02378 (as first posted)"

    def __init__(
        self,
        params: Any,
        smoothness: Value = 1.0,
        strong_convexity: Value = 1e-2,
        growth: Value = 1.0,
        gamma0: float | None = None,
        lr: Value = 1.0,
        weight_decay: Value = 0.0,
        **engine: Unpack[EngineOptions],
    ) -> None:
        iterate = StrongGrowth(
            lr, smoothness, strong_convexity, growth, optional_number(self, "gamma0", gamma0, POSITIVE)
        )
        super().__init__(params, WeightDecay(weight_decay), iterate=iterate, **engine)
