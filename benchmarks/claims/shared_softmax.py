"""Ridge softmax regression whose rows are shared among workers: how many steps the subspace hook takes, and bytes."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Sequence
from functools import cache

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import hasten
from benchmarks.claims.claim import Table
from benchmarks.claims.crew import Found, Ledger
from hasten.distributed import AllReduce, Hook, SubspaceHook
from hasten.problems import RidgeSoftmax
from hasten.race.workers import Workers
from hasten.sketches import BalancedCountSketch, Identity
from hasten.theory import Prediction, predict
from hasten.wire import communication

RANKS = (128, 64, 16, 4)
SEEDS = (0, 1)
ACCURACY = 1e-2
"""Part of the initial gap that is left."""


@dataclasses.dataclass(frozen=True)
class Descent:
    """One run: how many share the rows; r, or None for whole gradients; the subspaces' seed; the most steps."""

    world: int
    rank: int | None
    seed: int
    longest: int = 10_000


class Shared(nn.Module):
    """The mean over one worker's rows; the mean of all workers' is the problem's value, rows being equally many."""

    def __init__(self, whole: RidgeSoftmax, rank: int, world: int) -> None:
        super().__init__()
        self.own = RidgeSoftmax(whole.features[rank::world], whole.targets[rank::world], whole.ridge)
        self.x = nn.Parameter(whole.start.float())

    def forward(self) -> torch.Tensor:
        return self.own.value(self.x.double())


@cache
def problem(world: int) -> RidgeSoftmax:
    """Handwritten digits, as many as can be shared evenly."""
    found = RidgeSoftmax.digits()
    count = len(found.features) // world * world
    return RidgeSoftmax(found.features[:count], found.targets[:count], found.ridge)


def prediction(world: int, rank: int | None) -> Prediction:
    """The theory's word."""
    sketch = None if rank is None else BalancedCountSketch(rank=rank)
    return predict(problem(world), sketch, ACCURACY, cost="bytes")


def descended(job: Descent, workers: Workers) -> Found:
    """After how many steps, with the theory's settings, the gap was small enough (None: never), and bytes sent."""
    whole = problem(workers.world)
    model = DistributedDataParallel(Shared(whole, workers.rank, workers.world))
    if job.rank is None:
        hook = Hook(AllReduce()).register(model)
        given = {"sketch": Identity()}
    else:
        sketch = BalancedCountSketch(rank=job.rank)
        hook = SubspaceHook(sketch, exact=lambda shape: False, seed=job.seed).register(model)
        given = {"oracle": hook.oracle}
    parameters = list(model.parameters())
    opt = hasten.SubspaceNesterov(
        parameters, smoothness=whole.curvature, strong_convexity=whole.strong_convexity, **given
    )
    wanted = whole.minimum + ACCURACY * (float(whole.value(whole.start)) - whole.minimum)
    for step in range(1, job.longest + 1):

        def loss() -> torch.Tensor:
            opt.zero_grad()
            value = model()
            value.backward()
            return value

        opt.step(loss)
        with opt.evaluating(), torch.no_grad():
            reached = float(whole.value(parameters[0].double())) <= wanted
        if reached:
            return {"steps": step, "sent": communication(parameters).total.sent}
    return {"steps": None, "sent": communication(parameters).total.sent}


@dataclasses.dataclass
class Growth:
    """Subspace Nesterov from r numbers a step, against Nesterov from whole gradients."""

    rank: int
    steps: float
    whole_steps: int
    sent: float
    whole_sent: float
    predicted: float
    predicted_fewer: float

    @property
    def measured(self) -> float:
        """Steps, in those of the full method."""
        return self.steps / self.whole_steps

    @property
    def agrees(self) -> bool:
        """Within 20 %."""
        return abs(self.measured / self.predicted - 1) <= 0.2


def growth(world: int, ranks: Sequence[int], ledger: Ledger) -> list[Growth]:
    """On ridge softmax regression, whose constants are known."""
    whole = ledger.all(descended, [Descent(world, None, 0)])[0]
    rows = []
    for rank in ranks:
        found = ledger.all(descended, [Descent(world, rank, seed) for seed in SEEDS])
        theory = prediction(world, rank)
        rows.append(
            Growth(
                rank,
                statistics.mean(f["steps"] or math.inf for f in found),
                whole["steps"],
                statistics.mean(f["sent"] for f in found),
                whole["sent"],
                theory.inflation,
                theory.speed_up,
            )
        )
    return rows


def growth_table(rows: list[Growth], world: int) -> Table:
    """Measured against predicted."""
    d = problem(world).dimension
    return Table(
        f"Steps of SubspaceNesterov over the subspace hook to a gap of {ACCURACY:g} of the first: ridge softmax "
        f"regression on digits, d = {d}, {world} workers, {len(SEEDS)} seeds",
        ["r", "steps", "× Nesterov's, measured", "predicted I", "bytes fewer, measured", "predicted S"],
        [
            [
                f"{g.rank}",
                f"{g.steps:.0f}",
                f"{g.measured:.2f}",
                f"{g.predicted:.2f}",
                f"{g.whole_sent / g.sent:.2f}×",
                f"{g.predicted_fewer:.2f}×",
            ]
            for g in rows
        ],
    )
