"""What Muon costs: its steps against the matrix products of five Newton–Schulz iterations, and how orthogonal they are.

One process a contender; every round visits each of them in rotated order, and every visit times the products right
before and right after its steps.

    python -m benchmarks.matrices                                        # both sizes, about an hour
    python -m benchmarks.matrices --sizes square --rounds 3 --only "hasten Muon,torch Muon"
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import logging
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.claims.claim import Table, write_atomically
from benchmarks.speed import machine
from benchmarks.speed.steppers import OptaxStepper, Stepper, TorchStepper

RESULTS = Path(__file__).parent / "results"
SIZES: dict[str, list[tuple[int, int]]] = {
    "transformer": [(2304, 768), (768, 768), (3072, 768), (768, 3072)] * 12,
    "square": [(1024, 1024)] * 24,
    "trial": [(48, 32), (32, 48), (32, 32)],
}
"""The hidden matrices of a transformer of 124M parameters: fused QKV, projection, both of the MLP, twelve times."""
STEPS = 5
EQUAL, FEWER = 1.15, 0.7
"""To reach: of the limit with five steps of torch's quintic; of torch's time with other iterations."""
PROTOCOL = (
    f"One process for each contender. A visit is a number of steps, with the products of one iteration on every shape "
    f"timed right before and after it, in bfloat16. The limit is {STEPS} iterations of three products each on every "
    "matrix: X Xᵀ, A², and their sum times X; the ratio is to that limit at the rate of the same visit, median and "
    "quartiles over the rounds. Gradients are restored, untimed, before every step. Orthogonality error: of the first "
    "step from zero, ‖O − U Vᵀ‖_F / ‖U Vᵀ‖_F after the best multiple of O, since libraries scale differently; of a "
    "Gaussian 512 × 512, a Gaussian 256 × 1024, and 256 × 256 with singular values 1/k. Transient memory is the most "
    "that a step adds to the peak of resident memory, in copies of the largest matrix."
)
Build = Callable[[list[Tensor]], Stepper]


def of_class(module: str, name: str, compile_step: bool = False, **arguments: Any) -> Build:
    """A builder of a torch optimizer, without decay."""

    def build(params: list[Tensor]) -> Stepper:
        optimizer = getattr(importlib.import_module(module), name)(
            params, lr=0.02, weight_decay=0.0, **arguments
        )
        return TorchStepper(optimizer, torch.compile(optimizer.step) if compile_step else None)

    return build


def optax_muon(params: list[Tensor]) -> Stepper:
    """optax's, jitted; its products are in float32."""
    return OptaxStepper(params, lambda optax: optax.contrib.muon(0.02))


def of_groups(params: list[Tensor], **arguments: Any) -> Stepper:
    """pytorch_optimizer's: groups say which parameters are matrices."""
    from pytorch_optimizer import Muon

    groups = [{"params": params, "use_muon": True}]
    return TorchStepper(Muon(groups, lr=0.02, weight_decay=0.0, **arguments))


CONTENDERS: dict[str, tuple[str, Build]] = {
    "hasten Muon": ("hasten", of_class("hasten", "Muon")),
    "hasten Muon polar_express": ("hasten", of_class("hasten", "Muon", backend="polar_express")),
    "hasten TurboMuon": ("hasten", of_class("hasten", "TurboMuon")),
    "torch Muon": ("torch", of_class("torch.optim", "Muon")),
    "torch Muon compiled": ("torch", of_class("torch.optim", "Muon", compile_step=True)),
    "pytorch_optimizer Muon": ("pytorch_optimizer", of_groups),
    "pytorch_optimizer Muon Gram": (
        "pytorch_optimizer",
        partial(of_groups, ns_method="gram_newton_schulz"),
    ),
    "heavyball Muon": ("heavyball", of_class("heavyball", "Muon")),
    "optax Muon jit": ("optax", optax_muon),
}
REFERENCE = "torch Muon"
SAME_ITERATION = ("hasten Muon",)
OTHER_ITERATION = ("hasten Muon polar_express", "hasten TurboMuon")


