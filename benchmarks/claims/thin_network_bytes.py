"""Bytes to a loss when two or four workers train together: every way to exchange, torch's own among them.

Regenerate with ``python -m benchmarks.claims.thin_network_bytes``.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
from pathlib import Path

from rich.progress import Progress

from benchmarks.claims import link_speeds
from benchmarks.claims.claim import RESULTS, Check, Claim, Table, command_line
from benchmarks.claims.crew import Found, Ledger
from benchmarks.claims.link_speeds import Price
from benchmarks.claims.shared_softmax import RANKS, Growth, growth, growth_table
from benchmarks.claims.thin_network_methods import (
    EVERY_STEP,
    EXACT,
    FED_BACK,
    LOCAL,
    POWERSGD,
    SETTINGS,
    Method,
    Setting,
    quick_setting,
)
from benchmarks.claims.trained import Cell, paced, trained

NAME = "thin_network_bytes"
FEWER = 50
"""How many times fewer bytes are asked for."""
PACE = 64
"""Steps for the pace of a method: half of them to get going, half measured; a multiple of every H."""


@dataclasses.dataclass
class Outcome:
    """One method at one horizon: a run for each seed."""

    method: Method
    steps: int
    losses: list[float]
    sent: float

    @property
    def loss(self) -> float:
        """Mean over the seeds; infinite if one diverged."""
        return statistics.mean(self.losses)

    @property
    def losses_text(self) -> str:
        """The mean, and the range over the seeds if there are several."""
        if not math.isfinite(self.loss):
            return "diverges"
        if len(self.losses) == 1:
            return f"{self.loss:.3f}"
        return f"{self.loss:.3f} ({min(self.losses):.3f} to {max(self.losses):.3f})"


@dataclasses.dataclass
class Race:
    """All methods on one task."""

    setting: Setting
    outcomes: list[Outcome]
    paces: dict[str, Found]

    @property
    def baseline(self) -> Outcome:
        """All-reduce in float32, at the one horizon it has."""
        return self.outcomes[0]

    @property
    def target(self) -> float:
        """Its mean loss."""
        return self.baseline.loss

    def of(self, method: Method) -> list[Outcome]:
        """Every horizon tried, from short to long."""
        return sorted((o for o in self.outcomes if o.method == method), key=lambda o: o.steps)

    def reached(self, method: Method) -> Outcome | None:
        """The horizon of the least bytes of those whose mean loss is the target or less; None if there is none."""
        good = [o for o in self.of(method) if o.loss <= self.target]
        return min(good, key=lambda o: o.sent, default=None)

    def fewer(self, outcome: Outcome) -> float:
        """How many times fewer bytes than the baseline."""
        return self.baseline.sent / outcome.sent

    def least(self, kind: str) -> Outcome | None:
        """The least bytes to the target of all methods of a kind."""
        found = [o for m in self.setting.methods if m.kind == kind if (o := self.reached(m)) is not None]
        return min(found, key=lambda o: o.sent, default=None)

    def prices(self) -> list[Price]:
        """Of the methods that reach the target."""
        found = [(m, self.reached(m)) for m in self.setting.methods]
        return [
            Price(m.name, o.steps, bytes=o.sent / o.steps, **self.paces[m.name])
            for m, o in found
            if o is not None
        ]


def race(setting: Setting, ledger: Ledger) -> Race:
    """Every method at every horizon on every seed, from the ledger or anew."""
    tried = [(method, steps) for method in setting.methods for steps in method.horizons]
    cells = {
        (method, steps, seed): Cell(setting.task, setting.world, method.optimizer, method.hook, steps, seed)
        for seed in setting.seeds  # all methods on one seed before the next
        for method, steps in tried
    }
    found = dict(zip(cells, ledger.all(trained, cells.values()), strict=True))
    outcomes = []
    for method, steps in tried:
        runs = [found[method, steps, seed] for seed in setting.seeds]
        sent = statistics.mean(run["sent"] for run in runs)
        outcomes.append(Outcome(method, steps, [run["loss"] for run in runs], sent))
    pacing = [
        Cell(setting.task, setting.world, m.optimizer, m.hook, PACE, setting.seeds[0])
        for m in setting.methods
    ]
    paces = ledger.all(paced, pacing)
    return Race(setting, outcomes, {m.name: pace for m, pace in zip(setting.methods, paces, strict=True)})


def megabytes(sent: float) -> str:
    """Three digits of the bytes, in MB."""
    return f"{sent / 1e6:,.0f}" if sent >= 1e8 else f"{sent / 1e6:.3g}"


def bytes_table(found: Race) -> Table:
    """The least bytes of every method at the target."""
    rows = []
    for method in found.setting.methods:
        reached = found.reached(method)
        shown = reached or min(found.of(method), key=lambda o: o.loss)
        rows.append(
            [
                method.name,
                f"`{method.hook}`",
                f"`{method.optimizer}`",
                f"{shown.steps}" if reached else f"not in {shown.steps}",
                f"{shown.steps / found.baseline.steps:.3g}×",
                shown.losses_text,
                megabytes(shown.sent) if reached else f"({megabytes(shown.sent)})",
                f"{found.fewer(shown):.3g}×" if reached else "–",
                f"{1e3 * found.paces[method.name]['seconds']:.1f}",
            ]
        )
    return Table(
        f"{found.setting.title}: the least bytes to a loss of {found.target:.3f}",
        ["method", "hook", "optimizer", "steps", "of fp32's", "loss", "MB", "fewer", "ms a step"],
        rows,
    )


def horizons_table(found: Race) -> Table:
    """Everything tried on the reported seeds."""
    rows = [
        [
            o.method.name,
            f"{o.steps}",
            o.losses_text,
            megabytes(o.sent),
            "yes" if o.loss <= found.target else "no",
        ]
        for o in found.outcomes
    ]
    return Table(
        f"{found.setting.title}: every horizon tried", ["method", "steps", "loss", "MB", "target"], rows
    )


def speeds_table(found: Race) -> Table:
    """Seconds to the target at some link speeds; the first is marked."""
    prices = found.prices()
    rows = []
    for price in prices:
        times = [price.time(speed) for speed in link_speeds.MARKS]
        firsts = [min(p.time(speed) for p in prices) for speed in link_speeds.MARKS]
        cells = [
            f"**{time:.3g}**" if time == first else f"{time:.3g}"
            for time, first in zip(times, firsts, strict=True)
        ]
        rows.append([price.name, *cells])
    return Table(
        f"{found.setting.title}: seconds to the target, by link speed",
        ["method", *(link_speeds.readable(speed) for speed in link_speeds.MARKS)],
        rows,
    )


def pays_table(races: list[Race]) -> Table:
    """Which method is first from which speed to which."""
    rows = []
    for found in races:
        stretches = link_speeds.best(found.prices())
        for start, end, price in stretches:
            low = "" if start <= link_speeds.SLOWEST else f"from {link_speeds.readable(start)} "
            high = "" if end >= link_speeds.FASTEST * 0.999 else f"up to {link_speeds.readable(end)}"
            rows.append([found.setting.title, (low + high).strip() or "all", price.name])
    return Table(
        "At which link speed which method gets to the target first", ["task", "link speed", "method"], rows
    )


def checks(races: list[Race], grown: list[Growth]) -> list[Check]:
    """The two aims for each task, then the subspace hook step by step, then the theory's growth."""
    found = []
    for r in races:
        fp32 = f"fp32 all-reduce: {megabytes(r.baseline.sent)} MB to a loss of {r.target:.3f}"
        ours, rival, hook = (
            r.least(LOCAL),
            r.least(POWERSGD),
            r.least(EVERY_STEP),
        )
        if ours is None:
            found.append(
                Check(f"{r.setting.title}: subspace", fp32, f"≥ {FEWER}×", "target not reached", False)
            )
        else:
            text = f"{r.fewer(ours):.0f}× ({megabytes(ours.sent)} MB, {ours.steps / r.baseline.steps:.3g}× the steps)"
            statement = f"{r.setting.title}: fewer bytes, local steps exchanged in a subspace"
            found.append(Check(statement, fp32, f"≥ {FEWER}×", text, r.fewer(ours) >= FEWER))
            if rival is None:
                baseline, text, holds = "PowerSGD at no rank reaches the target", "–", True
            else:
                baseline = (
                    f"{rival.method.name}: {megabytes(rival.sent)} MB ({r.fewer(rival):.0f}× fewer than fp32)"
                )
                text, holds = f"{rival.sent / ours.sent:.1f}× fewer", ours.sent < rival.sent
            found.append(
                Check(
                    f"{r.setting.title}: the same against PowerSGD's best rank",
                    baseline,
                    "fewer",
                    text,
                    holds,
                )
            )
        text = "target not reached" if hook is None else f"{r.fewer(hook):.3g}× ({hook.method.name})"
        found.append(
            Check(
                f"{r.setting.title}: fewer bytes, exchanging in a subspace at every step",
                fp32,
                f"≥ {FEWER}×",
                text,
                hook is not None and r.fewer(hook) >= FEWER,
            )
        )
    if grown:
        worst = max(grown, key=lambda g: abs(g.measured / g.predicted - 1))
        found.append(
            Check(
                "growth of the steps with the subspace hook, convex problem",
                "I = √(νℓ/λ_max)",
                "within 20 % at every r",
                f"{sum(g.agrees for g in grown)} of {len(grown)}; furthest {worst.measured:.2f} for "
                f"{worst.predicted:.2f} (r = {worst.rank})",
                all(g.agrees for g in grown),
            )
        )
    return found


