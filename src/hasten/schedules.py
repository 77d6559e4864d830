"""Schedules: functions of the step, usable as the value of any hyperparameter.

A schedule is a function of ``t``, the number of steps already taken (0 at the first step), and is plain data: its
name and its numbers are kept in the parameter groups, so that ``state_dict`` resumes it. Torch's own schedulers keep
working beside them, on hyperparameters that have no schedule of their own.

Example:
    >>> import torch, hasten
    >>> from hasten import schedules
    >>> w = torch.zeros(3, requires_grad=True)
    >>> opt = hasten.AdamW([w], lr=schedules.cosine(3e-4, total=1000, warmup=100))
    >>> print(f"{opt.param_groups[0]['lr']:.0e}")
    3e-06
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Concatenate, ParamSpec

from hasten.numbers import Number, cos, maximum, minimum, where

P = ParamSpec("P")
_FORMULAS: dict[str, Callable[..., Number]] = {}


@dataclass(frozen=True)
class Schedule:
    """A function of the step, by name and numbers.

    Example:
        >>> linear(0.0, 1.0, steps=10)(5)
        0.5
    """

    name: str
    arguments: tuple[tuple[str, Any], ...]

    def __call__(self, t: Number) -> Number:
        """The value after `t` completed steps."""
        return _FORMULAS[self.name](t, **dict(self.arguments))

    def plain(self) -> dict[str, Any]:
        """As plain data for a checkpoint."""
        return {"schedule": self.name, **dict(self.arguments)}

    @staticmethod
    def from_plain(data: dict[str, Any]) -> Schedule:
        """From the plain data of a checkpoint."""
        arguments = {k: v for k, v in data.items() if k != "schedule"}
        if data.get("schedule") not in _FORMULAS:
            raise ValueError(
                f"unknown schedule {data.get('schedule')!r}; known are {', '.join(sorted(_FORMULAS))}"
            )
        return Schedule(data["schedule"], tuple(arguments.items()))

    def __repr__(self) -> str:
        return f"{self.name}({', '.join(f'{k}={v!r}' for k, v in self.arguments)})"


def schedule(formula: Callable[Concatenate[Number, P], Number]) -> Callable[P, Schedule]:
    """Turn ``formula(t, ...)`` into a constructor of schedules."""
    name = formula.__name__
    signature = inspect.signature(formula)
    _FORMULAS[name] = formula

    def construct(*args: P.args, **kwargs: P.kwargs) -> Schedule:
        bound = signature.bind(0, *args, **kwargs)
        bound.apply_defaults()
        arguments = dict(list(bound.arguments.items())[1:])
        for key, value in arguments.items():
            allowed = _REQUIRED.get(key)
            if isinstance(value, bool) or not isinstance(value, int | float) or math.isnan(value):
                raise ValueError(f"{name}: {key} = {value!r} is not allowed; it must be a number")
            if allowed is not None and not allowed[0](value):
                raise ValueError(f"{name}: {key} = {value!r} is not allowed; it must be {allowed[1]}")
        return Schedule(name, tuple(arguments.items()))

    construct.__name__ = construct.__qualname__ = name
    construct.__doc__ = formula.__doc__
    construct.__module__ = formula.__module__
    parameters = list(signature.parameters.values())[1:]
    construct.__signature__ = signature.replace(parameters=parameters, return_annotation=Schedule)  # type: ignore[attr-defined]  # for help()
    return construct


_REQUIRED: dict[str, tuple[Callable[[float], bool], str]] = {
    "steps": (lambda x: x > 0, "greater than 0"),
    "total": (lambda x: x > 0, "greater than 0"),
    "warmup": (lambda x: x >= 0, "0 or more"),
    "decay": (lambda x: x >= 0, "0 or more"),
    "rise": (lambda x: 0 < x < 1, "in (0, 1)"),
    "divide": (lambda x: x > 0, "greater than 0"),
    "divide_last": (lambda x: x > 0, "greater than 0"),
    "beta2": (lambda x: 0 <= x < 1, "in [0, 1)"),
    "log_offset": (lambda x: x >= 0, "0 or more"),
}


def _between(start: Number, end: Number, share: Number) -> Number:
    return start + (end - start) * minimum(maximum(share, 0.0), 1.0)


def _cosine_between(start: Number, end: Number, share: Number) -> Number:
    return end + (start - end) * (1 + cos(math.pi * minimum(maximum(share, 0.0), 1.0))) / 2


def _rising(t: Number, peak: float, warmup: float, then: Number) -> Number:
    return where(t < warmup, peak * (t + 1) / max(warmup, 1), then)


@schedule
def constant(t: Number, value: float) -> Number:
    """Always `value`."""
    return value + 0 * t


@schedule
def warmup(t: Number, peak: float, steps: int) -> Number:
    """Linear from peak/steps at the first step to `peak`, then constant (Schedule-Free's warm-up)."""
    return peak * minimum((t + 1) / steps, 1.0)


@schedule
def linear(t: Number, start: float, end: float, steps: int, delay: int = 0) -> Number:
    """Linear from `start` to `end` over `steps`, after `delay` steps at `start`."""
    return _between(start, end, (t - delay) / steps)


@schedule
def cosine(t: Number, peak: float, total: int, warmup: int = 0, final: float = 0.0) -> Number:
    """Linear warm-up to `peak`, then half a cosine down to `final` at step `total`."""
    return _rising(t, peak, warmup, _cosine_between(peak, final, (t - warmup) / max(total - warmup, 1)))


@schedule
def wsd(t: Number, peak: float, total: int, warmup: int, decay: int, final: float = 0.0) -> Number:
    """Warm-up, stable, decay: linear up, constant, then linear down to `final` over the last `decay` steps."""
    return _rising(t, peak, warmup, _between(peak, final, (t - (total - decay)) / max(decay, 1)))


@schedule
def one_cycle(
    t: Number, peak: float, total: int, rise: float = 0.3, divide: float = 25.0, divide_last: float = 1e4
) -> Number:
    """One cycle: half a cosine up from peak/divide over the share `rise`, then down to peak/(divide·divide_last).

    Equal to torch's ``OneCycleLR``. For momentum use :func:`one_cycle_momentum` with the same `total` and `rise`.
    """
    low, last = peak / divide, peak / (divide * divide_last)
    top = rise * total - 1
    up = _cosine_between(low, peak, t / top)
    down = _cosine_between(peak, last, (t - top) / (total - 1 - top))
    return where(t <= top, up, down)


@schedule
def one_cycle_momentum(t: Number, high: float, low: float, total: int, rise: float = 0.3) -> Number:
    """The mirror image of :func:`one_cycle`: momentum falls from `high` to `low` while lr rises, and returns."""
    top = rise * total - 1
    falling = _cosine_between(high, low, t / top)
    returning = _cosine_between(low, high, (t - top) / (total - 1 - top))
    return where(t <= top, falling, returning)


@schedule
def ademamix_alpha(t: Number, alpha: float, steps: int) -> Number:
    """AdEMAMix's α: alpha·k/steps at step k = t+1, then constant."""
    return alpha * minimum((t + 1) / steps, 1.0)


@schedule
def half_life(
    t: Number, start: float, end: float, steps: int, log_offset: float = 1e-8, first: int = 1
) -> Number:
    """AdEMAMix's β₃: the half-life of an average grows linearly from that of `start` to that of `end`.

    ``h = (1−k/T) f(start) + (k/T) f(end)``, ``f(β) = ln ½/ln(β + log_offset) − 1``, ``β_k = ½^{1/(h+1)}``. The authors'
    PyTorch code counts steps from `first` = 1 and adds 1e-8 inside the logarithm; optax counts from 0 and does not.
    """
    share = minimum((t + first) / steps, 1.0)
    life_start = math.log(0.5) / math.log(start + log_offset) - 1
    life_end = math.log(0.5) / math.log(end + log_offset) - 1
    life = (1 - share) * life_start + share * life_end
    return where(t + first < steps, 0.5 ** (1 / (life + 1)), end)


@schedule
def rectified(t: Number, lr: float, beta2: float, threshold: float = 4.0) -> Number:
    """RAdam's rectifier times `lr`, and 0 while the rectified length is at most `threshold` (the silent phase)."""
    k = t + 1
    limit = 2 / (1 - beta2) - 1
    length = limit - 2 * k * beta2**k / (1 - beta2**k)
    square = (length - 4) * (length - 2) * limit / ((limit - 4) * (limit - 2) * length)
    return where(length > threshold, lr * maximum(where(length > threshold, square, 0.0), 0.0) ** 0.5, 0.0)


__all__ = [
    "Schedule",
    "ademamix_alpha",
    "constant",
    "cosine",
    "half_life",
    "linear",
    "one_cycle",
    "one_cycle_momentum",
    "rectified",
    "schedule",
    "warmup",
    "wsd",
]
