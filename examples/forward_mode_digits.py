"""Fine-tuning without a backward pass: r directional derivatives a step, no activations kept.

Run with ``python examples/forward_mode_digits.py``; needs ``pip install 'hasten[race]'``. A small network learns
handwritten digits by backpropagation. Then the camera is turned upside down, and the network follows by forward passes
alone. Where a backward pass fits into memory, as here, it is the better choice: the last line shows it.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

import hasten
from hasten.oracles import ForwardMode
from hasten.problems.digits import MLP, digits


def turned(images: Tensor) -> Tensor:
    """Images of 8 by 8 pixels, flattened, upside down."""
    return images.flip(-1)


def accuracy(model: nn.Module, inputs: Tensor, labels: Tensor) -> float:
    """The share of right answers."""
    with torch.no_grad():
        return float((model(inputs).argmax(1) == labels).float().mean())


def learn(model: nn.Module, inputs: Tensor, labels: Tensor, steps: int) -> None:
    """By backpropagation, on all the data at once."""
    opt = hasten.AdamW(model, lr=1e-2)
    for _ in range(steps):
        opt.step(lambda: nn.functional.cross_entropy(model(inputs), labels))


def fine_tune(
    model: nn.Module, inputs: Tensor, labels: Tensor, steps: int, rank: int = 16
) -> hasten.SubspaceNesterov:
    """By forward passes: a step learns `rank` numbers of the gradient, `chunk` of them in one pass."""
    opt = hasten.SubspaceNesterov(model, rank=rank, oracle=ForwardMode(chunk=16))
    for _ in range(steps):
        opt.step(lambda: nn.functional.cross_entropy(model(inputs), labels))
    opt.eval()  # the parameters hold the point that the guarantee is for
    return opt


def main() -> None:
    """Learn, turn the camera, follow."""
    torch.manual_seed(0)
    data = digits()
    model = MLP(hidden=16)
    learn(model, data.train_inputs, data.train_labels, steps=100)
    for p in model.parameters():
        p.grad = None
    held_out, labels = data.validation_inputs, data.validation_labels
    print(f"accuracy as learnt: {accuracy(model, held_out, labels):.3f}")
    print(f"with the camera upside down: {accuracy(model, turned(held_out), labels):.3f}")

    inputs, few = turned(data.train_inputs[:256]), data.train_labels[:256]
    twin = copy.deepcopy(model)
    opt = fine_tune(model, inputs, few, steps=200)
    print(f"after fine-tuning in forward mode: {accuracy(model, turned(held_out), labels):.3f}")
    size = sum(p.numel() for p in model.parameters())
    print(f"  {opt.oracle_calls} directional derivatives in 200 steps, {size} parameters, no gradient stored")
    assert all(p.grad is None for p in model.parameters())
    learn(twin, inputs, few, steps=200)
    print(f"after as many steps of backpropagation: {accuracy(twin, turned(held_out), labels):.3f}")


if __name__ == "__main__":
    main()
