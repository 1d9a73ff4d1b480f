"""The page as a user has it: typed into, painted on and looked at in Chromium without a window."""

import io
import os
import shutil
import time
from urllib.parse import urlparse

import numpy as np
import pytest
from PIL import Image

pytestmark = pytest.mark.slow
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip(
        "playwright.sync_api", reason="drives the browser: pip install playwright"
    )
    if CHROMIUM is None:
        pytest.skip("needs Chromium: none is installed")
    with playwright.sync_playwright() as started:
        flags = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"]
        flags += ["--disable-quic", "--disable-component-update", "--disable-sync"]
        browser = started.chromium.launch(executable_path=CHROMIUM, args=flags)
        yield browser
        browser.close()


class Tab:
    """A window with the page, and the hosts that it has asked."""

    def __init__(self, browser, address, **options):
        self.tab, self.hosts = browser.new_page(**options), set()
        self.tab.on("request", lambda request: self.hosts.add(urlparse(request.url).netloc))
        self.tab.goto(address)
        self.button("Draw").wait_for(timeout=120_000)

    def button(self, name):
        return self.tab.get_by_role("button", name=name, exact=True)

    def fill(self, label, value):
        self.tab.get_by_label(label, exact=True).fill(str(value))
        self.tab.keyboard.press("Tab")

    def draw(self):
        """Until the settings of the first picture are there, which are told from those before."""
        before = self.tab.inner_text("#details")
        self.button("Draw").click()
        return self.until(lambda: self.tab.inner_text("#details") != before and self.settings())

    def settings(self):
        lines = self.tab.locator("#details p").all_inner_texts()
        return dict(line.split("\n", 1) for line in map(str.strip, lines))

    def messages(self):
        return " ".join(self.tab.locator(".toast-body").all_inner_texts())

    def until(self, condition):
        deadline = time.monotonic() + 60
        while not (found := condition()):
            assert time.monotonic() < deadline, self.messages()
            self.tab.wait_for_timeout(100)
        return found

    def downloaded(self):
        with self.tab.expect_download() as started:
            self.tab.get_by_text("Download", exact=True).click()
        with open(started.value.path(), "rb") as file:
            return started.value.suggested_filename, Image.open(io.BytesIO(file.read()))


def test_type_draw_see_choose_edit_and_download(browser, page):
    tab = Tab(browser, page.address, viewport={"width": 1280, "height": 800})
    tab.fill("Prompt", "a (red:1.3 dress")
    tab.fill("number input for Steps", 150)
    tab.button("Draw").click()
    tab.until(lambda: "of 150" in tab.tab.inner_text("#status"))
    tab.until(lambda: tab.tab.locator("#preview img").count())  # before it is done
    settings = tab.until(tab.settings)
    assert settings["prompt"] == "a (red:1.3 dress" and settings["steps"] == "150"
    assert "is read as text, without weights" in tab.messages()
    assert tab.tab.locator("#pictures .grid-container img").count() == 4

    tab.tab.locator("#pictures .grid-container button").nth(2).click()
    tab.until(lambda: tab.settings() != settings)
    seed = tab.settings()["seed"]
    assert int(seed) == int(settings["seed"]) + 2
    name, chosen = tab.downloaded()
    assert name == f"a-red-1-3-dress-{seed}.png"
    assert chosen.size == (16, 16) and chosen.text["seed"] == seed

    tab.button("Draw on this one").click()
    tab.tab.wait_for_timeout(3000)  # until it has rolled into sight
    box = tab.tab.locator("#begin canvas").first.bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    tab.tab.mouse.move(x - 50, y + 40)
    tab.tab.mouse.down()
    tab.tab.mouse.move(x + 50, y + 40, steps=10)
    tab.tab.mouse.up()
    tab.tab.wait_for_timeout(2000)
    tab.fill("Prompt", "a bag")
    tab.fill("number input for Pictures", 1)
    assert tab.draw()["mask"] == "painted"
    _, edited = tab.downloaded()
    changed = (np.asarray(edited) != np.asarray(chosen)).any(axis=-1)
    assert changed.any() and not changed[:8].any()
    assert tab.hosts <= {urlparse(page.address).netloc, ""}


def test_bad_files_stop_and_requests_without_a_prompt(browser, page, tmp_path):
    tab = Tab(browser, page.address)
    tab.button("Draw").click()
    tab.until(lambda: "the prompt is empty" in tab.messages())
    tab.tab.get_by_text("Image-to-image and inpainting").click()
    upload = tab.tab.locator("input[type=file]").first
    upload.set_input_files({"name": "a.png", "mimeType": "image/png", "buffer": b"no picture"})
    tab.until(lambda: "the file cannot be read as a picture" in tab.messages())
    upload.set_input_files({"name": "b.png", "mimeType": "image/png", "buffer": os.urandom(11 * 1024**2)})
    tab.until(lambda: "exceed the maximum allowed size" in tab.messages())

    tab.fill("Prompt", "a coat")
    tab.fill("number input for Steps", 900)
    tab.button("Draw").click()
    tab.until(lambda: "of 900" in tab.tab.inner_text("#status"))
    tab.button("Stop").click()
    tab.until(lambda: not tab.tab.inner_text("#status") and not tab.tab.locator("#preview img").count())
    tab.tab.wait_for_timeout(2000)  # Gradio sends the end of a drawing by itself, and would end the next one
    tab.fill("number input for Steps", 2)
    assert tab.draw()["steps"] == "2"


def test_it_fits_a_telephone(browser, page):
    tab = Tab(browser, page.address, viewport={"width": 390, "height": 844}, is_mobile=True, has_touch=True)
    tab.fill("Prompt", "a bag")
    tab.draw()
    assert tab.tab.evaluate("document.documentElement.scrollWidth") <= 390
