"""What to expect of descent from sketched gradients: bounds, constants, predictions and advice.

    from hasten import theory
    from hasten.sketches import BalancedCountSketch
    print(theory.predict(problem, BalancedCountSketch(rank=16), accuracy=1e-4))
    print(theory.advise(problem, accuracy=1e-4).sentence)

``hasten advise`` prints the same on the command line.
"""

from hasten.theory.advice import Advice, advise
from hasten.theory.bounds import Accelerated, Bound, ScheduleC, ScheduleS, ScheduleU, SubspaceDescent
from hasten.theory.constants import (
    fixed_restart_interval,
    importance_constant,
    noisy_bound,
    noisy_smoothness,
)
from hasten.theory.prediction import Cost, Known, KnownProblem, Prediction, clusters, predict

__all__ = [
    "Accelerated",
    "Advice",
    "Bound",
    "Cost",
    "Known",
    "KnownProblem",
    "Prediction",
    "ScheduleC",
    "ScheduleS",
    "ScheduleU",
    "SubspaceDescent",
    "advise",
    "clusters",
    "fixed_restart_interval",
    "importance_constant",
    "noisy_bound",
    "noisy_smoothness",
    "predict",
]
