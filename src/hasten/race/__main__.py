"""``python -m hasten.race`` is ``hasten race``; so is ``torchrun --nproc-per-node 2 -m hasten.race``."""

from __future__ import annotations

import os
import sys

from hasten.race.cli import main
from hasten.race.workers import started_together

if __name__ == "__main__":
    try:
        main(["race", *sys.argv[1:]])
    except SystemExit as end:
        if started_together() in (None, 1):
            raise
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(
            int(end.code or 0)
        )  # torch's threads for messages may abort a process that unwinds around them
