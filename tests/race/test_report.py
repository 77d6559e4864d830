"""The report: complete, self-contained, and alive in a real browser."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from hasten.race import Race, RaceError
from hasten.race.outcome import Race as Results
from hasten.race.plan import Plan

Small = Callable[..., Race]


@pytest.fixture
def report(small_race: Small) -> Path:
    """A report with a divergence, a search, and a label that needs escaping."""
    result = small_race("AdamW,torch.AdamW,SGD(lr=1000.0),Lion(lr=0.01)", trials=3, search="grid")
    return result.report()


class Outline(HTMLParser):
    """Collects what a page refers to and what it contains."""

    def __init__(self) -> None:
        super().__init__()
        self.links: list[str] = []
        self.ids: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {key: value or "" for key, value in attrs}
        self.links += [values[key] for key in ("src", "href") if key in values]
        self.ids.add(values.get("id", ""))


def test_the_report_says_everything_and_needs_nothing_else(report: Path) -> None:
    page = report.read_text()
    outline = Outline()
    outline.feed(page)
    assert outline.links == ["data:,"]
    sections = {"standings", "curves", "target", "sensitivity", "cost", "sentences", "environment"}
    assert sections <= outline.ids
    own = page.replace(page[page.index("</main>") : page.rindex('<script id="figures"')], "")
    for text in (
        "AdamW",
        "torch.AdamW",
        "SGD(lr=1000)",
        "diverged",
        "SecondMoment",
        "hasten.race.race",
        "torch",
    ):
        assert text in own
    assert "{{" not in own
    figures = json.loads(re.findall(r'type="application/json">(.*?)</script>', page, re.S)[-1])
    assert {figure["id"] for figure in figures} == {"plot-curves", "plot-target", "plot-sensitivity"}
    assert set(figures[0]["axes"]) == {"steps", "samples", "seconds"}


def test_values_are_escaped(small_race: Small) -> None:
    result = small_race("SGD", command="hasten race --task '<script>alert(1)</script>{{style}}'")
    page = result.report().read_text()
    assert "<script>alert(1)" not in page
    assert "{{style}}" in page


def test_a_race_without_a_finished_run_still_has_a_report(tmp_path: Path) -> None:
    empty = Results(tmp_path, Plan("lm", "", "", (), (0,), 1), (), (), interrupted=True)
    assert "No run has finished yet" in empty.report().read_text()
    assert empty.figures() == []
    assert empty.summary() == "No run has finished yet."


def test_an_unwritable_report_is_one_line(small_race: Small, tmp_path: Path) -> None:
    result = small_race("SGD", seeds=1)
    with pytest.raises(RaceError, match="cannot write"):
        result.report(tmp_path / "no" / "such" / "report.html")
    with pytest.raises(RaceError, match="cannot write"):
        result.figures(tmp_path / "no" / "such")


def test_figures_are_pictures(small_race: Small) -> None:
    paths = small_race("SGD,AdamW", trials=2).figures()
    assert [path.name for path in paths] == ["curves.png", "standings.png", "sensitivity.png"]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in paths)


@pytest.fixture
def page(report: Path) -> Iterator[Any]:
    """The report open in Chromium, with everything it logs in ``page.log``."""
    executable = shutil.which("chromium") or shutil.which("chromium-browser")
    if executable is None:
        pytest.skip("no Chromium on this machine: the report was not looked at in a browser")
    sync_playwright = pytest.importorskip("playwright.sync_api").sync_playwright
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=["--no-sandbox"])
        context = browser.new_context(offline=True, viewport={"width": 1280, "height": 800})
        page = context.new_page()
        page.log = []
        page.on("console", lambda message: page.log.append(message.text))
        page.on("pageerror", lambda error: page.log.append(str(error)))
        page.goto(report.as_uri())
        page.wait_for_selector("#plot-sensitivity .main-svg")
        yield page
        browser.close()


def visible_curves(page: Any) -> int:
    return int(
        page.evaluate(
            "document.getElementById('plot-curves')._fullData.filter(t => t.visible === true).length"
        )
    )


@pytest.mark.browser
def test_the_report_is_alive_in_a_browser(page: Any) -> None:
    assert page.locator("h1").inner_text()
    assert page.locator("#plot-curves .scatterlayer .trace path.js-line").count() > 0
    assert page.locator("#plot-target .barlayer .point").count() > 0

    before = visible_curves(page)
    page.locator("#plot-curves .legendtoggle").first.click()
    page.wait_for_function(
        f"document.getElementById('plot-curves')._fullData.filter(t => t.visible === true).length < {before}"
    )
    # The line goes, and its band with it.
    assert visible_curves(page) == before - 2

    page.locator('[data-figure="plot-curves"] button[data-axis="seconds"]').click()
    page.wait_for_function(
        "document.getElementById('plot-curves').layout.xaxis.title.text === 'seconds of training'"
    )
    assert page.locator('button[data-axis="seconds"][aria-pressed="true"]').count() == 1
    assert visible_curves(page) == before - 2

    page.emulate_media(color_scheme="dark")
    page.wait_for_function("getComputedStyle(document.body).backgroundColor === 'rgb(21, 23, 26)'")
    assert page.log == []


@pytest.mark.browser
def test_the_report_fits_a_laptop(page: Any) -> None:
    wider = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
    assert wider <= 0
