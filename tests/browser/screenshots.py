"""Takes the pictures of docs/screens from a running portal: `make run` in one terminal, `make screenshots` in another.

Everything is shown with the sample project, in both languages, on a desk screen; some screens on a phone, too.
TEACHWAFER_PORTAL names another portal than http://127.0.0.1:8080.
"""

from __future__ import annotations

import io
import os
import re
import shutil
import sys
import tempfile
from pathlib import Path

from PIL import Image
from playwright.sync_api import Browser, Locator, Page, sync_playwright

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from gateway.i18n import LANGUAGES, Messages  # noqa: E402
from gateway.studio.sample import NAMES  # noqa: E402
from tests.browser.conftest import FLAGS, chromium_path  # noqa: E402
from tests.browser.wafers import wafer_set  # noqa: E402

PORTAL = os.environ.get("TEACHWAFER_PORTAL", "http://127.0.0.1:8080")
FOLDER = ROOT / "docs" / "screens"
LOCALES = {"en": "en-US", "ko": "ko-KR"}
MAX_BYTES = 250_000
MAX_HEIGHT = 2400
TRAINING_MS = 600_000


def main() -> None:
    """Takes all pictures."""
    with sync_playwright() as playwright, tempfile.TemporaryDirectory() as files:
        browser = playwright.chromium.launch(executable_path=chromium_path(), args=list(FLAGS))
        for language in LANGUAGES:
            shutil.rmtree(FOLDER / language, ignore_errors=True)
            (FOLDER / language).mkdir(parents=True)
            Photographer(browser, language, Path(files)).take_all()
        browser.close()


