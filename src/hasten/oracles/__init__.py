"""Oracles: where gradient information comes from, and at what price."""

from hasten.oracles.backpropagation import Backpropagation
from hasten.oracles.mars import Mars, RememberedPoint

__all__ = ["Backpropagation", "Mars", "RememberedPoint"]
