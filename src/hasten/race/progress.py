"""Who wants to know how a race is going."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hasten.race.plan import Plan
    from hasten.race.run import Run


class Observer:
    """Told about everything that happens; says nothing. Subclass it to show progress.

    Example:
        >>> class Names(Observer):
        ...     def began(self, name: str) -> None:
        ...         print(name)
    """

    def measuring(self, contenders: int) -> None:
        """The pace of so many contenders is about to be measured."""

    def measured(self, label: str) -> None:
        """One of them has been."""

    def planned(self, plan: Plan) -> None:
        """The race is decided and begins, or goes on."""

    def began(self, name: str) -> None:
        """A run that is not on disk yet began."""

    def stepped(self) -> None:
        """It took a step."""

    def ended(self, run: Run) -> None:
        """A run or trial is on disk: it just ended, or had been there from before."""

    def closed(self) -> None:
        """Nothing more will happen."""
