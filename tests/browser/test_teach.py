"""What a person does before there is a model: works with all services away, because nothing of it needs one."""

import re
import zipfile

import httpx
import pytest
from playwright.sync_api import expect

from tests.browser.wafers import wafer, wafer_set

pytestmark = pytest.mark.browser


def make_project(page, portal, name="Flow test", kind=""):
    page.goto(portal)
    page.get_by_role("button", name="Get started").first.click()
    if kind:
        page.get_by_role("radio", name=re.compile(kind)).click()
    page.get_by_role("textbox", name="Name").fill(name)
    page.get_by_role("button", name="Make the project").click()
    page.wait_for_url(re.compile(r"/projects/[^/]+$"))
    return page.url


def card(page, name):
    return page.get_by_role("article", name=name, exact=True)


def counts(page, name):
    return card(page, name).locator(".tw-counts")


def upload(page, name, path):
    card(page, name).get_by_role("button", name="Upload").click()
    page.locator(".q-dialog input[type=file]").set_input_files(path)


def test_an_upload_is_looked_at_added_and_taken_back(page, portal_alone, folder):
    make_project(page, portal_alone)
    upload(page, "Center", wafer_set(folder / "lots.npz", 18))
    expect(page.get_by_text("18 wafers read")).to_be_visible()
    expect(page.get_by_text("Nothing is stored yet.")).to_be_visible()
    expect(page.locator(".q-dialog img")).to_have_count(3)
    page.get_by_role("button", name="Add 18 wafers").click()
    expect(counts(page, "Center")).to_contain_text("6 wafers · 2 lots")
    expect(counts(page, "Edge-Ring")).to_contain_text("6 wafers")
    page.get_by_role("button", name="Undo").click()
    expect(counts(page, "Center")).to_contain_text("0 wafers")


def test_closing_an_upload_stores_nothing(page, portal_alone, folder):
    make_project(page, portal_alone)
    upload(page, "Center", wafer_set(folder / "lots.npz", 18))
    expect(page.get_by_role("button", name="Add 18 wafers")).to_be_visible()
    page.keyboard.press("Escape")
    page.reload()
    expect(counts(page, "Center")).to_contain_text("0 wafers")


def test_a_file_that_is_no_wafer_is_named_with_the_reason(page, portal_alone, folder):
    make_project(page, portal_alone)
    with zipfile.ZipFile(folder / "mixed.zip", "w") as archive:
        archive.write(wafer_set(folder / "lots.npz", 3), "lots.npz")
        archive.writestr("notes.docx", b"not a wafer")
    upload(page, "Center", folder / "mixed.zip")
    expect(page.get_by_text("1 could not be read")).to_contain_text("notes.docx")


def test_a_file_over_the_limit_is_refused_before_it_is_sent(page, portal_alone, folder):
    make_project(page, portal_alone)
    (folder / "huge.npz").write_bytes(b"x" * (1024 * 1024 + 1))
    upload(page, "Center", folder / "huge.npz")
    expect(page.get_by_text("Files up to 1.0 MB can be uploaded.")).to_be_visible()


def test_classes_are_renamed_deleted_and_brought_back(page, portal_alone):
    make_project(page, portal_alone)
    name = card(page, "Center").get_by_role("textbox", name="Name of the class")
    name.fill("Bullseye")
    name.press("Enter")
    expect(card(page, "Bullseye")).to_be_visible()
    card(page, "Scratch").get_by_role("button", name="More for Scratch").click()
    page.get_by_role("menuitem", name="Delete the class").click()
    expect(card(page, "Scratch")).to_have_count(0)
    page.get_by_role("status").filter(has_text="Scratch is deleted.").get_by_role("button", name="Undo").click()
    expect(card(page, "Scratch")).to_be_visible()


def test_a_name_that_is_taken_is_refused_in_words(page, portal_alone):
    make_project(page, portal_alone)
    name = card(page, "Center").get_by_role("textbox", name="Name of the class")
    name.fill("Scratch")
    name.press("Enter")
    expect(page.get_by_role("alert")).to_have_text(re.compile("Another class has this name already"))
    expect(card(page, "Center")).to_be_visible()


def test_a_wafer_is_drawn(page, portal_alone):
    make_project(page, portal_alone)
    card(page, "Center").get_by_role("button", name="Draw").click()
    pad = page.get_by_role("application")
    pad.focus()
    for _ in range(3):
        page.keyboard.press("Space")
        page.keyboard.press("ArrowRight")
    page.get_by_role("button", name="Add the wafer").click()
    expect(counts(page, "Center")).to_contain_text("1 wafer")


def test_a_grey_button_says_why(page, portal_alone):
    make_project(page, portal_alone)
    train = page.get_by_role("button", name="Train", exact=True)
    expect(train).to_have_attribute("aria-disabled", "true")
    expect(page.get_by_text("At least 2 classes with wafers are needed.")).to_be_visible()


