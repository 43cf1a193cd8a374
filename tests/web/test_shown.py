"""What is seen is what was written: how words become HTML, and how a question looks in a real Chromium."""

import io
import re
import time
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from typing import Any, Literal

import pytest
from axe_playwright_python.sync_playwright import Axe
from browser import enter, press, until_it_takes_keys
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from playwright.sync_api import Browser, BrowserContext, FloatRect, Page, expect
from process import until
from questions import of_four, question
from sqlalchemy import insert, update

from rather.core import Comparison, Prompt, Task, Trajectory
from rather.store import Store
from rather.store import tables as t
from rather.store.people import invite
from rather.store.quality import Asking
from rather.web.shown import answer_html, prompt_html
from rather.web.words import LONGEST, html, is_empty

Serve = Callable[..., str]
PHONE = {"width": 360, "height": 740}


class _Text(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found = ""

    def handle_data(self, data: str) -> None:
        self.found += data


def text(shown: str) -> str:
    """The text of HTML, as a browser reads it."""
    parser = _Text()
    parser.feed(shown)
    parser.close()
    return parser.found


def of(left: str, right: str = "two", prompt: Prompt = "Which?", terminated: bool = True) -> Comparison:
    task = Task("test", "0", prompt)
    return Comparison((Trajectory(task, "p@0", left, terminated),), (Trajectory(task, "p@0", right, terminated),), key="q")


@pytest.fixture
def look(context: BrowserContext, store: Store, serve: Serve) -> Callable[..., Page]:
    """Shows a question on the page."""

    def show(asked: Comparison, width: int = 1280, height: int = 800) -> Page:
        store.ask("r", [asked])
        page = enter(context, serve(), store, "ann")
        page.set_viewport_size({"width": width, "height": height})
        page.reload()
        expect(page.locator("#question")).to_be_visible()
        return page

    return show


# Spaces and marks


SURVIVORS = {
    "no-break space": "100\u00a0000", "narrow no-break space": "100\u202f000", "ideographic space": "一\u3000二", "em space": "a\u2003b",
    "family": "\U0001f468\u200d\U0001f469\u200d\U0001f467", "non-joiner": "\u0645\u06cc\u200c\u062e", "variation selector": "\u2764\ufe0f",
    "combining marks": "e\u0301 x\u0323\u0302", "bidi marks": "a\u200eb\u200fc\u061cd",
    "Scotland": "\U0001f3f4\U000e0067\U000e0062\U000e0073\U000e0063\U000e0074\U000e007f",
    "soft hyphen": "co\u00adop", "word joiner": "a\u2060b", "zero-width space": "a\u200bb", "two spaces": "a  b", "tab": "a\tb",
}  # fmt: skip


@pytest.mark.parametrize("written", SURVIVORS.values(), ids=SURVIVORS.keys())
@pytest.mark.parametrize("around", ["{}", "x {} y", "- {}", "# {}", "> {}", "**{}**", "```\n{}\n```", "| {} |\n|---|"])
def test_spaces_joiners_and_marks_survive(written: str, around: str) -> None:
    assert written in text(html(around.format(written)))


@pytest.mark.parametrize("written", ["\u3000一段", "\u00a0\u00a0x", "  a poem\n    goes\n  on", "a\n\n\n\nb"])
def test_indents_and_blank_lines_stay(written: str) -> None:
    assert text(html(written).replace("<br>", "\n").replace("</p>\n", "</p>\n\n")).rstrip("\n") == written.replace("\n\n\n\n", "\n\n\n\n")


@pytest.mark.parametrize(
    ("written", "seen"),
    [
        ("a\x00b", "a\ufffdb"),
        ("a\x07b\x1bc\x7f", "a\u2407b\u241bc\u2421"),
        ("a\x85b", "a\ufffdb"),
        ("a\U000e0041\U000e0042b", "a\ufffd\ufffdb"),
        ("a&#xE0041;b", "a\ufffdb"),
        ("a\ufffeb", "a\ufffdb"),
    ],
)
def test_what_cannot_be_shown_is_seen_to_be_there(written: str, seen: str) -> None:
    assert text(html(written)).strip() == seen


@pytest.mark.parametrize(
    "written",
    [
        "word\n\n[hidden]: https://example.com", "[x](/owner)", "[x](javascript:alert(1))", "```python seen\nx\n```",
        "| a |\n|---|\n| 1 | 2 | seen |", "#", "<!-- seen -->", "> " * 30 + "seen", "- " * 30 + "seen", "#####", "* \n*", "<seen>",
        "&notanentity;",
    ],
)  # fmt: skip
def test_nothing_is_left_out(written: str) -> None:
    seen = text(html(written))
    for piece in re.findall(r"\w+|#+", written):
        assert piece in seen


def test_links_say_where_they_lead() -> None:
    shown = html('see [this](https://example.com/a?b=c "title"), <https://example.com/d>')
    assert text(shown).strip() == "see this (https://example.com/a?b=c title), https://example.com/d"
    assert re.findall('href="([^"]*)"', shown) == ["https://example.com/a?b=c", "https://example.com/d"]


def test_lists_keep_the_numbers_that_were_written() -> None:
    assert re.findall(r'value="(\d+)"', html("3. c\n5. e\n\ntext\n\n7. g")) == ["3", "5", "7"]


PIECES = st.sampled_from(
    ["*", "**", "_", "`", "```", "~~", "$", "$$", "\\(", "\\)", "\\[", "\\]",
    "\\", "[", "]", "(", ")", "<", ">", "#", "- ", "1. ", "> ", "|", "|-|-|",
     "\n", "\n\n", "    ", " ", "&", "!", "---", "===", "\\begin{align}", "\\end{align}", "%", "{", "}", "^", "\u202e", "\u3000", "\x00"]
)  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(st.lists(PIECES, max_size=40))
def test_every_word_of_any_text_is_seen(pieces: list[str]) -> None:
    written = "".join(f"{piece}{chr(0x4E00 + i)}" for i, piece in enumerate(pieces))
    shown = html(written)
    assert all(chr(0x4E00 + i) in text(shown) for i in range(len(pieces))), shown
    assert not re.search(r"<(script|style|img|svg|iframe)|\son\w+=|\sstyle=", shown)


# Mathematics


@pytest.mark.parametrize(
    ("written", "parts"),
    [
        (r"so \(x^2\) is", ["<msup>", "so ", " is"]),
        (r"so \[x^2\] is", ['display="block"', "<msup>"]),
        ("so\n\\[\nx\n= y\n- z\n+ w\n\\]\nis", ['display="block"', "<mi>w</mi>"]),
        ("- item\n  \\[\n  x\n  - z\n  \\]", ["<li", 'display="block"', "<mi>z</mi>"]),
        ("> \\[\n> x\n> - z\n> \\]", ["<blockquote", 'display="block"', "<mi>z</mi>"]),
        ("text:\n$$\nx\n= y\n$$\nmore", ['display="block"', "<mi>y</mi>", "more"]),
        ("text: $$x_1$$ more", ['display="block"', "<msub>"]),
        ("\\begin{align}\na &= b \\\\\nc &= d\n\\end{align}", ["<mtable", 'class="right"']),
        (r"\begin{cases} 1 & x>0 \\ 0 & \text{else} \end{cases}", ["<mtable", "else"]),
        (r"$$\begin{aligned} a&=b\\c&=d \end{aligned}$$", ["<mtable"]),
        (r"\[\begin{pmatrix}1&2\\3&4\end{pmatrix}\]", ["<mtable", "(</mo>"]),
        (r"$\boxed{42}$", ["<menclose"]),
        (r"$\prescript{a}{b}{c}$", ["<mmultiscripts>"]),
        (r"$\frac{1}{2}$ and $\text{if so}$", ["<mfrac>", "if&nbsp;so"]),
        (r"$50\%$ and \(50% of x\)", ["%", "<mi>o</mi><mi>f</mi>"]),
    ],
)
def test_mathematics_as_models_write_it(written: str, parts: list[str]) -> None:
    shown = html(written)
    assert all(part in shown for part in ["<math", *parts]), shown
    assert not re.search(r"\\[\[\]()]|\$|\\begin|\\end", text(shown)), "no delimiter is left"


@pytest.mark.parametrize(
    "written",
    [
        r"\(\unknown{x}\)", r"$x^$", r"$$\frac{1}$$", r"\[a & b\]", r"\begin{align}\foo\end{align}", r"\({x\)", r"$\def\x{\x\x}\x$",
        r"$\href{javascript:alert(1)}{x}$", r"\[\begin{vmatrix}a\end{pmatrix}\]", r"\(\eqref{a}\)",
        "$" + "{" * 200 + "x" + "}" * 200 + "$", r"$\ce{H2O}$", r"$a\phantom{b}$", r"\(\raisebox{9em}{x}\)",
    ],
)  # fmt: skip
def test_what_is_no_latex_is_shown_as_it_was_written(written: str) -> None:
    shown = html(f"see {written} there")
    assert f"see {written} there" in text(shown)
    assert "<math" not in shown


@pytest.mark.parametrize(
    "written",
    [
        "$5 and $10",
        "from $5 to $10, or $15",
        "$5 to $ten",
        "US$5/$6",
        r"\$x\$ is $",
        "`$x$` and `\\(y\\)`",
        "$$",
        r"a \( b",
        r"a \[ b",
        "$ x $",
    ],
)
def test_money_and_code_are_no_mathematics(written: str) -> None:
    shown = html(written)
    assert "<math" not in shown
    assert text(shown).strip() == written.replace("`", "").replace(r"\$", "$").replace(r"\(", "\\(" if "`" in written else "(").replace(
        r"\[", "["
    )


# Bounds


REPEATED = {
    "dollars": "$", "open dollars": "$a ", "formulas": "$x$ ", "display": "$$a\n\n", "brackets": "[", "half links": "[a](",
    "images": "![", "stars": "*",
    "open stars": "*a ", "emphasis": "a*", "strong": "**a ", "mixed": "*a_b", "quotes": "> a\n", "items": "- a\n", "backticks": "`",
    "open code": "`a",
    "inline": r"\(", "open inline": r"\(a ", "open display": "\\[a\n", "environments": "\\begin{align}\n", "formulas in items": "- \\[a\n",
    "tables": "|a|b\n|-|-\n",
    "backslashes": "\\", "tags": "<a ", "entities": "&", "headings": "a\n=\n", "strikes": "~~a ", "blank lines": "\n \n",
}  # fmt: skip


def hostile(name: str, length: int) -> str:
    if name == "nested":
        return "".join("  " * (i % 9) + "- a\n" for i in range(length))[:length]
    if name == "deep quotes":
        return (("> " * 17 + "a\n") * length)[:length]
    if name == "growing code":
        return "".join("`" * i + " " for i in range(1, 300))[:length]
    if name == "wide table":
        return "|a" * (length // 6) + "\n" + "|-" * (length // 6) + "\n" + "|b" * (length // 6)
    if name == "short rows":
        return "|a" * 100 + "\n" + "|-" * 100 + "\n" + "|\n" * ((length - 402) // 2)
    return (REPEATED[name] * length)[:length]


@pytest.mark.slow
@pytest.mark.parametrize("name", [*REPEATED, "nested", "deep quotes", "growing code", "wide table", "short rows"])
def test_the_time_to_show_a_text_is_linear_and_bounded(name: str) -> None:
    took = [min(_seconds(hostile(name, length)) for _ in range(3)) for length in (LONGEST // 2, LONGEST)]
    assert took[1] < 1, took
    assert took[1] < 4 * took[0] + 0.1, took


def _seconds(written: str) -> float:
    since = time.thread_time()
    html.__wrapped__(written)
    return time.thread_time() - since


def test_a_text_past_the_bound_is_shown_as_plain_text() -> None:
    written = "**word** $x$ \u202f <b>\n" * 3000
    shown = html(written)
    assert "Shown as plain text" in shown
    assert text(shown).endswith(written)
    assert "<strong>" not in shown


# Conversations


CONVERSATION: list[dict[str, Any]] = [
    {"role": "system", "content": "Be kind. " * 60},
    {"role": "user", "content": "Look:\n```python\nunclosed = 1"},
    {"role": "assistant", "content": "", "tool_calls": [
        {"id": "1", "type": "function", "function": {"name": "get_weather", "arguments": '{"city": "Paris", "days": [1, 2]}'}},
        {"id": "2", "type": "function", "function": {"name": "broken", "arguments": '{"city": '}}, "odd"]},
    {"role": "tool", "name": "get_weather", "tool_call_id": "1", "content": '{"temp": 21}'},
    {"role": "assistant", "content": "And $$ unclosed", "reasoning_content": "I think"},
    {"role": "critic <b>", "content": "**fine**"},
    {"role": "user", "content": [{"type": "text", "text": "See "}, {"type": "text", "text": "this"}, {"type": "image_url",
    "image_url": {"url": "x"}}]},
]  # fmt: skip


def test_a_conversation_has_one_bubble_a_turn(look: Callable[..., Page]) -> None:
    page = look(of("one", prompt=CONVERSATION))
    turns = page.locator("#prompt > .turn")
    expect(turns).to_have_count(7)
    assert [x.strip() for x in page.locator("#prompt > .turn > .role").all_inner_texts()] == [
        "system", "user", "assistant", "tool get_weather", "assistant", "critic <b>", "user",
    ]  # fmt: skip
    assert page.locator("#prompt > details").count() == 2, "the long system message and the tool's result are folded"
    assert turns.nth(1).locator("pre").inner_text().strip() == "unclosed = 1", "a fence ends with its turn"
    expect(turns.nth(4)).to_contain_text("And $$ unclosed")
    expect(turns.nth(5).locator("strong")).to_have_text("fine")
    expect(turns.nth(6)).to_contain_text("See this")
    expect(turns.nth(6)).to_contain_text("Here is a part that cannot be shown: image_url")
    calls = turns.nth(2).locator("details")
    expect(calls.first.locator("pre")).to_be_hidden()
    calls.first.locator("summary").press("Space")
    expect(calls.first.locator("pre")).to_be_visible()
    assert calls.first.locator("summary").inner_text() == "tool call get_weather"
    assert calls.first.locator("pre").inner_text().splitlines()[1:3] == ['  "city": "Paris",', '  "days": [']
    calls.nth(1).locator("summary").click()
    expect(calls.nth(1)).to_contain_text('{"city": ')
    calls.nth(2).locator("summary").click()
    expect(calls.nth(2)).to_contain_text("odd")
    turns.nth(3).locator("> summary").click()
    expect(turns.nth(3)).to_contain_text("21")
    expect(turns.nth(4).locator("details")).to_contain_text("reasoning_content")


def test_one_message_of_a_user_is_its_text() -> None:
    assert prompt_html([{"role": "user", "content": "**hi**"}]) == html("**hi**")
    assert "system" in prompt_html([{"role": "system", "content": "hi"}])
    assert "Bob" in prompt_html([{"role": "user", "content": "hi", "name": "Bob"}])


def test_a_long_conversation_is_bounded_as_a_whole() -> None:
    shown = prompt_html([{"role": "user", "content": "**word** " * 300}] * 20)
    assert 0 < shown.count("Shown as plain text") < 20


def test_every_field_of_a_message_is_shown_and_escaped() -> None:
    shown = prompt_html(
        [{"role": "a", "content": "b", "x<script>": "<script>c</script>", "tool_calls": [{"name": "<img>", "arguments": {"<i>": 1}}]}]
    )
    assert "<script" not in shown
    assert "<img" not in shown
    assert all(piece in text(shown) for piece in ("x<script>", "<script>c</script>", "<img>", '"<i>": 1'))


# Empty and cut off


@pytest.mark.parametrize(("written", "said"), [("", "This answer is empty."), (" \n\u3000\u200b", "This answer has nothing but spaces.")])
def test_an_empty_answer_says_so(written: str, said: str) -> None:
    assert is_empty(written)
    assert text(answer_html(written)) == said


def test_an_answer_that_was_cut_off_says_so_in_words(look: Callable[..., Page]) -> None:
    page = look(of("It was a", " ", terminated=False))
    expect(page.locator(".trajectory")).to_have_count(2)
    assert page.locator("main").aria_snapshot().count("This answer was cut off here.") == 2
    assert "This answer has nothing but spaces." in page.locator("main").aria_snapshot()


# In the browser: space, direction, width


WIDTH = """(selector) => {
  const range = document.createRange();
  range.selectNodeContents(document.querySelector(selector));
  return range.getBoundingClientRect().width;
}"""


def test_two_spaces_are_seen_as_two_and_code_keeps_its_indent(look: Callable[..., Page]) -> None:
    page = look(of("a  b\n\na b\n\n```\nx\n    y\n```"))
    side = "#side-1" if "x" in page.locator("#side-1").inner_text() else "#side-2"
    one, two = page.evaluate(WIDTH, f"{side} p:nth-of-type(2)"), page.evaluate(WIDTH, f"{side} p:nth-of-type(1)")
    assert two > one + 2
    assert page.locator(f"{side} pre").inner_text() == "x\n    y\n"


def test_line_breaks_are_not_doubled(look: Callable[..., Page]) -> None:
    written = "one\ntwo\n\n- three\n  - four\n\n> five\n\nsix\n$$x$$\nseven"
    page = look(of(written, "one\n\ntwo"))
    side = "#side-1" if "six" in page.locator("#side-1").inner_text() else "#side-2"
    line = float(page.evaluate("parseFloat(getComputedStyle(document.body).lineHeight)"))
    heights = page.evaluate("(s) => [...document.querySelectorAll(`${s} p`)].map((p) => p.getBoundingClientRect().height)", side)
    assert [round(h / line) for h in heights[:4]] == [2, 1, 1, 1]
    assert heights[4] < 5 * line, "the formula's lines break once"
    item = page.evaluate("(s) => document.querySelector(`${s} li`).getBoundingClientRect().height", side)
    assert round(item / line) == 2


MIXED = "שלום עולם\n\nEnglish\n\n- פריט\n- item\n\n# כותרת\n\n> ציטוט\n\n| א | b |\n|---|---|\n| אחת | two |"


def test_right_to_left_text_runs_so(look: Callable[..., Page]) -> None:
    page = look(of(MIXED, prompt="מה?\n\nWhat?"))
    side = "#side-1" if "English" in page.locator("#side-1").inner_text() else "#side-2"
    directions = "(s) => [...document.querySelectorAll(s)].map((e) => [e.innerText.trim(), getComputedStyle(e).direction])"
    found = dict(page.evaluate(directions, f"{side} :is(p, h1, td, th)"))
    assert found == {
        "שלום עולם": "rtl", "English": "ltr", "פריט": "rtl", "item": "ltr", "כותרת": "rtl", "ציטוט": "rtl", "א": "rtl", "b": "ltr",
        "אחת": "rtl", "two": "ltr",
    }  # fmt: skip
    assert [way for _, way in page.evaluate(directions, f"{side} :is(li, blockquote, table)")] == ["rtl", "ltr", "rtl", "rtl"]
    assert dict(page.evaluate(directions, "#prompt p")) == {"מה?": "rtl", "What?": "ltr"}


PLACES = """(element) => {
  const text = document.createTreeWalker(element, NodeFilter.SHOW_TEXT).nextNode();
  return [0, text.length - 1].map((i) => {
    const range = document.createRange();
    range.setStart(text, i);
    range.setEnd(text, i + 1);
    return range.getBoundingClientRect().left;
  });
}"""


@pytest.mark.parametrize("override", ["\u202e", "\u2067", "\u202b", "\u202d\u202e"])
def test_bidi_overrides_turn_nothing_round_outside_of_their_block(look: Callable[..., Page], override: str) -> None:
    prompt = [{"role": f"a{override}b", "name": "name", "content": "x"}, {"role": "user", "content": override}]
    page = look(of(f"a{override}bc\n\nafter\n\n- i{override}\n- item\n\n| x{override} | cell |\n|---|---|", prompt=prompt))
    places = [page.get_by_text(word, exact=True).evaluate(PLACES) for word in ("after", "item", "cell", "user", "name")]
    places += [page.locator(f".side h2 .beside:text-is('{name}')").evaluate(PLACES) for name in ("left", "right")]
    assert all(first < last for first, last in places)


LONG = "w" * 300
WIDE = [
    LONG, f"https://example.com/{LONG}", f"# {LONG}", f"- {LONG}", f"> {LONG}", f"`{LONG}`", f"```\n{LONG}\n```", f"```{LONG}\nx\n```",
    "| " + " | ".join(f"column{i}" for i in range(20)) + " |\n" + "|---" * 20 + "|", f"| {LONG} |\n|---|", f"$$ {'x+' * 200}y $$",
    f"so ${'x+' * 200}y$",
    f"so \\(\\text{{{LONG}}}\\)", f"$\\foo{{{LONG}}}$", r"$\hspace{200em} x$", f"[{LONG}](https://example.com/{LONG})", "> " * 15 + LONG,
    "\u0301" * 300,
    "- " * 8 + LONG, LONG * 80,
]  # fmt: skip


@pytest.mark.parametrize("place", ["answer", "prompt", "turn"])
def test_nothing_is_wider_than_a_phone(chromium: Browser, store: Store, serve: Serve, place: str) -> None:
    asked = []
    for i, wide in enumerate(WIDE):
        turns: list[dict[str, Any]] = [
            {"role": LONG, "name": LONG, "content": wide},
            {"role": "assistant", "content": wide, LONG: wide, "tool_calls": [{"name": LONG, "arguments": {LONG: LONG}}]},
        ]
        prompt: Prompt = wide if place == "prompt" else turns if place == "turn" else "Which?"
        task = Task("test", str(i), prompt)
        said = wide if place == "answer" else "one"
        asked.append(Comparison((Trajectory(task, "p", said),), (Trajectory(task, "p", said + " two"),), key=f"q{i}"))
    store.ask("r", asked)
    context = chromium.new_context(viewport={"width": 360, "height": 740})
    page = enter(context, serve(), store, "ann")
    for _ in asked:
        expect(page.locator("#question")).to_be_visible()
        page.evaluate("for (const e of document.querySelectorAll('details')) e.open = true")
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), page.locator("#question").inner_text()[:80]
        outside = page.evaluate(
            """() => [...document.querySelectorAll('#question *')].filter((e) => !e.parentElement.closest('.scroll')
              && (e.getBoundingClientRect().right > innerWidth + 1 || e.scrollWidth > e.clientWidth + 1 && !e.closest('.scroll')
              && getComputedStyle(e).overflowX === 'clip')).map((e) => e.outerHTML.slice(0, 100))"""
        )
        assert not outside, "what is wide scrolls and is not cut off"
        press(page, "=")
    context.close()


def test_what_scrolls_can_be_reached_with_the_keyboard(look: Callable[..., Page]) -> None:
    page = look(of(f"{WIDE[8]}\n\n{WIDE[6]}\n\n$$ {'x+' * 16}y $$\n\n| a |\n|---|\n\n$$x$$"), 360, 740)
    regions = page.locator("#question [tabindex='0'][role=region]")
    assert [region.get_attribute("aria-label") for region in regions.all()] == ["wide table", "wide code", "wide formula"]
    for region in regions.all():
        region.focus()
        page.keyboard.press("ArrowRight")
        until(lambda region=region: region.evaluate("(e) => e.scrollLeft") > 0)
    page.set_viewport_size({"width": 1280, "height": 740})
    expect(regions).to_have_count(2)


# Clips


def sheet(frames: int = 4, columns: int = 2) -> bytes:
    made = io.BytesIO()
    Image.new("RGB", (160 * columns, 120 * (frames // columns)), (30, 90, 150)).save(made, "WEBP")
    return made.getvalue()


FACTS = {"frames": 4, "columns": 2, "width": 160, "height": 120, "milliseconds": 50}


def drives(store: Store, *pictures: bytes) -> list[int]:
    """A question of two clips, with these pictures; the numbers of its trajectories."""
    a, b = (Trajectory(Task("env", str(i)), "p", None) for i in range(2))
    store.ask("r", [Comparison((a,), (b,), key="drive")])
    (asked,) = store.questions("r")
    numbers = [n for side in asked.trajectories for n in side]
    with store.transaction(write=True) as connection:
        for number, webp in zip(numbers, pictures, strict=True):
            connection.execute(insert(t.clip).values(trajectory=number, webp=webp, facts=FACTS, problem=""))
    return numbers


@pytest.mark.parametrize("kind", ["not found", "broken", "too small", "no network"])
def test_a_clip_that_fails_says_so_and_the_question_can_only_be_skipped(
    context: BrowserContext, store: Store, serve: Serve, kind: str
) -> None:
    numbers = drives(store, sheet(), {"broken": b"RIFF no picture", "too small": sheet(2)}.get(kind, sheet()))
    if kind == "no network":
        context.route(f"**/api/clips/{numbers[1]}?*", lambda route: route.abort())
    elif kind == "not found":
        context.route(f"**/api/clips/{numbers[1]}?*", lambda route: route.continue_(url=route.request.url.replace("?", "00?")))
    page = enter(context, serve(), store, "ann")
    expect(page.locator("#clips")).to_have_text("A clip could not be loaded: try again, or skip this question.")
    expect(page.get_by_text("This clip could not be loaded.")).to_have_count(2)
    expect(page.locator(".clip .note:visible")).to_have_count(1)
    assert not Axe().run(page).response["violations"]
    for name in ("left is better", "right is better", "tie", "both bad"):
        expect(page.get_by_role("button", name=name)).to_be_disabled()
    for key in ("1", "2", "=", "b", "Shift+1"):
        page.keyboard.press(key)
    expect(page.locator("#question")).to_be_visible()
    expect(page.get_by_role("button", name="skip")).to_be_enabled()
    context.unroute_all()
    if kind in ("broken", "too small"):
        with store.transaction(write=True) as connection:
            connection.execute(update(t.clip).where(t.clip.c.trajectory == numbers[1]).values(webp=sheet()))
    page.get_by_role("button", name="try again").click()
    expect(page.get_by_role("button", name="tie")).to_be_enabled()
    expect(page.locator("canvas[data-ready]:visible")).to_have_count(2)
    expect(page.locator("#clips")).to_have_text("")
    expect(page.get_by_role("button", name="try again")).to_be_hidden()
    until_it_takes_keys(page)
    page.keyboard.press("=")
    until(lambda: [x.preference for x in store.labels("r")] == [0.5])
    assert len(store.history("r")) == 1


def test_a_question_whose_clip_fails_can_be_skipped(context: BrowserContext, store: Store, serve: Serve) -> None:
    drives(store, sheet(), b"RIFF no picture")
    page = enter(context, serve(), store, "ann")
    expect(page.get_by_role("button", name="try again")).to_be_visible()
    until_it_takes_keys(page, clips=False)
    page.keyboard.press("s")
    page.keyboard.press("3")
    until(lambda: [(x.preference, x.reason) for x in store.labels("r")] == [(None, "broken")])


def test_choices_wait_until_all_clips_are_there(context: BrowserContext, store: Store, serve: Serve) -> None:
    numbers = drives(store, sheet(), sheet())
    held: list[Any] = []
    context.route(f"**/api/clips/{numbers[1]}?*", lambda route: held.append(route))
    page = enter(context, serve(), store, "ann")
    expect(page.locator("canvas[data-ready]")).to_have_count(1)
    expect(page.locator("#clips")).to_have_text("The clips are being loaded ...")
    expect(page.get_by_role("button", name="tie")).to_be_disabled()
    page.keyboard.press("1")
    expect(page.locator("#question")).to_be_visible()
    until(lambda: bool(held) or page.wait_for_timeout(10))
    for route in held:
        route.continue_()
    expect(page.get_by_role("button", name="tie")).to_be_enabled()
    until_it_takes_keys(page)
    page.keyboard.press("=")
    until(lambda: len(store.history("r")) == 1)


def test_the_time_an_answer_took_begins_when_all_clips_are_there(context: BrowserContext, store: Store, serve: Serve) -> None:
    numbers = drives(store, sheet(), sheet())
    late: list[Any] = []
    context.route(f"**/api/clips/{numbers[1]}?*", lambda route: late.append(route))
    page = enter(context, serve(), store, "ann")
    expect(page.locator("canvas[data-ready]")).to_have_count(1)
    page.wait_for_timeout(4000)
    for route in late:
        route.continue_()
    expect(page.get_by_role("button", name="tie")).to_be_enabled()
    until_it_takes_keys(page)
    page.keyboard.press("=")
    until(lambda: len(store.labels("r")) == 1)
    (label,) = store.labels("r")
    assert 0.3 <= (label.seconds or 0) < 3, "the clips took four seconds to come, which are not hers"


def test_a_clip_that_comes_when_its_question_is_gone_changes_nothing(context: BrowserContext, store: Store, serve: Serve) -> None:
    numbers = drives(store, sheet(), sheet())
    store.ask("r", [question(2)])
    late: list[Any] = []
    context.route(f"**/api/clips/{numbers[1]}?*", lambda route: late.append(route))
    url = serve()
    store.set_asking("r", Asking(repeats=0, random=0))
    page = enter(context, url, store, "ann")
    expect(page.locator("canvas[data-ready]")).to_have_count(1)
    until_it_takes_keys(page, clips=False)
    page.keyboard.press("s")
    page.keyboard.press("3")
    expect(page.locator("#side-1")).to_contain_text("2")
    page.wait_for_timeout(1500)
    for route in late:
        route.continue_()
    page.wait_for_timeout(500)
    page.keyboard.press("=")
    until(lambda: len(store.labels("r")) == 2)
    assert (store.labels("r")[1].seconds or 0) > 1.9, "the words were there all the time"


# On a phone


@pytest.fixture
def phone(chromium: Browser) -> Iterator[BrowserContext]:
    made = chromium.new_context(viewport=PHONE, has_touch=True)  # type: ignore[arg-type]
    yield made
    made.close()


def box(page: Page, selector: str) -> FloatRect:
    found = page.locator(selector).bounding_box()
    assert found is not None
    return found


def test_two_short_answers_fit_on_a_phone_with_the_bar(phone: BrowserContext, store: Store, serve: Serve) -> None:
    words = "Shorter nights, cooler rooms and fixed hours help most people who sleep badly, doctors say today. "
    store.ask("r", [of((words * 4).rsplit(" ", 5)[0], words * 4, "What helps against bad sleep?")])
    page = enter(phone, serve(), store, "ann")
    assert len(page.locator("#side-1").inner_text().split()) >= 60
    bar = box(page, "nav")
    last = box(page, ".side >> nth=1")
    assert last["y"] + last["height"] <= bar["y"]
    assert bar["y"] + bar["height"] <= 740
    assert bar["height"] <= 740 / 5
    assert page.evaluate("scrollY") == 0
    for button in page.locator("nav button:visible").all():
        size = button.bounding_box()
        assert size is not None
        assert size["height"] >= 40
    assert page.locator(".side h2").all_inner_texts() == ["1 upper", "2 lower"]
    for name in ("upper is better", "lower is better", "tie", "skip", "undo"):
        expect(page.get_by_role("button", name=name)).to_be_visible()
    assert page.get_by_text("left").filter(visible=True).count() == 0
    assert page.get_by_text("right").filter(visible=True).count() == 0
    assert page.locator("main").aria_snapshot().count("region") == 3
    assert 'region "1 upper"' in page.locator("main").aria_snapshot()
    assert not Axe().run(page).response["violations"]


def test_rare_answers_unfold_on_a_phone(phone: BrowserContext, store: Store, serve: Serve) -> None:
    store.ask("r", [question(0)])
    page = enter(phone, serve(), store, "ann")
    slight = page.get_by_role("button", name="lower a little")
    expect(slight).to_be_hidden()
    page.get_by_role("button", name="more").tap()
    expect(page.get_by_role("button", name="both bad")).to_be_visible()
    until_it_takes_keys(page)
    slight.tap()
    until(lambda: len(store.labels("r")) == 1)
    assert store.labels("r")[0].preference in (0.25, 0.75)
    expect(slight).to_be_hidden()


def test_two_clips_fit_on_a_phone_with_the_bar(phone: BrowserContext, store: Store, serve: Serve) -> None:
    drives(store, sheet(), sheet())
    page = enter(phone, serve(), store, "ann")
    expect(page.locator("canvas[data-ready]")).to_have_count(2)
    bar, player = box(page, "nav"), box(page, "#player")
    assert all(box(page, f"canvas >> nth={i}")["height"] >= 120 for i in (0, 1))
    assert player["y"] + player["height"] <= bar["y"]
    assert bar["y"] + bar["height"] <= 740
    assert bar["height"] <= 740 / 5
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    for button in page.locator("#player :is(button, select, input), nav button").filter(visible=True).all():
        size = button.bounding_box()
        assert size is not None
        assert size["height"] >= 40


@pytest.mark.parametrize("count", [3, 4, 8])
def test_the_bar_stays_small_with_many_sides(phone: BrowserContext, store: Store, serve: Serve, count: int) -> None:
    of_many = of_four(0)
    others = tuple((Trajectory(of_many.a[0].task, "p@0", f"word {i}"),) for i in range(count - 2))
    store.ask("r", [Comparison(of_many.a, of_many.b, key="many", others=others)])
    page = enter(phone, serve(), store, "ann")
    expect(page.locator(".side")).to_have_count(count)
    expect(page.locator("nav button[data-place]:visible")).to_have_count(count)
    assert box(page, "nav")["height"] <= 740 / 5
    assert all((b.bounding_box() or {"height": 0})["height"] >= 40 for b in page.locator("nav button:visible").all())
    until_it_takes_keys(page)
    page.get_by_role("button", name="3 is best").tap()
    until(lambda: len(store.labels("r")) == 1)


def test_without_javascript_there_is_one_sentence(chromium: Browser, store: Store, serve: Serve) -> None:
    store.ask("r", [question(0)])
    context = chromium.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(f"{serve()}/join#{invite(store, 'ann')}")
    sentence = "This page needs JavaScript, which keeps your answers until the server has them: please switch it on and reload."
    said = page.locator("noscript p")  # which Playwright never calls visible
    assert said.text_content() == sentence
    assert (said.bounding_box() or {"height": 0})["height"] > 10
    expect(page.locator("nav")).to_be_hidden()
    context.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1280])
def test_axe_finds_nothing_in_what_was_written(
    chromium: Browser, store: Store, serve: Serve, scheme: Literal["light", "dark"], width: int
) -> None:
    written = f"{MIXED}\n\n{WIDE[8]}\n\n```python\n{LONG}\n```\n\n{WIDE[10]}\n\n1. \\[\\boxed{{42}}\\]\n\n[link](https://example.com)"
    store.ask("r", [of(written, "", CONVERSATION, terminated=False)])
    context = chromium.new_context(color_scheme=scheme, viewport={"width": width, "height": 740})
    page = enter(context, serve(), store, "ann")
    for unfolded in (False, True):
        if unfolded:
            page.evaluate("for (const e of document.querySelectorAll('details')) e.open = true")
        found = Axe().run(page).response["violations"]
        assert not found, [(v["id"], [n["html"] for n in v["nodes"]][:3]) for v in found]
    context.close()
