"""Loading the state of an optimizer: checked as a whole, then copied in place."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor

from hasten.checks import nearest
from hasten.engine.parameters import ParameterGroups
from hasten.sharding import placed

_TORCH_ONLY = frozenset(
    {
        "foreach",
        "capturable",
        "differentiable",
        "fused",
        "maximize",
        "amsgrad",
        "decoupled_weight_decay",
        "nesterov",
    }
)
"""Entries of torch's parameter groups that say how, not what; ignored when a torch optimizer's state is loaded."""


def restore(optimizer: ParameterGroups, state_dict: dict[str, Any]) -> None:
    """Load a state dict; raises ValueError before anything is changed if it does not fit."""
    state_dict = dict(state_dict)
    for pre_hook in list(optimizer._optimizer_load_state_dict_pre_hooks.values()):
        replaced = pre_hook(optimizer, state_dict)
        state_dict = state_dict if replaced is None else replaced
    groups = _checked_groups(optimizer, state_dict)
    # A state dict shares its inner dicts with the optimizer that made it, which may be this one.
    states = {index: dict(entries) for index, entries in state_dict["state"].items()}
    indices = [index for saved in state_dict["param_groups"] for index in saved["params"]]
    params = [p for group in optimizer.param_groups for p in group["params"]]
    merged = [
        {**group, **entries}
        for group, entries in zip(optimizer.param_groups, groups, strict=True)
        for _ in group["params"]
    ]
    for index, p, group in zip(indices, params, merged, strict=True):
        _check_state(optimizer, p, states.get(index, {}), group)

    steps: list[float] = []
    for group, entries in zip(optimizer.param_groups, groups, strict=True):
        group.update(entries)  # which say what shapes the state has
    with torch.no_grad():
        for index, p in zip(indices, params, strict=True):
            saved = states.get(index, {})
            if saved or p.requires_grad:
                optimizer.initialise(p)
            for name, value in saved.items():
                target = optimizer.state[p][name]
                target.copy_(placed(torch.as_tensor(value), like=target))
            steps.append(float(saved.get("step", 0.0)))
    taken = int(max(steps, default=0))
    optimizer.written.clear()
    for group, entries in zip(optimizer.param_groups, groups, strict=True):
        group.update({"step": taken, **entries})
    for post_hook in list(optimizer._optimizer_load_state_dict_post_hooks.values()):
        post_hook(optimizer)


def _checked_groups(optimizer: ParameterGroups, state_dict: dict[str, Any]) -> list[dict[str, Any]]:
    """The entries to store in each group."""
    for key in ("state", "param_groups"):
        if key not in state_dict:
            raise ValueError(f"{optimizer.name}: the state dict has no {key!r}; it is not an optimizer's")
    saved_groups = state_dict["param_groups"]
    if len(saved_groups) != len(optimizer.param_groups):
        raise ValueError(
            f"{optimizer.name}: the state dict has {len(saved_groups)} parameter groups, "
            f"the optimizer {len(optimizer.param_groups)}"
        )
    found = []
    for i, (group, saved) in enumerate(zip(optimizer.param_groups, saved_groups, strict=True)):
        if len(saved["params"]) != len(group["params"]):
            raise ValueError(
                f"{optimizer.name}: group {i} of the state dict has {len(saved['params'])} parameters, "
                f"the optimizer's {len(group['params'])}"
            )
        entries = {
            key: copy.deepcopy(value)
            for key, value in saved.items()
            if key not in ("params", "param_names") and key not in _TORCH_ONLY
        }
        for key in entries:
            if key not in group and not optimizer.accepts_group_key(key):
                raise ValueError(
                    f"{optimizer.name}: group {i} of the state dict has {key!r}, which this optimizer does not know"
                    f"{nearest(key, group)}; was it saved by another optimizer?"
                )
        optimizer.check_role({**group, **entries})
        optimizer.check_group({**group, **entries})
        optimizer.check_tensors({**group, **entries})
        found.append(entries)
    return found


def _check_state(optimizer: ParameterGroups, p: Tensor, saved: dict[str, Any], group: dict[str, Any]) -> None:
    """Raise ValueError unless the saved tensors are those the optimizer keeps for this parameter."""
    if not saved:
        return
    expected = optimizer.state_shapes(p, group)
    for name, shape in expected.items():
        if name not in saved:
            raise ValueError(
                f"{optimizer.name}: the state dict has no {name!r} for {optimizer.name_of(p)} only "
                f"{', '.join(map(repr, saved))}; was it saved by another optimizer?"
            )
        if tuple(torch.as_tensor(saved[name]).shape) != shape:
            raise ValueError(
                f"{optimizer.name}: {name!r} of {optimizer.name_of(p)} has shape "
                f"{tuple(torch.as_tensor(saved[name]).shape)} in the state dict; it must be {shape}"
            )
    for name in saved:
        if name not in expected:
            raise ValueError(
                f"{optimizer.name}: the state dict has {name!r} for {optimizer.name_of(p)} which this optimizer does "
                "not keep; was it saved by another optimizer?"
            )
