"""Simplified-AdEMAMix on par with AdEMAMix, with one state fewer.

First exactly: without its fast average AdEMAMix *is* Simplified-AdEMAMix, under a map of the
coefficients. Then in training: a small language model, both tuned over the same grid in the
coordinates of that map.

Regenerate with ``python -m benchmarks.claims.simplified_ademamix``.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

import hasten
from benchmarks.claims.claim import RESULTS, Check, Claim, Table, command_line, scientific
from hasten.problems.language_model import LanguageModel, parameter_count
from hasten.problems.quadratic import Quadratic
from hasten.problems.text import random_windows, spread_windows, standard_library_text

NAME = "simplified_ademamix"
CONTEXT, BETA2, BETA3, DECAY = 32, 0.99, 0.99, 0.1
ON_PAR = 1.01
ADAMW, MIX, SIMPLIFIED = "AdamW", "AdEMAMix", "Simplified-AdEMAMix"
Make = Callable[[Sequence[Tensor]], hasten.Optimizer]


@dataclasses.dataclass(frozen=True)
class Mapped:
    """Simplified-AdEMAMix's coefficients for given AdEMAMix coefficients (fast average off)."""

    lr: float
    alpha: float
    weight_decay: float

    @staticmethod
    def of(lr: float, beta3: float, alpha: float, weight_decay: float) -> Mapped:
        """``lr' = lr alpha (1 - beta3)``, ``alpha' = 1 / (alpha (1 - beta3))``, decay likewise."""
        scale = alpha * (1 - beta3)
        return Mapped(lr * scale, 1 / scale, weight_decay / scale)


@dataclasses.dataclass(frozen=True)
class Training:
    """The language-model task."""

    steps: int = 800
    batch: int = 8
    tuning_seeds: tuple[int, ...] = (0, 1)
    fresh_seeds: tuple[int, ...] = (100, 101, 102, 103, 104)
    rates: tuple[float, ...] = (5e-4, 1e-3, 2e-3, 4e-3, 8e-3)
    alphas: tuple[float, ...] = (2.0, 8.0)


def trajectory_gap(steps: int) -> float:
    """Largest relative distance between the two methods under the map, on a noisy quadratic."""
    lr, beta3, alpha, decay = 1e-3, 0.99, 5.0, 0.1
    mapped = Mapped.of(lr, beta3, alpha, decay)
    problem = Quadratic(torch.logspace(-3, 0, 20))
    first, second = (torch.nn.Parameter(torch.zeros(20, dtype=torch.float64)) for _ in range(2))
    mix = hasten.AdEMAMix(
        [first],
        lr=lr,
        betas=(0.0, BETA2, beta3),
        alpha=alpha,
        weight_decay=decay,
        engine="eager",
    )
    simplified = hasten.SimplifiedAdEMAMix(
        [second],
        lr=mapped.lr,
        betas=(beta3, BETA2),
        alpha=mapped.alpha,
        weight_decay=mapped.weight_decay,
        engine="eager",
    )
    generator, worst = torch.Generator().manual_seed(0), 0.0
    for _ in range(steps):
        noise = 0.3 * torch.randn(20, generator=generator, dtype=torch.float64)
        for parameter, optimizer in ((first, mix), (second, simplified)):
            parameter.grad = problem.gradient(parameter.detach()) + noise
            optimizer.step()
        gap = (first - second).norm() / first.norm()
        worst = max(worst, float(gap.detach()))
    return worst


def makers(method: str, task: Training) -> dict[str, Make]:
    """The grid of a method, in AdEMAMix's coordinates; every method has the same rates."""
    schedule, steps = hasten.schedules.cosine, task.steps
    warmup = steps // 10

    def peak(lr: float) -> hasten.schedules.Schedule:
        return schedule(lr, total=steps, warmup=warmup)

    def adamw(lr: float) -> Make:
        return lambda parameters: hasten.AdamW(
            parameters, lr=peak(lr), betas=(0.9, BETA2), weight_decay=DECAY
        )

    def mix(lr: float, alpha: float) -> Make:
        return lambda parameters: hasten.AdEMAMix(
            parameters,
            lr=peak(lr),
            betas=(0.9, BETA2, BETA3),
            alpha=alpha,
            weight_decay=DECAY,
            alpha_warmup=steps,
            beta3_warmup=steps,
        )

    def simplified(lr: float, alpha: float) -> Make:
        mapped = Mapped.of(lr, BETA3, alpha, DECAY)
        return lambda parameters: hasten.SimplifiedAdEMAMix(
            parameters,
            lr=peak(mapped.lr),
            betas=(BETA3, BETA2),
            alpha=mapped.alpha,
            weight_decay=mapped.weight_decay,
            beta1_warmup=steps,
        )

    if method == ADAMW:
        return {f"lr {lr:g}": adamw(lr) for lr in task.rates}
    make = mix if method == MIX else simplified
    return {
        f"lr {lr:g}, α {alpha:g}": make(lr, alpha) for lr, alpha in itertools.product(task.rates, task.alphas)
    }


