"""Low rank without singular values: how much a cosine basis keeps, what Trion loses against Muon, and what it saves.

Regenerate with ``python -m benchmarks.claims.trion_rank``.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from rich.progress import Progress
from torch import Tensor, nn

import hasten
from benchmarks.claims.claim import RESULTS, Check, Claim, Table, command_line
from benchmarks.claims.crew import Found, Ledger
from hasten.linalg.cosine import cosine_transform, leading
from hasten.problems.language_model import LanguageModel, parameter_count
from hasten.problems.text import random_windows, spread_windows, standard_library_text
from hasten.race.workers import Workers

NAME = "trion_rank"
CONTEXT, BATCH, DECAY = 32, 8, 0.1
REMEMBERED = 0.95
"""Decay of the average of gradients whose energy is looked at."""
ADAMW, MUON, HEAVY = "AdamW", "Muon", "Muon without Nesterov"
EIGHTH, QUARTER, WHOLE = "Trion, r = n/8", "Trion, r = n/4", "Trion, r = n"
Make = Callable[[nn.Module, float, int], hasten.Optimizer]


def _schedule(lr: float, steps: int) -> hasten.schedules.Schedule:
    return hasten.schedules.cosine(lr, total=steps, warmup=max(1, steps // 10))


@dataclasses.dataclass(frozen=True)
class Method:
    """A method, and how it is made from a model, a rate and the steps."""

    name: str
    make: Make


def _adamw(model: nn.Module, lr: float, steps: int) -> hasten.Optimizer:
    return hasten.AdamW(model, lr=_schedule(lr, steps), betas=(0.9, 0.95), weight_decay=DECAY)


def _muon(nesterov: bool) -> Make:
    def make(model: nn.Module, lr: float, steps: int) -> hasten.Optimizer:
        rate = _schedule(lr, steps)
        return hasten.Muon(model, rate, DECAY, nesterov=nesterov, scale="match_rms_adamw", fallback_lr=rate)

    return make


def _trion(rank: float, momentum: float = 0.95) -> Make:
    def make(model: nn.Module, lr: float, steps: int) -> hasten.Optimizer:
        rate = _schedule(lr, steps)
        return hasten.Trion(model, rate, DECAY, momentum, rank, scale="match_rms_adamw", fallback_lr=rate)

    return make


def _dct_adamw(rank: float, error_feedback: bool) -> Make:
    def make(model: nn.Module, lr: float, steps: int) -> hasten.Optimizer:
        rate = _schedule(lr, steps)
        return hasten.DCTAdamW(model, rate, (0.9, 0.95), 1e-8, DECAY, rank, error_feedback)

    return make


METHODS = (
    Method(ADAMW, _adamw),
    Method(MUON, _muon(nesterov=True)),
    Method(HEAVY, _muon(nesterov=False)),
    Method(WHOLE, _trion(1.0)),
    Method(QUARTER, _trion(0.25)),
    Method(EIGHTH, _trion(0.125)),
    Method("Trion, r = n/4, μ = 0.8", _trion(0.25, 0.8)),
    Method("DCT-AdamW, r = n/4", _dct_adamw(0.25, True)),
    Method("DCT-AdamW, r = n/4, no feedback", _dct_adamw(0.25, False)),
)
MIDDLE = 4e-3
"""Of every grid of learning rates."""
LANES = 2


@dataclasses.dataclass(frozen=True)
class Cell:
    """One run: a method by name, at a learning rate, on a seed."""

    method: str
    rate: float
    seed: int
    steps: int = 200
    width: int = 64
    depth: int = 2
    held_out: int = 256
    world: int = 1

    def model(self) -> LanguageModel:
        """At its initial values."""
        torch.manual_seed(self.seed)
        return LanguageModel(context=CONTEXT, width=self.width, depth=self.depth, heads=4)


@dataclasses.dataclass(frozen=True)
class Training:
    """How the methods are tuned, and how often they are run."""

    base: Cell = Cell(ADAMW, MIDDLE, 0)
    multiples: tuple[float, ...] = (0.5, 1.0, 2.0, 4.0)
    tuning_seed: int = 1000
    seeds: tuple[int, ...] = (0, 1, 2)
    methods: tuple[Method, ...] = METHODS

    def cell(self, method: Method, rate: float, seed: int) -> Cell:
        """One run."""
        return dataclasses.replace(self.base, method=method.name, rate=rate, seed=seed)


Runs = Callable[[list[Cell]], list[Found]]


def trained(cell: Cell, workers: Workers | None = None) -> Found:
    """Held-out loss after training (infinite if it diverged), and the numbers of state per entry of a hidden matrix."""
    text, model = standard_library_text(), cell.model()
    optimizer = next(m for m in METHODS if m.name == cell.method).make(model, cell.rate, cell.steps)
    generator = torch.Generator().manual_seed(cell.seed)
    for _ in range(cell.steps):
        optimizer.zero_grad()
        loss = model.loss(*random_windows(text.train, BATCH, CONTEXT, generator))
        if not math.isfinite(loss.item()):
            return {"loss": math.inf, "numbers": math.nan}
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        final = float(model.loss(*spread_windows(text.validation, cell.held_out, CONTEXT)))
    return {
        "loss": final,
        "numbers": _numbers(optimizer, [p for p in model.blocks.parameters() if p.ndim == 2]),
    }


def _numbers(optimizer: torch.optim.Optimizer, matrices: Sequence[Tensor]) -> float:
    held = sum(t.numel() for p in matrices for t in optimizer.state[p].values() if t.dim())
    return held / sum(p.numel() for p in matrices)


@dataclasses.dataclass(frozen=True)
class Result:
    """A method's tuned rate, its losses on fresh seeds, and its numbers of state per entry."""

    rate: float
    edge: bool
    losses: tuple[float, ...]
    numbers: float


