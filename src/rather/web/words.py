"""What strangers wrote, as HTML that cannot do anything: Markdown without raw HTML, mathematics as MathML, then an allow-list of tags."""

from html import escape
from typing import Any

import nh3
from latex2mathml.converter import convert
from markdown_it import MarkdownIt
from mdit_py_plugins.dollarmath import dollarmath_plugin
from mdit_py_plugins.texmath import texmath_plugin

TAGS = {
    "a", "blockquote", "br", "code", "del", "em", "h1", "h2", "h3", "h4", "h5", "h6", "hr", "li", "ol", "p", "pre", "s", "strong",
    "table", "tbody", "td", "th", "thead", "tr", "ul",
    "math", "mfrac", "mi", "mn", "mo", "mover", "mroot", "mrow", "mspace", "msqrt", "mstyle", "msub", "msubsup", "msup", "mtable", "mtd",
    "mtext", "mtr", "munder", "munderover",
}  # fmt: skip
LONGEST_FORMULA = 2000


def html(text: str) -> str:
    """Safe HTML of a text that may be Markdown; links say where they lead and are not followed for the writer's sake."""
    shown = "".join(c for c in text if c in "\n\t" or c.isprintable())
    return nh3.clean(_MARKDOWN.render(shown), tags=TAGS, attributes={"a": {"href"}, "math": {"display"}}, url_schemes={"http", "https"})


def _mathematics(latex: str, options: dict[str, Any]) -> str:
    """MathML, which browsers show by themselves; what is no LaTeX stays as it was written."""
    if len(latex) > LONGEST_FORMULA:
        return f"<code>{escape(latex)}</code>"
    try:
        return convert(latex, display="block" if options["display_mode"] else "inline")
    except Exception:  # noqa: BLE001 - whatever a stranger's formula makes a parser raise
        return f"<code>{escape(latex)}</code>"


_MARKDOWN = MarkdownIt("commonmark", {"html": False, "breaks": True}).enable(["table", "strikethrough"]).disable("image")
_MARKDOWN.use(texmath_plugin, delimiters="brackets")
_MARKDOWN.use(dollarmath_plugin, renderer=_mathematics, allow_space=False, allow_digits=False, allow_labels=False)
