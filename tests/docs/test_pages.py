"""What the documentation generates from the code says what the code does."""

from __future__ import annotations

import importlib.util
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

import hasten
from hasten.engine.fused import COMPILE_FROM
from hasten.optimizers import CATALOGUE
from hasten.solvers import METHODS, Status
from hasten.solvers.options import declared
from hasten.solvers.stopping import Stopping

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def pages() -> Iterator[ModuleType]:
    pytest.importorskip("rich", reason="needs the extra: pip install 'hasten[race]'")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "docs")  # as mkdocs does for its hooks
        yield loaded()


def loaded() -> ModuleType:
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
    assert "Args:" not in page


def test_the_tables_hold_every_optimizer(pages: ModuleType) -> None:
    for name in CATALOGUE:
        assert f"[{name}]({name.lower()}.md)" in pages.design_space()
        assert f"[{name}](optimizers/{name.lower()}.md)" in pages.equivalences()


def test_every_part_is_in_a_table(pages: ModuleType) -> None:
    tables = "".join(pages.GENERATED[f"parts {word}"]() for word in pages.WORDS)
    for package in pages.PACKAGES.values():
        for name in package.__all__:
            kind = getattr(package, name)
            part = isinstance(kind, type) and issubclass(kind, hasten.words.Part)
            if part and not inspect.isabstract(kind):
                assert f"[{name}][" in tables


def test_every_mark_is_answered(pages: ModuleType) -> None:
    marks = [
        mark
        for page in (ROOT / "docs").rglob("*.md")
        for mark in re.findall(r"<!-- generated: (.*?) -->", page.read_text())
    ]
    assert sorted(marks) == sorted(pages.GENERATED)


def test_every_family_of_sketches_is_in_the_table(pages: ModuleType) -> None:
    table = pages.GENERATED["sketch families"]()
    for name in hasten.sketches.__all__:
        kind = getattr(hasten.sketches, name)
        if (
            isinstance(kind, type)
            and issubclass(kind, hasten.sketches.Sketch)
            and not inspect.isabstract(kind)
        ):
            assert table.count(f"[{name}][hasten.sketches.{name}]") == 1
            assert kind.formula in table
    assert set(pages.tables.CHOOSE) == set(pages.tables.families())


def test_the_table_of_sketches_is_computed(pages: ModuleType) -> None:
    """Against the constants of the i⁻² spectrum, worked out by hand: c = 1/17, C = 16 ℓ, S = 4/√ℓ."""
    row = next(
        line for line in pages.GENERATED["sketch families"]().splitlines() if "[BalancedCountSketch]" in line
    )
    inverse_squares = [i**-2.0 for i in range(1, 257)]
    smoothness = (1 - 1 / 17) * 1 + sum(inverse_squares) / 17
    cells = [cell.strip() for cell in row.split(" | ")]
    assert cells[2:6] == ["16", "16", f"{16 * smoothness:.4g}", f"{4 / smoothness**0.5:.3g}"]


def test_every_method_and_option_is_on_the_page(pages: ModuleType) -> None:
    page = pages.GENERATED["methods"]()
    for name, kind in METHODS.items():
        section = page.partition(f"\n### {name}\n")[2].partition("\n### ")[0]
        assert kind.source in page
        for option in kind.options():
            assert f"<code>{option.name}</code>" in section
            assert option.meaning.replace("|", "&#124;") in section
        row = next(line for line in page.splitlines() if line.startswith(f"| [`{name}`]"))
        assert ("bounds" in row.split(" | ")[2]) == kind.takes_bounds
    rules = pages.GENERATED["stopping"]()
    assert all(f"<code>{option.name}</code>" in rules for option in declared(Stopping))
    statuses = pages.GENERATED["statuses"]()
    assert all(status.message in statuses for status in Status if status is not Status.RUNNING)


def test_every_problem_is_in_a_table(pages: ModuleType) -> None:
    convex = pages.GENERATED["convex problems"]()
    assert all(f"<code>{name}</code>" in convex for name in hasten.problems.CONVEX_PROBLEMS)
    collection = pages.GENERATED["least squares problems"]().splitlines()
    assert [line.split(" | ")[0] for line in collection[2:]] == [f"| {k}" for k in range(1, 36)]


def test_everything_public_is_in_the_reference(pages: ModuleType) -> None:
    methods = {f"hasten.solvers.{kind.__name__}" for kind in METHODS.values()}
    for name, package in pages.ROOMS.items():
        listed = pages.GENERATED[f"reference {name}"]().removeprefix("::: ").split("\n\n::: ")
        public = {f"{package.__name__}.{thing}" for thing in package.__all__}
        assert len(listed) == len(set(listed))
        assert set(listed) == public - methods


def test_every_benchmark_is_listed(pages: ModuleType) -> None:
    commands = pages.GENERATED["benchmark commands"]()
    assert "<code>python -m benchmarks.steps</code>" in commands
    assert "<code>python -m benchmarks.minimize</code>" in commands
    for path in (ROOT / "benchmarks" / "claims" / "results").glob("*.json"):
        assert f"<code>python -m benchmarks.claims.{path.stem}</code>" in commands


def test_arguments_explained_together_are_explained_apart() -> None:
    griffe = pytest.importorskip("griffe", reason="needs the extra: pip install 'hasten[docs]'")
    spec = importlib.util.spec_from_file_location("docstrings", ROOT / "docs" / "docstrings.py")
    assert spec is not None
    assert spec.loader is not None
    docstrings = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(docstrings)
    thing = griffe.Function(
        "f", docstring=griffe.Docstring("Do.\n\nArgs:\n    a, b: two\n        of them.\n    c: one.")
    )
    docstrings.Docstrings().on_instance(obj=thing)
    assert thing.docstring.value == (
        "Do.\n\nArgs:\n    a: two\n        of them.\n    b: two\n        of them.\n    c: one."
    )


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
    assert f"{len(METHODS)} methods" in readme


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
