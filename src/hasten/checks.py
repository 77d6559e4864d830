"""Checks of what users pass in, and the messages that answer mistakes."""

from __future__ import annotations

import difflib
import numbers
from collections.abc import Iterable
from typing import Any

from torch import Tensor

from hasten.words import ANY, Hyper, Interval


def nearest(name: str, known: Iterable[str]) -> str:
    """``"; did you mean 'x'?"``, or the list of known names if none is near.

    Example:
        >>> nearest("weight_decy", ["lr", "weight_decay"])
        "; did you mean 'weight_decay'?"
    """
    known = sorted(known)
    lower = {k.lower(): k for k in known}
    close = difflib.get_close_matches(name.lower(), list(lower), n=1, cutoff=0.6)
    return f"; did you mean {lower[close[0]]!r}?" if close else f"; known are {', '.join(known)}"


def check_value(owner: str, place: object, value: Any, hyper: Hyper) -> None:
    """Raise ValueError unless `value` is a number in the hyperparameter's range."""
    found = _as_number(value)
    if found is None:
        raise ValueError(f"{owner}: {place} = {value!r} is not allowed; it must be a number or a schedule")
    if found not in hyper.allowed:
        raise ValueError(
            f"{owner}: {place} = {found!r} is not allowed; it must be in {hyper.allowed} ({hyper.meaning})"
        )


def _as_number(value: Any) -> float | None:
    if type(value) is float:  # the usual case, asked for in every step
        return value
    if isinstance(value, Tensor):
        return None if value.numel() != 1 or value.is_complex() else float(value)
    return float(value) if isinstance(value, numbers.Real) and not isinstance(value, bool) else None


def check_choice(owner: str, name: str, value: Any, allowed: Iterable[Any]) -> None:
    """Raise ValueError unless `value` is one of those allowed."""
    allowed = tuple(allowed)
    if not any(value is a or (type(value) is type(a) and value == a) for a in allowed):
        raise ValueError(
            f"{owner}: {name} = {value!r} is not allowed; it must be one of {', '.join(map(repr, allowed))}"
        )


def unpacked(owner: object, name: str, values: Any, length: int) -> tuple[Any, ...]:
    """The members of a tuple-valued argument such as `betas`."""
    if not isinstance(values, tuple | list) or len(values) != length:
        raise ValueError(
            f"{type(owner).__name__}: {name} = {values!r} is not allowed; it must be {length} numbers"
        )
    return tuple(values)


def number(owner: object, name: str, value: Any, allowed: Interval = ANY) -> float:
    """A plain number, where a schedule makes no sense."""
    found = _as_number(value)
    if found is None or found not in allowed:
        shown = value if found is None else found
        raise ValueError(
            f"{type(owner).__name__}: {name} = {shown!r} is not allowed; it must be a number in {allowed}"
        )
    return found


def optional_number(owner: object, name: str, value: Any, allowed: Interval = ANY) -> float | None:
    """A plain number, or None."""
    return None if value is None else number(owner, name, value, allowed)


def flag(owner: object, name: str, value: Any) -> bool:
    """True or False, and nothing that merely counts as one of them."""
    check_choice(type(owner).__name__, name, value, (False, True))
    return bool(value)


def is_zero(value: Any) -> bool:
    """Whether an argument is the plain number 0, which leaves a part out; a schedule or a tensor never does."""
    return isinstance(value, int | float) and not isinstance(value, bool) and value == 0
