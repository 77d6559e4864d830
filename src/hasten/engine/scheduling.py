"""The hyperparameters of the coming step: schedules evaluated, everything checked."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hasten.engine.parameters import ParameterGroups
from hasten.schedules import Schedule


def scheduled(
    optimizer: ParameterGroups, group: dict[str, Any], number: Callable[[Any], Any] = float, back: int = 0
) -> dict[str, Any]:
    """The group with every scheduled hyperparameter at its value for the coming step (or `back` steps before)."""
    if not group["schedules"]:
        return group
    index = next(i for i, g in enumerate(optimizer.param_groups) if g is group)
    entries, t = dict(group), max(group["step"] - back, 0)
    for text, data in group["schedules"].items():
        place = optimizer.place_of(text)
        if data["schedule"] != "function":
            place.write(entries, Schedule.from_plain(data)(number(t)))
        elif (index, text) in optimizer.functions:
            place.write(entries, optimizer.functions[index, text](t))
        else:
            raise RuntimeError(
                f"{optimizer.name}: {text} was scheduled by a function, which a checkpoint cannot hold; build the "
                "optimizer with the same function before loading"
            )
    return entries


def resolve(optimizer: ParameterGroups, group: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """A group's hyperparameters at the coming step, checked: entries to store, and all entries."""
    entries = scheduled(optimizer, group)
    stored = {}
    for text in group["schedules"]:
        place = optimizer.place_of(text)
        value = place.read(group)
        if value != optimizer.written.get((id(group), text), value):
            raise RuntimeError(
                f"{optimizer.name}: {text} has a schedule of its own, {group['schedules'][text]}, but was changed to "
                f"{value!r} from outside; use one scheduler for it"
            )
        stored[place.key] = entries[place.key]
    optimizer.check_group(entries)
    return stored, entries


def store(optimizer: ParameterGroups, group: dict[str, Any], stored: dict[str, Any]) -> None:
    """Show the scheduled values of this step in the group, and remember them to notice a second scheduler."""
    group.update(stored)
    for text in group["schedules"]:
        optimizer.written[id(group), text] = optimizer.place_of(text).read(group)
