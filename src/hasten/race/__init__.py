"""Compare optimizers on a task: run, keep, draw, report.

    from hasten.race import race
    result = race("digits", "AdamW,Lion(lr=3e-4)", seeds=3, budget="1m")
    print(result.summary())
    result.report()

or ``hasten race`` from a terminal. With ``world=2, hook="none,subspace(ratio=64)"`` two workers share every batch, over
each of these ways to exchange gradients, and loss is drawn against bytes sent. Needs the extra:
``pip install 'hasten[race]'``.
"""

from hasten.race.contest import load, race, resume
from hasten.race.errors import RaceError
from hasten.race.outcome import Race
from hasten.race.run import Point, Run
from hasten.race.standings import Standing
from hasten.race.task import Task

__all__ = ["Point", "Race", "RaceError", "Run", "Standing", "Task", "load", "race", "resume"]
