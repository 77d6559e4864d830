"""The problems of the claim about oracle calls, with the iteration counts to be expected.

The counts come from a separate implementation of the same formulas, with other random numbers.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import cache

from hasten.problems import ConvexProblem, Quadratic, RidgeLogistic, RidgeSoftmax
from hasten.sketches import BalancedCountSketch, Haar, Identity, ImportanceCoordinates, Sketch, StridedSigns

QUICK_STEPS = 700
"""Rows that take more steps to the first accuracy are left out in quick mode."""


@dataclass(frozen=True)
class Row:
    """A method on a problem: its schedule (C, U, S; GD without momentum), and its iterations to each accuracy.

    `expected` is shorter than the accuracies where the later ones are not measured.
    """

    label: str
    sketch: Sketch
    schedule: str
    expected: tuple[int, ...]
    turned: ConvexProblem | None = None
    """A problem in place of the block's."""

    def on(self, block: Block) -> ConvexProblem:
        """The problem."""
        return self.turned or block.problem

    @property
    def random(self) -> bool:
        """Whether seeds differ."""
        return not isinstance(self.sketch, Identity)


@dataclass(frozen=True)
class Block:
    """One problem and its rows, the first of them the baseline of the speed-ups."""

    title: str
    problem: ConvexProblem
    accuracies: tuple[float, ...]
    seeds: int
    rows: tuple[Row, ...]
    strong_convexity: float = 0.0
    """What the methods are told of μ."""

    @property
    def tolerance(self) -> float:
        """Of iteration counts: seeds differ by 2 to 5 %."""
        return 0.1 if self.seeds >= 10 else 0.2

    @property
    def work(self) -> int:
        """Of all rows."""
        return sum(map(self.work_of, self.rows))

    def work_of(self, row: Row) -> int:
        """Steps of all seeds."""
        return row.expected[-1] * (self.seeds if row.random else 1)

    def quick(self) -> Block:
        """The first accuracy, of the rows that reach it soon."""
        soon = [row for row in self.rows if row.expected[0] <= QUICK_STEPS]
        short = tuple(dataclasses.replace(row, expected=row.expected[:1]) for row in soon)
        return dataclasses.replace(self, accuracies=self.accuracies[:1], rows=short)


def full(schedule: str, *expected: int) -> Row:
    """Nesterov's method."""
    return Row("NAG", Identity(), schedule, expected)


def haar(r: int, schedule: str, *expected: int) -> Row:
    """A row with a Haar sketch."""
    return Row("Haar", Haar(rank=r), schedule, expected)


def balanced(r: int, schedule: str, *expected: int) -> Row:
    """A row with a balanced CountSketch."""
    return Row("balanced", BalancedCountSketch(rank=r), schedule, expected)


def descent(sketch: Sketch, *expected: int) -> Row:
    """Without momentum."""
    names = {Haar: "RS-GD Haar", BalancedCountSketch: "RS-GD balanced", Identity: "GD"}
    return Row(names[type(sketch)], sketch, "GD", expected)


def blocks(quick: bool) -> list[Block]:
    """All blocks."""
    every = [*_convex(), *_larger(), *_strongly_convex(), *_data()]
    if not quick:
        return every
    small = [block.quick() for block in every if block.problem.dimension <= 256]
    return [block for block in small if len(block.rows) > 1]


def _convex() -> list[Block]:
    square = Quadratic.named("inverse-square", 256)
    some = (1e-2, 1e-3, 1e-4)
    rows = {
        ("inverse", "1/i"): (
            full("C", 41, 86, 145),
            haar(1, "C", 2195, 4178, 7418),
            balanced(4, "C", 561, 1057, 1820),
            balanced(16, "C", 203, 388, 657),
            descent(BalancedCountSketch(rank=16), 402, 724, 1066),
        ),
        ("inverse-square", "i⁻²"): (
            full("C", 280, 603, 1277),
            haar(1, "C", 8556, 18520, 39125),
            haar(16, "C", 1204, 2600, 5473),
            balanced(1, "C", 5968, 12968, 27726),
            balanced(4, "C", 2420, 5239, 10928),
            balanced(16, "C", 1144, 2466, 5195),
            balanced(64, "C", 564, 1213, 2563),
            Row("strided", StridedSigns(rank=16), "C", (1131, 2439)),
            Row("strided, rotated problem", StridedSigns(rank=16), "C", (1208, 2608), _turned(square)),
            Row(
                "coordinates by importance", ImportanceCoordinates(square.curvature), "C", (1663, 4221, 7360)
            ),
            descent(BalancedCountSketch(rank=4), 13076, 60939),
        ),
        ("geometric", "0.9^i"): (
            full("C", 20, 68, 226),
            haar(1, "C", 1089, 3735, 13377),
            balanced(16, "C", 96, 334, 1129),
            descent(BalancedCountSketch(rank=16), 126, 1236, 12484),
        ),
        ("clustered", "4 ones, then 0.01"): (
            full("C", 33, 36, 38),
            balanced(4, "C", 535, 1028, 1777),
            descent(BalancedCountSketch(rank=4), 622, 954, 1282),
        ),
        ("equal", "all equal"): (full("C", 1, 1, 1), haar(1, "C", 1524, 3158, 6322)),
    }
    return [
        Block(f"{title}, d = 256", Quadratic.named(name, 256), some, 20, found)
        for (name, title), found in rows.items()
    ]


