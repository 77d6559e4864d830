"""When a run ends, and what is kept of it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from hasten.numbers import Number, maximum, where
from hasten.solvers.objective import Objective, finite
from hasten.solvers.options import option
from hasten.solvers.result import Status
from hasten.solvers.space import Mask, Space, invert
from hasten.words import NONNEGATIVE, Interval

RUNNING = float(Status.RUNNING)
DIVERGENCE = 1e12
"""A value above this many times max(1, |F(x0)|) ends a run as diverged."""
FALL = 1e30
"""A value below minus this many times max(1, |F(x0)|) ends a run: no objective that has a minimum falls so far."""


@dataclass(frozen=True)
class Stopping:
    """The stopping options, which every method takes."""

    gtol: float = option(1e-5, NONNEGATIVE, "stop when the largest entry of the gradient is at most this")
    ftol: float = option(
        0.0, NONNEGATIVE, "stop when an iteration lowers F by at most this, relative to max(|F|, 1); 0: never"
    )
    xtol: float = option(
        0.0, NONNEGATIVE, "stop when an iteration moves x by at most this, relative to max(‖x‖, 1); 0: never"
    )
    maxiter: float = option(15000, Interval(0), "most iterations", integer=True)
    max_evaluations: float = option(
        math.inf,
        Interval(1, math.inf, "both"),
        "most evaluations of fun",
        integer=True,
        also=("maxfun", "maxfev"),
    )
    seconds: float = option(math.inf, Interval(0, math.inf, "both"), "most seconds")
    history: bool = option(False, (False, True), "record every round in result.history")
    disp: bool = option(False, (False, True), "show progress, as progress=True does")


class Ledger:
    """The previous point, the best point and the outcome of every problem.

    `outcome` is the status (RUNNING while it runs); x, f, g are those to report, once it has ended.
    """

    def __init__(self, space: Space, stopping: Stopping, state: Any) -> None:
        self.space = space
        self.stopping = stopping
        self.first: Number = state.f
        self.previous_f: Number = state.f
        self.previous_x: Tensor = state.x
        self.x: Tensor = state.x
        self.f: Number = state.f
        self.g: Tensor | None = state.g
        self.iterations: Number = state.iterations
        self.outcome: Number = space.number(RUNNING)
        verdict: Number = Status.MAXITER if stopping.maxiter == 0 else RUNNING
        verdict = where(state.residual <= stopping.gtol, Status.GRADIENT, verdict)
        self._end(where(finite(state.f, state.residual), verdict, Status.START))

    @property
    def running(self) -> Mask:
        """The problems that have not ended."""
        return self.outcome == RUNNING

    def judge(self, objective: Objective, state: Any, seconds: float) -> None:
        """Take note of a round: keep the best point, and end problems that meet a rule."""
        rule, space = self.stopping, self.space
        running, stepped = self.running, state.stepped
        good = finite(state.f, state.residual)
        verdict: Number = RUNNING
        verdict = where(objective.counts["nfev"] >= rule.max_evaluations, Status.EVALUATIONS, verdict)
        if seconds >= rule.seconds:
            verdict = where(running, Status.SECONDS, verdict)
        verdict = where(state.iterations >= rule.maxiter, Status.MAXITER, verdict)
        if rule.xtol > 0:
            moved = space.norm(state.x - self.previous_x)
            small = moved <= rule.xtol * maximum(space.norm(state.x), space.number(1.0))
            verdict = where(stepped & small, Status.STEP, verdict)
        if rule.ftol > 0:
            scale = maximum(maximum(abs(state.f), abs(self.previous_f)), space.number(1.0))
            decrease = self.previous_f - state.f
            verdict = where(
                stepped & (decrease <= rule.ftol * scale) & (decrease >= 0), Status.DECREASE, verdict
            )
        far = state.f > DIVERGENCE * maximum(abs(self.first), space.number(1.0))
        verdict = where(stepped & far, Status.DIVERGED, verdict)
        verdict = where(state.failed, Status.LINE_SEARCH, verdict)
        verdict = where(stepped & (state.residual <= rule.gtol), Status.GRADIENT, verdict)
        verdict = where(stepped & invert(good), Status.NONFINITE, verdict)
        endless = state.f < -FALL * maximum(abs(self.first), space.number(1.0))
        verdict = where((stepped | state.failed) & endless, Status.UNBOUNDED, verdict)

        # A point that meets a tolerance is reported itself; any other end reports the best point.
        met = (verdict == Status.GRADIENT) | (verdict == Status.DECREASE) | (verdict == Status.STEP)
        better = running & stepped & (met | (good & (state.f <= self.f)) | (state.f == -math.inf))
        self.take(better, state.x, state.f, state.g)
        self.iterations = where(running, state.iterations, self.iterations)
        self.previous_f = where(stepped, state.f, self.previous_f)
        if rule.xtol > 0:
            self.previous_x = space.select(stepped, state.x, self.previous_x)
        self._end(where(running, verdict, RUNNING))

    def take(self, mask: Mask, x: Tensor, f: Number, g: Tensor | None) -> None:
        """Keep a point as the one to report, where the mask holds."""
        self.x = self.space.select(mask, x, self.x)
        self.f = where(mask, f, self.f)
        self.g = None if g is None or self.g is None else self.space.select(mask, g, self.g)

    def end(self, status: Status) -> None:
        """End every problem that is still running."""
        self._end(self.space.number(float(status)))

    def _end(self, verdict: Number) -> None:
        self.outcome = where(self.running, verdict, self.outcome)
