"""Orthogonalised geometry: descend steepest in the spectral norm."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch

from hasten.linalg.newton_schulz import NS5, newton_schulz
from hasten.words import Entry, Geometry


@dataclass(frozen=True)
class Orthogonalize(Geometry):
    """The orthogonal factor of the direction, U Vᵀ of U S Vᵀ, nearly."""

    grain: ClassVar[Literal["element", "tensor", "matrix"]] = "matrix"
    formula: ClassVar[str] = "u = U Vᵀ,  d = U S Vᵀ"

    def direction(self, d: Entry, s: Any, n: Any) -> Entry:
        """Orthogonalised."""
        rows, columns = d.shape[-2:]
        low = None if d.dtype is torch.float64 else torch.bfloat16
        return newton_schulz(d, NS5, low) * max(1.0, rows / columns) ** 0.5
