"""Time to a loss against the speed of the workers' links, from the seconds, bytes and collectives of a step."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from benchmarks.network import transfer_seconds

SLOWEST, FASTEST = 10e6, 100e9
"""Bits per second."""
MARKS = (10e6, 100e6, 1e9, 10e9, 100e9)
LATENCY = 1e-4
"""Seconds that a collective takes on top of its bytes."""
POINTS = 401


@dataclasses.dataclass(frozen=True)
class Price:
    """What it takes a method to get to the loss.

    Attributes:
        name: of the method.
        steps: to the loss.
        seconds: of computing, a step: gradient, compression and update.
        bytes: that one worker sends, a step.
        calls: collectives a step.
    """

    name: str
    steps: int
    seconds: float
    bytes: float
    calls: float

    def time(self, speed: float) -> float:
        """Seconds to the loss over links of so many bits per second. Nothing is sent while computing."""
        moved = transfer_seconds(self.steps * self.bytes, self.steps * self.calls, speed, LATENCY)
        return self.steps * self.seconds + moved


def speeds() -> list[float]:
    """From the slowest link to the fastest, evenly in the logarithm."""
    ratio = FASTEST / SLOWEST
    return [SLOWEST * ratio ** (k / (POINTS - 1)) for k in range(POINTS)]


def best(prices: Sequence[Price]) -> list[tuple[float, float, Price]]:
    """Who is first from which speed to which, from slow to fast."""
    found: list[tuple[float, float, Price]] = []
    for speed in speeds():
        first = min(prices, key=lambda price: price.time(speed))
        if found and found[-1][2] is first:
            found[-1] = (found[-1][0], speed, first)
        else:
            found.append((speed if not found else crossing(found[-1][2], first), speed, first))
    return [
        (start, found[k + 1][0] if k + 1 < len(found) else end, price)
        for k, (start, end, price) in enumerate(found)
    ]


def crossing(one: Price, other: Price) -> float:
    """The link speed at which both take equally long; infinite if that is at no speed.

    time = a + b/speed for each, so a₁ + b₁/v = a₂ + b₂/v at v = (b₁ − b₂)/(a₂ − a₁).
    """
    fixed = [p.steps * (p.seconds + p.calls * LATENCY) for p in (one, other)]
    bits = [8 * p.steps * p.bytes for p in (one, other)]
    if fixed[0] == fixed[1]:
        return float("inf")
    found = (bits[0] - bits[1]) / (fixed[1] - fixed[0])
    return found if found > 0 else float("inf")


def readable(speed: float) -> str:
    """Bits per second in words."""
    for unit, size in (("Gbit/s", 1e9), ("Mbit/s", 1e6)):
        if speed >= size:
            return f"{speed / size:.3g} {unit}"
    return f"{speed / 1e3:.3g} kbit/s"


def draw(panels: Sequence[tuple[str, Sequence[Price]]], path: Path) -> None:
    """One panel a task, one line a method; rings where the first changes."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, NullFormatter

    from hasten.race.figures import LOOK
    from hasten.race.palette import style

    names = list(dict.fromkeys(price.name for _, prices in panels for price in prices))
    colours = {name: style(place)[0] for place, name in enumerate(names)}
    with rc_context(LOOK):
        figure = Figure(figsize=(5.2 * len(panels), 5.4), layout="constrained")
        for axes, (title, prices) in zip(
            figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True
        ):
            xs = speeds()
            for price in prices:
                axes.plot(xs, [price.time(x) for x in xs], color=colours[price.name], lw=2)
            for start, _, price in best(prices)[1:]:
                axes.plot([start], [price.time(start)], "o", ms=9, mfc="none", mec="0.2", mew=1.6)
                axes.annotate(
                    readable(start),
                    (start, price.time(start)),
                    (4, -16),
                    textcoords="offset points",
                    fontsize=9,
                )
            axes.set_xscale("log")
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))
            axes.yaxis.set_minor_formatter(NullFormatter())
            axes.set_xlabel("link of every worker, bits per second")
            axes.set_title(title, loc="left", fontweight="bold")
        figure.axes[0].set_ylabel("seconds to the target loss")
        handles = [figure.axes[0].plot([], [], color=colours[name], lw=2)[0] for name in names]
        figure.legend(handles, names, loc="outside lower center", ncols=2, fontsize=9)
        figure.savefig(path, dpi=110)
