"""Deterministic problems: `minimize`, its methods, and their home in SciPy.

A method enters :data:`METHODS` when its module is imported, here.
"""

from hasten.solvers.driver import minimize
from hasten.solvers.gradient_descent import GradientDescent
from hasten.solvers.method import METHODS, Method, State, register
from hasten.solvers.result import OptimizeResult, Status
from hasten.solvers.terms import L1, Box

__all__ = [
    "L1",
    "METHODS",
    "Box",
    "GradientDescent",
    "Method",
    "OptimizeResult",
    "State",
    "Status",
    "minimize",
    "register",
]
