"""The front door: ``hasten race``, ``list``, ``explain``, ``picture``, ``report``, ``advise``.

Whatever goes wrong by a user's hand is one line on standard error and a non-zero exit. Of several workers that a
launcher started, rank 0 speaks; another only of what has happened to it alone.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from hasten.race.errors import INTERRUPTED, LOST, MISTAKE, RaceError, one_line, require
from hasten.wire import WorkerLost


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit with its status.

    Example:
        >>> main(["explain", "lino"])
        Traceback (most recent call last):
        ...
        SystemExit: 2
    """
    first = os.environ.get("RANK", "0") == "0"
    said = ""
    try:
        status = run(list(sys.argv[1:] if arguments is None else arguments))
    except KeyboardInterrupt:
        said, status = "stopped", INTERRUPTED
    except RaceError as error:
        said, status = str(error), MISTAKE
    except WorkerLost as error:
        said, status = str(error), LOST
    if said and (first or (status == MISTAKE and _joined())):
        print(f"hasten: {said}" if first else f"hasten: rank {os.environ['RANK']}: {said}", file=sys.stderr)
    if status and _joined():
        sys.stderr.flush()
        sys.stdout.flush()
        os._exit(status)  # the other workers may be gone: nothing is waited for
    raise SystemExit(status)


def _joined() -> bool:
    """Whether this process is one of several, whose group is still there."""
    import torch.distributed as dist

    return dist.is_available() and dist.is_initialized()


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
