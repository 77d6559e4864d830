"""Ridge-regularised linear models on real data, with every constant known.

With features A (n rows), scores A·w and the ridge λ, each objective is a mean loss plus (λ/2)‖w‖². Its smoothness
matrix L is the largest Hessian the loss can have: AᵀA/(4n) + λI for the logistic loss, ½(I − 11ᵀ/K) ⊗ AᵀA/n + λI for
the softmax loss over K classes (Böhning, "Multinomial logistic regression algorithm", 1992), AᵀA/n + λI for squares.
"""

from __future__ import annotations

import abc
import math
from functools import cached_property

import torch
from torch import Tensor
from torch.nn import functional

from hasten.problems.convex import ConvexProblem
from hasten.sketches.curvature import Curvature

__all__ = ["RidgeLeastSquares", "RidgeLogistic", "RidgeSoftmax"]


class RidgeProblem(ConvexProblem):
    """What the three have in common; the minimiser is found by Newton's method when it is first asked for."""

    def __init__(self, features: Tensor, targets: Tensor, ridge: float, outputs: int = 1) -> None:
        owner = type(self).__name__
        if features.ndim != 2 or features.numel() == 0:
            raise ValueError(
                f"{owner}: features of shape {tuple(features.shape)} must be a matrix (examples, measurements)"
            )
        if targets.shape != features.shape[:1]:
            raise ValueError(
                f"{owner}: targets of shape {tuple(targets.shape)} must hold one entry "
                f"for each of the {features.shape[0]} rows of features"
            )
        if not bool(torch.isfinite(features).all() and torch.isfinite(targets.double()).all()):
            raise ValueError(f"{owner}: features and targets must be finite")
        if not (math.isfinite(ridge) and ridge > 0):
            raise ValueError(f"{owner}: ridge = {ridge!r} is not allowed; it must be positive and finite")
        self.features = features.detach().to(torch.float64)
        self.targets = targets.detach()
        self.ridge = float(ridge)
        self.dimension = outputs * features.shape[1]

    def __repr__(self) -> str:
        n, d = self.features.shape[0], self.dimension
        return f"{type(self).__name__}(examples={n}, dimension={d}, ridge={self.ridge:g})"

    @property
    def strong_convexity(self) -> float:
        """The ridge λ."""
        return self.ridge

    @cached_property
    def curvature(self) -> Curvature:
        """L as a matrix."""
        return Curvature.of(self._loss_curvature()).plus(self.ridge)

    def value(self, x: Tensor) -> Tensor:
        """Mean loss plus ridge."""
        return self._loss(x) + 0.5 * self.ridge * x.square().sum(-1)

    def gradient(self, x: Tensor) -> Tensor:
        """Gradient of the mean loss plus λ x."""
        return self._loss_gradient(x) + self.ridge * x

    def hessian(self, x: Tensor) -> Tensor:
        """Second derivatives at one point, shape ``(d, d)``."""
        return self._loss_hessian(x) + self.ridge * torch.eye(self.dimension, dtype=torch.float64)

    @cached_property
    def minimiser(self) -> Tensor:
        """x*, to round-off, by Newton's method with halved steps far from the solution."""
        x, value = self.start, float(self.value(self.start))
        for _ in range(100):
            gradient = self.gradient(x)
            direction: Tensor = torch.linalg.solve(self.hessian(x), gradient)
            decrement = float(gradient @ direction)
            step = 1.0
            # Armijo's test, until the decrease it asks for is below what values can show.
            while decrement > 1e-10 * abs(value) and step > 1e-10:
                if float(self.value(x - step * direction)) <= value - 0.25 * step * decrement:
                    break
                step /= 2
            x = x - step * direction
            value = float(self.value(x))
            # About twice what f − f* was before this step, and the step squares it.
            if decrement <= 1e-24 * max(1.0, abs(value)):
                return x
        raise ArithmeticError(f"{self!r}: Newton's method did not converge")

    @abc.abstractmethod
    def _loss(self, x: Tensor) -> Tensor: ...

    @abc.abstractmethod
    def _loss_gradient(self, x: Tensor) -> Tensor: ...

    @abc.abstractmethod
    def _loss_hessian(self, x: Tensor) -> Tensor: ...

    @abc.abstractmethod
    def _loss_curvature(self) -> Tensor: ...

    def _gram(self, weights: Tensor | None = None) -> Tensor:
        """Aᵀ diag(weights) A / n."""
        weighted = self.features if weights is None else self.features * weights.unsqueeze(-1)
        return self.features.mT @ weighted / len(self.features)


