"""Who races: the text ``"AdamW,Lion(lr=3e-4)"`` read, settled, and built into optimizers."""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from hasten.oracles.subspace import SubspaceOracle
from hasten.problems import ConvexProblem
from hasten.race.errors import RaceError, one_line
from hasten.race.hooks import PLAIN, HookSpec
from hasten.race.known import SUBSPACE, by_formula, named_sketch
from hasten.race.reading import read_calls
from hasten.race.recommended import recommended, resolved

UNITS = frozenset({"convention", "scale"})
"""Arguments with which a recommended learning rate means something else."""
SCHEDULES = ("constant", "linear", "cosine")
EXAMPLE = "AdamW,Lion(lr=3e-4)"


@dataclass(frozen=True)
class Entrant:
    """One optimizer as it was asked for.

    Attributes:
        label: the text it was asked for with, which names it in every table.
        name: its class, as in ``"AdamW"`` or ``"torch.AdamW"``.
        options: the arguments that were given.

    Example:
        >>> parse_entrants("Lion(lr=3e-4)")[0].options
        {'lr': 0.0003}
    """

    label: str
    name: str
    options: dict[str, Any]


@dataclass(frozen=True)
class Contender:
    """An entrant with everything decided: what it is built from, and how its lr moves.

    Attributes:
        label: as the entrant's.
        name: as the entrant's.
        options: all arguments of the constructor.
        constructor: the class method that builds it; empty for the class itself.
        schedule: course of the learning rate after the warm-up.
        warmup: fraction of the run spent warming up.
        lr_factor: what tuning multiplies the learning rate by.
        hook: how several workers exchange what they know; None for a worker by itself.

    Example:
        >>> contender = settle(parse_entrants("torch.SGD(lr=0.1)")[0], "digits", 100)
        >>> contender.schedule
        'linear'
    """

    label: str
    name: str
    options: dict[str, Any]
    constructor: str = ""
    schedule: str = "constant"
    warmup: float = 0.0
    lr_factor: float = 1.0
    hook: HookSpec | None = None

    def build(
        self,
        model: nn.Module,
        steps: int,
        seed: int,
        problem: ConvexProblem | None = None,
        oracle: SubspaceOracle | None = None,
    ) -> tuple[torch.optim.Optimizer, LambdaLR]:
        """The optimizer over the model's parameters, and the schedule that drives its lr.

        A subspace method takes `oracle`, what arrives from the workers, if there is one.
        """
        kind = optimizer_class(self.name)
        make = getattr(kind, self.constructor) if self.constructor else kind
        options = dict(self.options)
        if not self.name.startswith("torch."):
            options.setdefault("seed", seed)
        if self.name in SUBSPACE and "sketch" in options:
            options["sketch"] = named_sketch(options, problem)
            options.pop("rank", None)
        if self.name in SUBSPACE and oracle is not None:
            options["oracle"] = oracle
        if self.name.startswith("torch."):
            given: Any = [p for p in model.parameters() if p.requires_grad]
        else:  # which parameters are hidden matrices is read off the model
            given = model
        try:
            optimizer: torch.optim.Optimizer = make(given, **options)
        except (TypeError, ValueError) as error:
            raise RaceError(f"{self.label}: {one_line(error)}") from error
        for group in optimizer.param_groups:
            group["lr"] *= self.lr_factor
        course = partial(lr_course, schedule=self.schedule, warmup=self.warmup, steps=steps)
        return optimizer, LambdaLR(optimizer, course)

    def tuned(self, factor: float) -> Contender:
        """The same contender with its learning rate multiplied."""
        return replace(self, lr_factor=factor)

    def over(self, hook: HookSpec) -> Contender:
        """The same contender on several workers, which exchange by a hook; plain all-reduce is not mentioned."""
        label = self.label if hook.name == PLAIN else f"{self.label} over {hook.label}"
        return replace(self, label=label, hook=hook)


def lr_course(step: int, *, schedule: str, warmup: float, steps: int) -> float:
    """Fraction of the peak learning rate at a step: a linear rise, then the schedule.

    Example:
        >>> [lr_course(k, schedule="linear", warmup=0.2, steps=10) for k in (0, 1, 2, 6, 10)]
        [0.5, 1.0, 1.0, 0.5, 0.0]
    """
    rise = round(warmup * steps)
    if step < rise:
        return (step + 1) / rise
    if schedule == "constant":
        return 1.0
    done = min(1.0, (step - rise) / max(1, steps - rise))
    return 1.0 - done if schedule == "linear" else 0.5 * (1 + math.cos(math.pi * done))


