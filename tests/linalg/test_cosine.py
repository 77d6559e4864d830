"""The cosine basis: orthonormal, the same by FFT and by product, and the DCT-II of others."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hasten.linalg.cosine import cosine_basis, cosine_rows, cosine_transform, leading

CPU = torch.device("cpu")


def stated(n):
    """D, entry by entry."""
    return torch.tensor(
        [
            [math.sqrt((2 if k else 1) / n) * math.cos(math.pi * k * (2 * j + 1) / (2 * n)) for j in range(n)]
            for k in range(n)
        ],
        dtype=torch.float64,
    )


@given(st.integers(1, 40))
@settings(deadline=None)
def test_the_basis_is_orthonormal_and_the_fast_transform_uses_it(n):
    D = cosine_rows(torch.arange(n), n, torch.float64)
    torch.testing.assert_close(D, stated(n), rtol=0, atol=1e-13)
    torch.testing.assert_close(D @ D.T, torch.eye(n).double(), rtol=0, atol=1e-12)
    M = torch.randn(2, 5, n, dtype=torch.float64, generator=torch.Generator().manual_seed(n))
    torch.testing.assert_close(cosine_transform(M), M @ D.T, rtol=0, atol=1e-12)


@pytest.mark.parametrize("n", [1, 2, 3, 8, 97, 1024])
def test_the_transform_is_the_orthonormal_dct_of_type_two(n):
    fft = pytest.importorskip("scipy.fft")
    M = torch.randn(3, n, dtype=torch.float64)
    expected = torch.from_numpy(fft.dct(M.numpy(), type=2, norm="ortho"))
    torch.testing.assert_close(cosine_transform(M), expected, rtol=0, atol=1e-13 * math.sqrt(n))


@pytest.mark.parametrize("n", [16, 1000, 1024])
def test_single_precision_is_exact_to_rounding(n):
    """Relative to the norm of a row; and the basis to half a unit in the last place of its largest entries."""
    M = torch.randn(20, n)
    exact = cosine_transform(M.double())
    error = (cosine_transform(M).double() - exact).norm(dim=-1) / exact.norm(dim=-1)
    assert float(error.max()) < 5e-7
    D = cosine_basis(n, torch.float32, CPU).double()
    assert float((D - cosine_basis(n, torch.float64, CPU)).abs().max()) <= math.sqrt(2 / n) * 2**-24


def test_a_transform_of_columns_is_that_of_the_transpose():
    M = torch.randn(6, 7, dtype=torch.float64)
    torch.testing.assert_close(cosine_transform(M.mT).mT, stated(6) @ M, rtol=0, atol=1e-13)


def test_the_basis_is_made_once_for_a_size():
    first = cosine_basis(33, torch.float32, CPU)
    assert cosine_basis(33, torch.float32, CPU) is first
    assert cosine_basis(33, torch.float64, CPU).dtype is torch.float64


@given(st.lists(st.floats(0, 10), min_size=1, max_size=12), st.data())
@settings(deadline=None)
def test_the_leading_positions_have_the_largest_scores(scores, data):
    rank = data.draw(st.integers(1, len(scores)))
    found = leading(torch.tensor(scores, dtype=torch.float64), rank).tolist()
    assert found == sorted(set(found))
    assert sorted(scores[i] for i in found) == sorted(scores)[len(scores) - rank :]
