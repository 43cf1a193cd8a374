"""What strangers wrote, as HTML that cannot do anything: Markdown without raw HTML, mathematics as MathML, then an allow-list of tags.

What is seen is what was written: spaces and line breaks, numbers of lists, languages of code. What Markdown would hide is shown.
"""

import re
import unicodedata
from collections.abc import Sequence
from functools import lru_cache
from html import escape
from typing import Any

import nh3
from markdown_it import MarkdownIt
from markdown_it.common.normalize_url import normalizeLinkText
from markdown_it.rules_block import StateBlock, table
from markdown_it.rules_block.table import escapedSplit
from markdown_it.rules_core import StateCore
from markdown_it.rules_inline import StateInline
from markdown_it.token import Token

from rather.web import formulas

LONGEST = 20_000
"""Characters of a text past which it is shown as plain text: what is written to be slow takes well under a second up to there."""
TOO_LONG = f"Shown as plain text, since there are more than {LONGEST:,} characters."
DEEPEST = 18
"""Levels of quotes past which a text is shown as plain text; a list within a list is two."""
MOST_CELLS = 10_000
"""Cells of a table, those that short rows leave out among them, past which a text is shown as plain text."""

TAGS = formulas.TAGS | {
    "a", "blockquote", "br", "code", "del", "div", "em", "h1", "h2", "h3", "h4", "h5", "h6", "hr", "li", "ol", "p", "pre", "s", "span",
    "strong", "table", "tbody", "td", "th", "thead", "tr", "ul",
}  # fmt: skip
ATTRIBUTES = formulas.ATTRIBUTES | {"*": {"class", "dir"}, "a": {"href"}, "li": {"value"}}
PICTURES = (
    {n: 0x2400 + n for n in range(32) if n not in (9, 10)}
    | {0x7F: 0x2421}
    | dict.fromkeys((*range(0x80, 0xA0), *range(0xFFF9, 0xFFFC)), 0xFFFD)
)
"""Controls, which no font shows, and the pictures of them that it does."""
TAGGED = re.compile("(\U0001f3f4[\U000e0020-\U000e007e]+\U000e007f)|[\U000e0000-\U000e007f\ud800-\udfff\ufffe\uffff]")
"""Flags such as Scotland's; other characters that spell words nobody can see, and what is none."""
BLOCKS, CONTAINERS = (
    ("paragraph_open", "heading_open", "td_open", "th_open"),
    ("blockquote", "bullet_list", "list_item", "ordered_list", "table"),
)


@lru_cache(128)
def html(text: str) -> str:
    """Safe HTML of a text that may be Markdown; links are absolute, and say where they lead."""
    if len(text) > LONGEST:
        return plain(text, TOO_LONG)
    try:
        made = visible(_MARKDOWN.render(text))
    except _TooMuchError as much:
        return plain(text, f"Shown as plain text, since {much}.")
    if not re.search(r"<hr|<m[a-z]+>|>[^<>]*[^<>\s]", f">{made}"):  # such as a heading without words
        return plain(text)
    return nh3.clean(
        made, tags=TAGS, attributes=ATTRIBUTES, url_schemes={"http", "https"}, set_tag_attribute_values={"a": {"target": "_blank"}}
    )


def plain(text: str, note: str = "") -> str:
    """Safe HTML of a text as it was written, every line in its own direction."""
    said = f'<p class="note">{escape(note)}</p>' if note else ""
    return f'{said}<div class="plain">{escape(visible(text))}</div>'


def visible(text: str) -> str:
    """The text with what cannot be seen in the place of its picture; spaces, joiners and marks stay as they are."""
    return TAGGED.sub(lambda found: found[1] or "\ufffd", text.replace("\r\n", "\n")).translate(PICTURES)


def is_empty(text: str) -> bool:
    """Whether there is nothing to see: no character, or only spaces and marks of direction and joining."""
    return all(c.isspace() or unicodedata.category(c) in ("Cf", "Zs", "Mn") for c in text)


class _TooMuchError(Exception):
    """What takes too long to show, or what Markdown would leave out."""


def _not_too_deep(state: StateBlock, _line: int, _end: int, _silent: bool) -> bool:
    if state.level >= DEEPEST:
        raise _TooMuchError("its lists or quotes are nested too deeply")
    return False


def _table(state: StateBlock, line: int, end: int, silent: bool) -> bool:
    if silent or not table(state, line, end, True):
        return silent and table(state, line, end, True)
    last = next((i for i in range(line, end) if state.isEmpty(i)), end)
    if (last - line) * state.src.count("|", state.bMarks[line], state.eMarks[line]) > MOST_CELLS:
        raise _TooMuchError(f"it has a table of more than {MOST_CELLS:,} cells")
    return table(state, line, end, False)


def _newline(state: StateInline, silent: bool) -> bool:
    """A line break, with the spaces around it; a formula on lines of its own breaks them itself."""
    if state.src[state.pos] != "\n":
        return False
    if not silent:
        before = state.tokens[-1] if state.tokens and not state.pending.strip() else None
        if before is not None and before.type == "formula" and before.markup not in ("$", r"\("):
            state.pending = ""
        else:
            state.push("softbreak", "br", 0)
    state.pos += 1
    return True


