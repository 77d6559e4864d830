"""A griffe extension: what docstrings write for ``help()`` becomes what the site can render."""

from __future__ import annotations

import re
from typing import Any

import griffe

ROLE = re.compile(r":\w+:`~?([^`]+)`")
TOGETHER = re.compile(
    r"^(?P<indent> +)(?P<names>[a-z_]\w*(?:, [a-z_]\w*)+)(?P<text>: .*(?:\n(?P=indent) +.*)*)$", re.MULTILINE
)
"""Arguments that are explained together, as ``a, b: text``."""
EXAMPLE = re.compile(r"^Example:$", re.MULTILINE)


class Docstrings(griffe.Extension):
    """Rewrite Sphinx roles as code, arguments explained together one by one, a lone example as a section."""

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        """Rewrite the docstring of every object that is read."""
        if obj.docstring is not None:
            text = ROLE.sub(lambda m: f"`{m[1].rpartition('.')[2]}`", obj.docstring.value)
            obj.docstring.value = EXAMPLE.sub("Examples:", TOGETHER.sub(_apart, text))


def _apart(found: re.Match[str]) -> str:
    return "\n".join(found["indent"] + name + found["text"] for name in found["names"].split(", "))
