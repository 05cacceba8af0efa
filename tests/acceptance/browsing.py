"""What the tests in Chromium share; the fixtures are in ``conftest.py``."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, Page, expect, sync_playwright
from playwright.sync_api import TimeoutError as PlaywrightTimeoutError

from tests.support.waiting import PATIENCE

ARTIFACTS = Path(os.environ.get("TEST_ARTIFACTS") or Path(__file__).resolve().parents[2] / "test-artifacts")
USER = "ada"
WIDE = {"width": 1280, "height": 800}
NARROW = {"width": 400, "height": 800}
COLOUR = """element => {
    const context = document.createElement("canvas").getContext("2d");
    context.fillStyle = getComputedStyle(element).backgroundColor;
    context.fillRect(0, 0, 1, 1);
    return [...context.getImageData(0, 0, 1, 1).data];
}"""

# Beyond this, something hangs; on a busy machine Airflow's own page takes its time.
expect.set_options(timeout=1000 * PATIENCE)


@contextlib.contextmanager
def chromium() -> Iterator[Browser]:
    """A browser."""
    with sync_playwright() as playwright:
        # There is no GPU here, root has no sandbox, and /dev/shm is small in containers.
        flags = ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
        browser = playwright.chromium.launch(
            executable_path=os.environ.get("CHROMIUM", "/usr/bin/chromium"), args=flags
        )
        yield browser
        browser.close()


def log_in(browser: Browser, url: str) -> Any:
    """The cookies of somebody who has logged in, from a page of ours that asked for it."""
    context = browser.new_context(viewport=WIDE)  # type: ignore[arg-type]
    context.set_default_timeout(1000 * PATIENCE)
    page = context.new_page()
    answer = page.goto(f"{url}/air-executor/jobs")
    assert answer is not None
    assert answer.status == 401
    page.get_by_role("link", name="Log in").click()
    page.get_by_label("Username").fill(USER)
    page.get_by_label("Password").fill(USER)
    page.get_by_role("button", name="Sign in").click()
    expect(page.get_by_role("heading", name="Air-Executor jobs")).to_be_visible()
    assert page.url.startswith(f"{url}/air-executor/jobs")
    found = context.cookies()
    context.close()
    return found


@contextlib.contextmanager
def opened(browser: Browser, cookies: Any, name: str) -> Iterator[Page]:
    """A page of somebody who is logged in; no script of ours may fail. It is photographed at the end."""
    context = browser.new_context(viewport=WIDE)  # type: ignore[arg-type]
    context.set_default_timeout(1000 * PATIENCE)
    context.add_cookies(cookies)
    page = context.new_page()
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)) if "air-executor/static" in f"{error.stack}" else None)
    page.on("console", lambda line: errors.append(line.text) if "Content Security Policy" in line.text else None)
    yield page
    save_screenshot(page, name)
    context.close()
    assert errors == []


def save_screenshot(page: Page, name: str) -> None:
    """Save a screenshot for people; on a machine that is too busy to paint the page there is none."""
    ARTIFACTS.mkdir(exist_ok=True)
    with contextlib.suppress(PlaywrightTimeoutError):
        page.screenshot(path=ARTIFACTS / f"{re.sub('[^a-z0-9-]+', '-', name)}.png", timeout=60_000)
