"""Oracles: where gradient information comes from, and at what price."""

from hasten.oracles.backpropagation import Backpropagation
from hasten.oracles.curvature import Estimate, estimate_curvature, estimate_largest, estimate_trace
from hasten.oracles.directional import directional_derivatives
from hasten.oracles.finite_difference import FiniteDifference
from hasten.oracles.forward_mode import ForwardMode
from hasten.oracles.hessian_vector import HessianVector, Product
from hasten.oracles.mars import Mars, RememberedPoint
from hasten.oracles.per_sample import ForEach, PerSample, per_sample_gradients
from hasten.oracles.received import Arrival, Received
from hasten.oracles.subspace import Sketched, SubspaceOracle

__all__ = [
    "Arrival",
    "Backpropagation",
    "Estimate",
    "FiniteDifference",
    "ForEach",
    "ForwardMode",
    "HessianVector",
    "Mars",
    "PerSample",
    "Product",
    "Received",
    "RememberedPoint",
    "Sketched",
    "SubspaceOracle",
    "directional_derivatives",
    "estimate_curvature",
    "estimate_largest",
    "estimate_trace",
    "per_sample_gradients",
]