# -- a contender in its own process -----------------------------------------------------------------------------------


def given_matrices(size: str) -> dict[str, Tensor]:
    """The matrices whose steps are held against the exact factor."""
    generator = torch.Generator().manual_seed(1)
    small = 8 if size == "trial" else 1
    n = 256 // small
    u, v = (torch.linalg.qr(torch.randn(n, n, generator=generator)).Q for _ in range(2))
    return {
        "Gaussian": torch.randn(2 * n, 2 * n, generator=generator),
        "Gaussian 1:4": torch.randn(n, 4 * n, generator=generator),
        "1/k": u / torch.arange(1, n + 1) @ v,
    }


def orthogonality(build: Build, given: dict[str, Tensor]) -> dict[str, float]:
    """Relative errors of the first step from zero, after the best multiple."""
    found = {}
    for kind, gradient in given.items():
        parameter = torch.nn.Parameter(torch.zeros_like(gradient))
        parameter.grad = gradient.clone()
        stepper = build([parameter])
        stepper.step()
        step = -stepper.values().double()
        u, _, v = torch.linalg.svd(gradient.double(), full_matrices=False)
        wanted = u @ v
        step = step * ((step * wanted).sum() / step.square().sum())
        found[kind] = float((step - wanted).norm() / wanted.norm())
    return found


class Bench:
    """An optimizer with its matrices and their gradients."""

    def __init__(self, name: str, size: str) -> None:
        build = CONTENDERS[name][1]
        self.errors = orthogonality(build, given_matrices(size))
        generator = torch.Generator().manual_seed(0)
        self.params = [torch.nn.Parameter(torch.randn(s, generator=generator)) for s in SIZES[size]]
        self.grads = [torch.randn(s, generator=generator) for s in SIZES[size]]
        for p in self.params:
            p.grad = torch.empty_like(p)
        self.factors = {
            shape: (torch.randn(shape).bfloat16(), torch.randn(shape[0], shape[0]).bfloat16())
            for shape in {(min(s), max(s)) for s in SIZES[size]}
        }
        self.counts = Counter((min(s), max(s)) for s in SIZES[size])
        self.restore()
        started = time.perf_counter()
        self.stepper = build(self.params)
        self.stepper.step()
        self.first = time.perf_counter() - started
        before = self.stepper.values().clone()
        self.step()
        self.step()
        if torch.equal(before, self.stepper.values()):
            raise RuntimeError("the steps move nothing")

    def restore(self) -> None:
        """Put back the gradients: some libraries overwrite them."""
        for p, g in zip(self.params, self.grads, strict=True):
            p.grad = p.grad.copy_(g) if p.grad is not None else g.clone()

    def step(self) -> float:
        """Seconds of one step."""
        self.restore()
        started = time.perf_counter()
        self.stepper.step()
        return time.perf_counter() - started

    def limit(self) -> float:
        """Seconds of the products of a whole step, from a few of every shape."""
        total = 0.0
        for shape, (x, a) in self.factors.items():
            times = []
            for _ in range(5):
                started = time.perf_counter()
                x @ x.mT
                a @ a
                a @ x
                times.append(time.perf_counter() - started)
            total += STEPS * self.counts[shape] * statistics.median(times)
        return total

    def visit(self, number: int) -> dict[str, float]:
        """So many steps, and the limit around them."""
        before = self.limit()
        seconds = statistics.median(self.step() for _ in range(number))
        return {"step": seconds, "limit": (before + self.limit()) / 2}

    def peak(self) -> dict[str, float]:
        """The most that one step adds to the peak of resident memory, in copies of the largest matrix."""
        grown = []
        for _ in range(3):
            self.restore()
            before = machine.reset_peak()
            self.stepper.step()
            grown.append(machine.peak() - before)
        return {"transient": statistics.median(grown) / (4 * max(p.numel() for p in self.params))}