def compare(task: Training, runs: Runs) -> dict[str, Result]:
    """Every method, tuned over equally many rates, then run on fresh seeds."""
    grid = [multiple * MIDDLE for multiple in task.multiples]
    tuning = runs([task.cell(m, rate, task.tuning_seed) for m in task.methods for rate in grid])
    best = {}
    for i, method in enumerate(task.methods):
        losses = [run["loss"] for run in tuning[i * len(grid) : (i + 1) * len(grid)]]
        best[method] = grid[losses.index(min(losses))]
    final = runs([task.cell(m, best[m], seed) for m in task.methods for seed in task.seeds])
    found = {}
    for i, method in enumerate(task.methods):
        own = final[i * len(task.seeds) : (i + 1) * len(task.seeds)]
        edge = best[method] in (grid[0], grid[-1])
        found[method.name] = Result(best[method], edge, tuple(run["loss"] for run in own), own[0]["numbers"])
    return found


# How much of a matrix a few directions keep.


def kept(G: Tensor, rank: int) -> tuple[float, float, float]:
    """The share of ‖G‖² in `rank` columns: of the cosine basis, of the singular vectors, of a random basis."""
    generator = torch.Generator().manual_seed(1)
    n, total = G.shape[1], float(G.square().sum())
    random = torch.linalg.qr(torch.randn(n, n, dtype=G.dtype, generator=generator)).Q
    shares = []
    for S in (cosine_transform(G), G @ random):
        chosen = leading(S.abs().sum(0), rank)
        shares.append(float(S[:, chosen].square().sum()) / total)
    best = float(torch.linalg.svdvals(G)[:rank].square().sum()) / total
    return shares[0], best, shares[1]


def gradients(task: Training) -> dict[str, Tensor]:
    """Averages of gradients of a trained model's hidden matrices, none wider than tall."""
    text, model, steps = standard_library_text(), task.base.model(), task.base.steps
    optimizer = _adamw(model, MIDDLE, steps)
    named = {name: p for name, p in model.blocks[0].named_parameters() if p.ndim == 2}
    averages = {name: torch.zeros_like(p) for name, p in named.items()}
    generator = torch.Generator().manual_seed(0)
    for _ in range(steps):
        optimizer.zero_grad()
        model.loss(*random_windows(text.train, BATCH, CONTEXT, generator)).backward()
        optimizer.step()
        for name, p in named.items():
            assert p.grad is not None
            averages[name].lerp_(p.grad, 1 - REMEMBERED)
    return {
        f"average of gradients, {name.removesuffix('.weight')}": (a if a.shape[0] >= a.shape[1] else a.T)
        for name, a in averages.items()
    }


