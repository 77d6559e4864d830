"""What is known of a curvature."""

from __future__ import annotations

import pytest
import torch

from hasten.sketches import Curvature


def test_matrix_diagonal_and_two_numbers_agree() -> None:
    L = torch.diag(torch.tensor([4.0, 2.0, 2.0]))
    whole, diagonal = Curvature.of(L), Curvature.of(L.diagonal())
    assert (whole.largest, whole.trace, whole.effective_rank) == (4, 8, 2)
    assert (diagonal.largest, diagonal.trace, diagonal.is_diagonal) == (4, 8, True)
    assert not whole.is_diagonal
    assert Curvature.of(whole) is whole


@pytest.mark.parametrize("form", ["matrix", "diagonal", "numbers"])
def test_shift(form: str) -> None:
    L = torch.tensor([[2.0, 1.0], [1.0, 2.0]])
    before = {
        "matrix": Curvature.of(L),
        "diagonal": Curvature.of(L.diagonal()),
        "numbers": Curvature(2, 3.0, 4.0),
    }
    after = before[form].plus(0.5)
    assert after.largest == pytest.approx(before[form].largest + 0.5)
    assert after.trace == pytest.approx(5)
    if form == "matrix":
        torch.testing.assert_close(after.matrix, (L + 0.5 * torch.eye(2)).double())


def test_mistakes_are_named() -> None:
    for wrong, message in (
        (torch.ones(2, 3), r"shape \(2, 3\)"),
        (torch.ones(0), r"shape \(0,\)"),
        (torch.tensor([1.0, float("nan")]), "NaN or infinity"),
        (torch.tensor([[1.0, 2.0], [0.0, 1.0]]), "not symmetric"),
        (torch.tensor([1.0, -1.0]), r"negative eigenvalue -1\.0"),
        (torch.zeros(2), r"largest = 0\.0"),
    ):
        with pytest.raises(ValueError, match=message):
            Curvature.of(wrong)
    with pytest.raises(ValueError, match="trace = "):
        Curvature(2, 1.0, 3.0)
