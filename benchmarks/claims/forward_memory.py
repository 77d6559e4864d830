"""Training a transformer in forward mode: how much memory it saves, and what that costs in seconds.

Every case runs in a process of its own, which reads its peak resident memory from Linux's ``/proc``.
Regenerate with ``python -m benchmarks.claims.forward_memory``.
"""

from __future__ import annotations

import ctypes
import dataclasses
import gc
import multiprocessing
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from rich.progress import track
from torch import Tensor
from torch.utils.checkpoint import checkpoint

import hasten
from benchmarks.claims.claim import RESULTS, Check, Claim, Table, command_line
from hasten.oracles import ForwardMode
from hasten.problems.language_model import LanguageModel, parameter_count
from hasten.problems.text import random_windows, standard_library_text

NAME = "forward_memory"
MIB = 2**20
KNOWN = 64 * MIB
"""Bytes of the allocation that the measurement is tried on."""
REVERSE, CHECKPOINTED = "reverse mode, SGD", "reverse mode, SGD, every block checkpointed"
GIVEN, NESTEROV = "forward mode, subspace descent, ℓ given", "forward mode, subspace Nesterov, ℓ estimated"
CHUNKED = "forward mode, subspace descent, ℓ given, 4 directions at once"
DERIVATIVES = {GIVEN: 1, NESTEROV: 3, CHUNKED: 4}
"""Directional derivatives in a step: r, and two for the estimate of ℓ."""
_MMAP_THRESHOLD, _TRIM_THRESHOLD = -3, -1  # of mallopt, malloc.h


@dataclasses.dataclass(frozen=True)
class Case:
    """One method on one model: `layers` blocks of `width`, a window of `context` bytes, batch 1."""

    method: str
    context: int
    layers: int = 12
    width: int = 256


@dataclasses.dataclass(frozen=True)
class Reading:
    """What one process measured, in bytes and seconds; `forward` is one pass without gradients."""

    parameters: int
    peak: int
    seconds: float
    forward: float


class Checkpointed(LanguageModel):
    """The same model, whose backward pass computes the activations of every block again."""

    def forward(self, symbols: Tensor) -> Tensor:
        """Logits of the next symbol."""
        x = self.symbol(symbols) + self.position.weight[: symbols.shape[1]]
        for block in self.blocks:
            x = checkpoint(block, x, use_reentrant=False)
        logits: Tensor = self.logits(self.norm(x))
        return logits


