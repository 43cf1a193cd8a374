"""Requests for completions and what is answered, in the words of OpenAI's API."""

import secrets
import time
from collections.abc import Sequence
from typing import Any, Literal, TypeVar

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from rather.core import Message, Prompt, Task, Trajectory
from rather.errors import DataError
from rather.settings import Temperature
from rather.store.intake import check_characters
from rather.text.prompts.streaming import INCOMPLETE, Words
from rather.text.serving import Piece
from rather.text.tokens import Tokens

G = TypeVar("G")


DEEPEST = 50
"""How many lists and objects of a message or a tool may stand in one another."""


def words(given: G) -> G:
    """What was given, if it is text that can be written."""
    inside: list[Any] = [given]
    for _ in range(DEEPEST):
        inside = [x for outer in inside if isinstance(outer, list | dict) for x in (outer.values() if isinstance(outer, dict) else outer)]
    if inside:
        raise ValueError(f"more than {DEEPEST} lists and objects stand in one another")
    try:
        check_characters(given, "it")
    except DataError as e:
        raise ValueError(str(e)) from None
    return given


class StreamOptions(BaseModel):
    """What a stream says beside the answer."""

    model_config = ConfigDict(extra="forbid")
    include_usage: bool = False


class Request(BaseModel):
    """What both kinds of requests say. A field that is not known is refused: it might change the answer."""

    model_config = ConfigDict(extra="forbid")
    model: str
    max_tokens: int | None = Field(default=None, ge=1)
    temperature: Temperature = Field(default=1.0, le=10)
    top_p: float = Field(default=1.0, gt=0, le=1)
    top_k: int = Field(default=0, ge=0)
    min_p: float = Field(default=0.0, ge=0, le=1)
    n: int = Field(default=1, ge=1, le=128)
    best_of: int | None = Field(default=None, ge=1, le=128)
    seed: int | None = None
    stop: list[str] = Field(default=[], max_length=16)
    stream: bool = False
    stream_options: StreamOptions | None = None
    presence_penalty: float = Field(default=0, ge=0, le=0)
    frequency_penalty: float = Field(default=0, ge=0, le=0)
    user: str | None = None

    @field_validator("stop", mode="before")
    @classmethod
    def _as_list(cls, stop: object) -> object:
        return [] if stop is None else [stop] if isinstance(stop, str) else stop

    @field_validator("stop")
    @classmethod
    def _says_something(cls, stop: list[str]) -> list[str]:
        if not all(stop):
            raise ValueError("an empty text would end every answer at once")
        return stop

    @model_validator(mode="after")
    def _check(self) -> "Request":
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options needs stream")
        if self.best_of is not None and self.best_of < self.n:
            raise ValueError(f"best_of is {self.best_of}, but n asks for {self.n} of these; draw at least as many")
        if self.best_of is not None and self.best_of > self.n and self.temperature == 0:
            raise ValueError("at temperature 0 all answers are the same, so that there is no best one; set temperature above 0")
        return self


