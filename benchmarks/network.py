"""Workers behind a link of a given speed, and what a transfer over it takes.

Three ways to have such a link:

* ``namespaces``: every worker in a network namespace of its own, its link limited by the kernel's token bucket, and
  delayed by netem where the kernel has it (see `benchmarks.switch`; no root needed);
* ``throttle``: workers on loopback, where a `Wire` holds back what arrives until such a link would have brought it;
* counting: `transfer_seconds` of the bytes that a `Wire` has counted, which is what figures over link speeds use.

This holds the formula against a link that is really limited, and writes results/network.json and results/network.md:

    python -m benchmarks.network                            # two and four workers, 20 and 100 Mbit/s, two minutes
    python -m benchmarks.network --way throttle --latency 0.01

and this runs a program under torch.distributed behind such links (after the dashes, what follows ``python``):

    python -m benchmarks.network --world 2 --bandwidth 1e7 -- train.py --epochs 3
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import os
import queue
import runpy
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks import switch

RESULTS = Path(__file__).parent / "results"
WAYS = ("namespaces", "throttle")
BANDWIDTHS = (20e6, 100e6)
SIZES = (1_000_000, 4_000_000)
"""Bytes of the tensors that are summed."""


def transfer_seconds(bytes: float, calls: float, bandwidth_bits: float, latency: float = 0.0) -> float:
    """calls · latency + 8 · bytes / bandwidth: what the link costs a worker whose collectives wait for each other.

    Args:
        bytes: that one worker sends, as `Traffic.sent` counts them (it receives as many at the same time).
        calls: how many collectives.
        bandwidth_bits: of every worker's link, in bits per second, each way.
        latency: seconds until a collective that carries nothing is done: a ring's all-reduce passes 2(W−1) links, one
            after the other, an all-gather W−1.

    Example:
        >>> transfer_seconds(1_000_000, calls=2, bandwidth_bits=10e6, latency=0.01)
        0.8200000000000001
    """
    return calls * latency + 8.0 * bytes / bandwidth_bits


class Throttle:
    """A link that carries one thing after the other: what was handed to it arrives when it would have come through.

    Args:
        bandwidth: bits per second each way.
        latency: seconds that a collective takes on top; the next one does not wait for it.
    """

    def __init__(self, bandwidth: float, latency: float = 0.0) -> None:
        self.bandwidth, self.latency = bandwidth, latency
        self.free = 0.0
        """When the link has carried all that it was given."""
        self._arrivals: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._deliver, daemon=True)
        self._thread.start()

    def carry(self, future: Any, sent: float) -> Any:
        """A future with the same value, done when the other is and the link has carried the bytes."""
        from torch.futures import Future

        self.free = max(self.free, time.monotonic()) + transfer_seconds(sent, 0, self.bandwidth)
        due = self.free + self.latency
        held: Future[Any] = Future()

        def arrive() -> None:
            try:
                value = future.wait()
            except Exception as error:
                held.set_exception(error)
                return
            time.sleep(max(0.0, due - time.monotonic()))
            held.set_result(value)

        self._arrivals.put(arrive)
        return held

    def close(self) -> None:
        """Deliver what is under way, and end."""
        self._arrivals.put(None)
        self._thread.join()

    def _deliver(self) -> None:
        while (arrive := self._arrivals.get()) is not None:
            arrive()


@contextlib.contextmanager
def throttled(bandwidth: float, latency: float = 0.0) -> Iterator[None]:
    """Inside, whatever this process sends over a `Wire` takes as long as over a link of this speed."""
    from hasten.wire import Wire

    link = Throttle(bandwidth, latency)
    start, seen = Wire._started, dict[int, float]()

    @functools.wraps(start)
    def started(wire: Wire, *arguments: Any, **options: Any) -> Any:
        total = wire.communication.total.sent
        sent, seen[id(wire)] = total - seen.get(id(wire), 0.0), total
        return link.carry(start(wire, *arguments, **options), sent)

    Wire._started = started  # type: ignore[method-assign]
    try:
        yield
    finally:
        Wire._started = start  # type: ignore[method-assign]
        link.close()


def best_way(latency: float = 0.0) -> str:
    """The way to have a link that works here and can have this latency."""
    possible = switch.delays() if latency else switch.limits()
    return "namespaces" if possible else "throttle"


def run(
    arguments: Sequence[str], world: int, bandwidth: float, latency: float = 0.0, way: str | None = None
) -> list[int]:
    """Run a Python program as `world` workers, each behind its own link; returns their exit statuses.

    Args:
        arguments: what follows ``python`` on the command line.
        world: how many.
        bandwidth: of every link, in bits per second each way.
        latency: seconds from one worker to another (namespaces), or for a collective (throttle).
        way: "namespaces" or "throttle"; the first that works unless given.
    """
    way = best_way(latency) if way is None else way
    shaped = way == "namespaces"
    where = switch.address(0) if shaped else "127.0.0.1"
    common = {
        **os.environ,
        "WORLD_SIZE": str(world),
        "MASTER_ADDR": where,
        "MASTER_PORT": str(29871 if shaped else _free_port()),
        "GLOO_SOCKET_IFNAME": "eth0" if shaped else "lo",
    }
    environments = [{**common, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(world)]
    if shaped:
        return switch.launch([[sys.executable, *arguments]] * world, environments, bandwidth, latency)
    member = [sys.executable, "-m", "benchmarks.network", "--member", str(bandwidth), str(latency), "--"]
    running = [subprocess.Popen([*member, *arguments], env=environment) for environment in environments]
    return [process.wait() for process in running]


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def be_member(bandwidth: float, latency: float, arguments: Sequence[str]) -> None:
    """Run the program in this process, behind a throttle."""
    module = arguments[0] == "-m"
    sys.argv = list(arguments[1:] if module else arguments)
    with throttled(bandwidth, latency):
        if module:
            runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
        else:
            sys.path.insert(0, str(Path(sys.argv[0]).resolve().parent))
            runpy.run_path(sys.argv[0], run_name="__main__")


def measure(path: Path, sizes: Sequence[int], rounds: int = 5) -> None:
    """As a worker: time transfers one after the other, and what was counted of them; rank 0 writes it."""
    import torch
    import torch.distributed as dist

    from hasten.wire import Wire

    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    wire, rows = Wire(), []

    def all_reduce(size: int) -> None:
        wire.sum(torch.zeros(size // 4), "all-reduce").wait()

    def one_way(size: int) -> None:
        tensor = torch.zeros(size // 4)
        if wire.rank == 1:
            dist.send(tensor, 0)
        elif wire.rank == 0:
            dist.recv(tensor, 1)

    def sent(what: str) -> float:
        return wire.communication.parts[what].sent if what in wire.communication.parts else 0.0

    for what, act in (("one way", one_way), ("all-reduce", all_reduce)):
        act(4)  # connections are made
        for size in sizes:
            seconds, before = [], sent(what)
            for _ in range(rounds):
                wire.objects(None)
                started = time.perf_counter()
                act(size)
                seconds.append(time.perf_counter() - started)
            moved = (sent(what) - before) / rounds or float(size)
            slowest = [max(each) for each in zip(*wire.objects(seconds), strict=True)]
            rows.append({"what": what, "size": size, "sent": moved, "seconds": slowest})
    if wire.rank == 0:
        path.write_text(json.dumps(rows))
    dist.destroy_process_group()


def compare(
    worlds: Sequence[int], bandwidths: Sequence[float], sizes: Sequence[int], latency: float, way: str
) -> list[dict[str, Any]]:
    """Measured and predicted seconds, over numbers of workers, bandwidths and sizes."""
    import statistics

    found = []
    for world in worlds:
        for bandwidth in bandwidths:
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / "rows.json"
                sizes_given = [str(size) for size in sizes]
                arguments = ["-m", "benchmarks.network", "--measure", str(path), "--sizes", *sizes_given]
                codes = run(arguments, world, bandwidth, latency, way)
                if any(codes):
                    raise RuntimeError(f"the workers ended with {codes}")
                rows = json.loads(path.read_text())
            for row in rows:
                measured = statistics.median(row["seconds"])
                hops = 2 * (world - 1) if way == "namespaces" and row["what"] == "all-reduce" else 1
                predicted = transfer_seconds(row["sent"], 1, bandwidth, hops * latency)
                found.append(
                    {
                        "world": world,
                        "bandwidth": bandwidth,
                        **row,
                        "measured": measured,
                        "predicted": predicted,
                        "ratio": measured / predicted,
                    }
                )
    return found


def page(rows: Sequence[dict[str, Any]], way: str, latency: float) -> str:
    """What was measured, as Markdown."""
    from benchmarks.claims.claim import Table

    said = {
        "namespaces": "Every worker is in a network namespace of its own, and the kernel's token bucket limits its "
        "link, each way",
        "throttle": "Workers are on loopback, and a throttle holds back what arrives",
    }[way]
    cells = [
        [
            row["what"],
            str(row["world"]),
            f"{row['bandwidth'] / 1e6:g}",
            f"{row['size'] / 1e6:g}",
            f"{row['sent'] / 1e6:.3g}",
            f"{row['measured']:.3f} ({min(row['seconds']):.3f}–{max(row['seconds']):.3f})",
            f"{row['predicted']:.3f}",
            f"{row['ratio']:.3f}",
        ]
        for row in rows
    ]
    columns = ["what", "workers", "Mbit/s", "MB", "MB sent by each", "seconds", "formula", "ratio"]
    return "\n".join(
        [
            "# What a link costs: the formula against a link",
            "",
            f"{said}; latency {latency:g} s. Seconds are those of the slowest worker, over gloo, median (least–most) "
            "of the rounds. The formula is `calls · latency + 8 · bytes / bandwidth`, of the bytes that "
            "`hasten.wire.Wire` counts. Packet headers, 66 bytes to every 1448, add 4.6 %, which is what a single "
            "transfer one way shows; in an all-reduce the receipts for what comes in share the link with the rest.",
            "",
            Table("Transfers", columns, cells).markdown(),
            "",
            "Regenerate with `python -m benchmarks.network`.",
            "",
        ]
    )


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.network", allow_abbrev=False)
    parser.add_argument("--way", choices=WAYS)
    parser.add_argument("--world", type=int, nargs="+", default=[2, 4])
    parser.add_argument("--bandwidth", type=float, nargs="+", default=list(BANDWIDTHS))
    parser.add_argument("--latency", type=float, default=0.0)
    parser.add_argument("--sizes", type=int, nargs="+", default=list(SIZES))
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--member", type=float, nargs=2, help=argparse.SUPPRESS)
    own, program = sys.argv[1:], []
    if "--" in own:
        own, program = own[: own.index("--")], own[own.index("--") + 1 :]
    options = parser.parse_args(own)
    if options.measure is not None:
        measure(options.measure, options.sizes)
    elif options.member is not None:
        be_member(*options.member, program)
    elif program:
        sys.exit(max(run(program, options.world[0], options.bandwidth[0], options.latency, options.way)))
    else:
        from benchmarks.claims.claim import write_atomically

        way = options.way or best_way(options.latency)
        rows = compare(options.world, options.bandwidth, options.sizes, options.latency, way)
        text = page(rows, way, options.latency)
        record = {"way": way, "latency": options.latency, "rows": rows}
        write_atomically(options.out / "network.json", json.dumps(record, indent=1) + "\n")
        write_atomically(options.out / "network.md", text)
        print(text)


if __name__ == "__main__":
    main()
