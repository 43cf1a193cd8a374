"""What strangers wrote, as HTML that cannot do anything: Markdown without raw HTML, then an allow-list of tags."""

import nh3
from markdown_it import MarkdownIt

TAGS = {
    "a", "blockquote", "br", "code", "del", "em", "h1", "h2", "h3", "h4", "h5", "h6", "hr", "li", "ol", "p", "pre", "s", "strong",
    "table", "tbody", "td", "th", "thead", "tr", "ul",
}  # fmt: skip
_MARKDOWN = MarkdownIt("commonmark", {"html": False, "breaks": True}).enable(["table", "strikethrough"]).disable("image")


def html(text: str) -> str:
    """Safe HTML of a text that may be Markdown; links say where they lead and are not followed for the writer's sake."""
    shown = "".join(c for c in text if c in "\n\t" or c.isprintable())
    return nh3.clean(_MARKDOWN.render(shown), tags=TAGS, attributes={"a": {"href"}}, url_schemes={"http", "https"})
