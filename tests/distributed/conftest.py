from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from team import Team


@pytest.fixture(scope="session")
def teams() -> Iterator[Callable[[int], Team]]:
    """Teams by size, made when they are first asked for; a team in which a worker failed is replaced."""
    made: dict[int, Team] = {}

    def team(world: int) -> Team:
        if world in made and (made[world].broken or not all(m.is_alive() for m in made[world].members)):
            made.pop(world).close()
        if world not in made:
            made[world] = Team(world)
        return made[world]

    yield team
    for one in made.values():
        one.close()


@pytest.fixture
def pair(teams: Callable[[int], Team]) -> Team:
    """Two workers."""
    return teams(2)


@pytest.fixture
def four(teams: Callable[[int], Team]) -> Team:
    """Four workers."""
    return teams(4)
