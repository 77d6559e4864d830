"""The race itself: plan, search, run, and keep what was measured."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from hasten.race.entrants import Contender, check, parse_entrants
from hasten.race.errors import RaceError
from hasten.race.known import bound
from hasten.race.outcome import Race
from hasten.race.plan import (
    EVALUATIONS,
    REPORT_SECONDS,
    Pace,
    Plan,
    environment,
    measure_pace,
    parse_duration,
    settle_all,
    steps_within,
)
from hasten.race.progress import Observer
from hasten.race.run import Run
from hasten.race.store import Store
from hasten.race.task import Task, derive_seed
from hasten.race.tasks import TaskSource, find_task
from hasten.race.training import Seeds, build_task, evaluation_steps, train
from hasten.race.tuning import SEARCHES, make_search, tune

DEFAULT_BUDGET = "4m"
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
        threads: torch's number of threads; as it is where None.
        out: folder of the race, which must not hold one already; ``race/TASK-TIME`` where None.
        observer: told about progress.
        command: what to call the race in the report.

    Raises:
        RaceError: if something asked for does not exist or cannot be.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     result = race("valley", "torch.SGD(lr=0.01)", seeds=1, steps=20, out=folder)
        >>> len(result.runs)
        1
    """
    started = time.monotonic()
    observer = observer or Observer()
    source = find_task(task)
    if optimizers is not None and not isinstance(optimizers, str):
        optimizers = list(optimizers)
    entrants = parse_entrants(source.entrants if optimizers is None else optimizers)
    numbers = tuple(range(seeds)) if isinstance(seeds, int) else tuple(seeds)
    if not numbers or len(set(numbers)) < len(numbers):
        raise RaceError(f"seeds={seeds!r} must be at least one, all different")
    _check_numbers(steps=(steps, 1), trials=(trials, 0), threads=(threads, 1), evaluations=(evaluations, 1))
    if search not in SEARCHES:
        raise RaceError(f"search={search!r} must be one of {', '.join(SEARCHES)}")
    seconds = parse_duration(DEFAULT_BUDGET if budget is None else budget)
    if out is None:
        out = DEFAULT_FOLDER / f"{task.rpartition(':')[2]}-{time.strftime('%Y%m%d-%H%M%S')}"
    store = Store(Path(out))
    if store.has_plan():
        raise RaceError(f"{out} already holds a race: resume it, or choose another folder")
    if threads:
        torch.set_num_threads(threads)

    sample = build_task(source, derive_seed(source.name, "pace"))
    provisional = settle_all(entrants, source, sample, 1000)
    _check_contenders(provisional, sample)
    store.create()
    paces, evaluation = _measure(source, provisional, observer)
    evaluations = evaluations or source.evaluations or EVALUATIONS
    if steps is None:
        left = seconds - (time.monotonic() - started) - REPORT_SECONDS
        pace, runs_each = list(paces.values()), len(numbers) + trials
        steps, evaluations = steps_within(left, pace, evaluation, runs_each, evaluations)
        if budget is None and source.steps is not None:
            steps = min(steps, source.steps)
    contenders = settle_all(entrants, source, sample, steps)
    plan = Plan(
        task=source.name,
        title=source.title,
        command=command
        or _call(
            task,
            optimizers,
            seeds=seeds,
            steps=steps,
            trials=trials,
            search=search,
            target=target,
            threads=threads,
        ),
        contenders=tuple(contenders),
        seeds=numbers,
        steps=steps,
        evaluations=evaluations,
        trials=trials,
        search=search,
        target=target if target is not None else sample.target,
        unit=sample.unit,
        log_scale=sample.log_scale,
        parameters=sum(p.numel() for p in sample.model.parameters() if p.requires_grad),
        data=sample.data,
        threads=torch.get_num_threads(),
        budget=seconds if budget is not None or source.steps is None else None,
        paces=paces,
        sentences=_sentences(contenders, sample, steps),
        environment=environment(),
    )
    plan = replace(plan, bounds=_bounds(plan, sample))
    store.write_plan(plan.to_json())
    return _run_plan(plan, source, store, observer)


def _check_contenders(contenders: Sequence[Contender], sample: Task) -> None:
    # Settings that follow from a problem's constants fit its dimension alone.
    check(contenders, None if sample.problem is None else sample.model, sample.problem)


def _bounds(plan: Plan, sample: Task) -> dict[str, tuple[float, ...]]:
    """The theory's bound at every evaluation of each contender that has one."""
    problem = sample.problem
    if problem is None:
        return {}
    found = {}
    for contender in plan.contenders:
        guarantee = bound(contender.name, contender.options, problem)
        if guarantee is not None and not plan.trials and contender.schedule == "constant":
            due = evaluation_steps(plan.steps_of(contender.label), plan.evaluations)
            values = guarantee.curve(due[-1])
            found[contender.label] = (problem.gap, *(values[step] for step in due[1:]))
    return found


