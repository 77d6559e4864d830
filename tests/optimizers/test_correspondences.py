"""Old optimizer, new norm: the table runs, and its rows hold."""

import dataclasses

import pytest

import hasten
from hasten.optimizers.correspondences import CORRESPONDENCES, table
from hasten.transforms import NORMS


@pytest.mark.parametrize("row", CORRESPONDENCES, ids=lambda row: row.name)
@pytest.mark.parametrize("seed", range(3))
def test_the_optimizer_is_steepest_descent_in_that_norm(row, seed):
    assert row.norm in NORMS
    assert row.difference(seed=seed) <= row.tolerance


@pytest.mark.parametrize("row", CORRESPONDENCES, ids=lambda row: row.name)
def test_and_in_no_other(row):
    other = "frobenius" if row.norm != "frobenius" else "spectral"
    wrong = dataclasses.replace(
        row, steepest=lambda params: hasten.SteepestDescent(params, 0.02, 0.9, other, backend="svd")
    )
    assert wrong.difference() > 0.05


def test_the_table_names_every_row():
    for lines in (table().splitlines()[1:], table(markdown=True).splitlines()[2:]):
        assert len(lines) == len(CORRESPONDENCES)
        for row, line in zip(CORRESPONDENCES, lines, strict=True):
            assert row.name in line
            assert (
                NORMS[row.norm].formulas[1].replace("|", "\\|") in line or NORMS[row.norm].formulas[1] in line
            )
