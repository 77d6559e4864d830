"""Geometry by norm: which norm on the step, its dual norm, and the step that goes furthest within its unit ball.

For a norm ‖·‖ with dual ‖g‖† = max ⟨g, t⟩ over ‖t‖ ≤ 1, let lmo(g) be the t of that maximum (the linear minimisation
oracle of −g). Then steepest descent at sharpness λ is −(‖g‖†/λ) · lmo(g) (Bernstein & Newhouse 2024,
arXiv:2409.20325): a length, the learning rate, and a direction that the norm alone decides. `NORMS` is the table.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, TypeAlias

import torch
from torch import Tensor

from hasten.checks import check_choice
from hasten.linalg.polar import orthogonalize
from hasten.transforms.orthogonal import check_iteration
from hasten.words import Entry, Geometry

Polar: TypeAlias = "Callable[[Tensor], Tensor]"
"""The orthogonal polar factor of every matrix of a stack."""


def exact_polar(x: Tensor) -> Tensor:
    """By singular value decomposition."""
    return orthogonalize(x, "svd")


class Ball:
    """The unit ball of a norm on matrices, in stacks [k, m, n]."""

    def norm(self, x: Tensor) -> Tensor:
        """‖x‖, [k]."""
        raise NotImplementedError

    def dual(self, g: Tensor) -> Tensor:
        """‖g‖†, [k]."""
        raise NotImplementedError

    def lmo(self, g: Tensor, polar: Polar) -> Tensor:
        """The point of the ball that goes furthest along g, [k, m, n], in new memory; zero for zero."""
        raise NotImplementedError


class _Entries(Ball):
    """Largest absolute entry; dual: sum of absolute entries."""

    def norm(self, x: Tensor) -> Tensor:
        return x.abs().amax((-2, -1))

    def dual(self, g: Tensor) -> Tensor:
        return g.abs().sum((-2, -1))

    def lmo(self, g: Tensor, polar: Polar) -> Tensor:
        return torch.sign(g)


class _Euclidean(Ball):
    """Root of the sum of squares, its own dual."""

    def norm(self, x: Tensor) -> Tensor:
        return _length(x, (-2, -1)).flatten()

    def dual(self, g: Tensor) -> Tensor:
        return self.norm(g)

    def lmo(self, g: Tensor, polar: Polar) -> Tensor:
        return _unit(g, (-2, -1))


class _Spectral(Ball):
    """Largest singular value; dual: their sum."""

    def norm(self, x: Tensor) -> Tensor:
        return _singular_values(x).amax(-1)

    def dual(self, g: Tensor) -> Tensor:
        return _singular_values(g).sum(-1)

    def lmo(self, g: Tensor, polar: Polar) -> Tensor:
        return polar(g)


class _Nuclear(Ball):
    """Sum of singular values; dual: the largest."""

    def norm(self, x: Tensor) -> Tensor:
        return _singular_values(x).sum(-1)

    def dual(self, g: Tensor) -> Tensor:
        return _singular_values(g).amax(-1)

    def lmo(self, g: Tensor, polar: Polar) -> Tensor:
        u, s, v = torch.linalg.svd(g, full_matrices=False)
        first = u[..., :, :1] @ v[..., :1, :]
        return torch.where(s[..., :1, None] == 0, 0.0, first)


@dataclass(frozen=True)
class _Slices(Ball):
    """Largest Euclidean length of a slice along `dim` (−1: rows, −2: columns); dual: the sum of the lengths."""

    dim: int

    def norm(self, x: Tensor) -> Tensor:
        return _length(x, self.dim).flatten(1).amax(-1)

    def dual(self, g: Tensor) -> Tensor:
        return _length(g, self.dim).flatten(1).sum(-1)

    def lmo(self, g: Tensor, polar: Polar) -> Tensor:
        return _unit(g, self.dim)


def _singular_values(x: Tensor) -> Tensor:
    found: Tensor = torch.linalg.svdvals(x)
    return found


def _length(x: Tensor, dim: int | tuple[int, ...]) -> Tensor:
    """Euclidean length, squares neither over- nor underflowing."""
    largest = x.abs().amax(dim, keepdim=True)
    scale = torch.where(largest == 0, 1.0, largest)
    relative: Tensor = torch.linalg.vector_norm(x / scale, dim=dim, keepdim=True)
    return largest * relative


def _unit(x: Tensor, dim: int | tuple[int, ...]) -> Tensor:
    """x of length 1; zero for zero."""
    length = torch.linalg.vector_norm(x, dim=dim, keepdim=True)
    if x.device.type == "cpu" and not torch.compiler.is_compiling() and _is_exact(length, x, dim):
        return x / torch.where(length == 0, 1.0, length)
    # Elsewhere it takes less time to be careful than to know.
    largest = x.abs().amax(dim, keepdim=True)
    y = x / torch.where(largest == 0, 1.0, largest)
    length = torch.linalg.vector_norm(y, dim=dim, keepdim=True)
    return y.div_(torch.where(length == 0, 1.0, length))


def _is_exact(length: Tensor, x: Tensor, dim: int | tuple[int, ...]) -> bool:
    """Whether no sum of squares in float32 has over- or underflowed."""
    safe = (length > 1e-12) & (length < 1e12)
    return bool(safe.all()) or bool((safe | ~(x != 0).any(dim, keepdim=True)).all())


@dataclass(frozen=True)
class Norm:
    """A row of the table: ``‖x‖ = c(m, n) · ball.norm(x)``.

    Attributes:
        ball: the norm up to its factor.
        factor: c, from the rows m and columns n of a matrix.
        formulas: of the norm, its dual, and its LMO.
        matrices: False: it does not depend on how entries are arranged, so tensors of any shape have it; they are
            taken as one row.
        meaning: which layers it suits, and whose step it is.

    Example:
        >>> import torch
        >>> from hasten.transforms.norms import NORMS
        >>> g = torch.tensor([[[3.0, 0.0], [0.0, -4.0]]])
        >>> NORMS["spectral"].lmo(g)
        tensor([[[ 1.,  0.],
                 [ 0., -1.]]])
        >>> NORMS["spectral"].dual(g), NORMS["frobenius"].dual(g)
        (tensor([7.]), tensor([5.]))
    """

    ball: Ball
    factor: Callable[[int, int], float]
    formulas: tuple[str, str, str]
    matrices: bool
    meaning: str

    def norm(self, x: Tensor) -> Tensor:
        """‖x‖ of every tensor of a stack [k, …], as [k]."""
        x = self._matrices(x)
        return self.ball.norm(x) * self.factor(*x.shape[-2:])

    def dual(self, g: Tensor) -> Tensor:
        """‖g‖† of every tensor of a stack [k, …], as [k]."""
        g = self._matrices(g)
        return self.ball.dual(g) / self.factor(*g.shape[-2:])

    def lmo(self, g: Tensor, polar: Polar = exact_polar) -> Tensor:
        """argmax ⟨g, t⟩ over ‖t‖ ≤ 1 for every tensor of a stack [k, …], as [k, …]; zero for zero."""
        own = self._matrices(g)
        factor, point = self.factor(*own.shape[-2:]), self.ball.lmo(own, polar)
        return (point if factor == 1 else point.div_(factor)).reshape(g.shape)

    def sharp(self, g: Tensor, polar: Polar = exact_polar) -> Tensor:
        """‖g‖† · lmo(g) = argmax ⟨g, t⟩ − ½‖t‖² for every tensor of a stack [k, …]."""
        t = self.lmo(g, polar)
        along = (g * t).reshape(len(g), -1).sum(-1)  # the dual norm, by its definition
        return along.reshape(-1, *(1,) * (g.dim() - 1)) * t

    def _matrices(self, x: Tensor) -> Tensor:
        return x if self.matrices else x.reshape(len(x), 1, -1)


def _one(m: int, n: int) -> float:
    return 1.0


def _columns(m: int, n: int) -> float:
    return float(n)


def _root_of_columns(m: int, n: int) -> float:
    return math.sqrt(n)


def _mean_over_rows(m: int, n: int) -> float:
    return 1 / math.sqrt(m)


def _mean_over_columns(m: int, n: int) -> float:
    return 1 / math.sqrt(n)


def _rms_to_rms(m: int, n: int) -> float:
    return math.sqrt(n / m)


NORMS: dict[str, Norm] = {
    "max_entry": Norm(
        _Entries(),
        _one,
        ("maxᵢⱼ |xᵢⱼ|", "Σ |gᵢⱼ|", "sign(g)"),
        False,
        "ℓ1 → ℓ∞: signSGD, and Adam without averages",
    ),
    "frobenius": Norm(
        _Euclidean(),
        _one,
        ("‖x‖_F", "‖g‖_F", "g / ‖g‖_F"),
        False,
        "of the whole tensor: normalised SGD; SGD if sharp",
    ),
    "rms": Norm(
        _Euclidean(),
        _mean_over_columns,
        ("‖x‖₂/√d", "√d ‖g‖₂", "√d g / ‖g‖₂"),
        False,
        "root mean square of all d entries: biases and gains",
    ),
    "spectral": Norm(
        _Spectral(),
        _one,
        ("σ₁(x)", "Σ σᵢ(g)", "U Vᵀ"),
        True,
        "ℓ2 → ℓ2: Muon, and Shampoo without accumulation",
    ),
    "rms_to_rms": Norm(
        _Spectral(),
        _rms_to_rms,
        ("√(n/m) σ₁(x)", "√(m/n) Σ σᵢ(g)", "√(m/n) U Vᵀ"),
        True,
        "RMS → RMS: linear layers, learning rates that keep with width",
    ),
    "nuclear": Norm(
        _Nuclear(),
        _one,
        ("Σ σᵢ(x)", "σ₁(g)", "u₁ v₁ᵀ"),
        True,
        "steps of rank one (by a full singular value decomposition)",
    ),
    "column": Norm(
        _Slices(-2),
        _mean_over_rows,
        ("maxⱼ ‖x_:ⱼ‖₂/√m", "√m Σⱼ ‖g_:ⱼ‖₂", "√m g_:ⱼ / ‖g_:ⱼ‖₂"),
        True,
        "ℓ1 → RMS: linear layers whose input is one of n symbols, a column each",
    ),
    "embedding": Norm(
        _Slices(-1),
        _mean_over_columns,
        ("maxᵢ ‖xᵢ‖₂/√n", "√n Σᵢ ‖gᵢ‖₂", "√n gᵢ / ‖gᵢ‖₂"),
        True,
        "column of the transpose: torch.nn.Embedding keeps a row for each symbol",
    ),
    "row": Norm(
        _Slices(-1),
        _one,
        ("maxᵢ ‖xᵢ‖₂", "Σᵢ ‖gᵢ‖₂", "gᵢ / ‖gᵢ‖₂"),
        True,
        "ℓ2 → ℓ∞: output layers",
    ),
    "rms_to_max": Norm(
        _Slices(-1),
        _root_of_columns,
        ("√n maxᵢ ‖xᵢ‖₂", "Σᵢ ‖gᵢ‖₂/√n", "gᵢ / (√n ‖gᵢ‖₂)"),
        True,
        "RMS → ℓ∞: output layers, learning rates that keep with width",
    ),
    "mean_to_max": Norm(
        _Entries(),
        _columns,
        ("n maxᵢⱼ |xᵢⱼ|", "Σ |gᵢⱼ|/n", "sign(g)/n"),
        True,
        "mean absolute value → ℓ∞: output layers (Scion's sign)",
    ),
}
"""Norms by name; a :class:`Norm` of your own that you put here is known to all that take a name.

