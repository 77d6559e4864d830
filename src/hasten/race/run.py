"""One run: an optimizer, a seed, and what was measured, as it is kept on disk."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, fields
from typing import Any

FINISHED, DIVERGED = "finished", "diverged"


@dataclass(frozen=True)
class Point:
    """One evaluation on the way.

    Attributes:
        step: optimizer steps taken.
        samples: examples seen.
        seconds: time spent training, evaluations left out.
        train_loss: mean training loss since the point before (None at step 0).
        loss: the task's evaluation.
        oracle_calls: directional derivatives (or floats of gradients) learnt, where they are counted.
        bytes: sent by one worker so far, where there are several.

    Example:
        >>> Point(step=1, samples=8, seconds=0.1, train_loss=2.0, loss=1.9).loss
        1.9
    """

    step: int
    samples: int
    seconds: float
    train_loss: float | None
    loss: float
    oracle_calls: int | None = None
    bytes: float | None = None


@dataclass(frozen=True)
class Run:
    """What one optimizer did on one seed.

    Attributes:
        label: the entrant.
        seed: the race's seed, or the trial's number while tuning.
        lr: peak learning rate.
        options: arguments the optimizer was built from.
        status: "finished", or "diverged" when a loss stopped being finite.
        points: the evaluations, in order.
        steps: optimizer steps taken.
        step_ms: median time of a training step, in milliseconds.
        optimizer_ms: median time of the optimizer's part of it.
        state_bytes: optimizer state per trainable parameter, in bytes.
        digest: hash of everything that must not depend on when or where in the order it ran:
            losses and final parameters, to the last bit.

    Example:
        >>> point = Point(0, 0, 0.0, None, 2.0)
        >>> Run("Lion", 0, 1e-3, {}, FINISHED, (point,), 0, 1.0, 0.1, 4.0, "").final_loss
        2.0
    """

    label: str
    seed: int
    lr: float
    options: dict[str, Any]
    status: str
    points: tuple[Point, ...]
    steps: int
    step_ms: float
    optimizer_ms: float
    state_bytes: float
    digest: str

    @property
    def final_loss(self) -> float:
        """The last evaluation; infinite if the run diverged."""
        return self.points[-1].loss if self.status == FINISHED and self.points else math.inf

    def to_lines(self) -> str:
        """JSON lines: a header, one line for each point, and an end that proves completeness."""
        whole = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "points"}
        head = {"kind": "run", **{k: whole.pop(k) for k in ("label", "seed", "lr", "options")}}
        rows = [head, *({"kind": "point", **asdict(p)} for p in self.points), {"kind": "end", **whole}]
        return "".join(json.dumps(row) + "\n" for row in rows)

    @classmethod
    def from_lines(cls, text: str) -> Run:
        """The run that `to_lines` wrote.

        Raises:
            ValueError: if the lines are not a complete run.
        """
        rows = [json.loads(line) for line in text.splitlines()]
        kinds = [row.pop("kind", "") for row in rows]
        if len(rows) < 2 or kinds[0] != "run" or kinds[-1] != "end":
            raise ValueError("not a complete run")
        points = tuple(Point(**row) for row in rows[1:-1])
        return cls(points=points, **rows[0], **rows[-1])
