"""Orthogonalised geometry: descend steepest in the spectral norm, and what is built on that.

Parts here are of matrix grain. Rows m and columns n are those of the matrix that the part is given: a convolution is
out × in·h·w, every piece of a split tensor counts by itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Literal, TypeAlias

import torch
from torch import Tensor

from hasten.checks import check_choice, number
from hasten.linalg.coefficients import Coefficients
from hasten.linalg.polar import BACKENDS, ITERATIONS, orthogonalize
from hasten.numbers import Names, Number, sqrt
from hasten.words import NONNEGATIVE, POSITIVE, UNIT, Buffer, Entry, Geometry, Value, hyper

Scaling: TypeAlias = Literal["original", "match_rms_adamw", "rms_to_rms"]
"""Which norm of the step does not depend on the shape of the matrix."""

SCALES: dict[str | None, Callable[[int, int], float]] = {
    "original": lambda m, n: max(1.0, m / n) ** 0.5,
    "match_rms_adamw": lambda m, n: 0.2 * max(m, n) ** 0.5,
    "rms_to_rms": lambda m, n: (m / n) ** 0.5,
    None: lambda m, n: 1.0,
}
"""The factor on the orthogonal factor of an m × n matrix, by name of the convention."""


@dataclass(frozen=True)
class Orthogonalize(Geometry):
    """The orthogonal factor U Vᵀ of the direction U S Vᵀ, exactly or nearly, times a factor of the shape.

    This is the step of length one in the spectral norm that descends most. With an m × n matrix of full rank:

    ===================  ====================  ===========================================  ======================
    `scale`              factor                what does not depend on the shape            known from
    ===================  ====================  ===========================================  ======================
    ``original``         √max(1, m/n)          the largest RMS→RMS gain, where m ≥ n        Jordan, torch's default
    ``match_rms_adamw``  0.2 √max(m, n)        the root mean square of the entries, 0.2:    Moonshot
                                               learning rates and decay as AdamW's
    ``rms_to_rms``       √(m/n)                the RMS→RMS operator norm, 1: learning       Dion, modular norms
                                               rates carry over to other widths
    None                 1                     the spectral norm, 1
    ===================  ====================  ===========================================  ======================

    Jordan's code takes m/n from the last two dimensions of a convolution, kh/kw; here m × n is the flattened matrix,
    out × in·kh·kw.

    Args:
        backend: ``"polar_express"``, ``"ns5"``, ``"muon_plus"``, ``"turbo"``: Newton–Schulz iterations that differ in
            their coefficients and in how they scale the matrix first, or ``"svd"``: exact. See
            :func:`hasten.linalg.polar`. ``"turbo"`` rescales rows, and so has a slightly different limit.
        steps: of the iteration; None: the backend's own number.
        coefficients: (a, b, c) of each step ``X ← a X + (b A + c A²) X, A = X Xᵀ``, in place of the backend's.
        scale: see above.
        eps: for very small gradients: with `eps_on` ``"floor"`` the norm counts as at least this (torch), with
            ``"sum"`` it is added to the norm (Jordan, Moonshot). 0: the result does not depend on the scale at all.
        low_precision: float32 matrices are iterated in bfloat16; float64 ones in float64, always.
        sign_stabilized: orthogonalise the signs of the entries instead (AdaMuon's paper): another direction, not
            another accuracy.

    A zero matrix gives zero; a matrix with NaN gives NaN.

    Raises:
        ValueError: for a backend, number of steps, scale or coefficients that is not allowed.

    Example:
        Heavy-ball momentum, orthogonalised exactly; vectors by AdamW.

        >>> import torch, hasten
        >>> from hasten.transforms import HeavyBall, Orthogonalize
        >>> w = torch.randn(4, 6, requires_grad=True)
        >>> opt = hasten.Optimizer([w], HeavyBall(0.95), Orthogonalize("svd", scale=None), lr=1.0)
        >>> before = w.detach().clone()
        >>> w.square().sum().backward()
        >>> _ = opt.step()
        >>> step = before - w.detach()
        >>> torch.allclose(step @ step.T, torch.eye(4), atol=1e-5)
        True
    """

    backend: str = "polar_express"
    steps: int | None = None
    coefficients: tuple[tuple[float, float, float], ...] | None = None
    scale: Scaling | None = "original"
    eps: float = 0.0
    eps_on: Literal["floor", "sum"] = "floor"
    low_precision: bool = True
    sign_stabilized: bool = False
    grain: ClassVar[Literal["element", "tensor", "matrix"]] = "matrix"
    formula: ClassVar[str] = "u = s(m, n) · U Vᵀ,  d = U S Vᵀ"

    def __post_init__(self) -> None:
        owner = type(self).__name__
        check_iteration(owner, self.backend, self.steps, self.coefficients)
        check_choice(owner, "scale", self.scale, SCALES)
        check_choice(owner, "eps_on", self.eps_on, ("floor", "sum"))
        for name in ("low_precision", "sign_stabilized"):
            check_choice(owner, name, getattr(self, name), (False, True))
        number(self, "eps", self.eps, NONNEGATIVE)
        if self.coefficients is not None:
            quintics = tuple((float(a), float(b), float(c)) for a, b, c in self.coefficients)
            object.__setattr__(self, "coefficients", quintics)

    @cached_property
    def quintics(self) -> Coefficients | None:
        """The coefficients of every step; None for ``"svd"``."""
        if self.coefficients is not None or self.backend == "svd":
            return self.coefficients
        own = ITERATIONS[self.backend]
        return own.quintics(own.steps if self.steps is None else self.steps)

    def direction(self, d: Entry, s: Any, n: Any) -> Entry:
        """Orthogonalised, each matrix by itself."""
        factor = SCALES[self.scale](*d.shape[-2:])
        x, eps = d, self.eps
        if self.sign_stabilized:
            x = torch.where(torch.isnan(d), d, torch.sign(d))
        if eps > 0 and self.eps_on == "sum":
            norm = torch.linalg.matrix_norm(x, keepdim=True)
            x, eps = x / (norm + eps), 1.0  # of norm at most one; a floor of one leaves it there
        u = orthogonalize(x, self.backend, None, self.quintics, self.low_precision, eps=eps)
        return u if factor == 1.0 else factor * u


def check_iteration(owner: str, backend: Any, steps: Any, coefficients: Any) -> None:
    """Raise ValueError, in the name of `owner`, unless these say how to orthogonalise."""
    check_choice(owner, "backend", backend, BACKENDS)
    whole = isinstance(steps, int) and not isinstance(steps, bool)
    if steps is not None and not (whole and 1 <= steps <= 100):
        raise ValueError(
            f"{owner}: steps = {steps!r} is not allowed; it must be a whole number from 1 to 100"
        )
    if coefficients is None:
        return
    rows = list(coefficients) if isinstance(coefficients, Iterable) else []
    if not rows or not all(
        isinstance(row, Sequence) and len(row) == 3 and all(math.isfinite(x) for x in row) for row in rows
    ):
        raise ValueError(
            f"{owner}: coefficients = {coefficients!r} is not allowed; it must hold three numbers (a, b, c) for each "
            "step"
        )
    if backend == "svd":
        raise ValueError(f"{owner}: coefficients is not allowed with backend='svd', which is exact")
    if steps not in (None, len(rows)):
        raise ValueError(
            f"{owner}: steps = {steps} is not allowed; it must be the number of coefficients, {len(rows)}"
        )


@dataclass(frozen=True)
class AlignedSecondMoment(Geometry):
    """AdaMuon's second geometry: Adam's diagonal of the direction itself, then a fixed root mean square.

    After :class:`Orthogonalize` its entries are all ±rms in the first step, whatever the matrix was: orthogonality is
    given up by design. The average needs no bias correction, which the alignment would cancel; eps is in the units of
    the corrected average. A zero matrix gives zero.

    Example:
        >>> import torch, hasten
        >>> from hasten.transforms import AlignedSecondMoment, NesterovEMA, Orthogonalize
        >>> w = torch.randn(4, 6, requires_grad=True)
        >>> chain = NesterovEMA(0.95), Orthogonalize(scale=None), AlignedSecondMoment()
        >>> opt = hasten.Optimizer([w], *chain, lr=1.0)
        >>> before = w.detach().clone()
        >>> w.square().sum().backward()
        >>> _ = opt.step()
        >>> round((before - w.detach()).square().mean().sqrt().item(), 4)
        0.2
    """

    beta2: Value = hyper(0.999, UNIT, "decay of the average of squared directions")
    eps: Value = hyper(1e-8, NONNEGATIVE, "added to the root, so that small entries do not explode")
    rms: Value = hyper(0.2, POSITIVE, "root mean square of the entries of the result")
    grain: ClassVar[Literal["element", "tensor", "matrix"]] = "matrix"
    formula: ClassVar[str] = "v ← β₂ v + (1−β₂) d²;  o = d / (√(v/(1−β₂ᵏ)) + ε);  u = ρ √(mn) o / ‖o‖"

    def buffers(self) -> dict[str, Buffer]:
        """The average of squares."""
        return {"exp_avg_sq": Buffer()}

    def numbers(self, h: Names, k: Number, c: Names) -> dict[str, Number]:
        """Weights of the average, eps in the units of the uncorrected average, and the size of the result."""
        return {
            "beta": h.beta2,
            "weight": 1 - h.beta2,
            "eps": h.eps * sqrt(1 - h.beta2**k),
            "rms": h.rms,
        }

    def direction(self, d: Entry, s: Any, n: Any) -> Entry:
        """The direction in the metric of its own past, aligned."""
        s.exp_avg_sq = n.beta * s.exp_avg_sq + n.weight * (d * d)
        root = torch.sqrt(s.exp_avg_sq) + n.eps
        o = d / torch.where(root > 0, root, 1.0)
        return n.rms * o / _size(o)


def _size(x: Tensor) -> Tensor:
    """Root mean square of every matrix; 1 for zero."""
    size = torch.linalg.matrix_norm(x, keepdim=True) / max(x.shape[-2] * x.shape[-1], 1) ** 0.5
    return torch.where(size == 0, 1.0, size)
