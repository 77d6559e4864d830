"""hasten's optimizers inside the Hugging Face Trainer and Accelerate, through the example's own code."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

import hasten

SAVE = 10


def schedule_free(params: Any) -> hasten.Optimizer:
    return hasten.ScheduleFreeAdamW(params, lr=1e-2, warmup_steps=5)


BUILDERS = {
    "ScheduleFreeAdamW": schedule_free,
    "AdamW": lambda params: hasten.AdamW(params, lr=1e-2),
    "Lion": lambda params: hasten.Lion(params, lr=1e-3, weight_decay=0.1),
}


@pytest.mark.usefixtures("no_reminders")
@pytest.mark.parametrize("name", BUILDERS)
@pytest.mark.parametrize("eval_strategy", ["no", "steps"])
def test_a_resumed_run_is_the_uninterrupted_one_to_the_bit(
    trainer_example: ModuleType, name: str, eval_strategy: str, tmp_path: Path
) -> None:
    def trainer(folder: str, steps: int) -> Any:
        path = tmp_path / folder
        return trainer_example.trainer_of(BUILDERS[name], path, steps, SAVE, eval_strategy)

    whole = trainer("whole", 2 * SAVE)
    whole.train()
    trainer("part", SAVE).train()
    resumed = trainer("part", 2 * SAVE)
    resumed.train(resume_from_checkpoint=True)
    expected, got = whole.model.state_dict(), resumed.model.state_dict()
    for key in expected:
        assert torch.equal(expected[key], got[key]), key
    assert whole.evaluate()["eval_loss"] == resumed.evaluate()["eval_loss"]


@pytest.mark.usefixtures("no_reminders")
def test_checkpoints_hold_the_point_to_evaluate_and_plain_data(
    trainer_example: ModuleType, tmp_path: Path
) -> None:
    from safetensors.torch import load_file

    trainer = trainer_example.trainer_of(schedule_free, tmp_path, SAVE, SAVE)
    trainer.train()
    folder = tmp_path / f"checkpoint-{SAVE}"
    state = torch.load(folder / "optimizer.pt", weights_only=True)
    assert state["param_groups"][0]["train_mode"] is False
    saved = load_file(folder / "model.safetensors")
    name = "transformer.wpe.weight"
    at_x = trainer.model.state_dict()[name].clone()  # SaveEvaluationPoint left the model ready to use
    trainer.optimizer.train()
    at_y = trainer.model.state_dict()[name]
    assert torch.equal(saved[name], at_x)
    assert not torch.equal(saved[name], at_y)


def test_the_trainer_evaluates_at_the_point_to_evaluate(trainer_example: ModuleType, tmp_path: Path) -> None:
    trainer = trainer_example.trainer_of(schedule_free, tmp_path, SAVE, SAVE)
    trainer.train()
    at_x = trainer.evaluate()["eval_loss"]
    trainer.optimizer.train()
    assert trainer.evaluate()["eval_loss"] == pytest.approx(at_x, rel=1e-5)  # the Trainer switches by itself


def test_accelerate_saves_and_loads_everything(trainer_example: ModuleType, tmp_path: Path) -> None:
    from accelerate import Accelerator

    def start() -> tuple[Any, Any, Any]:
        torch.manual_seed(0)
        accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
        model, optimizer = accelerator.prepare(*_model_and_optimizer())
        return accelerator, model, optimizer

    def steps(accelerator: Any, model: Any, optimizer: Any, seeds: range) -> None:
        optimizer.train()
        for seed in seeds:
            x = torch.randn(8, 4, generator=torch.Generator().manual_seed(seed))
            with accelerator.accumulate(model):
                accelerator.backward(model(x).square().mean())
                optimizer.step()
                optimizer.zero_grad()

    accelerator, model, optimizer = start()
    steps(accelerator, model, optimizer, range(8))
    optimizer.eval()
    accelerator.save_state(str(tmp_path / "state"))
    steps(accelerator, model, optimizer, range(8, 16))
    optimizer.eval()
    expected = [p.detach().clone() for p in model.parameters()]
    assert optimizer.optimizer.param_groups[0]["step"] == 8  # 16 batches, accumulated in pairs

    accelerator, model, optimizer = start()
    accelerator.load_state(str(tmp_path / "state"))
    steps(accelerator, model, optimizer, range(8, 16))
    optimizer.eval()
    for got, wanted in zip(model.parameters(), expected, strict=True):
        assert torch.equal(got, wanted)


def _model_and_optimizer() -> tuple[torch.nn.Module, hasten.Optimizer]:
    model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1))
    return model, hasten.ScheduleFreeAdamW(model.parameters(), lr=1e-2, warmup_steps=2)
