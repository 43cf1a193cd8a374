"""Takes the pictures of the labelling page for docs/guides/people.md: `make screenshots`. Needs Debian's Chromium."""

import shutil
import tempfile
import threading
import time
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page, sync_playwright

from rather.judges.known import SimulatedJudge, plain
from rather.judges.panel import answer
from rather.store import Store
from rather.store.people import invite
from rather.store.quality import Asking
from rather.web import demo
from rather.web.project import Project
from rather.web.serve import owner_link, server

PORT = 8765
FOLDER = Path(__file__).parent / "pictures"


def save(page: Page, name: str, whole: bool = False) -> None:
    """A picture of the page as WebP."""
    with tempfile.TemporaryDirectory() as folder:
        page.screenshot(path=f"{folder}/picture.png", full_page=whole)
        Image.open(f"{folder}/picture.png").convert("RGB").save(FOLDER / f"{name}.webp", quality=80, method=6)


def until(page: Page, selector: str) -> None:
    """Answer until such a question is on the screen."""
    while not page.locator(f"#question:not([hidden]) {selector}").count():
        if page.locator("#question").is_visible():
            page.keyboard.press("=")
        page.wait_for_timeout(300)


def main() -> None:
    """Serve the demo, let three simulated judges answer, and take the pictures."""
    FOLDER.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as place, sync_playwright() as playwright:
        store = Store(f"{place}/store.db")
        demo.fill(store)
        store.set_asking(demo.RUN, Asking(overlap=9, repeats=0.1, random=0, fastest_s=0.05))
        serving, url = server(store, Project(demo.RUN, demo.INSTRUCTION), "127.0.0.1", PORT)
        threading.Thread(target=serving.run, daemon=True).start()
        while not serving.started:
            time.sleep(0.05)
        owner = owner_link(store, demo.RUN, url) or ""
        noise = {"expert": 0.1, "regular": 0.5, "random": 1e9}
        panel = [SimulatedJudge(name, lambda t: 0.0 if t.text is None else plain(t), temperature) for name, temperature in noise.items()]
        answer(owner, panel, 0.3, False, lambda name: None, threading.Event())
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1100, "height": 620})
        page.goto(f"{url}/join#{invite(store, 'Ann')}")
        until(page, "math mfrac")
        save(page, "words")
        until(page, "canvas")
        page.wait_for_timeout(1500)
        save(page, "clips")
        page.goto(owner)
        page.wait_for_timeout(1500)
        save(page, "owner", whole=True)
        phone = browser.new_page(viewport={"width": 390, "height": 780}, color_scheme="dark")
        phone.goto(f"{url}/join#{invite(store, 'Ben')}")
        until(phone, "pre code")
        save(phone, "phone")
        browser.close()
        serving.should_exit = True


if __name__ == "__main__":
    main()
