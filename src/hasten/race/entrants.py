"""Who races: the text ``"AdamW,Lion(lr=3e-4)"`` read, settled, and built into optimizers."""

from __future__ import annotations

import ast
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

from hasten.problems import ConvexProblem
from hasten.race.errors import RaceError, one_line, unknown
from hasten.race.known import SUBSPACE, by_formula, named_sketch
from hasten.race.recommended import recommended, resolved

SCHEDULES = ("constant", "linear", "cosine")


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

    def build(
        self, model: nn.Module, steps: int, seed: int, problem: ConvexProblem | None = None
    ) -> tuple[torch.optim.Optimizer, LambdaLR]:
        """The optimizer over the model's parameters, and the schedule that drives its lr."""
        kind = optimizer_class(self.name)
        make = getattr(kind, self.constructor) if self.constructor else kind
        options = dict(self.options)
        if not self.name.startswith("torch."):
            options.setdefault("seed", seed)
        if self.name in SUBSPACE and "sketch" in options:
            options["sketch"] = named_sketch(options, problem)
            options.pop("rank", None)
        parameters = [p for p in model.parameters() if p.requires_grad]
        try:
            optimizer: torch.optim.Optimizer = make(parameters, **options)
        except (TypeError, ValueError) as error:
            raise RaceError(f"{self.label}: {one_line(error)}") from error
        for group in optimizer.param_groups:
            group["lr"] *= self.lr_factor
        course = partial(lr_course, schedule=self.schedule, warmup=self.warmup, steps=steps)
        return optimizer, LambdaLR(optimizer, course)

    def tuned(self, factor: float) -> Contender:
        """The same contender with its learning rate multiplied."""
        return replace(self, lr_factor=factor)


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
    text = text if isinstance(text, str) else ",".join(text)
    try:
        nodes = ast.parse(f"[{text}]", mode="eval").body
    except SyntaxError:
        raise RaceError(f"optimizers {text!r} cannot be read: write them as 'AdamW,Lion(lr=3e-4)'") from None
    if not isinstance(nodes, ast.List) or not nodes.elts:
        raise RaceError("optimizers: name at least one, as in 'AdamW,Lion(lr=3e-4)'")
    entrants = [_entrant(node) for node in nodes.elts]
    labels = [entrant.label for entrant in entrants]
    for label in labels:
        if labels.count(label) > 1:
            raise RaceError(f"optimizers: {label} is named twice")
    return entrants


def _entrant(node: ast.expr) -> Entrant:
    text = ast.unparse(node)
    called = node if isinstance(node, ast.Call) else ast.Call(node, [], [])
    if not isinstance(called.func, ast.Name | ast.Attribute) or called.args:
        raise RaceError(
            f"optimizer {text!r} cannot be read: write a name and named arguments, as in Lion(lr=3e-4)"
        )
    name = _known_name(ast.unparse(called.func))
    options = {str(keyword.arg): _literal(name, keyword) for keyword in called.keywords}
    arguments = ", ".join(f"{key}={_written(value)}" for key, value in options.items())
    return Entrant(f"{name}({arguments})" if options else name, name, options)


def _literal(name: str, keyword: ast.keyword) -> Any:
    try:
        return ast.literal_eval(keyword.value)
    except ValueError:
        raise RaceError(
            f"{name}: {keyword.arg}={ast.unparse(keyword.value)} is not a plain value "
            "(a number, a string, a tuple)"
        ) from None


def _written(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else repr(value)


def _known_name(name: str) -> str:
    names = optimizer_names()
    for known in names:
        if known.lower() == name.lower():
            return known
    raise unknown("optimizer", name, names)


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
    options = {} if setting.lr is None else {"lr": setting.lr}
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
