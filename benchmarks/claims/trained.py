"""A task trained by several workers, as `hasten race` trains it: the loss, the bytes, and the time of a step."""

from __future__ import annotations

import dataclasses
import time

import torch

from benchmarks.claims.crew import Found
from hasten.race.entrants import Contender, parse_entrants, settle
from hasten.race.hooks import parse_hooks
from hasten.race.tasks import find_task
from hasten.race.training import Seeds, assemble, train
from hasten.race.workers import Workers
from hasten.wire import communication

EVALUATIONS = 6
POWERSGD_CALLS = 3
"""Of torch's hook, for every bucket: what is not compressed, and two factors. The race counts their bytes as one."""


@dataclasses.dataclass(frozen=True)
class Cell:
    """What is trained: a task, by so many workers, with an optimizer over a hook, both as the race reads them."""

    task: str
    world: int
    optimizer: str
    hook: str
    steps: int
    seed: int

    def contender(self) -> Contender:
        """The optimizer with the race's settings for the task, over the hook."""
        entrant = parse_entrants(self.optimizer)[0]
        return settle(entrant, find_task(self.task).family, self.steps).over(parse_hooks(self.hook)[0])


def trained(cell: Cell, workers: Workers) -> Found:
    """The loss at the end (infinite if the run diverged), and the bytes one worker sent.

    ``training`` is the mean training loss over the last sixth of the run.
    """
    run, _ = train(
        find_task(cell.task),
        cell.contender(),
        seed=cell.seed,
        steps=cell.steps,
        evaluations=EVALUATIONS,
        workers=workers,
    )
    return {
        "loss": run.final_loss,
        "sent": run.points[-1].bytes,
        "training": run.points[-1].train_loss,
        "seconds": run.points[-1].seconds,
        "points": [[point.step, point.loss, point.bytes] for point in run.points],
    }


def paced(cell: Cell, workers: Workers) -> Found:
    """Collectives and processor seconds of a worker, a step: over the second half of the cell's steps."""
    contender = cell.contender()
    with torch.random.fork_rng(devices=[]):
        seeds = Seeds.of(cell.task, cell.seed, contender.label)
        rig = assemble(find_task(cell.task), contender, cell.steps, seeds, workers)
        parameters = list(rig.task.model.parameters())
        batches = torch.Generator().manual_seed(0)
        measured = cell.steps // 2
        calls, began = 0, 0.0
        for step in range(cell.steps):
            if step == cell.steps - measured:
                calls, began = communication(parameters).total.calls, time.process_time()
            batch = rig.task.sample(batches)

            def loss(batch: object = batch) -> torch.Tensor:
                rig.optimizer.zero_grad()
                value = rig.task.loss(batch)
                value.backward()
                return value

            rig.optimizer.step(loss)
        seconds = (time.process_time() - began) / measured
        calls = communication(parameters).total.calls - calls
    each = POWERSGD_CALLS if cell.hook.startswith("powersgd") else 1
    return {"calls": each * calls / measured, "seconds": seconds}
