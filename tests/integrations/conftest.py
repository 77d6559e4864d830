"""The examples, imported as modules: what users copy is what is tested."""

from __future__ import annotations

import importlib.util
import logging
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"


def _example(name: str, *needs: str) -> ModuleType:
    for package in needs:
        pytest.importorskip(
            package, reason=f"{package} is not there: pip install 'hasten[race,integrations]'"
        )
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def lightning_example() -> ModuleType:
    """The example for Lightning."""
    module = _example("lightning_digits", "lightning", "sklearn")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    return module


@pytest.fixture(scope="session")
def trainer_example() -> ModuleType:
    """The example for the Hugging Face Trainer."""
    return _example("transformers_trainer", "transformers", "accelerate")


@pytest.fixture
def no_reminders() -> Iterator[None]:
    """Make every warning of hasten's own an error: nothing was saved or evaluated at the wrong point."""
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*(training mode|training point).*", category=UserWarning)
        yield
