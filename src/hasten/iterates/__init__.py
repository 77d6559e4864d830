"""Iterates: where the parameter lives, and how a direction moves it."""

from hasten.iterates.estimated import EstimatedCanonical
from hasten.iterates.plain import Plain
from hasten.iterates.prodigy import DistanceEstimate
from hasten.iterates.schedule_free import ScheduleFree
from hasten.iterates.subspace import RandomizedSubspace, SubspaceDescent
from hasten.iterates.three_sequences import (
    Canonical,
    Coupling,
    Jain,
    Kidambi,
    LinearCoupling,
    Mass,
    StrongGrowth,
    ThreeSequences,
    TripleMomentum,
    VaswaniConvex,
)

__all__ = [
    "Canonical",
    "Coupling",
    "DistanceEstimate",
    "EstimatedCanonical",
    "Jain",
    "Kidambi",
    "LinearCoupling",
    "Mass",
    "Plain",
    "RandomizedSubspace",
    "ScheduleFree",
    "StrongGrowth",
    "SubspaceDescent",
    "ThreeSequences",
    "TripleMomentum",
    "VaswaniConvex",
]
