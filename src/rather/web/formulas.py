r"""Mathematics in Markdown as chat models write it: `$...$`, `$$...$$`, `\(...\)`, `\[...\]`, bare environments; shown as MathML.

What is no LaTeX is shown exactly as it was written, its delimiters with it: never as wrong mathematics.
"""

import re
from collections.abc import MutableMapping
from html import escape
from itertools import accumulate
from typing import Any

from markdown_it import MarkdownIt
from markdown_it.rules_block import StateBlock
from markdown_it.rules_inline import StateInline
from math_core import LatexError, LatexToMathML

LONGEST, DEEPEST, LARGEST = 2_000, 100, 100_000
"""Characters and nested braces of a formula, and characters of its MathML, past which it is shown as it was written."""

TAGS = {
    "b", "em", "i", "math", "menclose", "mfrac", "mi", "mmultiscripts", "mn", "mo", "mover", "mprescripts", "mroot", "mrow", "mspace",
    "msqrt",
    "mstyle", "msub", "msubsup", "msup", "mtable", "mtd", "mtext", "mtr", "munder", "munderover",
}  # fmt: skip
"""All that is seen. Not among them: references, which lead nowhere, and what takes room without being seen."""
ATTRIBUTES = {
    "math": {"display"}, "menclose": {"notation"}, "mfrac": {"displaystyle", "linethickness"}, "mi": {"mathvariant"},
    "mo": {"form", "largeop", "lspace", "maxsize", "minsize", "movablelimits", "rspace", "stretchy", "symmetric"}, "mover": {"accent"},
    "mrow": {"displaystyle", "scriptlevel"}, "mspace": {"width"}, "mstyle": {"displaystyle", "scriptlevel"},
    "mtable": {"displaystyle", "scriptlevel"}, "munder": {"accentunder"},
}  # fmt: skip

CLOSING = {"$$": "$$", r"\[": r"\]", r"\(": r"\)"}
OPENING = re.compile(
    r"\$\$|\\\[|\\\(|\\begin\{((?:align|alignat|aligned|cases|equation|gather|gathered|multline|split|array|[pbvBV]?matrix)\*?)\}"
)
NUMBERED = re.compile(r"\\(begin|end)\{(align|equation|gather|multline)\}")
COMMENT = re.compile(r"(\\.)|%", re.DOTALL)
STYLED = re.compile(r'(<[a-z]+[^<>]*?) style="([^"]*)"')
SIDES = (("border-right", "edge-right"), ("border-left", "edge-left"), ("border-top", "edge-top"), ("border-bottom", "edge-bottom"))

_CONVERTER = LatexToMathML(
    fancy_error=False, max_expansions=100, macros={"mbox": r"\text{#1}", "substack": r"\begin{matrix}#1\end{matrix}"}
)


def use(markdown: MarkdownIt) -> None:
    """Teach a Markdown parser mathematics."""
    markdown.inline.ruler.before("escape", "formula", _inline)
    markdown.block.ruler.before("lheading", "formula", _block, {"alt": ["paragraph", "blockquote", "list"]})
    markdown.add_render_rule("formula", lambda _, tokens, i, *__: _shown(tokens[i].content, tokens[i].markup))


def _shown(source: str, opening: str) -> str:
    display = opening not in ("$", r"\(")
    kind = "math display" if display else "math"
    return f'<span class="{kind}">{_mathml(_inner(source, opening), display) or f"<code>{escape(source)}</code>"}</span>'


def _inner(source: str, opening: str) -> str:
    return source if opening.startswith(r"\begin") else source[len(opening) : -len(opening)]


def _mathml(latex: str, display: bool) -> str | None:
    """MathML without styles, which the page's policy forbids: classes say what they said. None for what cannot be rendered."""
    braces = accumulate((c == "{") - (c == "}") for c in latex)
    if len(latex) > LONGEST or max(braces, default=0) > DEEPEST:
        return None
    # What stands behind a percent sign was meant to be read, and the numbers of equations were not written.
    plain = COMMENT.sub(lambda found: found[1] or r"\%", NUMBERED.sub(r"\\\1{\2*}", latex).replace("{split}", "{aligned}"))
    try:
        mathml = _CONVERTER.convert_with_local_state(plain.strip(), displaystyle=display)
    except LatexError:
        return None
    if len(mathml) > LARGEST or not TAGS.issuperset(re.findall("<([a-z]+)", mathml)):
        return None
    return STYLED.sub(lambda found: found[1] + _classes(found[2]), mathml)


