"""What an installation holds, and what importing it costs."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
OPTIONAL = ("typer", "rich", "click", "plotly", "matplotlib", "sklearn", "scipy", "optuna", "PIL", "pandas")
HEAVY = ("torch._inductor", "torch._dynamo", "torch.utils.cpp_extension")
IMPORTED = """
import json, sys
import torch
before = set(sys.modules)
import hasten
print(json.dumps(sorted(set(sys.modules) - before)))
"""


@pytest.fixture(scope="module")
def added() -> list[str]:
    """The modules that ``import hasten`` adds to ``import torch``."""
    run = subprocess.run(
        [sys.executable, "-c", IMPORTED], capture_output=True, text=True, check=True, timeout=120
    )
    return json.loads(run.stdout)


def test_importing_brings_no_optional_package(added: list[str]) -> None:
    assert [name for name in added if name.partition(".")[0] in OPTIONAL] == []


def test_importing_does_not_bring_the_compiler(added: list[str]) -> None:
    assert [name for name in added if name.startswith(HEAVY)] == []


def test_importing_adds_its_own_modules_and_few_others(added: list[str]) -> None:
    own = [name for name in added if name.partition(".")[0] == "hasten"]
    others = [name for name in added if name.partition(".")[0] != "hasten"]
    assert (
        len(own) < 110
    )  # the words, the engine, sketches of the subspace oracles, iterations of the geometries
    assert len(others) < 20, others
    assert not [
        name
        for name in own
        if name.startswith(
            ("hasten.distributed", "hasten.race", "hasten.problems", "hasten.solvers", "hasten.theory")
        )
    ]


@pytest.mark.slow
def test_the_wheel_holds_types_licence_and_the_reports_page(tmp_path: Path) -> None:
    if importlib.util.find_spec("hatchling") is None:
        pytest.skip("building a wheel needs hatchling: pip install 'hasten[dev]'")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=120)
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert "hasten/py.typed" in names
    assert "hasten/race/page/report.html" in names
    assert any(name.endswith("LICENSE") for name in names)
    assert not [name for name in names if name.startswith(("tests", "benchmarks", "docs", "examples"))]
