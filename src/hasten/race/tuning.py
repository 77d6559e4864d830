"""The search for a learning rate: the same number of trials, of the same length, for everybody."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from typing import Protocol

from hasten.race.errors import RaceError, require
from hasten.race.task import derive_seed

SEARCHES = ("random", "optuna", "grid")
SPAN = 10.0
"""Factors are searched from ``1 / SPAN`` to ``SPAN`` times the recommended learning rate."""


class Search(Protocol):
    """Proposes a factor, is told what became of it, and so on."""

    def propose(self) -> float:
        """The next factor to try."""

    def learn(self, factor: float, loss: float) -> None:
        """Take note of a trial's loss (infinite where it diverged)."""


class FixedSearch:
    """Factors known beforehand.

    Example:
        >>> search = FixedSearch([1.0, 3.0])
        >>> search.propose(), search.propose()
        (1.0, 3.0)
    """

    def __init__(self, factors: list[float]) -> None:
        self._left = list(factors)

    def propose(self) -> float:
        """The next factor of the list."""
        return self._left.pop(0)

    def learn(self, factor: float, loss: float) -> None:
        """Nothing depends on the losses here."""


class OptunaSearch:
    """Optuna's tree-structured Parzen estimator over the logarithm of the factor.

    Example:
        >>> 0.1 <= OptunaSearch(seed=0, trials=3).propose() <= 10
        True
    """

    def __init__(self, seed: int, trials: int) -> None:
        require("optuna", purpose="--search optuna")
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        sampler = optuna.samplers.TPESampler(seed=seed % 2**32, n_startup_trials=max(1, min(5, trials // 2)))
        self._study = optuna.create_study(sampler=sampler)
        self._study.enqueue_trial({"factor": 1.0})

    def propose(self) -> float:
        """Ask the study."""
        self._trial = self._study.ask()
        return float(self._trial.suggest_float("factor", 1 / SPAN, SPAN, log=True))

    def learn(self, factor: float, loss: float) -> None:
        """Tell the study; a divergence is told as a loss worse than any other."""
        self._study.tell(self._trial, loss if math.isfinite(loss) else 1e30)


def make_search(kind: str, trials: int, task: str, label: str) -> Search:
    """A search whose proposals depend on task, entrant and past trials alone.

    The first proposal is the recommended setting. Random proposals are one from each of equal
    parts of the logarithmic range, in random order, so that few trials still cover it.

    Example:
        >>> make_search("grid", 3, "lm", "Lion").propose()
        0.1
    """
    seed = derive_seed(task, label, "search")
    if kind == "grid":
        exponents = [2 * k / max(1, trials - 1) - 1 for k in range(trials)] if trials > 1 else [0]
        return FixedSearch([SPAN**e for e in exponents])
    if kind == "random":
        draw = random.Random(seed)
        parts = list(range(trials - 1))
        draw.shuffle(parts)
        exponents = [2 * (k + draw.random()) / (trials - 1) - 1 for k in parts]
        return FixedSearch([1.0, *(SPAN**e for e in exponents)])
    if kind == "optuna":
        return OptunaSearch(seed, trials)
    raise RaceError(f"search={kind!r} must be one of {', '.join(SEARCHES)}")


def tune(search: Search, trials: int, attempt: Callable[[int, float], float]) -> float:
    """The best factor of ``trials`` attempts; the recommended one if every attempt diverged.

    Args:
        search: where factors come from.
        trials: how many to try.
        attempt: runs trial number ``k`` at a factor and gives its final loss.

    Example:
        >>> tune(FixedSearch([0.1, 1.0, 10.0]), 3, lambda k, factor: abs(factor - 2))
        1.0
    """
    best, lowest = 1.0, math.inf
    for number in range(trials):
        factor = search.propose()
        loss = attempt(number, factor)
        search.learn(factor, loss)
        if loss < lowest:
            best, lowest = factor, loss
    return best
