"""hasten: accelerated optimization for PyTorch.

optimizer = oracle → transforms (momentum · geometry · step) → iterate
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from hasten import iterates, linalg, optimizers, oracles, schedules, sketches, transforms
from hasten.engine import Description, EngineOptions, NonFiniteGradient, Optimizer, Sentence, describe
from hasten.engine.routing import matrix_groups
from hasten.equivalence import Equivalence, equivalent
from hasten.optimizers import (
    MARS,
    QHM,
    SGD,
    SOAP,
    AcceleratedSGD,
    AdaBound,
    Adafactor,
    Adam,
    AdaMax,
    AdaMuon,
    AdamW,
    AdEMAMix,
    AdEMAMixMuon,
    AMSBound,
    AMSGrad,
    DCTAdamW,
    DiffGrad,
    HeavyBall,
    Lion,
    MARSMuon,
    MaSS,
    Muon,
    NAdamW,
    Nesterov,
    Prodigy,
    QHAdam,
    RAdam,
    ScheduleFreeAdamW,
    ScheduleFreeMuon,
    ScheduleFreeSGD,
    Scion,
    Shampoo,
    Signum,
    SimplifiedAdEMAMix,
    SteepestDescent,
    StochasticNesterov,
    SubspaceGradientDescent,
    SubspaceNesterov,
    Trion,
    TripleMomentum,
    TurboMuon,
)
from hasten.optimizers.layers import norm_groups

if TYPE_CHECKING:
    from hasten import distributed, problems, solvers, theory
    from hasten.solvers import OptimizeResult, minimize, scipy_method

__version__ = "0.1.0"

__all__ = [
    "MARS",
    "QHM",
    "SGD",
    "SOAP",
    "AMSBound",
    "AMSGrad",
    "AcceleratedSGD",
    "AdEMAMix",
    "AdEMAMixMuon",
    "AdaBound",
    "AdaMax",
    "AdaMuon",
    "Adafactor",
    "Adam",
    "AdamW",
    "DCTAdamW",
    "Description",
    "DiffGrad",
    "EngineOptions",
    "Equivalence",
    "HeavyBall",
    "Lion",
    "MARSMuon",
    "MaSS",
    "Muon",
    "NAdamW",
    "Nesterov",
    "NonFiniteGradient",
    "OptimizeResult",
    "Optimizer",
    "Prodigy",
    "QHAdam",
    "RAdam",
    "ScheduleFreeAdamW",
    "ScheduleFreeMuon",
    "ScheduleFreeSGD",
    "Scion",
    "Sentence",
    "Shampoo",
    "Signum",
    "SimplifiedAdEMAMix",
    "SteepestDescent",
    "StochasticNesterov",
    "SubspaceGradientDescent",
    "SubspaceNesterov",
    "Trion",
    "TripleMomentum",
    "TurboMuon",
    "describe",
    "distributed",
    "equivalent",
    "iterates",
    "linalg",
    "matrix_groups",
    "minimize",
    "norm_groups",
    "optimizers",
    "oracles",
    "problems",
    "schedules",
    "scipy_method",
    "sketches",
    "solvers",
    "theory",
    "transforms",
]

_LATER = {
    "OptimizeResult": "hasten.solvers",
    "distributed": "hasten.distributed",
    "minimize": "hasten.solvers",
    "problems": "hasten.problems",
    "scipy_method": "hasten.solvers",
    "solvers": "hasten.solvers",
    "theory": "hasten.theory",
}
"""Rooms that training does not need are imported when they are first asked for."""


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module 'hasten' has no attribute {name!r}")
    room = importlib.import_module(_LATER[name])
    return room if _LATER[name] == f"hasten.{name}" else getattr(room, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_LATER})
