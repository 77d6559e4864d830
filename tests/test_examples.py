"""The examples in docstrings say what happens, and the programs in examples/ run."""

from __future__ import annotations

import doctest
import importlib
import inspect
import pkgutil
import runpy
from pathlib import Path

import pytest

import hasten

EXAMPLES = Path(__file__).parents[1] / "examples"
NEEDS = {
    "forward_mode_digits": ("sklearn",),
    "lightning_digits": ("lightning", "sklearn"),
    "minimize_beside_scipy": ("sklearn", "scipy"),
    "transformers_trainer": ("transformers", "accelerate"),
}
SAYS = {
    "forward_mode_digits": "no gradient stored",
    "lightning_digits": "after resuming",
    "minimize_beside_scipy": "50 ridges at once: 50 solved",
    "transformers_trainer": "after resuming",
}
MODULES = ["hasten", *(found.name for found in pkgutil.walk_packages(hasten.__path__, "hasten."))]


@pytest.mark.parametrize("name", MODULES)
def test_docstrings(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if name.startswith("hasten.race"):
        for package in ("typer", "rich", "matplotlib", "plotly", "optuna"):
            pytest.importorskip(package, reason="needs the extra: pip install 'hasten[race]'")
    if name == "hasten.distributed.flower":
        pytest.importorskip("flwr", reason="needs the extra: pip install 'hasten[federated]'")
    monkeypatch.chdir(tmp_path)
    result = doctest.testmod(importlib.import_module(name))
    assert result.failed == 0


@pytest.mark.parametrize("name", hasten.__all__)
def test_public_names_are_documented(name: str) -> None:
    thing = getattr(hasten, name)
    assert inspect.getdoc(thing), name
    if inspect.isclass(thing) and issubclass(thing, hasten.Optimizer):
        assert "Example:" in (thing.__doc__ or ""), name


def test_every_named_optimizer_is_exported() -> None:
    assert set(hasten.optimizers.__all__) == {"CATALOGUE", *hasten.optimizers.CATALOGUE}
    assert set(hasten.optimizers.CATALOGUE) <= set(hasten.__all__)


def test_every_example_is_known() -> None:
    assert {path.stem for path in EXAMPLES.glob("*.py")} == set(NEEDS)


@pytest.mark.slow
@pytest.mark.parametrize("name", NEEDS)
def test_program(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    for package in NEEDS[name]:
        pytest.importorskip(
            package, reason=f"{package} is not there: pip install 'hasten[race,integrations]'"
        )
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
    assert SAYS[name] in capsys.readouterr().out
