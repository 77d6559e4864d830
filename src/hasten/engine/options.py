"""The keyword arguments that every optimizer takes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal, TypedDict

import torch

from hasten.checks import check_choice, nearest


class EngineOptions(TypedDict, total=False):
    """Keyword arguments that every optimizer takes.

    maximize: ascend instead of descend. engine: "compiled" fuses each step into one pass over memory, "eager" does
    not, "auto" compiles from 4,096 parameters on a CPU (131,072 elsewhere) where a compiler works. on_nonfinite: what
    to do with a NaN or infinite gradient: "propagate" it as torch does, "raise" before anything is changed, or "skip"
    the step and count it in ``opt.skipped_steps``. stochastic_rounding: round bfloat16 parameters up or down at random,
    right on average, so that steps below half a unit in the last place are not lost. state_dtype: dtype of the
    averages of low-precision and float32 parameters (default float32; arithmetic is in float32 in any case). seed: of
    the random rounding.
    """

    maximize: bool
    engine: Literal["auto", "eager", "compiled"]
    on_nonfinite: Literal["propagate", "raise", "skip"]
    stochastic_rounding: bool
    state_dtype: torch.dtype | None
    seed: int


DEFAULTS: EngineOptions = {
    "maximize": False,
    "engine": "auto",
    "on_nonfinite": "propagate",
    "stochastic_rounding": False,
    "state_dtype": None,
    "seed": 0,
}
_ALLOWED: dict[str, tuple[Any, ...]] = {
    "maximize": (False, True),
    "engine": ("auto", "eager", "compiled"),
    "on_nonfinite": ("propagate", "raise", "skip"),
    "stochastic_rounding": (False, True),
    "state_dtype": (None, torch.float32, torch.bfloat16, torch.float64),
}


def read_options(owner: str, given: dict[str, Any], arguments: Iterable[str]) -> dict[str, Any]:
    """Every option, given or default; `arguments` are the other names that a misspelt one may have meant.

    Raises:
        TypeError: an unknown keyword, with the nearest known one.
        ValueError: a value that is not allowed.
    """
    for key in given:
        if key not in DEFAULTS:
            raise TypeError(f"{owner} has no argument {key!r}{nearest(key, {*arguments, *DEFAULTS})}")
    options: dict[str, Any] = {**DEFAULTS, **given}
    for key, allowed in _ALLOWED.items():
        check_choice(owner, key, options[key], allowed)
    if isinstance(options["seed"], bool) or not isinstance(options["seed"], int):
        raise ValueError(f"{owner}: seed = {options['seed']!r} is not allowed; it must be an integer")
    return options
