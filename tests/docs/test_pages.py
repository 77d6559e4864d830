"""What the documentation generates from the code says what the code does."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest

import hasten
from hasten.engine.stepping import COMPILE_FROM
from hasten.optimizers import CATALOGUE

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def pages() -> ModuleType:
    pytest.importorskip("rich", reason="needs the extra: pip install 'hasten[race]'")
    spec = importlib.util.spec_from_file_location("pages", ROOT / "docs" / "pages.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", CATALOGUE)
def test_the_page_of_an_optimizer(pages: ModuleType, name: str) -> None:
    page = pages.optimizer_page(name)
    optimizer = pages.sample(name)
    assert CATALOGUE[name].source in page
    assert str(hasten.describe(optimizer)) in page
    for place in optimizer.places.values():
        assert f"<code>{place}</code>" in page
    assert ":class:" not in page
    assert ":meth:" not in page


def test_the_tables_hold_every_optimizer(pages: ModuleType) -> None:
    for name in CATALOGUE:
        assert f"[{name}]({name.lower()}.md)" in pages.design_space()
        assert f"[{name}](optimizers/{name.lower()}.md)" in pages.equivalences()


def test_every_part_is_in_a_table(pages: ModuleType) -> None:
    tables = "".join(pages.GENERATED[f"parts {word}"]() for word in pages.WORDS)
    for package in pages.PACKAGES.values():
        for name in package.__all__:
            kind = getattr(package, name)
            if isinstance(kind, type) and issubclass(kind, hasten.words.Part):
                assert f"[{name}][" in tables


def test_every_mark_is_answered(pages: ModuleType) -> None:
    marks = [
        mark
        for page in (ROOT / "docs").rglob("*.md")
        for mark in re.findall(r"<!-- generated: (.*?) -->", page.read_text())
    ]
    assert sorted(marks) == sorted(pages.GENERATED)


def test_a_bar_in_a_cell_does_not_end_it(pages: ModuleType) -> None:
    assert pages.table(["a"], [["|x|"]]).splitlines()[-1] == "| &#124;x&#124; |"


def test_the_readme_shows_the_table_that_the_code_gives(pages: ModuleType) -> None:
    readme = (ROOT / "README.md").read_text()
    assert f"<!-- unified view -->\n{pages.readme_excerpt()}\n<!-- /unified view -->" in readme


def test_numbers_in_prose(pages: ModuleType) -> None:
    readme = (ROOT / "README.md").read_text()
    changelog = (ROOT / "CHANGELOG.md").read_text()
    for text in (readme, changelog):
        assert f"{len(CATALOGUE)} named optimizers" in text


def test_the_engines_table_has_every_argument() -> None:
    page = (ROOT / "docs" / "engine.md").read_text()
    documented = re.findall(r"^\| `(\w+)` \|", page, flags=re.MULTILINE)
    assert documented == list(hasten.EngineOptions.__annotations__)
    for parameters in COMPILE_FROM.values():
        assert f"{parameters:,} parameters" in page


def test_the_schedules_table_has_every_schedule() -> None:
    page = (ROOT / "docs" / "schedules.md").read_text()
    for name in set(hasten.schedules.__all__) - {"Schedule", "schedule"}:
        assert f"`{name}(" in page or f"`{name}`" in page, name


def test_no_page_knows_this_machine() -> None:
    for page in [ROOT / "README.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").rglob("*.md")]:
        assert not re.search(r"(?<![\w.~])/(work|home|root|tmp|opt)/", page.read_text()), page