def run(quick: bool = False, folder: Path = RESULTS) -> Claim:
    """Train every method at every horizon, and compare."""
    settings = [quick_setting()] if quick else SETTINGS
    jobs = sum(len(s.seeds) * sum(len(m.horizons) for m in s.methods) + len(s.methods) for s in settings)
    with Progress(transient=True) as progress:
        bar = progress.add_task(NAME, total=jobs)
        world = settings[-1].world
        path = None if quick else folder / f"{NAME}.jsonl"
        with Ledger(path, lambda *_: progress.advance(bar)) as ledger:
            races = [race(setting, ledger) for setting in settings]
            grown = growth(world, (128,) if quick else RANKS, ledger)
    panels = [(r.setting.title, r.prices()) for r in races]
    link_speeds.draw(panels, folder / f"{NAME}.png")
    return Claim(
        NAME,
        f"At equal loss, {FEWER} times fewer bytes between workers",
        "the aim of subspace communication; rivals: PowerSGD (arXiv:1905.13727) as in torch.distributed, error "
        "feedback (arXiv:1901.09847), DiLoCo (arXiv:2311.08105)",
        PROBLEM,
        checks(races, grown),
        [
            *(bytes_table(r) for r in races),
            *([growth_table(grown, world)] if grown else []),
            pays_table(races),
            *(speeds_table(r) for r in races),
            *(horizons_table(r) for r in races),
        ],
        reading(races, grown),
        [f"{NAME}.png"],
        quick,
    )


