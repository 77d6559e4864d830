"""What a user sees when a race cannot start: one line that says what to change."""

from __future__ import annotations

import difflib
import importlib.util
from collections.abc import Iterable

PACKAGES = {"sklearn": "scikit-learn"}

MISTAKE, LOST, INTERRUPTED = 2, 3, 130
"""Exit statuses of the command line."""


class RaceError(ValueError):
    """A mistake that the person who asked for the race can mend; the message is one line.

    Example:
        >>> raise RaceError("unknown task 'lmm': did you mean 'lm'?")
        Traceback (most recent call last):
        ...
        hasten.race.errors.RaceError: unknown task 'lmm': did you mean 'lm'?
    """

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.split()))


def require(*modules: str, purpose: str = "hasten race") -> None:
    """Raise a `RaceError` naming the first module that is not installed.

    Example:
        >>> require("torch")
        >>> require("no_such_module", purpose="hasten picture")
        Traceback (most recent call last):
        ...
        hasten.race.errors.RaceError: hasten picture needs no_such_module: pip install 'hasten[race]'
    """
    for module in modules:
        if importlib.util.find_spec(module) is None:
            name = PACKAGES.get(module, module)
            raise RaceError(f"{purpose} needs {name}: pip install 'hasten[race]'")


def unknown(kind: str, name: str, known: Iterable[str]) -> RaceError:
    """The error for a name that nobody has: it offers the nearest one, or lists them all.

    Example:
        >>> print(unknown("optimizer", "AdmW", ["AdamW", "Lion"]))
        unknown optimizer 'AdmW': did you mean 'AdamW'?
    """
    names = list(known)
    spelling = {n.lower(): n for n in names}
    near = difflib.get_close_matches(name.lower(), spelling, n=1, cutoff=0.5)
    hint = f"did you mean {spelling[near[0]]!r}?" if near else "choose from " + ", ".join(names)
    return RaceError(f"unknown {kind} {name!r}: {hint}")


def one_line(error: BaseException) -> str:
    """An exception's message on one line, or its type where it has none.

    Example:
        >>> one_line(ValueError("a\\n  b"))
        'a b'
    """
    return " ".join(str(error).split()) or type(error).__name__
