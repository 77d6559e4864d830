"""Progress in the terminal: one bar for the whole race, with the time left."""

from __future__ import annotations

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from hasten.race.plan import Plan
from hasten.race.progress import Observer
from hasten.race.run import FINISHED, Run


class LiveObserver(Observer):
    """Draws on a rich console.

    Example:
        >>> LiveObserver(Console(quiet=True)).closed()
    """

    def __init__(self, console: Console) -> None:
        self.console = console
        self._running = False
        self._plan: Plan | None = None
        self._taken = 0
        self._progress = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(bar_width=None),
            TextColumn("{task.percentage:>3.0f}%"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            expand=True,
            speed_estimate_period=60,
        )

    def measuring(self, contenders: int) -> None:
        """Announce the measurement of paces."""
        self._progress.start()
        self._bar = self._progress.add_task("measuring the pace", total=contenders)

    def measured(self, label: str) -> None:
        """Advance, and name who was measured."""
        self._progress.update(self._bar, advance=1, description=f"measured {label}")

    def planned(self, plan: Plan) -> None:
        """Say in one line what is raced, and start the bar."""
        steps = sum(plan.steps_of(c.label) for c in plan.contenders) * (len(plan.seeds) + plan.trials)
        self.console.print(
            f"[bold]{plan.task}[/bold]: {plan.title}\n"
            f"{len(plan.contenders)} {'contenders' if len(plan.hooks) > 1 else 'optimizers'} · "
            f"{len(plan.seeds)} seeds · "
            + (f"{plan.trials} trials each · " if plan.trials else "")
            + f"{plan.length} a run · {plan.parameters:,} parameters · {plan.threads} threads"
            + (f" · {plan.world} workers" if plan.world > 1 else ""),
            highlight=False,
        )
        self._plan = plan
        for bar in self._progress.task_ids:
            self._progress.remove_task(bar)
        self._bar = self._progress.add_task("starting", total=steps)
        self._progress.start()

    def began(self, name: str) -> None:
        """Name the run under way."""
        self._running = True
        self._name = name
        self._taken = 0
        self._progress.update(self._bar, description=name)

    def stepped(self) -> None:
        """One step further."""
        self._taken += 1
        self._progress.advance(self._bar)

    def ended(self, run: Run) -> None:
        """Print the outcome of a run that just ended; pass over one that was on disk."""
        if not self._running:
            # The estimate of the time left must not count what took no time.
            total = self._progress.tasks[-1].total or 0
            self._progress.update(self._bar, total=total - self._steps_of(run))
            return
        self._running = False
        self._progress.advance(self._bar, self._steps_of(run) - self._taken)
        outcome = (
            f"{run.final_loss:.4g}" if run.status == FINISHED else f"[red]diverged at step {run.steps}[/red]"
        )
        self._progress.console.print(
            f"  {self._name:<40} {outcome}   [dim]{run.step_ms:.1f} ms a step[/dim]",
            highlight=False,
        )

    def _steps_of(self, run: Run) -> int:
        return self._plan.steps_of(run.label) if self._plan else 0

    def closed(self) -> None:
        """Take the bar away."""
        self._progress.stop()
