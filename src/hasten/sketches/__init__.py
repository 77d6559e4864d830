"""Random subspaces: draw a matrix P with E[P Pᵀ] = I from its keys, project onto it, lift from it.

Choose: `BalancedCountSketch` (the default: O(d) work, ν = d/r, exact at r = d); `StridedSigns` when speed matters and
the curvature is spread evenly over the index; `PerLayer` over the parameters of a network, with `RandomLowRank` inside
where matrices shall keep their structure; `ImportanceCoordinates` when the diagonal of the curvature is known; `Haar`
and `Gaussian` for theory and small dimensions.
"""

from hasten.sketches.coordinates import Coordinates, IndependentCoordinates
from hasten.sketches.curvature import Curvature
from hasten.sketches.dense import Gaussian, Haar, Rademacher
from hasten.sketches.hashed import (
    AffineCountSketch,
    BalancedCountSketch,
    CountSketch,
    SparseSign,
    StridedSigns,
)
from hasten.sketches.importance import ImportanceBlocks, ImportanceCoordinates
from hasten.sketches.layers import Block, Identity, PerLayer, blocks
from hasten.sketches.low_rank import RandomLowRank
from hasten.sketches.sketch import Draw, ExchangeableSketch, Sketch
from hasten.sketches.transformed import SRHT, RandomSignDCT

__all__ = [
    "SRHT",
    "AffineCountSketch",
    "BalancedCountSketch",
    "Block",
    "Coordinates",
    "CountSketch",
    "Curvature",
    "Draw",
    "ExchangeableSketch",
    "Gaussian",
    "Haar",
    "Identity",
    "ImportanceBlocks",
    "ImportanceCoordinates",
    "IndependentCoordinates",
    "PerLayer",
    "Rademacher",
    "RandomLowRank",
    "RandomSignDCT",
    "Sketch",
    "SparseSign",
    "StridedSigns",
    "blocks",
]
