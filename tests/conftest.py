"""Settings that hold for all tests."""

import warnings

import pytest
import torch
from hypothesis import settings

settings.register_profile(
    "shared machine", deadline=None
)  # how long an example takes is no property of the code
settings.load_profile("shared machine")


@pytest.fixture(autouse=True)
def _settings():
    torch.manual_seed(0)
    with warnings.catch_warnings():
        # Schedule-Free's reminder has tests of its own.
        warnings.filterwarnings("ignore", message=".*saved in training mode.*")
        yield
