"""What SOAP and Shampoo cost: a period of ten steps against the matrix products that SOAP cannot do without.

One process a contender; every round visits each of them in rotated order, and every visit times products of the same
size right before and right after its steps.

    python -m benchmarks.matrices_kronecker                               # 8 matrices of 1024², about ten minutes
    python -m benchmarks.matrices_kronecker --torch-shampoo ../optimizers # with a checkout of Meta's package as well
    python -m benchmarks.matrices_kronecker --size 256 --rounds 3 --only "hasten SOAP,pytorch_optimizer SOAP"
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import logging
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.claims.claim import Table, write_atomically
from benchmarks.speed import machine

RESULTS = Path(__file__).parent / "results"
PERIOD = 10
"""Steps from one refresh of the bases, or computation of the roots, to the next."""
PRODUCTS = 6
"""Products of a matrix and step that SOAP needs: two for the factors, two there and two back."""
GOALS = {"hasten SOAP": 1.3}
PROTOCOL = (
    f"One process for each contender, float32. A visit is {PERIOD} steps, one period of `precondition_frequency` "
    f"{PERIOD}, with products of two matrices of the same size timed right before and after it. The limit is "
    f"{PRODUCTS} such products a matrix and step; the ratio is to that limit, at the rate of the same visit; median "
    "and quartiles over the rounds. For Shampoo, which does other work, it only serves to compare times. SOAP: betas "
    "(0.95, 0.95). Shampoo: betas (0.9, 0.999), one block for a matrix, statistics in every step, roots by "
    "eigendecomposition every tenth, Adam grafting where there is one. Gradients are restored, untimed, before every "
    "step. Transient memory is the most that a step of a period adds to the peak of resident memory, in matrices."
)


def soap(module: str, **arguments: Any) -> Callable[[list[Tensor]], Any]:
    """A builder of a library's SOAP."""
    return lambda params: importlib.import_module(module).SOAP(
        params, lr=1e-3, betas=(0.95, 0.95), precondition_frequency=PERIOD, **arguments
    )


def hasten_shampoo(params: list[Tensor]) -> Any:
    """Ours."""
    import hasten

    return hasten.Shampoo(
        params, lr=1e-3, eps=1e-8, precondition_frequency=PERIOD, max_preconditioner_dim=4096
    )


def scalable_shampoo(params: list[Tensor]) -> Any:
    """pytorch_optimizer's; it has no Adam grafting, and takes roots by coupled Newton unless told otherwise."""
    from pytorch_optimizer import ScalableShampoo

    return ScalableShampoo(
        params,
        lr=1e-3,
        moving_average_for_momentum=True,
        nesterov=False,
        start_preconditioning_step=1,
        preconditioning_compute_steps=PERIOD,
        block_size=4096,
        use_svd=True,
    )


def torch_shampoo(params: list[Tensor]) -> Any:
    """Meta's."""
    from distributed_shampoo import AdamPreconditionerConfig, DistributedShampoo

    return DistributedShampoo(
        params,
        lr=1e-3,
        betas=(0.9, 0.999),
        epsilon=1e-8,
        max_preconditioner_dim=4096,
        precondition_frequency=PERIOD,
        grafting_config=AdamPreconditionerConfig(beta2=0.999, epsilon=1e-8),
    )


CONTENDERS: dict[str, tuple[str, Callable[[list[Tensor]], Any]]] = {
    "hasten SOAP": ("hasten", soap("hasten")),
    "pytorch_optimizer SOAP": ("pytorch_optimizer", soap("pytorch_optimizer")),
    "heavyball SOAP": ("heavyball", soap("heavyball", use_precond_schedule=False)),
    "hasten Shampoo": ("hasten", hasten_shampoo),
    "pytorch_optimizer ScalableShampoo": ("pytorch_optimizer", scalable_shampoo),
    "torch-shampoo Shampoo": ("distributed_shampoo", torch_shampoo),
}


# -- a contender in its own process -----------------------------------------------------------------------------------