def _check_numbers(**asked: tuple[int | None, int]) -> None:
    for name, (value, least) in asked.items():
        if value is not None and value < least:
            raise RaceError(f"{name}={value} must be at least {least}")


def _measure(
    source: TaskSource, contenders: list[Contender], observer: Observer
) -> tuple[dict[str, Pace], float]:
    """The pace of every contender, and the seconds of one evaluation."""
    observer.measuring(len(contenders))
    paces: dict[str, Pace] = {}
    evaluation = 0.0
    for contender in contenders:
        paces[contender.label], evaluation = measure_pace(source, contender)
        observer.measured(contender.label)
    return paces, evaluation


def _call(task: str, optimizers: str | Iterable[str] | None, **options: object) -> str:
    """The call that would race the same race again, with the number of steps that was chosen."""
    given = [f"{name}={value!r}" for name, value in options.items() if value is not None]
    return f"hasten.race.race({', '.join([repr(task), repr(optimizers), *given])})"


def resume(out: str | Path | None = None, *, observer: Observer | None = None) -> Race:
    """Go on with a race that was stopped; what it has finished is kept, nothing is decided anew.

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
    store = Store(Path(out) if out is not None else youngest_race())
    plan = Plan.from_json(store.read_plan())
    source = find_task(plan.task)
    sample = build_task(source, derive_seed(source.name, "pace"))
    if sample.data != plan.data:
        raise RaceError(
            f"{store.folder}: the data of task {plan.task} is not what the race began with "
            f"(fingerprint {sample.data}, was {plan.data}): start a new race"
        )
    _check_contenders(plan.contenders, sample)
    store.create()
    torch.set_num_threads(plan.threads)
    return _run_plan(plan, source, store, observer or Observer())


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


def _run_plan(plan: Plan, source: TaskSource, store: Store, observer: Observer) -> Race:
    """All trials and runs that are not on disk yet. Seed by seed, so that stopping early leaves a
    fair comparison on fewer seeds."""
    observer.planned(plan)
    interrupted = False
    runs: list[Run] = []
    found: dict[str, list[Run]] = {}
    try:
        tuned = [_tuned(c, plan, source, store, observer, found) for c in plan.contenders]
        for seed in plan.seeds:
            for contender in tuned:
                run = store.read_run(contender.label, seed)
                if run is None:
                    observer.began(f"{contender.label}, seed {seed}")
                    run, state = train(
                        source,
                        contender,
                        seed=seed,
                        steps=plan.steps_of(contender.label),
                        evaluations=plan.evaluations,
                        tick=observer.stepped,
                    )
                    store.write_run(run, state)
                runs.append(run)
                observer.ended(run)
    except KeyboardInterrupt:
        interrupted = True
    finally:
        observer.closed()
    return Race(store.folder, plan, tuple(runs), _flat(found), interrupted)


def _tuned(
    contender: Contender,
    plan: Plan,
    source: TaskSource,
    store: Store,
    observer: Observer,
    found: dict[str, list[Run]],
) -> Contender:
    """The contender at the best learning rate of its trials (all on one seed kept for them)."""
    if not plan.trials:
        return contender
    trials = found.setdefault(contender.label, [])

    def attempt(number: int, factor: float) -> float:
        run = store.read_run(contender.label, number, "trials")
        if run is None:
            observer.began(f"{contender.label}, trial {number + 1} of {plan.trials}")
            run, _ = train(
                source,
                contender.tuned(factor),
                seed=number,
                steps=plan.steps_of(contender.label),
                evaluations=plan.evaluations,
                seeds=Seeds.of(source.name, "trial", contender.label),
                tick=observer.stepped,
            )
            store.write_trial(run)
        trials.append(run)
        observer.ended(run)
        return run.final_loss

    search = make_search(plan.search, plan.trials, plan.task, contender.label)
    return contender.tuned(tune(search, plan.trials, attempt))


def _flat(found: dict[str, list[Run]]) -> tuple[Run, ...]:
    return tuple(run for runs in found.values() for run in runs)


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


def _sentences(contenders: list[Contender], task: Task, steps: int) -> dict[str, str]:
    """Each optimizer described by itself, where it can."""
    sentences = {}
    for contender in contenders:
        optimizer, _ = contender.build(task.model, steps, seed=0, problem=task.problem)
        for group in optimizer.param_groups:
            group["lr"] = group["initial_lr"]  # the peak, not the first step of the warm-up
        sentences[contender.label] = describe_optimizer(optimizer)
    return sentences


def describe_optimizer(optimizer: torch.optim.Optimizer) -> str:
    """The sentence of one of hasten's optimizers; the plain name of another's.

    Example:
        >>> describe_optimizer(torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1))
        'torch.optim.SGD'
    """
    from hasten import Optimizer, describe

    if isinstance(optimizer, Optimizer):
        return str(describe(optimizer))
    return f"torch.optim.{type(optimizer).__name__}"