class Photographer:
    """Takes the pictures of one language.

    Args:
        browser: Chromium.
        language: Code of the language.
        files: Folder for files to upload.
    """

    def __init__(self, browser: Browser, language: str, files: Path) -> None:
        self._browser = browser
        self._language = language
        self._t = Messages(language)
        self._page = self._open(1440, 900)
        self._files = files

    def take_all(self) -> None:
        """Takes all pictures, in the order in which a person sees the screens."""
        page, t = self._page, self._t
        page.goto(PORTAL)
        page.get_by_text(t("server.running")).first.wait_for()
        self._save("home", whole=True)
        page.get_by_role("button", name=t("home.start")).first.click()
        self._save("new_project")
        page.keyboard.press("Escape")
        names = re.compile("|".join(f"^{re.escape(name)}$" for name in NAMES.values()))
        page.get_by_role("link", name=names).click()
        page.wait_for_url("**/projects/*")
        project = page.url
        page.locator(".tw-thumb").first.wait_for()
        self._dialogs()
        self._training()
        self._trying()
        for name, path in (("evaluate", "/evaluate"), ("models", "/models")):
            page.goto(project + path)
            page.locator("h1").first.wait_for()
            self._save(name, whole=name == "evaluate")
        page.goto(f"{project}/predict")
        lot = wafer_set(self._files / "lot.npz", 24, labelled=False, first_seed=900)
        page.locator("input[type=file]").set_input_files(lot)
        page.locator(".tw-table tbody tr").first.wait_for()
        self._save("predict", whole=True)
        self._page.context.close()
        for name, address in (("phone_home", PORTAL), ("phone_project", project)):
            self._page = self._open(390, 844)
            self._page.goto(address)
            self._page.locator("h1").first.wait_for(state="attached")
            self._save(name)
            self._page.context.close()

    def _dialogs(self) -> None:
        """Pictures of the dialogs of a class card."""
        card = self._page.get_by_role("article").nth(1)
        files = wafer_set(self._files / "lots.npz", 27)
        for name, key in (("upload", "card.upload"), ("draw", "card.draw"), ("generate", "card.generate")):
            card.get_by_role("button", name=self._t(key)).click()
            if name == "upload":
                self._page.locator(".q-dialog input[type=file]").set_input_files(files)
                self._page.locator(".q-dialog .tw-wafer-tile img").first.wait_for()
            if name == "draw":
                self._paint(self._page.get_by_role("application"))
            self._save(name)
            self._page.keyboard.press("Escape")
            self._page.locator(".tw-dialog").wait_for(state="detached")
        card.locator(".tw-thumb").first.click()
        self._page.locator(".q-dialog img").wait_for()
        self._save("wafer")
        self._page.keyboard.press("Escape")
        self._page.locator(".tw-dialog").wait_for(state="detached")

    def _paint(self, pad: Locator) -> None:
        """Draws a ring."""
        box = pad.bounding_box()
        assert box is not None
        x, y, side = box["x"], box["y"], box["width"]
        self._page.mouse.move(x + side * 0.35, y + side * 0.4)
        self._page.mouse.down()
        for across, down in ((0.6, 0.35), (0.7, 0.55), (0.5, 0.7), (0.3, 0.6), (0.35, 0.4)):
            self._page.mouse.move(x + side * across, y + side * down, steps=12)
        self._page.mouse.up()

    def _training(self) -> None:
        """Trains, with a picture while it goes on and one of the canvas afterwards."""
        page, t = self._page, self._t
        either = re.compile(f"^({re.escape(t('train.start'))}|{re.escape(t('train.again'))})$")
        page.get_by_role("button", name=either).click()
        # Where epochs take milliseconds, packing the model is the first that lasts long enough to be seen.
        stages = "|".join(re.escape(t(f"train.stage_{stage}")) for stage in ("exporting", "evaluating"))
        page.get_by_text(re.compile(rf"\d\d / \d+|{stages}")).wait_for(timeout=TRAINING_MS)
        self._save("training")
        page.get_by_role("link", name=t("train.see_score")).wait_for(timeout=TRAINING_MS)
        page.get_by_text(re.compile(t("try.model", version="999").replace("999", r"\d+"))).wait_for()

    def _trying(self) -> None:
        """Tries a wafer, with its heat map."""
        page, t = self._page, self._t
        one = wafer_set(self._files / "one.npz", 3, labelled=False, first_seed=501)
        page.locator("[data-wire=try] input[type=file]").set_input_files(one)
        page.get_by_role("button", name=t("try.next")).click()
        page.get_by_role("group", name=t("try.bars")).wait_for()
        self._save("project")
        page.get_by_role("switch", name=t("try.heat")).click()
        self._save("try", whole=True)

    def _open(self, width: int, height: int) -> Page:
        context = self._browser.new_context(
            locale=LOCALES[self._language], viewport={"width": width, "height": height}, reduced_motion="reduce"
        )
        return context.new_page()

    def _save(self, name: str, *, whole: bool = False) -> None:
        """Saves what is seen, small enough for the repository."""
        seen = self._page.viewport_size
        assert seen is not None
        if whole:
            # As tall as the page, so that pictures further down are fetched and the header stays at the top.
            height = self._page.evaluate("document.documentElement.scrollHeight")
            self._page.set_viewport_size({"width": seen["width"], "height": min(height, MAX_HEIGHT)})
        self._settle()
        picture = Image.open(io.BytesIO(self._page.screenshot())).convert("RGB")
        self._page.set_viewport_size(seen)
        path = FOLDER / self._language / f"{name}.png"
        for colours in (256, 128, 64, 32):
            picture.quantize(colours, dither=Image.Dither.NONE).save(path, optimize=True)
            if path.stat().st_size <= MAX_BYTES:
                break
        print(f"{path.relative_to(ROOT)} {path.stat().st_size:,} bytes")

    def _settle(self) -> None:
        """Waits until two pictures are the same: dialogs slide and curves grow."""
        seen = b""
        for _ in range(10):
            now = self._page.screenshot()
            if now == seen:
                return
            seen = now


if __name__ == "__main__":
    main()
