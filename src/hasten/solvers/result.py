"""How a run ended, and what it found."""

from __future__ import annotations

from enum import IntEnum
from typing import Any

from torch import Tensor

__all__ = ["OptimizeResult", "Status"]


class Status(IntEnum):
    """Why a run ended. 0, 10 and 11 are successes.

    Example:
        >>> Status.GRADIENT.success, Status.MAXITER.message
        (True, 'The number of iterations reached maxiter.')
    """

    RUNNING = -1
    GRADIENT = 0
    MAXITER = 1
    EVALUATIONS = 2
    SECONDS = 3
    LINE_SEARCH = 4
    NONFINITE = 5
    START = 6
    UNBOUNDED = 7
    DIVERGED = 8
    DECREASE = 10
    STEP = 11
    CALLBACK = 99

    @property
    def success(self) -> bool:
        """Whether a tolerance was met."""
        return self in (Status.GRADIENT, Status.DECREASE, Status.STEP)

    @property
    def message(self) -> str:
        """The status in words."""
        return _MESSAGES[self]


_MESSAGES = {
    Status.RUNNING: "The run has not ended.",
    Status.GRADIENT: "Converged: the largest gradient entry is at most gtol.",
    Status.MAXITER: "The number of iterations reached maxiter.",
    Status.EVALUATIONS: "The number of evaluations reached max_evaluations.",
    Status.SECONDS: "The time limit was reached.",
    Status.LINE_SEARCH: "The line search found no better point: precision is exhausted, or the gradient is wrong.",
    Status.NONFINITE: "The objective or its gradient became infinite or nan; the best point found is returned.",
    Status.START: "The objective or its gradient is infinite or nan at x0; x0 is returned.",
    Status.UNBOUNDED: "The objective falls without end: it seems to be unbounded below.",
    Status.DIVERGED: "The objective grew far above its first value (a step too long?); the best point is returned.",
    Status.DECREASE: "Converged: the relative decrease of the objective is at most ftol.",
    Status.STEP: "Converged: the relative length of the step is at most xtol.",
    Status.CALLBACK: "`callback` raised `StopIteration`.",
}


class OptimizeResult(dict[str, Any]):
    """The outcome of :func:`hasten.minimize`: SciPy's fields, as attributes and as keys.

    Attributes:
        x: the solution, with the structure, dtype and device of `x0`.
        fun: the objective there, a float (batched: a float64 tensor ``(B,)``, as are the other numbers).
        jac: its gradient there, with the structure of `x`.
        success: whether a tolerance was met.
        status: why the run ended, a :class:`Status`.
        message: the same in words (batched: a list).
        nit: iterations.
        nfev, njev, nhev, nproj: evaluations of the objective, its gradient, Hessian products, and directional
            derivatives in sketched directions.
        history: with ``options={"history": True}``, a dictionary of lists with an entry for the start and for every
            round after it: ``nit``, ``fun``, ``residual``, ``nfev``, ``njev``, ``nproj``, ``seconds``.

    Example:
        >>> result = OptimizeResult(x=1.0, fun=0.5)
        >>> result.fun, result["fun"]
        (0.5, 0.5)
    """

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"OptimizeResult has no {name!r}; it has {', '.join(self)}") from None

    def __setattr__(self, name: str, value: Any) -> None:
        self[name] = value

    def __delattr__(self, name: str) -> None:
        try:
            del self[name]
        except KeyError:
            raise AttributeError(f"OptimizeResult has no {name!r}") from None

    def __dir__(self) -> list[str]:
        return [*super().__dir__(), *self]

    def __repr__(self) -> str:
        width = max(map(len, self), default=0) + 1
        return "\n".join(f"{name:>{width}}: {_shown(self[name], width + 2)}" for name in self)


def _shown(value: Any, indent: int) -> str:
    if isinstance(value, Status):
        return str(int(value))
    if isinstance(value, Tensor) and value.numel() > 12:
        return f"tensor of shape {tuple(value.shape)}, {value.dtype}, on {value.device}"
    if isinstance(value, dict) and value and all(isinstance(v, list) for v in value.values()):
        return f"{', '.join(value)} of {len(next(iter(value.values())))} rounds"
    return repr(value).replace("\n", "\n" + " " * indent)
