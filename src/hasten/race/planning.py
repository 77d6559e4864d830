"""From what is asked to a plan: paces measured, steps chosen, everything settled."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace

import torch

from hasten.race.entrants import Contender, check
from hasten.race.errors import RaceError
from hasten.race.known import SUBSPACE, bound
from hasten.race.plan import (
    EVALUATIONS,
    REPORT_SECONDS,
    Pace,
    Plan,
    environment,
    measure_pace,
    settle_all,
    steps_within,
)
from hasten.race.progress import Observer
from hasten.race.request import Request
from hasten.race.store import Store
from hasten.race.task import Task, derive_seed
from hasten.race.tasks import TaskSource
from hasten.race.training import build_task, evaluation_steps
from hasten.race.workers import Workers, part


def make_plan(request: Request, store: Store, workers: Workers, observer: Observer) -> Plan:
    """Decide everything, and write it down; all workers take part, and rank 0's clock counts.

    Raises:
        RaceError: the task cannot be raced so, or an optimizer refuses its settings; nothing is written then.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from hasten.race.workers import ALONE
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     request = Request("valley", "torch.SGD", steps=20, out=folder)
        ...     make_plan(request, Store(Path(folder)), ALONE, Observer()).steps
        20
    """
    started = time.monotonic()
    source, hooks = request.source, request.hooks_of(workers.world)
    sample, provisional = looked_at(request, workers.world)
    workers.decide(store.create)
    paces, evaluation = _measure(source, provisional, observer, workers)
    steps, evaluations = request.steps, request.evaluations or source.evaluations or EVALUATIONS
    if steps is None:
        left = request.seconds - (time.monotonic() - started) - REPORT_SECONDS
        runs_each = len(request.numbers) + request.trials
        steps, evaluations = steps_within(left, list(paces.values()), evaluation, runs_each, evaluations)
        if request.budget is None and source.steps is not None:
            steps = min(steps, source.steps)
    contenders = settle_all(request.entrants, source, sample, steps, hooks)
    plan = Plan(
        task=source.name,
        title=source.title,
        command=request.command or request.call(steps),
        contenders=tuple(contenders),
        seeds=request.numbers,
        steps=steps,
        evaluations=evaluations,
        trials=request.trials,
        search=request.search,
        target=request.target if request.target is not None else sample.target,
        unit=sample.unit,
        log_scale=sample.log_scale,
        parameters=sum(p.numel() for p in sample.model.parameters() if p.requires_grad),
        data=sample.data,
        threads=torch.get_num_threads(),
        budget=request.seconds if request.budget is not None or source.steps is None else None,
        paces=paces,
        sentences=_sentences(contenders, sample, steps),
        environment=environment(),
        world=workers.world,
        hooks=tuple(hook.label for hook in hooks),
    )
    plan = workers.decide(lambda: replace(plan, bounds=_bounds(plan, sample)))
    if workers.first:
        store.write_plan(plan.to_json())
    return plan


def looked_at(request: Request, world: int) -> tuple[Task, list[Contender]]:
    """The task, and who would race on it for 1000 steps, so that mistakes show before anything is begun.

    Raises:
        RaceError: the task cannot be raced by so many workers, or an optimizer refuses its settings.

    Example:
        >>> looked_at(Request("rosenbrock"), world=2)
        Traceback (most recent call last):
        ...
        hasten.race.errors.RaceError: task rosenbrock: there are no batches that 2 workers could share
    """
    sample = sample_task(request.source, world)
    contenders = settle_all(request.entrants, request.source, sample, 1000, request.hooks_of(world))
    check_contenders(contenders, sample)
    return sample, contenders


def sample_task(source: TaskSource, world: int) -> Task:
    """The task, built once to look at.

    Raises:
        RaceError: its batches cannot be shared among the workers.

    Example:
        >>> from hasten.race.tasks import find_task
        >>> sample_task(find_task("valley"), world=1).log_scale
        True
    """
    sample = build_task(source, derive_seed(source.name, "pace"))
    if world > 1:
        try:
            part(sample.sample(torch.Generator().manual_seed(0)), 0, world)
        except RaceError as error:
            raise RaceError(f"task {source.name}: {error}") from None
    return sample


def check_contenders(contenders: Sequence[Contender], sample: Task) -> None:
    """Build every contender once, so that a wrong value shows before any run.

    Raises:
        RaceError: a value is refused, or workers with their own losses would part.

    Example:
        >>> from hasten.race.tasks import find_task
        >>> check_contenders([Contender("torch.SGD", "torch.SGD", {"lr": 0.1})], find_task("valley").build(0))
    """
    # Settings that follow from a problem's constants fit its dimension alone.
    check(contenders, None if sample.problem is None else sample.model, sample.problem)
    for contender in contenders:
        if _parts_workers(contender):
            raise RaceError(
                f"{contender.label}: each worker would estimate the smoothness from its own loss; race it over "
                "subspace, where the estimates are averaged, or give smoothness="
            )
        local = contender.hook is not None and contender.hook.name == "local"
        if local and contender.options.get("on_nonfinite") == "raise":
            raise RaceError(
                f"{contender.label}: on_nonfinite='raise' would stop one worker while the others wait for it; "
                "leave it out"
            )


def _parts_workers(contender: Contender) -> bool:
    """Whether its steps depend on what each worker knows for itself."""
    if contender.name not in SUBSPACE or contender.hook is None:
        return False
    return contender.options.get("smoothness", "estimate") == "estimate" and not (
        contender.hook.way().random_subspaces
    )


def _measure(
    source: TaskSource, contenders: list[Contender], observer: Observer, workers: Workers
) -> tuple[dict[str, Pace], float]:
    """The pace of every contender, and the seconds of one evaluation."""
    observer.measuring(len(contenders))
    paces: dict[str, Pace] = {}
    evaluation = 0.0
    for contender in contenders:
        paces[contender.label], evaluation = measure_pace(source, contender, workers)
        observer.measured(contender.label)
    return paces, evaluation


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
