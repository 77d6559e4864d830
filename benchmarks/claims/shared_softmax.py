"""Ridge softmax regression whose rows are shared among workers: how many steps the subspace hook takes, and bytes."""

from __future__ import annotations

import dataclasses
from functools import cache

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import hasten
from benchmarks.claims.crew import Found
from hasten.distributed import AllReduce, Hook, SubspaceHook
from hasten.problems import RidgeSoftmax
from hasten.race.workers import Workers
from hasten.sketches import BalancedCountSketch, Identity
from hasten.theory import Prediction, predict
from hasten.wire import communication

RANKS = (128, 64, 16, 4)
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
