"""Reading and settling who races."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from hasten.optimizers import CATALOGUE
from hasten.race.entrants import check, lr_course, optimizer_names, parse_entrants, settle
from hasten.race.errors import RaceError
from hasten.race.recommended import COLUMNS, LEARNING_RATES, OPTIONS, recommended


def test_reads_names_and_literal_arguments() -> None:
    first, second, third = parse_entrants("adamw, Lion(lr=3e-4, betas=(0.9, 0.98)),torch.SGD(lr=0.1)")
    assert (first.name, first.options) == ("AdamW", {})
    assert second.label == "Lion(lr=0.0003, betas=(0.9, 0.98))"
    assert second.options == {"lr": 3e-4, "betas": (0.9, 0.98)}
    assert third.name == "torch.SGD"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("AdmW", "unknown optimizer 'AdmW': did you mean 'AdamW'?"),
        ("torch.AdmW", "did you mean 'torch.AdamW'?"),
        ("AdamW(", "cannot be read"),
        ("", "name at least one"),
        ("AdamW,AdamW", "AdamW is named twice"),
        ("AdamW(1e-3)", "named arguments"),
        ("AdamW(lr=__import__('os').getcwd())", "lr=__import__('os').getcwd() is not a plain value"),
        ("3", "cannot be read"),
    ],
)
def test_mistakes_are_one_clear_line(text: str, message: str) -> None:
    with pytest.raises(RaceError) as caught:
        parse_entrants(text)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("AdamW(lr=-1)", "lr = -1"),
        ("AdamW(learning_rate=1e-3)", "learning_rate"),
        ("torch.AdamW(lr=-1.0)", "Invalid learning rate"),
    ],
)
def test_a_bad_hyperparameter_is_found_before_the_race(text: str, part: str) -> None:
    contender = settle(parse_entrants(text)[0], "lm", 100)
    with pytest.raises(RaceError, match="AdamW") as caught:
        check([contender])
    assert part in str(caught.value)


@pytest.mark.parametrize("arguments", ["schedule='exponential'", "warmup=2.0", "warmup=True"])
def test_the_races_own_arguments_are_checked(arguments: str) -> None:
    with pytest.raises(RaceError, match="must be"):
        settle(parse_entrants(f"AdamW({arguments})")[0], "lm", 100)


@pytest.mark.parametrize("family", COLUMNS)
@pytest.mark.parametrize("name", CATALOGUE)
def test_every_recommended_setting_builds(name: str, family: str) -> None:
    contender = settle(parse_entrants(name)[0], family, 100)
    optimizer, _ = contender.build(torch.nn.Linear(3, 3), 100, seed=0)
    optimizer.step(lambda: torch.zeros((), requires_grad=True))


def test_the_table_names_only_optimizers_that_exist() -> None:
    assert set(LEARNING_RATES) <= set(CATALOGUE)
    assert {name for name, _ in OPTIONS} <= set(CATALOGUE)
    assert all(len(row) == len(COLUMNS) for row in LEARNING_RATES.values())


def test_torch_optimizers_take_the_settings_of_their_namesakes() -> None:
    ours, theirs = (settle(e, "lm", 100) for e in parse_entrants("AdamW,torch.AdamW"))
    assert ours.options == theirs.options
    assert "torch.Optimizer" not in optimizer_names()
    assert recommended("torch.AdamW", "lm") == recommended("AdamW", "lm")


def test_a_method_with_a_formula_uses_known_constants() -> None:
    constants = {"smoothness": 2.0, "strong_convexity": 0.1, "noise": 5.0}
    plain, given = parse_entrants("AcceleratedSGD,MaSS")
    assert settle(plain, "least-squares", 100, constants).constructor == "canonical"
    assert settle(given, "least-squares", 100, constants).constructor == ""
    assert settle(plain, "least-squares", 100).constructor == ""


def test_learning_rate_course_rises_then_falls_to_nothing() -> None:
    course = [lr_course(k, schedule="cosine", warmup=0.1, steps=100) for k in range(101)]
    assert course[0] == pytest.approx(0.1)
    assert max(course) == 1.0 == course[9]
    assert course[100] == pytest.approx(0.0)
    assert all(a >= b for a, b in pairwise(course[10:]))


def test_tuning_scales_the_learning_rate() -> None:
    contender = settle(parse_entrants("SGD(lr=0.1, schedule='constant', warmup=0)")[0], "lm", 10)
    optimizer, _ = contender.tuned(0.5).build(torch.nn.Linear(2, 2), 10, seed=0)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.05)
