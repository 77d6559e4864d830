"""The front door: ``hasten race``, ``list``, ``explain``, ``picture``, ``report``, ``advise``.

Whatever goes wrong by a user's hand is one line on standard error and a non-zero exit.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from hasten.race.errors import INTERRUPTED, MISTAKE, RaceError, one_line, require


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit with its status.

    Example:
        >>> main(["explain", "lino"])
        Traceback (most recent call last):
        ...
        SystemExit: 2
    """
    try:
        status = run(list(sys.argv[1:] if arguments is None else arguments))
    except KeyboardInterrupt:
        print("hasten: stopped", file=sys.stderr)
        status = INTERRUPTED
    except RaceError as error:
        print(f"hasten: {error}", file=sys.stderr)
        status = MISTAKE
    raise SystemExit(status)


def run(arguments: list[str]) -> int:
    """Run the command line and give its status; mistakes are raised as `RaceError`.

    Example:
        >>> run(["no-such-command"])
        Traceback (most recent call last):
        ...
        hasten.race.errors.RaceError: No such command 'no-such-command'. (see hasten --help)
    """
    require("typer", "rich", purpose="the hasten command")
    from hasten.race.commands import app

    try:
        status = app(arguments or ["--help"], prog_name="hasten", standalone_mode=False)
    except RaceError:
        raise
    except Exception as error:
        # The command-line parser's own errors know how to put themselves; their class has moved
        # between versions, so they are told by that.
        put = getattr(error, "format_message", None)
        if put is None:
            raise
        raise RaceError(f"{one_line(ValueError(put()))} (see hasten --help)") from error
    return status if isinstance(status, int) else 0
