"""The Flower pair inside Flower's own simulation runtime.

Flower runs simulated clients in actors of Ray, a large package. Here they are run in this process in their place, all
else of the runtime (messages, link state, sampling of nodes, errors as replies) being Flower's; where Ray is there, a
client is killed inside one of its actors.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

import hasten
from hasten.sketches import BalancedCountSketch

os.environ["FLWR_TELEMETRY_ENABLED"] = "0"  # read when flwr is imported
pytest.importorskip("flwr", reason="needs the extra: pip install 'hasten[federated]'")

from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.server.superlink.fleet.vce.backend import Backend
from flwr.serverapp import Grid, ServerApp
from flwr.simulation import run_simulation

from hasten.distributed.federated import SketchMod, SketchStrategy

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

SKETCH = BalancedCountSketch(ratio=4)
CLIENTS = 4
ROUNDS = 3
DIES = 2
"""In this round the second of the clients that take part fails."""


class Here(Backend):
    """Clients in this process, one at a time."""

    def __init__(self, config: Any) -> None:
        pass

    def build(self, app_fn: Callable[[], ClientApp]) -> None:
        self.app = app_fn()

    num_workers = 1

    def is_worker_idle(self) -> bool:
        return True

    def terminate(self) -> None:
        pass

    def process_message(self, message: Message, context: Context) -> tuple[Message, Context]:
        return self.app(message, context), context


@pytest.fixture
def simulate(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    module = ModuleType("raybackend")
    module.RayBackend = Here  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "flwr.server.superlink.fleet.vce.backend.raybackend", module)
    return lambda server, client: run_simulation(server, client, CLIENTS, backend_name="here")


def start() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = {"weight": (6, 4), "bias": (6,), "running_var": (6,)}
    arrays = {name: torch.randn(s, generator=generator, dtype=torch.float64) for name, s in shapes.items()}
    return {**arrays, "steps": torch.tensor(5)}


def trained(arrays: dict[str, Tensor], client: int, round_: int) -> dict[str, Tensor]:
    """Gradient steps of this client's own, for all the test knows."""
    return {
        name: t if name == "steps" else t - 0.1 * torch.sinh(t / 2 - client) - 0.01 * round_
        for name, t in arrays.items()
    }


def examples(client: int) -> int:
    return 10 + 7 * client


def out_of_battery() -> None:
    raise RuntimeError("out of battery")


def a_client(
    took_part: dict[int, list[int]], mods: list[Any], die: Callable[[], None] = out_of_battery
) -> ClientApp:
    """An app as for FedAvg: that nothing in it knows of sketches is part of what is tested."""
    app = ClientApp(mods=mods)

    @app.train()
    def train(message: Message, context: Context) -> Message:
        client = int(context.node_config["partition-id"])
        round_ = int(message.content["config"]["server-round"])
        took_part.setdefault(round_, []).append(client)
        if round_ == DIES and len(took_part[round_]) == 2:
            die()
        arrays = trained(message.content["arrays"].to_torch_state_dict(), client, round_)
        metrics = MetricRecord({"num-examples": examples(client), "loss": float(client)})
        return Message(RecordDict({"arrays": ArrayRecord(arrays), "metrics": metrics}), reply_to=message)

    @app.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        assert message.content["arrays"].to_torch_state_dict()["weight"].shape == (6, 4)
        return Message(
            RecordDict({"metrics": MetricRecord({"num-examples": 1, "seen": 1})}), reply_to=message
        )

    return app


def a_server(strategy: SketchStrategy, found: dict[str, Any]) -> ServerApp:
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        result = strategy.start(grid, ArrayRecord(start()), num_rounds=ROUNDS, timeout=60)
        found["arrays"] = result.arrays.to_torch_state_dict()
        found["metrics"] = {r: dict(m) for r, m in result.train_metrics_clientapp.items()}
        found["evaluated"] = {r: dict(m) for r, m in result.evaluate_metrics_clientapp.items()}

    return app


def expected_model(answered: dict[int, list[int]]) -> dict[str, Tensor]:
    """The same in dense matrices, with Nesterov's momentum outside."""
    arrays, velocity = start(), {"weight": torch.zeros(6, 4), "bias": torch.zeros(6)}
    for round_, clients in answered.items():
        if not clients:
            continue
        total = sum(map(examples, clients))
        after = {c: trained(arrays, c, round_) for c in clients}
        mean = {
            name: sum(examples(c) / total * after[c][name] for c in clients)
            for name in ("weight", "bias", "running_var")
        }
        draw = BalancedCountSketch(rank=6).draw(24, seed=3, step=round_, block=0)
        P = draw.columns(dtype=torch.float64).T
        ways = {
            "weight": (P @ P.T @ (arrays["weight"] - mean["weight"]).reshape(-1)).view(6, 4),
            "bias": arrays["bias"] - mean["bias"],
        }
        for name, way in ways.items():
            velocity[name] = 0.5 * velocity[name] + way
            arrays[name] = arrays[name] - 0.2 * (way + 0.5 * velocity[name])
        arrays["running_var"] = mean["running_var"]
    return arrays


