"""Schedule-Free training inside the Hugging Face Trainer: the mode switch, checkpoints, resuming, evaluation.

Run with ``python examples/transformers_trainer.py``; needs ``pip install 'hasten[integrations]'``. Nothing is
downloaded: the model is a small GPT-2 made from a configuration, the data an arithmetic progression.

The Trainer calls ``optimizer.train()`` before every training step and ``optimizer.eval()`` before every
evaluation, so hasten needs no subclass. The one thing to know: a checkpoint written without an evaluation
just before it holds the training point. `SaveEvaluationPoint` takes care of that.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import Dataset
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainerCallback, TrainingArguments, set_seed

import hasten


class SaveEvaluationPoint(TrainerCallback):
    """Whatever is saved holds the point to evaluate; training goes on from it exactly."""

    def on_step_end(self, args, state, control, optimizer=None, **_):
        if control.should_save:
            optimizer.eval()

    def on_train_end(self, args, state, control, optimizer=None, **_):
        optimizer.eval()


class Progressions(Dataset):
    """Sequences that count in steps of one to four, modulo the vocabulary."""

    def __init__(self, count: int, length: int = 16, vocabulary: int = 32, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        start = torch.randint(vocabulary, (count, 1), generator=generator)
        step = torch.randint(1, 5, (count, 1), generator=generator)
        self.sequences = (start + step * torch.arange(length)) % vocabulary

    def __len__(self) -> int:
        return len(self.sequences)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"input_ids": self.sequences[index], "labels": self.sequences[index]}


def small_model(vocabulary: int = 32) -> GPT2LMHeadModel:
    """A transformer of two layers, with random weights."""
    set_seed(0)
    config = GPT2Config(
        vocab_size=vocabulary, n_positions=16, n_embd=32, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0
    )
    return GPT2LMHeadModel(config)


def trainer_of(
    build: Callable[..., hasten.Optimizer],
    folder: Path,
    steps: int,
    save_steps: int = 20,
    eval_strategy: str = "no",
) -> Trainer:
    """A Trainer of a fresh model with one of hasten's optimizers."""
    model = small_model()
    optimizer = build(model.parameters())
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=steps,
        save_steps=save_steps,
        eval_strategy=eval_strategy,
        eval_steps=save_steps,
        per_device_train_batch_size=16,
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
        logging_strategy="no",
    )
    return Trainer(
        model=model,
        args=arguments,
        train_dataset=Progressions(512),
        eval_dataset=Progressions(64, seed=1),
        optimizers=(optimizer, LambdaLR(optimizer, lambda step: 1.0)),
        callbacks=[SaveEvaluationPoint()],
    )


def main() -> None:
    """Train, resume from the checkpoint of the middle, and evaluate."""

    def build(params: object) -> hasten.Optimizer:
        return hasten.ScheduleFreeAdamW(params, lr=1e-2, warmup_steps=10)

    with tempfile.TemporaryDirectory() as folder:
        trainer = trainer_of(build, Path(folder), steps=40)
        trainer.train()
        print(f"loss after 40 steps: {trainer.evaluate()['eval_loss']:.3f}")
        trainer = trainer_of(build, Path(folder), steps=80)
        trainer.train(resume_from_checkpoint=True)
        print(f"loss after resuming to 80: {trainer.evaluate()['eval_loss']:.3f}")


if __name__ == "__main__":
    main()
