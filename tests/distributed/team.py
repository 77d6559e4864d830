"""Workers that stay: processes with a gloo group on 127.0.0.1, which run functions for the tests.

A process that imports torch takes seconds, so a server does that once and workers are forked from it, and one team of
each size serves all tests of a test worker. A test hands it a function of the test module (found by name in the other
process, so it must be at the top level) and gets its results by rank; an exception in a worker comes back as
`TeamError`, with the worker's traceback.
"""

from __future__ import annotations

import datetime
import os
import queue
import socket
import traceback
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp


class TeamError(AssertionError):
    """What went wrong in a worker."""


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def join(rank: int, world: int, port: int, timeout: float = 60.0) -> None:
    """Become a member of a gloo group on this machine."""
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), RANK=str(rank), WORLD_SIZE=str(world))
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=world, timeout=datetime.timedelta(seconds=timeout))


def _serve(rank: int, world: int, port: int, orders: Any, answers: Any) -> None:
    join(rank, world, port)
    while (order := orders.get()) is not None:
        function, arguments = order
        try:
            torch.manual_seed(0)
            answers.put((rank, True, function(rank, world, *arguments)))
        except BaseException:
            answers.put((rank, False, traceback.format_exc()))
    dist.destroy_process_group()


class Team:
    """`world` processes in one group."""

    def __init__(self, world: int) -> None:
        context = mp.get_context("forkserver")
        context.set_forkserver_preload(["torch", "torch._dynamo", "hasten.distributed"])
        self.world = world
        self.broken = False
        """Whether a function failed in a worker: the others may be waiting for it, so nobody can be counted on."""
        self.orders = [context.Queue() for _ in range(world)]
        self.answers = context.Queue()
        port = free_port()
        self.members = [
            context.Process(
                target=_serve, args=(rank, world, port, self.orders[rank], self.answers), daemon=True
            )
            for rank in range(world)
        ]
        for member in self.members:
            member.start()

    def run(self, function: Callable[..., Any], *arguments: Any, seconds: float = 120.0) -> list[Any]:
        """What ``function(rank, world, *arguments)`` returns in every worker (plain data, or CPU tensors), by rank."""
        for order in self.orders:
            order.put((function, arguments))
        found: dict[int, Any] = {}
        failed: dict[int, str] = {}
        for _ in range(self.world):
            try:
                rank, well, value = self.answers.get(timeout=seconds)
            except queue.Empty:
                self.broken = True
                silent = sorted(set(range(self.world)) - found.keys() - failed.keys())
                said = "".join(f"\nrank {r}:\n{text}" for r, text in failed.items())
                raise TeamError(f"ranks {silent} did not answer within {seconds} s{said}") from None
            (found if well else failed)[rank] = value
        if failed:
            self.broken = True
            raise TeamError("\n".join(f"rank {rank}:\n{text}" for rank, text in sorted(failed.items())))
        return [found[rank] for rank in range(self.world)]

    def close(self) -> None:
        for order in self.orders:
            order.put(None)
        for member in self.members:
            member.join(0.1 if self.broken else 5)
            if member.is_alive():
                member.kill()
