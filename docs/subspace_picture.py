"""Draw gap against oracle calls, with the bounds, for docs/subspace.md: ``python docs/subspace_picture.py``."""

from __future__ import annotations

from pathlib import Path

import torch
from matplotlib import rc_context
from matplotlib.figure import Figure

import hasten
from hasten.problems import Quadratic
from hasten.race.figures import LOOK
from hasten.race.palette import style
from hasten.sketches import BalancedCountSketch, Identity, ImportanceCoordinates, Sketch
from hasten.theory import ScheduleU

PICTURE = Path(__file__).parent / "images" / "subspace.png"
SEEDS = 5
PROBLEM = Quadratic.named("inverse-square")
CONTENDERS: dict[str, tuple[Sketch, int]] = {
    "Nesterov, whole gradients": (Identity(), 1_300),
    "SubspaceNesterov, r = 16": (BalancedCountSketch(rank=16), 5_400),
    "SubspaceNesterov, r = 4": (BalancedCountSketch(rank=4), 11_000),
    "SubspaceNesterov, coordinates by importance": (ImportanceCoordinates(PROBLEM.curvature), 8_000),
}
"""Sketches, and steps to a gap of about 1e-4."""


def run(sketch: Sketch, steps: int, seed: int) -> tuple[list[float], list[float]]:
    """Oracle calls, and the gap in units of the first one."""
    every = steps // 200
    result = hasten.minimize(
        PROBLEM.value,
        PROBLEM.start,
        method="subspace-nesterov",
        options={
            "sketch": sketch,
            "smoothness": PROBLEM.curvature,
            "strong_convexity": PROBLEM.strong_convexity,
            "check_every": every,
            "seed": seed,
            "gtol": 0,
            "maxiter": steps,
            "history": True,
        },
    )
    calls, values = result.history["nproj"][::every], result.history["fun"][::every]
    return calls, [(value - PROBLEM.minimum) / PROBLEM.gap for value in values]


def draw(picture: Path = PICTURE) -> None:
    """The mean over the seeds as a line, the bound of the same colour dotted."""
    figure = Figure(figsize=(8.4, 4.8), layout="constrained")
    axes = figure.subplots()
    for place, (label, (sketch, steps)) in enumerate(CONTENDERS.items()):
        colour, _ = style(place)
        runs = [run(sketch, steps, seed) for seed in range(1 if isinstance(sketch, Identity) else SEEDS)]
        calls = runs[0][0][1:]
        mean = torch.tensor([gaps[1:] for _, gaps in runs], dtype=torch.float64).mean(0)
        C, cost = sketch.rate_constant(PROBLEM.curvature), sketch.cost(PROBLEM.dimension)
        bound = ScheduleU(C, PROBLEM.distance, PROBLEM.strong_convexity).curve(steps)
        axes.plot(calls, mean, color=colour, lw=2, label=label)
        axes.plot(calls, [bound[round(c / cost)] / PROBLEM.gap for c in calls], ":", color=colour, lw=1.4)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_ylim(5e-5, 1e3)
    axes.set_xlabel("oracle calls: directional derivatives taken (dotted: the bound)")
    axes.set_ylabel("(f − f*) / (f(x₀) − f*)")
    axes.set_title("Quadratic with eigenvalues i⁻², d = 256", loc="left", fontweight="bold")
    axes.legend(loc="upper right")
    figure.savefig(picture)


if __name__ == "__main__":
    with rc_context(LOOK):
        draw()
