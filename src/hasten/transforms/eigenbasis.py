"""Geometry in the eigenbasis of Kronecker statistics: Adam's diagonal, rotated (SOAP)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from hasten.checks import check_choice, flag, number
from hasten.linalg.products import symmetric_product
from hasten.linalg.symmetric import eigh, finite
from hasten.numbers import Names, Number
from hasten.words import NONNEGATIVE, UNIT, Buffer, Entry, Geometry, Interval, Value, hyper

AT_LEAST_ONE = Interval(1)


def due(k: Number, frequency: Number) -> bool:
    """Whether something done every `frequency` steps, which need not be a whole number, is done at step k.

    Example:
        >>> [k for k in range(1, 11) if due(k, 2.5)]
        [3, 5, 8, 10]
    """
    return bool(math.floor(k / frequency) > math.floor((k - 1) / frequency))


@dataclass(frozen=True)
class EigenbasisSecondMoment(Geometry):
    """Adam's diagonal in the eigenbasis of the Kronecker factors L = E[G Gᵀ] and R = E[Gᵀ G].

    Q_L and Q_R are found by an eigendecomposition of the first gradient's factors, columns by descending eigenvalue,
    and follow them by one step of orthogonal iteration every `precondition_frequency` steps: the columns, and with
    them the rows and columns of v, are put in descending order of qᵀ L q, then Q ← qr(L Q). A gradient is rotated by
    bases made of gradients before it.

    Momentum may come before this part, in the parameter's own basis: rotations are linear, so it is the same as
    momentum in a basis that turns (what :class:`EigenbasisAdam` saves is two products of matrices in every step).

    Zero gradients give a zero direction as long as eps > 0. Once a gradient was not finite, so is what follows.

    Args:
        prepare: the first step only sets up the factors, with weight ``1 − shampoo_beta``, and the bases; parameters do
            not move in it, and bias corrections count from the second (the authors' code). False: the first gradient
            is used as well, rotated by its own bases; the factors start at its products, with weight 1.
        max_preconditioner_dim: a side longer than this is not rotated.
        sides: ``"smaller"`` rotates only the smaller side of a matrix, both of a square one.
        debias: divide v by ``1 − β₂ᵗ``.
        eps_on: what eps is added to: the `raw` root of v (the authors' code), or the `corrected` one.

    Source: Vyas et al. 2024, arXiv:2409.11321.

    Example:
        A long, undamped memory in SOAP's geometry.

        >>> import torch, hasten
        >>> from hasten.transforms import Accumulation, EigenbasisSecondMoment
        >>> w = torch.eye(3, requires_grad=True)
        >>> opt = hasten.Optimizer([w], Accumulation(0.99, alpha=10.0), EigenbasisSecondMoment(), lr=1e-3)
    """

    beta2: Value = hyper(0.95, UNIT, "decay of the average of squared, rotated gradients")
    eps: Value = hyper(1e-8, NONNEGATIVE, "added to the root, so that small entries do not explode")
    shampoo_beta: Value = hyper(0.95, UNIT, "decay of the averages L and R")
    precondition_frequency: Value = hyper(10, AT_LEAST_ONE, "steps from one refresh of the bases to the next")
    max_preconditioner_dim: int = 10000
    sides: Literal["both", "smaller"] = "both"
    prepare: bool = True
    debias: bool = True
    eps_on: Literal["corrected", "raw"] = "raw"
    grain: ClassVar[Literal["element", "tensor", "matrix"]] = "matrix"
    traceable: ClassVar[bool] = False
    formula: ClassVar[str] = (
        "v ← β₂ v + (1−β₂) (Q_Lᵀ g Q_R)²;  u = Q_L [(Q_Lᵀ d Q_R) √(1−β₂ᵗ)/(√v + ε)] Q_Rᵀ;  "
        "L ← lerp(L, g gᵀ, 1−β_s), R ← lerp(R, gᵀ g, 1−β_s);  every f steps Q ← qr(L Q)"
    )

    def __post_init__(self) -> None:
        number(self, "max_preconditioner_dim", self.max_preconditioner_dim, AT_LEAST_ONE)
        check_choice(type(self).__name__, "sides", self.sides, ("both", "smaller"))
        check_choice(type(self).__name__, "eps_on", self.eps_on, ("corrected", "raw"))
        flag(self, "prepare", self.prepare)
        flag(self, "debias", self.debias)

    @property
    def preparing(self) -> int:
        """The first step, if it only sets up the bases."""
        return int(self.prepare)

    def rotates(self, size: Sequence[int], side: int) -> bool:
        """Whether a side (0: rows, 1: columns) of an m × n matrix is rotated.

        Example:
            >>> part = EigenbasisSecondMoment(sides="smaller", max_preconditioner_dim=100)
            >>> part.rotates((4, 8), 0), part.rotates((4, 8), 1), part.rotates((101, 101), 0)
            (True, False, False)
        """
        return size[side] <= (
            self.max_preconditioner_dim if self.sides == "both" else min(self.max_preconditioner_dim, *size)
        )

    def buffers(self) -> dict[str, Buffer]:
        """The average of squares, the factors, and their bases."""

        def square(side: int) -> Buffer:
            def shape(size: torch.Size) -> tuple[int, ...]:
                return (size[side], size[side]) if self.rotates(size, side) else (0, 0)

            return Buffer(exact=True, shape=shape)

        kept = ("left_factor", "right_factor", "left_basis", "right_basis")
        return {"exp_avg_sq": Buffer(), **{name: square(i % 2) for i, name in enumerate(kept)}}

    def numbers(self, h: Names, k: Number, c: Names) -> dict[str, Number]:
        """Weights of the averages, the root of the bias correction, and what is done at this step."""
        t = max(k - self.preparing, 1)
        root = math.sqrt(1 - h.beta2**t) if self.debias else 1.0
        return {
            "beta": h.beta2,
            "weight": 1 - h.beta2,
            "scale": root,
            "eps": h.eps * root if self.eps_on == "corrected" else h.eps,
            "factor_weight": 1 - h.shampoo_beta,
            "first": k == 1,
            "refresh": due(t, h.precondition_frequency) and k > self.preparing,
        }

    def direction(self, d: Entry, s: Any, n: Any) -> Entry:
        """The direction in Adam's metric along the eigenvectors; at the first step of a prepared run, `d`."""
        if n.first:
            self._start(s, n)
            if self.prepare:
                s.exp_avg_sq = s.exp_avg_sq
                return d
        u = rotated_back(self._scaled(d, s, n), s.left_basis, s.right_basis)
        if not n.first:
            self._follow(s, n)
        if n.refresh:
            self._refresh(s)
        return u

    def _scaled(self, d: Tensor, s: Any, n: Any) -> Tensor:
        """The rotated direction in Adam's metric."""
        g = rotated(s.grad, s.left_basis, s.right_basis)
        s.exp_avg_sq = torch.mul(s.exp_avg_sq, n.beta).addcmul_(g, g, value=n.weight)
        u = self._momentum(g if d is s.grad else rotated(d, s.left_basis, s.right_basis), s, n)
        size: Tensor = s.exp_avg_sq.sqrt().add_(n.eps)
        return torch.addcdiv(size.new_zeros(()), u, size, value=n.scale, out=size)

    def _momentum(self, d: Tensor, s: Any, n: Any) -> Tensor:
        """What happens to the rotated direction before it is divided."""
        return d

    def _turned(self, s: Any, old: tuple[Tensor, Tensor], new: tuple[Tensor, Tensor]) -> None:
        """Bring what is kept in the old bases to the new ones; v has been permuted."""

    def _start(self, s: Any, n: Any) -> None:
        """The first factors and their eigenvectors."""
        weight = n.factor_weight if self.prepare else 1.0
        if s.left_basis.numel():
            s.left_factor = symmetric_product(s.grad, s.grad.mT).mul_(weight)
            s.left_basis = descending_eigenvectors(s.left_factor)
        if s.right_basis.numel():
            s.right_factor = symmetric_product(s.grad.mT, s.grad).mul_(weight)
            s.right_basis = descending_eigenvectors(s.right_factor)

    def _follow(self, s: Any, n: Any) -> None:
        """The factors with this step's gradient."""
        w = n.factor_weight
        if s.left_basis.numel():
            s.left_factor = symmetric_product(s.grad, s.grad.mT).lerp_(s.left_factor, 1 - w)
        if s.right_basis.numel():
            s.right_factor = symmetric_product(s.grad.mT, s.grad).lerp_(s.right_factor, 1 - w)

    def _refresh(self, s: Any) -> None:
        """One step of orthogonal iteration on both sides."""
        left, right, v = s.left_basis, s.right_basis, s.exp_avg_sq
        if left.numel():
            s.left_basis, order = orthogonal_iteration(s.left_factor, left)
            v = v.gather(-2, order.unsqueeze(-1).expand_as(v))
        if right.numel():
            s.right_basis, order = orthogonal_iteration(s.right_factor, right)
            v = v.gather(-1, order.unsqueeze(-2).expand_as(v))
        s.exp_avg_sq = v
        self._turned(s, (left, right), (s.left_basis, s.right_basis))


@dataclass(frozen=True)
class EigenbasisAdam(EigenbasisSecondMoment):
    """Adam in the eigenbasis of the Kronecker factors: both moments of the rotated gradient (SOAP).

    m is kept in the rotated basis, so it is rotated only when the bases change: a step takes six products of matrices
    (two for the factors, four there and back). The same as ``EMA(beta1), EigenbasisSecondMoment(…)`` but for rounding,
    and for the gradient of a first step that only prepares, which enters that EMA and not this m.

    Example:
        >>> import torch, hasten
        >>> from hasten.iterates import ScheduleFree
        >>> from hasten.transforms import EigenbasisAdam
        >>> w = torch.eye(3, requires_grad=True)
        >>> opt = hasten.Optimizer([w], EigenbasisAdam(beta1=0.0), iterate=ScheduleFree(3e-3))
    """

    beta1: Value = hyper(0.95, UNIT, "decay of the average of rotated directions")
    formula: ClassVar[str] = (
        "g' = Q_Lᵀ g Q_R;  m ← β₁ m + (1−β₁) g', v ← β₂ v + (1−β₂) g'²;  "
        "u = Q_L [m/(√v + ε)] Q_Rᵀ · √(1−β₂ᵗ)/(1−β₁ᵗ);  "
        "L ← lerp(L, g gᵀ, 1−β_s), R ← lerp(R, gᵀ g, 1−β_s);  every f steps Q ← qr(L Q)"
    )

    def buffers(self) -> dict[str, Buffer]:
        """Both averages in the rotated basis, the factors, and their bases."""
        return {"exp_avg": Buffer(), **super().buffers()}

    def numbers(self, h: Names, k: Number, c: Names) -> dict[str, Number]:
        """Those of the second moment, both bias corrections, and the weight of the new direction."""
        t = max(k - self.preparing, 1)
        correction = 1 - h.beta1**t if self.debias else 1.0
        second = super().numbers(h, k, c)
        return {**second, "scale": second["scale"] / correction, "now": 1 - h.beta1}

    def _momentum(self, d: Tensor, s: Any, n: Any) -> Tensor:
        s.exp_avg = torch.lerp(s.exp_avg, d, n.now)
        kept: Tensor = s.exp_avg
        return kept

    def _turned(self, s: Any, old: tuple[Tensor, Tensor], new: tuple[Tensor, Tensor]) -> None:
        s.exp_avg = rotated(rotated_back(s.exp_avg, *old), *new)


def rotated(x: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """Q_Lᵀ X Q_R, [k, m, n]; an empty basis is the identity."""
    x = left.mT @ x if left.numel() else x
    return x @ right if right.numel() else x


def rotated_back(x: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """Q_L X Q_Rᵀ, [k, m, n]; an empty basis is the identity."""
    x = left @ x if left.numel() else x
    return x @ right.mT if right.numel() else x


def descending_eigenvectors(a: Tensor) -> Tensor:
    """Orthonormal eigenvectors of symmetric matrices [k, n, n] as columns, the largest eigenvalue first.

    Those of a matrix with entries that are not finite are NaN.

    Example:
        >>> descending_eigenvectors(torch.diag(torch.tensor([1.0, 3.0, 2.0]))[None]).abs()
        tensor([[[0., 0., 1.],
                 [1., 0., 0.],
                 [0., 1., 0.]]])
    """
    return torch.where(finite(a), eigh(a)[1].flip(-1), torch.nan)


def orthogonal_iteration(a: Tensor, basis: Tensor) -> tuple[Tensor, Tensor]:
    """One step of orthogonal iteration on symmetric matrices [k, n, n], towards descending eigenvalues.

    Returns:
        The new bases, and the order [k, n] in which the columns of the old ones were taken, by descending qᵀ A q.
        Without that order, an iteration that starts in ascending order would exchange the columns one by one.

    Example:
        >>> a = torch.diag(torch.tensor([1.0, 3.0, 2.0]))[None]
        >>> orthogonal_iteration(a, torch.eye(3)[None])[1]
        tensor([[1, 2, 0]])
    """
    image = a @ basis
    order = (basis * image).sum(-2).argsort(dim=-1, descending=True, stable=True)
    image = image.gather(-1, order.unsqueeze(-2).expand_as(image))
    image, scales = torch.geqrf(image)  # torch.linalg.qr would also make R, in a fifth of its time
    return torch.linalg.householder_product(image, scales), order
