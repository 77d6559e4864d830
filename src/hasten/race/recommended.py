"""The settings an optimizer races at when nobody says otherwise.

One row for each optimizer, one column for each kind of task. What a row leaves out is the
optimizer's own default. How good the numbers are: the learning rates of the default entrants in
column ``lm`` are the best of a coarse grid (factors of about three, three to five values each, one
run of 300 to 500 steps for each value, on a seed that no race reports). All others are customary
values that nobody searched for. ``--tune`` searches on your task, with equal effort for everybody.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

COLUMNS = ("lm", "digits", "logistic", "least-squares", "surface")


@dataclass(frozen=True)
class OfRun:
    """A number of steps given as a fraction of the run.

    Example:
        >>> OfRun(0.5).steps(400)
        200
    """

    fraction: float

    def steps(self, total: int) -> int:
        """The fraction of ``total``, at least one step."""
        return max(1, round(self.fraction * total))


@dataclass(frozen=True)
class WindowOfRun:
    """The decay rate of an average over a fraction of the run: a memory that long runs can afford
    is no memory at all in a short one.

    Example:
        >>> WindowOfRun(0.1).decay(500)
        0.98
    """

    fraction: float

    def decay(self, total: int) -> float:
        """``1 - 1/window``, for a window of at least ten steps."""
        return 1 - 1 / max(10.0, self.fraction * total)


def resolved(value: Any, total: int) -> Any:
    """A setting for a run of ``total`` steps.

    Example:
        >>> resolved((0.9, WindowOfRun(0.1)), 500)
        (0.9, 0.98)
    """
    if isinstance(value, OfRun):
        return value.steps(total)
    if isinstance(value, WindowOfRun):
        return value.decay(total)
    if isinstance(value, tuple):
        return tuple(resolved(part, total) for part in value)
    return value


@dataclass(frozen=True)
class Setting:
    """How one optimizer is set up on one kind of task.

    Attributes:
        lr: peak learning rate; None keeps the optimizer's default.
        schedule: "constant", "linear" (down to 0) or "cosine" (down to 0).
        warmup: fraction of the run during which the learning rate rises linearly.
        options: further arguments of the optimizer.

    Example:
        >>> recommended("Lion", "lm").lr < recommended("AdamW", "lm").lr
        True
    """

    lr: float | None = None
    schedule: str = "constant"
    warmup: float = 0.0
    options: Mapping[str, Any] = field(default_factory=dict)


#                        lm      digits  logistic  least-squares  surface
LEARNING_RATES: dict[str, tuple[float | None, ...]] = {
    "SGD":                (3e-1,   3e-1,   3e-1,     1e-1,          1e-3),
    "HeavyBall":          (1e-1,   1e-1,   1e-1,     1e-2,          3e-4),
    "Nesterov":           (1e-1,   1e-1,   1e-1,     1e-2,          3e-4),
    "QHM":                (1e0,    1e0,    1e0,      1e-1,          3e-3),
    "ScheduleFreeSGD":    (1e0,    1e0,    1e0,      1e0,           3e-3),
    "Signum":             (3e-4,   1e-3,   1e-2,     1e-2,          1e-2),
    "Lion":               (2e-4,   3e-4,   3e-3,     1e-2,          1e-2),
    "AdamW":              (2e-3,   3e-3,   3e-2,     3e-2,          3e-2),
    "Adam":               (3e-3,   3e-3,   3e-2,     3e-2,          3e-2),
    "AMSGrad":            (3e-3,   3e-3,   3e-2,     3e-2,          3e-2),
    "AdaMax":             (3e-3,   3e-3,   3e-2,     3e-2,          3e-2),
    "NAdamW":             (3e-3,   3e-3,   3e-2,     3e-2,          3e-2),
    "RAdam":              (3e-3,   3e-3,   3e-2,     3e-2,          3e-2),
    "QHAdam":             (3e-3,   3e-3,   3e-2,     3e-2,          3e-2),
    "AdaBound":           (3e-3,   3e-3,   3e-2,     3e-2,          3e-2),
    "AMSBound":           (3e-3,   3e-3,   3e-2,     3e-2,          3e-2),
    "DiffGrad":           (3e-3,   3e-3,   3e-2,     3e-2,          3e-2),
    "ScheduleFreeAdamW":  (3e-3,   3e-3,   3e-2,     3e-2,          3e-2),
    "AdEMAMix":           (1e-3,   1e-3,   1e-2,     1e-2,          1e-2),
    "SimplifiedAdEMAMix": (3e-5,   1e-4,   1e-3,     1e-3,          1e-3),
    "MARS":               (3e-3,   3e-3,   3e-2,     3e-2,          3e-2),
    "Prodigy":            (1e0,    1e0,    1e0,      1e0,           1e0),
    "Adafactor":          (1e-2,   1e-2,   3e-2,     3e-2,          3e-2),
    "Muon":               (8e-3,   4e-3,   3e-2,     3e-2,          3e-2),
    "TurboMuon":          (8e-3,   4e-3,   3e-2,     3e-2,          3e-2),
    "AdaMuon":            (4e-3,   4e-3,   3e-2,     3e-2,          3e-2),
    "ScheduleFreeMuon":   (8e-3,   4e-3,   3e-2,     3e-2,          3e-2),
    "AdEMAMixMuon":       (4e-3,   2e-3,   3e-2,     3e-2,          3e-2),
    "MARSMuon":           (8e-3,   4e-3,   3e-2,     3e-2,          3e-2),
    "SOAP":               (4e-3,   3e-3,   3e-2,     3e-2,          3e-2),
    "Shampoo":            (3e-3,   3e-3,   3e-2,     3e-2,          3e-2),
    "Trion":              (2e-2,   2e-2,   2e-2,     2e-2,          2e-2),
    "DCTAdamW":           (2e-3,   3e-3,   3e-2,     3e-2,          3e-2),
    "Scion":              (2e-4,   2e-4,   None,     None,          None),
}  # fmt: skip

OPTIONS: dict[tuple[str, str], dict[str, Any]] = {
    ("AdamW", "lm"): {"betas": (0.9, 0.99), "weight_decay": 0.1},
    ("ScheduleFreeAdamW", "lm"): {"betas": (0.95, 0.99), "weight_decay": 0.1},
    # In the paper's runs the slow average spans some hundredths of the run, as here; its warm-ups
    # last the whole run.
    ("AdEMAMix", "lm"): {
        "betas": (0.9, 0.99, WindowOfRun(0.1)),
        "alpha": 5.0,
        "alpha_warmup": OfRun(1.0),
        "beta3_warmup": OfRun(1.0),
        "weight_decay": 0.1,
    },
    # Its steps are Adam's divided by sqrt((1 - 0.9) (1 - beta1)), about 0.04, so its decay is too.
    ("SimplifiedAdEMAMix", "lm"): {
        "betas": (WindowOfRun(0.1), 0.99),
        "alpha": 10.0,
        "beta1_warmup": OfRun(1.0),
        "weight_decay": 2.0,
    },
    ("Lion", "lm"): {"betas": (0.9, 0.99), "weight_decay": 0.3},
    # One learning rate, at AdamW's scale, for matrices and the rest.
    ("Muon", "lm"): {"convention": "moonshot", "fallback_betas": (0.9, 0.99)},
    ("TurboMuon", "lm"): {"convention": "moonshot", "fallback_betas": (0.9, 0.99)},
    ("Muon", "digits"): {"convention": "moonshot"},
    ("TurboMuon", "digits"): {"convention": "moonshot"},
    ("AdaMuon", "lm"): {"weight_decay": 0.1, "fallback_betas": (0.9, 0.99)},
    ("ScheduleFreeMuon", "lm"): {"weight_decay": 0.1, "fallback_beta2": 0.99, "warmup_steps": OfRun(0.1)},
    ("AdEMAMixMuon", "lm"): {"betas": (0.95, WindowOfRun(0.1)), "fallback_beta2": 0.99},
    ("MARSMuon", "lm"): {"fallback_betas": (0.9, 0.99)},
    ("SOAP", "lm"): {"weight_decay": 0.1, "fallback_betas": (0.9, 0.99)},
    ("Shampoo", "lm"): {"betas": (0.9, 0.99), "graft_beta2": 0.99, "weight_decay": 0.1},
    ("Trion", "lm"): {"weight_decay": 0.1, "fallback_lr": 2e-3, "fallback_betas": (0.9, 0.99)},
    ("Trion", "digits"): {"fallback_lr": 3e-3},
    ("DCTAdamW", "lm"): {"betas": (0.9, 0.99), "weight_decay": 0.1},
    ("MARS", "lm"): {"betas": (0.95, 0.99), "weight_decay": 0.1},
}

# Averaging the iterates is Schedule-Free's schedule, and Prodigy finds its own step.
CONSTANT = frozenset({"ScheduleFreeSGD", "ScheduleFreeAdamW", "ScheduleFreeMuon"})
STOCHASTIC_NETWORKS = frozenset({"lm", "digits"})


def recommended(name: str, family: str) -> Setting:
    """The setting of an optimizer (``torch.`` names included) on a family of tasks.

    Example:
        >>> recommended("ScheduleFreeAdamW", "lm").schedule
        'constant'
    """
    name = name.removeprefix("torch.")
    family = family if family in COLUMNS else "digits"
    rates = LEARNING_RATES.get(name)
    lr = rates[COLUMNS.index(family)] if rates else None
    networks = family in STOCHASTIC_NETWORKS
    return Setting(
        lr=lr,
        schedule="linear" if networks and name not in CONSTANT else "constant",
        warmup=0.1 if networks else 0.0,
        options=OPTIONS.get((name, family), {}),
    )
