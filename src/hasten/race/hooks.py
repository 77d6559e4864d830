"""How several workers exchange what they know: the text ``"none,subspace(ratio=64)"`` read."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from hasten.optimizers import Nesterov
from hasten.race.errors import RaceError, one_line
from hasten.race.known import sized_sketch
from hasten.race.reading import read_calls
from hasten.race.ways import AllReduce, Averaged, InSubspace, Local, PowerSGD, Way
from hasten.sketches import BalancedCountSketch

if TYPE_CHECKING:
    from hasten.distributed import Compressor, Exchange

PLAIN = "none"
"""The way that labels do not mention."""
EXAMPLE = "none,subspace(ratio=64)"


@dataclass(frozen=True)
class HookSpec:
    """A way to exchange, as it was asked for.

    Attributes:
        label: the text it was asked for with.
        name: which of `WAYS`.
        options: its arguments.

    Example:
        >>> parse_hooks("subspace(ratio=16)")[0].options
        {'ratio': 16}
    """

    label: str
    name: str
    options: dict[str, Any] = field(default_factory=dict)

    def way(self) -> Way:
        """What it is."""
        return WAYS[self.name](**self.options)


def _none() -> Way:
    return AllReduce()


def _bf16() -> Way:
    from hasten.distributed import AllReduce as Mean
    from hasten.distributed import Hook

    return Averaged(lambda seed: Hook(Mean(torch.bfloat16)))


def _subspace(
    *,
    ratio: float | None = None,
    rank: int | None = None,
    sketch: str = "BalancedCountSketch",
    feedback: bool = False,
) -> Way:
    from hasten.distributed import Sketched
    from hasten.distributed.linear import RATIO

    family = sized_sketch(sketch, rank, RATIO if rank is None and ratio is None else ratio)
    return _fed_back(lambda seed: Sketched(family, seed=seed)) if feedback else InSubspace(family)


def _fed_back(compressor: Callable[[int], Compressor]) -> Way:
    from hasten.distributed import ErrorFeedback, Hook

    return Averaged(lambda seed: Hook(ErrorFeedback(compressor(seed))))


def _lowrank(*, rank: int = 2) -> Way:
    from hasten.distributed import LowRank

    return _fed_back(lambda seed: LowRank(rank, seed=seed))


def _topk(*, ratio: float = 100) -> Way:
    from hasten.distributed import TopK

    return _fed_back(lambda seed: TopK(ratio))


def _dct(*, rank: int = 4) -> Way:
    from hasten.distributed import DCTColumns

    return _fed_back(lambda seed: DCTColumns(rank))


def _sign() -> Way:
    from hasten.distributed import Sign

    return _fed_back(lambda seed: Sign())


def _local(
    *,
    every: int = 32,
    ratio: float | None = None,
    feedback: bool = False,
    lr: float | None = None,
    momentum: float = 0.0,
) -> Way:
    from hasten.distributed import ErrorFeedback, Sketched, Subspace

    def exchange(seed: int) -> Exchange | None:
        if ratio is None:
            return None
        family = BalancedCountSketch(ratio=ratio)
        return ErrorFeedback(Sketched(family, seed=seed)) if feedback else Subspace(family, seed=seed)

    if feedback and ratio is None:
        raise ValueError("feedback=True needs a ratio: what is exchanged whole leaves nothing to feed back")
    if lr is None and momentum:
        raise ValueError(f"momentum = {momentum!r} needs an lr: both are of the outer step")
    return Local(every, exchange, None if lr is None else partial(Nesterov, lr=lr, momentum=momentum))


def _powersgd(*, rank: int = 1, start: int = 2) -> Way:
    return PowerSGD(rank, start)


WAYS: dict[str, Callable[..., Way]] = {
    PLAIN: _none,
    "bf16": _bf16,
    "subspace": _subspace,
    "lowrank": _lowrank,
    "topk": _topk,
    "dct": _dct,
    "sign": _sign,
    "local": _local,
    "powersgd": _powersgd,
}
"""All ways by name: all-reduce in float32 and in bfloat16; a random subspace; with error feedback low rank, the
largest entries, columns of a cosine transform, and signs; local steps, in DiLoCo's form; torch's PowerSGD."""


def parse_hooks(text: str | Iterable[str]) -> list[HookSpec]:
    """Read ``"none, subspace(ratio=64)"``, and try every one.

    Raises:
        RaceError: there is no such way, or it refuses an argument.

    Example:
        >>> parse_hooks("subspce")
        Traceback (most recent call last):
        ...
        hasten.race.errors.RaceError: unknown hook 'subspce': did you mean 'subspace'?
    """
    found = [HookSpec(*called) for called in read_calls(text, "hook", EXAMPLE, WAYS)]
    for spec in found:
        accepted = list(inspect.signature(WAYS[spec.name]).parameters)
        for option in spec.options:
            if option not in accepted:
                takes = f"takes {', '.join(accepted)}" if accepted else "takes no arguments"
                raise RaceError(f"hook {spec.label}: {option} is not allowed; {spec.name} {takes}")
        try:
            spec.way()
        except (TypeError, ValueError) as error:
            raise RaceError(f"hook {spec.label}: {one_line(error)}") from error
    return found
