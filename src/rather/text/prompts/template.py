"""Chat templates: conversations as text, and what stands around an answer in them."""

import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any

from jinja2 import TemplateError, TemplateSyntaxError, meta
from jinja2.sandbox import ImmutableSandboxedEnvironment

from rather.errors import ConfigError, DataError, ModelError

OWN = frozenset({"messages", "tools", "documents", "add_generation_prompt", "strftime_now", "raise_exception"})
"""Names in a template that are no options: what it is always given."""

QUESTION, ANSWER = "Q4u7", "A9x2"
"""Words of a conversation that is rendered to see what stands around an answer; no template writes them itself."""


class Template:
    """The chat template of a tokenizer, with `options` such as {"enable_thinking": False}.

    A template that writes the date is given `date` (ISO 8601), so that a conversation is the same text on every day.
    `prefix` is what it writes between the header of an answer and the answer, such as an empty block of thoughts; `ending` is what it
    writes after an answer, up to the first token of its own, and `end` that token: None if there is none; `rest` is what it writes after
    that. `marks` are the names of the
    special tokens that it writes around messages.

    Raises:
        ModelError: the template cannot be read, or never uses one of the options.
        ConfigError: `date` is no day.
    """

    def __init__(self, tokenizer: Any, options: Mapping[str, Any], date: str = "") -> None:
        self.tokenizer, self.options = tokenizer, dict(options)
        try:
            self.date = datetime.fromisoformat(date) if date else datetime.now()
        except ValueError:
            raise ConfigError(f"date is {date!r}; write it as 2026-11-29, or leave it empty for today") from None
        self._check(tokenizer.get_chat_template())
        self.prefix, self.ending, self.end, self.rest = self._around()
        self.marks = self._marks()

    def render(self, messages: Sequence[Mapping[str, Any]], tools: Any = None, answer: str | None = None) -> str:
        """The conversation as text, with the header of an answer open, or with `answer` in its place.

        Raises:
            DataError: the template refuses the conversation.
        """
        given = [*messages] if answer is None else [*messages, {"role": "assistant", "content": answer}]
        try:
            return self.tokenizer.apply_chat_template(
                given,
                tools=tools,
                chat_template=self._dated(self.tokenizer.get_chat_template(tools=tools)),
                add_generation_prompt=answer is None,
                tokenize=False,
                **self.options,
            )
        except (TemplateError, TypeError, ValueError) as e:
            raise DataError(f"the model's chat template refuses {_roles(messages)} ({_line(e)}); {_remedy(messages)}") from None

    def prompt(self, messages: Sequence[Mapping[str, Any]], tools: Any = None) -> str:
        """The conversation as text, with the header of an answer open.

        Raises:
            DataError: the template refuses the conversation, or does not write the tools, or the content or a field of one of its messages.
        """
        text = self.render(messages, tools)
        if tools and self._writes_alike(messages, None, text):
            raise DataError("the model's chat template does not write tools; leave them out")
        for i, message in enumerate(messages):
            for what, less in _without_parts(message, text):
                if self._writes_alike([*messages[:i], less, *messages[i + 1 :]], tools, text):
                    where = f"message {i + 1} (role {message['role']!r})"
                    raise DataError(f"the model's chat template does not write {what} of {where}; take it out of the prompts")
        return text

    def _writes_alike(self, messages: Sequence[Mapping[str, Any]], tools: Any, text: str) -> bool:
        try:
            return self.render(messages, tools) == text
        except DataError:  # the template needs what has been taken out
            return False

    def _dated(self, template: str) -> str:
        """The template with a `strftime_now` of its own, which stays on one day."""
        if "strftime_now" not in template:
            return template
        directives = [*"aAbBdeHIjmMpSuUwWyYcxXGV", "-d", "-m", "-H", "-I", "-M", "-S", "-j", "%"]
        written = ", ".join(f"'%{d}': '{self.date.strftime('%' + d)}'" for d in directives)
        steps = "{%- set said = namespace(words=format) -%}{%- for name, value in {" + written + "}.items() -%}"
        steps += "{%- set said.words = said.words.replace(name, value) -%}{%- endfor -%}{{- said.words -}}"
        return "{%- macro strftime_now(format) -%}" + steps + "{%- endmacro -%}" + template

    def _check(self, template: str) -> None:
        environment = ImmutableSandboxedEnvironment(extensions=["jinja2.ext.loopcontrols"])
        plain = re.sub(r"\{%-?\s*(end)?generation\s*-?%\}", "", template)  # which only transformers knows
        try:
            used = meta.find_undeclared_variables(environment.parse(plain)) - OWN
        except TemplateSyntaxError as e:
            raise ModelError(f"the model's chat template cannot be read: {_line(e)}") from None
        for name in self.options:
            if name not in used:
                others = ", ".join(sorted(used - {*self.tokenizer.special_tokens_map, "namespace", "dict", "range"})) or "none"
                raise ModelError(f"model.template gives {name}, which the model's chat template never uses; its options are: {others}")

    def _marks(self) -> list[str]:
        question, system = {"role": "user", "content": QUESTION}, {"role": "system", "content": QUESTION}
        written = ""
        for messages in ([question], [system, question]):
            try:
                written += self.render(messages) + self.render(messages, answer=ANSWER)
            except DataError:  # a template without that role
                continue
        special = [str(token) for token in self.tokenizer.added_tokens_decoder.values() if token.special]
        return [name for name in special if name in written and name not in self.prefix]

    def _around(self) -> tuple[str, str, int | None, str]:
        question = [{"role": "user", "content": QUESTION}]
        try:
            header, whole = self.render(question), self.render(question, answer=ANSWER)
        except DataError:  # a template for other conversations than this one
            return "", "", None, ""
        before, found, after = whole.rpartition(ANSWER)
        if not found:
            return "", "", None, ""
        prefix = before.removeprefix(header) if before.startswith(header) else ""
        own = {str(token): number for number, token in self.tokenizer.added_tokens_decoder.items()}
        places = [(after.find(token), -len(token), token) for token in own if token in after]
        if not places:
            return prefix, "", None, after
        place, _, token = min(places)
        end = place + len(token)
        return prefix, after[:end], own[token], after[end:]


def _without_parts(message: Mapping[str, Any], text: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """The message without each of its parts, with the part's name; content that stands in `text` is no question."""
    if (message.get("content") or "").strip() not in text:
        yield "the content", {**message, "content": ""}
    for name, value in message.items():
        if name in ("role", "content") or value == "":
            continue
        yield f"the field {name!r}", {key: x for key, x in message.items() if key != name}
        if isinstance(value, list) and len(value) > 1:
            for i in range(len(value)):
                yield f"item {i + 1} of the field {name!r}", {**message, name: value[:i] + value[i + 1 :]}


def _roles(messages: Sequence[Mapping[str, Any]]) -> str:
    return f"the conversation of {', '.join(str(m.get('role')) for m in messages)}"


def _remedy(messages: Sequence[Mapping[str, Any]]) -> str:
    if any(m.get("role") in ("system", "developer") for m in messages):
        return "put the words of the system message into the first message of the user"
    return "let the messages be such as the template writes"


def _line(e: Exception) -> str:
    return (str(e).strip() or type(e).__name__).splitlines()[0]
