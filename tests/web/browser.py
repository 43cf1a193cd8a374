"""What tests do with the page in a browser."""

from playwright.sync_api import BrowserContext, Page, expect

from rather.store import Store
from rather.store.people import invite

SOON_MS = 320
"""After so long the page takes a key to be meant for the question that it shows, once all of that can be seen."""


def until_it_takes_keys(page: Page, *, clips: bool = True) -> None:
    """Wait until the page takes a key to be meant for the question that it shows: its clips can take longer than `SOON_MS` to come.

    Without `clips` a key that skips, which the page takes while they are still missing.
    """
    page.wait_for_function("(clips) => (player.ready || !clips) && !tooSoon()", arg=clips)


def enter(context: BrowserContext, url: str, store: Store, name: str) -> Page:
    page = context.new_page()
    page.goto(f"{url}/join#{invite(store, name)}")
    expect(page.locator("#question")).to_be_visible()
    return page


def tap(page: Page, key: str) -> None:
    """Press a key that answers nothing, once the page takes keys to be meant for the question that it shows."""
    until_it_takes_keys(page)
    page.keyboard.press(key)


def shown(page: Page) -> str:
    return page.locator("#side-1").inner_text() + " | " + page.locator("#side-2").inner_text()


def press(page: Page, key: str) -> None:
    """Press a key once there is a question, and wait for another one or for none."""
    expect(page.locator("#question")).to_be_visible()
    until_it_takes_keys(page)
    before = page.locator("#question").get_attribute("data-number")
    page.keyboard.press(key)
    expect(page.locator("#question")).not_to_have_attribute("data-number", before or "")


def prefer_good_till_the_end(page: Page) -> None:
    """Answer whatever is asked until nothing is."""
    while not page.get_by_text("nothing to compare").is_visible():
        if page.locator("#question").is_visible():
            until_it_takes_keys(page)
            page.keyboard.press("1" if "good" in page.locator("#side-1").inner_text() else "2")
        page.wait_for_timeout(50)


def prefer_good(page: Page) -> None:
    expect(page.locator("#question")).to_be_visible()
    press(page, "1" if "good" in page.locator("#side-1").inner_text() else "2")