def optimizer_names() -> tuple[str, ...]:
    """Every name that can race: the catalogue, then torch's own as ``torch.Name``.

    Example:
        >>> "torch.AdamW" in optimizer_names()
        True
    """
    from hasten.optimizers import CATALOGUE

    return (*CATALOGUE, *(f"torch.{name}" for name in _torch_optimizers()))


def optimizer_class(name: str) -> Any:
    """The class behind a name.

    Example:
        >>> optimizer_class("torch.AdamW") is torch.optim.AdamW
        True
    """
    from hasten.optimizers import CATALOGUE

    if name.startswith("torch."):
        return _torch_optimizers()[name.removeprefix("torch.")]
    return CATALOGUE[name]


def _torch_optimizers() -> dict[str, type[torch.optim.Optimizer]]:
    return {
        name: kind
        for name, kind in vars(torch.optim).items()
        if inspect.isclass(kind)
        and issubclass(kind, torch.optim.Optimizer)
        and kind is not torch.optim.Optimizer
    }


def parse_entrants(text: str | Iterable[str]) -> list[Entrant]:
    """Read ``"AdamW, Lion(lr=3e-4), torch.SGD(lr=0.1, momentum=0.9)"``.

    Values are Python literals and nothing is evaluated. Names do not mind capitals. Two arguments
    belong to the race and not to the optimizer: ``schedule`` (constant, linear, cosine) and
    ``warmup`` (a fraction of the run).

    Example:
        >>> parse_entrants("Lino")
        Traceback (most recent call last):
        ...
        hasten.race.errors.RaceError: unknown optimizer 'Lino': did you mean 'Lion'?
    """
    return [Entrant(*called) for called in read_calls(text, "optimizer", EXAMPLE, optimizer_names())]


def settle(
    entrant: Entrant,
    family: str,
    steps: int,
    constants: dict[str, float] | None = None,
    problem: ConvexProblem | None = None,
) -> Contender:
    """Decide everything an entrant left open, from the recommended settings.

    A method with a formula for its settings takes the problem's constants where they are known.

    Example:
        >>> settle(parse_entrants("torch.AdamW(schedule='cosine')")[0], "lm", 500).schedule
        'cosine'
    """
    setting = recommended(entrant.name, family)
    given = dict(entrant.options)
    schedule = given.pop("schedule", setting.schedule)
    warmup = given.pop("warmup", setting.warmup)
    if schedule not in SCHEDULES:
        raise RaceError(f"{entrant.label}: schedule={schedule!r} must be one of {', '.join(SCHEDULES)}")
    if isinstance(warmup, bool) or not isinstance(warmup, int | float) or not 0 <= warmup <= 1:
        raise RaceError(f"{entrant.label}: warmup={warmup!r} must be a fraction of the run, from 0 to 1")
    kind = optimizer_class(entrant.name)
    if constants and not given and hasattr(kind, "canonical"):
        return Contender(entrant.label, entrant.name, dict(constants), "canonical", schedule, warmup)
    try:
        formula = None if problem is None else by_formula(entrant.name, given, problem)
    except ValueError as error:
        raise RaceError(f"{entrant.label}: {one_line(error)}") from error
    if formula is not None:
        return Contender(entrant.label, entrant.name, {**formula, **given}, "", schedule, float(warmup))
    # Another scale of the steps is another unit of the learning rate.
    own_unit = "lr" not in given and bool(UNITS & given.keys())
    options = {} if setting.lr is None or own_unit else {"lr": setting.lr}
    accepted = inspect.signature(kind).parameters
    for key, value in setting.options.items():
        if key in accepted:
            options[key] = resolved(value, steps)
    return Contender(entrant.label, entrant.name, {**options, **given}, "", schedule, float(warmup))


def evaluating(optimizer: torch.optim.Optimizer) -> AbstractContextManager[Any]:
    """The optimizer's evaluation point, for the length of a ``with`` block.

    Example:
        >>> weight = nn.Parameter(torch.zeros(2))
        >>> with evaluating(torch.optim.SGD([weight], lr=0.1)):
        ...     weight.sum().item()
        0.0
    """
    switch = getattr(optimizer, "evaluating", None)
    return switch() if switch is not None else nullcontext()


def check(
    contenders: Sequence[Contender], model: nn.Module | None = None, problem: ConvexProblem | None = None
) -> None:
    """Build every contender, on a small parameter or a given model, so that a wrong value shows before any run.

    Example:
        >>> check([Contender("torch.SGD", "torch.SGD", {"lr": -1.0})])
        Traceback (most recent call last):
        ...
        hasten.race.errors.RaceError: torch.SGD: Invalid learning rate: -1.0
    """
    model = model or nn.ParameterList([torch.zeros(2, 2), torch.zeros(2)])
    for contender in contenders:
        contender.build(model, steps=10, seed=0, problem=problem)
