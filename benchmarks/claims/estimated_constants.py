"""The canonical triple with estimated constants: how much of the gain survives.

Regenerate with ``python -m benchmarks.claims.estimated_constants``.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import hasten
from benchmarks.claims.claim import RESULTS, Check, Claim, Table, command_line, scientific
from hasten.problems.least_squares import StreamingLeastSquares

NAME = "estimated_constants"
REGIMES = {1: 3000, 8: 10000, 64: 30000}
"""Samples by batch size."""
RATES = (0.5, 1.0, 2.0)
"""Learning rates of SGD, in units of 1/R²."""

Build = Callable[[list[Tensor], StreamingLeastSquares], hasten.Optimizer]


def canonical(smoothness: str, noise: str) -> Build:
    """The canonical triple with known or estimated constants."""

    def build(params: list[Tensor], problem: StreamingLeastSquares) -> hasten.Optimizer:
        known_smoothness = problem.smoothness if noise == "known" else problem.r_squared
        constants: dict[str, Any] = {
            "smoothness": known_smoothness if smoothness == "known" else "estimate",
            "noise": problem.growth if noise == "known" else "estimate",
        }
        return hasten.AcceleratedSGD.canonical(
            params, strong_convexity=problem.strong_convexity, engine="eager", **constants
        )

    return build


def sgd(rate: float) -> Build:
    """SGD at a rate in units of 1/R²."""
    return lambda params, problem: hasten.SGD(params, lr=rate / problem.r_squared, engine="eager")


def risk(build: Build, batch: int, samples: int, seed: int, rotated: bool) -> float:
    """Excess risk after one pass over so many samples."""
    problem = StreamingLeastSquares(batch=batch)
    generator = torch.Generator().manual_seed(seed)
    basis = torch.eye(problem.dimension, dtype=torch.float64)
    if rotated:
        fixed = torch.Generator().manual_seed(2026)
        basis = torch.linalg.qr(torch.randn(basis.shape, generator=fixed, dtype=torch.float64)).Q
    w = problem.start().requires_grad_()
    opt = build([w], problem)
    for _ in range(samples // batch):
        features, labels = problem.sample(generator)

        def closure(features: Tensor = features, labels: Tensor = labels) -> float:
            residual = features @ (basis @ w.detach()) - labels
            w.grad = basis.T @ (features.T @ residual) / batch
            return float(residual @ residual) / (2 * batch)

        opt.step(closure)
    with opt.evaluating():
        return float(problem.excess_risk(basis @ w.detach()))


def run(quick: bool = False, folder: Path = RESULTS) -> Claim:
    """Measure every regime in the basis of the curvature and in a rotated one."""
    seeds = range(100, 102) if quick else range(100, 110)
    regimes = {8: 6000} if quick else REGIMES
    methods = {
        "ρ and R² known": canonical("known", "known"),
        "ρ estimated, R² known": canonical("known", "estimate"),
        "ρ and R² estimated": canonical("estimate", "estimate"),
    }

    def median(build: Build, batch: int, samples: int, rotated: bool) -> float:
        return statistics.median(risk(build, batch, samples, seed, rotated) for seed in seeds)

    rows, checks = [], []
    for batch, samples in regimes.items():
        baseline = min(median(sgd(rate), batch, samples, False) for rate in RATES)
        rows.append([str(batch), str(samples), "SGD, tuned", scientific(baseline), "the same"])
        for name, build in methods.items():
            aligned, rotated = (median(build, batch, samples, turned) for turned in (False, True))
            rows.append([str(batch), str(samples), name, scientific(aligned), scientific(rotated)])
            if name == "ρ and R² estimated":
                for basis, found, bound in (("diagonal", aligned, 1e-2), ("rotated", rotated, 1.0)):
                    checks.append(
                        Check(
                            f"batch {batch}, {basis} curvature: both estimated, over tuned SGD",
                            f"tuned SGD, {scientific(baseline)}",
                            f"< {bound:g}",
                            scientific(found / baseline),
                            found < bound * baseline,
                        )
                    )
    return Claim(
        NAME,
        "The canonical triple with estimated noise and smoothness keeps most of its gain",
        "the library's own heuristic (hasten.iterates.EstimatedCanonical)",
        "Streaming linear regression in 20 dimensions, κ(H) = 1e3, one pass, initial excess risk 10; median excess "
        f"risk of {len(seeds)} seeds. The strong convexity is given throughout. “Rotated”: the same problem in a basis "
        "that does not diagonalise the curvature.",
        checks,
        [Table("Excess risk", ["batch", "samples", "constants", "diagonal", "rotated"], rows)],
        [
            "Where the curvature is diagonal in the parameters' basis, the second moment of the gradients stands in "
            "for it, and the estimated constants keep most of the orders of magnitude.",
            "In a rotated basis the growth is overestimated, and little more than SGD's speed remains.",
        ],
        quick=quick,
    )


if __name__ == "__main__":
    command_line(run, NAME)
