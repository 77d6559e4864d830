"""The Moré-Garbow-Hillstrom collection: 35 small nonlinear problems that optimizers are judged by.

Every problem is a sum of squares with a standard start and a known least value. Formulas, data,
starts and minima: J. J. Moré, B. S. Garbow, K. E. Hillstrom, "Testing unconstrained optimization
software", ACM Transactions on Mathematical Software 7(1), 1981, and its Algorithm 566. Where the
two differ (a sign in the Gulf problem) the algorithm is followed, with its numbers of terms.
"""

from hasten.problems.more_garbow_hillstrom.fixed import FIXED
from hasten.problems.more_garbow_hillstrom.problem import LeastSquaresProblem
from hasten.problems.more_garbow_hillstrom.variable import VARIABLE

MORE_GARBOW_HILLSTROM: dict[str, LeastSquaresProblem] = {
    problem.name: problem for problem in (*FIXED, *VARIABLE)
}

__all__ = ["MORE_GARBOW_HILLSTROM", "LeastSquaresProblem"]
