"""Words to tokens and back: tokenizers, chat templates and the tokens that end an answer, kept in this one module."""

from pathlib import Path
from typing import Any

from rather.core import Prompt
from rather.errors import DataError, ModelError
from rather.text.files import description


class Tokens:
    """A tokenizer with its chat template.

    `chat` says whether a plain prompt is put to the model as one message of the user; by default it is, wherever the
    tokenizer has a chat template. `stop` are the tokens that end an answer.
    """

    def __init__(self, tokenizer: Any, chat: bool | None = None, extra_stop: tuple[int, ...] = ()) -> None:
        self.tokenizer = tokenizer
        self.chat = bool(tokenizer.chat_template) if chat is None else chat
        if self.chat and not tokenizer.chat_template:
            raise ModelError("model.chat is true, but the model's tokenizer has no chat template; set it to false")
        self.stop = frozenset({tokenizer.eos_token_id, *extra_stop} - {None})
        if not self.stop:
            raise ModelError(
                "neither the model's tokenizer (eos_token) nor config.json (eos_token_id) names an end-of-text token; set one, or answers "
                "could not end"
            )
        self.end = min({tokenizer.eos_token_id} - {None} or self.stop)

    @classmethod
    def load(cls, path: Path, chat: bool | None = None) -> "Tokens":
        """The tokenizer of a model folder or GGUF file.

        Raises:
            ModelError: there is none, or it cannot be read.
        """
        from huggingface_hub.errors import StrictDataclassError
        from transformers import AutoTokenizer, PreTrainedTokenizerFast

        generation, config = description.end_tokens(path)
        try:
            if path.suffix == ".gguf":  # what AutoTokenizer makes too, after reading the whole file slowly once more
                tokenizer: Any = PreTrainedTokenizerFast.from_pretrained(path.parent, gguf_file=path.name)
            else:
                tokenizer = AutoTokenizer.from_pretrained(path)
        except (OSError, ValueError, TypeError, KeyError, StrictDataclassError) as e:
            raise ModelError(f"{path} has no tokenizer that can be read: {str(e).splitlines()[0]}") from None
        if not generation or tokenizer.eos_token_id is None:  # else config.json may be older than the template, as for `generate`
            generation = generation + config
        return cls(tokenizer, chat, tuple(generation))

    def encode_prompt(self, prompt: Prompt) -> list[int]:
        """The tokens an answer follows; a conversation goes through the chat template, with the answer's header open."""
        if isinstance(prompt, str) and not self.chat:
            ids = self.tokenizer(prompt)["input_ids"]
            # A tokenizer that closes every text would have the model answer after the end.
            while len(ids) > 1 and ids[-1] in self.stop:
                ids = ids[:-1]
        else:
            messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
            if not self.tokenizer.chat_template:
                raise DataError("the prompts are conversations, but the model has no chat template; use plain prompts")
            text = self.tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
            ids = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        if not ids:
            raise DataError(f"the prompt {prompt!r} has no tokens; leave it out")
        return ids

    def encode_answer(self, text: str, terminated: bool = True) -> list[int]:
        """The tokens of an answer, closed by exactly one end-of-text token if the answer had come to its end."""
        ids = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return [*ids, self.end] if terminated else ids

    def decode(self, ids: list[int]) -> str:
        """The words of an answer, without special tokens."""
        return self.tokenizer.decode(ids, skip_special_tokens=True)

    def save(self, folder: Path) -> None:
        """Write the tokenizer's files beside the weights."""
        self.tokenizer.save_pretrained(folder)
