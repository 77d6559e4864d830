"""Old optimizers, new norms: a table that runs.

Without their averages, many optimizers are steepest descent under one norm or another (Bernstein & Newhouse 2024,
arXiv:2409.20325). Each row builds both, steps them side by side, and says how far apart they get:

    from hasten.optimizers.correspondences import table
    print(table())
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from hasten.engine import Optimizer
from hasten.optimizers.adam import Adam
from hasten.optimizers.kronecker import SOAP, Shampoo
from hasten.optimizers.muon import Muon
from hasten.optimizers.prodigy import Prodigy
from hasten.optimizers.sgd import SGD
from hasten.optimizers.sign import Lion, Signum
from hasten.optimizers.steepest_descent import SteepestDescent
from hasten.transforms.norms import NORMS

Build: TypeAlias = "Callable[[list[Tensor]], Optimizer]"
After: TypeAlias = "Callable[[Optimizer, list[Tensor], list[Tensor], list[Tensor]], None]"


@dataclass(frozen=True)
class Correspondence:
    """A row: an optimizer with the settings that switch its averages off, and the steepest descent that it then is.

    Attributes:
        name: of the optimizer, with these settings.
        build: makes it.
        norm, mode: of steepest descent.
        steepest: makes the same from the norm.
        tolerance: largest difference in float64, in proportion to the way taken. It is round-off, or what the
            optimizer's own eps and iterations leave.
        remark: where something is to be said.
        after: called after every step, with the steepest descent, where all began, where the step began, and the
            gradients there.
        shape: of the parameters it is shown on.
        constant: shown on a gradient that stays the same, for optimizers that look at past ones in any case.
        skipped: steps of the optimizer that only fill its buffers.
    """

    name: str
    build: Build
    norm: str
    mode: str
    steepest: Build
    tolerance: float = 1e-12
    remark: str = ""
    after: After | None = None
    shape: tuple[int, ...] = (6, 4)
    constant: bool = False
    skipped: int = 0

    def difference(self, steps: int = 5, seed: int = 0) -> float:
        """How far apart both are after a few steps along the same random gradients, in proportion to the way taken.

        Args:
            steps: that both take, with two parameters.
            seed: of the starting point and the gradients.

        Example:
            >>> from hasten.optimizers.correspondences import CORRESPONDENCES
            >>> CORRESPONDENCES[0].name, CORRESPONDENCES[0].difference() <= CORRESPONDENCES[0].tolerance
            ('Adam, betas 0, eps 0', True)
        """
        generator = torch.Generator().manual_seed(seed)

        def draw() -> list[Tensor]:
            return [torch.randn(self.shape, generator=generator, dtype=torch.float64) for _ in range(2)]

        start, gradients = draw(), draw()
        ours, theirs = ([p.clone().requires_grad_() for p in start] for _ in range(2))
        old, new = self.build(theirs), self.steepest(ours)
        for k in range(self.skipped + steps):
            gradients = gradients if self.constant else draw()
            for params in (theirs, ours):
                for p, g in zip(params, gradients, strict=True):
                    p.grad = g
            if k >= self.skipped:
                points = [p.detach().clone() for p in ours]
                new.step()
                if self.after is not None:
                    self.after(new, start, points, gradients)
            old.step()
        moved = torch.stack([(p.detach() - q).norm() for p, q in zip(ours, start, strict=True)])
        apart = torch.stack([(p - q).detach().norm() for p, q in zip(ours, theirs, strict=True)])
        return float((apart / moved).max())


def _steepest(norm: str, mode: str = "lmo", lr: float = 0.02, momentum: float = 0.0) -> Build:
    def build(params: list[Tensor]) -> Optimizer:
        return SteepestDescent(params, lr, momentum, norm, mode=mode, backend="svd")  # type: ignore[arg-type]

    return build


def _grow_radius(
    optimizer: Optimizer, start: list[Tensor], points: list[Tensor], gradients: list[Tensor]
) -> None:
    """Prodigy's estimate: the next radius is ⟨g, y₀ − y⟩/‖g‖₁ if that is larger."""
    progress = sum(float((g * (q - p)).sum()) for g, q, p in zip(gradients, start, points, strict=True))
    dual = sum(float(NORMS["max_entry"].dual(g.unsqueeze(0))) for g in gradients)
    for group in optimizer.param_groups:
        group["radius"] = max(group["radius"], progress / dual)


