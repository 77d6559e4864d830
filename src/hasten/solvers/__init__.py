"""Deterministic problems: `minimize`, its methods, and their home in SciPy.

A method enters :data:`METHODS` when its module is imported, here.
"""

from hasten.solvers.accelerated import Fista, Nesterov
from hasten.solvers.conjugate_gradient import ConjugateGradient
from hasten.solvers.driver import minimize
from hasten.solvers.gradient_descent import GradientDescent
from hasten.solvers.lbfgs import LBFGS
from hasten.solvers.method import METHODS, Method, State, register
from hasten.solvers.result import OptimizeResult, Status
from hasten.solvers.scipy_protocol import scipy_method
from hasten.solvers.subspace import CoordinateDescent, SubspaceGradientDescent, SubspaceNesterov
from hasten.solvers.terms import L1, Box

__all__ = [
    "L1",
    "LBFGS",
    "METHODS",
    "Box",
    "ConjugateGradient",
    "CoordinateDescent",
    "Fista",
    "GradientDescent",
    "Method",
    "Nesterov",
    "OptimizeResult",
    "State",
    "Status",
    "SubspaceGradientDescent",
    "SubspaceNesterov",
    "minimize",
    "register",
    "scipy_method",
]
