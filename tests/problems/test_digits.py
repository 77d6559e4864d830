"""Data sets that scikit-learn carries, and the models for them."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("sklearn", reason="the extra 'race' is not installed")

from hasten.problems.digits import MLP, ConvNet, breast_cancer, digits


def test_nothing_is_in_both_parts() -> None:
    data = digits()
    assert len(data.train_labels) + len(data.validation_labels) == 1797
    assert data.classes == 10
    rows = {tuple(row) for row in data.train_inputs.tolist()}
    shared = sum(tuple(row) in rows for row in data.validation_inputs.tolist())
    assert shared == 0
    assert 0 <= float(data.train_inputs.min()) <= float(data.train_inputs.max()) == 1


def test_the_split_is_always_the_same() -> None:
    assert torch.equal(digits().validation_inputs, digits().validation_inputs)


def test_measurements_are_standardised_by_the_training_part() -> None:
    data = breast_cancer()
    torch.testing.assert_close(data.train_inputs.mean(0), torch.zeros(30), atol=1e-5, rtol=0)
    torch.testing.assert_close(data.train_inputs.std(0), torch.ones(30), atol=1e-4, rtol=0)
    assert data.classes == 2


def test_models_take_rows_of_pixels() -> None:
    rows = digits().train_inputs[:5]
    assert MLP()(rows).shape == ConvNet()(rows).shape == (5, 10)