def train(make: Make, task: Training, seed: int) -> tuple[float, float]:
    """Validation loss after training, and the state's floats per parameter."""
    text = standard_library_text()
    torch.manual_seed(seed)
    model = LanguageModel(context=CONTEXT, width=32, depth=2, heads=2)
    optimizer = make(list(model.parameters()))
    generator = torch.Generator().manual_seed(seed)
    for _ in range(task.steps):
        optimizer.zero_grad()
        loss = model.loss(*random_windows(text.train, task.batch, CONTEXT, generator))
        if not math.isfinite(loss.item()):
            return math.inf, math.nan
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        final = float(model.loss(*spread_windows(text.validation, 512, CONTEXT)))
    return final, state_floats(optimizer)


def state_floats(optimizer: torch.optim.Optimizer) -> float:
    """Entries of state tensors shaped like their parameter, for each parameter entry."""
    parameters: list[Tensor] = [p for group in optimizer.param_groups for p in group["params"]]
    held = sum(
        value.numel()
        for p in parameters
        for value in optimizer.state[p].values()
        if isinstance(value, Tensor) and value.shape == p.shape and p.ndim
    )
    return held / sum(p.numel() for p in parameters)


def compare(task: Training) -> tuple[dict[str, list[float]], dict[str, str], dict[str, float]]:
    """Losses on fresh seeds at the best setting, that setting, and the floats of state."""
    losses: dict[str, list[float]] = {}
    settings: dict[str, str] = {}
    floats: dict[str, float] = {}
    for method in (ADAMW, MIX, SIMPLIFIED):
        grid = makers(method, task)
        tuned = {
            label: statistics.mean(train(make, task, seed)[0] for seed in task.tuning_seeds)
            for label, make in grid.items()
        }
        best = min(tuned, key=lambda label: tuned[label])
        final = [train(grid[best], task, seed) for seed in task.fresh_seeds]
        edges = {f"lr {rate:g}" for rate in (task.rates[0], task.rates[-1])}
        at_edge = best.split(",")[0] in edges
        settings[method] = best + (" (edge of the rates)" if at_edge else "")
        losses[method] = [loss for loss, _ in final]
        floats[method] = final[0][1]
    return losses, settings, floats


def run(quick: bool = False, folder: Path = RESULTS) -> Claim:
    """The exact statement, then the tuned comparison."""
    task = (
        Training(steps=20, tuning_seeds=(0,), fresh_seeds=(100, 101), rates=(4e-3,), alphas=(2.0,))
        if quick
        else Training()
    )
    gap = trajectory_gap(50 if quick else 1000)
    losses, settings, floats = compare(task)
    ratios = [s / m for s, m in zip(losses[SIMPLIFIED], losses[MIX], strict=True)]
    ratio, spread = statistics.mean(ratios), statistics.stdev(ratios)
    entries = parameter_count(LanguageModel(context=CONTEXT, width=32, depth=2, heads=2))
    table = Table(
        f"Validation nats per character after {task.steps} steps, {len(task.fresh_seeds)} fresh seeds",
        ["method", "loss (mean ± s.d.)", "over AdEMAMix", "state floats/param", "best setting"],
        [
            [
                method,
                f"{statistics.mean(values):.4f} ± {statistics.stdev(values):.4f}",
                f"{statistics.mean(v / m for v, m in zip(values, losses[MIX], strict=True)):.4f}",
                f"{floats[method]:.2f}",
                settings[method],
            ]
            for method, values in losses.items()
        ],
    )
    return Claim(
        NAME,
        "Simplified-AdEMAMix on par with AdEMAMix, with one state fewer",
        "Morwani, Vyas, Zhang & Kakade 2025 (arXiv:2502.02431); "
        "Pagliardini, Ablin & Grangier 2024 (arXiv:2409.03137)",
        f"A transformer of {entries:,} parameters reads Python's standard library, "
        f"{task.batch} windows of {CONTEXT} characters a step, warm-up and cosine decay. Both "
        f"methods have the grid lr {task.rates} × α {task.alphas} in AdEMAMix's coordinates "
        f"(β₃ = {BETA3}; Simplified's own coefficients follow by the exact map), their warm-ups "
        f"over the whole run, and weight decay {DECAY}; AdamW has the same rates. Tuned on "
        f"{len(task.tuning_seeds)} seed(s), reported on others; equal seeds mean equal "
        "initialisation and batches.",
        [
            Check(
                "AdEMAMix without its fast average against Simplified-AdEMAMix under the map, "
                "noisy quadratic, adaptive geometry and weight decay: relative distance",
                "AdEMAMix's trajectory",
                "< 1e-10",
                scientific(gap),
                gap < 1e-10,
            ),
            Check(
                "loss of tuned Simplified-AdEMAMix over tuned AdEMAMix, mean over paired seeds",
                f"AdEMAMix, {statistics.mean(losses[MIX]):.4f} nats",
                f"≤ {ON_PAR}",
                f"{ratio:.4f} ± {spread:.4f}",
                ratio <= ON_PAR,
            ),
            Check(
                "floats of state for each parameter",
                f"AdEMAMix, {floats[MIX]:.0f}",
                "one fewer",
                f"{floats[SIMPLIFIED]:.0f}",
                round(floats[MIX] - floats[SIMPLIFIED], 6) == 1,
            ),
        ],
        [table],
        [
            "The run is short against what AdEMAMix was made for (10⁵ steps and more): it "
            "tests that the simplification costs nothing here, not that either beats AdamW.",
        ],
        quick=quick,
    )


if __name__ == "__main__":
    command_line(run, NAME)
