"""What the hook costs where the network is free: seconds per step over DistributedDataParallel's own, on one machine.

python -m benchmarks.hook_overhead                     # 21M parameters, 2 processes, about eight minutes
python -m benchmarks.hook_overhead --width 64 --rounds 2
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import os
import platform
import socket
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import hasten
from benchmarks.claims.claim import Table, write_atomically
from benchmarks.speed import machine
from hasten.distributed import AllReduce, Hook, SubspaceHook
from hasten.sketches import BalancedCountSketch, RandomLowRank, StridedSigns

RESULTS = Path(__file__).parent / "results"
GOAL = 1.25
PLAIN, STEPPED = "DDP alone", "DDP + SGD with momentum"
PROTOCOL = (
    "Processes with a gloo group on the loopback interface, one thread each; every contender has a model of its own: "
    "linear layers with a vector each. A step is `zero_grad`, forward and `backward`, which ends when the gradients "
    "have arrived; the last two rows also step an optimizer. Each round visits every contender once, in rotated order; "
    "a visit is the fastest of three steps, each the slowest worker's, from a barrier. Ratios are to the row of DDP "
    "without a hook in the same round, medians over the rounds, with the quartiles. *Processor* is what the first "
    "worker's threads took for a step. *Counted* is what one worker sends for it, by `hook.communication` (for DDP "
    "alone, 2n(W−1)/W of its n bytes); *measured* is what the interface carried, headers and everybody else's packets "
    "included, the least of all rounds."
)


@dataclass
class Row:
    """What was measured of one contender."""

    name: str
    beside: str
    batch: int = 0
    seconds: list[float] = field(default_factory=list)
    processor: list[float] = field(default_factory=list)
    ratios: list[float] = field(default_factory=list)
    counted: float = 0.0
    measured: float | None = None

    def ratio(self) -> float:
        """Over the row it stands beside, median over the rounds."""
        return statistics.median(self.ratios)

    def spread(self) -> str:
        """The quartiles of the ratio."""
        if len(self.ratios) < 2:
            return ""
        low, _, high = statistics.quantiles(self.ratios, n=4, method="inclusive")
        return f"{low:.2f} … {high:.2f}"

    def verdict(self) -> str:
        """Whether a subspace hook costs no more than it may."""
        if not self.name.startswith("SubspaceHook") or self.beside != PLAIN:
            return ""
        return "yes" if self.ratio() < GOAL else "**no**"


def network(width: int, layers: int) -> nn.Module:
    """`layers` square matrices, and a vector for each."""
    return nn.Sequential(*(nn.Linear(width, width) for _ in range(layers)))


@dataclass
class Contender:
    """A way to average gradients: a step of it, and what counts its bytes (None: nothing does)."""

    name: str
    beside: str
    step: Callable[[], Any]
    hook: Hook | None = None

    def sent(self) -> float:
        """Bytes so far."""
        return 0.0 if self.hook is None else self.hook.communication.total.sent


def contenders(width: int, layers: int, batch: int) -> Iterator[Contender]:
    """All, each with a model of its own."""
    x = torch.randn(batch, width)

    def model() -> DistributedDataParallel:
        return DistributedDataParallel(network(width, layers), gradient_as_bucket_view=True)

    def averaging(ddp: DistributedDataParallel) -> Callable[[], None]:
        def step() -> None:
            ddp.zero_grad()
            ddp(x).square().mean().backward()

        return step

    yield Contender(PLAIN, PLAIN, averaging(model()))
    for hook in (
        Hook(AllReduce()),
        Hook(AllReduce(torch.bfloat16)),
        SubspaceHook(BalancedCountSketch(ratio=8)),
        SubspaceHook(BalancedCountSketch(ratio=64)),
        SubspaceHook(StridedSigns(ratio=64)),
        SubspaceHook(RandomLowRank(ratio=64)),
    ):
        ddp = model()
        yield Contender(_title(hook), PLAIN, averaging(ddp), hook.register(ddp))
    ddp = model()
    sgd = torch.optim.SGD(ddp.parameters(), lr=1e-6, momentum=0.9, nesterov=True, fused=True)
    average = averaging(ddp)
    yield Contender(STEPPED, STEPPED, lambda: (average(), sgd.step()))
    whole = model()
    hook = SubspaceHook(BalancedCountSketch(ratio=64)).register(whole)
    opt = hasten.SubspaceNesterov(whole, oracle=hook.oracle, smoothness=1e6)
    yield Contender(
        f"{_title(hook)} + SubspaceNesterov",
        STEPPED,
        lambda: opt.step(lambda: whole(x).square().mean()),
        hook,
    )


def _parameters(options: argparse.Namespace) -> int:
    return int(options.layers * (options.width**2 + options.width))


def _title(hook: Hook) -> str:
    if isinstance(hook, SubspaceHook):
        sketch = hook.exchange.sketch.sketch
        return f"SubspaceHook({type(sketch).__name__}, d/r = {sketch.ratio})"
    return repr(hook)


STEPS = 3
"""Steps of one visit."""


def carried() -> int | None:
    """Bytes that the loopback interface has carried; None where they cannot be read."""
    with contextlib.suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/net/dev").read_text(encoding="ascii").splitlines()
        line = next(line for line in lines if line.strip().startswith("lo:"))
        return int(line.split(":")[1].split()[8])
    return None


def worker(rank: int, port: int, options: argparse.Namespace, results: Any) -> None:
    """One process: all contenders in rounds; rank 0 puts the rows."""
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"tcp://127.0.0.1:{port}",
        rank=rank,
        world_size=options.world,
        timeout=datetime.timedelta(minutes=5),
    )
    torch.manual_seed(0)
    found: list[Row] = []
    for batch in options.batch:
        found += rounds(options, batch)
    if rank == 0:
        results.put([asdict(row) for row in found])
    dist.barrier()
    dist.destroy_process_group()


def rounds(options: argparse.Namespace, batch: int) -> list[Row]:
    """All contenders with one size of batch, interleaved."""
    everyone = list(contenders(options.width, options.layers, batch))
    rows = {c.name: Row(c.name, c.beside, batch) for c in everyone}
    ring = 2 * 4 * _parameters(options) * (options.world - 1) / options.world
    for number in range(options.rounds + 1):
        here: dict[str, float] = {}
        for shift in range(len(everyone)):
            contender = everyone[(number + shift) % len(everyone)]
            row, count = rows[contender.name], contender.sent()
            dist.barrier()
            before, busy = carried(), time.process_time()
            here[row.name] = min(_slowest(contender.step) for _ in range(STEPS))
            busy = time.process_time() - busy
            dist.barrier()
            after = carried()
            if number:  # the first round warms up
                row.counted = ring if contender.hook is None else (contender.sent() - count) / STEPS
                row.seconds.append(here[row.name])
                row.processor.append(busy / STEPS)
            if number and before is not None and after is not None:
                seen = (after - before) / (STEPS * options.world)
                row.measured = seen if row.measured is None else min(row.measured, seen)
        if number:
            for row in rows.values():
                row.ratios.append(here[row.name] / here[row.beside])
    return list(rows.values())


def _slowest(step: Callable[[], Any]) -> float:
    dist.barrier()
    started = time.perf_counter()
    step()
    taken = torch.tensor(time.perf_counter() - started, dtype=torch.float64)
    dist.all_reduce(taken, dist.ReduceOp.MAX)
    return float(taken)


def measure(options: argparse.Namespace) -> list[Row]:
    """All contenders, interleaved."""
    context = mp.get_context("spawn")
    results = context.Queue()
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = int(s.getsockname()[1])
    team = mp.spawn(worker, (port, options, results), nprocs=options.world, join=False)
    try:
        while results.empty():
            team.join(timeout=1)  # raises what a worker raised
        rows = [Row(**row) for row in results.get()]
        while not team.join():
            pass
    finally:
        for process in team.processes:
            if process.is_alive():
                process.kill()
    return rows


def markdown(rows: list[Row], record: dict[str, Any]) -> str:
    """The page."""
    columns = ["contender", "ms a step", "processor ms", "× beside", "quartiles", "to reach", "verdict"]
    columns += ["counted MB", "measured MB"]
    lines = ["# Overhead of the hook", "", PROTOCOL, ""]
    for batch in record["batch"]:
        cells = [
            [
                row.name,
                f"{1e3 * statistics.median(row.seconds):.1f}",
                f"{1e3 * statistics.median(row.processor):.1f}",
                f"{row.ratio():.2f}",
                row.spread(),
                f"< {GOAL}" if row.verdict() else "",
                row.verdict(),
                f"{row.counted / 1e6:.3f}",
                "" if row.measured is None else f"{row.measured / 1e6:.3f}",
            ]
            for row in rows
            if row.batch == batch
        ]
        title = (
            f"{record['parameters']:,} parameters ({record['layers']} matrices of {record['width']}² and vectors), "
            f"{record['world']} processes, {batch} rows each"
        )
        lines += [Table(title, columns, cells).markdown(), ""]
    lines.append(
        f"{record['rounds']} rounds. Processor time used by other programs meanwhile: {record['others']:.0%}. "
        f"Torch {record['torch']}, Python {record['python']}."
    )
    return "\n".join([*lines, "", f"Regenerate with `{record['command']}`."]) + "\n"


def main() -> None:
    """Measure, judge, write."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.hook_overhead", description=__doc__)
    parser.add_argument("--width", type=int, default=1024, help="rows and columns of a matrix")
    parser.add_argument("--layers", type=int, default=20)
    parser.add_argument(
        "--batch", type=int, nargs="+", default=[16, 1024], help="rows of input for each process"
    )
    parser.add_argument("--world", type=int, default=2, help="processes")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results")
    options = parser.parse_args()
    if min(options.width, options.layers, *options.batch, options.rounds) < 1 or options.world < 2:
        parser.error("--width, --layers, --batch and --rounds must be at least 1, and --world at least 2")
    busy = machine.busy_seconds()
    started = time.perf_counter()
    rows = measure(options)
    elapsed = time.perf_counter() - started
    own = sum(os.times()[:4])  # of this process and of its children, which have ended
    busy = machine.busy_seconds() - busy
    command = " ".join(["python -m benchmarks.hook_overhead", *_but_out(sys.argv[1:])])
    record: dict[str, Any] = {
        "width": options.width,
        "layers": options.layers,
        "batch": options.batch,
        "world": options.world,
        "rounds": options.rounds,
        "parameters": _parameters(options),
        "seconds": elapsed,
        "others": max(0.0, 1 - own / busy) if busy else 0.0,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "command": command,
        "protocol": PROTOCOL,
    }
    options.out.mkdir(parents=True, exist_ok=True)
    page = markdown(rows, record)
    record["rows"] = [asdict(row) for row in rows]
    write_atomically(options.out / "hook-overhead.json", json.dumps(record, indent=1) + "\n")
    write_atomically(options.out / "hook-overhead.md", page)
    print(page)


def _but_out(arguments: list[str]) -> list[str]:
    """The arguments without the folder of the results."""
    kept, skip = [], False
    for argument in arguments:
        if not (skip or argument.startswith("--out")):
            kept.append(argument)
        skip = argument == "--out"
    return kept


if __name__ == "__main__":
    main()
