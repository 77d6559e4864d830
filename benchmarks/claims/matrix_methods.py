"""The methods whose training is compared, in the race's own words."""

from __future__ import annotations

import dataclasses

RATES = (0.5, 1.0, 2.0, 4.0)
"""Multiples of a method's customary learning rate that tuning tries."""


@dataclasses.dataclass(frozen=True)
class Method:
    """One method.

    Attributes:
        name: in tables.
        entrant: as the race reads it, with ``{lr}`` in the place of the learning rate.
        rate: the learning rate that the multiples are of.
        expected: the fraction of AdamW's steps that is claimed, if there is a claim.
        borrows: the method whose tuned learning rate it takes untouched; empty if it is tuned itself.
    """

    name: str
    entrant: str
    rate: float
    expected: float | None = None
    borrows: str = ""

    def at(self, multiple: float) -> str:
        """The entrant at a multiple of the customary learning rate."""
        return self.entrant.replace("{lr}", f"{multiple * self.rate:g}")


ADAMW = Method("AdamW", "AdamW(lr={lr})", 1e-3)
ADAMUON = "AdaMuon(lr={lr})"
METHODS = (
    ADAMW,
    Method("Muon", "Muon(lr={lr})", 4e-3, 0.6),
    Method("SOAP", "SOAP(lr={lr})", 2e-3, 0.6),
    Method("AdaMuon", ADAMUON, 1e-3),
    Method("AdaMuon at AdamW's learning rate", ADAMUON, 1e-3, 1.0, borrows="AdamW"),
)
