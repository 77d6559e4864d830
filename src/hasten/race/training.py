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

State = dict[str, Tensor]


@dataclass(frozen=True)
class Seeds:
    """The three seeds of a run. Model and batches are shared by all optimizers, so that runs of
    equal number differ in the optimizer alone.

    Example:
        >>> a, b = Seeds.of("lm", 0, "Lion"), Seeds.of("lm", 0, "AdamW")
        >>> a.model == b.model, a.optimizer == b.optimizer
        (True, False)
    """

    model: int
    batches: int
    optimizer: int

    @classmethod
    def of(cls, task: str, seed: int | str, label: str) -> Seeds:
        """Derive all three from what the run is."""
        return cls(
            derive_seed(task, seed, "model"),
            derive_seed(task, seed, "batches"),
            derive_seed(task, seed, label, "optimizer"),
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
) -> tuple[Run, State]:
    """Train for ``steps`` steps; give the measurements and the model at its evaluation point.

    The caller's random state is left as it was found.

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
    with torch.random.fork_rng(devices=[]):
        task = build_task(source, seeds.model)
        optimizer, schedule = contender.build(task.model, steps, seeds.optimizer, task.problem)
        # Dropout and the like draw from here: the same masks whatever ran before.
        torch.manual_seed(seeds.batches)
        with blaming(source, f"training with {contender.label}"):
            return _train(task, contender, optimizer, schedule, seed, steps, evaluations, seeds, tick)


def _train(
    task: Task,
    contender: Contender,
    optimizer: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LambdaLR,
    seed: int,
    steps: int,
    evaluations: int,
    seeds: Seeds,
    tick: Callable[[], None],
) -> tuple[Run, State]:
    batches = torch.Generator().manual_seed(seeds.batches)
    clock = StepClock()
    points = [Point(0, 0, 0.0, None, evaluate(task, optimizer), oracle_calls(task, optimizer, 0))]
    due = set(evaluation_steps(steps, evaluations))
    lr = max(float(group["lr"]) for group in optimizer.param_groups)
    peak, losses, status, taken = lr, [], FINISHED, 0
    task.model.train()
    for step in range(1, steps + 1):
        peak = max(peak, *(float(group["lr"]) for group in optimizer.param_groups))
        losses.append(clock.step(task, optimizer, batches))
        schedule.step()
        taken = step
        tick()
        if not math.isfinite(losses[-1]):
            status = DIVERGED
            break
        if step in due:
            loss = evaluate(task, optimizer)
            if not math.isfinite(loss):
                status = DIVERGED
                break
            mean = statistics.fmean(losses)
            samples, calls = step * task.samples_per_step, oracle_calls(task, optimizer, step)
            points.append(Point(step, samples, clock.total, mean, loss, calls))
            losses = []
    with evaluating(optimizer):
        state = {k: v.detach().clone() for k, v in task.model.state_dict().items()}
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
        state_bytes=state_bytes_per_parameter(optimizer),
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


def state_bytes_per_parameter(optimizer: torch.optim.Optimizer) -> float:
    """Bytes of optimizer state for each trainable entry; lone numbers, such as step counts, aside.

    Example:
        >>> weight = torch.nn.Parameter(torch.zeros(100))
        >>> state_bytes_per_parameter(torch.optim.SGD([weight], lr=0.1))
        0.0
    """
    entries: int = sum(p.numel() for group in optimizer.param_groups for p in group["params"])
    held = (v for state in optimizer.state.values() for v in state.values())
    size = float(sum(v.nbytes for v in held if isinstance(v, Tensor) and v.dim()))
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
    except (RaceError, KeyboardInterrupt):
        raise
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)[1:]
        own = [frame for frame in frames if source.name.startswith(frame.filename)] or frames
        place = f" at {own[-1].filename}:{own[-1].lineno}" if own else ""
        raise RaceError(
            f"task {source.name}: {doing} raised {type(error).__name__}{place}: {one_line(error)}"
        ) from error
