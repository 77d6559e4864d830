"""Every Python block of the README and of the documentation runs, page by page, top to bottom."""

from __future__ import annotations

import re
import socket
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch.distributed as dist

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(page: Path) -> list[tuple[int, str]]:
    """The blocks of a page, each with the number of its first line."""
    text = page.read_text()
    return [(text[: match.start(1)].count("\n"), match[1]) for match in BLOCK.finditer(text)]


WITH_CODE = [page for page in PAGES if blocks(page)]


def test_there_is_something_to_run() -> None:
    assert ROOT / "README.md" in WITH_CODE
    assert len(WITH_CODE) >= 8


@pytest.mark.parametrize("page", WITH_CODE, ids=lambda page: str(page.relative_to(ROOT)))
def test_page(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    # As torchrun starts a script, with one worker.
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    worker = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": 1}
    for name, value in worker.items():
        monkeypatch.setenv(name, str(value))
    module = ModuleType("page")
    monkeypatch.setitem(sys.modules, "page", module)  # where dataclasses look their module up
    try:
        run(page, module)
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def run(page: Path, module: ModuleType) -> None:
    for line, source in blocks(page):
        # Blank lines in front keep the line numbers of the page in a traceback.
        exec(compile("\n" * line + source, str(page), "exec"), vars(module))
