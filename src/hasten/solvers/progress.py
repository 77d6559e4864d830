"""A line of progress while a run goes on."""

from __future__ import annotations

from types import TracebackType
from typing import Any

from typing_extensions import Self

from hasten.solvers.objective import Objective


class Progress:
    """Iterations, the objective and the residual of a run; of a stack, the worst problem and how many still run."""

    def __init__(self, name: str, visible: bool) -> None:
        self._bar: Any = None
        if visible:
            try:
                from rich.progress import Progress as Bar
                from rich.progress import SpinnerColumn, TextColumn, TimeElapsedColumn
            except ImportError:
                raise ImportError("minimize: progress=True needs rich: pip install rich") from None
            self._bar = Bar(SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
            self._task = self._bar.add_task(name)
            self._name = name

    def __enter__(self) -> Self:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def show(self, state: Any, objective: Objective) -> None:
        """The state after a round."""
        if self._bar is None:
            return
        if objective.space.batched:
            running = objective.running
            text = (
                f"{int(running.sum())} of {len(running)} problems running, iteration {int(state.iterations.max())}, "
                f"largest gradient entry {float(state.residual[running].max()):.2e}"
            )
        else:
            text = f"iteration {state.iterations:.0f}, f = {state.f:.10g}, largest gradient entry {state.residual:.2e}"
        self._bar.update(self._task, description=f"{self._name}: {text}")
