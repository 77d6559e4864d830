"""A Flower simulation in which a client's process is killed while it trains; prints who answered, and the model."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

os.environ.update(FLWR_TELEMETRY_ENABLED="0", RAY_USAGE_STATS_ENABLED="0", OMP_NUM_THREADS="1")
sys.path.insert(0, str(Path(__file__).parent))

from flwr.app import Context, Message
from flwr.simulation import run_simulation
from test_flower import CLIENTS, DIES, SKETCH, Watched, a_client, a_server

from hasten.distributed.federated import SketchMod

RAY = {"num_cpus": 1, "include_dashboard": False, "log_to_driver": False}


def kill(message: Message, context: Context, call_next: Any) -> Message:
    if int(message.content["config"]["server-round"]) == DIES and context.node_config["partition-id"] == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return call_next(message, context)


if __name__ == "__main__":
    found: dict[str, Any] = {}
    strategy = Watched(fraction_evaluate=0.0, min_train_nodes=CLIENTS)
    run_simulation(
        a_server(strategy, found),
        a_client({}, [kill, SketchMod(SKETCH)], die=lambda: None),
        CLIENTS,
        backend_config={"init_args": RAY, "client_resources": {"num_cpus": 1, "num_gpus": 0.0}},
    )
    found["arrays"] = {name: t.tolist() for name, t in found["arrays"].items() if name != "steps"}
    print(json.dumps({**found, "answered": strategy.answered, "failures": strategy.failures}))