def test_training_without_a_trainer_says_so_and_loses_nothing(page, portal_alone, folder):
    make_project(page, portal_alone)
    upload(page, "Center", wafer_set(folder / "lots.npz", 60))
    page.get_by_role("button", name="Add 60 wafers").click()
    train = page.get_by_role("button", name="Train", exact=True)
    expect(train).not_to_have_attribute("aria-disabled", "true")
    train.click()
    expect(page.get_by_role("alert")).to_contain_text("not reachable")
    expect(counts(page, "Center")).to_contain_text("20 wafers")


def test_the_server_says_which_services_are_away(page, portal_alone):
    page.goto(portal_alone)
    for service in ("Trainer", "Generator", "Predictor"):
        expect(page.get_by_text(f"{service}: not reachable").first).to_be_visible()


def test_a_project_goes_to_the_trash_and_comes_back(page, portal_alone):
    make_project(page, portal_alone, "Trash me")
    page.goto(portal_alone)
    page.get_by_role("button", name="Move Trash me to the trash").click()
    expect(page.get_by_role("link", name="Trash me", exact=True)).to_have_count(0)
    page.get_by_role("button", name="Undo").click()
    expect(page.get_by_role("link", name="Trash me", exact=True)).to_be_visible()


def test_a_project_travels_as_a_file(page, portal_alone, folder):
    make_project(page, portal_alone, "Traveller")
    upload(page, "Center", wafer_set(folder / "lots.npz", 9))
    page.get_by_role("button", name="Add 9 wafers").click()
    expect(counts(page, "Center")).to_contain_text("3 wafers")
    page.goto(portal_alone)
    with page.expect_download() as download:
        page.get_by_role("link", name="Download Traveller as a file").click()
    path = folder / "project.zip"
    download.value.save_as(path)
    page.get_by_role("button", name="Open a project file").click()
    page.locator(".q-dialog input[type=file]").set_input_files(path)
    page.wait_for_url(re.compile(r"/projects/[^/]+$"))
    expect(counts(page, "Center")).to_contain_text("3 wafers")


def test_the_language_is_the_browsers_until_a_person_chooses(korean_page, portal_alone):
    korean_page.goto(portal_alone)
    expect(korean_page.locator("html")).to_have_attribute("lang", "ko-KR")
    expect(korean_page.get_by_role("button", name="시작하기").first).to_be_visible()
    korean_page.get_by_role("button", name="언어").click()
    korean_page.get_by_text("English", exact=True).click()
    expect(korean_page.get_by_role("button", name="Get started").first).to_be_visible()
    korean_page.reload()
    expect(korean_page.locator("html")).to_have_attribute("lang", "en-US")


def test_nothing_is_wider_than_a_phone(phone, portal_alone, folder):
    project = make_project(phone, portal_alone)
    upload(phone, "Center", wafer_set(folder / "lots.npz", 90))
    phone.get_by_role("button", name="Add 90 wafers").click()
    expect(counts(phone, "Center")).to_contain_text("30 wafers")
    for address in (project, f"{project}/evaluate", f"{project}/predict", f"{project}/models", portal_alone):
        phone.goto(address)
        expect(phone.get_by_role("main")).to_be_visible()
        assert phone.evaluate("document.documentElement.scrollWidth") <= 390, address


def test_the_keyboard_reaches_the_first_button(page, portal_alone):
    page.goto(portal_alone)
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Skip to the content")).to_be_focused()
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    expect(page.get_by_role("button", name="Get started").first).to_be_focused()


def test_an_unknown_project_is_said_to_be_missing(page, portal_alone):
    answer = page.goto(f"{portal_alone}/projects/nowhere")
    assert answer.status == 404
    expect(page.get_by_role("heading", name="There is nothing here")).to_be_visible()


def test_uploads_need_an_open_page_of_the_same_session(page, portal_alone, folder):
    make_project(page, portal_alone)
    card(page, "Center").get_by_role("button", name="Upload").click()
    with page.expect_request("**/media/uploads/*") as request:
        page.locator(".q-dialog input[type=file]").set_input_files(wafer_set(folder / "lots.npz", 3))
    body = wafer(pattern="none", seed=0).tobytes()
    stranger = httpx.post(request.value.url, content=body, headers={"X-File-Name": "a.png"})
    assert stranger.status_code == 403
    assert stranger.json()["reason"] == "UPLOAD_NOT_ALLOWED"
    too_large = httpx.post(request.value.url, content=b"x" * (1024 * 1024 + 1), headers={"X-File-Name": "a.png"})
    assert too_large.status_code == 413


def test_the_portal_answers_only_to_names_of_this_machine(portal_alone):
    assert httpx.get(f"{portal_alone}/healthz").json() == {"status": "ok"}
    assert httpx.get(f"{portal_alone}/healthz", headers={"Host": "evil.example"}).status_code == 400


def test_the_session_cookie_is_out_of_reach_of_scripts_and_other_sites(portal_alone):
    cookie = httpx.get(portal_alone).headers["set-cookie"].lower()
    assert "httponly" in cookie
    assert "samesite=lax" in cookie
