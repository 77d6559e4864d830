"""The race itself: plan, search, run, and keep what was measured."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch

from hasten.race.entrants import Contender
from hasten.race.errors import RaceError
from hasten.race.launch import launch
from hasten.race.outcome import Race
from hasten.race.plan import Plan
from hasten.race.planning import check_contenders, looked_at, make_plan, sample_task
from hasten.race.progress import Observer
from hasten.race.request import Request
from hasten.race.run import Run
from hasten.race.store import Store
from hasten.race.tasks import TaskSource, find_task
from hasten.race.training import Seeds, train
from hasten.race.tuning import make_search, tune
from hasten.race.workers import Workers, started_together, together, world_of
from hasten.wire import WorkerLost

DEFAULT_FOLDER = Path("race")


def race(
    task: str = "lm",
    optimizers: str | Iterable[str] | None = None,
    *,
    seeds: int | Sequence[int] = 3,
    steps: int | None = None,
    budget: str | float | None = None,
    trials: int = 0,
    search: str = "random",
    target: float | None = None,
    evaluations: int | None = None,
    threads: int | None = None,
    hook: str | Iterable[str] | None = None,
    world: int | None = None,
    out: str | Path | None = None,
    observer: Observer | None = None,
    command: str | None = None,
) -> Race:
    """Race optimizers on a task: every one takes the same number of steps on the same batches, or
    of oracle calls where these are counted.

    Everything measured is in the folder ``out`` as soon as it is known. An interrupt (Ctrl-C, a
    notebook's stop button) ends the race early and gives what was finished; `resume` goes on.

    Args:
        task: a name from `hasten.race.tasks.TASKS`, or ``"file.py:function"``.
        optimizers: who races, ``"AdamW,Lion(lr=3e-4)"`` or a list of such; the task's own choice
            where None.
        seeds: how many seeds, or which.
        steps: length of every run. Left out, it is chosen to fit the budget. On a convex problem with
            known constants it is that of the runs with the dearest steps: all take equal oracle calls.
        budget: wall-clock target for everything, as in ``"3m"`` (4 minutes where None).
        trials: learning rates to try for every optimizer first, each at full length.
        search: how those are chosen, "random", "optuna" or "grid".
        target: evaluation whose crossing is timed; the level that all reached where None.
        evaluations: points on every curve (fewer where they would eat up the budget); the task's
            choice where None.
        threads: torch's number of threads, in every worker; where None as it is, or shared out among the workers that
            are started.
        hook: how several workers exchange gradients, or parameters: one of `hasten.race.hooks.WAYS` or several,
            ``"none,subspace(ratio=64)"``; every optimizer races over every one. DistributedDataParallel's own
            all-reduce in float32 is ``"none"``, and taken where None.
        world: how many workers share every batch. Where a launcher such as torchrun started them, it must be their
            number if it is given; otherwise so many processes are started on this machine.
        out: folder of the race, which must not hold one already; ``race/TASK-TIME`` where None.
        observer: told about progress.
        command: what to call the race in the report.

    Raises:
        RaceError: if something asked for does not exist or cannot be.
        WorkerLost: a worker died; `resume` goes on.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     result = race("valley", "torch.SGD(lr=0.01)", seeds=1, steps=20, out=folder)
        >>> len(result.runs)
        1
    """
    request = Request(
        task=task,
        optimizers=_plain(optimizers),
        seeds=seeds if isinstance(seeds, int) else list(seeds),
        steps=steps,
        budget=budget,
        trials=trials,
        search=search,
        target=target,
        evaluations=evaluations,
        threads=threads,
        hook=_plain(hook),
        world=world,
        out=None if out is None else str(out),
        command=command,
    )
    size = world_of(request.world)
    request.hooks_of(size)
    if size > 1 and started_together() is None:
        folder = Path(request.out or default_folder(request.task))
        _refuse_second(Store(folder))
        looked_at(request, size)
        job = {"request": {**request.to_json(), "out": str(folder)}}
        return launch(job, size, folder, load, observer or Observer())
    with together() as workers:
        return run_request(request, workers, observer or Observer())


def _plain(names: str | Iterable[str] | None) -> str | list[str] | None:
    return names if names is None or isinstance(names, str) else list(names)


def default_folder(task: str) -> Path:
    """Where a race is kept when nobody says: ``race/TASK-TIME``.

    Example:
        >>> default_folder("own.py:line").parts[-1].split("-")[0]
        'line'
    """
    return DEFAULT_FOLDER / f"{task.rpartition(':')[2]}-{time.strftime('%Y%m%d-%H%M%S')}"


def run_request(request: Request, workers: Workers, observer: Observer) -> Race:
    """Plan what is asked and run it, as one of the workers.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     request = Request("valley", "torch.SGD(lr=0.01)", seeds=1, steps=20, out=folder)
        ...     with together() as workers:
        ...         result = run_request(request, workers, Observer())
        >>> result.interrupted
        False
    """
    store = workers.decide(lambda: Store(Path(request.out or default_folder(request.task))))
    workers.decide(lambda: _refuse_second(store))
    if request.threads:
        torch.set_num_threads(request.threads)
    plan = make_plan(request, store, workers, observer)
    return _run_plan(plan, request.source, store, observer, workers)


def _refuse_second(store: Store) -> None:
    if store.has_plan():
        raise RaceError(f"{store.folder} already holds a race: resume it, or choose another folder")


def resume(out: str | Path | None = None, *, observer: Observer | None = None) -> Race:
    """Go on with a race that was stopped; what it has finished is kept, nothing is decided anew.

    As many workers as it began with go on: those a launcher started, or else processes on this machine.

    Args:
        out: the race's folder; the youngest one under ``race/`` where None.
        observer: told about progress.

    Raises:
        RaceError: if there is no race there, or the task's data changed since.

    Example:
        >>> resume("no-such-folder")
        Traceback (most recent call last):
        ...
        hasten.race.errors.RaceError: no-such-folder holds no race: there is no plan.json in it
    """
    there = started_together()
    if there is None:
        store = Store(Path(out) if out is not None else youngest_race())
        plan = Plan.from_json(store.read_plan())
        if plan.world > 1:
            return launch(
                {"resume": str(store.folder)}, plan.world, store.folder, load, observer or Observer()
            )
    with together() as workers:
        return resume_as(out, workers, observer or Observer())


def resume_as(out: str | Path | None, workers: Workers, observer: Observer) -> Race:
    """Go on with a race as one of the workers.

    Example:
        >>> with together() as workers:
        ...     resume_as("no-such-folder", workers, Observer())
        Traceback (most recent call last):
        ...
        hasten.race.errors.RaceError: no-such-folder holds no race: there is no plan.json in it
    """
    store = workers.decide(lambda: Store(Path(out) if out is not None else youngest_race()))
    plan = Plan.from_json(workers.decide(store.read_plan))
    if plan.world != workers.world:
        raise RaceError(
            f"{store.folder} is a race of {plan.world} workers, but {workers.world} were started: start {plan.world}"
        )
    source = find_task(plan.task)
    sample = sample_task(source, workers.world)
    if sample.data != plan.data:
        raise RaceError(
            f"{store.folder}: the data of task {plan.task} is not what the race began with "
            f"(fingerprint {sample.data}, was {plan.data}): start a new race"
        )
    check_contenders(plan.contenders, sample)
    workers.decide(store.create)
    torch.set_num_threads(plan.threads)
    return _run_plan(plan, source, store, observer, workers)


def youngest_race(folder: Path = DEFAULT_FOLDER) -> Path:
    """The folder of the latest race begun under ``race/``.

    Example:
        >>> youngest_race(Path("no-such-folder"))
        Traceback (most recent call last):
        ...
        hasten.race.errors.RaceError: no race found under no-such-folder: name its folder with --out
    """
    plans = sorted(folder.glob("*/plan.json"), key=lambda path: path.stat().st_mtime)
    if not plans:
        raise RaceError(f"no race found under {folder}: name its folder with --out")
    return plans[-1].parent


def _run_plan(plan: Plan, source: TaskSource, store: Store, observer: Observer, workers: Workers) -> Race:
    """All trials and runs that are not on disk yet. Seed by seed, so that stopping early leaves a
    fair comparison on fewer seeds."""
    observer.planned(plan)
    runner = _Runner(plan, source, store, observer, workers)
    interrupted = False
    try:
        tuned = [_tuned(c, runner) for c in plan.contenders]
        for seed in plan.seeds:
            for contender in tuned:
                runner.run(contender, seed)
    except KeyboardInterrupt:
        interrupted = True
    except WorkerLost as error:
        raise WorkerLost(f"a worker has died or stopped answering; {store.go_on}") from error
    finally:
        observer.closed()
    return Race(store.folder, plan, tuple(runner.runs), tuple(runner.trials), interrupted)


class _Runner:
    """Runs what is not on disk yet; rank 0 keeps the files."""

    def __init__(
        self, plan: Plan, source: TaskSource, store: Store, observer: Observer, workers: Workers
    ) -> None:
        self.plan, self.source, self.store = plan, source, store
        self.observer, self.workers = observer, workers
        self.runs: list[Run] = []
        self.trials: list[Run] = []

    def run(self, contender: Contender, seed: int) -> None:
        """A run of the race."""
        self.runs.append(self._kept(contender, seed, "runs", f"{contender.label}, seed {seed}", None))

    def trial(self, contender: Contender, number: int) -> Run:
        """A run of the search, on the seed kept for it."""
        name = f"{contender.label}, trial {number + 1} of {self.plan.trials}"
        seeds = Seeds.of(self.source.name, "trial", contender.label)
        run = self._kept(contender, number, "trials", name, seeds)
        self.trials.append(run)
        return run

    def _kept(self, contender: Contender, seed: int, part: str, name: str, seeds: Seeds | None) -> Run:
        run = self.workers.decide(lambda: self.store.read_run(contender.label, seed, part))
        if run is None:
            self.observer.began(name)
            own, state = train(
                self.source,
                contender,
                seed=seed,
                steps=self.plan.steps_of(contender.label),
                evaluations=self.plan.evaluations,
                seeds=seeds,
                tick=self.observer.stepped,
                workers=self.workers,
            )
            run = self.workers.decide(lambda: own)
            if self.workers.first:
                self.store.write_run(run, state) if part == "runs" else self.store.write_trial(run)
        self.observer.ended(run)
        return run


def _tuned(contender: Contender, runner: _Runner) -> Contender:
    """The contender at the best learning rate of its trials (all on one seed kept for them)."""
    plan = runner.plan
    if not plan.trials:
        return contender

    def attempt(number: int, factor: float) -> float:
        return runner.trial(contender.tuned(factor), number).final_loss

    search = make_search(plan.search, plan.trials, plan.task, contender.label)
    return contender.tuned(tune(search, plan.trials, attempt))


def load(out: str | Path) -> Race:
    """What is on disk of a race, finished or not, without running anything.

    Example:
        >>> load("no-such-folder")
        Traceback (most recent call last):
        ...
        hasten.race.errors.RaceError: no-such-folder holds no race: there is no plan.json in it
    """
    store = Store(Path(out))
    plan = Plan.from_json(store.read_plan())
    runs = [store.read_run(c.label, seed) for seed in plan.seeds for c in plan.contenders]
    trials = [
        store.read_run(c.label, number, "trials") for c in plan.contenders for number in range(plan.trials)
    ]
    complete = all(run is not None for run in (*runs, *trials))
    kept = tuple(run for run in runs if run is not None)
    return Race(store.folder, plan, kept, tuple(t for t in trials if t is not None), not complete)
