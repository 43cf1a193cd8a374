"""The words of an answer while its tokens come, one by one."""

from collections.abc import Sequence
from functools import partial

from rather.core import Prompt
from rather.text.tokens import Tokens

INCOMPLETE = "\ufffd"
"""What a tokenizer writes for the first bytes of a character whose others are still to come."""


class Words:
    """Turns the tokens of an answer to `prompt` into words as they come: all pieces together are what `Tokens.decode` makes of them.

    A tokenizer may write a token in another way after others, so that it is decoded with those before it, and never again after that.
    """

    def __init__(self, tokens: Tokens, prompt: Prompt) -> None:
        self._decode = partial(tokens.tokenizer.decode, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        self._ids = tokens.before(prompt)
        self._start, self._read = 0, len(self._ids)
        self._lead, self._held = tokens.lead(prompt), ""

    def add(self, ids: Sequence[int]) -> str:
        """The words that are complete with these tokens."""
        self._ids += ids
        text = self._new()
        if text.endswith(INCOMPLETE):
            return ""
        self._start, self._read = self._read, len(self._ids)
        return self._led(text)

    def end(self) -> str:
        """The words that are left when no token comes any more."""
        text = self._held + self._new()
        return text if self._lead is None else text.removeprefix(self._lead)

    def _new(self) -> str:
        before, whole = self._decode(self._ids[self._start : self._read]), self._decode(self._ids[self._start :])
        return whole[len(before) :] if whole.startswith(before) else self._decode(self._ids[self._read :])

    def _led(self, text: str) -> str:
        """Text without what the chat template writes before an answer."""
        if self._lead is None:
            return text
        self._held += text
        if len(self._held) < len(self._lead) and self._lead.startswith(self._held):
            return ""
        text, self._held, self._lead = self._held.removeprefix(self._lead), "", None
        return text
