"""hasten: accelerated optimization for PyTorch.

optimizer = oracle → transforms (momentum · geometry · step) → iterate
"""

from hasten import iterates, optimizers, oracles, schedules, transforms
from hasten.describe import Description, describe
from hasten.engine import EngineOptions, NonFiniteGradient, Optimizer, Sentence
from hasten.equivalence import Equivalence, equivalent
from hasten.optimizers import (
    MARS,
    QHM,
    SGD,
    AcceleratedSGD,
    AdaBound,
    Adafactor,
    Adam,
    AdaMax,
    AdamW,
    AdEMAMix,
    AMSBound,
    AMSGrad,
    DiffGrad,
    HeavyBall,
    Lion,
    MaSS,
    NAdamW,
    Nesterov,
    Prodigy,
    QHAdam,
    RAdam,
    ScheduleFreeAdamW,
    ScheduleFreeSGD,
    Signum,
    SimplifiedAdEMAMix,
    StochasticNesterov,
    TripleMomentum,
)

__version__ = "0.1.0"

__all__ = [
    "MARS",
    "QHM",
    "SGD",
    "AMSBound",
    "AMSGrad",
    "AcceleratedSGD",
    "AdEMAMix",
    "AdaBound",
    "AdaMax",
    "Adafactor",
    "Adam",
    "AdamW",
    "Description",
    "DiffGrad",
    "EngineOptions",
    "Equivalence",
    "HeavyBall",
    "Lion",
    "MaSS",
    "NAdamW",
    "Nesterov",
    "NonFiniteGradient",
    "Optimizer",
    "Prodigy",
    "QHAdam",
    "RAdam",
    "ScheduleFreeAdamW",
    "ScheduleFreeSGD",
    "Sentence",
    "Signum",
    "SimplifiedAdEMAMix",
    "StochasticNesterov",
    "TripleMomentum",
    "describe",
    "equivalent",
    "iterates",
    "optimizers",
    "oracles",
    "schedules",
    "transforms",
]
