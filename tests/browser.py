"""A headless Chromium for tests: Playwright on the system's browser."""
import shutil
from contextlib import contextmanager

import pytest

FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--disable-background-networking",
         "--disable-component-update", "--disable-sync", "--no-first-run", "--hide-scrollbars"]


class Tab:
    "A page in Chromium; gathers console messages, exceptions and requests."
    def __init__(self, page):
        self.page, self.told, self.asked = page, [], []
        page.on("console", lambda m: self.told.append(f"{m.type}: {m.text}"))
        page.on("pageerror", lambda e: self.told.append(f"exception: {e}"))
        page.on("request", lambda r: self.asked.append(r.url))

    def run(self, script):
        return self.page.evaluate(script)

    def show(self, address, width, height=900, dark=False):
        "Open a page, its folded parts and all its pictures."
        self.page.set_viewport_size({"width": width, "height": height})
        self.page.emulate_media(color_scheme="dark" if dark else "light")
        self.page.goto(address)
        self.run("document.querySelectorAll('details').forEach(d => d.open = true)")
        self.run("document.querySelectorAll('img').forEach(i => i.loading = 'eager')")
        self.run("Promise.all([...document.images].map(i => i.decode().catch(() => 0))).then(() => 1)")

    def picture(self, file, whole=False):
        self.page.screenshot(path=str(file), full_page=whole)

    def press(self, key):
        self.page.keyboard.press(key)

    def forget(self):
        "Drop the messages and requests so far."
        self.told.clear()
        self.asked.clear()

    def complaints(self):
        return [t[:300] for t in self.told]

    def requests(self):
        return set(self.asked)

    def html_without_scripts(self, address):
        "The page's HTML as a browser without JavaScript has it."
        context = self.page.context.browser.new_context(java_script_enabled=False)
        page = context.new_page()
        page.goto(address)
        html = page.content()
        context.close()
        return html


def find_chromium():
    "The system's Chromium or Chrome; the test is skipped, saying how to get one, where there is none."
    for name in ("chromium", "chromium-browser", "google-chrome"):
        if found := shutil.which(name):
            return found
    pytest.skip("no Chromium here; on Debian or Ubuntu: apt-get install chromium")


@contextmanager
def chromium():
    "A tab of a fresh headless Chromium; the browser ends with the block."
    exe = find_chromium()
    api = pytest.importorskip("playwright.sync_api", reason="the package playwright is missing")
    with api.sync_playwright() as p:
        browser = p.chromium.launch(executable_path=exe, args=FLAGS)
        try:
            yield Tab(browser.new_context().new_page())
        finally:
            browser.close()
