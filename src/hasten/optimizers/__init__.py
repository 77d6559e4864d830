"""Named optimizers: each names its parts, its defaults and its paper."""

from hasten.engine import Optimizer
from hasten.optimizers.accelerated import AcceleratedSGD, MaSS, StochasticNesterov, TripleMomentum
from hasten.optimizers.accelerated_muon import AdEMAMixMuon, MARSMuon, ScheduleFreeMuon
from hasten.optimizers.adafactor import Adafactor
from hasten.optimizers.adam import (
    AdaBound,
    Adam,
    AdaMax,
    AdamW,
    AMSBound,
    AMSGrad,
    DiffGrad,
    NAdamW,
    QHAdam,
    RAdam,
)
from hasten.optimizers.ademamix import AdEMAMix, SimplifiedAdEMAMix
from hasten.optimizers.kronecker import SOAP, Shampoo
from hasten.optimizers.low_rank import DCTAdamW, Trion
from hasten.optimizers.mars import MARS
from hasten.optimizers.muon import AdaMuon, Muon, TurboMuon
from hasten.optimizers.prodigy import Prodigy
from hasten.optimizers.schedule_free import ScheduleFreeAdamW, ScheduleFreeSGD
from hasten.optimizers.sgd import QHM, SGD, HeavyBall, Nesterov
from hasten.optimizers.sign import Lion, Signum
from hasten.optimizers.steepest_descent import Scion, SteepestDescent
from hasten.optimizers.subspace import SubspaceGradientDescent, SubspaceNesterov

CATALOGUE: dict[str, type[Optimizer]] = {
    cls.__name__: cls
    for cls in (
        *(SGD, HeavyBall, Nesterov, QHM, AcceleratedSGD, MaSS, TripleMomentum, StochasticNesterov),
        *(AdamW, Adam, AMSGrad, AdaMax, NAdamW, RAdam, QHAdam, AdaBound, AMSBound, DiffGrad),
        *(
            Lion,
            Signum,
            ScheduleFreeSGD,
            ScheduleFreeAdamW,
            AdEMAMix,
            SimplifiedAdEMAMix,
            MARS,
            Adafactor,
            Prodigy,
        ),
        *(SteepestDescent, Scion),
        *(SubspaceNesterov, SubspaceGradientDescent),
        *(Trion, DCTAdamW),
        *(Muon, TurboMuon, AdaMuon, ScheduleFreeMuon, AdEMAMixMuon, MARSMuon),
        *(SOAP, Shampoo),
    )
}
"""Every named optimizer, by name."""

__all__ = [
    "CATALOGUE",
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
    "DiffGrad",
    "HeavyBall",
    "Lion",
    "MARSMuon",
    "MaSS",
    "Muon",
    "NAdamW",
    "Nesterov",
    "Prodigy",
    "QHAdam",
    "RAdam",
    "ScheduleFreeAdamW",
    "ScheduleFreeMuon",
    "ScheduleFreeSGD",
    "Scion",
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
]
