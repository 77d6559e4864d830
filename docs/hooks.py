"""Hooks of mkdocs: pages and tables made from the code when the documentation is built."""

from __future__ import annotations

from typing import Any

import pages
from mkdocs.structure.files import File, Files

from hasten.optimizers import CATALOGUE


def on_config(config: Any) -> Any:
    """List a page for each optimizer."""
    section = next(entry["Optimizers"] for entry in config.nav if "Optimizers" in entry)
    section.extend({name: f"optimizers/{pages.page_name(name)}"} for name in CATALOGUE)
    return config


def on_files(files: Files, config: Any) -> Files:
    """Make a page for each optimizer, and bring the figures of the benchmarks."""
    for name in CATALOGUE:
        path = f"optimizers/{pages.page_name(name)}"
        files.append(File.generated(config, path, content=pages.optimizer_page(name)))
    for image in pages.benchmark_images():
        files.append(File.generated(config, f"images/{image.name}", abs_src_path=str(image)))
    changelog = pages.BENCHMARKS.parent / "CHANGELOG.md"
    files.append(File.generated(config, "changelog.md", content=changelog.read_text()))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Put the tables where the pages ask for them."""
    return pages.filled(markdown)
