"""Transforms: given a direction, which direction is better? Momentum, geometry, step: one file a family."""

from hasten.transforms.eigenbasis import EigenbasisAdam, EigenbasisSecondMoment
from hasten.transforms.frobenius import FrobeniusLMO
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
from hasten.transforms.kronecker import KroneckerRoot, TensorKroneckerRoot
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
from hasten.transforms.norms import NORMS, Norm, NormGeometry
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
    "EigenbasisAdam",
    "EigenbasisSecondMoment",
    "FactoredSecondMoment",
    "Friction",
    "FrobeniusLMO",
    "HeavyBall",
    "InfinityNorm",
    "Interpolation",
    "KroneckerRoot",
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
    "TensorKroneckerRoot",
    "TwoMomenta",
    "WeightDecay",
]