def serve(name: str, size: str, steps: int) -> None:
    """Answer ``visit`` and ``peak`` until the end of the input."""
    logging.disable(logging.WARNING)
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a library prints must not reach the parent as an answer
    bench = Bench(name, size)
    print(json.dumps({"first": bench.first, "errors": bench.errors}), file=answers, flush=True)
    for line in sys.stdin:
        found = bench.visit(steps) if line.strip() == "visit" else bench.peak()
        print(json.dumps(found), file=answers, flush=True)


# -- the rounds -------------------------------------------------------------------------------------------------------


@dataclass
class Row:
    """What was measured of one contender at one size."""

    name: str
    size: str
    first: float = float("nan")
    errors: dict[str, float] = field(default_factory=dict)
    steps: list[float] = field(default_factory=list)
    limits: list[float] = field(default_factory=list)
    transient: float = float("nan")
    failure: str = ""

    def ratios(self) -> list[float]:
        """Step over limit, by round."""
        return [step / limit for step, limit in zip(self.steps, self.limits, strict=True)]


class Contender:
    """The parent's end of a process."""

    def __init__(self, row: Row, threads: int, steps: int) -> None:
        self.row = row
        self.errors = tempfile.TemporaryFile("w+")  # noqa: SIM115, lives as long; an unread pipe would fill up
        command = [sys.executable, "-m", "benchmarks.matrices", "--serve", row.name, "--sizes", row.size]
        self.process = subprocess.Popen(
            [*command, "--steps", str(steps)],
            env={**os.environ, "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            text=True,
        )
        started = self.answer()
        row.first, row.errors = started.get("first", float("nan")), started.get("errors", {})

    def ask(self, what: str) -> dict[str, Any]:
        """A command, and its answer."""
        assert self.process.stdin is not None
        print(what, file=self.process.stdin, flush=True)
        return self.answer()

    def answer(self) -> dict[str, Any]:
        """One line of the process; empty, with the reason in the row, if it has ended."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            self.errors.seek(0)
            last = self.errors.read().strip().splitlines()
            self.row.failure = last[-1][:200] if last else f"ended with {self.process.wait()}"
            return {}
        found: dict[str, Any] = json.loads(line)
        return found

    def visit(self) -> None:
        """Some steps."""
        found = self.ask("visit")
        if found:
            self.row.steps.append(found["step"])
            self.row.limits.append(found["limit"])


def measure(names: list[str], size: str, options: argparse.Namespace) -> list[Row]:
    """All contenders, interleaved."""
    rows, running = [], []
    for name in names:
        row = Row(name, size)
        rows.append(row)
        if importlib.util.find_spec(CONTENDERS[name][0]) is None:
            row.failure = "not installed"
            continue
        contender = Contender(row, options.threads, options.steps)
        if not row.failure:
            running.append(contender)
    try:
        for number in range(options.rounds):
            for shift in range(len(running)):
                contender = running[(number + shift) % len(running)]
                if not contender.row.failure:
                    contender.visit()
        for contender in running if machine.can_measure_peaks() else ():
            if not contender.row.failure:
                contender.row.transient = contender.ask("peak").get("transient", float("nan"))
    finally:
        for contender in running:
            contender.process.communicate()
    return rows


def verdict(row: Row, rows: list[Row]) -> tuple[str, str]:
    """What is to be reached, and whether it was; for our rows only."""
    if row.name in SAME_ITERATION:
        return f"≤ {EQUAL} × limit", "yes" if statistics.median(row.ratios()) <= EQUAL else "**no**"
    reference = next((r for r in rows if r.name == REFERENCE and r.steps), None)
    if row.name not in OTHER_ITERATION or reference is None:
        return "", ""
    share = of_reference(row, reference)
    worse = [kind for kind, error in row.errors.items() if error > 1.01 * reference.errors[kind]]
    failed = [f"{share:.2f}"] * (share > FEWER) + [f"less orthogonal: {kind}" for kind in worse]
    return f"≤ {FEWER} × {REFERENCE}, as orthogonal", "**no**: " + ", ".join(failed) if failed else "yes"


def of_reference(row: Row, reference: Row) -> float:
    """Median over the rounds of the step over the reference's, each over its own limit."""
    return statistics.median(a / b for a, b in zip(row.ratios(), reference.ratios(), strict=True))


def markdown(rows: list[Row], record: dict[str, Any]) -> str:
    """The page."""
    columns = ["contender", "step ms", "× limit (quartiles)", f"× {REFERENCE}", "error: Gaussian, 1:4, 1/k"]
    columns += ["to reach", "reached", "transient", "first step s"]
    tables = []
    for size in dict.fromkeys(row.size for row in rows):
        mine = [row for row in rows if row.size == size]
        reference = next((row for row in mine if row.name == REFERENCE and row.steps), None)
        cells = []
        for row in mine:
            if row.failure or not row.steps:
                cells.append([row.name, row.failure, *[""] * (len(columns) - 2)])
                continue
            low, middle, high = (
                statistics.quantiles(row.ratios(), n=4, method="inclusive")
                if len(row.steps) > 1
                else row.ratios() * 3
            )
            cells.append(
                [
                    row.name,
                    f"{1e3 * statistics.median(row.steps):.0f}",
                    f"{middle:.2f} ({low:.2f}..{high:.2f})",
                    "" if reference is None else f"{of_reference(row, reference):.2f}",
                    ", ".join(f"{error:.3f}" for error in row.errors.values()),
                    *verdict(row, mine),
                    f"{row.transient:.1f}",
                    f"{row.first:.1f}",
                ]
            )
        shapes = ", ".join(f"{n} × {s[0]}×{s[1]}" for s, n in Counter(SIZES[size]).items())
        tables.append(Table(f"{size}: {shapes}", columns, cells).markdown())
    footer = (
        f"{record['threads']} threads, {record['rounds']} rounds of {record['steps']} steps. Processor time used by "
        f"other programs meanwhile: {record['others']:.0%}. Torch {record['torch']}, Python {record['python']}.\n\n"
        f"Regenerate with `{record['command']}`.\n"
    )
    return "\n\n".join(["# Muon", PROTOCOL, *tables, footer])


def main() -> None:
    """Measure, judge, write."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.matrices", description=__doc__)
    parser.add_argument("--sizes", default="transformer,square", help=f"of {', '.join(SIZES)}")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=3, help="steps of a visit")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--only", default=",".join(CONTENDERS), help="comma-separated contenders")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results")
    parser.add_argument("--serve", default="", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve(options.serve, options.sizes, options.steps)
        return
    names, sizes = options.only.split(","), options.sizes.split(",")
    for given, known in ((names, CONTENDERS), (sizes, SIZES)):
        for name in given:
            if name not in known:
                parser.error(f"{name!r} is not one of {', '.join(known)}")
    if min(options.rounds, options.steps, options.threads) < 1:
        parser.error("rounds, steps and threads must be at least 1")
    busy, started = machine.busy_seconds(), os.times()
    rows = [row for size in sizes for row in measure(names, size, options)]
    busy, ended = machine.busy_seconds() - busy, os.times()
    own = sum(ended[:4]) - sum(started[:4])
    record: dict[str, Any] = {
        "rounds": options.rounds,
        "steps": options.steps,
        "threads": options.threads,
        "others": max(0.0, 1 - own / busy) if busy else 0.0,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "command": " ".join(["python -m benchmarks.matrices", *sys.argv[1:]]).strip(),
        "protocol": PROTOCOL,
    }
    page = markdown(rows, record)
    record["rows"] = [asdict(row) for row in rows]
    options.out.mkdir(parents=True, exist_ok=True)
    write_atomically(options.out / "matrices.json", json.dumps(record, indent=1) + "\n")
    write_atomically(options.out / "matrices.md", page)
    print(page)


if __name__ == "__main__":
    main()
