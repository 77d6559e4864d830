"""Cutting into blocks, and putting together again."""

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hasten.transforms.blocks import Blocks, merged

sizes = st.lists(st.integers(1, 7), min_size=1, max_size=4).map(tuple)


def numbered(k, *size):
    return torch.arange(float(k * math.prod(size))).view(k, *size)


@given(sizes, st.integers(1, 8), st.integers(1, 3))
def test_joining_undoes_cutting_and_blocks_are_those_of_torch_split(size, limit, k):
    blocks, x = Blocks(size, limit), numbered(k, *size)
    cut = blocks.cut(x)
    assert torch.equal(blocks.join(cut), x)
    by_hand = [x]
    for dimension in range(1, len(size) + 1):
        by_hand = [part for block in by_hand for part in block.split(limit, dimension)]
    found = [block for own in cut for block in own]
    expected = [block for own in by_hand for block in own]
    assert len(found) == len(expected)
    assert all(any(torch.equal(a, b) for b in expected) for a in found)


@given(sizes, st.integers(1, 8), st.integers(1, 3))
def test_packing_undoes_unpacking(size, limit, k):
    blocks = Blocks(size, limit)
    for dimension in range(len(size)):
        shape = blocks.squares_shape(dimension)
        kept = numbered(k, *shape)
        unpacked = blocks.unpack(kept, dimension)
        assert [own.shape[-1] for own in unpacked] == [kind.lengths[dimension] for kind in blocks.kinds]
        assert torch.equal(blocks.pack(unpacked, dimension), kept)


def test_blocks_of_a_stack_stay_with_their_tensor():
    blocks = Blocks((4, 2), limit=2)
    one, two = numbered(1, 4, 2), numbered(1, 4, 2) + 100
    (together,) = blocks.cut(torch.cat([one, two]))
    assert torch.equal(together, torch.cat([blocks.cut(one)[0], blocks.cut(two)[0]]))


@given(sizes, st.integers(1, 50))
def test_merging_keeps_the_number_of_entries_and_the_limit(size, limit):
    found = merged(size, limit)
    assert math.prod(found) == math.prod(size)
    assert all(length <= max(limit, *size) for length in found)
    assert len(found) == 1 or all(a * b > limit for a, b in itertools.pairwise(found))


@pytest.mark.parametrize(
    ("size", "limit", "expected"),
    [
        ((32, 3, 64, 64), 8192, (96, 4096)),  # as torch-shampoo's documentation has it
        ((1, 2, 5, 1), 10, (10,)),
        ((1, 2, 5, 1), 1, (2, 5)),
        ((), 4, (1,)),
    ],
)
def test_merged_sizes(size, limit, expected):
    assert merged(size, limit) == expected