CORRESPONDENCES: tuple[Correspondence, ...] = (
    Correspondence(
        "Adam, betas 0, eps 0",
        lambda params: Adam(params, 0.02, (0.0, 0.0), 0.0),
        "max_entry",
        "lmo",
        _steepest("max_entry"),
        remark="signSGD",
    ),
    Correspondence(
        "Signum, momentum 0.9",
        lambda params: Signum(params, 0.02, 0.9),
        "max_entry",
        "lmo",
        _steepest("max_entry", momentum=0.9),
    ),
    Correspondence(
        "Lion, betas 0.9 and 0.9",
        lambda params: Lion(params, 0.02, (0.9, 0.9)),
        "max_entry",
        "lmo",
        _steepest("max_entry", momentum=0.9),
    ),
    Correspondence(
        "Prodigy, betas 0",
        lambda params: Prodigy(params, 1.0, (0.0, 0.0), 1e-300, d0=0.02),
        "max_entry",
        "lmo",
        lambda params: SteepestDescent(params, 1.0, 0.0, "max_entry", radius=0.02),
        tolerance=1e-10,
        remark="the radius grows to ⟨g, y₀ − y⟩/‖g‖₁",
        after=_grow_radius,
    ),
    Correspondence(
        "Muon, momentum 0.9, exact",
        lambda params: Muon(params, 0.02, 0.0, 0.9, False, backend="svd", scale=None, eps=0.0),
        "spectral",
        "lmo",
        _steepest("spectral", momentum=0.9),
    ),
    Correspondence(
        "Muon, momentum 0.9, exact, rms_to_rms",
        lambda params: Muon(params, 0.02, 0.0, 0.9, False, backend="svd", scale="rms_to_rms", eps=0.0),
        "rms_to_rms",
        "lmo",
        _steepest("rms_to_rms", momentum=0.9),
    ),
    Correspondence(
        "Shampoo, betas 0, not grafted",
        lambda params: Shampoo(
            params, 0.02, (0.0, 0.0), 0.0, 0.0, 0.0, 0.0, 1, 1, grafting=None, bias_correction=False
        ),
        "spectral",
        "lmo",
        _steepest("spectral"),
        1e-9,
        "no accumulation: (g gᵀ)^-¼ g (gᵀ g)^-¼",
        shape=(5, 5),
    ),
    Correspondence(
        "SOAP, betas 0",
        lambda params: SOAP(params, 0.02, (0.0, 0.0), 0.0, 1e-7, 0.0, 1),
        "spectral",
        "lmo",
        _steepest("spectral"),
        1e-5,  # eps, which must be large against what round-off leaves beside the diagonal
        "in the basis of the gradient itself",
        shape=(5, 5),
        constant=True,
        skipped=1,
    ),
    Correspondence(
        "SGD",
        lambda params: SGD(params, 0.02),
        "frobenius",
        "sharp",
        _steepest("frobenius", "sharp"),
    ),
)
"""The rows."""


def table(markdown: bool = False) -> str:
    """The rows with their formulas and the difference found now, as text or as a table of Markdown.

    Example:
        >>> from hasten.optimizers.correspondences import table
        >>> print(table().splitlines()[0].split()[:2])
        ['optimizer', 'norm']
    """
    heading = ("optimizer", "norm", "of the step", "dual, of the gradient", "step", "difference")
    rows = [heading]
    for row in CORRESPONDENCES:
        norm, dual, lmo = NORMS[row.norm].formulas
        step = lmo if row.mode == "lmo" else f"{dual} · {lmo}"
        name = f"{row.name} ({row.remark})" if row.remark else row.name
        rows.append((name, row.norm, norm, dual, step, f"{row.difference():.0e}"))
    if markdown:
        lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
        return "\n".join([lines[0], "|" + " --- |" * len(heading), *lines[1:]])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )
