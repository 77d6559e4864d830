"""A text that every machine with Python already has: the sources of the standard library.

No download, no licence question, four to five megabytes of one language. Whole files are held
out for evaluation, so that what is measured is never a copy of what was trained on.
"""

from __future__ import annotations

import hashlib
import sysconfig
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

VOCABULARY = 128
"""Symbols of the text: the ASCII codes; anything else is written as ``SUBSTITUTE``."""

SUBSTITUTE = 26


@dataclass(frozen=True)
class Text:
    """Two bodies of text as ASCII codes, and a digest that says which text it was.

    Attributes:
        train: codes to learn from, ``uint8``, shape ``(n,)``.
        validation: codes of files held out, ``uint8``, shape ``(m,)``.
        digest: first twelve hexadecimal digits of the SHA-256 of both.

    Example:
        >>> text = standard_library_text()
        >>> text.train.dtype, len(text.train) > 1_000_000
        (torch.uint8, True)
    """

    train: Tensor
    validation: Tensor
    digest: str


@lru_cache(maxsize=1)
def standard_library_text() -> Text:
    """The top-level modules of Python's standard library, every tenth file held out.

    Raises:
        FileNotFoundError: if this Python carries no sources (a frozen or zipped library).

    Example:
        >>> standard_library_text().validation.ndim
        1
    """
    folder = Path(sysconfig.get_paths()["stdlib"])
    return text_of_files(sorted(folder.glob("*.py")), origin=str(folder))


def text_of_files(files: list[Path], *, origin: str = "the given files") -> Text:
    """Join files into a `Text`: every tenth one, in the order given, is held out.

    Example:
        >>> from pathlib import Path
        >>> import sysconfig
        >>> files = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))
        >>> text_of_files(files[:20]).train.ndim
        1
    """
    if len(files) < 10:
        raise FileNotFoundError(
            f"{origin} holds {len(files)} Python source files, but at least 10 are needed "
            "to make a text (a Python without its sources cannot run this task)"
        )
    held_out = b"\n".join(file.read_bytes() for file in files[9::10])
    learnt = b"\n".join(file.read_bytes() for i, file in enumerate(files) if i % 10 != 9)
    digest = hashlib.sha256(learnt + b"\0" + held_out).hexdigest()[:12]
    return Text(_codes(learnt), _codes(held_out), digest)


def _codes(text: bytes) -> Tensor:
    codes = torch.frombuffer(bytearray(text), dtype=torch.uint8)
    return torch.where(codes < VOCABULARY, codes, torch.full_like(codes, SUBSTITUTE))


def windows(codes: Tensor, starts: Tensor, length: int) -> tuple[Tensor, Tensor]:
    """Inputs and targets of next-symbol prediction, each of shape ``(len(starts), length)``.

    Example:
        >>> inputs, targets = windows(torch.arange(10, dtype=torch.uint8), torch.tensor([0, 3]), 4)
        >>> inputs.tolist(), targets.tolist()
        ([[0, 1, 2, 3], [3, 4, 5, 6]], [[1, 2, 3, 4], [4, 5, 6, 7]])
    """
    block = codes[starts[:, None] + torch.arange(length + 1)].long()
    return block[:, :-1], block[:, 1:]


def random_windows(
    codes: Tensor, batch: int, length: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """`windows` at ``batch`` uniformly drawn places.

    Example:
        >>> text = standard_library_text()
        >>> inputs, targets = random_windows(text.train, 8, 64, torch.Generator().manual_seed(0))
        >>> inputs.shape, targets.shape
        (torch.Size([8, 64]), torch.Size([8, 64]))
    """
    starts = torch.randint(len(codes) - length, (batch,), generator=generator)
    return windows(codes, starts, length)


def spread_windows(codes: Tensor, count: int, length: int) -> tuple[Tensor, Tensor]:
    """`windows` at ``count`` evenly spread places: the same ones at every evaluation.

    Example:
        >>> inputs, _ = spread_windows(torch.zeros(1000, dtype=torch.uint8), 5, 20)
        >>> inputs.shape
        torch.Size([5, 20])
    """
    starts = torch.linspace(0, len(codes) - length - 1, count, dtype=torch.float64).long()
    return windows(codes, starts, length)