class RidgeLogistic(RidgeProblem):
    r""":math:`f(w) = \frac1n\sum_i \log(1 + e^{-b_i\langle a_i, w\rangle}) + \frac\lambda2\|w\|^2`.

    Args:
        features: rows a_i, shape ``(n, d)``.
        labels: b_i, each −1 or 1, shape ``(n,)``.
        ridge: λ > 0.

    Example:
        >>> problem = RidgeLogistic(torch.tensor([[1.0], [2.0]]), torch.tensor([1, -1]), ridge=0.1)
        >>> round(problem.smoothness, 3)
        0.725
    """

    def __init__(self, features: Tensor, labels: Tensor, ridge: float) -> None:
        super().__init__(features, labels, ridge)
        if not bool((labels.abs() == 1).all()):
            raise ValueError("RidgeLogistic: labels must be -1 or 1")
        self._signed = self.features * labels.to(torch.float64).unsqueeze(-1)

    @classmethod
    def breast_cancer(cls, ridge: float = 1e-3) -> RidgeLogistic:
        """569 biopsies: 30 standardised measurements and a constant, 1 for benign (scikit-learn's data).

        Example:
            >>> RidgeLogistic.breast_cancer()
            RidgeLogistic(examples=569, dimension=31, ridge=0.001)
        """
        from sklearn.datasets import load_breast_cancer

        inputs, labels = load_breast_cancer(return_X_y=True)
        return cls(_standardised(torch.from_numpy(inputs)), 2 * torch.from_numpy(labels) - 1, ridge)

    def _loss(self, x: Tensor) -> Tensor:
        # Not softplus, which torch rounds to the identity beyond 20.
        return -functional.logsigmoid(x @ self._signed.mT).mean(-1)

    def _loss_gradient(self, x: Tensor) -> Tensor:
        return -torch.sigmoid(-(x @ self._signed.mT)) @ self._signed / len(self._signed)

    def _loss_hessian(self, x: Tensor) -> Tensor:
        probability = torch.sigmoid(self._signed @ x)
        return self._gram(probability * (1 - probability))

    def _loss_curvature(self) -> Tensor:
        return self._gram() / 4


