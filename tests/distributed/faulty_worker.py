"""A worker that trains, saves every second step, and comes to grief where it is told to.

As a program: ``python faulty_worker.py '{"rank": 0, "world": 2, ...}'``, with the arguments of `work`.
"""

from __future__ import annotations

import contextlib
import copy
import datetime
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch._dynamo  # DDP would import it later, within the short timeout of the group
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel as DDP

import hasten
from hasten.distributed import (
    ErrorFeedback,
    Hook,
    LocalSteps,
    SubspaceHook,
    TopK,
    checkpoint,
    latest,
    load,
    save,
)
from hasten.sketches import BalancedCountSketch

BAR = 0.01
"""MB in a bucket: the network goes into several."""


def meet(rank: int, world: int, folder: Path, timeout: float) -> None:
    """Become a member of a group with a short timeout, once all are there."""
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    torch.set_num_threads(1)
    store = dist.FileStore(str(folder / "store"), world)
    store.set_timeout(datetime.timedelta(seconds=120))
    store.set(f"here {rank}", "")
    store.wait([f"here {r}" for r in range(world)])
    dist.init_process_group(
        "gloo", store=store, rank=rank, world_size=world, timeout=datetime.timedelta(seconds=timeout)
    )


class Run:
    """A model, an optimizer and what carries gradients."""

    def __init__(self, kind: str, rank: int) -> None:
        torch.manual_seed(1)
        net = nn.Sequential(nn.Linear(8, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 1))
        self.rank, self.taken, self.hook = rank, 0, None
        self.model: nn.Module = net if kind == "local" else DDP(net, bucket_cap_mb=BAR)
        if kind == "local":
            self.opt: Any = LocalSteps(hasten.AdamW(net), every=3, exchange=ErrorFeedback(TopK(ratio=16)))
            return
        if kind == "subspace":
            self.hook = SubspaceHook(BalancedCountSketch(ratio=8), seed=3).register(self.model)
            self.opt = hasten.SubspaceNesterov(
                self.model, oracle=self.hook.oracle, smoothness=8.0, on_nonfinite="skip"
            )
        else:
            self.hook = Hook(ErrorFeedback(TopK(ratio=16))).register(self.model)
            self.opt = hasten.AdamW(self.model, on_nonfinite="skip")

    def loss(self) -> torch.Tensor:
        generator = torch.Generator().manual_seed(100 * self.rank + self.taken)
        x = torch.randn(16, 8, generator=generator)
        return (self.model(x) - x.sin().sum(1, keepdim=True)).square().mean()

    def step(self, factor: float = 1.0) -> None:
        self.opt.zero_grad()
        (self.loss() * factor).backward()
        self.opt.step()
        self.taken += 1

    def everything(self) -> dict[str, Any]:
        hook = None if self.hook is None else self.hook.state_dict()
        return copy.deepcopy(
            {
                "model": self.model.state_dict(),
                "opt": self.opt.state_dict(),
                "hook": hook,
                "taken": self.taken,
            }
        )

    def save(self, home: Path) -> None:
        save(home, self.model, self.opt, self.hook, step=self.taken, extra={"taken": self.taken})

    def load(self, home: Path) -> None:
        self.taken = load(home, self.model, self.opt, self.hook).extra["taken"]


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def hang() -> None:
    time.sleep(600)


def meeting_a_fault(run: Run, fault: str, noted: Callable[[], None]) -> None:
    """The next step, or the next save, is the last."""
    what, where = fault.split(" in ")
    act = {"death": die, "hang": hang}[what]

    def strike(*arguments: Any, **options: Any) -> None:
        noted()
        act()

    def half(path: Path, content: Any) -> None:
        path.write_bytes(b"half a file")
        strike()

    if where == "backward":
        next(run.model.parameters()).register_hook(
            strike
        )  # the first layer's comes last: others are on their way
    elif where == "exchange":
        (run.opt if run.hook is None else run.hook).exchange.mean = strike
    elif where == "write":
        checkpoint.write = half
    elif where == "move":
        checkpoint.write_atomically = strike
    else:
        raise ValueError(f"fault = {fault!r}")


@contextlib.contextmanager
def timed(folder: Path, rank: int) -> Iterator[None]:
    try:
        yield
    except BaseException:
        (folder / f"failed-{rank}").write_text(str(time.monotonic()))
        raise


def work(
    rank: int,
    world: int,
    folder: str,
    home: str,
    kind: str,
    steps: int = 8,
    fault: str = "",
    struck: int = -1,
    at: int = 5,
    timeout: float = 120.0,
) -> None:
    """Train to `steps`, from the latest checkpoint if there is one; the state at the end goes to ``folder/RANK.pt``."""
    place = Path(folder)
    meet(rank, world, place, timeout)
    run = Run(kind, rank)
    with timed(place, rank):
        if latest(home):
            run.load(Path(home))
        while run.taken < steps:
            if fault and rank == struck % world and run.taken == at:
                meeting_a_fault(run, fault, lambda: (place / "fault").write_text(str(time.monotonic())))
            run.step()
            if run.taken % 2 == 0:
                run.save(Path(home))
    torch.save(run.everything(), place / f"{rank}.pt")
    dist.destroy_process_group()


def as_process(arguments: dict[str, Any]) -> None:
    """`work`, with what it says to the terminal going to a file."""
    said = os.open(Path(arguments["folder"]) / f"said-{arguments['rank']}", os.O_CREAT | os.O_WRONLY)
    os.dup2(said, 1)
    os.dup2(said, 2)
    work(**arguments)


if __name__ == "__main__":
    as_process(json.loads(sys.argv[1]))