class Bench:
    """An optimizer with its matrices and their gradients."""

    def __init__(self, name: str, size: int, count: int) -> None:
        generator = torch.Generator().manual_seed(0)
        self.params = [torch.nn.Parameter(torch.randn(size, size, generator=generator)) for _ in range(count)]
        self.grads = [torch.randn(size, size, generator=generator) / size for _ in range(count)]
        self.square = torch.randn(size, size, generator=generator)
        self.optimizer = CONTENDERS[name][1](self.params)
        started = time.perf_counter()
        self.step()
        self.first = time.perf_counter() - started
        before = self.params[0].detach().clone()
        for _ in range(2 * PERIOD):  # compiled on demand, with and without refresh
            self.step()
        if torch.equal(before, self.params[0]):
            raise RuntimeError("the steps move nothing")

    def step(self) -> float:
        """Seconds of one step."""
        for p, g in zip(self.params, self.grads, strict=True):
            p.grad = g.clone()
        started = time.perf_counter()
        self.optimizer.step()
        return time.perf_counter() - started

    def products(self, number: int) -> float:
        """Seconds of one product, the mean of so many."""
        started = time.perf_counter()
        for _ in range(number):
            self.square @ self.square
        return (time.perf_counter() - started) / number

    def visit(self, number: int) -> dict[str, float]:
        """Seconds of a step, the mean of a period, and of a product."""
        before = self.products(number)
        seconds = sum(self.step() for _ in range(PERIOD)) / PERIOD
        return {"step": seconds, "product": (before + self.products(number)) / 2}

    def peak(self) -> dict[str, float]:
        """The most that a step of a period adds to the peak of resident memory, in matrices."""
        grown = []
        for _ in range(PERIOD):
            for p, g in zip(self.params, self.grads, strict=True):
                p.grad = g.clone()
            before = machine.reset_peak()
            self.optimizer.step()
            grown.append(machine.peak() - before)
        return {"transient": max(grown) / (4 * self.square.numel())}


def serve(name: str, size: int, count: int, products: int) -> None:
    """Answer ``visit`` and ``peak`` until the end of the input."""
    logging.disable(logging.WARNING)
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a library prints must not reach the parent as an answer
    bench = Bench(name, size, count)
    print(json.dumps({"first": bench.first}), file=answers, flush=True)
    for line in sys.stdin:
        found = bench.visit(products) if line.strip() == "visit" else bench.peak()
        print(json.dumps(found), file=answers, flush=True)


# -- the rounds -------------------------------------------------------------------------------------------------------


@dataclass
class Row:
    """What was measured of one contender."""

    name: str
    first: float = float("nan")
    steps: list[float] = field(default_factory=list)
    limits: list[float] = field(default_factory=list)
    transient: float = float("nan")
    failure: str = ""

    def ratios(self) -> list[float]:
        """Step over limit, by round."""
        return [step / limit for step, limit in zip(self.steps, self.limits, strict=True)]


