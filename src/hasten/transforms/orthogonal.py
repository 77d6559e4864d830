"""Orthogonalised geometry: descend steepest in the spectral norm."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from hasten.linalg.polar import orthogonalize
from hasten.words import Entry, Geometry


@dataclass(frozen=True)
class Orthogonalize(Geometry):
    """The orthogonal factor of the direction, U Vᵀ of U S Vᵀ, nearly."""

    grain: ClassVar[Literal["element", "tensor", "matrix"]] = "matrix"
    formula: ClassVar[str] = "u = U Vᵀ,  d = U S Vᵀ"

    def direction(self, d: Entry, s: Any, n: Any) -> Entry:
        """Orthogonalised."""
        rows, columns = d.shape[-2:]
        return orthogonalize(d, "ns5") * max(1.0, rows / columns) ** 0.5