class ChatRequest(Request):
    """A request for answers to a conversation."""

    messages: list[Message] = Field(min_length=1)
    max_completion_tokens: int | None = Field(default=None, ge=1)
    logprobs: bool = False
    top_logprobs: Literal[0] | None = None
    tools: list[dict[str, Any]] = []
    tool_choice: Literal["auto"] | None = None
    response_format: dict[Literal["type"], Literal["text"]] | None = None

    @field_validator("messages", "tools")
    @classmethod
    def _can_be_kept(cls, given: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return words(given)

    @field_validator("messages")
    @classmethod
    def _have_roles(cls, messages: list[Message]) -> list[Message]:
        for i, message in enumerate(messages):
            words = isinstance(message.get("content"), str) or message.get("tool_calls")
            if not (words and isinstance(message.get("role"), str)):
                raise ValueError(f"message {i} needs a role and a content, both of them text")
        return messages


class TextRequest(Request):
    """A request for what follows one text, or each of several."""

    prompt: str | list[str] = Field(min_length=1)
    logprobs: Literal[0] | None = None
    echo: Literal[False] = False

    @field_validator("prompt")
    @classmethod
    def _can_be_kept(cls, prompt: str | list[str]) -> str | list[str]:
        return words(prompt)


class Preference(BaseModel):
    """Which of several recorded answers to a prompt is better, or that none of them is."""

    model_config = ConfigDict(extra="forbid")
    chosen: str
    rejected: str | list[str]
    tie: bool = False
    judge: str = Field(default="api", min_length=1, max_length=200, pattern=r"^[^\x00]*$")
    reason: str = Field(default="", max_length=500, pattern=r"^[^\x00]*$")


class Answer:
    """One choice of an answer to a prompt of the tokens `ids`, while it comes: its tokens, and its words up to the first of the `stops`."""

    def __init__(self, index: int, prompt: Prompt, ids: Sequence[int], words: Words, stops: Sequence[str]) -> None:
        self.index, self.prompt, self.ids, self.words, self.stops = index, prompt, ids, words, stops
        self.text, self.finish, self._held = "", "", ""
        self.tokens, self.logprobs = list[int](), list[float]()

    def take(self, piece: Piece) -> str:
        """Go on with a piece; returns the words that are certain with it, which no stop can begin in any more."""
        self.tokens += piece.tokens
        self.logprobs += piece.logprobs
        text = self._held + self.words.add(piece.tokens[:-1] if piece.finish == "stop" else piece.tokens)
        if piece.finish:
            text += self.words.end()
        self.finish = piece.finish
        found = [at for stop in self.stops if (at := text.find(stop)) >= 0]
        if found:
            text, self.finish = text[: min(found)], "stop"
        held = 0 if self.finish else max((_begun(text, stop) for stop in self.stops), default=0)
        text, self._held = text[: len(text) - held], text[len(text) - held :]
        self.text += text
        return text

    def trajectory(self, policy: str) -> Trajectory:
        """The answer with its tokens; what a stop has cut off is among them still."""
        arrays = {"observations": np.array(self.ids), "actions": np.array(self.tokens), "logprobs": np.array(self.logprobs, np.float32)}
        return Trajectory(Task("api", "", self.prompt), policy, self.text, self.finish == "stop", **arrays)


def _begun(text: str, stop: str) -> int:
    """How many characters at the end of a text may be the beginning of `stop`."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:n])), 0)


class Answered:
    """Writes what is answered to a request, whole or in chunks; `tokens` write the tokens that log-probabilities are of."""

    def __init__(self, request: ChatRequest | TextRequest, tokens: Tokens, prompt_tokens: int) -> None:
        self.request, self.tokens, self.prompt_tokens = request, tokens, prompt_tokens
        self.chat = isinstance(request, ChatRequest)
        self.id = f"{'chatcmpl' if self.chat else 'cmpl'}-{secrets.token_hex(12)}"
        self.head = {"id": self.id, "created": int(time.time()), "model": request.model, "system_fingerprint": None}
        self.usage_wanted = request.stream_options is not None and request.stream_options.include_usage

    def name(self, answer: Answer) -> str:
        """What an answer is called where it is recorded."""
        return f"{self.id}/{answer.index}"

    @property
    def tools(self) -> list[dict[str, Any]]:
        """The functions that the answers may call."""
        return self.request.tools if isinstance(self.request, ChatRequest) else []

    @property
    def logprobs_wanted(self) -> bool:
        """Whether log-probabilities go with the tokens."""
        return self.request.logprobs if isinstance(self.request, ChatRequest) else self.request.logprobs is not None

    def whole(self, answers: Sequence[Answer], drawn: Sequence[Answer]) -> dict[str, Any]:
        """What is answered to a request that does not stream; `drawn` are all that were drawn for it."""
        choices = [
            self._choice(a.index, {"message": {"role": "assistant", "content": a.text}}, a.text, a.tokens, a.logprobs, a.finish)
            for a in answers
        ]
        kind = "chat.completion" if self.chat else "text_completion"
        return {**self.head, "object": kind, "choices": choices, "usage": self._usage(drawn)}

    def opening(self, answers: Sequence[Answer]) -> list[dict[str, Any]]:
        """The first chunk of each answer to a conversation."""
        if not self.chat:
            return []
        return [self._chunk([self._choice(a.index, {"delta": {"role": "assistant", "content": ""}}, "", [], [], "")]) for a in answers]

    def chunk(self, answer: Answer, piece: Piece, words: str) -> dict[str, Any]:
        """The chunk that says a piece and the words that are new with it."""
        delta = {"delta": {"content": words}}
        return self._chunk([self._choice(answer.index, delta, words, piece.tokens, piece.logprobs, answer.finish)])

    def closing(self, drawn: Sequence[Answer]) -> dict[str, Any]:
        """The last chunk, which says what was used."""
        return self._chunk([]) | {"usage": self._usage(drawn)}

    def _chunk(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {**self.head, "object": "chat.completion.chunk" if self.chat else "text_completion", "choices": choices}

    def _choice(
        self, index: int, message: dict[str, Any], text: str, tokens: Sequence[int], logprobs: Sequence[float], finish: str
    ) -> dict[str, Any]:
        said = message if self.chat else {"text": text}
        return {"index": index, **said, "logprobs": self._logprobs(tokens, logprobs), "finish_reason": finish or None}

    def _usage(self, drawn: Sequence[Answer]) -> dict[str, int]:
        count = sum(len(a.tokens) for a in drawn)
        return {"prompt_tokens": self.prompt_tokens, "completion_tokens": count, "total_tokens": self.prompt_tokens + count}

    def _logprobs(self, tokens: Sequence[int], logprobs: Sequence[float]) -> dict[str, Any] | None:
        if not (self.logprobs_wanted and tokens):
            return None
        words = [self.tokens.tokenizer.decode([token]) for token in tokens]
        if not self.chat:
            return {"tokens": words, "token_logprobs": list(logprobs), "top_logprobs": None, "text_offset": None}
        pairs = zip(words, logprobs, strict=True)
        return {"content": [{"token": w, "logprob": p, "bytes": _bytes(w), "top_logprobs": []} for w, p in pairs]}


def _bytes(word: str) -> list[int] | None:
    """The bytes of a token; none where it holds a part of a character, of which its word does not say which."""
    return None if INCOMPLETE in word else list(word.encode())