class Contender:
    """The parent's end of a process."""

    def __init__(self, row: Row, options: argparse.Namespace) -> None:
        self.row, self.count = row, options.count
        threads = str(options.threads)
        path = os.pathsep.join(filter(None, [options.torch_shampoo, os.environ.get("PYTHONPATH", "")]))
        command = [sys.executable, "-m", "benchmarks.matrices_kronecker", "--serve", row.name]
        command += [
            "--size",
            str(options.size),
            "--count",
            str(options.count),
            "--products",
            str(options.products),
        ]
        self.process = subprocess.Popen(
            command,
            env={**os.environ, "OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads, "PYTHONPATH": path},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.row.first = self.answer().get("first", float("nan"))

    def ask(self, what: str) -> dict[str, float]:
        """A command, and its answer."""
        assert self.process.stdin is not None
        print(what, file=self.process.stdin, flush=True)
        return self.answer()

    def answer(self) -> dict[str, float]:
        """One line of the process; empty, with the reason in the row, if it has ended."""
        assert self.process.stdout is not None
        assert self.process.stderr is not None
        line = self.process.stdout.readline()
        if not line:
            self.row.failure = self.process.stderr.read().strip().splitlines()[-1][:200]
            return {}
        found: dict[str, float] = json.loads(line)
        return found

    def visit(self) -> None:
        """One period."""
        found = self.ask("visit")
        self.row.steps.append(found["step"])
        self.row.limits.append(PRODUCTS * self.count * found["product"])


def measure(names: list[str], options: argparse.Namespace) -> list[Row]:
    """All contenders, interleaved."""
    rows, running = [], []
    for name in names:
        row = Row(name)
        rows.append(row)
        if importlib.util.find_spec(CONTENDERS[name][0]) is None:
            row.failure = "not installed"
            continue
        contender = Contender(row, options)
        if not row.failure:
            running.append(contender)
    try:
        for number in range(options.rounds):
            for shift in range(len(running)):
                running[(number + shift) % len(running)].visit()
        for contender in running if machine.can_measure_peaks() else ():
            contender.row.transient = contender.ask("peak")["transient"]
    finally:
        for contender in running:
            contender.process.communicate()
    return rows


def markdown(rows: list[Row], record: dict[str, Any]) -> str:
    """The page."""
    cells = []
    for row in rows:
        if row.failure:
            cells.append([row.name, row.failure, "", "", "", "", ""])
            continue
        low, middle, high = (
            statistics.quantiles(row.ratios(), n=4) if len(row.steps) > 1 else row.ratios() * 3
        )
        goal = GOALS.get(row.name)
        reached = "" if goal is None else "yes" if middle <= goal else "**no**"
        cells.append(
            [
                row.name,
                f"{1e3 * statistics.median(row.steps):.0f}",
                f"{middle:.2f} ({low:.2f}..{high:.2f})",
                "" if goal is None else f"≤ {goal:g}",
                reached,
                f"{row.transient:.1f}",
                f"{row.first:.1f}",
            ]
        )
    columns = [
        "contender",
        "step ms",
        "× limit (quartiles)",
        "to reach",
        "reached",
        "transient",
        "first step s",
    ]
    title = f"{record['count']} matrices of {record['size']}², {record['threads']} threads, {record['rounds']} rounds"
    footer = (
        f"Processor time used by other programs meanwhile: {record['others']:.0%}. Torch {record['torch']}, Python "
        f"{record['python']}.\n\nRegenerate with `{record['command']}`.\n"
    )
    return "\n".join(
        ["# SOAP and Shampoo", "", PROTOCOL, "", Table(title, columns, cells).markdown(), "", footer]
    )


def main() -> None:
    """Measure, judge, write."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.matrices_kronecker", description=__doc__)
    parser.add_argument("--size", type=int, default=1024, help="side of the matrices")
    parser.add_argument("--count", type=int, default=8, help="number of matrices")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--products", type=int, default=20, help="products timed before and after a visit")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--only", default=",".join(CONTENDERS), help="comma-separated contenders")
    parser.add_argument(
        "--torch-shampoo", default="", help="a folder that holds the package distributed_shampoo"
    )
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results")
    parser.add_argument("--serve", default="", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve(options.serve, options.size, options.count, options.products)
        return
    names = options.only.split(",")
    unknown = [name for name in names if name not in CONTENDERS]
    if unknown or min(options.size, options.count, options.rounds, options.products) < 1:
        parser.error(
            f"unknown contender {unknown[0]!r}" if unknown else "sizes and numbers must be at least 1"
        )
    if options.torch_shampoo:
        sys.path.append(options.torch_shampoo)
    busy, started = machine.busy_seconds(), os.times()
    rows = measure(names, options)
    busy, ended = machine.busy_seconds() - busy, os.times()
    own = sum(ended[:4]) - sum(started[:4])
    record: dict[str, Any] = {
        "size": options.size,
        "count": options.count,
        "rounds": options.rounds,
        "threads": options.threads,
        "others": max(0.0, 1 - own / busy) if busy else 0.0,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "command": "python -m benchmarks.matrices_kronecker",
        "protocol": PROTOCOL,
    }
    page = markdown(rows, record)
    record["rows"] = [asdict(row) for row in rows]
    options.out.mkdir(parents=True, exist_ok=True)
    write_atomically(options.out / "matrices-kronecker.json", json.dumps(record, indent=1) + "\n")
    write_atomically(options.out / "matrices-kronecker.md", page)
    print(page)


if __name__ == "__main__":
    main()
