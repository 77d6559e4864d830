"""Programs in network namespaces of their own, each behind a link that the kernel limits: a star with a router inside.

Needs Linux, ``unshare``, ``ip``, ``tc`` and users who may make namespaces; no root. Only the standard library is
imported, for the router is a process of its own: ``unshare -rn python -m benchmarks.switch PLAN``.
"""

from __future__ import annotations

import functools
import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

BURST = 16_000
"""Bytes that the token bucket lets through at once: less than what is to be measured, more than a packet."""
QUEUE = 4_000_000
"""Bytes that wait at a link before packets are dropped."""


@functools.cache
def limits() -> bool:
    """Whether this machine can limit the rate of a link between namespaces."""
    return _possible("tbf rate 1mbit burst 16kb latency 1s")


@functools.cache
def delays() -> bool:
    """Whether it can also delay what goes over it."""
    return limits() and _possible("netem delay 1ms")


def _possible(qdisc: str) -> bool:
    if not all(map(shutil.which, ("unshare", "nsenter", "ip", "tc"))):
        return False
    inside = f"ip link add v0 type veth peer name v1 && tc qdisc add dev v0 root {qdisc}"
    tried = subprocess.run(["unshare", "-rn", "sh", "-c", inside], capture_output=True, check=False)
    return tried.returncode == 0


def address(rank: int) -> str:
    """Where a program listens."""
    return f"10.77.{rank}.2"


def launch(
    programs: Sequence[Sequence[str]],
    environments: Sequence[dict[str, str]],
    bandwidth: float,
    latency: float = 0.0,
) -> list[int]:
    """Run programs behind links of `bandwidth` bits per second each way; returns their exit statuses.

    Args:
        programs: command lines.
        environments: of each.
        bandwidth: of every program's link, in bits per second, in each direction.
        latency: seconds that every packet takes on top, from one program to another; needs netem.
    """
    plan = {
        "programs": [list(program) for program in programs],
        "environments": environments,
        "bandwidth": bandwidth,
        "latency": latency,
    }
    command = ["unshare", "-rn", sys.executable, "-m", "benchmarks.switch"]
    done = subprocess.run(command, input=json.dumps(plan), stdout=subprocess.PIPE, text=True, check=True)
    found: list[int] = json.loads(done.stdout.splitlines()[-1])
    return found


def route(plan: dict[str, Any]) -> list[int]:
    """Be the router: make the namespaces and links, start the programs and wait for them."""
    _run("ip link set lo up")
    with open("/proc/sys/net/ipv4/ip_forward", "w") as forwarding:
        forwarding.write("1")
    members = []
    for rank, (program, environment) in enumerate(zip(plan["programs"], plan["environments"], strict=True)):
        waiting = ["unshare", "-n", "sh", "-c", 'echo here; read go; exec "$@" 1>&2', "member", *program]
        member = subprocess.Popen(
            waiting, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        members.append(member)
        assert member.stdout is not None
        member.stdout.readline()  # it is in its own namespace
        here, inside = f"v{rank}", f"nsenter -t {member.pid} -n"
        _run(f"ip link add {here} type veth peer name eth0 netns {member.pid}")
        _run(f"ip addr add 10.77.{rank}.1/24 dev {here}")
        _run(f"ip link set {here} up")
        _run(f"{inside} ip link set lo up")
        _run(f"{inside} ip addr add {address(rank)}/24 dev eth0")
        _run(f"{inside} ip link set eth0 up")
        _run(f"{inside} ip route add default via 10.77.{rank}.1")
        _limit(inside, "eth0", plan["bandwidth"], plan["latency"])
        _limit("", here, plan["bandwidth"], 0.0)
    try:
        for member in members:
            assert member.stdin is not None
            member.stdin.write("go\n")
            member.stdin.flush()
        return [member.wait() for member in members]
    finally:
        for member in members:
            member.send_signal(signal.SIGKILL)


def _limit(inside: str, device: str, bandwidth: float, latency: float) -> None:
    parent = "root"
    if latency:
        _run(f"{inside} tc qdisc add dev {device} root handle 1: netem delay {latency * 1e3}ms limit 100000")
        parent = "parent 1:"
    rate = f"rate {round(bandwidth)}bit burst {BURST} limit {QUEUE}"
    _run(f"{inside} tc qdisc add dev {device} {parent} tbf {rate}")


def _run(command: str) -> None:
    subprocess.run(command.split(), check=True)


if __name__ == "__main__":
    print(json.dumps(route(json.loads(sys.stdin.read()))))
