"""Interleaved rounds: every contender is visited next to the reference, in rotated order."""

from __future__ import annotations

import dataclasses
import json
import os
import select
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from benchmarks.speed import machine
from benchmarks.speed.contenders import REFERENCE, Contender

ROOT = Path(__file__).resolve().parents[2]
STARTING_SECONDS, ANSWER_SECONDS = 600.0, 120.0
NOISY = 0.08


class WorkerFailed(Exception):
    """A worker ended or did not answer; the message is what it last said."""


@dataclasses.dataclass
class Row:
    """What was measured of one contender; ``failure`` says why where nothing was."""

    name: str
    library: str
    method: str
    mode: str
    size: str
    seconds: list[float] = dataclasses.field(default_factory=list)
    reference_seconds: list[float] = dataclasses.field(default_factory=list)
    others: list[float] = dataclasses.field(default_factory=list)
    first: dict[str, float] = dataclasses.field(default_factory=dict)
    warm: dict[str, float] = dataclasses.field(default_factory=dict)
    transient_bytes: float = float("nan")
    failure: str = ""

    @property
    def ratios(self) -> list[float]:
        """Step time over the reference's in the same round."""
        return [s / r for s, r in zip(self.seconds, self.reference_seconds, strict=True)]


class Worker:
    """The parent's end of a worker process."""

    def __init__(self, name: str, size: str, threads: int, cache: Path) -> None:
        self._log = cache / "errors.txt"
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": str(threads),
            "MKL_NUM_THREADS": str(threads),
            "TORCHINDUCTOR_CACHE_DIR": str(cache / "inductor"),
            "XDG_CACHE_HOME": str(cache),
            "JAX_PLATFORMS": "cpu",
        }
        arguments = ["--contender", name, "--size", size, "--threads", str(threads)]
        with self._log.open("w") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "benchmarks.speed.worker", *arguments],
                cwd=ROOT,
                env=environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )

    def started(self) -> dict[str, float]:
        """Wait for the first step."""
        return self._answer(STARTING_SECONDS)

    def ask(self, **command: float) -> dict[str, float]:
        """Send a command and wait for its answer."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(command) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise WorkerFailed(self._last_words()) from None
        return self._answer(ANSWER_SECONDS)

    def processor_seconds(self) -> float:
        """Processor time used so far by the worker."""
        return machine.process_seconds(self._process.pid)

    def stop(self) -> None:
        """End the worker and wait for it."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.close()
            self._process.wait(10)
        except (BrokenPipeError, subprocess.TimeoutExpired):
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()

    def _answer(self, patience: float) -> dict[str, float]:
        assert self._process.stdout is not None
        ready, _, _ = select.select([self._process.stdout], [], [], patience)
        if not ready:
            raise WorkerFailed(f"no answer within {patience:.0f} s")
        line = self._process.stdout.readline()
        if not line:
            raise WorkerFailed(self._last_words())
        answer: dict[str, float] = json.loads(line)
        return answer

    def _last_words(self) -> str:
        lines = [line.strip() for line in self._log.read_text().splitlines() if line.strip()]
        return lines[-1][:200] if lines else f"ended with status {self._process.poll()}"


@dataclasses.dataclass
class Settings:
    """How long and how carefully to measure."""

    size: str = "large"
    rounds: int = 9
    threads: int = 2
    visit_seconds: float = 0.3
    first_steps: bool = True


def measure(contenders: list[Contender], settings: Settings, say: Callable[[str], None]) -> list[Row]:
    """Measure all contenders, as many at once as memory holds."""
    rows = {c.name: Row(c.name, c.library, c.method, c.mode, settings.size) for c in contenders}
    for contender in contenders:
        if not contender.installed:
            rows[contender.name].failure = "not installed"
    present = [c for c in contenders if c.installed]
    with tempfile.TemporaryDirectory(prefix="steps-") as folder:
        for chunk in chunks(present, settings.size):
            _measure_chunk(chunk, rows, settings, Path(folder), say)
            yield [row for row in rows.values() if row.seconds or row.failure]


def chunks(contenders: list[Contender], size: str) -> Iterator[list[Contender]]:
    """Consecutive contenders that fit into 70 % of the memory now available."""
    each = {"large": 1.3e9}.get(size, 0.7e9)
    at_once = max(1, int(0.7 * _available_bytes() / each) - 1)
    for start in range(0, len(contenders), at_once):
        yield contenders[start : start + at_once]


def _available_bytes() -> float:
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return float(line.split()[1]) * 1024
    return 8e9


def _start(name: str, settings: Settings, folder: Path) -> Worker:
    cache = folder / name.replace(" ", "-")
    cache.mkdir(exist_ok=True)
    return Worker(name, settings.size, settings.threads, cache)


def _measure_chunk(
    chunk: list[Contender],
    rows: dict[str, Row],
    settings: Settings,
    folder: Path,
    say: Callable[[str], None],
) -> None:
    reference = _start(REFERENCE, settings, folder)
    reference.started()
    workers: dict[str, Worker] = {}
    try:
        for contender in chunk:
            say(f"first step of {contender.name}")
            workers[contender.name] = worker = _start(contender.name, settings, folder)
            _guarded(rows[contender.name], lambda row, w=worker: row.first.update(w.started()))
        names = [name for name in workers if not rows[name].failure]
        for number in range(settings.rounds):
            say(f"round {number + 1} of {settings.rounds} over {len(names)} contenders")
            turn = number % max(1, len(names))
            for name in names[turn:] + names[:turn]:
                if not rows[name].failure:
                    everyone = [reference, *workers.values()]
                    pair = (reference, workers[name])
                    _guarded(rows[name], lambda row, p=pair, e=everyone: _visit(row, p, e, settings))
        for name in names:
            _guarded(rows[name], lambda row, w=workers[name]: _peak(row, w))
    finally:
        for worker in [reference, *workers.values()]:
            worker.stop()
    if settings.first_steps:
        for contender in chunk:
            if contender.compiled and not rows[contender.name].failure:
                say(f"warm first step of {contender.name}")
                worker = _start(contender.name, settings, folder)
                _guarded(rows[contender.name], lambda row, w=worker: row.warm.update(w.started()))
                worker.stop()


def _guarded(row: Row, action: Callable[..., Any]) -> None:
    """Do it; a contender that fails is a row that says so."""
    try:
        action(row)
    except WorkerFailed as failure:
        row.failure = str(failure)


def _peak(row: Row, worker: Worker) -> None:
    row.transient_bytes = worker.ask(peak=1)["transient_bytes"]


def _visit(row: Row, pair: tuple[Worker, Worker], everyone: list[Worker], settings: Settings) -> None:
    """Visit the reference and the contender; up to three times if others use the machine."""
    reference, worker = pair
    for _ in range(3):
        busy, ours = machine.busy_seconds(), sum(w.processor_seconds() for w in everyone)
        of_reference = reference.ask(visit=settings.visit_seconds)["seconds"]
        of_contender = worker.ask(visit=settings.visit_seconds)["seconds"]
        busy = machine.busy_seconds() - busy
        ours = sum(w.processor_seconds() for w in everyone) - ours
        others = max(0.0, busy - ours) / max(busy, 1e-9)
        if others < NOISY:
            break
    row.reference_seconds.append(of_reference)
    row.seconds.append(of_contender)
    row.others.append(others)
