"""Oracles: where gradient information comes from, and at what price."""

from hasten.oracles.backpropagation import Backpropagation
from hasten.oracles.mars import Mars

__all__ = ["Backpropagation", "Mars"]
