"""Train one contender on one seed, and measure it."""

from __future__ import annotations

import hashlib
import math
import statistics
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hasten.race.entrants import Contender, evaluating
from hasten.race.errors import RaceError, one_line
from hasten.race.run import DIVERGED, FINISHED, Point, Run
from hasten.race.task import Task, derive_seed
from hasten.race.tasks import TaskSource
from hasten.race.ways import Attached
from hasten.race.workers import ALONE, Workers, lost
from hasten.wire import WorkerLost

State = dict[str, Tensor]


@dataclass(frozen=True)
class Seeds:
    """The seeds of a run. Model and batches are shared by all optimizers, so that runs of
    equal number differ in the optimizer alone, and the way in which workers exchange.

    Example:
        >>> a, b = Seeds.of("lm", 0, "Lion"), Seeds.of("lm", 0, "AdamW")
        >>> a.model == b.model, a.optimizer == b.optimizer
        (True, False)
    """

    model: int
    batches: int
    optimizer: int
    hook: int = 0

    @classmethod
    def of(cls, task: str, seed: int | str, label: str) -> Seeds:
        """Derive all from what the run is."""
        return cls(
            derive_seed(task, seed, "model"),
            derive_seed(task, seed, "batches"),
            derive_seed(task, seed, label, "optimizer"),
            derive_seed(task, seed, label, "hook"),
        )


