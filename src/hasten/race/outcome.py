"""What a race gives back: its results, which can report themselves."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from hasten.race.results import Results


@dataclass(frozen=True)
class Race(Results):
    """The outcome of a race, finished or stopped early.

    Example:
        >>> from hasten.race.plan import Plan
        >>> Race(Path("."), Plan("lm", "", "", (), (0,), 1), (), (), True).verdict.headline
        'No run has finished yet'
    """

    def report(self, path: str | Path | None = None) -> Path:
        """Write the report (``report.html`` in the race's folder by default) and give its path."""
        from hasten.race.report import write_report

        return write_report(self, Path(path) if path else self.folder / "report.html")

    def figures(self, folder: str | Path | None = None) -> list[Path]:
        """Write the figures as PNG (into the race's folder by default) and give their paths."""
        from hasten.race.figures import write_figures

        return write_figures(self, Path(folder) if folder else self.folder)
