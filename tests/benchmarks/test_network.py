"""Links of a given speed: the formula, the throttle, and workers behind either kind."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import pytest
import torch.distributed as dist
from torch import ones
from torch.futures import Future

from benchmarks import network, switch
from benchmarks.network import Throttle, run, throttled, transfer_seconds
from hasten.wire import Wire

SOCKETS = """
import os, socket, sys, time
rank, there = int(os.environ["RANK"]), (os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]))
if rank == 0:
    with socket.create_server(there) as server:
        link, _ = server.accept()
        missing = 250_000 - len(link.recv(1))
        started = time.monotonic()
        while missing:
            missing -= len(link.recv(missing))
        open(sys.argv[1], "w").write(str(time.monotonic() - started))
else:
    for attempt in range(600):
        try:
            link = socket.create_connection(there)
            break
        except OSError:
            time.sleep(0.1)
    link.sendall(bytes(250_000))
sys.exit(3 * rank)
"""


def done(value: object = None) -> Future:
    future: Future = Future()
    future.set_result(value)
    return future


def test_transfer_seconds() -> None:
    assert transfer_seconds(1.25e6, 0, 10e6) == 1.0
    assert transfer_seconds(0, 3, 10e6, 0.25) == 0.75


def test_what_a_throttle_carries_comes_one_after_the_other_and_latency_overlaps() -> None:
    link = Throttle(8e6, latency=0.2)
    started = time.monotonic()
    futures = [link.carry(done(i), 100_000) for i in range(3)]  # 0.1 s each
    times = []
    for i, future in enumerate(futures):
        assert future.wait() == i
        times.append(time.monotonic() - started)
    link.close()
    for i, seconds in enumerate(times):
        assert 0.3 + 0.1 * i <= seconds < 0.3 + 0.1 * i + 0.1


def test_a_throttle_passes_errors_on() -> None:
    link, broken = Throttle(1e9), Future()
    broken.set_exception(ValueError("gone"))
    with pytest.raises(ValueError, match="gone"):
        link.carry(broken, 0).wait()
    link.close()


def test_wires_are_throttled_inside_the_block_only() -> None:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        wire, usual = Wire(), Wire._started
        with throttled(1e9, latency=0.2):
            started = time.monotonic()
            assert wire.sum(ones(2), "gradients").wait().tolist() == [1.0, 1.0]
            assert time.monotonic() - started >= 0.2
            wire.count("other", 0, 1e9 / 8 * 0.3, 0.0)  # moved before the next collective, over the same link
            started = time.monotonic()
            wire.sum(ones(2), "gradients").wait()
            assert time.monotonic() - started >= 0.5
        assert Wire._started is usual
    finally:
        dist.destroy_process_group()


def test_the_best_way_is_one_that_can(monkeypatch: pytest.MonkeyPatch) -> None:
    for limits, delays, latency, way in [
        (True, False, 0.0, "namespaces"),
        (True, False, 0.1, "throttle"),
        (True, True, 0.1, "namespaces"),
        (False, False, 0.0, "throttle"),
    ]:
        monkeypatch.setattr(switch, "limits", lambda possible=limits: possible)
        monkeypatch.setattr(switch, "delays", lambda possible=delays: possible)
        assert network.best_way(latency) == way


@pytest.mark.parametrize("way", ["namespaces", pytest.param("throttle", marks=pytest.mark.slow)])
def test_programs_run_behind_links(tmp_path: Path, way: str) -> None:
    """Bytes over plain sockets are shaped by namespaces; either way the programs run, and their statuses come back."""
    if way == "namespaces" and not switch.limits():
        pytest.skip("this machine cannot limit links between network namespaces")
    program = tmp_path / "program.py"
    program.write_text(SOCKETS)
    assert run([str(program), str(tmp_path / "seconds")], 2, 10e6, way=way) == [0, 3]
    seconds = float((tmp_path / "seconds").read_text())
    if way == "namespaces":
        expected = transfer_seconds(250_000 - switch.BURST, 1, 10e6)
        assert 0.95 * expected < seconds < 1.3 * expected


@pytest.mark.slow
def test_an_all_reduce_takes_what_the_formula_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        sys, "argv", ["", "--world", "2", "--bandwidth", "5e7", "--sizes", "1000000", "--out", str(tmp_path)]
    )
    network.main()
    rows = json.loads((tmp_path / "network.json").read_text())["rows"]
    assert [row["what"] for row in rows] == ["one way", "all-reduce"]
    assert [row["sent"] for row in rows] == [1e6, 1e6]
    for row in rows:
        assert 1.0 <= min(row["seconds"]) / row["predicted"] < 1.3
    assert "| all-reduce | 2 | 50 | 1 | 1 |" in (tmp_path / "network.md").read_text()
