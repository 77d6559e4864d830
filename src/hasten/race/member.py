"""One of the workers that :mod:`hasten.race.launch` starts: ``python -m hasten.race.member``."""

from __future__ import annotations

import json
import os
import sys
import threading
import time
import traceback
from typing import IO, Any

from hasten.race.errors import RaceError
from hasten.race.progress import Observer

OFTEN = 0.05
"""Seconds between two reports of steps."""


class Speaker(Observer):
    """Tells what happens, one JSON object a line.

    Example:
        >>> Speaker(sys.stdout).began("AdamW, seed 0")
        {"what": "began", "value": "AdamW, seed 0"}
    """

    def __init__(self, out: IO[str]) -> None:
        self.out = out
        self._steps = 0
        self._told = 0.0

    def say(self, what: str, value: Any = None, **more: Any) -> None:
        """One line, after the steps that came before it."""
        if self._steps:
            steps, self._steps = self._steps, 0
            self.say("stepped", steps)
        print(json.dumps({"what": what, "value": value, **more}), file=self.out, flush=True)

    def measuring(self, contenders: int) -> None:
        """Pass it on."""
        self.say("measuring", contenders)

    def measured(self, label: str) -> None:
        """Pass it on."""
        self.say("measured", label)

    def planned(self, plan: object) -> None:
        """The plan is on disk."""
        self.say("planned")

    def began(self, name: str) -> None:
        """Pass it on."""
        self.say("began", name)

    def stepped(self) -> None:
        """Count it, and tell now and then."""
        self._steps += 1
        if time.monotonic() > self._told + OFTEN:
            self._told = time.monotonic()
            steps, self._steps = self._steps, 0
            self.say("stepped", steps)

    def ended(self, run: Any) -> None:
        """Pass it on as it is on disk."""
        self.say("ended", run.to_lines())


def main() -> None:
    """Do the job that standard input tells, until its end."""
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what a task prints must not be taken for an event
    job = json.loads(sys.stdin.readline())
    threading.Thread(target=_end_with_the_others, daemon=True).start()
    speaker = Speaker(out)
    try:
        _work(job, speaker)
    except BaseException as error:
        from hasten.wire import WorkerLost

        kinds = {RaceError: "mistake", WorkerLost: "lost"}
        kind = next((name for of, name in kinds.items() if isinstance(error, of)), "bug")
        text = traceback.format_exc() if kind == "bug" else str(error)
        speaker.say("failed", text, kind=kind)
        os._exit(1)  # the others may be gone: nothing is waited for
    os._exit(
        0
    )  # all is told and on disk; torch's threads for messages may abort a process that unwinds around them


def _end_with_the_others() -> None:
    while sys.stdin.readline():
        pass
    os._exit(1)


def _work(job: dict[str, Any], speaker: Speaker) -> None:
    from hasten.race.contest import resume_as, run_request
    from hasten.race.request import Request
    from hasten.race.workers import together

    with together(job["meeting"], job["rank"], job["world"]) as workers:
        observer = speaker if workers.first else Observer()
        if "resume" in job:
            resume_as(job["resume"], workers, observer)
        else:
            run_request(Request(**job["request"]), workers, observer)


if __name__ == "__main__":
    main()
