"""What can be counted in a text: its words, those that carry its content, and how far it repeats itself."""

import re

from rather.core import Prompt

_FUNCTION_WORDS = """
a about after again all also am an and any are aren't as at be because been before being between both but by can can't could couldn't
did didn't do does doesn't doing don't down each even every few for from give get go had has have having he her here hers him his how i
i'm i've if in into is isn't it it's its just let like list make many may me might more most much must my name need no nor not now of
off on one only or other our out over own please quite rather same say see shall she should shouldn't so some something such suggest
tell than that that's the their them then there these they thing things this those three to too two under until up us use very want was
wasn't way we were what what's when where which while who whom whose why will with won't would write yes you you'd you're your yours
explain describe compare short
"""
FUNCTION_WORDS = frozenset(_FUNCTION_WORDS.split())
"""English words that say little about a text's subject; among them those that tasks are put in ("explain", "write")."""

STEM = 5
"""Letters by which two words are taken for the same, a final s aside, so that "train", "trains" and "training" are."""


def words(text: str) -> list[str]:
    """The words of a text, in lower case."""
    return re.findall(r"[^\W_]+(?:['\u2019][^\W_]+)*", text.casefold())


def content_words(text: str) -> set[str]:
    """The stems of the words that say what a text is about: not function words, nor words of one or two letters."""
    said = words(text.replace("\u2019", "'"))
    return {re.sub(r"(?<=[^s])s$", "", word)[:STEM] for word in said if word not in FUNCTION_WORDS and len(word) > 2}


def asked(prompt: Prompt) -> str:
    """What a prompt asks: its text, or what the user of a conversation has said."""
    return prompt if isinstance(prompt, str) else "\n".join(m["content"] for m in prompt if m["role"] == "user")


def repetition(said: list[str], size: int = 2) -> float:
    """Share of the runs of `size` neighboring words that stood there before; 0 where there is no run."""
    runs = [tuple(said[i : i + size]) for i in range(len(said) - size + 1)]
    return 1 - len(set(runs)) / len(runs) if runs else 0.0
