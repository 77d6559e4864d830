"""Reads lists of names with arguments, as in ``"AdamW, Lion(lr=3e-4)"``; nothing is evaluated."""

from __future__ import annotations

import ast
from collections.abc import Iterable
from typing import Any, NamedTuple

from hasten.race.errors import RaceError, unknown


class Called(NamedTuple):
    """A name and its arguments.

    Attributes:
        label: both as text, spelt in one way.
        name: as it is known.
        options: the arguments.

    Example:
        >>> Called("Lion(lr=0.1)", "Lion", {"lr": 0.1}).name
        'Lion'
    """

    label: str
    name: str
    options: dict[str, Any]


def read_calls(text: str | Iterable[str], kind: str, example: str, names: Iterable[str]) -> list[Called]:
    """Read ``"AdamW, Lion(lr=3e-4)"`` or a list of such. Values are Python literals; names do not mind capitals.

    Args:
        text: what to read.
        kind: what is named, for messages.
        example: how it is written, for messages.
        names: the known ones.

    Raises:
        RaceError: it cannot be read, nobody has the name, or something is named twice.

    Example:
        >>> read_calls("lion(lr=3e-4)", "optimizer", "Lion", ["Lion"])[0].label
        'Lion(lr=0.0003)'
    """
    text = text if isinstance(text, str) else ",".join(text)
    try:
        nodes = ast.parse(f"[{text}]", mode="eval").body
    except SyntaxError:
        raise RaceError(f"{kind}s {text!r} cannot be read: write them as {example!r}") from None
    if not isinstance(nodes, ast.List) or not nodes.elts:
        raise RaceError(f"{kind}s: name at least one, as in {example!r}")
    known = {name.lower(): name for name in names}
    found = [_called(node, kind, example, known) for node in nodes.elts]
    labels = [one.label for one in found]
    for label in labels:
        if labels.count(label) > 1:
            raise RaceError(f"{kind}s: {label} is named twice")
    return found


def _called(node: ast.expr, kind: str, example: str, known: dict[str, str]) -> Called:
    text = ast.unparse(node)
    called = node if isinstance(node, ast.Call) else ast.Call(node, [], [])
    # 'none' without capitals reads as Python's None where it was written with one
    named = isinstance(called.func, ast.Name | ast.Attribute) or ast.unparse(called.func) == "None"
    if not named or called.args:
        raise RaceError(
            f"{kind} {text!r} cannot be read: write a name and named arguments, as in {example.split(',')[-1]}"
        )
    asked = ast.unparse(called.func)
    if asked.lower() not in known:
        raise unknown(kind, asked, known.values())
    name = known[asked.lower()]
    options = {str(keyword.arg): _literal(name, keyword) for keyword in called.keywords}
    arguments = ", ".join(f"{key}={_written(value)}" for key, value in options.items())
    return Called(f"{name}({arguments})" if options else name, name, options)


def _literal(name: str, keyword: ast.keyword) -> Any:
    try:
        return ast.literal_eval(keyword.value)
    except ValueError:
        raise RaceError(
            f"{name}: {keyword.arg}={ast.unparse(keyword.value)} is not a plain value "
            "(a number, a string, a tuple)"
        ) from None


def _written(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else repr(value)