def resident(field: str) -> int:
    """Bytes of physical memory: ``VmRSS`` now, or ``VmHWM``, the most since it was reset."""
    lines = Path("/proc/self/status").read_text("ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field + ":")) * 1024


def peak_above(action: Callable[[], object]) -> int:
    """The most physical memory during the action beyond what was held before it."""
    libc = ctypes.CDLL(None)
    # Freed tensors go back to the system at once, so that the peak is that of live ones.
    libc.mallopt(_MMAP_THRESHOLD, MIB // 16)
    libc.mallopt(_TRIM_THRESHOLD, MIB // 16)
    gc.collect()
    libc.malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5", "ascii")
    before = resident("VmRSS")
    action()
    return resident("VmHWM") - before


def known_allocation() -> int:
    """What the measurement says of a tensor of `KNOWN` bytes that is freed before the action ends."""

    def allocate() -> None:
        torch.ones(KNOWN // 4)

    allocate()
    return peak_above(allocate)


def measure(case: Case) -> Reading:
    """One step of training after a short one, which leaves the optimizer's state in place."""
    torch.manual_seed(0)
    kind = Checkpointed if case.method == CHECKPOINTED else LanguageModel
    model = kind(context=case.context, width=case.width, depth=case.layers, heads=max(1, case.width // 64))
    text, generator = standard_library_text().train, torch.Generator().manual_seed(0)
    step = stepper(case.method, model)
    step(*random_windows(text, 1, 32, generator))
    batch = random_windows(text, 1, case.context, generator)
    seconds = []

    def timed() -> None:
        begun = time.perf_counter()
        step(*batch)
        seconds.append(time.perf_counter() - begun)

    peak = peak_above(timed)
    with torch.no_grad():
        begun = time.perf_counter()
        model.loss(*batch)
        forward = time.perf_counter() - begun
    return Reading(parameter_count(model), peak, seconds[0], forward)


def stepper(method: str, model: LanguageModel) -> Callable[[Tensor, Tensor], object]:
    """One step of a method on a batch."""
    if method in (REVERSE, CHECKPOINTED):
        sgd = torch.optim.SGD(model.parameters(), lr=1e-3)

        def backpropagate(inputs: Tensor, targets: Tensor) -> None:
            model.loss(inputs, targets).backward()
            sgd.step()
            sgd.zero_grad()

        return backpropagate
    optimizer: hasten.Optimizer
    if method == NESTEROV:
        optimizer = hasten.SubspaceNesterov(model, rank=1, oracle=ForwardMode())
    else:
        oracle = ForwardMode(chunk=DERIVATIVES[method])
        optimizer = hasten.SubspaceGradientDescent(
            model, rank=DERIVATIVES[method], smoothness=1e6, oracle=oracle
        )
    return lambda inputs, targets: optimizer.step(lambda: model.loss(inputs, targets))


def cases(quick: bool) -> list[tuple[Case, int]]:
    """Every case, and how often it is measured."""
    main = (REVERSE, CHECKPOINTED, GIVEN, NESTEROV)
    if quick:
        return [(Case(method, 1024, 8, 64), 1) for method in main]
    return [
        *((Case(method, context), 3) for context in (1024, 2048) for method in main),
        (Case(CHUNKED, 2048), 3),
        *((Case(method, 4096), 1) for method in main),
    ]


def readings(quick: bool) -> tuple[dict[Case, Reading], int]:
    """The median of every case, measured in turns, and the known allocation's."""
    plan = cases(quick)
    queue = [case for turn in range(3) for case, times in plan if turn < times]
    found: dict[Case, list[Reading]] = {case: [] for case, _ in plan}
    # A fresh interpreter for each: what one case leaves behind, the next cannot reuse.
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as fresh:
        known = fresh.apply(known_allocation)
        for case in track(queue, description=NAME, transient=True):
            found[case].append(fresh.apply(measure, (case,)))
    return {case: _median(several) for case, several in found.items()}, known


def _median(several: list[Reading]) -> Reading:
    columns = zip(*(dataclasses.astuple(reading) for reading in several), strict=True)
    parameters, peak, seconds, forward = (statistics.median(column) for column in columns)
    return Reading(int(parameters), int(peak), seconds, forward)


def table(found: dict[Case, Reading]) -> Table:
    """Memory and its price."""
    rows = []
    for case, reading in found.items():
        reverse = found[dataclasses.replace(case, method=REVERSE)]
        count = DERIVATIVES.get(case.method)
        each = ["–", "–"]
        if count is not None:
            each = [f"{reading.seconds / count:.2f}", f"{reading.seconds / count / reading.forward:.1f}"]
        rows.append(
            [
                f"{case.context}",
                case.method,
                f"{reading.peak / MIB:.0f}",
                f"{reading.peak / reverse.peak:.2f}",
                f"{reading.peak / (4 * reading.parameters):.1f}",
                f"{reading.seconds:.2f}",
                f"{reading.seconds / reverse.seconds:.1f}",
                *each,
            ]
        )
    columns = [
        "context",
        "method",
        "peak, MiB",
        "of reverse mode's",
        "in vectors of all parameters",
        "s a step",
        "of reverse mode's",
        "s a directional derivative",
        "in forward passes",
    ]
    return Table(
        "Peak memory above parameters and optimizer state in one step, and its seconds", columns, rows
    )


def checks(found: dict[Case, Reading], known: int) -> list[Check]:
    """The measurement itself, and the claim at the longest context and, with ℓ given, at half of it."""
    error = abs(known / KNOWN - 1)
    statements = [
        Check(
            "the measurement, on a tensor of 64 MiB made and freed",
            "its size",
            "within 2 %",
            f"{known / MIB:.1f} MiB",
            error < 0.02,
        )
    ]
    contexts = sorted({case.context for case in found})
    asked = [(NESTEROV, contexts[-1]), (GIVEN, contexts[-1])]
    if len(contexts) > 1:
        asked.append((GIVEN, contexts[-2]))
    for method, context in asked:
        case = next(c for c in found if c.method == method and c.context == context)
        reverse = found[dataclasses.replace(case, method=REVERSE)].peak
        share = found[case].peak / reverse
        statements.append(
            Check(
                f"peak of {method}, over reverse mode's, at a context of {context}",
                f"{reverse / MIB:.0f} MiB",
                "< 1/3",
                f"{share:.2f}",
                share < 1 / 3,
            )
        )
    return statements


def picture(found: dict[Case, Reading], path: Path) -> None:
    """Memory against seconds: one line a method, one point a context."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, (memory, price) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for method in dict.fromkeys(case.method for case in found):
        own = [(case.context, reading) for case, reading in found.items() if case.method == method]
        contexts = [context for context, _ in own]
        memory.plot(contexts, [reading.peak / MIB for _, reading in own], marker="o", label=method)
        price.plot(contexts, [reading.seconds for _, reading in own], marker="o")
    for axis, label in (
        (memory, "peak memory above the state, MiB"),
        (price, "seconds a step (other work ran beside)"),
    ):
        axis.set_xscale("log", base=2)
        axis.set_yscale("log")
        axis.set_xlabel("context, batch 1")
        axis.set_ylabel(label)
        axis.set_xticks(
            sorted({c.context for c in found}), [str(c) for c in sorted({c.context for c in found})]
        )
    figure.legend(loc="outside lower center", ncols=2, fontsize=8)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def run(quick: bool = False, folder: Path = RESULTS) -> Claim:
    """Measure every case and check the statements."""
    found, known = readings(quick)
    picture(found, folder / f"{NAME}.png")
    parameters = [reading.parameters for reading in found.values()]
    first = next(iter(found))
    return Claim(
        NAME,
        "A transformer trained in forward mode in less than a third of reverse mode's memory",
        "the aim of forward mode in Omiya, Poirion & Takeda 2026 (arXiv:2605.00740); "
        "checkpointing: Chen et al. 2016 (arXiv:1604.06174)",
        f"A decoder-only transformer of {first.layers} blocks of width {first.width} "
        f"({min(parameters) / 1e6:.1f} to {max(parameters) / 1e6:.1f} million parameters, float32), bytes of the "
        "standard library's text, batch 1. Peak resident memory during one step beyond what was held before it, when "
        "parameters and optimizer state were in place and gradients were not: reverse mode's gradients count, and so "
        "do forward mode's directions. Each case in its own process; memory that is freed goes back to the system. "
        "Reverse mode uses torch's attention, which keeps no matrix of scores. Balanced CountSketch, r = 1 (r = 4 "
        "where 4 directions go together); estimating ℓ takes two more directional derivatives a step. Medians of three "
        "runs in turns (one at the longest context). Seconds are indicative: other work ran on the same cores, and "
        "returning memory at once slows every method; the processor time below leaves out the cases' own processes.",
        checks(found, known),
        [table(found)],
        reading(found),
        [f"{NAME}.png"],
        quick,
    )


def reading(found: dict[Case, Reading]) -> list[str]:
    """What the table says, with its numbers."""
    longest = max(case.context for case in found)
    at = {case.method: value for case, value in found.items() if case.context == longest}
    mib = {method: f"{value.peak / MIB:.0f} MiB" for method, value in at.items()}
    against = {method: at[method].seconds / at[CHECKPOINTED].seconds for method in (GIVEN, NESTEROV)}
    return [
        "Forward mode's memory is one vector of all parameters for the direction (and another where ℓ is estimated, "
        "for the point that is moved from) and the activations of one layer, twice; it does not grow with depth. At "
        "short contexts the vectors dominate and little is saved; several directions at once cost a vector and the "
        "activations of a layer each.",
        f"Checkpointing is the stronger rival. At a context of {longest} it needs {mib[CHECKPOINTED]}, forward mode "
        f"{mib[GIVEN]} with ℓ given and {mib[NESTEROV]} with ℓ estimated, for {against[GIVEN]:.1f} and "
        f"{against[NESTEROV]:.1f} times the seconds, and what it returns is the whole gradient and not one number of "
        "it.",
        "A step of forward mode learns r numbers of the gradient, so it takes many more steps than reverse mode "
        "(see the claim on fine-tuning). Use it where reverse mode does not fit, even checkpointed, or does not exist.",
    ]


if __name__ == "__main__":
    command_line(run, NAME)
