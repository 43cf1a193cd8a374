"""The terminal: lines are broken where no figure is torn from its name or its unit."""

import re
from typing import Any

from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

NUMBER = re.compile(r"[(\[<>=~+-]*\d[\d.,:/e+-]*")
OPERATORS = frozenset({"=", "%", "+-", "<", ">"})


class Terminal(Console):
    """A Rich console that breaks sentences by `broken`; in a pipe or a file, where nobody sees columns, it does not break them."""

    def print(self, *objects: object, **options: Any) -> None:
        """Print as Rich does; a single sentence that is not to be `soft_wrap` is broken by us."""
        if len(objects) == 1 and isinstance(objects[0], str) and not options.get("soft_wrap"):
            text = self.render_str(objects[0], markup=options.pop("markup", None), highlight=options.pop("highlight", None))
            objects, options = (broken(text, self.width) if self.is_terminal else text,), options | {"soft_wrap": True}
        super().print(*objects, **options)


def broken(text: Text, width: int) -> Text:
    """`text` in lines of at most `width` cells; a longer line is one word, such as a path, or one figure with its name and unit."""
    return Text("\n").join(piece for line in text.split("\n", allow_blank=True) for piece in _pieces(line, width))


def _pieces(line: Text, width: int) -> list[Text]:
    plain, begin, breaks = line.plain, 0, list[int]()
    gaps = [gap for gap in re.finditer(r"(?<=\S) +(?=\S)", plain) if _may_break(plain[: gap.start()], plain[gap.end() :])]
    for i, gap in enumerate(gaps):
        end = gaps[i + 1].start() if i + 1 < len(gaps) else len(plain.rstrip())
        if cell_len(plain[begin:end]) > width:
            begin = gap.end()
            breaks.append(begin)
    pieces = list(line.divide(breaks))
    for piece in pieces[:-1]:
        piece.rstrip()
    return pieces


def _may_break(before: str, after: str) -> bool:
    """Whether a line may end between the two: not beside a number, unless a comma, a full stop or a bracket ends there or begins."""
    left, right = before.rsplit(maxsplit=1)[-1], after.split(maxsplit=1)[0]
    if left.endswith((",", ";", ".", ")", "!", "?")) or (right.startswith("(") and not right.startswith("(+-")):
        return True
    return not (NUMBER.fullmatch(left) or NUMBER.match(right) or left in OPERATORS - {"%"} or right in OPERATORS)
