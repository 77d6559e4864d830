"""Which norm suits which layer."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Mapping
from typing import Any, Literal, TypeAlias

from torch import Tensor, nn

from hasten.checks import check_choice
from hasten.engine.routing import matrix_groups
from hasten.transforms.norms import NORMS
from hasten.words import Value

Kind: TypeAlias = Literal["hidden", "embedding", "head", "vector"]

MODULAR: Mapping[Kind, str] = {
    "hidden": "rms_to_rms",
    "embedding": "embedding",
    "head": "rms_to_max",
    "vector": "rms",
}
"""Norms under which a step of length 1 changes what every layer puts out by about 1, whatever its width."""


def norm_groups(
    params: Any,
    norms: Mapping[Kind, str] = MODULAR,
    radii: Mapping[Kind, Value] | None = None,
    kinds: Mapping[str, Kind] | None = None,
) -> Any:
    """Parameter groups for :class:`~hasten.SteepestDescent`: one for every kind of layer, with its norm.

    The kinds in a module are those of :func:`~hasten.matrix_groups`, which also says how tensors are read as matrices
    (convolutions, fused projections); a matrix that is embedding and head at once is a head. Of parameters without
    their module, only the number of dimensions is known: they are hidden, or vectors. Groups that name a norm keep it,
    except that their vectors have the one for vectors if it is one of matrices.

    Args:
        params: a module, parameters, named parameters or groups.
        norms: by kind; all four.
        radii: by kind; kinds that are left out have the optimizer's.
        kinds: of a module's parameters, by patterns of their names (as in a shell: ``*``, ``?``); the first that fits.

    Raises:
        ValueError: an unknown kind or norm, or a pattern that fits no parameter.

    Example:
        >>> import torch, hasten
        >>> embedding, linear = torch.nn.Embedding(10, 4), torch.nn.Linear
        >>> model = torch.nn.Sequential(embedding, linear(4, 8), torch.nn.ReLU(), linear(8, 10, bias=False))
        >>> for group in hasten.norm_groups(model):
        ...     print(group["norm"], *(name for name, _ in group["params"]))
        embedding 0.weight
        rms_to_rms 1.weight
        rms 1.bias
        rms_to_max 3.weight
    """
    radii, kinds = radii or {}, kinds or {}
    for named in (*radii, *kinds.values()):
        check_choice("norm_groups", "kind", named, MODULAR)
    for kind in MODULAR:
        check_choice("norm_groups", f"the norm of kind {kind!r}", norms.get(kind), NORMS)
    if isinstance(params, nn.Module):
        return _of_module(params, norms, radii, kinds)
    if kinds:
        raise ValueError("norm_groups: kinds is not allowed without a module, which has the names")
    if isinstance(params, Tensor | dict) or not isinstance(params, Iterable):
        return params  # for torch to refuse
    return [_of_list(group, norms["vector"], radii) for group in matrix_groups(params)]


def _of_list(group: dict[str, Any], vector_norm: str, radii: Mapping[Kind, Value]) -> dict[str, Any]:
    """A group of matrices, or one of vectors."""
    if group.get("matrices") is not False:
        return group
    named = group.get("norm")
    norm = {"norm": vector_norm} if named in NORMS and NORMS[named].matrices else {}
    radius = {"radius": radii["vector"]} if "vector" in radii and named is None else {}
    return {**radius, **group, **norm}


def _of_module(
    module: nn.Module, norms: Mapping[Kind, str], radii: Mapping[Kind, Value], kinds: Mapping[str, Kind]
) -> list[dict[str, Any]]:
    divided = matrix_groups(module)
    found = {a.name: a.kind for a in divided.assignments}
    structures = {
        name: {key: value for key, value in group.items() if key not in ("params", "matrices")}
        for group in divided
        for name, _ in group["params"]
    }
    tied, used, groups = _tied(module), set[str](), dict[Any, dict[str, Any]]()
    for name, p in ((name, p) for name, p in module.named_parameters() if name in found):
        pattern = next((own for own in kinds if fnmatch.fnmatchcase(name, own)), None)
        kind: Kind
        if pattern is not None:
            used.add(pattern)
            kind = kinds[pattern]
        elif id(p) in tied or found[name] == "head":
            kind = "head"
        elif found[name] == "embedding":
            kind = "embedding"
        else:
            kind = "vector" if p.dim() < 2 else "hidden"
        structure = structures[name]
        if kind == "embedding" and p.dim() > 2:  # positions are kept as 1 × n × width
            structure = {"layout": "stack"}
        radius = {"radius": radii[kind]} if kind in radii else {}
        entries = {"matrices": kind != "vector", "norm": norms[kind], **radius, **structure}
        groups.setdefault((kind, *structure.items()), {"params": [], **entries})["params"].append((name, p))
    if len(used) < len(kinds):
        unused = next(pattern for pattern in kinds if pattern not in used)
        raise ValueError(
            f"norm_groups: kinds: no parameter has a name like {unused!r}, or all have others first"
        )
    return list(groups.values())


def _tied(module: nn.Module) -> set[int]:
    """The identities of matrices that are embeddings and linear layers."""
    embeddings, linear = (
        {id(m.weight) for m in module.modules() if isinstance(m, kind)}
        for kind in (nn.Embedding | nn.EmbeddingBag, nn.Linear)
    )
    return embeddings & linear
