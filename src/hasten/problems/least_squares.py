"""Streaming least squares whose every constant is known in closed form."""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["StreamingLeastSquares"]


class StreamingLeastSquares:
    r"""One pass over an endless stream of linear-regression samples.

    Features :math:`a` have covariance :math:`H = \mathrm{diag}(\lambda)`, with eigenvalues spaced
    geometrically from 1 down to ``1 / condition``. Labels are
    :math:`\langle a, w^\ast\rangle + \texttt{noise}\cdot n` with
    :math:`w^\ast_i = \lambda_i^{-1/2}`, so that every direction carries the same share of the
    initial excess risk ``dimension / 2``. With ``noise=0`` the gradient noise vanishes at the
    solution (interpolation), and what slows every method down is the noise that scales with the
    gradient: the regime in which acceleration is hard.

    Two constants describe that noise for the mini-batch Hessian
    :math:`\hat H = \frac1B\sum_b a_b a_b^\top`:

    .. math:: E\,\hat H^2 \preceq R^2 H, \qquad E\,\hat H H^{-1}\hat H \preceq \tilde\kappa H .

    :math:`\kappa = R^2/\mu` is what SGD pays; :math:`\sqrt{\kappa\tilde\kappa}` is what accelerated
    SGD pays (Jain et al. 2018, arXiv:1704.08227; Liu & Belkin 2018, arXiv:1810.13395).

    Args:
        dimension: number of unknowns ``d``.
        condition: condition number of ``H``, at least 1.
        batch: samples in one mini-batch ``B``.
        noise: standard deviation of the label noise.
        one_hot: draw :math:`a = \sqrt{\mathrm{tr} H}\,e_i` with probability
            :math:`\lambda_i / \mathrm{tr} H` instead of Gaussian features. Then
            :math:`\tilde\kappa = \kappa` at batch 1, so nothing is to be gained by acceleration:
            the negative control.
        seed: seed of the generator used where none is passed to :meth:`sample`.

    Example:
        >>> problem = StreamingLeastSquares(dimension=20, condition=1e3)
        >>> features, labels = problem.sample()
        >>> features.shape, labels.shape
        (torch.Size([1, 20]), torch.Size([1]))
        >>> float(problem.excess_risk(problem.start()))
        10.0
    """

    def __init__(
        self,
        dimension: int = 20,
        condition: float = 1e3,
        batch: int = 1,
        noise: float = 0.0,
        one_hot: bool = False,
        seed: int = 0,
    ) -> None:
        for name, count in (("dimension", dimension), ("batch", batch)):
            if count != int(count) or count < 1:
                raise ValueError(f"StreamingLeastSquares: {name}={count!r} must be an integer >= 1")
        if not (math.isfinite(condition) and condition >= 1):
            raise ValueError(f"StreamingLeastSquares: condition={condition!r} must be finite and >= 1")
        if not (math.isfinite(noise) and noise >= 0):
            raise ValueError(f"StreamingLeastSquares: noise={noise!r} must be finite and >= 0")
        self.dimension = int(dimension)
        self.condition = float(condition)
        self.batch = int(batch)
        self.noise = float(noise)
        self.one_hot = bool(one_hot)
        self.eigenvalues = torch.logspace(
            0.0, -math.log10(self.condition), self.dimension, dtype=torch.float64
        )
        self.solution = self.eigenvalues.rsqrt()
        self._generator = torch.Generator().manual_seed(seed)

    def __repr__(self) -> str:
        return (
            f"StreamingLeastSquares(dimension={self.dimension}, condition={self.condition:g}, "
            f"batch={self.batch}, noise={self.noise:g}, one_hot={self.one_hot})"
        )

    @property
    def strong_convexity(self) -> float:
        """The smallest eigenvalue of the covariance, ``mu``."""
        return float(self.eigenvalues.min())

    @property
    def r_squared(self) -> float:
        """Smallest ``R^2`` with ``E Hhat^2 <= R^2 H``; SGD is stable up to step ``2 / R^2``."""
        trace, largest = float(self.eigenvalues.sum()), float(self.eigenvalues.max())
        single = trace if self.one_hot else trace + 2 * largest
        return (single + (self.batch - 1) * largest) / self.batch

    @property
    def kappa(self) -> float:
        """Condition number that SGD pays, ``R^2 / mu``."""
        return self.r_squared / self.strong_convexity

    @property
    def kappa_tilde(self) -> float:
        """Statistical condition number: smallest ``k`` with ``E Hhat H^-1 Hhat <= k H``."""
        one_hot = float(self.eigenvalues.sum()) / self.strong_convexity
        single = one_hot if self.one_hot else self.dimension + 2.0
        return (single + self.batch - 1) / self.batch

    @property
    def growth(self) -> float:
        """Growth constant ``rho`` of the gradient noise in the geometry of ``H``: ``kappa_tilde``."""
        return self.kappa_tilde

    @property
    def smoothness(self) -> float:
        """``R^2 / kappa_tilde``: smoothness for which ``1 / (growth * smoothness) = 1 / R^2``.

        The pair ``(smoothness, growth)`` is what the canonical accelerated triple takes.
        """
        return self.r_squared / self.kappa_tilde

    def start(self, *axes: int) -> Tensor:
        """The zero vector, shape ``(*axes, d)``."""
        return torch.zeros(*axes, self.dimension, dtype=torch.float64)

    def sample(self, generator: torch.Generator | None = None, *axes: int) -> tuple[Tensor, Tensor]:
        """Draw mini-batches: features ``(*axes, B, d)`` and labels ``(*axes, B)``.

        Args:
            generator: source of randomness; the problem's own where none is given.
            axes: leading axes, for many independent streams or steps drawn at once.
        """
        source = self._generator if generator is None else generator
        shape = (*axes, self.batch)
        if self.one_hot:
            drawn = torch.multinomial(self.eigenvalues, math.prod(shape), replacement=True, generator=source)
            features = torch.nn.functional.one_hot(drawn, self.dimension).double()
            features = features.reshape(*shape, self.dimension) * self.eigenvalues.sum().sqrt()
        else:
            normal = torch.randn(*shape, self.dimension, generator=source, dtype=torch.float64)
            features = normal * self.eigenvalues.sqrt()
        labels = features @ self.solution
        if self.noise:
            labels += self.noise * torch.randn(shape, generator=source, dtype=torch.float64)
        return features, labels

    def loss(self, w: Tensor, features: Tensor, labels: Tensor) -> Tensor:
        """Half the mean squared residual of the mini-batch; leading axes of ``w`` broadcast."""
        return 0.5 * self._residual(w, features, labels).square().mean(-1)

    def gradient(self, w: Tensor, features: Tensor, labels: Tensor) -> Tensor:
        """Gradient of :meth:`loss` with respect to ``w``, shape ``(..., d)``."""
        residual = self._residual(w, features, labels)
        return (residual.unsqueeze(-2) @ features).squeeze(-2) / features.shape[-2]

    def excess_risk(self, w: Tensor) -> Tensor:
        """Expected loss above the noise floor, ``(w - w*)' H (w - w*) / 2``, over the last axis."""
        return 0.5 * ((w - self.solution).square() * self.eigenvalues).sum(-1)

    @staticmethod
    def _residual(w: Tensor, features: Tensor, labels: Tensor) -> Tensor:
        return (features @ w.unsqueeze(-1)).squeeze(-1) - labels
