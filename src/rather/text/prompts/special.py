"""The names of special tokens, such as `<|im_end|>`, in what people have written: words like others, but for an answer's end."""

import re
import secrets
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

APART = f"\ufdd0{secrets.randbelow(10**18):018}\ufdd0"
"""What keeps the name of a token from being read as the token: drawn anew in each process, so that no text has it."""

ANCHORS = ("", "\n", ".", "a")
"""Texts after which another is tokenized, if its beginning would grow together with the end of what it follows."""

NEAR = 8
"""Tokens before a text that are looked at, to see how it goes on from them."""


class SpecialNames:
    """Finds the names of special tokens: those of `control` within a text, and those of `ends`, which end an answer, at its end."""

    def __init__(self, control: Iterable[str], ends: Iterable[str]) -> None:
        self.control = re.compile(_any_of(control))
        self.ends = re.compile(rf"(?:\s*(?:{_any_of(ends)}))+\s*\Z")

    def as_words(self, said: Any) -> Any:
        """A text, or messages and their fields but for `role`, with `APART` within the names, where `pieces` parts it."""
        if isinstance(said, dict):
            return {key: value if key == "role" else self.as_words(value) for key, value in said.items()}
        if isinstance(said, list):
            return [self.as_words(part) for part in said]
        return self.control.sub(lambda found: f"{found[0][:1]}{APART}{found[0][1:]}", said) if isinstance(said, str) else said

    def without_end(self, answer: str) -> str:
        """An answer without the names of tokens that it ends with."""
        return self.ends.sub("", answer)


def pieces(text: str) -> list[str]:
    """The parts of a text that are tokenized one by one, so that no token goes across an `APART`."""
    return text.split(APART)


def following(tokenizer: Any, before: Sequence[int], texts: Sequence[str]) -> list[int]:
    """The tokens of texts that follow the tokens `before`, and one another, with none across two of them."""
    found: list[int] = []
    for text in texts:
        found += _after(tokenizer, [*before, *found][-NEAR:], text)
    return found


def _after(tokenizer: Any, before: list[int], text: str) -> list[int]:
    """The tokens of `text` as they could follow the tokens `before`: those that come to the same text."""
    words = partial(tokenizer.decode, clean_up_tokenization_spaces=False)
    candidates = []
    for anchor in ANCHORS:
        alone = tokenizer(anchor, add_special_tokens=False)["input_ids"]
        both = tokenizer(anchor + text, add_special_tokens=False)["input_ids"]
        if both[: len(alone)] == alone:
            candidates.append(both[len(alone) :])
    wanted = words(before) + text
    return next((ids for ids in candidates if words([*before, *ids]) == wanted), candidates[0])


def _any_of(names: Iterable[str]) -> str:
    """A pattern that finds any of the names, the longest first; without names it finds nothing."""
    return "|".join(re.escape(name) for name in sorted(names, key=len, reverse=True)) or r"(?!)"
