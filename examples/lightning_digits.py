"""Schedule-Free training inside Lightning: the mode switch, checkpoints, resuming, evaluation.

Run with ``python examples/lightning_digits.py``; needs ``pip install 'hasten[race,integrations]'``.
The callback is all that a Lightning user writes, and it is right for every optimizer of hasten: where
training and evaluation happen at the same point, `train` and `eval` do nothing.
"""

from __future__ import annotations

import logging
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

import lightning as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

import hasten
from hasten.problems.digits import MLP, digits


class TwoPoints(L.Callback):
    """Train at the training point, validate, test and predict at the point to evaluate.

    A checkpoint written at the end of a validation then holds the point to evaluate, and resuming from it
    is exact.
    """

    def on_train_batch_start(self, trainer: L.Trainer, *_: object) -> None:
        for optimizer in trainer.optimizers:
            optimizer.train()

    def on_validation_start(self, trainer: L.Trainer, *_: object) -> None:
        for optimizer in trainer.optimizers:
            optimizer.eval()

    on_test_start = on_predict_start = on_train_end = on_validation_start


class Digits(L.LightningModule):
    """A small network for handwritten digits, with any optimizer."""

    def __init__(self, optimizer: Callable[..., torch.optim.Optimizer]) -> None:
        super().__init__()
        self.model = MLP(hidden=32)
        self.loss = nn.CrossEntropyLoss()
        self.optimizer = optimizer

    def training_step(self, batch: list[Tensor], index: int) -> Tensor:
        inputs, labels = batch
        return self.loss(self.model(inputs), labels)

    def validation_step(self, batch: list[Tensor], index: int) -> None:
        inputs, labels = batch
        accuracy = (self.model(inputs).argmax(1) == labels).float().mean()
        self.log("accuracy", accuracy, batch_size=len(labels))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return self.optimizer(self.parameters())


def loaders(batch: int = 64) -> tuple[DataLoader, DataLoader]:
    """Batches of the digits, in an order that depends on the epoch alone: a resumed run sees the same."""
    data = digits()
    train = TensorDataset(data.train_inputs, data.train_labels)
    held_out = TensorDataset(data.validation_inputs, data.validation_labels)
    order = DistributedSampler(train, num_replicas=1, rank=0, seed=0)  # Lightning tells it the epoch
    return DataLoader(train, batch, sampler=order), DataLoader(held_out, 512)


def train(
    optimizer: Callable[..., torch.optim.Optimizer],
    folder: Path,
    epochs: int,
    resume: Path | None = None,
    precision: str = "32-true",
) -> tuple[Digits, L.Trainer, Path]:
    """Train for so many epochs in all; returns the module, the trainer, and the last checkpoint."""
    L.seed_everything(0, verbose=False)
    module = Digits(optimizer)
    checkpoint = ModelCheckpoint(folder, filename="{epoch}", save_top_k=-1)
    trainer = L.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        precision=precision,
        callbacks=[TwoPoints(), checkpoint],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="lightning")  # its advice on loader workers and folders
        trainer.fit(module, *loaders(), ckpt_path=resume)
    return module, trainer, Path(checkpoint.best_model_path)


def main() -> None:
    """Train, resume from the checkpoint of the middle, and compare."""
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)

    def optimizer(params: object) -> hasten.Optimizer:
        return hasten.ScheduleFreeAdamW(params, lr=1e-2, warmup_steps=20)

    with tempfile.TemporaryDirectory() as folder:
        _, trainer, checkpoint = train(optimizer, Path(folder), epochs=4)
        print(f"accuracy after 4 epochs: {trainer.callback_metrics['accuracy']:.3f}")
        _, trainer, _ = train(optimizer, Path(folder), epochs=8, resume=checkpoint)
        print(f"accuracy after resuming to 8: {trainer.callback_metrics['accuracy']:.3f}")


if __name__ == "__main__":
    main()
