"""The owner's links, and the way out, in a real Chromium."""

import re
import shutil
from collections.abc import Callable, Iterator

import pytest
from playwright.sync_api import Browser, BrowserContext, Dialog, Page, expect
from questions import question

from rather.store import Store
from rather.store.people import bearer, everybody, invite

Serve = Callable[..., str]


def enter_owner(context: BrowserContext, url: str, store: Store) -> Page:
    page = context.new_page()
    page.goto(f"{url}/join#{invite(store, 'owner', 'owner')}")
    expect(page.locator("#totals")).to_contain_text("questions have")
    return page


def ask_for(page: Page, name: str) -> None:
    page.get_by_label("Invite somebody").fill(name)
    expect(page.locator("button[type=submit]:disabled")).to_have_count(0)  # the page is whole
    page.keyboard.press("Enter")


def test_a_link_is_announced_copied_and_stays(context: BrowserContext, store: Store, serve: Serve) -> None:
    url = serve()
    context.grant_permissions(["clipboard-read", "clipboard-write"], origin=url)
    page = enter_owner(context, url, store)
    expect(page.locator("#made")).to_be_hidden()
    ask_for(page, "Ann")
    expect(page.locator("#people-said[role=status]")).to_contain_text("Ann's link stands below")
    field = page.get_by_label("Ann's link")
    expect(field).to_have_value(re.compile(rf"^{url}/join#.{{20,}}$"))
    expect(field).not_to_be_editable()
    page.get_by_role("button", name="Copy").click()
    expect(page.locator("#people-said")).to_have_text("The link is copied.")
    copied = page.evaluate("navigator.clipboard.readText()")
    assert copied == field.input_value()
    found = bearer(store, copied.partition("#")[2])
    assert found is not None
    assert found.name == "Ann"
    store.ask("r", [question(0)])
    expect(page.locator("#totals")).to_contain_text("0 of 1 questions")  # the page has drawn itself anew
    ask_for(page, "\u202eevil")
    expect(page.locator("#people-said")).to_contain_text("characters that cannot be seen")
    expect(field).to_have_value(copied)
    ask_for(page, "Ben")
    expect(page.get_by_label("Ben's link")).to_be_visible()
    expect(page.get_by_label("Ann's link")).to_have_count(0)


@pytest.mark.parametrize("sure", [True, False])
def test_who_has_a_link_gets_another_only_if_the_owner_means_it(context: BrowserContext, store: Store, serve: Serve, sure: bool) -> None:
    old, asked = invite(store, "Ann", run="r"), list[str]()
    page = enter_owner(context, serve(), store)

    def reply(dialog: Dialog) -> None:
        asked.append(dialog.message)
        (dialog.accept if sure else dialog.dismiss)()

    page.on("dialog", reply)
    ask_for(page, "Ann")
    expect(page.locator("#people-said")).to_contain_text("link stands below" if sure else "Ann keeps the link that they have.")
    assert asked == ["Ann has a link already. End it, and make a new one?"]
    assert (bearer(store, old) is None) == sure
    assert page.locator("#made").is_visible() == sure


@pytest.fixture
def insecure(chromium: Browser) -> Iterator[Browser]:
    """A browser to which the server's host is another machine, so that plain HTTP is not secure."""
    found = shutil.which("chromium")
    rules = "--host-resolver-rules=MAP page.test 127.0.0.1"
    browser = chromium.browser_type.launch(executable_path=found, args=["--no-sandbox", "--disable-gpu", rules])
    yield browser
    browser.close()


def test_where_a_page_may_not_copy_it_selects_the_link(insecure: Browser, store: Store, serve: Serve) -> None:
    url = serve().replace("127.0.0.1", "page.test")
    context = insecure.new_context()
    page = enter_owner(context, url, store)
    assert not page.evaluate("isSecureContext")
    ask_for(page, "Ann")
    page.get_by_role("button", name="Copy").click()
    expect(page.locator("#people-said")).to_have_text("The link is selected: press Ctrl-C to copy it.")
    field = page.get_by_label("Ann's link")
    expect(field).to_be_focused()
    assert field.evaluate("x => x.value.slice(x.selectionStart, x.selectionEnd) === x.value")
    context.close()


def test_the_owner_logs_out(context: BrowserContext, store: Store, serve: Serve) -> None:
    page = enter_owner(context, serve(), store)
    address = page.url
    page.once("dialog", lambda dialog: dialog.dismiss())
    page.get_by_role("button", name="Log out").click()
    page.reload()
    expect(page.locator("#totals")).to_contain_text("questions have")
    page.once("dialog", lambda dialog: dialog.accept())
    page.get_by_role("button", name="Log out").click()
    expect(page).not_to_have_url(address)
    assert page.goto(address).status == 401  # type: ignore[union-attr]
    assert [p.name for p in everybody(store)] == ["owner"], "the link itself holds"
