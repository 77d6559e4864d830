"""What a sentence does to single entries before, and after, the parts that need more than one."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import torch

from hasten.engine.composition import Composition, Tracker
from hasten.engine.flow import Flow
from hasten.engine.formula import Formula


class Segments:
    """The fused passes around the parts of tensor or matrix grain.

    Between the passes a direction is in the entry ``"direction"``; the gradient, as later parts see it, in ``"grad"``,
    or, where it is another tensor than the optimizer's gradient, in ``"gradient"``.
    """

    def __init__(self, composition: Composition) -> None:
        self.composition = composition
        self.before = range(composition.together.start)
        self.after = range(composition.together.stop, len(composition.parts))

    @cached_property
    def lead(self) -> Formula | None:
        """The pass before; None if the direction is the gradient still."""
        entries, tracker = self._probe(self.before)
        numbers = self._numbers(self.before)
        writes = self._led(tracker, dict.fromkeys(numbers, 0.5))
        if set(writes) == {"direction"} and writes["direction"] is entries["grad"]:
            return None
        inputs = (*(n for n in entries if n in tracker.read | set(writes)), *(n for n in MADE if n in writes))
        return Formula(
            inputs,
            numbers,
            tuple(writes),
            (),
            lambda e, n: (self._led(e, n), {}),
            self.composition.key("lead"),
        )

    @cached_property
    def finish(self) -> Formula:
        """The pass after."""
        entries, tracker = self._probe(self.after)
        numbers = self._numbers(self.after)
        writes = self._finished(tracker, dict.fromkeys(numbers, 0.5))
        inputs = tuple(n for n in entries if n in tracker.read | set(writes))
        return Formula(
            inputs, numbers, tuple(writes), (), lambda e, n: (self._finished(e, n), {}), self.composition.key("finish")
        )  # fmt: skip

    def _probe(self, parts: range) -> tuple[dict[str, Any], Tracker]:
        own = tuple(slot.name for slot in self.composition.slots if slot.part in parts)
        given = ("grad", *self.composition.extra_inputs) if 0 in parts else MADE
        entries = {name: torch.full((1,), 0.5) for name in ("param", *given, *own)}
        return entries, Tracker(entries)

    def _numbers(self, parts: range) -> tuple[str, ...]:
        return tuple(f"{i}.{n}" for i in parts for n in self.composition.number_names(i, measured=True))

    def _led(self, entries: Any, numbers: Any) -> dict[str, Any]:
        flow = self.composition.start(entries)
        self.composition.follow(flow, entries, numbers, self.before)
        made = {} if flow.grad is flow.direction or flow.grad is entries["grad"] else {"gradient": flow.grad}
        return {**flow.writes, "direction": flow.direction, **made}

    @cached_property
    def leads(self) -> bool:
        """Whether the direction counts as the gradient after the pass before."""
        return self.composition.leads(len(self.before) - 1)

    @cached_property
    def asks_gradient(self) -> bool:
        """Whether the pass after reads the gradient."""
        entries, _ = self._probe(self.after)
        flow = Flow(entries["direction"], entries["gradient"])
        self.composition.follow(flow, entries, dict.fromkeys(self._numbers(self.after), 0.5), self.after)
        return "grad" in flow.asked

    def _finished(self, entries: Any, numbers: Any) -> dict[str, Any]:
        flow = Flow(entries["direction"], entries["gradient"] if self.asks_gradient else None)
        self.composition.follow(flow, entries, numbers, self.after)
        return flow.writes


MADE = {"direction": "direction", "gradient": "grad"}
"""What the pass before makes for the parts that follow, and its name in the flow."""
