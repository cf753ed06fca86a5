"""What a person does in a browser: fill the form of `score`, start it, see it finish, look at what it came to.

Screenshots are kept in `build/screenshots`.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from lab import Lab, wait_for

from artifacts.store import Store

playwright = pytest.importorskip("playwright.sync_api", reason="NO BROWSER TEST: playwright is not installed")
pytestmark = pytest.mark.slow

SHOTS = Path(__file__).resolve().parents[2] / "build" / "screenshots"
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
PATIENCE_MS = 240_000


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
        browser = started.chromium.launch(
            executable_path=program, args=["--no-sandbox", "--disable-gpu"], timeout=PATIENCE_MS
        )
        try:
            page = browser.new_page(viewport={"width": 1400, "height": 1100})
            page.context.set_default_timeout(PATIENCE_MS)  # of pages that it opens, too
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
    for name in ("full", "one-gpu", "smoke"):  # the list comes first, its lines after it
        choices.get_by_text(name, exact=True).wait_for()
    choices.get_by_text("smoke", exact=True).click()
    field = page.locator("fieldset, div", has=page.locator("label", has_text="toml")).locator("textarea").first
    field.fill(recipe)
    shoot(page, "form")
    before = lab.runs("score")
    page.get_by_role("button", name="Submit").click()

    # The page goes back to the deployment, where our run comes to be listed, above those of other tests.
    page.wait_for_url("**tab=Runs")
    (run,) = wait_for(lambda: lab.runs("score") - before, "the server has the run")
    page.get_by_role("link").and_(page.locator(f"[href*='/runs/flow-run/{run}']")).first.wait_for()
    address = f"{base}/runs/flow-run/{run}"
    page.goto(address)
    page.locator(".state-badge", has_text="Completed").first.wait_for()
    shoot(page, "run")

    open_artifact(page, "fairway-scores")
    score = lab.document_of(run)["scores"]["roundtrip"]["bpb"]
    page.get_by_text("roundtrip").first.wait_for()
    page.get_by_text(f"{score:.5f}").first.wait_for()
    shoot(page, "scores")

    # The summary has the score in a line, and the curve as a picture that is really drawn.
    page.goto(address)
    open_artifact(page, "fairway-summary")
    page.get_by_text(f"{score:.5f} BPB (roundtrip)").first.wait_for()
    message = page.get_by_text(f"{score:.5f} BPB (roundtrip), ")  # in the state's message, too
    playwright.expect(message).to_have_count(2, timeout=PATIENCE_MS)
    curve = page.get_by_role("img", name="loss")
    curve.wait_for()
    assert curve.evaluate("image => image.decode().then(() => image.naturalWidth)") > 300
    shoot(page, "summary")

    # A line of lineage leads to the page of the run that made the artifact: train's own, in the pool.
    page.goto(address)
    open_artifact(page, "fairway-lineage")
    row = page.get_by_role("row").filter(has=page.get_by_role("cell", name="train", exact=True))
    row.wait_for()
    shoot(page, "lineage")
    led = follow(row)
    led.get_by_text("train toy smoke seed").first.wait_for()
    led.get_by_text("edited code at").first.wait_for()  # what the stage said
    shoot(led, "stage")
    assert asked <= {"127.0.0.1", ""}, "the page told somebody else"


def test_a_hit_leads_to_the_run_that_made_it(lab: Lab, recipe: str, page: playwright.Page):
    base = lab.api.removesuffix("/api")
    runs = [lab.score(scale="smoke", toml=recipe, seed=5, pool="") for _ in range(2)]
    for run in runs:
        assert lab.ended(run)["type"] == "COMPLETED"
    page.goto(f"{base}/runs/flow-run/{runs[1]}")
    open_artifact(page, "fairway-lineage")
    row = page.get_by_role("row").filter(has=page.get_by_role("cell", name="weigh", exact=True))
    made = follow(row).url.rpartition("/")[2]
    record = next(step for step in lab.document_of(runs[1])["steps"] if step["stage"] == "weigh")
    assert made == Store.open(lab.store).get("weigh", record["key"]).provenance["flow_run"]


def test_the_list_of_runs_says_which_field_was_wrong(lab: Lab, recipe: str, page: playwright.Page):
    run = lab.score(scale="smoke", toml=recipe, overrides=["train.muon.lrr=0.02"])
    assert lab.ended(run)["type"] == "FAILED"
    page.goto(f"{lab.api.removesuffix('/api')}/runs")
    listed = page.get_by_role("link", name="train.muon.lrr is no field")
    listed.first.wait_for()
    shoot(page, "runs")
    listed.first.click()
    page.wait_for_url(f"**/runs/flow-run/{run}")
    page.get_by_text("Finished in state Failed").first.wait_for()
    assert "Traceback" not in page.locator("body").inner_text()
    shoot(page, "failed")


def follow(row: playwright.Locator) -> playwright.Page:
    """The page behind a row's link, which Prefect opens beside this one."""
    with row.page.context.expect_page() as opened:
        row.get_by_role("link").click()
    led = opened.value
    led.wait_for_url("**/runs/flow-run/*")
    return led


def open_artifact(page: playwright.Page, key: str) -> None:
    """From a run's page."""
    page.get_by_text("Artifacts", exact=True).first.click()
    page.locator("[href*='/artifacts/artifact/']", has_text=key).first.click()
    page.wait_for_url("**/artifacts/artifact/*")
