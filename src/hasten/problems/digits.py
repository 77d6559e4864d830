"""Handwritten digits and other tabular sets that scikit-learn carries, with small models."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Labelled:
    """Examples with class labels, split once into a training and a validation part.

    Attributes:
        train_inputs: float32, shape ``(n, ...)``; train_labels: int64, shape ``(n,)``.
        validation_inputs, validation_labels: the part held out.
        classes: number of classes.

    Example:
        >>> digits().train_inputs.shape
        torch.Size([1438, 64])
    """

    train_inputs: Tensor
    train_labels: Tensor
    validation_inputs: Tensor
    validation_labels: Tensor
    classes: int


def digits() -> Labelled:
    """1797 handwritten digits of 8 by 8 pixels, scaled to [0, 1]; a fifth is held out.

    Example:
        >>> digits().classes
        10
    """
    from sklearn.datasets import load_digits

    inputs, labels = load_digits(return_X_y=True)
    return _split(torch.from_numpy(inputs).float() / 16, torch.from_numpy(labels))


def breast_cancer() -> Labelled:
    """569 biopsies with 30 standardised measurements, benign or malignant; a fifth is held out.

    Example:
        >>> breast_cancer().train_inputs.shape[1]
        30
    """
    from sklearn.datasets import load_breast_cancer

    inputs, labels = load_breast_cancer(return_X_y=True)
    data = _split(torch.from_numpy(inputs), torch.from_numpy(labels))
    mean, std = data.train_inputs.mean(0), data.train_inputs.std(0)
    return Labelled(
        ((data.train_inputs - mean) / std).float(),
        data.train_labels,
        ((data.validation_inputs - mean) / std).float(),
        data.validation_labels,
        data.classes,
    )


def _split(inputs: Tensor, labels: Tensor) -> Labelled:
    # A fixed permutation: every race and every seed sees the same split.
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(2025))
    inputs, labels = inputs[order], labels[order].long()
    held_out = round(len(labels) / 5)
    return Labelled(
        inputs[held_out:],
        labels[held_out:],
        inputs[:held_out],
        labels[:held_out],
        int(labels.max()) + 1,
    )


class MLP(nn.Sequential):
    """A network with two hidden layers for the digits.

    Example:
        >>> MLP(64, 32, 10)(torch.zeros(5, 64)).shape
        torch.Size([5, 10])
    """

    def __init__(self, inputs: int = 64, hidden: int = 128, outputs: int = 10) -> None:
        super().__init__(
            nn.Linear(inputs, hidden),
            nn.ReLU(),
            nn.Linear(hidden, hidden),
            nn.ReLU(),
            nn.Linear(hidden, outputs),
        )


class ConvNet(nn.Sequential):
    """Two convolutions and a linear layer for the 8 by 8 digits, given as rows of 64.

    Example:
        >>> ConvNet()(torch.zeros(5, 64)).shape
        torch.Size([5, 10])
    """

    def __init__(self, channels: int = 16, outputs: int = 10) -> None:
        super().__init__(
            nn.Unflatten(1, (1, 8, 8)),
            nn.Conv2d(1, channels, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(channels, 2 * channels, 3, padding=1, stride=2),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(2 * channels * 16, outputs),
        )
