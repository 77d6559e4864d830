"""The convex problems by name, for races and the command line."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from hasten.problems.convex import ConvexProblem
from hasten.problems.quadratic import Quadratic
from hasten.problems.ridge import RidgeLeastSquares, RidgeLogistic, RidgeSoftmax
from hasten.problems.spectra import SPECTRA

__all__ = ["CONVEX_PROBLEMS"]

CONVEX_PROBLEMS: dict[str, Callable[[], ConvexProblem]] = {
    **{f"quadratic-{name}": partial(Quadratic.named, name) for name in SPECTRA},
    "logistic": RidgeLogistic.breast_cancer,
    "softmax": RidgeSoftmax.digits,
    "least-squares": RidgeLeastSquares.diabetes,
}
"""Builders by name: the axis-aligned quadratics of every named spectrum in 256 variables, and ridge models on
scikit-learn's biopsies (logistic), digits (softmax) and diabetes (least-squares)."""
