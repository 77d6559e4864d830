"""The compared methods as plain recursions, vectorised over settings and seeds.

Independent of the library's optimizers on purpose: the grids are tuned here, and the library is
then checked against these numbers.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from hasten.problems.least_squares import StreamingLeastSquares

POWERS_OF_TWO = [2.0**k for k in range(-14, 8)]
MOMENTA = [0.5, 0.9, 0.97, 0.99, 0.997, 0.999]


@dataclasses.dataclass(frozen=True)
class Setting:
    """``m <- beta m + g``, ``y <- y - A m - B g``; or Schedule-Free with step ``B``."""

    method: str
    label: str
    beta: float
    momentum_weight: float
    gradient_weight: float
    schedule_free: bool = False


def canonical(problem: StreamingLeastSquares) -> Setting:
    """The canonical triple from the problem's constants: nothing tuned."""
    smoothness, rho = problem.smoothness, problem.growth
    q = math.sqrt(problem.strong_convexity / smoothness)
    gradient = 1 / (rho * smoothness)
    beta = (1 - q / rho) / (1 + q / rho)
    return Setting("canonical, untuned", "formula", beta, gradient * (1 - q) / (rho + q), gradient)


def jain(problem: StreamingLeastSquares) -> Setting:
    """Jain et al.'s proven constants as a triple: nothing tuned."""
    kappa, tilde = problem.kappa, problem.kappa_tilde
    root = math.sqrt(kappa * tilde)
    s = 3 * math.sqrt(5) * root
    alpha, b = s / (1 + s), 1 / (9 * root)
    gamma = 1 / (3 * math.sqrt(5) * problem.strong_convexity * root)
    delta = 1 / (5 * problem.r_squared)
    return Setting("Jain constants", "formula", alpha * (1 - b), (1 - alpha) * (gamma - delta), delta)


def grids(problem: StreamingLeastSquares) -> dict[str, list[Setting]]:
    """Every tuned method's grid, steps in units of ``1 / R^2``."""
    unit = 1 / problem.r_squared

    def steps(low: float, high: float) -> list[float]:
        return [power for power in POWERS_OF_TWO if low <= power <= high]

    sgd = [Setting("SGD", f"lr {lr:g}/R²", 0.0, 0.0, lr * unit) for lr in steps(0.06, 4)]
    heavy = [
        Setting("heavy ball", f"lr/(1-β) {lr:g}/R², β {beta:g}", beta, lr * (1 - beta) * unit, 0.0)
        for beta in MOMENTA
        for lr in steps(0.1, 16)
    ]
    nesterov = [
        Setting("Nesterov", f"lr {lr:g}/R², β {beta:g}", beta, lr * beta * unit, lr * unit)
        for beta in MOMENTA
        for lr in steps(2.4e-4, 2)
    ]
    free = [
        Setting("Schedule-Free", f"lr {lr:g}/R², β {beta:g}", beta, 0.0, lr * unit, True)
        for beta in [0.0, 0.5, 0.9, 0.98]
        for lr in steps(0.1, 16)
    ]
    decoupled = [
        Setting("ASGD tuned", f"β {beta:g}, B {b:g}/R², α {alpha:g}", beta, b * unit / alpha, b * unit)
        for beta in [0.9, 0.97, 0.99, 0.997, 0.999, 0.9997]
        for b in [0.25, 0.5, 1.0, 2.0]
        for alpha in [1, 3, 10, 30, 100, 300]
    ]
    methods = (sgd, heavy, nesterov, free, decoupled)
    return {settings[0].method: settings for settings in methods}


