"""The methods whose training is compared, in the race's own words."""

from __future__ import annotations

import dataclasses

RATES = (0.25, 0.5, 1.0, 2.0, 4.0)
"""Multiples of a method's customary learning rate that tuning tries."""


@dataclasses.dataclass(frozen=True)
class Method:
    """One method.

    Attributes:
        name: in tables.
        entrant: as the race reads it, with ``{lr}`` in the place of the learning rate.
        rate: the middle of the grid of learning rates.
        expected: the fraction of AdamW's steps that is claimed, if there is a claim.
        tuned: whether the learning rate is searched for.
    """

    name: str
    entrant: str
    rate: float
    expected: float | None = None
    tuned: bool = True

    def at(self, multiple: float) -> str:
        """The entrant at a multiple of the customary learning rate."""
        return self.entrant.replace("{lr}", f"{multiple * self.rate:g}")


ADAMW = Method("AdamW", "AdamW(lr={lr})", 2e-3)
METHODS = (
    ADAMW,
    Method("Muon", "Muon(lr={lr})", 4e-3, 0.6),
)
