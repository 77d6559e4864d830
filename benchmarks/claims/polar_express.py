"""Polar Express: the worst-case error of five steps, against five of Muon's quintic.

The quintics' ranges are exact: singular values in [ℓ, 1] end between extrema that have closed forms. Beside them,
the same orthogonalisers on matrices, in float32 and in bfloat16, and with the norm that the library divides by.

Regenerate with ``python -m benchmarks.claims.polar_express``.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from benchmarks.claims.claim import RESULTS, Check, Claim, Table, command_line
from hasten.linalg.coefficients import MUON_PLUS, NS5, Coefficients, polar_express, shrunk, worst_error
from hasten.linalg.newton_schulz import Norm, newton_schulz

NAME = "polar_express"
LOWER = 1e-3
STEPS = (3, 4, 5, 6, 8)
CLAIMED = 0.113 / 0.530
TRAINING = polar_express(5, safety=1.02, cushion=0.02)
FOUR = polar_express(4, 4.5e-3, safety=1.02, cushion=0.02)
Method = tuple[Coefficients, Norm, float]
METHODS: dict[str, Method] = {
    "NS5": ((NS5,) * 5, "frobenius", 1.0),
    "Muon+": (MUON_PLUS, "frobenius", 1.0),
    "Polar Express": (TRAINING, "frobenius", 1.02),
    "Polar Express, Schatten-8": (TRAINING, "schatten8", 1.02),
    "4 steps, Schatten-8": (FOUR, "schatten8", 1.02),
    "8 steps": (shrunk(polar_express(8), 1.01), "frobenius", 1.01),
}


def matrices(n: int) -> dict[str, Tensor]:
    """Gaussian ones, prescribed spectra, scaled rows."""
    generator = torch.Generator().manual_seed(0)

    def gaussian(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    k = torch.arange(1, n + 1, dtype=torch.float64)
    u, v = (torch.linalg.qr(gaussian(n, n)).Q for _ in range(2))
    return {
        "Gaussian, square": gaussian(n, n),
        "Gaussian, 1:4": gaussian(n, 4 * n),
        "spectrum 1/k": u / k @ v,
        "spectrum 1/k²": u / k**2 @ v,
        "rows scaled 1 to 1/100": gaussian(n, n) * torch.logspace(0, -2, n, dtype=torch.float64)[:, None],
    }


def relative_error(x: Tensor, method: Method, dtype: torch.dtype) -> float:
    """‖X − U Vᵀ‖_F / ‖U Vᵀ‖_F."""
    u, _, v = torch.linalg.svd(x, full_matrices=False)
    quintics, norm, margin = method
    found = newton_schulz(x.float()[None], quintics, norm, margin=margin, dtype=dtype)[0]
    return float((found.double() - u @ v).norm() / (u @ v).norm())


def run(quick: bool = False, folder: Path = RESULTS) -> Claim:
    """Exact worst cases, then matrices."""
    rows = []
    for steps in STEPS:
        longer = MUON_PLUS[-steps:] + MUON_PLUS[-1:] * (steps - len(MUON_PLUS))
        kinds = ((NS5,) * steps, longer, polar_express(steps, LOWER, cushion=0.0))
        rows.append([str(steps), *(f"{worst_error(q, LOWER):.2g}" for q in kinds)])
    bounds = Table(
        f"Worst |1 − σ| after so many steps, from σ in [{LOWER:g}, 1]",
        ["steps", "NS5", "Muon+ (last rows)", "Polar Express (no safety, no cushion)"],
        rows,
    )
    given = matrices(32 if quick else 256)
    errors = {
        (name, kind, dtype): relative_error(x, method, dtype)
        for name, method in METHODS.items()
        for kind, x in given.items()
        for dtype in (torch.float32, torch.bfloat16)
    }
    found = Table(
        "Relative error ‖X − U Vᵀ‖_F / √r, float32 / bfloat16",
        ["method", *given],
        [
            [
                name,
                *(
                    f"{errors[name, kind, torch.float32]:.3f} / {errors[name, kind, torch.bfloat16]:.3f}"
                    for kind in given
                ),
            ]
            for name in METHODS
        ],
    )
    ratio = worst_error(polar_express(5, LOWER, cushion=0.0), LOWER) / worst_error((NS5,) * 5, LOWER)
    stalled = worst_error((NS5,) * 20, LOWER), worst_error((NS5,) * 6, LOWER)
    better = [
        k for k in given if errors["Polar Express", k, torch.bfloat16] <= errors["NS5", k, torch.bfloat16]
    ]
    saved = [
        k
        for k in given
        if errors["4 steps, Schatten-8", k, torch.bfloat16] <= errors["NS5", k, torch.bfloat16]
    ]
    return Claim(
        NAME,
        "Polar Express: a fifth of the worst-case error in five steps",
        "Amsel, Persson, Musco and Gower 2025, The Polar Express",
        f"Odd quintics are applied to singular values in [{LOWER:g}, 1]; the error is the largest distance to 1.",
        [
            Check(
                "worst-case error at 5 steps, over NS5's",
                "NS5, 5 steps",
                f"{CLAIMED:.2f}×",
                f"{ratio:.3f}×",
                abs(ratio / CLAIMED - 1) < 0.02,
            ),
            Check(
                "NS5's worst case after 20 steps",
                "after 6 steps",
                "the same: it stalls",
                f"{stalled[0]:.3f} after 20, {stalled[1]:.3f} after 6",
                abs(stalled[0] / stalled[1] - 1) < 1e-6,
            ),
            Check(
                "matrices on which 5 steps in bfloat16 are nearer to orthogonal than NS5's",
                "NS5, 5 steps",
                f"all {len(given)}",
                f"{len(better)} of {len(given)}",
                len(better) == len(given),
            ),
            Check(
                "the same for 4 steps from the Schatten-8 norm",
                "NS5, 5 steps",
                "all but 1/k²",
                f"{len(saved)} of {len(given)}"
                + (
                    f", not {', '.join(k for k in given if k not in saved)}"
                    if len(saved) < len(given)
                    else ""
                ),
                {k for k in given if k not in saved} <= {"spectrum 1/k²"},
            ),
        ],
        [bounds, found],
        [
            "The Frobenius norm is several times the largest singular value of a Gaussian matrix, so that a step is "
            "spent on making up for it; the Schatten-8 norm, which the first step's A² gives for nothing, is not.",
            "On spectra that fall as 1/k² every method leaves most singular values far below one.",
        ],
        quick=quick,
    )


if __name__ == "__main__":
    command_line(run, NAME)
