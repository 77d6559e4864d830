"""A griffe extension: what docstrings write for ``help()`` becomes what the site can render."""

from __future__ import annotations

import re
from typing import Any

import griffe

ROLE = re.compile(r":\w+:`~?([^`]+)`")
EXAMPLE = re.compile(r"^Example:$", re.MULTILINE)


class Docstrings(griffe.Extension):
    """Rewrite Sphinx roles as code, and a lone example as the section that griffe knows."""

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        """Rewrite the docstring of every object that is read."""
        if obj.docstring is not None:
            text = ROLE.sub(lambda m: f"`{m[1].rpartition('.')[2]}`", obj.docstring.value)
            obj.docstring.value = EXAMPLE.sub("Examples:", text)
