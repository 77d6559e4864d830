"""The ways to exchange that are compared, as tuned: hooks and optimizers in the race's own words."""

from __future__ import annotations

import dataclasses

FP32, BF16 = "fp32 all-reduce", "bf16 all-reduce"
SLOWER = "SubspaceNesterov(lr=0.5)"
FEEDBACK = "subspace(ratio=16, feedback=True)"
EVERY_STEP, FED_BACK = "subspace, every step", "subspace, error feedback"
LOCAL, EXACT, POWERSGD = "subspace, local steps", "exact, local steps", "PowerSGD"


@dataclasses.dataclass(frozen=True)
class Method:
    """One way, with the settings that tuning chose.

    Attributes:
        name: in tables and figures.
        kind: which of its kind may stand for it.
        hook: the race's ``--hook``.
        optimizer: the race's entrant.
        horizons: numbers of steps, over each of which the learning rate decays anew.
        every: steps between exchanges.
    """

    name: str
    kind: str
    hook: str
    optimizer: str
    horizons: tuple[int, ...]
    every: int = 1


@dataclasses.dataclass(frozen=True)
class Setting:
    """A task, its workers, and the methods; the first is the baseline, at its only horizon."""

    title: str
    task: str
    world: int
    seeds: tuple[int, ...]
    methods: tuple[Method, ...]


LANGUAGE_MODEL = Setting(
    "language model, 2 workers",
    "lm",
    2,
    (0, 1),
    (
        Method(FP32, FP32, "none", "AdamW(lr=2e-3)", (480,)),
        Method(
            "local steps, subspace d/r = 16", LOCAL, "local(every=32, ratio=16)", "AdamW(lr=2e-3)", (600, 720, 960), 32
        ),
        Method("local steps, subspace d/r = 8", LOCAL, "local(every=32, ratio=8)", "AdamW(lr=2e-3)", (600, 720), 32),
        Method("PowerSGD, rank 2", POWERSGD, "powersgd(rank=2)", "AdamW(lr=1e-3)", (720, 960)),
        Method("PowerSGD, rank 1", POWERSGD, "powersgd(rank=1)", "AdamW(lr=1e-3)", (960,)),
        Method("DiLoCo's form, exact", EXACT, "local(every=32, lr=1.0)", "AdamW(lr=2e-3)", (720,), 32),
        Method(BF16, BF16, "bf16", "AdamW(lr=2e-3)", (480, 528)),
        Method("PowerSGD, rank 4", POWERSGD, "powersgd(rank=4)", "AdamW(lr=1e-3)", (720,)),
        Method("top-k 1 %, error feedback", "top-k", "topk(ratio=100)", "AdamW(lr=1e-3)", (960,)),
        Method("subspace d/r = 16, Nesterov", EVERY_STEP, "subspace(ratio=16)", "SubspaceNesterov", (480,)),
        Method("subspace d/r = 16, error feedback", FED_BACK, FEEDBACK, "AdamW(lr=1e-3)", (480,)),
    ),
)  # fmt: skip
DIGITS = Setting(
    "digits, 4 workers",
    "digits",
    4,
    (0, 1, 2),
    (
        Method(FP32, FP32, "none", "AdamW(lr=1e-2)", (600,)),
        Method("local steps, subspace d/r = 16", LOCAL, "local(every=16, ratio=16)", "AdamW(lr=1e-2)", (600, 900), 16),
        Method("local steps, subspace d/r = 8", LOCAL, "local(every=32, ratio=8)", "AdamW(lr=1e-2)", (600, 900), 32),
        Method("PowerSGD, rank 2", POWERSGD, "powersgd(rank=2)", "AdamW(lr=1e-2)", (600, 900)),
        Method("PowerSGD, rank 1", POWERSGD, "powersgd(rank=1)", "AdamW(lr=1e-2)", (600, 900)),
        Method("DiLoCo's form, exact", EXACT, "local(every=32, lr=1.0)", "AdamW(lr=1e-2)", (600, 900), 32),
        Method(BF16, BF16, "bf16", "AdamW(lr=1e-2)", (600, 900)),
        Method("PowerSGD, rank 4", POWERSGD, "powersgd(rank=4)", "AdamW(lr=1e-2)", (600, 900)),
        Method("top-k 1 %, error feedback", "top-k", "topk(ratio=100)", "AdamW(lr=1e-2)", (600, 900)),
        Method("subspace d/r = 16, Nesterov", EVERY_STEP, "subspace(ratio=16)", SLOWER, (600, 1200)),
        Method("subspace d/r = 64, Nesterov", EVERY_STEP, "subspace(ratio=64)", "SubspaceNesterov", (600, 1200)),
        Method("subspace d/r = 16, error feedback", FED_BACK, FEEDBACK, "AdamW(lr=1e-2)", (1200,)),
    ),
)  # fmt: skip
SETTINGS = [LANGUAGE_MODEL, DIGITS]


def quick_setting() -> Setting:
    """A few steps on digits, for tests only."""
    adamw = "AdamW(lr=1e-2)"
    methods = (
        Method(FP32, FP32, "none", adamw, (30,)),
        Method("PowerSGD, rank 1", POWERSGD, "powersgd(rank=1)", adamw, (30, 60)),
        Method("subspace d/r = 16, Nesterov", EVERY_STEP, "subspace(ratio=16)", "SubspaceNesterov", (60,)),
        Method("local steps, subspace d/r = 8", LOCAL, "local(every=10, ratio=8)", adamw, (30, 60), 10),
    )
    return Setting("digits, 2 workers", "digits", 2, (0,), methods)