class Watched(SketchStrategy):
    """Remembers who answered, which the metric tells (the clients' loss is their number), and what failed."""

    def __init__(self, **fedavg: Any) -> None:
        outer = lambda params: hasten.Nesterov(params, lr=0.2, momentum=0.5)  # noqa: E731
        super().__init__(SKETCH, outer, averaged=["running_var"], seed=3, **fedavg)
        self.answered: dict[int, list[int]] = {}
        self.failures: list[str] = []

    def aggregate_train(self, server_round: int, replies: Iterable[Message]) -> Any:
        replies = list(replies)
        self.failures += [reply.error.reason for reply in replies if reply.has_error()]
        contents = [reply.content for reply in replies if not reply.has_error()]
        self.answered[server_round] = [int(c.metric_records["metrics"]["loss"]) for c in contents]
        return super().aggregate_train(server_round, replies)


def check(found: dict[str, Any], answered: dict[int, list[int]]) -> None:
    expected = expected_model(answered)
    assert found["arrays"].keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found["arrays"][name], value, rtol=0, atol=1e-12)
    for r, metrics in found["metrics"].items():
        clients = answered[r]
        total = sum(map(examples, clients))
        assert metrics["loss"] == pytest.approx(sum(c * examples(c) for c in clients) / total)


def test_half_of_the_clients_train_and_one_fails(simulate: Callable[..., None]) -> None:
    took_part: dict[int, list[int]] = {}
    found: dict[str, Any] = {}
    strategy = Watched(fraction_train=0.5)
    simulate(a_server(strategy, found), a_client(took_part, [SketchMod(SKETCH)]))
    assert {r: len(clients) for r, clients in took_part.items()} == {1: 2, 2: 2, 3: 2}
    assert {r: len(clients) for r, clients in strategy.answered.items()} == {1: 2, 2: 1, 3: 2}
    check(found, strategy.answered)
    assert all(metrics["seen"] == 1 for metrics in found["evaluated"].values())
    received, sent = (strategy.communication.parts[name] for name in ("displacements", "model"))
    assert received.received == (2 * ROUNDS - 1) * 8 * (6 + 6 + 6)
    assert sent.sent == 2 * ROUNDS * (8 * (24 + 6 + 6) + 8)


def test_a_client_with_another_sketch_is_left_out(simulate: Callable[..., None]) -> None:
    right, wrong = SketchMod(SKETCH), SketchMod(BalancedCountSketch(ratio=2))

    def either(message: Message, context: Context, call_next: Any) -> Message:
        mod = wrong if context.node_config["partition-id"] == 0 else right
        return mod(message, context, call_next)

    found: dict[str, Any] = {}
    strategy = Watched(fraction_evaluate=0.0, min_train_nodes=CLIENTS)
    simulate(a_server(strategy, found), a_client({}, [either], die=lambda: None))
    assert {r: sorted(clients) for r, clients in strategy.answered.items()} == {
        1: [1, 2, 3],
        2: [1, 2, 3],
        3: [1, 2, 3],
    }
    check(found, strategy.answered)
    assert len(strategy.failures) == ROUNDS
    assert all(
        "the client sketches by BalancedCountSketch(rank=None, ratio=2)" in said for said in strategy.failures
    )


def test_arguments_are_checked_where_they_are_given() -> None:
    with pytest.raises(TypeError, match="sketch = 4 is not allowed"):
        SketchMod(4)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="sketch = 4 is not allowed"):
        SketchStrategy(4)  # type: ignore[arg-type]


@pytest.mark.slow
def test_a_client_is_killed_in_its_process() -> None:
    pytest.importorskip("ray", reason="kills an actor of Ray: pip install 'flwr[simulation]'")
    script = Path(__file__).with_name("flower_in_ray.py")
    run = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stdout[-4000:] + run.stderr[-4000:]
    said = json.loads(run.stdout.splitlines()[-1])
    answered = {int(r): clients for r, clients in said["answered"].items()}
    assert sorted(answered[1]) == [0, 1, 2, 3]
    assert 1 not in answered[DIES]
    assert any("died unexpectedly" in failure for failure in said["failures"])
    arrays = {name: torch.tensor(values, dtype=torch.float64) for name, values in said["arrays"].items()}
    metrics = {int(r): m for r, m in said["metrics"].items()}
    check({"arrays": {**arrays, "steps": torch.tensor(5)}, "metrics": metrics}, answered)