def matrices() -> dict[str, Tensor]:
    """Matrices whose singular values are known to decay, or not, and are smooth along the index, or not."""
    generator = torch.Generator().manual_seed(0)

    def normal(m: int, n: int) -> Tensor:
        return torch.randn(m, n, dtype=torch.float64, generator=generator)

    U, V = torch.linalg.qr(normal(512, 256)).Q, torch.linalg.qr(normal(256, 256)).Q
    return {
        "every row a random walk": normal(512, 256).cumsum(1),
        "independent entries": normal(512, 256),
        "singular values 1/k, random bases": U / torch.arange(1, 257) @ V.T,
    }


# How long a step takes.


def pace(shape: tuple[int, int], rounds: int) -> dict[str, list[float]]:
    """Seconds of a step on one matrix, of each method in turn in every round."""
    made: dict[str, Callable[[Tensor], hasten.Optimizer]] = {
        MUON: lambda p: hasten.Muon([p], 1e-3),
        WHOLE: lambda p: hasten.Trion([p], 1e-3, rank=1.0),
        QUARTER: lambda p: hasten.Trion([p], 1e-3, rank=0.25),
        EIGHTH: lambda p: hasten.Trion([p], 1e-3, rank=0.125),
        "DCT-AdamW, r = n/4": lambda p: hasten.DCTAdamW([p], rank=0.25),
        "DCT-AdamW, r = n/4, no feedback": lambda p: hasten.DCTAdamW([p], rank=0.25, error_feedback=False),
    }
    optimizers = {}
    for name, make in made.items():
        p = torch.randn(shape).requires_grad_()
        p.grad = torch.randn(shape)
        optimizers[name] = make(p)
        optimizers[name].step()
    found: dict[str, list[float]] = {name: [] for name in made}
    names = list(made)
    for i in range(rounds):
        for name in names[i % len(names) :] + names[: i % len(names)]:
            began = time.perf_counter()
            optimizers[name].step()
            found[name].append(time.perf_counter() - began)
    return found


def ratios(found: dict[str, list[float]], name: str) -> tuple[float, float, float]:
    """Lower quartile, median and upper quartile of a step's time over Muon's of the same round."""
    own = [a / b for a, b in zip(found[name], found[MUON], strict=True)]
    low, middle, high = statistics.quantiles(own, n=4)
    return low, middle, high


