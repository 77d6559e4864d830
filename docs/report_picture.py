"""Photograph the top of a race's report for the README: ``python docs/report_picture.py race/lm-...``."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from playwright.sync_api import sync_playwright

PICTURE = Path(__file__).parent / "images" / "race.png"


def photograph(report: Path, picture: Path = PICTURE) -> None:
    """Open a report in Chromium and save what a reader sees first, up to and with the loss curves."""
    browser_path = shutil.which("chromium") or shutil.which("google-chrome")
    if browser_path is None:
        sys.exit("no chromium found")
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=browser_path, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1200, "height": 1260})
        page.goto(report.resolve().as_uri())
        page.wait_for_selector(".plotly .legend")
        page.screenshot(path=str(picture))
        browser.close()


if __name__ == "__main__":
    if len(sys.argv) != 2 or not (Path(sys.argv[1]) / "report.html").is_file():
        sys.exit("usage: python docs/report_picture.py FOLDER_OF_A_RACE")
    photograph(Path(sys.argv[1]) / "report.html")
