"""Options of methods and of stopping rules, declared once: name, default, allowed values, meaning, SciPy's names.

From the declaration come the check, its error message, and the table in the documentation.
"""

from __future__ import annotations

import dataclasses
import math
import numbers
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from hasten.checks import nearest
from hasten.words import Interval


@dataclass(frozen=True)
class Option:
    """A declared option. None is allowed where it is the default.

    `allowed` is an interval of numbers, or the tuple of what is allowed: values, types, intervals.

    Example:
        >>> Option("restart", "gradient", ("gradient", "none"), "when to forget").check("minimize", "none")
        'none'
    """

    name: str
    default: Any
    allowed: Interval | tuple[Any, ...]
    meaning: str
    integer: bool = False
    also: tuple[str, ...] = ()

    def check(self, owner: str, value: Any) -> Any:
        """The value as it will be used, or ValueError."""
        members = self.allowed if isinstance(self.allowed, tuple) else (self.allowed,)
        for member in members:
            if isinstance(member, Interval):
                if self._is_number(value) and value in member:
                    return int(value) if self.integer and math.isfinite(value) else float(value)
            elif isinstance(member, type):
                if isinstance(value, member):
                    return value
            elif type(value) is type(member) and value == member:
                return value
        if value is None and self.default is None:
            return None
        raise ValueError(
            f"{owner}: option {self.name} = {value!r} is not allowed; it must be "
            f"{' or '.join(map(self._described, members))} ({self.meaning})"
        )

    def _is_number(self, value: Any) -> bool:
        if isinstance(value, bool) or not isinstance(value, numbers.Real):
            return False
        return not self.integer or not math.isfinite(value) or float(value).is_integer()

    def _described(self, member: Any) -> str:
        if isinstance(member, Interval):
            return f"{'a whole number' if self.integer else 'a number'} in {member}"
        return f"a {member.__name__}" if isinstance(member, type) else repr(member)


def option(
    default: Any,
    allowed: Interval | tuple[Any, ...],
    meaning: str,
    *,
    integer: bool = False,
    also: tuple[str, ...] = (),
) -> Any:
    """Declare an option as a field of a dataclass; `also` lists other names it is accepted under."""
    return field(
        default=default,
        metadata={"allowed": allowed, "meaning": meaning, "integer": integer, "also": also},
    )


def declared(owner: Any) -> tuple[Option, ...]:
    """The options of a dataclass (or an instance of one), in order."""
    return tuple(
        Option(f.name, f.default, **f.metadata) for f in dataclasses.fields(owner) if "allowed" in f.metadata
    )


def read(owner: str, given: Mapping[str, Any], *kinds: tuple[Option, ...]) -> tuple[dict[str, Any], ...]:
    """Sort checked options by the declarations they belong to; an unknown one raises ValueError."""
    places = {name: (i, o) for i, options in enumerate(kinds) for o in options for name in (o.name, *o.also)}
    found: tuple[dict[str, Any], ...] = tuple({} for _ in kinds)
    for name, value in given.items():
        if name not in places:
            own = {o.name for options in kinds for o in options}
            raise ValueError(f"{owner}: unknown option {name!r}{nearest(str(name), own)}")
        i, known = places[name]
        if known.name in found[i]:
            raise ValueError(f"{owner}: option {known.name} is given twice, the second time as {name!r}")
        found[i][known.name] = known.check(owner, value)
    return found
