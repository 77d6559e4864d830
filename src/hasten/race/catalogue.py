"""The design space as a table, and one optimizer explained: both read off the code itself."""

from __future__ import annotations

import difflib
import inspect
import re
from typing import Any

import torch
from torch import nn

from hasten.race.entrants import optimizer_class, optimizer_names
from hasten.race.errors import unknown

COLUMNS = ("name", "oracle", "momentum", "geometry", "step", "iterate", "floats")
WORDS = COLUMNS[1:-1]
EVERYDAY = frozenset({"Backpropagation", "WeightDecay", "Plain"})
"""Parts that most sentences have: they make nobody relatives."""


def sample_optimizer(name: str) -> Any:
    """An optimizer of the catalogue with its defaults, over one matrix.

    Example:
        >>> sample_optimizer("AdamW").param_groups[0]["lr"]
        0.001
    """
    return optimizer_class(name)([nn.Parameter(torch.zeros(32, 32))])


def words_of(optimizer: Any) -> dict[str, list[str]]:
    """The names of an optimizer's parts under the words of the sentence.

    Example:
        >>> words_of(sample_optimizer("Lion"))["geometry"]
        ['Sign']
    """
    found: dict[str, list[str]] = {word: [] for word in WORDS}
    for part in optimizer.sentence.parts:
        found[part.word].append(type(part).__name__)
    return found


def floats_of(optimizer: Any) -> float:
    """Numbers of state kept for each parameter.

    Example:
        >>> floats_of(sample_optimizer("AdamW"))
        2.0
    """
    from hasten import describe

    return float(describe(optimizer).floats_per_parameter)


def own_names() -> list[str]:
    """The catalogue without torch's own optimizers.

    Example:
        >>> "AdamW" in own_names()
        True
    """
    return [name for name in optimizer_names() if not name.startswith("torch.")]


def rows() -> list[tuple[str, ...]]:
    """The design space: one row under `COLUMNS` for each optimizer.

    Example:
        >>> rows()[0][0]
        'SGD'
    """
    table = []
    for name in own_names():
        optimizer = sample_optimizer(name)
        words = words_of(optimizer)
        cells = [
            ", ".join(spoken(part) for part in words[word] if part not in EVERYDAY) or "·" for word in WORDS
        ]
        table.append((name, *cells, f"{floats_of(optimizer):.3g}"))
    return table


def spoken(part: str) -> str:
    """A part's name as words, which a narrow table can break.

    Example:
        >>> spoken("SecondMoment"), spoken("EMA")
        ('second moment', 'EMA')
    """
    words = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", part)
    return part if part.isupper() else words.lower()


def explain(name: str) -> dict[str, str]:
    """Everything worth knowing about an optimizer, as titled paragraphs.

    Example:
        >>> list(explain("ademamix"))[0]
        'AdEMAMix'
    """
    known = {n.lower(): n for n in own_names()}
    if name.lower() not in known:
        raise unknown("optimizer", name, known.values())
    name = known[name.lower()]
    kind, optimizer = optimizer_class(name), sample_optimizer(name)
    prose = inspect.cleandoc(kind.__doc__ or "").split("\nExample:")[0].split("\nArgs:")[0]
    return {
        name: prose.strip(),
        "Parts": _parts(optimizer),
        "Arguments": _arguments(kind, optimizer),
        "State": _state(optimizer),
        "Source": kind.source or "–",
        "Relatives": ", ".join(relatives(name)) or "–",
    }


def _parts(optimizer: Any) -> str:
    lines = [str(optimizer.sentence)]
    for part in optimizer.sentence.parts:
        formula = part.formula.strip().replace("\n", "\n" + " " * 38)
        lines.append(f"  {part.word:<10}{type(part).__name__:<26}{formula}".rstrip())
    return "\n".join(lines)


def _arguments(kind: Any, optimizer: Any) -> str:
    """Names and defaults from the signature, meanings from the parts that declare them."""
    meanings: dict[str, list[str]] = {}
    for own_name, place in sorted(optimizer.places.items(), key=lambda item: item[1].index or 0):
        meanings.setdefault(place.key, []).append(optimizer.hypers[own_name].meaning)
    lines = []
    for parameter in inspect.signature(kind).parameters.values():
        if parameter.default is not inspect.Parameter.empty:
            meaning = "; ".join(meanings.get(parameter.name, []))
            lines.append(f"  {parameter.name + '=' + repr(parameter.default):<34}{meaning}".rstrip())
    lines.append("  and maximize, engine, on_nonfinite, stochastic_rounding, state_dtype, seed")
    return "\n".join(lines)


def _state(optimizer: Any) -> str:
    names = [slot.name for slot in optimizer.compositions[0].slots]
    return f"  {floats_of(optimizer):.3g} floats per parameter: {', '.join(names) or 'none'}"


def relatives(name: str, most: int = 5) -> list[str]:
    """Optimizers that share most parts with one, everyday parts not counted.

    Example:
        >>> "Lion" in relatives("Signum")
        True
    """
    others = [other for other in own_names() if other != name]
    own = _rare_parts(name)
    shared = {other: len(own & _rare_parts(other)) for other in others}
    near = sorted(
        (other for other in others if shared[other]),
        key=lambda other: (-shared[other], -difflib.SequenceMatcher(None, name, other).ratio()),
    )
    return near[:most]


def _rare_parts(name: str) -> set[str]:
    parts = {type(part).__name__ for part in sample_optimizer(name).sentence.parts}
    return parts - EVERYDAY
