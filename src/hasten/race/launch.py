"""Workers on this machine: started, listened to, and ended together.

Every worker is a process that runs :mod:`hasten.race.member`. It reads its job from standard input, whose end tells it
that nobody wants it any more, and tells what happens on standard output, one JSON object a line.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from hasten.race.errors import RaceError
from hasten.race.outcome import Race
from hasten.race.plan import Plan
from hasten.race.progress import Observer
from hasten.race.run import Run
from hasten.race.store import Store
from hasten.wire import WorkerLost

PATIENCE = 3.0
"""Seconds between the first failure and the search for its cause, in which the others fail too and say why."""


def launch(
    job: dict[str, Any], world: int, folder: Path, read: Callable[[Path], Race], observer: Observer
) -> Race:
    """Let `world` processes do a job, and give what is in the folder then.

    Args:
        job: ``{"request": …}`` or ``{"resume": folder}``.
        world: how many workers.
        folder: of the race.
        read: reads a race from its folder.
        observer: told about progress.

    Raises:
        RaceError: a worker found a mistake.
        WorkerLost: a worker died.
        RuntimeError: a worker failed otherwise; with its traceback.
    """
    crew = Crew(job, world, folder)
    try:
        crew.listen(observer)
    except KeyboardInterrupt:
        if not Store(folder).has_plan():
            raise
    finally:
        crew.end()
        if crew.told:
            observer.closed()
    return read(folder)


class Crew:
    """The processes of one race."""

    def __init__(self, job: dict[str, Any], world: int, folder: Path) -> None:
        self.store = Store(folder)
        self.place = tempfile.TemporaryDirectory(prefix="hasten-race-", ignore_cleanup_errors=True)
        meeting = (Path(self.place.name) / "meeting").as_uri()
        self.heard: queue.Queue[tuple[int, dict[str, Any] | None]] = queue.Queue()
        self.members: list[subprocess.Popen[str]] = []
        self.told = False
        threads = max(1, torch.get_num_threads() // world)
        for rank in range(world):
            member = subprocess.Popen(
                [sys.executable, "-m", "hasten.race.member"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                encoding="utf-8",
                env={**os.environ, "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(threads))},
                start_new_session=True,  # Ctrl-C is for this process to heed
            )
            assert member.stdin is not None
            own = {**job, "rank": rank, "world": world, "meeting": meeting}
            member.stdin.write(json.dumps(own) + "\n")
            member.stdin.flush()
            self.members.append(member)
            threading.Thread(target=self._hear, args=(rank, member), daemon=True).start()

    def _hear(self, rank: int, member: subprocess.Popen[str]) -> None:
        assert member.stdout is not None
        for line in member.stdout:
            self.heard.put((rank, json.loads(line)))
        self.heard.put((rank, None))

    def listen(self, observer: Observer) -> None:
        """Pass on what happens until all are done, or one fails."""
        working = set(range(len(self.members)))
        while working:
            rank, event = self.heard.get()
            if event is None:
                if self.members[rank].wait() != 0:
                    raise self._failure({})
                working.discard(rank)
            elif event["what"] == "failed":
                raise self._failure({rank: event})
            else:
                self._tell(observer, **event)

    def _tell(self, observer: Observer, what: str, value: Any) -> None:
        self.told = True
        if what == "stepped":
            for _ in range(value):
                observer.stepped()
        elif what == "planned":
            observer.planned(Plan.from_json(self.store.read_plan()))
        elif what == "ended":
            observer.ended(Run.from_lines(value))
        elif what in ("measuring", "measured", "began"):
            getattr(observer, what)(value)

    def _failure(self, said: dict[int, dict[str, Any]]) -> Exception:
        """The cause: a mistake; or a worker that ended without a word; or a bug; the rest only miss somebody."""
        until = time.monotonic() + PATIENCE
        silent: set[int] = set()
        while len(said.keys() | silent) < len(self.members):
            try:
                rank, event = self.heard.get(timeout=max(0.0, until - time.monotonic()))
            except queue.Empty:
                break
            if event is not None and event["what"] == "failed":
                said[rank] = event
            elif event is None and rank not in said:
                silent.add(rank)
        by_kind = {event["kind"]: event["value"] for _, event in sorted(said.items(), reverse=True)}
        if "mistake" in by_kind:
            return RaceError(by_kind["mistake"])
        for rank in silent:  # its pipe is closed a moment before it is gone
            with suppress(subprocess.TimeoutExpired):
                self.members[rank].wait(max(0.0, until - time.monotonic()))
        for rank, member in enumerate(self.members):
            code = member.poll()
            if rank not in said and code not in (None, 0):
                return WorkerLost(
                    f"worker {rank} of {len(self.members)} died ({_cause(code)}); {self._go_on}"
                )
        if "bug" in by_kind:
            return RuntimeError(f"a worker failed:\n{by_kind['bug']}")
        return WorkerLost(f"the workers have lost each other; {self._go_on}")

    @property
    def _go_on(self) -> str:
        return self.store.go_on if self.store.has_plan() else "the race had not begun: start it again"

    def end(self) -> None:
        """End all workers that are still there."""
        for member in self.members:
            if member.poll() is None:
                member.terminate()
        until = time.monotonic() + PATIENCE
        for member in self.members:
            with suppress(subprocess.TimeoutExpired):
                member.wait(max(0.0, until - time.monotonic()))
            if member.poll() is None:
                member.kill()
                member.wait()
        self.place.cleanup()


def _cause(code: int | None) -> str:
    """An exit status in words.

    Example:
        >>> _cause(3)
        'exit status 3'
    """
    if code is not None and code < 0:
        try:
            return f"killed by {signal.Signals(-code).name}"
        except ValueError:
            return f"killed by signal {-code}"
    return f"exit status {code}"