PROBLEM = (
    "Workers are processes with a gloo group on one machine; each takes its equal part of every batch. Tasks, models, "
    "batches and schedules are those of `hasten race --world`: linear decay to 0 at the horizon, after a tenth of it "
    "to warm up. The target is the mean loss on held-out data, over the seeds, that float32 all-reduce with AdamW "
    "reaches at its horizon. Every other method has one to three horizons, with the decay over each; counted are the "
    "least bytes of those whose mean loss is the target or less. Bytes are what one worker sends on account of the "
    "parameters: 2n(W−1)/W for an all-reduce of n bytes, n(W−1) for an all-gather, as a `Wire` counts them (torch's "
    "PowerSGD by formula). Parameters are alike at the start and cost nothing. "
    "The language model was run on two seeds, digits on three.\n\n"
    "Tuning was by hand, in some fifty runs on a seed that is not reported, in one process that plays all workers "
    "(with an exact exchange its losses are those of real workers to four digits). The baseline had three learning "
    "rates: 1e-3, 2e-3, 4e-3 for the language model, 1e-3, 3e-3, 1e-2 for digits. Effort was not quite equal: PowerSGD "
    "had two of them, local steps two and three choices of H and of the outer step, top-k and the sketch with error "
    "feedback, far behind on the language model, one there and two on digits; SubspaceNesterov factors of 0.5, 1 and 2 "
    "on its step, on digits alone.\n\n"
    "Seconds to the target at a link speed: steps × processor seconds of one worker's step, compression included, "
    f"plus bits ÷ speed, plus {1e3 * link_speeds.LATENCY:g} ms a collective. Nothing overlaps."
)


def reading(races: list[Race], grown: list[Growth]) -> list[str]:
    """What the tables say, with their numbers."""
    said = [
        "What saves most is not to exchange at every step. What is sent then is how far a worker came in H steps, and "
        "that a sketch spoils less than it spoils a single gradient."
    ]
    for r in races:
        for exact in (o for o in r.outcomes if o.method.kind == EXACT):
            sketched = [
                f"{o.loss:.3f} with {o.method.name.partition(', ')[2]}"
                for o in r.outcomes
                if o.method.kind == LOCAL and (o.method.every, o.steps) == (exact.method.every, exact.steps)
            ]
            if sketched:
                said.append(
                    f"{r.setting.title}: after {exact.steps} steps, exchanging every {exact.method.every}, the same "
                    f"outer step (the plain mean) ends at {exact.loss:.3f} with exact displacements, at "
                    f"{', at '.join(sketched)}."
                )
        hook = [o for o in r.outcomes if o.method.kind in (EVERY_STEP, FED_BACK)]
        if not hook:
            continue
        ends = [f"{o.loss:.3f} after {o.steps} ({o.method.name})" for o in hook]
        said.append(f"{r.setting.title}: a sketch at every step, target {r.target:.3f}: {'; '.join(ends)}.")
    if grown:
        said.append(
            "On the convex problem the hook does what the theory says, steps and bytes: "
            + "; ".join(f"r = {g.rank}: {g.measured:.2f}× the steps for {g.predicted:.2f}" for g in grown)
            + ". That is no promise for networks."
        )
    said.append(
        "The digits network is trained far beyond its data: training losses end near 0.002, and what is compared is "
        "the loss on held-out digits, which noise in the exchange can lower. The language model does not overfit: its "
        "training loss ends above the one on held-out text."
    )
    return said


if __name__ == "__main__":
    command_line(run, NAME)
