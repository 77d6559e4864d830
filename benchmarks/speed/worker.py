"""One contender in a process of its own, stepping when told to.

Speaks JSON lines: says how the first step went, then answers ``visit`` and ``peak`` until the end
of its input.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import resource
import statistics
import sys
import time

import torch
from torch import Tensor

from benchmarks.speed import machine
from benchmarks.speed.contenders import named
from benchmarks.speed.steppers import Stepper

SHAPES: dict[str, list[tuple[int, ...]]] = {
    "large": [(1024, 1024)] * 20 + [(1024,)] * 20,
    "tiny": [(16, 16)] * 200 + [(16,)] * 200,
    "trial": [(64, 64)] * 2 + [(64,)] * 2,
}


def parameters_of(size: str) -> list[Tensor]:
    """Parameters with gradients, the same numbers for every contender."""
    generator = torch.Generator().manual_seed(0)
    found: list[Tensor] = []
    for shape in SHAPES[size]:
        parameter = torch.nn.Parameter(torch.randn(shape, generator=generator))
        parameter.grad = torch.randn(shape, generator=generator)
        found.append(parameter)
    return found


def processor_seconds() -> float:
    """User and system time of this process and of the compilers it started."""
    usages = (resource.getrusage(w) for w in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


class Bench:
    """A stepper with its gradients, restored before every step."""

    def __init__(self, name: str, size: str) -> None:
        contender = named(name)
        importlib.import_module(contender.module)
        self._parameters = parameters_of(size)
        self._gradients = [p.grad for p in self._parameters if p.grad is not None]
        self._pristine = [gradient.clone() for gradient in self._gradients]
        started, processor = time.perf_counter(), processor_seconds()
        self._stepper: Stepper = contender.build(self._parameters)
        self._stepper.step()
        self.first = {
            "first_seconds": time.perf_counter() - started,
            "first_processor_seconds": processor_seconds() - processor,
        }
        # State that exists only from the second step on (a second compiled graph, too).
        for _ in range(2):
            before = self._stepper.values().clone()
            self._restore()
            self._stepper.step()
        if torch.equal(before, self._stepper.values()):
            raise RuntimeError("the step moves nothing")
        self.first["state_bytes"] = self._stepper.state_bytes()

    def _restore(self) -> None:
        # Some libraries overwrite the gradients, and some drop them.
        for parameter, gradient, pristine in zip(
            self._parameters, self._gradients, self._pristine, strict=True
        ):
            parameter.grad = gradient.copy_(pristine)

    def visit(self, seconds: float) -> dict[str, float]:
        """Median seconds of a step over a stretch of at least so long and three steps."""
        times: list[float] = []
        while sum(times) < seconds or len(times) < 3:
            self._restore()
            started = time.perf_counter()
            self._stepper.step()
            times.append(time.perf_counter() - started)
        return {"seconds": statistics.median(times), "steps": len(times)}

    def peak(self) -> dict[str, float]:
        """Bytes by which one step raises the peak of resident memory; median of five steps."""
        if not machine.can_measure_peaks():
            return {"transient_bytes": float("nan")}
        raised = []
        for _ in range(5):
            self._restore()
            before = machine.reset_peak()
            self._stepper.step()
            raised.append(max(0, machine.peak() - before))
        return {"transient_bytes": statistics.median(raised)}


def main() -> None:
    """Serve until standard input ends."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--contender", required=True)
    parser.add_argument("--size", required=True, choices=SHAPES)
    parser.add_argument("--threads", type=int, required=True)
    options = parser.parse_args()
    # Whatever a library prints must not reach the parent as an answer.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    # Some libraries size their pools by the processors they may use, and heed nothing else.
    os.sched_setaffinity(0, set(sorted(os.sched_getaffinity(0))[: options.threads]))
    torch.set_num_threads(options.threads)

    def answer(record: dict[str, float]) -> None:
        answers.write(json.dumps(record) + "\n")
        answers.flush()

    bench = Bench(options.contender, options.size)
    answer(bench.first)
    for line in sys.stdin:
        command = json.loads(line)
        answer(bench.visit(command["visit"]) if "visit" in command else bench.peak())


if __name__ == "__main__":
    main()
