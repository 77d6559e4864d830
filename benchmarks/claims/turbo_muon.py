"""Turbo-Muon: rescaled rows save one Newton–Schulz step of five, at equal quality?

Errors of four steps from rescaled rows against four and five from the Frobenius norm, and their times on one core.

Regenerate with ``python -m benchmarks.claims.turbo_muon``.
"""

from __future__ import annotations

import statistics
import time
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.claims.claim import RESULTS, Check, Claim, Table, command_line
from benchmarks.claims.polar_express import matrices
from hasten.linalg.coefficients import MUON_PLUS
from hasten.linalg.newton_schulz import Norm, newton_schulz

NAME = "turbo_muon"
METHODS: dict[str, tuple[int, Norm]] = {
    "5 steps, Frobenius": (5, "frobenius"),
    "4 steps, Frobenius": (4, "frobenius"),
    "4 steps, rows rescaled (Turbo)": (4, "rows"),
    "4 steps, Schatten-8": (4, "schatten8"),
}
FIVE, FOUR, TURBO, SCHATTEN = METHODS


def factor(x: Tensor, name: str) -> Tensor:
    """By one of the methods, in bfloat16."""
    steps, norm = METHODS[name]
    return newton_schulz(x.float()[None], MUON_PLUS[-steps:], norm, dtype=torch.bfloat16)[0].double()


def exact(x: Tensor) -> Tensor:
    """U Vᵀ."""
    u, _, v = torch.linalg.svd(x, full_matrices=False)
    return u @ v


def bias(x: Tensor) -> float:
    """How far the polar factor of the matrix with rescaled rows is from that of the matrix."""
    (rescaled,) = newton_schulz(x[None], [(1.0, 0.0, 0.0)], "rows")
    return float((exact(rescaled) - exact(x)).norm() / exact(x).norm())


def seconds(x: Tensor, rounds: int) -> dict[str, list[float]]:
    """Of every method, interleaved, on one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        found: dict[str, list[float]] = {name: [] for name in METHODS}
        for _ in range(rounds + 1):
            for name, times in found.items():
                started = time.process_time()
                factor(x, name)
                times.append(time.process_time() - started)
        return {name: times[1:] for name, times in found.items()}
    finally:
        torch.set_num_threads(threads)


def run(quick: bool = False, folder: Path = RESULTS) -> Claim:
    """Errors, bias, times."""
    given = matrices(32 if quick else 256)
    errors = {
        (name, kind): float((factor(x, name) - exact(x)).norm() / exact(x).norm())
        for name in METHODS
        for kind, x in given.items()
    }
    quality = Table(
        "Relative error ‖X − U Vᵀ‖_F / √r in bfloat16",
        ["method", *given],
        [[name, *(f"{errors[name, kind]:.3f}" for kind in given)] for name in METHODS]
        + [["limit of the rescaled iteration", *(f"{bias(x):.3f}" for x in given.values())]],
    )
    size, rounds = (64, 3) if quick else (1024, 15)
    times = seconds(torch.randn(size, size, generator=torch.Generator().manual_seed(0)), rounds)
    ratios = {
        name: statistics.median(a / b for a, b in zip(times[name], times[FIVE], strict=True))
        for name in METHODS
    }
    cost = Table(
        f"Processor time of a {size} × {size} matrix on one thread, over that of 5 steps",
        ["method", "milliseconds", "ratio"],
        [[n, f"{1e3 * statistics.median(times[n]):.1f}", f"{ratios[n]:.2f}"] for n in METHODS],
    )
    equal = {kind: errors[TURBO, kind] <= 1.1 * errors[FIVE, kind] for kind in given}
    lost = ", ".join(kind for kind, holds in equal.items() if not holds)
    return Claim(
        NAME,
        "Turbo-Muon: one step of five saved",
        "Boissin et al. 2025, Turbo-Muon",
        "The Muon+ table, its last four rows from rows rescaled towards orthogonality, against all five.",
        [
            Check(
                "Gaussian, square: error of four steps, over that of five",
                "5 steps, Frobenius",
                "≤ 1.1×",
                f"{errors[TURBO, 'Gaussian, square'] / errors[FIVE, 'Gaussian, square']:.2f}×",
                equal["Gaussian, square"],
            ),
            Check(
                "Gaussian, square: error of four steps, over that of four without rescaling",
                "4 steps, Frobenius",
                "< 0.6×",
                f"{errors[TURBO, 'Gaussian, square'] / errors[FOUR, 'Gaussian, square']:.2f}×",
                errors[TURBO, "Gaussian, square"] < 0.6 * errors[FOUR, "Gaussian, square"],
            ),
            Check(
                "matrices on which four steps are as near to orthogonal as five",
                "5 steps, Frobenius",
                f"all {len(given)}",
                f"{sum(equal.values())} of {len(given)}" + (f"; not {lost}" if lost else ""),
                all(equal.values()),
            ),
            Check(
                f"time of four steps, over that of five, {size} × {size}",
                "5 steps, Frobenius",
                "0.80× (products alone), ≤ 0.90×",
                f"{ratios[TURBO]:.2f}×",
                ratios[TURBO] <= 0.9,
            ),
        ],
        [quality, cost],
        [
            "Where the Frobenius norm is already near the largest singular value, as with 1/k, there is nothing to "
            "gain, and the rows' scale changes the limit itself.",
            "A tighter norm saves the step as well, and keeps the limit.",
        ],
        quick=quick,
    )


if __name__ == "__main__":
    command_line(run, NAME)