def run(quick: bool = False, folder: Path = RESULTS) -> Claim:
    """Shares, training, pace."""
    task, shapes, rounds = Training(), [(1024, 1024), (3072, 768), (768, 3072)], 15
    if quick:
        few = tuple(m for m in METHODS if m.name in (ADAMW, MUON, HEAVY, WHOLE, QUARTER, EIGHTH))
        small = Cell(ADAMW, MIDDLE, 0, steps=6, width=32, depth=1, held_out=16)
        task = Training(small, (1.0,), seeds=(0, 1), methods=few)
        shapes, rounds = [(64, 64)], 3
        results = compare(task, lambda cells: [trained(cell) for cell in cells])
    else:
        with Progress() as progress:
            total = len(task.methods) * (len(task.multiples) + len(task.seeds))
            bar = progress.add_task("training", total=total)
            with Ledger(None, lambda *_: progress.advance(bar), lanes=LANES) as ledger:
                results = compare(task, lambda cells: ledger.all(trained, cells))
    given, learnt = matrices(), gradients(task)
    shares = {
        (name, r): kept(G, r)
        for own in (given, learnt)
        for name, G in own.items()
        for r in (G.shape[1] // 16, G.shape[1] // 8, G.shape[1] // 4)
    }
    paces = {shape: pace(shape, rounds) for shape in shapes}
    base, entries = task.base, parameter_count(task.base.model())
    return Claim(
        NAME,
        "Trion and DCT-AdamW: low rank without singular values, against Muon and AdamW",
        "Modoranu et al. 2025, FFT-based dynamic subspace selection for low-rank adaptive optimization "
        "(arXiv:2505.17967)",
        f"A transformer of {entries:,} parameters (hidden matrices of {base.width} to {4 * base.width} rows and "
        f"columns) reads Python's standard library for {base.steps} steps of {BATCH} windows of {CONTEXT} characters, "
        f"with warm-up and cosine decay, weight decay {DECAY}, one learning rate for matrices and the rest alike (the "
        "step of Muon and Trion matched to AdamW's), tried at "
        f"{', '.join(f'{m:g}' for m in task.multiples)} times {MIDDLE:g} on a seed that is not reported; then "
        f"{len(task.seeds)} fresh seeds. n is the lesser side of a matrix. Steps are timed on one matrix, of each "
        "method in turn in every round; quartiles are those of the ratio to Muon in the same round.",
        _checks(results, shares, paces, list(learnt)),
        [_losses(task, results), _shares(shares), _paces(paces)],
        quick=quick,
    )


def _over(results: dict[str, Result], name: str, base: str) -> tuple[float, float]:
    pairs = [a / b for a, b in zip(results[name].losses, results[base].losses, strict=True)]
    return statistics.mean(pairs), statistics.stdev(pairs)


def _checks(
    results: dict[str, Result],
    shares: dict[tuple[str, int], tuple[float, float, float]],
    paces: dict[tuple[int, int], dict[str, list[float]]],
    learnt: list[str],
) -> list[Check]:
    found = []
    for name, base, limit in ((WHOLE, HEAVY, 1.005), (QUARTER, MUON, 1.01), (EIGHTH, MUON, 1.02)):
        mean, spread = _over(results, name, base)
        says = f"held-out loss of {name}, over {base}, mean over paired seeds"
        loss = f"{base}, {statistics.mean(results[base].losses):.3f} nats"
        found.append(Check(says, loss, f"≤ {limit}", f"{mean:.4f} ± {spread:.4f}", mean <= limit))
    for name in (QUARTER, EIGHTH):
        mean, spread = _over(results, name, ADAMW)
        says = f"held-out loss of {name}, over AdamW"
        found.append(Check(says, ADAMW, "< 1", f"{mean:.4f} ± {spread:.4f}", mean < 1))
    for name in (QUARTER, EIGHTH):
        middle = {shape: ratios(own, name)[1] for shape, own in paces.items()}
        worst = max(middle, key=lambda shape: middle[shape])
        says = f"time of a step of {name}, over Muon, the worst of {len(paces)} shapes"
        shown = f"{middle[worst]:.2f} ({worst[0]} × {worst[1]})"
        found.append(Check(says, MUON, "< 1", shown, middle[worst] < 1))
    walk = min(dct / svd for (name, _), (dct, svd, _) in shares.items() if "walk" in name)
    found.append(
        Check(
            "rows that are random walks: energy in the cosine directions over that in as many singular vectors",
            "SVD",
            "≥ 0.95",
            f"{walk:.3f}",
            walk >= 0.95,
        )
    )
    gained = [dct - other for (name, _), (dct, _, other) in shares.items() if name in learnt]
    found.append(
        Check(
            "averages of gradients of the trained transformer: the same, less that of a random basis",
            "a random orthogonal basis",
            "> 0.05 on average",
            f"{statistics.mean(gained):+.3f}",
            statistics.mean(gained) > 0.05,
        )
    )
    return found


def _losses(task: Training, results: dict[str, Result]) -> Table:
    rows = [
        [
            name,
            f"{statistics.mean(r.losses):.3f} ± {statistics.stdev(r.losses):.3f}",
            f"{_over(results, name, MUON)[0]:.4f}",
            f"{_over(results, name, ADAMW)[0]:.4f}",
            f"{r.numbers:.2f}",
            f"{r.rate:g}" + (" (edge)" if r.edge else ""),
        ]
        for name, r in results.items()
    ]
    columns = ["method", "held-out loss, nats", "over Muon", "over AdamW", "state per entry", "lr as tuned"]
    return Table(f"After {task.base.steps} steps, {len(task.seeds)} fresh seeds", columns, rows)


def _shares(shares: dict[tuple[str, int], tuple[float, float, float]]) -> Table:
    rows = [[name, str(r), *(f"{x:.3f}" for x in found)] for (name, r), found in shares.items()]
    columns = ["matrix", "r", "cosine basis", "singular vectors", "random basis"]
    return Table("Share of ‖G‖² in r directions (chosen by sums of absolute values)", columns, rows)


def _paces(paces: dict[tuple[int, int], dict[str, list[float]]]) -> Table:
    rows = []
    for (m, n), found in paces.items():
        for name, seconds in found.items():
            low, middle, high = ratios(found, name)
            median = 1e3 * statistics.median(seconds)
            rows.append([f"{m} × {n}", name, f"{median:.1f}", f"{middle:.2f} ({low:.2f} to {high:.2f})"])
    return Table("A step on one matrix", ["matrix", "method", "ms", "over Muon"], rows)


if __name__ == "__main__":
    command_line(run, NAME)
