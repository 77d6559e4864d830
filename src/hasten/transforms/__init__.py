"""Transforms: given a direction, which direction is better? Momentum, geometry, step: one file a family."""

from hasten.transforms.geometry import (
    BoundedSecondMoment,
    FactoredSecondMoment,
    Friction,
    InfinityNorm,
    QuasiHyperbolicSecondMoment,
    RectifiedSecondMoment,
    SecondMoment,
    Sign,
)
from hasten.transforms.momentum import (
    EMA,
    Accumulation,
    HeavyBall,
    Interpolation,
    NesterovEMA,
    NesterovMoment,
    QuasiHyperbolic,
    TwoMomenta,
)
from hasten.transforms.norms import NORMS, FrobeniusLMO, Norm, NormGeometry
from hasten.transforms.orthogonal import AlignedSecondMoment, Orthogonalize
from hasten.transforms.projected import Projected
from hasten.transforms.step import ClipNorm, ClipTensorNorm, RelativeStep, Scale, WeightDecay

__all__ = [
    "EMA",
    "NORMS",
    "Accumulation",
    "AlignedSecondMoment",
    "BoundedSecondMoment",
    "ClipNorm",
    "ClipTensorNorm",
    "FactoredSecondMoment",
    "Friction",
    "FrobeniusLMO",
    "HeavyBall",
    "InfinityNorm",
    "Interpolation",
    "NesterovEMA",
    "NesterovMoment",
    "Norm",
    "NormGeometry",
    "Orthogonalize",
    "Projected",
    "QuasiHyperbolic",
    "QuasiHyperbolicSecondMoment",
    "RectifiedSecondMoment",
    "RelativeStep",
    "Scale",
    "SecondMoment",
    "Sign",
    "TwoMomenta",
    "WeightDecay",
]
