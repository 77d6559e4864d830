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
    NesterovMoment,
    QuasiHyperbolic,
    TwoMomenta,
)
from hasten.transforms.step import ClipNorm, ClipTensorNorm, RelativeStep, Scale, WeightDecay

__all__ = [
    "EMA",
    "Accumulation",
    "BoundedSecondMoment",
    "ClipNorm",
    "ClipTensorNorm",
    "FactoredSecondMoment",
    "Friction",
    "HeavyBall",
    "InfinityNorm",
    "Interpolation",
    "NesterovMoment",
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
