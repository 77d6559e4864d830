"""Tensors are read as matrices and put together again without loss, whatever their shape, layout and split."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import hasten
from hasten.engine.composition import Sentence
from hasten.engine.structure import Structure, structure_of
from hasten.iterates import Plain
from hasten.oracles import Backpropagation
from hasten.transforms import EMA, Orthogonalize

LIKES = {
    "rows": lambda size: (size[0], size[0]),
    "columns": lambda size: (size[1],),
    "one": lambda size: (),
    "none": lambda size: (0,),
    "rows of wide ones only": lambda size: (size[0], 2) if size[0] <= size[1] else (0, 2),
}


@st.composite
def readings(draw: st.DrawFn) -> tuple[Structure, torch.Size, int]:
    """A structure, the shape of a tensor that can be read so, and how many of them there are."""
    layout = draw(st.sampled_from(["flatten", "stack"]))
    heights = draw(st.lists(st.integers(1, 4), min_size=1, max_size=3))
    split: int | tuple[int, ...] | None = draw(st.sampled_from([None, "equal", "heights"]))  # type: ignore[arg-type]
    rows = sum(heights)
    if split == "heights":
        split = tuple(heights)
    elif split == "equal":
        split = len(heights)
        rows = heights[0] * split
    others = draw(st.lists(st.integers(1, 3), min_size=0, max_size=2))
    columns = draw(st.integers(1, 4))
    shape = (rows, *others, columns) if layout == "flatten" else (*others, rows, columns)
    return Structure(layout, split), torch.Size(shape), draw(st.integers(1, 3))


def numbered(*shape: int) -> Tensor:
    return torch.arange(math.prod(shape), dtype=torch.float64).reshape(shape)


@given(readings())
def test_pieces_are_matrices_and_assemble_undoes_them(reading: tuple[Structure, torch.Size, int]) -> None:
    structure, shape, k = reading
    assert not structure.check(shape)
    stack = numbered(k, *shape)
    pieces = structure.pieces(stack)
    count, _, columns = structure.matrix(shape)
    assert [p.shape for p in pieces] == [(k * count, h, columns) for h in structure.heights(shape)]
    assert torch.equal(structure.assemble(pieces, shape), stack)


@given(readings())
def test_the_matrices_are_those_of_each_tensor_alone(reading: tuple[Structure, torch.Size, int]) -> None:
    """What is written by hand: matrix j of tensor i is a slice of that tensor."""
    structure, shape, k = reading
    stack = numbered(k, *shape)
    count, rows, columns = structure.matrix(shape)
    starts = [sum(structure.heights(shape)[:i]) for i in range(len(structure.heights(shape)))]
    for piece, start, height in zip(structure.pieces(stack), starts, structure.heights(shape), strict=True):
        for i in range(k):
            for j in range(count):
                if structure.layout == "flatten":
                    expected = stack[i].flatten(1)[start : start + height]
                else:
                    expected = stack[i].reshape(-1, rows, columns)[j, start : start + height]
                assert torch.equal(piece[i * count + j], expected)


@given(readings(), st.sampled_from(sorted(LIKES)))
def test_what_is_kept_is_found_again(reading: tuple[Structure, torch.Size, int], like: str) -> None:
    structure, shape, k = reading
    count, _, columns = structure.matrix(shape)
    function = LIKES[like]
    kept = [function(torch.Size((height, columns))) for height in structure.heights(shape)]
    generator = torch.Generator().manual_seed(0)
    pieces = [torch.randn(k * count, *s, generator=generator) for s in kept]
    buffers = structure.keep(pieces, function, shape)
    assert buffers.shape == (k, *structure.kept_shape(function, shape))
    assert buffers.numel() == sum(p.numel() for p in pieces)
    for i, piece in enumerate(pieces):
        found = structure.kept_piece(list(buffers), function, shape, i)
        assert torch.equal(found, piece)


def test_one_matrix_keeps_what_its_part_declares() -> None:
    assert Structure().kept_shape(LIKES["rows"], (3, 4)) == (3, 3)
    assert Structure().kept_shape(LIKES["rows"], (3, 2, 2)) == (3, 3)
    assert Structure(split=2).kept_shape(LIKES["rows"], (6, 4)) == (2, 3, 3)
    assert Structure("stack").kept_shape(LIKES["rows"], (5, 3, 4)) == (5, 3, 3)
    assert Structure(split=(4, 1, 1)).kept_shape(LIKES["rows"], (6, 4)) == (18,)


@pytest.mark.parametrize(
    ("structure", "shape", "reason"),
    [
        (Structure(), (3,), "fewer than two dimensions"),
        (Structure(), (), "fewer than two dimensions"),
        (Structure(split=4), (6, 2), "its 6 rows cannot be split into 4 equal parts"),
        (Structure(split=(4, 1)), (6, 2), r"its 6 rows are not 4 \+ 1"),
        (Structure("stack", 4), (4, 6, 2), "its 6 rows cannot be split into 4 equal parts"),
    ],
)
def test_what_cannot_be_read_so_is_told_why(
    structure: Structure, shape: tuple[int, ...], reason: str
) -> None:
    import re

    assert re.search(reason, structure.check(shape))


# -- group keys -------------------------------------------------------------------------------------------------------


def sentence() -> Sentence:
    return Sentence(Backpropagation(), (EMA(0.9),), Plain(0.5))


def optimizer(groups: object, vectors: bool = True) -> hasten.Optimizer:
    return hasten.Optimizer(
        groups, EMA(0.9), Orthogonalize(), lr=0.1, vectors=sentence() if vectors else None
    )


def leaf(*shape: int) -> Tensor:
    return torch.ones(shape, requires_grad=True)


@pytest.mark.parametrize(
    ("group", "message"),
    [
        ({"layout": "rows"}, "layout = 'rows' is not allowed; it must be one of None, 'flatten', 'stack'"),
        ({"matrices": 1}, "matrices = 1 is not allowed; it must be one of None, True, False"),
        ({"split": 0}, "split = 0 is not allowed; it must be a number of equal parts"),
        ({"split": ()}, r"split = \(\) is not allowed"),
        ({"split": (2, -1)}, r"split = \(2, -1\) is not allowed"),
        ({"split": True}, "split = True is not allowed"),
        ({"split": 2.0}, "split = 2.0 is not allowed"),
        (
            {"split": 4},
            r"parameter 0 of a group, of shape \(6, 3\), is not a matrix: its 6 rows cannot be split",
        ),
        ({"splitt": 2}, "unknown key 'splitt'"),
    ],
)
def test_what_a_group_says_is_checked_and_nothing_changes(group: dict[str, object], message: str) -> None:
    opt = optimizer([leaf(4, 4)])
    before, count = len(opt.param_groups), opt.parameter_count
    with pytest.raises(ValueError, match=f"^Optimizer: .*{message}"):
        opt.add_param_group({"params": [leaf(6, 3)], **group})
    with pytest.raises(ValueError, match=r"not allowed|cannot be read|unknown key|not a matrix"):
        optimizer([{"params": [leaf(6, 3)], **group}])
    assert len(opt.param_groups) == before
    assert len(opt.state) == 1
    assert opt.parameter_count == count


def test_vectors_are_no_matrices() -> None:
    with pytest.raises(
        ValueError, match=r"parameter 'b', of shape \(3,\), is not a matrix: it has fewer than two"
    ):
        optimizer([("w", leaf(3, 3)), ("b", leaf(3))], vectors=False)
    with pytest.raises(ValueError, match=r"of shape \(3,\), .* a matrix"):
        optimizer([{"params": [leaf(3)], "matrices": True}])
    with pytest.raises(
        ValueError, match=r"matrices = False is not allowed: it has no sentence for other parameters"
    ):
        optimizer([{"params": [leaf(3, 3)], "matrices": False}], vectors=False)
    for key, value in [("matrices", True), ("layout", "stack"), ("split", 2)]:
        with pytest.raises(
            ValueError, match=f"AdamW: {key} = {value!r} is not allowed: it needs no matrices"
        ):
            hasten.AdamW([{"params": [leaf(2, 2)], key: value}])


def test_parameters_of_a_group_may_come_from_a_generator() -> None:
    model = nn.Linear(3, 2)
    for make in (optimizer, hasten.AdamW):
        opt = make([{"params": (p for p in [model.weight])}])
        assert opt.param_groups[0]["params"] == [model.weight]
        opt.add_param_group({"params": iter([leaf(2, 2)])})
        assert [len(group["params"]) for group in opt.param_groups] == [1, 1]


def test_the_structure_travels_with_a_checkpoint() -> None:
    first, second = leaf(6, 3), leaf(6, 3)
    opt = optimizer([{"params": [first], "split": (2, 4)}])
    other = optimizer([{"params": [second]}])
    other.load_state_dict(opt.state_dict())
    assert structure_of(other.param_groups[0]) == Structure(split=(2, 4))
    for p, o in [(first, opt), (second, other)]:
        p.grad = numbered(6, 3).float()
        o.step()
    assert torch.equal(first, second)
    for bad in ({"split": (2, 5)}, {"layout": "rows"}, {"matrices": False}):
        saved = opt.state_dict()
        saved["param_groups"][0].update(bad)
        before = dict(other.param_groups[0])
        with pytest.raises(ValueError, match=r"^Optimizer: "):
            optimizer([{"params": [second]}], vectors=False).load_state_dict(saved)
        if "matrices" not in bad:
            with pytest.raises(ValueError, match=r"^Optimizer: "):
                other.load_state_dict(saved)
        assert other.param_groups[0] == before
