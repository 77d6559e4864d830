"""``python -m hasten.race`` is ``hasten race``; so is ``torchrun --nproc-per-node 2 -m hasten.race``."""

from __future__ import annotations

import sys

from hasten.race.cli import main

if __name__ == "__main__":
    main(["race", *sys.argv[1:]])
