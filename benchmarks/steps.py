"""Step time and peak memory of our optimizers and of everyone else's, interleaved in one run.

One process a contender; every round visits each of them next to the reference (torch's fused
AdamW) in rotated order, and a contender's number is its ratio to the reference of that visit.

    python -m benchmarks.steps                                 # everything, about half an hour
    python -m benchmarks.steps --contenders AdamW --rounds 5   # one method
    python -m benchmarks.steps --list
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import platform
import signal
import sys
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.claims.claim import write_atomically
from benchmarks.speed import contenders, imports, report
from benchmarks.speed.rounds import Row, Settings, measure
from benchmarks.speed.worker import SHAPES

RESULTS = Path(__file__).parent / "results"
IMPORTED = ["hasten", "schedulefree", "pytorch_optimizer", "heavyball"]
PROTOCOL = (
    "One process for each contender. Every round visits each contender once, in rotated order, "
    "right after a visit to the reference (torch AdamW fused); gradients are restored, untimed, "
    "before every step. The ratio is to the reference of the same visit; median and quartiles "
    "over the rounds. A visit during which other programs took more than 8 % of the busy processor "
    "time is repeated, up to twice. Streams count parameter-sized reads and writes; the memory "
    "limit is streams × bytes at the in-place rate of `mul_`. Transient memory is what one "
    "step adds to the peak of resident memory."
)


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.steps", description=__doc__)
    parser.add_argument(
        "--contenders", default="", help="comma-separated names, methods, libraries or wildcards"
    )
    parser.add_argument("--list", action="store_true", help="list the contenders and stop")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--size", default="large,tiny", help=f"of {', '.join(SHAPES)}")
    parser.add_argument("--visit", type=float, default=0.3, help="seconds of one visit, at least")
    parser.add_argument("--no-first-steps", action="store_true", help="skip warm first steps")
    parser.add_argument("--imports", type=int, default=7, help="rounds of import timing, 0 skips")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results")
    options = parser.parse_args()
    for size in options.size.split(","):
        if size not in SHAPES:
            parser.error(f"--size: {size!r} is not one of {', '.join(SHAPES)}")
    for name in ("rounds", "threads"):
        if getattr(options, name) < 1:
            parser.error(f"--{name}: {getattr(options, name)} must be at least 1")
    return options


def say(text: str) -> None:
    """Progress, on the error stream."""
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


def main() -> None:
    """Measure, judge, write."""
    options = arguments()
    # Asked to end, leave through the clean-up that stops the workers and removes their caches.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    patterns = [pattern.strip() for pattern in options.contenders.split(",") if pattern.strip()]
    try:
        chosen = contenders.selected(patterns)
    except ValueError as wrong:
        sys.exit(str(wrong))
    if options.list:
        print("\n".join(f"{c.name}{'' if c.installed else '  (not installed)'}" for c in chosen))
        return
    if patterns:
        # Nothing can be judged without the limit beside it.
        chosen = contenders.selected([contenders.LIMIT]) + [
            c for c in chosen if c.library != contenders.LIMIT
        ]
    options.out.mkdir(parents=True, exist_ok=True)
    rows_of: dict[str, list[Row]] = {}
    record: dict[str, Any] = {
        "protocol": PROTOCOL,
        "command": "python -m benchmarks.steps " + " ".join(sys.argv[1:]),
        "environment": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "threads": options.threads,
            "platform": platform.platform(),
        },
        "imports": imports.added_by(IMPORTED, options.imports) if options.imports else {},
    }
    for size in options.size.split(","):
        settings = Settings(size, options.rounds, options.threads, options.visit, not options.no_first_steps)
        for rows_of[size] in measure(chosen, settings, say):
            report.picture(rows_of[size], options.out / f"steps-{size}.png")
            record["rows"] = [dataclasses.asdict(row) for rows in rows_of.values() for row in rows]
            write_atomically(options.out / "steps.json", json.dumps(record, indent=1) + "\n")
            write_atomically(options.out / "steps.md", report.markdown(record, rows_of))
        say(f"{size}: written to {options.out}")


if __name__ == "__main__":
    main()
