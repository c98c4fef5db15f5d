"""The main job, as a person does it: teach, train, watch, try, judge, use."""

import csv
import io
import re

import pytest
from playwright.sync_api import expect

from tests.browser.test_teach import card, counts, make_project, upload
from tests.browser.wafers import wafer_set

pytestmark = [pytest.mark.browser, pytest.mark.e2e, pytest.mark.timeout(900)]

TRAINING_MS = 400_000


def test_a_person_teaches_trains_tries_and_uses_a_model(page, portal, folder):
    project = make_project(page, portal, "Main job")
    upload(page, "Center", wafer_set(folder / "lots.npz", 135))
    page.get_by_role("button", name="Add 135 wafers").click()
    expect(counts(page, "Center")).to_contain_text("45 wafers · 15 lots")

    page.get_by_text("Advanced", exact=True).click()
    page.get_by_role("button", name="What is Epochs?").click()
    expect(page.get_by_text("How often training goes through all wafers.")).to_be_visible()
    page.get_by_role("spinbutton", name="Epochs").fill("6")
    page.get_by_role("switch", name="Also make a smaller, faster variant").click()
    page.get_by_role("button", name="Train", exact=True).click()
    expect(page.get_by_role("button", name="Stop")).to_be_visible()
    # Where epochs take milliseconds, packing the model is the first that lasts long enough to be seen.
    moving = re.compile(r"\d / 6 epochs|Packing the model|Testing on wafers it has not seen")
    expect(page.get_by_text(moving)).to_be_visible(timeout=TRAINING_MS)
    page.reload()
    expect(page.get_by_role("img", name="Curves of Accuracy per epoch")).to_be_visible(timeout=TRAINING_MS)
    expect(page.get_by_role("link", name="See how good it is")).to_be_visible(timeout=TRAINING_MS)
    expect(page.get_by_text("Model version 1")).to_be_visible()

    page.locator("[data-wire=try] input[type=file]").set_input_files(wafer_set(folder / "one.npz", 2, first_seed=500))
    expect(page.get_by_text("1 of 2 wafers")).to_be_visible()
    expect(page.get_by_role("group", name="Probabilities")).to_contain_text("Center")
    page.get_by_role("switch", name="Show which dies spoke for it").click()
    expect(page.locator("[data-wire=try] img.tw-wafer")).to_be_visible()

    page.get_by_role("link", name="See how good it is").click()
    expect(page.get_by_role("heading", name="How good is it?")).to_be_visible()
    expect(page.get_by_text(re.compile(r"\d+ of \d+ wafers were named right\."))).to_be_visible()
    page.locator(".tw-matrix .tw-cell:not(.zero)").first.click()
    expect(page.locator(".q-dialog .tw-wafer-tile img").first).to_be_visible()
    page.keyboard.press("Escape")

    page.goto(f"{project}/predict")
    lot = wafer_set(folder / "lot.npz", 9, labelled=False, first_seed=900)
    page.locator("input[type=file]").set_input_files(lot)
    expect(page.get_by_text(re.compile(r"\d of 9 are accepted; \d need a look\."))).to_be_visible()
    expect(page.locator(".tw-table tbody tr")).to_have_count(9)
    with page.expect_download() as download:
        page.get_by_role("link", name="Download CSV").click()
    rows = list(csv.DictReader(io.StringIO(download.value.path().read_text(encoding="utf-8-sig"))))
    assert len(rows) == 9
    assert {row["version"] for row in rows} == {"1"}

    page.goto(f"{project}/models")
    expect(page.get_by_text("Serving")).to_be_visible()
    model_id = page.locator("code").first.inner_text()
    expect(page.locator("pre")).to_contain_text(f'model="{model_id}"')
    with page.expect_download() as download:
        page.get_by_role("link", name="Download ONNX of version 1").click()
    model = download.value.path().stat().st_size
    assert model > 10_000

    expect(page.get_by_role("table", name="A smaller, faster variant")).to_contain_text("Macro-F1")
    page.get_by_role("button", name="Publish the smaller variant").click()
    expect(page.get_by_text("8 bits", exact=True)).to_be_visible()
    with page.expect_download() as download:
        page.get_by_role("link", name="Download ONNX of version 2").click()
    assert 10_000 < download.value.path().stat().st_size < 0.8 * model


def test_a_person_generates_looks_through_and_adds(page, portal, folder):
    make_project(page, portal, "Few wafers")
    upload(page, "Center", wafer_set(folder / "lots.npz", 45))
    page.get_by_role("button", name="Add 45 wafers").click()
    center = card(page, "Center")
    expect(counts(page, "Center")).to_contain_text("15 wafers")
    center.get_by_role("button", name="Generate more").click()
    expect(page.get_by_text("Needs 20 wafers of the class; there are 15.")).to_be_visible()
    page.get_by_role("spinbutton", name="How many").fill("12")
    page.get_by_role("button", name="Generate", exact=True).click()
    expect(page.get_by_text("Made 12")).to_be_visible(timeout=TRAINING_MS)
    expect(page.get_by_text("How true they are")).to_be_visible()
    page.locator(".q-dialog .tw-thumb").first.click()
    page.get_by_role("button", name="Add 11 wafers to Center").click()
    expect(counts(page, "Center")).to_contain_text("26 wafers · 5 lots · 11 generated")
    expect(center.locator(".tw-thumb")).to_have_count(24)
    expect(center.locator(".tw-thumb-badge")).to_have_count(11)
