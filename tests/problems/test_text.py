"""The text every Python carries."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from hasten.problems.text import (
    SUBSTITUTE,
    random_windows,
    spread_windows,
    standard_library_text,
    text_of_files,
)


def files(tmp_path: Path, count: int) -> list[Path]:
    paths = [tmp_path / f"{k:02}.py" for k in range(count)]
    for k, path in enumerate(paths):
        path.write_text(f"file{k:02}")
    return paths


def test_whole_files_are_held_out(tmp_path: Path) -> None:
    text = text_of_files(files(tmp_path, 20))
    held_out = bytes(text.validation.tolist()).decode()
    learnt = bytes(text.train.tolist()).decode()
    assert held_out == "file09\nfile19"
    assert len(learnt.split("\n")) == 18
    assert not set(held_out.split("\n")) & set(learnt.split("\n"))


def test_what_is_not_ascii_is_substituted(tmp_path: Path) -> None:
    paths = files(tmp_path, 10)
    paths[0].write_text("é")
    assert text_of_files(paths).train[:2].tolist() == [SUBSTITUTE, SUBSTITUTE]


def test_the_digest_names_the_text(tmp_path: Path) -> None:
    paths = files(tmp_path, 10)
    before = text_of_files(paths).digest
    assert text_of_files(paths).digest == before
    paths[3].write_text("other")
    assert text_of_files(paths).digest != before


def test_too_few_files_are_said_so(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="holds 3 Python source files"):
        text_of_files(files(tmp_path, 3), origin="the folder")


def test_the_standard_library_is_a_text() -> None:
    text = standard_library_text()
    assert len(text.train) > 1_000_000
    assert len(text.validation) > 50_000
    assert int(text.train.max()) < 128
    assert b"import" in bytes(text.validation[:100_000].tolist())


def test_targets_are_the_inputs_one_on() -> None:
    codes = torch.randint(128, (1000,), dtype=torch.uint8)
    for inputs, targets in (
        random_windows(codes, 7, 12, torch.Generator().manual_seed(0)),
        spread_windows(codes, 7, 12),
    ):
        assert inputs.shape == targets.shape == (7, 12)
        assert torch.equal(inputs[:, 1:], targets[:, :-1])


def test_windows_reach_both_ends_and_no_further() -> None:
    codes = torch.arange(50, dtype=torch.uint8)
    inputs, targets = spread_windows(codes, 4, 10)
    assert int(inputs[0, 0]) == 0
    assert int(targets[-1, -1]) == 49
    drawn, _ = random_windows(codes, 5000, 10, torch.Generator().manual_seed(0))
    assert int(drawn.min()) == 0
    assert int(drawn.max()) == 48