class Stream:
    """The same mini-batches for everyone: step ``t`` of ``seeds`` streams, drawn in chunks."""

    def __init__(self, problem: StreamingLeastSquares, seeds: int, seed: int) -> None:
        self.problem, self.seeds = problem, seeds
        self._generator = torch.Generator().manual_seed(seed)
        self._chunk: list[tuple[Tensor, Tensor]] = []

    def draw(self) -> tuple[Tensor, Tensor]:
        """Features ``(seeds, B, d)`` and labels ``(seeds, B)`` of the next step."""
        if not self._chunk:
            count = max(1, 4096 // self.problem.batch)
            features, labels = self.problem.sample(self._generator, count, self.seeds)
            self._chunk = list(zip(features.unbind(), labels.unbind(), strict=True))[::-1]
        return self._chunk.pop()


class Triples:
    """``m <- beta m + g``, ``y <- y - A m - B g``: query point and output are ``y``."""

    def __init__(self, settings: Sequence[Setting], start: Tensor) -> None:
        self._beta = column([s.beta for s in settings])
        self._momentum_weight = column([s.momentum_weight for s in settings])
        self._gradient_weight = column([s.gradient_weight for s in settings])
        self.query, self._m = start.clone(), torch.zeros_like(start)

    def update(self, g: Tensor) -> None:
        self._m.mul_(self._beta).add_(g)
        self.query -= self._momentum_weight * self._m + self._gradient_weight * g

    @property
    def output(self) -> Tensor:
        return self.query


class ScheduleFree:
    """``z <- z - lr g(y)``, ``x`` the running mean of ``z``, ``y = beta x + (1 - beta) z``."""

    def __init__(self, settings: Sequence[Setting], start: Tensor) -> None:
        self._beta = column([s.beta for s in settings])
        self._lr = column([s.gradient_weight for s in settings])
        self.query, self.output, self._z = start.clone(), start.clone(), start.clone()
        self._steps = 0

    def update(self, g: Tensor) -> None:
        self._steps += 1
        self._z -= self._lr * g
        self.output = self.output + (self._z - self.output) / self._steps
        self.query = self._beta * self.output + (1 - self._beta) * self._z


def column(values: list[float]) -> Tensor:
    """One value a setting, broadcasting over coordinates."""
    return torch.tensor(values, dtype=torch.float64).unsqueeze(-1)


def run(
    problem: StreamingLeastSquares,
    settings: Sequence[Setting],
    samples: Sequence[int],
    seeds: int,
    seed: int,
    tail_average: bool = False,
) -> Tensor:
    """Excess risk ``(checkpoint, seed, setting)`` after each of the sample counts.

    All settings are of one kind. With ``tail_average`` the risk is that of the average of the
    run's second half, except for Schedule-Free, which averages by itself.
    """
    free = settings[0].schedule_free
    start = problem.start(seeds, len(settings))
    iterate = ScheduleFree(settings, start) if free else Triples(settings, start)
    tail = TailAverage(problem, samples) if tail_average and not free else None
    stream = Stream(problem, seeds, seed)
    checkpoints = [count // problem.batch for count in samples]
    risks = []
    for step in range(1, checkpoints[-1] + 1):
        features, labels = stream.draw()
        residual = iterate.query @ features.mT - labels.unsqueeze(-2)
        iterate.update(residual @ features / problem.batch)
        if tail:
            tail.add(step, iterate.output)
        if step in checkpoints:
            output = tail.mean(step) if tail else iterate.output
            risks.append(problem.excess_risk(output))
    return torch.stack(risks)


class TailAverage:
    """Mean of the iterates of a run's second half, for several lengths of the same run."""

    def __init__(self, problem: StreamingLeastSquares, samples: Sequence[int]) -> None:
        steps = [count // problem.batch for count in samples]
        self._halves = {step // 2 for step in steps}
        self._at_half: dict[int, Tensor] = {}
        self._total: Tensor | None = None

    def add(self, step: int, y: Tensor) -> None:
        """Take the iterate after a step."""
        self._total = y.clone() if self._total is None else self._total.add_(y)
        if step in self._halves:
            self._at_half[step] = self._total.clone()

    def mean(self, step: int) -> Tensor:
        """Average over the steps after ``step // 2``, up to ``step``."""
        assert self._total is not None
        return (self._total - self._at_half[step // 2]) / (step - step // 2)


def tune(risks: Tensor) -> Tensor:
    """Index of the best setting at each checkpoint: least geometric mean over the seeds."""
    logarithms = risks.nan_to_num(nan=math.inf, posinf=math.inf).log()
    return logarithms.mean(1).argmin(-1)