def build_task(source: TaskSource, seed: int) -> Task:
    """A fresh task; torch's global generator is seeded meanwhile, for tasks that ignore their argument.

    Example:
        >>> from hasten.race.tasks import find_task
        >>> build_task(find_task("rosenbrock"), 0).log_scale
        True
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        with blaming(source, "building it"):
            return source.build(seed)


def evaluation_steps(steps: int, evaluations: int) -> list[int]:
    """At which steps to evaluate: evenly spread, first and last included.

    Example:
        >>> evaluation_steps(10, 5)
        [0, 2, 4, 6, 8, 10]
    """
    count = max(1, min(evaluations, steps))
    return sorted({round(k * steps / count) for k in range(count + 1)})


def train(
    source: TaskSource,
    contender: Contender,
    *,
    seed: int,
    steps: int,
    evaluations: int,
    seeds: Seeds | None = None,
    tick: Callable[[], None] = lambda: None,
    workers: Workers = ALONE,
) -> tuple[Run, State]:
    """Train for ``steps`` steps; give the measurements and the model at its evaluation point.

    The caller's random state is left as it was found. Several workers share every batch; times and the model are
    then each worker's own, all else is the same on all.

    Example:
        >>> from hasten.race.entrants import parse_entrants, settle
        >>> from hasten.race.tasks import find_task
        >>> source = find_task("valley")
        >>> contender = settle(parse_entrants("torch.SGD(lr=0.01)")[0], source.family, 50)
        >>> run, state = train(source, contender, seed=0, steps=50, evaluations=5)
        >>> run.status, len(run.points)
        ('finished', 6)
    """
    seeds = seeds or Seeds.of(source.name, seed, contender.label)
    with torch.random.fork_rng(devices=[]), blaming(source, f"training with {contender.label}"):
        rig = assemble(source, contender, steps, seeds, workers)
        return _train(rig, contender, seed, steps, evaluations, seeds, tick)


@dataclass
class Rig:
    """All that is put together for one run.

    Attributes:
        task: as this worker has it.
        optimizer, schedule: the contender, and what drives its learning rate.
        workers: those who take part.
        attached: how they exchange; None for a worker by itself.
    """

    task: Task
    optimizer: Any
    schedule: torch.optim.lr_scheduler.LambdaLR
    workers: Workers = ALONE
    attached: Attached | None = None

    def point(self, step: int, seconds: float, train_loss: float | None, loss: float) -> Point:
        """An evaluation, with what is counted."""
        calls = oracle_calls(self.task, self.optimizer, step)
        sent = None if self.attached is None else self.attached.sent()
        return Point(step, step * self.task.samples_per_step, seconds, train_loss, loss, calls, sent)


def assemble(source: TaskSource, contender: Contender, steps: int, seeds: Seeds, workers: Workers) -> Rig:
    """Build the task and the contender on it, and seed what is drawn while training.

    Example:
        >>> from hasten.race.entrants import parse_entrants, settle
        >>> from hasten.race.tasks import find_task
        >>> contender = settle(parse_entrants("torch.SGD(lr=0.1)")[0], "surface", 10)
        >>> assemble(find_task("valley"), contender, 10, Seeds(0, 0, 0), ALONE).attached is None
        True
    """
    task = workers.sharing(build_task(source, seeds.model))
    attached = None
    if workers.wire is not None and contender.hook is not None:
        attached = contender.hook.way().attach(task, seeds.hook)
        task = attached.task
    oracle = None if attached is None else attached.oracle
    optimizer, schedule = contender.build(task.model, steps, seeds.optimizer, task.problem, oracle)
    if attached is not None:
        optimizer = attached.wrap(optimizer)
    # Dropout and the like draw from here: the same masks whatever ran before.
    torch.manual_seed(workers.own_seed(seeds.batches))
    return Rig(task, optimizer, schedule, workers, attached)


def _train(
    rig: Rig,
    contender: Contender,
    seed: int,
    steps: int,
    evaluations: int,
    seeds: Seeds,
    tick: Callable[[], None],
) -> tuple[Run, State]:
    task, optimizer, workers = rig.task, rig.optimizer, rig.workers
    batches = torch.Generator().manual_seed(seeds.batches)
    clock = StepClock()
    points = [rig.point(0, 0.0, None, evaluate(task, optimizer))]
    due = set(evaluation_steps(steps, evaluations))
    lr = max(float(group["lr"]) for group in optimizer.param_groups)
    peak, losses, status, taken = lr, [], FINISHED, 0
    task.model.train()
    for step in range(1, steps + 1):
        peak = max(peak, *(float(group["lr"]) for group in optimizer.param_groups))
        losses.append(workers.mean(clock.step(task, optimizer, batches)))
        rig.schedule.step()
        taken = step
        tick()
        if not math.isfinite(losses[-1]):
            status = DIVERGED
            break
        if step == steps and rig.attached is not None:
            rig.attached.finish()
        if step in due:
            loss = evaluate(task, optimizer)
            if not math.isfinite(loss):
                status = DIVERGED
                break
            points.append(rig.point(step, clock.total, statistics.fmean(losses), loss))
            losses = []
    with evaluating(optimizer):
        state = {k: v.detach().clone() for k, v in task.model.state_dict().items()}
        if status == FINISHED:
            workers.check_together(task.model.parameters(), contender.label)
    run = Run(
        label=contender.label,
        seed=seed,
        lr=peak,
        options=contender.options,
        status=status,
        points=tuple(points),
        steps=taken,
        step_ms=clock.median_ms(clock.whole),
        optimizer_ms=clock.median_ms(clock.optimizer),
        state_bytes=state_bytes_per_parameter(optimizer, rig.attached),
        digest=digest(points, status, state),
    )
    return run, state


class StepClock:
    """Takes training steps and keeps their times, the optimizer's share apart.

    Example:
        >>> StepClock().total
        0
    """

    def __init__(self) -> None:
        self.whole: list[float] = []
        self.optimizer: list[float] = []

    @property
    def total(self) -> float:
        """Seconds spent on all steps."""
        return sum(self.whole)

    def step(self, task: Task, optimizer: Any, batches: torch.Generator) -> float:
        """One step; the batch is drawn once even if the optimizer asks for its loss twice."""
        in_closure = 0.0

        def closure() -> Tensor:
            nonlocal in_closure
            entered = time.perf_counter()
            optimizer.zero_grad()
            with torch.enable_grad():
                loss = task.loss(batch)
                torch.autograd.backward(loss)
            in_closure += time.perf_counter() - entered
            return loss

        started = time.perf_counter()
        batch = task.sample(batches)
        drawn = time.perf_counter()
        try:
            loss = float(optimizer.step(closure).detach())
        except FloatingPointError:  # on_nonfinite="raise": the optimizer noticed first
            loss = math.nan
        ended = time.perf_counter()
        self.whole.append(ended - started)
        self.optimizer.append(ended - drawn - in_closure)
        return loss

    @staticmethod
    def median_ms(seconds: list[float]) -> float:
        """Median in milliseconds."""
        return 1e3 * statistics.median(seconds) if seconds else 0.0


def evaluate(task: Task, optimizer: torch.optim.Optimizer) -> float:
    """The task's evaluation, at the optimizer's evaluation point, without gradients.

    Example:
        >>> from hasten.race.tasks import find_task
        >>> task = build_task(find_task("least-squares"), 0)
        >>> evaluate(task, torch.optim.SGD(task.model.parameters(), lr=0.1))
        10.0
    """
    was_training = task.model.training
    task.model.eval()
    try:
        with evaluating(optimizer), torch.no_grad():
            return float(task.evaluate())
    finally:
        task.model.train(was_training)


def oracle_calls(task: Task, optimizer: torch.optim.Optimizer, steps: int) -> int | None:
    """Numbers learnt of gradients in so many steps, on a convex problem: as the optimizer counts them, else
    one for each parameter and step. None on other tasks.

    Example:
        >>> from hasten.race.tasks import find_task
        >>> task = build_task(find_task("convex/quadratic-inverse"), 0)
        >>> oracle_calls(task, torch.optim.SGD(task.model.parameters(), lr=0.1), 10)
        2560
    """
    if task.problem is None:
        return None
    counted = getattr(optimizer, "oracle_calls", None)
    return steps * task.problem.dimension if counted is None else int(counted)


def state_bytes_per_parameter(optimizer: torch.optim.Optimizer, attached: Attached | None = None) -> float:
    """Bytes of state, of optimizer and exchange, for each trainable entry; lone numbers, such as step counts, aside.

    Example:
        >>> weight = torch.nn.Parameter(torch.zeros(100))
        >>> state_bytes_per_parameter(torch.optim.SGD([weight], lr=0.1))
        0.0
    """
    entries: int = sum(p.numel() for group in optimizer.param_groups for p in group["params"])
    held = (v for state in optimizer.state.values() for v in state.values())
    size = float(sum(v.nbytes for v in held if isinstance(v, Tensor) and v.dim()))
    size += 0 if attached is None else attached.memory()
    return size / max(1, entries)


def digest(points: list[Point], status: str, state: State) -> str:
    """Hash of all that a repetition must reproduce to the bit; times are left out.

    Example:
        >>> digest([], "finished", {}) == digest([], "diverged", {})
        False
    """
    sha = hashlib.sha256(status.encode())
    for point in points:
        text = f"{point.step} {point.samples} {point.train_loss!r} {point.loss!r}\n"
        sha.update(text.encode())
    for name, tensor in state.items():
        sha.update(name.encode())
        sha.update(tensor.cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return sha.hexdigest()[:16]


@contextmanager
def blaming(source: TaskSource, doing: str) -> Iterator[None]:
    """Turn what a task's code raises into one line that says where it went wrong.

    Example:
        >>> from hasten.race.tasks import find_task
        >>> with blaming(find_task("lm"), "thinking"):
        ...     print("well")
        well
    """
    try:
        yield
    except (RaceError, WorkerLost, KeyboardInterrupt):
        raise
    except Exception as error:
        if lost(error):
            raise WorkerLost(one_line(error)) from error
        frames = traceback.extract_tb(error.__traceback__)[1:]
        own = [frame for frame in frames if source.name.startswith(frame.filename)] or frames
        place = f" at {own[-1].filename}:{own[-1].lineno}" if own else ""
        raise RaceError(
            f"task {source.name}: {doing} raised {type(error).__name__}{place}: {one_line(error)}"
        ) from error
