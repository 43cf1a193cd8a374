"""Words to tokens and back: tokenizers, chat templates and the tokens that end an answer, kept in this one module."""

import json
from collections.abc import Mapping, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from rather.core import Prompt
from rather.errors import DataError, ModelError
from rather.text.files import description, gguf_file
from rather.text.prompts.special import SpecialNames, following, pieces
from rather.text.prompts.template import Template

EXTRA = 4
"""Tokens that stand for no text: what begins and ends a text, and a space before its first word."""


class Tokens:
    """A tokenizer with its chat template.

    `chat` says whether a plain prompt is put to the model as one message of the user; by default it is, wherever the
    tokenizer has a chat template. `options` and `date` are for the template, see `Template`. `stop` are the tokens that end an answer
    that is sampled, `end` the one that ends an answer that is read: what the chat template writes there, or else the end of the text.
    """

    def __init__(
        self,
        tokenizer: Any,
        chat: bool | None = None,
        extra_stop: tuple[int, ...] = (),
        options: Mapping[str, Any] | None = None,
        date: str = "",
    ) -> None:
        self.tokenizer = tokenizer
        self.chat = bool(tokenizer.chat_template) if chat is None else chat
        if not tokenizer.chat_template and (self.chat or options):
            what = "model.chat is true" if self.chat else f"model.template gives {', '.join(options or ())}"
            raise ModelError(f"{what}, but the model's tokenizer has no chat template; unset it")
        self.template = Template(tokenizer, options or {}, date) if tokenizer.chat_template else None
        turn = None if self.template is None else self.template.end
        self.stop: frozenset[int] = frozenset({tokenizer.eos_token_id, turn, *extra_stop} - {None})
        if not self.stop:
            raise ModelError(
                "neither the model's tokenizer (eos_token) nor config.json (eos_token_id) names an end-of-text token; set one, or answers "
                "could not end"
            )
        self.eos: int = min({tokenizer.eos_token_id} - {None} or self.stop)
        self.end: int = turn if self.chat and turn is not None else self.eos
        self.generation: dict[str, Any] = {}
        """How the model's generation_config.json would have answers drawn, where it has one."""
        self.truncate = False
        """Whether a prompt that does not fit loses its beginning."""
        self.special = frozenset(tokenizer.all_special_ids)
        ends = list(filter(None, tokenizer.convert_ids_to_tokens(sorted(self.stop))))  # files may name tokens that it has not
        self.names = SpecialNames([*ends, *(self.template.marks if self.template else ())], ends)
        self._text = lru_cache(maxsize=4096)(self._render)
        self._prompt = lru_cache(maxsize=4096)(self._read_prompt)

    @classmethod
    def load(cls, path: Path, chat: bool | None = None, options: Mapping[str, Any] | None = None, date: str = "") -> "Tokens":
        """The tokenizer of a model folder or GGUF file.

        Raises:
            ModelError: there is none, or it cannot be read.
        """
        from huggingface_hub.errors import StrictDataclassError
        from transformers import AutoTokenizer

        generation, config = description.end_tokens(path)
        try:
            tokenizer: Any = gguf_file.tokenizer(path) if path.suffix == ".gguf" else AutoTokenizer.from_pretrained(path)
        except (OSError, ValueError, TypeError, KeyError, StrictDataclassError) as e:
            raise ModelError(f"{path} has no tokenizer that can be read: {str(e).splitlines()[0]}") from None
        if not generation or tokenizer.eos_token_id is None:  # else config.json may be older than the template, as for `generate`
            generation = generation + config
        found = cls(tokenizer, chat, tuple(generation), options, date)
        found.generation = description.generation(path)
        return found

    def encode_prompt(self, prompt: Prompt, tools: Sequence[Mapping[str, Any]] = ()) -> list[int]:
        """The tokens an answer follows; a conversation goes through the chat template, with the answer's header open.

        `tools` are the functions that an answer may call, as JSON schemas.

        Raises:
            DataError: it has no tokens, or the chat template refuses it or knows of no tools.
        """
        if tools:
            if self.template is None or isinstance(prompt, str):
                raise DataError("tools are given, but only the chat template of a conversation can write them; leave them out")
            return self._ids(self.template.prompt(self.names.as_words(prompt), self.names.as_words([*tools])), prompt)
        return list(self._prompt(json.dumps(prompt))[1])

    def encode(self, prompt: Prompt, answer: str, terminated: bool = True) -> tuple[list[int], list[int]]:
        """The tokens of a prompt and of an answer to it, closed by exactly one token that ends it if the answer had come to its end.

        They are tokenized together, as they stand in the text, but no token goes across the boundary: the answer is what a model could
        have said after the prompt. The names of tokens that mark turns are words like others, in the messages of a conversation and in
        answers to one, but for the name of a token that ends answers at the end of an answer: it is taken for the token.

        Raises:
            DataError: as `encode_prompt`.
        """
        if terminated:
            answer = self.names.without_end(answer)
        text, prompt_ids = self._prompt(json.dumps(prompt))
        before, after, end = "", "", self.eos
        if self._templated(prompt):
            assert self.template is not None
            before, after, turn = self.template.prefix, self.template.ending, self.template.end
            end = self.eos if turn is None else turn
        if before.strip() and answer.lstrip().startswith(before.split()[0]):  # it has thoughts of its own
            before = ""
        if not terminated:
            after = ""
        elif after[:1].isspace() and answer.endswith(after[: len(after) - len(after.lstrip())]):
            after = after.lstrip()
        if self._templated(prompt):
            answer = self.names.as_words(answer)
        said = f"{before}{answer}{after}"
        whole, n = self._ids(text + said, prompt), len(prompt_ids)
        ids = whole[n:] if whole[:n] == list(prompt_ids) else following(self.tokenizer, list(prompt_ids), pieces(said))
        if terminated and ids[-1:] != [end]:
            ids = [*ids, end]
        return list(prompt_ids), ids

    def at_most(self, prompt: Prompt, answer: str = "") -> int:
        """A bound on the tokens of a prompt and an answer, which takes less time: no token has less than a byte of text."""
        around = 0 if self.template is None else len((self.template.prefix + self.template.ending).encode())
        return len(self._text(json.dumps(prompt)).encode()) + len(answer.encode()) + around + EXTRA

    def cut(self, ids: list[int], room: int) -> list[int]:
        """The last `room` tokens of a prompt, after the one that begins every text, if they should be cut."""
        if len(ids) <= room or not self.truncate:
            return ids
        begin = ids[:1] if ids[0] == self.tokenizer.bos_token_id and room > 1 else []
        return begin + ids[len(ids) - room + len(begin) :]

    def decode(self, ids: list[int], prompt: Prompt | None = None) -> str:
        """The words of an answer, without special tokens: those that `encode` takes, where it stands after `prompt`."""
        words = partial(self.tokenizer.decode, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        before = [] if prompt is None else self.before(prompt)
        head, whole = words(before), words([*before, *ids])
        text = whole.removeprefix(head) if whole.startswith(head) else words(ids)  # a prompt may end within a character
        return text.removeprefix(self.lead(prompt) or "")

    def before(self, prompt: Prompt) -> list[int]:
        """The last token of a prompt that is no special one, after which an answer may be written in another way; none if there is none."""
        return [i for i in self.encode_prompt(prompt)[-8:] if i not in self.special][-1:]

    def lead(self, prompt: Prompt | None) -> str | None:
        """The white space that the chat template writes before an answer; None if there is none."""
        prefix = "" if prompt is None or not self._templated(prompt) or self.template is None else self.template.prefix
        return prefix if prefix and not prefix.strip() else None

    def save(self, folder: Path) -> None:
        """Write the tokenizer's files beside the weights, and generation_config.json, which says what ends an answer."""
        self.tokenizer.save_pretrained(folder)
        ids = {"bos_token_id": self.tokenizer.bos_token_id, "eos_token_id": sorted(self.stop), "pad_token_id": self.tokenizer.pad_token_id}
        (folder / "generation_config.json").write_text(json.dumps(self.generation | ids, indent=2) + "\n")

    def _templated(self, prompt: Prompt) -> bool:
        return self.chat or not isinstance(prompt, str)

    def _render(self, key: str) -> str:
        """The text of the prompt whose JSON is `key`."""
        prompt: Prompt = json.loads(key)
        if isinstance(prompt, str) and not self.chat:
            return prompt
        if self.template is None:
            raise DataError("the prompts are conversations, but the model has no chat template; use plain prompts")
        messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
        return self.template.prompt(self.names.as_words(messages))

    def _read_prompt(self, key: str) -> tuple[str, tuple[int, ...]]:
        """The text of the prompt whose JSON is `key`, and its tokens."""
        prompt: Prompt = json.loads(key)
        text = self._text(key)
        ids = self._ids(text, prompt)
        if not ids:
            raise DataError(f"the prompt {prompt!r} has no tokens; leave it out")
        return text, tuple(ids)

    def _ids(self, text: str, prompt: Prompt) -> list[int]:
        """The tokens of a text that begins with `prompt`. A template has written its special tokens itself."""
        if self._templated(prompt):
            first, *others = pieces(text)
            ids = self.tokenizer(first, add_special_tokens=False)["input_ids"]
            return [*ids, *following(self.tokenizer, ids, others)]
        ids = self.tokenizer(text)["input_ids"]
        # A tokenizer that closes every text would have the model answer after the end.
        while len(ids) > 1 and ids[-1] in self.stop:
            ids = ids[:-1]
        return ids