m × n is the shape of a matrix, d the number of entries; rows are outputs, columns inputs.
"""


@dataclass(frozen=True)
class NormGeometry(Geometry):
    """The step of unit norm that goes furthest along the direction, or, if sharp, steepest descent itself.

    `norm` is a name in `NORMS`. ``mode="lmo"``: the learning rate is the length of the step in that norm.
    ``mode="sharp"``: times the dual norm of the direction, so that the learning rate is 1/sharpness. The orthogonal
    factor of the spectral norms comes from `backend`, in `steps` iterations (see
    :func:`~hasten.linalg.polar.orthogonalize`): ``"svd"`` is exact, the others leave singular values near 1. A zero
    direction gives zero, and so does a zero row or column where the norm takes them one by one. What is not a number
    stays so, except that its sign is 0; ``"nuclear"`` and ``"svd"`` refuse it.

    Norms of matrices see each matrix by itself (see :func:`~hasten.matrix_groups`), the others whole tensors.

    Raises:
        ValueError: an unknown norm, mode or backend.

    Example:
        >>> import torch, hasten
        >>> from hasten.transforms import EMA, NormGeometry
        >>> w = torch.eye(2, requires_grad=True)
        >>> opt = hasten.Optimizer([w], EMA(0.9), NormGeometry("row"), lr=0.5)
        >>> (w * torch.tensor([[3.0, 4.0], [0.0, 2.0]])).sum().backward()
        >>> _ = opt.step()
        >>> w.detach()
        tensor([[ 0.7000, -0.4000],
                [ 0.0000,  0.5000]])
    """

    norm: str = "spectral"
    mode: Literal["lmo", "sharp"] = "lmo"
    backend: str = "polar_express"
    steps: int | None = None
    formula: ClassVar[str] = "u = argmax ⟨d, t⟩ over ‖t‖ ≤ 1  (times ‖d‖† if sharp)"
    grain: ClassVar[Literal["element", "tensor", "matrix"]] = "matrix"

    def __post_init__(self) -> None:
        owner = type(self).__name__
        check_choice(owner, "norm", self.norm, NORMS)
        check_choice(owner, "mode", self.mode, ("lmo", "sharp"))
        check_iteration(owner, self.backend, self.steps, None)
        if not NORMS[self.norm].matrices:  # each instance has its own grain
            entrywise = self.norm == "max_entry" and self.mode == "lmo"
            object.__setattr__(self, "grain", "element" if entrywise else "tensor")

    def direction(self, d: Entry, s: Any, n: Any) -> Entry:
        """The steepest direction."""
        if self.grain == "element":
            return torch.sign(d)
        own = NORMS[self.norm]
        return own.lmo(d, self._polar) if self.mode == "lmo" else own.sharp(d, self._polar)

    def _polar(self, x: Tensor) -> Tensor:
        return orthogonalize(x, self.backend, self.steps)
