"""The engine: runs a sentence over parameter groups — state, fusing, precision, checkpoints."""

from hasten.engine.composition import Sentence
from hasten.engine.description import Description, describe
from hasten.engine.optimizer import Optimizer
from hasten.engine.options import EngineOptions
from hasten.engine.stepping import NonFiniteGradient

__all__ = ["Description", "EngineOptions", "NonFiniteGradient", "Optimizer", "Sentence", "describe"]