def _larger() -> list[Block]:
    counts = {1024: (489, 3963), 4096: (640, 10188)}
    return [
        Block(
            f"i⁻², d = {d}",
            Quadratic.named("inverse-square", d),
            (1e-2,),
            3,
            (full("C", whole), balanced(16, "C", sketched)),
        )
        for d, (whole, sketched) in counts.items()
    ]


def _strongly_convex() -> list[Block]:
    rows = {
        ("logspace", "four decades"): (
            full("S", 27, 186, 595),
            full("U", 18, 171, 664),
            haar(1, "S", 20183),
            haar(1, "U", 1795, 16968),
            balanced(8, "S", 2538, 5467, 11245),
            balanced(8, "U", 236, 2185, 8065),
            descent(BalancedCountSketch(rank=8), 408, 20850),
        ),
        ("inverse-square", "i⁻², μ known"): (
            full("S", 324, 872, 2034),
            full("U", 285, 1017, 2300),
            haar(1, "S", 17872),
            haar(1, "U", 8731),
            balanced(8, "S", 3266, 7011, 14286),
            balanced(8, "U", 1686, 6005, 13592),
        ),
        ("sharply-clustered", "4 ones, then 1e-4"): (
            full("S", 120, 438, 964),
            full("U", 184, 548, 1089),
            balanced(8, "S", 2348, 4382, 8337),
            balanced(8, "U", 1202, 3650, 7635),
        ),
        ("halves", "half 1, half 1e-4"): (
            full("S", 1, 47, 670),
            full("U", 1, 81, 790),
            haar(8, "S", 8208),
            haar(8, "U", 99, 3189, 19012),
        ),
    }
    found = []
    for (name, title), own in rows.items():
        problem = Quadratic.named(name, 256)
        mu = problem.strong_convexity
        found.append(Block(f"{title}, d = 256", problem, (1e-2, 1e-4, 1e-8), 20, own, mu))
    return found


def _data() -> list[Block]:
    some = (1e-2, 1e-4, 1e-6)
    biopsies, digits = RidgeLogistic.breast_cancer(), RidgeSoftmax.digits()
    return [
        Block(
            "breast cancer",
            biopsies,
            some,
            10,
            (
                full("U", 44, 183, 324),
                haar(1, "U", 536, 2210, 3905),
                haar(4, "U", 169, 709, 1244),
                balanced(8, "U", 105, 431, 773),
                descent(Haar(rank=1), 1597, 19156),
                descent(Identity(), 346, 4121, 10163),
            ),
            biopsies.strong_convexity,
        ),
        Block(
            "digits softmax",
            digits,
            some,
            3,
            (
                full("U", 83, 252, 411),
                haar(4, "U", 2548, 8458),
                balanced(4, "U", 2515, 8443),
                balanced(16, "U", 791, 2623, 4422),
                balanced(64, "U", 307, 997, 1692),
                descent(BalancedCountSketch(rank=16), 2538),
            ),
            digits.strong_convexity,
        ),
    ]


@cache
def _turned(problem: Quadratic) -> Quadratic:
    """The same quadratic, start to minimiser included, in a random basis."""
    basis = Quadratic(problem.eigenvalues, seed=1).rotation
    assert basis is not None
    return Quadratic(problem.eigenvalues, seed=1, minimiser=basis @ problem.minimiser)
