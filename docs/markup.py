"""Text as Markdown: tables, code in their cells, docstrings."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Sequence


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; bars inside cells are escaped."""
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "&#124;") for cell in line) + " |" for line in lines)


def code(text: str) -> str:
    """Text as inline code in a table cell, where bars cannot be escaped by a backslash."""
    return f"<code>{text.replace('<', '&lt;')}</code>" if text else ""


def plain(docstring: str) -> str:
    """A docstring as Markdown: Sphinx roles become code."""
    return re.sub(r":\w+:`~?([^`]+)`", lambda m: f"`{m[1].rpartition('.')[2]}`", inspect.cleandoc(docstring))


def summary(thing: object) -> str:
    """The first paragraph of a docstring, on one line, fit for a cell."""
    paragraph = plain(thing.__doc__ or "").partition("\n\n")[0].replace("\n", " ")
    return re.sub(r"``(.+?)``", r"`\1`", paragraph)
