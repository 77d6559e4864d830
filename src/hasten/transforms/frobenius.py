"""AuON's geometry: normalised SGD, nearly."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch

from hasten.numbers import Names, Number
from hasten.transforms.norms import NORMS
from hasten.words import NONNEGATIVE, Entry, Geometry, Value, hyper


@dataclass(frozen=True)
class FrobeniusLMO(Geometry):
    """AuON: the direction over its Frobenius norm and the root mean square of a hyperbolic cosine.

    The squares of the N entries of ĝ sum to 1, so ρ ≈ √(1 + γ²/N), and at most √(1 + (cosh²γ − 1)/N): 1.0003 for
    64 × 64 and γ = 1.5, and for 1024² it is 1 to six digits. No singular value changes in relation to another: this is
    normalised SGD, or, with `raw`, as the authors' code has it, SGD. It is here to be compared with what it is said to
    match. With γ = 0 and not `raw` it is ``NormGeometry("frobenius")``.

    Example:
        >>> import torch, hasten
        >>> from hasten.transforms import EMA, FrobeniusLMO
        >>> w = torch.ones(8, 8, requires_grad=True)
        >>> auon = hasten.Optimizer([w], EMA(0.95), FrobeniusLMO(gamma=1.5, raw=True), lr=0.24)

        Its hybrid takes one step of Newton and Schulz first:

        >>> from hasten.transforms import Orthogonalize
        >>> chain = (EMA(0.95), Orthogonalize("ns5", steps=1), FrobeniusLMO(gamma=1.0))
        >>> hybrid = hasten.Optimizer([w], *chain, lr=0.24)
    """

    gamma: Value = hyper(0.0, NONNEGATIVE, "γ, sharpness of the hyperbolic cosine; 0: none")
    raw: bool = False
    grain: ClassVar[Literal["element", "tensor", "matrix"]] = "tensor"
    formula: ClassVar[str] = "ĝ = d / ‖d‖_F;  ρ² = mean cosh²(γ ĝ);  u = ĝ / ρ  (d / ρ if raw)"

    def numbers(self, h: Names, k: Number, c: Names) -> dict[str, Number]:
        """γ."""
        return {"gamma": h.gamma}

    def direction(self, d: Entry, s: Any, n: Any) -> Entry:
        """The scaled direction."""
        unit = NORMS["frobenius"].lmo(d)
        square = torch.cosh(n.gamma * unit).square().reshape(len(d), -1).mean(-1)
        return (d if self.raw else unit) / square.sqrt().reshape(-1, *(1,) * (d.dim() - 1))