class RidgeSoftmax(RidgeProblem):
    r""":math:`f(W) = \frac1n\sum_i \big[\log\sum_k e^{\langle a_i, W_k\rangle} - \langle a_i, W_{b_i}\rangle\big]
    + \frac\lambda2\|W\|^2`, with the K rows of W one after another in one vector.

    Args:
        features: rows a_i, shape ``(n, p)``.
        labels: classes b_i, integers from 0, shape ``(n,)``.
        ridge: λ > 0.

    Example:
        >>> problem = RidgeSoftmax(torch.tensor([[1.0], [2.0], [0.5]]), torch.tensor([0, 1, 2]), ridge=0.1)
        >>> problem.dimension
        3
    """

    def __init__(self, features: Tensor, labels: Tensor, ridge: float) -> None:
        if labels.is_floating_point() or labels.numel() == 0 or int(labels.min()) < 0:
            raise ValueError("RidgeSoftmax: labels must be integers from 0")
        self.classes = int(labels.max()) + 1
        super().__init__(features, labels.long(), ridge, self.classes)

    @classmethod
    def digits(cls, ridge: float = 1e-3) -> RidgeSoftmax:
        """1797 handwritten digits of 64 pixels, scaled to [0, 1] (scikit-learn's data).

        Example:
            >>> RidgeSoftmax.digits()
            RidgeSoftmax(examples=1797, dimension=640, ridge=0.001)
        """
        from sklearn.datasets import load_digits

        inputs, labels = load_digits(return_X_y=True)
        return cls(torch.from_numpy(inputs) / 16, torch.from_numpy(labels), ridge)

    def _scores(self, x: Tensor) -> Tensor:
        rows = x.reshape(*x.shape[:-1], self.classes, self.features.shape[1])
        return self.features @ rows.mT

    def _loss(self, x: Tensor) -> Tensor:
        scores = self._scores(x)
        chosen = self.targets.expand(scores.shape[:-1]).unsqueeze(-1)
        return (torch.logsumexp(scores, -1) - scores.gather(-1, chosen).squeeze(-1)).mean(-1)

    def _loss_gradient(self, x: Tensor) -> Tensor:
        excess = torch.softmax(self._scores(x), -1) - functional.one_hot(self.targets, self.classes)
        return (excess.mT @ self.features).flatten(-2) / len(self.features)

    def _loss_hessian(self, x: Tensor) -> Tensor:
        p, width = torch.softmax(self._scores(x), -1), self.features.shape[1]
        blocks = torch.empty(self.classes, width, self.classes, width, dtype=torch.float64)
        for j in range(self.classes):
            for k in range(j + 1):
                block = self._gram(p[:, j] * (float(j == k) - p[:, k]))
                blocks[j, :, k] = blocks[k, :, j] = block
        return blocks.reshape(self.dimension, self.dimension)

    def _loss_curvature(self) -> Tensor:
        centring = torch.eye(self.classes, dtype=torch.float64) - 1 / self.classes
        return torch.kron(centring / 2, self._gram())


class RidgeLeastSquares(RidgeProblem):
    r""":math:`f(w) = \frac1{2n}\|Aw - b\|^2 + \frac\lambda2\|w\|^2`; `curvature` is its Hessian.

    Args:
        features: A, shape ``(n, d)``.
        targets: b, shape ``(n,)``.
        ridge: λ > 0.

    Example:
        >>> problem = RidgeLeastSquares(torch.tensor([[2.0]]), torch.tensor([3.0]), ridge=2.0)
        >>> problem.minimiser
        tensor([1.], dtype=torch.float64)
    """

    def __init__(self, features: Tensor, targets: Tensor, ridge: float) -> None:
        super().__init__(features, targets.to(torch.float64), ridge)

    @classmethod
    def diabetes(cls, ridge: float = 1e-3) -> RidgeLeastSquares:
        """442 patients: 10 standardised measurements and a constant; standardised progress (scikit-learn's data).

        Example:
            >>> RidgeLeastSquares.diabetes()
            RidgeLeastSquares(examples=442, dimension=11, ridge=0.001)
        """
        from sklearn.datasets import load_diabetes

        inputs, progress = map(torch.from_numpy, load_diabetes(return_X_y=True, scaled=False))
        progress = (progress - progress.mean()) / progress.std(correction=0)
        return cls(_standardised(inputs), progress, ridge)

    @cached_property
    def strong_convexity(self) -> float:
        """The smallest eigenvalue of the Hessian, at least the ridge."""
        return float(torch.linalg.eigvalsh(self.hessian(self.start))[0])

    def _loss(self, x: Tensor) -> Tensor:
        return 0.5 * (x @ self.features.mT - self.targets).square().mean(-1)

    def _loss_gradient(self, x: Tensor) -> Tensor:
        return (x @ self.features.mT - self.targets) @ self.features / len(self.features)

    def _loss_hessian(self, x: Tensor) -> Tensor:
        return self._gram()

    def _loss_curvature(self) -> Tensor:
        return self._gram()


def _standardised(inputs: Tensor) -> Tensor:
    """Columns of mean 0 and (population) standard deviation 1, and a column of ones."""
    scaled = (inputs - inputs.mean(0)) / inputs.std(0, correction=0)
    return torch.cat([scaled, torch.ones(len(inputs), 1, dtype=scaled.dtype)], 1)
