"""Which parameters are matrices, and which are moved by the sentence for all others."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn


def matrix_groups(params: Any) -> list[dict[str, Any]]:
    """Parameter groups for an optimizer that works on matrices."""
    given = params.named_parameters() if isinstance(params, nn.Module) else params
    found: dict[bool, list[Any]] = {True: [], False: []}
    groups: list[dict[str, Any]] = []
    for item in given:
        if isinstance(item, dict):
            groups.append(item)
            continue
        p: Tensor = item[1] if isinstance(item, tuple) else item
        found[p.dim() >= 2].append(item)
    return [*groups, *({"params": own, "matrices": kind} for kind, own in found.items() if own)]
