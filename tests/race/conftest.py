"""Small races that finish in a moment."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("plotly", reason="the extra 'race' is not installed")
pytest.importorskip("matplotlib", reason="the extra 'race' is not installed")
pytest.importorskip("typer", reason="the extra 'race' is not installed")

from hasten.race import Race, race

OWN_TASK = '''
"""A task of a user's own: a line through points, and a model with dropout."""
import torch
from torch import nn
from hasten.race import Task


def line(seed):
    """Fit a line."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Dropout(0.1), nn.Linear(8, 1))
    x = torch.randn(120, 3, generator=torch.Generator().manual_seed(1))
    y = x.sum(1, keepdim=True)

    def loss(rows):
        return (model(x[rows]) - y[rows]).square().mean()

    return Task(
        model=model,
        loss=loss,
        sample=lambda generator: torch.randint(100, (8,), generator=generator),
        evaluate=lambda: float(loss(torch.arange(100, 120))),
        samples_per_step=8,
    )


def slow(seed):
    """The same, one step a hundredth of a second."""
    import time

    task = line(seed)
    loss = task.loss

    def slow_loss(rows):
        time.sleep(0.01)
        return loss(rows)

    task.loss = slow_loss
    return task


def broken(seed):
    raise KeyError("no such data set")


def wrong(seed):
    return 3
'''


@pytest.fixture
def own_task(tmp_path: Path) -> Path:
    """A file with tasks of a user's own."""
    path = tmp_path / "own.py"
    path.write_text(OWN_TASK)
    return path


@pytest.fixture
def small_race(tmp_path: Path) -> Callable[..., Race]:
    """A function that races on a surface, quickly, into a fresh folder."""

    def run(optimizers: str = "SGD,AdamW,Lion", **options: object) -> Race:
        settings: dict[str, object] = {
            "task": "rosenbrock", "seeds": 2, "steps": 30, "evaluations": 6, "out": tmp_path / "race",
        }  # fmt: skip
        return race(optimizers=optimizers, **{**settings, **options})  # type: ignore[arg-type]

    return run
