"""The small transformer."""

from __future__ import annotations

import math

import pytest
import torch

from hasten.problems.language_model import LanguageModel, parameter_count


def test_about_a_million_parameters() -> None:
    assert 0.9e6 < parameter_count(LanguageModel()) < 1.1e6


def test_it_begins_knowing_nothing() -> None:
    torch.manual_seed(0)
    inputs, targets = torch.randint(128, (2, 4, 64))
    assert LanguageModel().loss(inputs, targets).item() == pytest.approx(math.log(128), rel=0.02)


def test_it_cannot_see_the_future() -> None:
    torch.manual_seed(0)
    model = LanguageModel(width=32, depth=2, heads=2)
    symbols = torch.randint(128, (1, 20))
    other = symbols.clone()
    other[0, 12:] = (other[0, 12:] + 1) % 128
    with torch.no_grad():
        one, two = model(symbols), model(other)
    torch.testing.assert_close(one[:, :12], two[:, :12])
    assert not torch.allclose(one[:, 12:], two[:, 12:])


def test_heads_must_divide_the_width() -> None:
    with pytest.raises(ValueError, match="heads must divide width, got 3 and 32"):
        LanguageModel(width=32, heads=3)
