"""The command line: what a person types, and what a person mistypes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from hasten.optimizers import CATALOGUE
from hasten.race import catalogue
from hasten.race.cli import main


def call(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    out, err = capsys.readouterr()
    return int(stop.value.code or 0), out, err


def test_a_race_from_the_command_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    folder = tmp_path / "race"
    status, out, err = call(
        capsys, "race", "--task", "valley", "--optimizers", "SGD(lr=0.01),adamw", "--seeds", "2",
        "--steps", "20", "--tune", "2", "--out", str(folder),
    )  # fmt: skip
    assert (status, err) == (0, "")
    assert "wins" in out or "is ahead" in out
    for name in ("report.html", "curves.png", "standings.png", "sensitivity.png", "plan.json"):
        assert (folder / name).stat().st_size > 0
    (folder / "report.html").unlink()
    assert call(capsys, "report", str(folder))[0] == 0
    assert (folder / "report.html").is_file()
    assert call(capsys, "race", "--resume", "--out", str(folder))[0] == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["race", "--task", "lmm"], "unknown task 'lmm': did you mean 'lm'?"),
        (["race", "--task", "nowhere.py:f"], "there is no file nowhere.py"),
        (["race", "--optimizers", "AdmW"], "unknown optimizer 'AdmW': did you mean 'AdamW'?"),
        (["race", "--task", "valley", "--optimizers", "AdamW(lr=-1)"], "AdamW(lr=-1): AdamW: lr = -1"),
        (["race", "--task", "valley", "--optimizers", "AdamW(beta=1)"], "AdamW(beta=1)"),
        (["race", "--optimizers", "AdamW("], "cannot be read"),
        (["race", "--task", "valley", "--out", "/proc/nowhere"], "cannot write to /proc/nowhere"),
        (["race", "--budget", "soon"], "budget='soon'"),
        (["race", "--steps", "many"], "'--steps'"),
        (["race", "--bugdet", "3m"], "--budget"),
        (["race", "--resume", "--task", "lm"], "leave out --task"),
        (["race", "--resume", "--out", "nowhere"], "nowhere holds no race"),
        (["report", "nowhere"], "nowhere holds no race"),
        (["explain", "ademanix"], "did you mean 'AdEMAMix'?"),
        (["explain"], "argument"),
        (["picture", "--task", "digits"], "unknown surface 'digits'"),
        (["picture", "--optimizers", "Lino"], "did you mean 'Lion'?"),
        (["rcae"], "rcae"),
    ],
)
def test_a_mistake_is_one_line_and_a_failure(
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    status, _, err = call(capsys, *arguments)
    assert status == 2
    assert message in err
    assert err.startswith("hasten: ")
    assert err.count("\n") == 1
    assert "Traceback" not in err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("missing", ["typer", "plotly", "matplotlib"])
def test_a_missing_extra_is_one_line(missing: str) -> None:
    code = f"""
import importlib.util, sys
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, *a: None if name == {missing!r} else find(name, *a)
from hasten.race.cli import main
main(["race", "--task", "valley"])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert f"needs {missing}: pip install 'hasten[race]'" in done.stderr
    assert done.stderr.count("\n") == 1


def test_importing_hasten_imports_none_of_the_extra() -> None:
    code = """
import sys, hasten
extra = {"typer", "rich", "plotly", "matplotlib", "sklearn", "optuna", "PIL"} & set(sys.modules)
sys.exit(", ".join(sorted(extra)) or 0)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_help_without_arguments(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = call(capsys)
    assert status == 0
    assert all(command in out for command in ("race", "list", "explain", "picture", "report"))


def test_list_is_the_whole_design_space(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = call(capsys, "list")
    assert status == 0
    assert all(name in out for name in CATALOGUE)
    rows = {row[0]: dict(zip(catalogue.COLUMNS, row, strict=True)) for row in catalogue.rows()}
    assert list(rows) == list(CATALOGUE)
    assert rows["Lion"]["geometry"] == "sign"
    assert rows["AdamW"]["floats"] == "2"
    assert rows["MARS"]["oracle"] == "mars"


@pytest.mark.parametrize("name", CATALOGUE)
def test_explain_says_everything(name: str) -> None:
    paragraphs = catalogue.explain(name.lower())
    assert list(paragraphs) == [name, "Parts", "Arguments", "State", "Source", "Relatives"]
    assert paragraphs[name]
    assert "←" in paragraphs["Parts"] or "=" in paragraphs["Parts"]
    assert "lr=" in paragraphs["Arguments"]
    assert ">>>" not in paragraphs[name]


def test_relatives_share_a_part() -> None:
    assert "Lion" in catalogue.relatives("Signum")
    assert "SimplifiedAdEMAMix" in catalogue.relatives("AdEMAMix")
