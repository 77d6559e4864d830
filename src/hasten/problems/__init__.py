"""Objectives with known constants and optima, data sets and small models.

Shared by the tests, the benchmarks and `hasten.race`. Nothing here is downloaded: the text is
Python's own standard library, the tables are those that scikit-learn carries.
"""

from hasten.problems.convex import ConvexProblem
from hasten.problems.digits import MLP, ConvNet, Labelled, breast_cancer, digits
from hasten.problems.language_model import LanguageModel, parameter_count
from hasten.problems.more_garbow_hillstrom import MORE_GARBOW_HILLSTROM, LeastSquaresProblem
from hasten.problems.quadratic import Quadratic
from hasten.problems.registry import CONVEX_PROBLEMS
from hasten.problems.ridge import RidgeLeastSquares, RidgeLogistic, RidgeSoftmax
from hasten.problems.spectra import SPECTRA, spectrum
from hasten.problems.surfaces import SURFACES, Surface
from hasten.problems.text import Text, standard_library_text

__all__ = [
    "CONVEX_PROBLEMS",
    "MLP",
    "MORE_GARBOW_HILLSTROM",
    "SPECTRA",
    "SURFACES",
    "ConvNet",
    "ConvexProblem",
    "Labelled",
    "LanguageModel",
    "LeastSquaresProblem",
    "Quadratic",
    "RidgeLeastSquares",
    "RidgeLogistic",
    "RidgeSoftmax",
    "Surface",
    "Text",
    "breast_cancer",
    "digits",
    "parameter_count",
    "spectrum",
    "standard_library_text",
]
