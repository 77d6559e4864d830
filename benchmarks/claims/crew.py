"""Jobs for several processes of this machine in one gloo group; what comes of each is kept in a file."""

from __future__ import annotations

import dataclasses
import json
import os
import queue
import tempfile
import threading
import traceback
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.multiprocessing as mp

from hasten.race.workers import Workers, together

Found = dict[str, Any]
"""What comes of a job, as JSON can hold it."""


class Job(Protocol):
    """A dataclass that says what is to be done, by how many workers."""

    @property
    def world(self) -> int: ...


Work = Callable[[Any, Workers], Found]
"""A function at the top level of a module, which every worker runs."""


def _serve(rank: int, world: int, meeting: str, orders: Any, answers: Any) -> None:
    torch.set_num_threads(1)
    with together(meeting, rank, world) as workers:
        while (order := orders.get()) is not None:
            work, job = order
            try:
                answers.put((rank, None, work(job, workers)))
            except BaseException:
                answers.put((rank, traceback.format_exc(), None))
                return


class Crew:
    """Processes of this machine in one gloo group.

    Args:
        world: how many.
        place: a folder where they meet.
    """

    def __init__(self, world: int, place: Path) -> None:
        os.environ.setdefault("OMP_NUM_THREADS", "1")
        context = mp.get_context("spawn")
        self.orders = [context.Queue() for _ in range(world)]
        self.answers = context.Queue()
        meeting = (place / f"meeting-of-{world}").as_uri()
        self.members = [
            context.Process(
                target=_serve, args=(r, world, meeting, self.orders[r], self.answers), daemon=True
            )
            for r in range(world)
        ]
        for member in self.members:
            member.start()

    def do(self, work: Work, job: Any) -> Found:
        """What the last worker found: the first evaluates, and is not to be timed.

        Raises:
            RuntimeError: a worker failed; with its traceback.
        """
        for own in self.orders:
            own.put((work, job))
        found: dict[int, Found] = {}
        while len(found) < len(self.members):
            try:
                rank, error, value = self.answers.get(timeout=60)
            except queue.Empty:
                if not all(member.is_alive() for member in self.members):
                    raise RuntimeError(f"a worker died of {job}") from None
                continue
            if error is not None:
                raise RuntimeError(f"rank {rank}, {job}:\n{error}")
            found[rank] = value
        return found[len(self.members) - 1]

    def end(self) -> None:
        """Let the processes go."""
        for own in self.orders:
            own.put(None)
        for member in self.members:
            member.join(10)
            if member.is_alive():
                member.kill()


class Ledger:
    """Jobs are done once, and what came of them is found in a file ever after; workers stay for a ``with`` block.

    Args:
        path: one JSON object a line, written as soon as a job is done; None to keep nothing.
        told: hears of every job that is done.
        lanes: how many jobs are done at a time, each by workers of its own.
    """

    def __init__(
        self,
        path: Path | None = None,
        told: Callable[[Any, Found], None] = lambda *_: None,
        lanes: int = 1,
    ) -> None:
        self.path = path
        self.told = told
        self.known: dict[str, Found] = {}
        self.lanes = lanes
        self._crews: dict[tuple[int, int], Crew] = {}
        self._place = tempfile.TemporaryDirectory(prefix="crew-")
        if path is not None and path.exists():
            for line in path.read_text("utf-8").splitlines():
                row = json.loads(line)
                self.known[_key(row["work"], row["job"])] = row["found"]

    def all(self, work: Work, jobs: Iterable[Any]) -> list[Found]:
        """What comes of these jobs; those that nobody has done are done."""
        asked = {_key(work.__name__, dataclasses.asdict(job)): job for job in jobs}
        left = iter([(key, job) for key, job in asked.items() if key not in self.known])
        turn = threading.Lock()

        def work_off(lane: int) -> None:
            while True:
                with turn:
                    key, job = next(left, (None, None))
                if key is None or job is None:
                    return
                found = self._crew(job.world, lane).do(work, job)
                with turn:
                    self._keep(work.__name__, job, key, found)

        with ThreadPoolExecutor(self.lanes) as lanes:
            for done in [lanes.submit(work_off, lane) for lane in range(self.lanes)]:
                done.result()
        return [self.known[key] for key in asked]

    def _crew(self, world: int, lane: int) -> Crew:
        """Of that size, in a lane; it takes seconds to gather, so it stays."""
        if (world, lane) not in self._crews:
            place = Path(self._place.name) / str(lane)
            place.mkdir(exist_ok=True)
            self._crews[world, lane] = Crew(world, place)
        return self._crews[world, lane]

    def __enter__(self) -> Ledger:
        return self

    def __exit__(self, *_: object) -> None:
        for crew in self._crews.values():
            crew.end()
        self._crews.clear()
        self._place.cleanup()

    def _keep(self, work: str, job: Any, key: str, found: Found) -> None:
        self.known[key] = found
        self.told(job, found)
        if self.path is not None:
            row = {"work": work, "job": dataclasses.asdict(job), "found": found}
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")


def _key(work: str, job: Found) -> str:
    return json.dumps([work, job], sort_keys=True)
