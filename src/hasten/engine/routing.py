"""Which parameters are matrices, and which are moved by the sentence for all others."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from torch import Tensor, nn

from hasten.engine.layers import Kind, Place, judge, last_layer
from hasten.engine.structure import KEYS, Layout, Structure, check_structure


@dataclass(frozen=True)
class Assignment:
    """What was decided about one parameter, and why.

    `kind`: ``"matrix"`` if it goes to the sentence for matrices, otherwise what it is instead. `structure` says how a
    matrix is read; None for all others.
    """

    name: str
    shape: tuple[int, ...]
    kind: Kind
    why: str
    structure: Structure | None

    @property
    def read_as(self) -> str:
        """The matrices that the parameter holds, such as ``3 × (160, 160)``."""
        if self.structure is None:
            return ""
        count, rows, columns = self.structure.matrix(self.shape)
        heights = self.structure.heights(self.shape)
        number = f"{count * len(heights)} × " if count * len(heights) > 1 else ""
        if len(set(heights)) == 1:
            return f"{number}({heights[0]}, {columns})"
        return f"rows {' + '.join(map(str, heights))} of ({rows}, {columns})"


class MatrixGroups(list[dict[str, Any]]):
    """Parameter groups, ready for any optimizer that works on matrices; prints as a table of what was decided.

    Attributes:
        assignments: what was decided about every parameter that came without a group's own ``matrices`` entry.
        module: the module they were read from, if it was one.
    """

    def __init__(
        self,
        groups: Iterable[dict[str, Any]] = (),
        assignments: Iterable[Assignment] = (),
        module: nn.Module | None = None,
    ) -> None:
        super().__init__(groups)
        self.assignments = tuple(assignments)
        self.module = module

    def __str__(self) -> str:
        heading = ("parameter", "shape", "kind", "read as", "why")
        rows = [
            heading,
            *((a.name, str(a.shape), a.kind, a.read_as, a.why) for a in self.assignments),
        ]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        return "\n".join(
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
            for row in rows
        )


def matrix_groups(
    params: Any,
    *,
    matrices: Iterable[str] = (),
    fallback: Iterable[str] = (),
    split: Mapping[str, int | tuple[int, ...]] | None = None,
    layout: Mapping[str, Layout] | None = None,
) -> MatrixGroups:
    """Parameter groups for an optimizer that works on matrices: hidden matrices to it, all others to its fallback.

    Of a module, these go to the fallback (``matrices=False``): embeddings; the output head, which is a linear layer
    named so, one that shares an embedding's matrix, or the last layer of the module if it is a direct child (or that
    of an outermost ``Sequential``); tensors with fewer than two dimensions, and those that are matrices in name only
    (of one row or column, depthwise convolutions, complex). All others are matrices:

    * convolutions are flattened to out × in·h·w; grouped ones split into their groups;
    * query, key and value in one projection are split into three, if it has three times as many rows as columns and
      a name by which that is known, and so are the gates of recurrent layers. Where heads are interleaved or of
      different numbers, only you know: `split`;
    * tensors with three or more dimensions that are no convolution's are stacks of matrices (experts);
    * ``Conv1D`` of transformers (GPT-2) and transposed convolutions are stored transposed, in × out.

    Of plain parameters, named or not, only the number of dimensions is known: every one with two or more is a matrix,
    also an embedding. Groups in which you have said ``matrices`` (or a role) stay as they are; others are divided in
    the same way, and both halves keep their entries, such as lr.

    Args:
        params: a module, parameters, named parameters, or parameter groups.
        matrices: patterns of names (as in a shell: ``*``, ``?``) of parameters that are matrices whatever was said
            above.
        fallback: patterns of names of parameters that are not.
        split: by pattern, into how many matrices of equal height the rows are split, or into which heights.
        layout: by pattern, ``"flatten"``, ``"stack"`` or ``"transposed"``: how a tensor is read as matrices.

    Returns:
        A list of groups, matrices first, with the names of parameters kept. ``print`` shows every decision.

    Raises:
        ValueError: a pattern that matches nothing; a parameter that is claimed twice, or cannot be read as said, or
            has not got its shape yet (lazy modules); names are needed for patterns and there are none.

    Example:
        >>> import torch, hasten
        >>> from hasten.problems import LanguageModel
        >>> groups = hasten.matrix_groups(LanguageModel(width=32, depth=1, heads=2), fallback=["*attention_out*"])
        >>> print(groups)
        parameter                        shape      kind       read as       why
        symbol.weight                    (128, 32)  embedding                in Embedding
        position.weight                  (64, 32)   embedding                in Embedding
        blocks.0.attention_norm.weight   (32,)      vector                   1 dimension
        blocks.0.attention_norm.bias     (32,)      vector                   1 dimension
        blocks.0.query_key_value.weight  (96, 32)   matrix     3 × (32, 32)  query, key and value
        blocks.0.attention_out.weight    (32, 32)   other                    fallback
        blocks.0.mlp_norm.weight         (32,)      vector                   1 dimension
        blocks.0.mlp_norm.bias           (32,)      vector                   1 dimension
        blocks.0.mlp_in.weight           (128, 32)  matrix     (128, 32)     in Linear
        blocks.0.mlp_out.weight          (32, 128)  matrix     (32, 128)     in Linear
        norm.weight                      (32,)      vector                   1 dimension
        norm.bias                        (32,)      vector                   1 dimension
        logits.weight                    (128, 32)  head                     named so
        >>> opt = hasten.Muon(groups, lr=0.02)
    """
    overrides = _Overrides(matrices, fallback, split or {}, layout or {})
    if isinstance(params, nn.Module):
        found = _divided(_of_module(params), {}, overrides)
    elif isinstance(params, Tensor) or not isinstance(params, Iterable):
        raise TypeError(
            f"matrix_groups: params = {type(params).__name__} is not allowed; it must be a module, or a list of "
            "parameters, of named parameters or of groups"
        )
    else:
        found = _of_list(list(params), overrides)
    overrides.check_all_matched()
    return MatrixGroups(*found, params if isinstance(params, nn.Module) else None)


@dataclass(frozen=True)
class _Member:
    """A parameter with all its names, and what is known about it before any override."""

    given: Any
    tensor: Tensor
    names: tuple[str, ...]
    label: str
    kind: Kind
    why: str
    structure: Structure


class _Overrides:
    """What the user says about names."""

    def __init__(
        self,
        matrices: Iterable[str],
        fallback: Iterable[str],
        split: Mapping[str, int | tuple[int, ...]],
        layout: Mapping[str, Any],
    ) -> None:
        for argument, given in (("matrices", matrices), ("fallback", fallback)):
            if isinstance(given, str):
                raise ValueError(
                    f"matrix_groups: {argument} = {given!r} is not allowed; it must be a list of patterns"
                )
        self.patterns: dict[str, dict[str, Any]] = {
            "matrices": dict.fromkeys(matrices, True),
            "fallback": dict.fromkeys(fallback, True),
            "split": dict(split),
            "layout": dict(layout),
        }
        for key in KEYS:
            for value in self.patterns[key].values():
                check_structure("matrix_groups", {key: value})
        self.matched: set[tuple[str, str]] = set()

    def of(self, names: tuple[str, ...]) -> dict[str, Any]:
        """What is said about a parameter; of several patterns the last counts."""
        said = {}
        for argument, patterns in self.patterns.items():
            for pattern, value in patterns.items():
                if any(fnmatchcase(name, pattern) for name in names):
                    self.matched.add((argument, pattern))
                    said[argument] = value
        return said

    def check_all_matched(self) -> None:
        for argument, patterns in self.patterns.items():
            for pattern in patterns:
                if (argument, pattern) not in self.matched:
                    raise ValueError(
                        f"matrix_groups: {argument}: no parameter has a name like {pattern!r}; names are those of "
                        "named_parameters()"
                    )


def _of_list(given: list[Any], overrides: _Overrides) -> tuple[list[dict[str, Any]], list[Assignment]]:
    """Groups stay in their order; parameters outside of groups are divided together."""
    groups: list[dict[str, Any]] = []
    assignments: list[Assignment] = []
    loose: list[Any] = []
    for item in given:
        if not isinstance(item, dict):
            loose.append(item)
        elif (
            item.get("matrices") is not None
            or item.get("role") is not None
            or isinstance(item.get("params"), set | None)
        ):
            groups.append(item)
        else:
            own = item["params"]
            members = _of_iterable([own] if isinstance(own, Tensor) else list(own))
            made, decided = _divided(members, item, overrides)
            groups += made
            assignments += decided
    made, decided = _divided(_of_iterable(loose), {}, overrides)
    return [*groups, *made], [*assignments, *decided]


def _divided(
    members: Iterable[_Member], entries: dict[str, Any], overrides: _Overrides
) -> tuple[list[dict[str, Any]], list[Assignment]]:
    """Members in one group for every structure, and one for the fallback, all with the entries of theirs."""
    groups: dict[Any, list[Any]] = {}
    assignments = []
    own = {key: entries[key] for key in KEYS if entries.get(key) is not None}
    for member in members:
        decided = _decided(member, {**own, **overrides.of(member.names)})
        assignments.append(decided)
        groups.setdefault(decided.structure, []).append(member.given)
    others = {key: value for key, value in entries.items() if key not in KEYS}
    made = [
        {**others, "params": given, "matrices": True, **_keys(structure)}
        for structure, given in groups.items()
        if structure is not None
    ]
    if None in groups:
        made.append({**others, "params": groups[None], "matrices": False})
    return made, assignments


def _keys(structure: Structure) -> dict[str, Any]:
    default = Structure()
    return {key: getattr(structure, key) for key in KEYS if getattr(structure, key) != getattr(default, key)}


def _decided(member: _Member, said: dict[str, Any]) -> Assignment:
    """What becomes of a parameter."""
    shape, kind, why = tuple(member.tensor.shape), member.kind, member.why
    structure = Structure(**{key: said.get(key, getattr(member.structure, key)) for key in KEYS})
    if "matrices" in said and "fallback" in said:
        raise ValueError(
            f"matrix_groups: {member.label!r} is matched by patterns of both matrices and fallback"
        )
    if "fallback" in said:
        kind, why = ("other" if kind == "matrix" else kind), "fallback"
    elif "matrices" in said:
        kind, why = "matrix", "matrices"
    if kind != "matrix":
        return Assignment(member.label, shape, kind, why, None)
    reason = structure.check(shape)
    if reason:
        raise ValueError(
            f"matrix_groups: {member.label!r}, of shape {shape}, cannot be read as a matrix: {reason}"
        )
    return Assignment(member.label, shape, kind, why, structure)


def _of_iterable(given: list[Any]) -> Iterator[_Member]:
    """Parameters of which nothing is known but their dimensions."""
    for i, item in enumerate(given):
        named = isinstance(item, tuple) and len(item) == 2
        tensor = item[1] if named else item
        label = item[0] if named else f"parameter {i}"
        if not isinstance(tensor, Tensor):
            raise TypeError(f"matrix_groups: {label} is {type(tensor).__name__}, not a tensor")
        names = (label,) if named else ()
        kind, why = _by_dimensions(tensor, label)
        yield _Member(item, tensor, names, label, kind, why, Structure())


def _by_dimensions(tensor: Tensor, label: str) -> tuple[Kind, str]:
    if isinstance(tensor, nn.parameter.UninitializedParameter):
        raise ValueError(
            f"matrix_groups: {label!r} has not got its shape yet; give the module one batch before the optimizer"
        )
    count = tensor.dim()
    why = f"{count} dimension{'' if count == 1 else 's'}"
    if count < 2:
        return "vector", why
    return ("other", "complex") if tensor.is_complex() else ("matrix", why)


def _of_module(module: nn.Module) -> Iterator[_Member]:
    """The parameters of a module, each once, with what its layers say."""
    layers = dict(module.named_modules())
    owners: dict[Tensor, list[Place]] = {}
    for path, layer in layers.items():
        parent = layers.get(path.rpartition(".")[0], module)
        for own, tensor in layer.named_parameters(recurse=False):
            owners.setdefault(tensor, []).append(Place(path, own, layer, parent))
    last = last_layer(module)
    for tensor, places in owners.items():
        names = tuple(place.name for place in places)
        kind, why = _by_dimensions(tensor, names[0])
        structure = Structure()
        if kind == "matrix":
            kind, why, structure = judge(tensor, places, last)
        yield _Member((names[0], tensor), tensor, names, names[0], kind, why, structure)
