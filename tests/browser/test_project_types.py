"""Projects with several patterns per wafer, and projects that only normal wafers teach, from first click to answer."""

import csv
import io
import re

import pytest
from playwright.sync_api import expect

from tests.browser.test_teach import card, counts, make_project, upload
from tests.browser.wafers import MIXED, wafer_set

pytestmark = [pytest.mark.browser, pytest.mark.e2e, pytest.mark.timeout(900)]

TRAINING_MS = 400_000


def train(page):
    page.get_by_role("button", name="Train", exact=True).click()
    expect(page.get_by_role("button", name="Stop")).to_be_visible()
    expect(page.get_by_role("link", name="See how good it is")).to_be_visible(timeout=TRAINING_MS)
    expect(page.get_by_text("Model version 1")).to_be_visible(timeout=TRAINING_MS)


def try_wafer(page, path):
    page.locator("[data-wire=try] input[type=file]").set_input_files(path)
    expect(page.get_by_role("group", name="Probabilities")).to_be_visible()
    return page.locator("[data-wire=try] .tw-chip")


def test_a_person_teaches_several_patterns_per_wafer(page, portal, folder):
    project = make_project(page, portal, "Mixed", "Several patterns per wafer")
    upload(page, "Center", wafer_set(folder / "lots.npz", 144, kinds=MIXED))
    expect(page.get_by_text("Center + Edge-Ring · 36")).to_be_visible()
    page.get_by_role("button", name="Add 144 wafers").click()
    # Each class counts every wafer that shows it.
    expect(counts(page, "Center")).to_contain_text("72 wafers")
    expect(counts(page, "Edge-Ring")).to_contain_text("72 wafers")
    expect(card(page, "Center").locator(".tw-thumb-badge").first).to_have_text("+1")

    # One by one, and several at once; both can be taken back.
    card(page, "Center").locator(".tw-thumb").nth(1).click()
    page.get_by_role("checkbox", name="Scratch").click()
    expect(page.get_by_text("1 wafer also shows Scratch now.")).to_be_visible()
    expect(counts(page, "Scratch")).to_contain_text("1 wafer")
    page.keyboard.press("Escape")
    card(page, "Center").get_by_role("button", name="Show all 72").click()
    page.get_by_role("button", name="Choose several").click()
    page.get_by_role("button", name="All on this page").click()
    expect(page.get_by_text("72 wafers chosen")).to_be_visible()
    page.get_by_role("checkbox", name="Scratch").click()
    expect(page.get_by_text("71 wafers also show Scratch now.")).to_be_visible()
    page.keyboard.press("Escape")
    expect(counts(page, "Scratch")).to_contain_text("72 wafers")
    for undo in ("71 wafers also show Scratch now.", "1 wafer also shows Scratch now."):
        page.locator(".tw-toast", has_text=undo).get_by_role("button", name="Undo").click()
    expect(counts(page, "Scratch")).to_contain_text("0 wafers")

    page.get_by_text("Advanced", exact=True).click()
    page.get_by_role("spinbutton", name="Epochs").fill("8")
    train(page)
    expect(page.get_by_text(re.compile(r"All patterns right on \d+ of \d+ wafers\."))).to_be_visible()
    one = wafer_set(folder / "one.npz", 1, labelled=False, first_seed=703, kinds=("Center+Edge-Ring",))
    chips = try_wafer(page, one)
    expect(chips.filter(has_text="Center")).to_be_visible()
    expect(chips.filter(has_text="Edge-Ring")).to_be_visible()
    expect(page.get_by_text("Each bar stands for itself")).to_be_visible()

    page.get_by_role("link", name="See how good it is").click()
    expect(page.get_by_role("heading", name="Per pattern")).to_be_visible()
    expect(page.locator(".tw-matrix")).to_have_count(0)

    page.goto(f"{project}/predict")
    lot = wafer_set(folder / "lot.npz", 8, labelled=False, first_seed=900, kinds=MIXED)
    page.locator("input[type=file]").set_input_files(lot)
    expect(page.locator(".tw-table tbody tr")).to_have_count(8)
    with page.expect_download() as download:
        page.get_by_role("link", name="Download CSV").click()
    rows = list(csv.DictReader(io.StringIO(download.value.path().read_text(encoding="utf-8-sig"))))
    assert {frozenset(row["patterns"].split("+")) for row in rows} >= {frozenset(("Center", "Edge-Ring"))}


def test_a_person_teaches_with_only_normal_wafers(page, portal, folder):
    project = make_project(page, portal, "Normal", "Only normal wafers")
    expect(page.get_by_text("none has 0 of the 20 normal wafers that are needed.")).to_be_visible()
    upload(page, "none", wafer_set(folder / "good.npz", 90, labelled=False, kinds=("none",)))
    page.get_by_role("button", name="Add 90 wafers").click()
    expect(counts(page, "none")).to_contain_text("90 wafers")
    page.get_by_role("button", name="Add a class").click()
    page.get_by_role("button", name="Edge-Ring", exact=True).click()
    expect(card(page, "Edge-Ring")).to_contain_text("Wafers here are never trained on")
    bad = wafer_set(folder / "bad.npz", 18, labelled=False, first_seed=400, kinds=("Edge-Ring",))
    upload(page, "Edge-Ring", bad)
    page.get_by_role("button", name="Add 18 wafers").click()
    expect(card(page, "Edge-Ring")).to_contain_text("18 wafers that only measure: never trained on.")

    train(page)
    outcome = re.compile(r"\d+ of \d+ normal wafers pass; \d+ of \d+ other wafers were noticed\.")
    expect(page.get_by_text(outcome)).to_be_visible()
    strange = wafer_set(folder / "strange.npz", 1, labelled=False, first_seed=800, kinds=("Center",))
    expect(try_wafer(page, strange)).to_have_text("Unlike the normal wafers")
    page.get_by_role("link", name="See how good it is").click()
    expect(page.get_by_text("AUROC", exact=True)).to_be_visible()
    expect(page.locator(".tw-matrix")).to_have_count(0)

    page.goto(f"{project}/predict")
    page.locator("input[type=file]").set_input_files(
        wafer_set(folder / "lot.npz", 6, labelled=False, first_seed=900, kinds=("none", "Edge-Ring"))
    )
    expect(page.locator(".tw-table tbody tr")).to_have_count(6)
    expect(page.locator(".tw-table").get_by_text("Unlike the normal wafers").first).to_be_visible()