def _classes(style: str) -> str:
    aligned = re.search(r"text-align: ?(left|right)", style)
    names = [*([aligned[1]] if aligned else []), *(name for side, name in SIDES if side in style)]
    return f' class="{" ".join(names)}"' if names else ""


def _inline(state: StateInline, silent: bool) -> bool:
    src, start = state.src, state.pos
    if src[start] not in "$\\":
        return False
    found = OPENING.match(src, start)
    if found:
        opening = found[0]
        end = _end(state.env, src, found, state.posMax)
    elif src[start] == "$":
        opening = "$"
        end = _end_of_dollars(src, start, state.posMax)
    else:
        return False
    if end is None:
        return False
    if not silent:
        token = state.push("formula", "math", 0)
        token.content, token.markup = src[start:end], opening
    state.pos = end
    return True


def _block(state: StateBlock, line: int, end_line: int, silent: bool) -> bool:
    """A paragraph that goes on to where a formula of several lines ends, whatever its lines look like to Markdown."""
    if state.is_code_block(line):
        return False
    start, stop = state.bMarks[line] + state.tShift[line], state.eMarks[line]
    if not (opened := _left_open(state.src, start, stop)) >= 0:
        return False
    found = OPENING.match(state.src, opened)
    assert found is not None
    end = _end(state.env, state.src, found, len(state.src))
    if end is None:
        return False
    last = line
    while state.eMarks[last] < end:
        last += 1
        if last >= end_line or state.sCount[last] < state.blkIndent or (state.isEmpty(last) and found[0] == "$$"):
            return False
    if silent:
        return True
    state.line = last + 1
    state.push("paragraph_open", "p", 1).map = [line, state.line]
    token = state.push("inline", "", 0)
    token.content = state.getLines(line, state.line, state.blkIndent, False).strip(" \t\n")
    token.map, token.children = [line, state.line], []
    state.push("paragraph_close", "p", -1)
    return True


def _left_open(src: str, start: int, stop: int) -> int:
    """Where a formula begins that a line does not end; -1 if there is none, or code stands before it."""
    while found := OPENING.search(src, start, stop):
        if "`" in src[start : found.start()]:
            return -1
        if _escaped(src, found.start()):
            start = found.start() + 1
            continue
        end = _close(src, found, stop)
        if end is None:
            return -1 if found[0] == r"\(" else found.start()
        start = end
    return -1


def _end(env: MutableMapping[str, Any], src: str, found: re.Match[str], stop: int) -> int | None:
    """Where a formula ends; what has no end is looked for once a text only, so that the time stays linear."""
    hopeless, what = env.setdefault("hopeless", set()), (found[0], id(src), stop)
    if what in hopeless:
        return None
    end = _close(src, found, stop)
    if end is None:
        hopeless.add(what)
    return end


def _close(src: str, found: re.Match[str], stop: int) -> int | None:
    closing = CLOSING.get(found[0]) or f"\\end{{{found[1]}}}"
    at = found.end()
    while (at := src.find(closing, at, stop)) >= 0:
        if not _escaped(src, at) and src[found.end() : at].strip():
            return at + len(closing)
        at += 1
    return None


def _end_of_dollars(src: str, start: int, stop: int) -> int | None:
    r"""Where `$...$` ends: no space within its ends and no digit around it, so that $5 and $10 are money."""
    if src[start + 1 : start + 2].isspace() or src[start - 1 : start].isdigit():
        return None
    at = start
    while (at := src.find("$", at + 1, stop)) >= 0:
        if not _escaped(src, at):
            good = at > start + 1 and not src[at - 1].isspace() and not src[at + 1 : at + 2].isdigit()
            return at + 1 if good else None
    return None


def _escaped(src: str, at: int) -> bool:
    before = at
    while before and src[before - 1] == "\\":
        before -= 1
    return (at - before) % 2 == 1
