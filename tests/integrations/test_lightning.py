"""hasten's optimizers inside Lightning, through the example's own code."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

import hasten


@pytest.fixture
def digits(lightning_example: ModuleType) -> ModuleType:
    return lightning_example


def schedule_free(params: Any) -> hasten.Optimizer:
    return hasten.ScheduleFreeAdamW(params, lr=1e-2, warmup_steps=20)


CHANCE = 0.1
BUILDERS = {
    "ScheduleFreeAdamW": schedule_free,
    "AdamW": lambda params: hasten.AdamW(params, lr=hasten.schedules.cosine(1e-2, total=100, warmup=10)),
    "MARS exact": lambda params: hasten.MARS(params, exact=True),
    "Prodigy": hasten.Prodigy,
}


@pytest.mark.usefixtures("no_reminders")
@pytest.mark.parametrize("name", BUILDERS)
def test_a_resumed_run_is_the_uninterrupted_one_to_the_bit(
    digits: ModuleType, name: str, tmp_path: Path
) -> None:
    whole, whole_trainer, _ = digits.train(BUILDERS[name], tmp_path / "whole", epochs=3)
    _, _, checkpoint = digits.train(BUILDERS[name], tmp_path / "part", epochs=2)
    resumed, resumed_trainer, _ = digits.train(BUILDERS[name], tmp_path / "part", epochs=3, resume=checkpoint)
    for (key, expected), (_, got) in zip(
        whole.state_dict().items(), resumed.state_dict().items(), strict=True
    ):
        assert torch.equal(expected, got), key
    accuracy = whole_trainer.callback_metrics["accuracy"]
    assert accuracy == resumed_trainer.callback_metrics["accuracy"]
    assert accuracy > 2 * CHANCE


def test_the_model_in_a_checkpoint_is_at_the_point_to_evaluate(digits: ModuleType, tmp_path: Path) -> None:
    module, trainer, path = digits.train(schedule_free, tmp_path, epochs=1)
    saved = torch.load(path, weights_only=False)
    optimizer = trainer.optimizers[0]
    assert not optimizer.training  # TwoPoints left the module ready to use
    for key, value in module.state_dict().items():
        assert torch.equal(saved["state_dict"][key], value)
    optimizer.train()
    assert not torch.equal(saved["state_dict"]["model.0.weight"], module.state_dict()["model.0.weight"])


def test_the_optimizer_states_of_a_checkpoint_are_plain_data(digits: ModuleType, tmp_path: Path) -> None:
    _, _, path = digits.train(schedule_free, tmp_path, epochs=1)
    states = torch.load(path, weights_only=False)["optimizer_states"]
    torch.save(states, tmp_path / "states.pt")
    reloaded = torch.load(tmp_path / "states.pt", weights_only=True)
    assert reloaded[0]["param_groups"][0]["train_mode"] is False


def test_validation_sees_the_point_to_evaluate(digits: ModuleType, tmp_path: Path) -> None:
    module, trainer, _ = digits.train(schedule_free, tmp_path, epochs=1)
    data = digits.digits()
    with torch.no_grad():
        right = (module.model(data.validation_inputs).argmax(1) == data.validation_labels).float().mean()
    assert trainer.callback_metrics["accuracy"] == right


def test_lightnings_wrapper_forwards_the_switch(digits: ModuleType) -> None:
    from lightning.pytorch.core.optimizer import LightningOptimizer

    w = torch.ones(3, requires_grad=True)
    optimizer = hasten.ScheduleFreeSGD([w], lr=0.1)
    wrapper = LightningOptimizer(optimizer)
    w.grad = torch.ones(3)
    optimizer.step()
    wrapper.eval()
    assert not optimizer.training
    assert not wrapper.training
    wrapper.train()
    assert optimizer.training
    with wrapper.evaluating():
        assert not optimizer.training
    assert optimizer.training


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true"])
def test_low_precision(digits: ModuleType, precision: str, tmp_path: Path) -> None:
    def build(params: Any) -> hasten.Optimizer:
        return hasten.ScheduleFreeAdamW(params, lr=1e-2, warmup_steps=10, stochastic_rounding=True)

    module, trainer, _ = digits.train(build, tmp_path, epochs=2, precision=precision)
    expected = torch.bfloat16 if precision == "bf16-true" else torch.float32
    assert {p.dtype for p in module.parameters()} == {expected}
    assert trainer.callback_metrics["accuracy"] > 0.7
