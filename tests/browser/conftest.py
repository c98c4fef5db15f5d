"""Fixtures of the browser tests: the whole product in processes of its own, and a Chromium in front of it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from tests.helpers.processes import service_process

FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
"""Keep Chromium from calling home and from needing a graphics card."""

# Two cores are shared with a training; a page may take its time.
expect.set_options(timeout=20_000)


def chromium_path() -> str:
    """Returns the Chromium to use: TEACHWAFER_CHROMIUM, or the one on the PATH."""
    path = os.environ.get("TEACHWAFER_CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
    if path is None:
        pytest.fail("The browser tests need Chromium. Install it with: make browser")
    return path


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """A Chromium. It goes with its module, because Playwright's event loop would stop those of other tests."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium_path(), args=list(FLAGS))
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def portal(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The whole product, as `make run` starts it; the address of its portal."""
    home = tmp_path_factory.mktemp("product")
    with ExitStack() as stack:
        addresses = {}
        for name in ("trainer", "generator", "predictor"):
            service = stack.enter_context(service_process(f"services.{name}", home))
            service.wait_serving()
            addresses[f"TEACHWAFER_{name.upper()}_ADDRESS"] = service.address
        gateway = stack.enter_context(service_process("gateway", home, addresses))
        yield f"http://{gateway.address}"


@pytest.fixture(scope="module")
def portal_alone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A portal whose services are all away; its address."""
    home = tmp_path_factory.mktemp("alone")
    nobody = {f"TEACHWAFER_{name}_ADDRESS": "127.0.0.1:9" for name in ("TRAINER", "GENERATOR", "PREDICTOR")}
    nobody["TEACHWAFER_GATEWAY_UPLOAD_MAX_BYTES"] = str(1024 * 1024)
    with service_process("gateway", home, nobody) as gateway:
        yield f"http://{gateway.address}"


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """A page of a person who reads English, on a desk screen."""
    yield from open_page(browser, "en-US", 1440)


@pytest.fixture
def korean_page(browser: Browser) -> Iterator[Page]:
    """A page of a person who reads Korean."""
    yield from open_page(browser, "ko-KR", 1440)


@pytest.fixture
def phone(browser: Browser) -> Iterator[Page]:
    """A page on a phone."""
    yield from open_page(browser, "en-US", 390)


def open_page(browser: Browser, locale: str, width: int) -> Iterator[Page]:
    """Opens a page of its own session; errors of its scripts fail the test."""
    context = browser.new_context(locale=locale, viewport={"width": width, "height": 900}, accept_downloads=True)
    page = context.new_page()
    problems: list[str] = []
    page.on("pageerror", lambda error: problems.append(str(error)))
    outside: list[str] = []
    page.on("request", lambda request: outside.append(request.url) if _is_outside(request.url) else None)
    yield page
    context.close()
    assert problems == []
    assert outside == [], "everything is served from here"


def _is_outside(url: str) -> bool:
    return url.startswith(("http://", "https://", "ws://", "wss://")) and "//127.0.0.1:" not in url


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where the person keeps files."""
    return tmp_path
