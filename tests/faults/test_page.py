"""What a person does in a browser: fill the form of `score`, start it, see it finish, look at the score table.

Screenshots are kept in `build/screenshots`.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from lab import Lab

playwright = pytest.importorskip("playwright.sync_api", reason="NO BROWSER TEST: playwright is not installed")
pytestmark = pytest.mark.slow

SHOTS = Path(__file__).resolve().parents[2] / "build" / "screenshots"
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
PATIENCE_MS = 120_000


@pytest.fixture
def asked() -> set[str]:
    """Every host that the page asked for something."""
    return set()


@pytest.fixture
def page(asked: set[str]) -> Iterator[playwright.Page]:
    program = next(filter(None, map(shutil.which, BROWSERS)), None)
    if program is None:
        pytest.skip(f"NO BROWSER TEST: none of {', '.join(BROWSERS)} is on PATH")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=program, args=["--no-sandbox", "--disable-gpu"])
        try:
            page = browser.new_page(viewport={"width": 1400, "height": 1100})
            page.set_default_timeout(PATIENCE_MS)
            page.on("request", lambda request: asked.add(urlsplit(request.url).hostname or ""))
            yield page
        finally:
            browser.close()


def shoot(page: playwright.Page, name: str) -> None:
    SHOTS.mkdir(parents=True, exist_ok=True)
    page.wait_for_timeout(500)  # fonts and lines settle
    page.screenshot(path=SHOTS / f"{name}.png", full_page=True)


def test_a_person_fills_the_form_starts_a_run_and_reads_its_scores(
    lab: Lab, recipe: str, page: playwright.Page, asked: set[str]
):
    base = lab.api.removesuffix("/api")
    page.goto(f"{base}/deployments")
    page.get_by_role("link", name="score").first.click()
    page.get_by_role("button", name="Run", exact=True).click()
    page.get_by_text("Custom run").first.click()

    # The scale is a choice; the recipe is typed in as a whole.
    scale = page.locator("button.p-select-button__control[modelvalue=full]")
    scale.wait_for()
    scale.focus()
    page.keyboard.press("ArrowDown")
    choices = page.get_by_role("listbox")
    choices.wait_for()
    assert {"full", "one-gpu", "smoke"} <= set(choices.inner_text().split())
    choices.get_by_text("smoke", exact=True).click()
    field = page.locator("fieldset, div", has=page.locator("label", has_text="toml")).locator("textarea").first
    field.fill(recipe)
    shoot(page, "form")
    page.get_by_role("button", name="Submit").click()

    # The page goes back to the deployment; the newest run is ours.
    page.wait_for_url("**tab=Runs")
    run = page.get_by_role("link").and_(page.locator("[href*='/runs/flow-run/']")).first
    run.wait_for()
    page.goto(f"{base}{run.get_attribute('href')}")
    page.locator(".state-badge", has_text="Completed").first.wait_for()
    shoot(page, "run")

    page.get_by_text("Artifacts", exact=True).first.click()
    page.locator("[href*='/artifacts/artifact/']", has_text="fairway-scores").first.click()
    page.get_by_text("roundtrip").first.wait_for()
    shoot(page, "scores")
    shown = page.locator("body").inner_text()
    score = lab.document()["scores"]["roundtrip"]["bpb"]
    assert f"{score:g}" in shown
    assert asked <= {"127.0.0.1", ""}, "the page told somebody else"