def _faithful(state: StateCore) -> None:
    """Keep what Markdown drops: directions of blocks, first indents, blank lines, numbers of lists, alignment; tight items stay tight."""
    lines = state.src.split("\n")
    opened: list[Token] = []
    made: list[Token] = []
    for i, token in enumerate(state.tokens):
        kind = token.type.removesuffix("_open").removesuffix("_close")
        if token.level == 0 and token.map and token.nesting >= 0 and (blank := _blank_before(lines, token.map[0])) > 1:
            made.append(Token("html_block", "", 0, content="<br>" * (blank - 1)))
        if token.type in BLOCKS:
            token.attrSet("dir", "auto")
            if token.hidden:
                token.attrSet("class", "tight")
        if token.type in ("paragraph_open", "paragraph_close"):
            token.hidden = False
        if kind in ("td", "th") and (style := token.attrs.pop("style", None)):
            token.attrSet("class", str(style).removeprefix("text-align:"))
        if token.type == "list_item_open" and token.info:
            token.attrSet("value", token.info)
        if token.type == "tr_close":
            made += _left_out(lines, made)
        if kind in CONTAINERS and token.nesting:
            opened.append(token) if token.nesting > 0 else opened.pop()
        if token.type == "inline":
            _direct(opened, token.content)
            if token.map and state.tokens[i - 1].type in ("paragraph_open", "heading_open"):
                token.content = _indent(lines[token.map[0]], token.content, token.level == 1) + token.content
        made.append(token)
    state.tokens = made


def _blank_before(lines: Sequence[str], line: int) -> int:
    begin = line
    while begin and not lines[begin - 1].strip(" \t"):
        begin -= 1
    return line - begin


def _left_out(lines: Sequence[str], made: Sequence[Token]) -> list[Token]:
    """The cells of a row that Markdown leaves out, since the table's first row has none there."""
    row = next(i for i in range(len(made) - 1, -1, -1) if made[i].type == "tr_open")
    mapped, shown = made[row].map, sum(t.type in ("td_open", "th_open") for t in made[row:])
    assert mapped
    cells = escapedSplit(re.sub(r"^[\s>]*\|?|\|?\s*$", "", lines[mapped[0]]))
    return [
        token
        for cell in cells[shown:]
        for token in (
            Token("td_open", "td", 1, attrs={"dir": "auto"}),
            Token("inline", "", 0, content=cell.strip(" \t"), children=[]),
            Token("td_close", "td", -1),
        )
    ]


def _indent(line: str, content: str, ascii_too: bool) -> str:
    """The spaces before a text that Markdown took away; `ascii_too` where they stand for no list or quote."""
    before = line[: line.find(content.partition("\n")[0])] if content else line
    rest = before.rstrip() if ascii_too and before.isspace() else re.sub(r"[^\S \t\n]+$", "", before)
    return before[len(rest) :]


def _direct(opened: Sequence[Token], content: str) -> None:
    """Give lists, quotes and tables around a text its direction, unless they have that of one before it."""
    if not opened or "dir" in opened[-1].attrs:
        return
    strong = next((way for c in content if (way := unicodedata.bidirectional(c)) in ("L", "R", "AL")), None)
    for token in reversed(opened if strong else ()):
        if "dir" in token.attrs:
            break
        token.attrSet("dir", "ltr" if strong == "L" else "rtl")


def _code(tokens: Sequence[Token], i: int) -> str:
    language = f'<p class="note">{escape(tokens[i].info.strip())}</p>' if tokens[i].info.strip() else ""
    return f'{language}<pre dir="ltr" class="scroll"><code>{escape(tokens[i].content)}</code></pre>\n'


def _destination(tokens: Sequence[Token], i: int) -> str:
    """The end of a link, with where it leads and its title, which only a mouse would show."""
    opened = next(token for token in reversed(tokens[:i]) if token.type == "link_open")
    if opened.markup == "autolink":
        return "</a>"
    title = f" {opened.attrs['title']}" if opened.attrs.get("title") else ""
    return f'</a> <span class="note">({escape(normalizeLinkText(str(opened.attrs["href"])) + title)})</span>'


def _markdown() -> MarkdownIt:
    made = MarkdownIt("commonmark", {"html": False, "breaks": True, "maxNesting": DEEPEST + 2}).enable(["table", "strikethrough"])
    made.disable(["image", "reference"])  # neither shows what was written
    made.validateLink = lambda url: re.match("https?://", url, re.IGNORECASE) is not None
    formulas.use(made)
    made.block.ruler.before("table", "depth", _not_too_deep)
    made.block.ruler.at("table", _table, {"alt": ["paragraph", "reference"]})
    made.inline.ruler.at("newline", _newline)
    made.core.ruler.before("inline", "faithful", _faithful)
    rules: dict[str, Any] = {
        "softbreak": lambda *_: "<br>",
        "hardbreak": lambda *_: "<br>",
        "fence": lambda _, tokens, i, *__: _code(tokens, i),
        "code_block": lambda _, tokens, i, *__: _code(tokens, i),
        "link_close": lambda _, tokens, i, *__: _destination(tokens, i),
        "table_open": lambda _, tokens, i, *__: f'<div class="scroll" dir="{tokens[i].attrGet("dir") or "ltr"}"><table>\n',
        "table_close": lambda *_: "</table></div>\n",
    }
    for name, rule in rules.items():
        made.add_render_rule(name, rule)
    return made


_MARKDOWN = _markdown()
