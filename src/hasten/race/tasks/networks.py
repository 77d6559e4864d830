"""Tasks that train a model on data: text, digits, biopsies."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from hasten.problems.digits import MLP, ConvNet, Labelled, breast_cancer, digits
from hasten.problems.language_model import LanguageModel
from hasten.problems.text import random_windows, spread_windows, standard_library_text
from hasten.race.errors import RaceError, require
from hasten.race.task import Task

Batch = tuple[torch.Tensor, torch.Tensor]


def language_model(
    seed: int,
    *,
    batch: int = 8,
    context: int = 64,
    evaluation_windows: int = 96,
    width: int = 160,
    depth: int = 3,
) -> Task:
    """Predict the next character of Python's standard library.

    Example:
        >>> task = language_model(0, width=32, depth=1)
        >>> task.unit
        'nats per character, on held-out files'
    """
    try:
        text = standard_library_text()
    except FileNotFoundError as error:
        raise RaceError(f"task lm: {error}") from error
    torch.manual_seed(seed)
    model = LanguageModel(context=context, width=width, depth=depth)
    held_out = spread_windows(text.validation, evaluation_windows, context)
    return Task(
        model=model,
        loss=lambda drawn: model.loss(*drawn),
        sample=lambda generator: random_windows(text.train, batch, context, generator),
        evaluate=lambda: float(model.loss(*held_out)),
        samples_per_step=batch * context,
        unit="nats per character, on held-out files",
        data=text.digest,
    )


def digits_mlp(seed: int) -> Task:
    """Recognise handwritten digits with a two-layer network.

    Example:
        >>> digits_mlp(0).samples_per_step
        64
    """
    torch.manual_seed(seed)
    require("sklearn", purpose="task digits")
    return _classification(MLP(), digits(), batch=64)


def digits_convnet(seed: int) -> Task:
    """Recognise handwritten digits with a small convolutional network.

    Example:
        >>> digits_convnet(0).samples_per_step
        64
    """
    torch.manual_seed(seed)
    require("sklearn", purpose="task digits-conv")
    return _classification(ConvNet(), digits(), batch=64)


def logistic(seed: int) -> Task:
    """Tell benign from malignant biopsies by logistic regression.

    Example:
        >>> sum(p.numel() for p in logistic(0).model.parameters())
        62
    """
    torch.manual_seed(seed)
    require("sklearn", purpose="task logistic")
    data = breast_cancer()
    return _classification(nn.Linear(data.train_inputs.shape[1], data.classes), data, batch=16)


def _classification(model: nn.Module, data: Labelled, *, batch: int) -> Task:
    def sample(generator: torch.Generator) -> Batch:
        rows = torch.randint(len(data.train_labels), (batch,), generator=generator)
        return data.train_inputs[rows], data.train_labels[rows]

    def loss(drawn: Batch) -> torch.Tensor:
        inputs, labels = drawn
        return functional.cross_entropy(model(inputs), labels)

    return Task(
        model=model,
        loss=loss,
        sample=sample,
        evaluate=lambda: float(loss((data.validation_inputs, data.validation_labels))),
        samples_per_step=batch,
        unit="cross-entropy on held-out examples",
    )
