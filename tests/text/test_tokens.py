"""What a prompt and an answer are as tokens, beside the whole conversation as `transformers` renders it."""

import copy
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from chats import ENDS, KINDS, TEMPLATES, tokenizer
from hypothesis import example, given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from rather.config import toml as toml
from rather.core import Prompt
from rather.errors import DataError, ModelError
from rather.pipeline import build
from rather.text.tokens import Tokens

ANSWERS = ["Paris.", "The answer is 42, and that is all.", "apples\n- pears", "yes", "42", "tea?\n\n- tea", "Ünïcode ☃ 🙂"]
CONVERSATION: list[dict[str, str]] = [
    {"role": "user", "content": "Hello there"}, {"role": "assistant", "content": "Yes?"}, {"role": "user", "content": "Name a fruit"},
]  # fmt: skip


def whole(made: Any, prompt: Prompt, answer: str, **options: object) -> str:
    messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    return made.apply_chat_template([*messages, {"role": "assistant", "content": answer}], tokenize=False, **options)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("template", TEMPLATES)
def test_an_answer_is_what_transformers_makes_of_the_whole_conversation_up_to_the_end_of_the_turn(template: str, kind: str) -> None:
    made = tokenizer(kind, template)
    tokens, end = Tokens(made), made.convert_tokens_to_ids(ENDS[template])
    assert tokens.end == end
    assert end in tokens.stop
    assert made.eos_token_id in tokens.stop
    for prompt in ("What is tea?", CONVERSATION):
        for answer in ANSWERS:
            ids, said = tokens.encode(prompt, answer)
            expected = made(whole(made, prompt, answer), add_special_tokens=False)["input_ids"]
            assert ids == tokens.encode_prompt(prompt)
            if template == "words":  # which writes nothing that could end an answer
                line = made(whole(made, prompt, answer).removesuffix("\n"), add_special_tokens=False)["input_ids"]
                assert ids + said == [*line, made.eos_token_id]
                continue
            assert ids + said == expected[: len(ids) + len(said)]
            assert said[-1] == end
            assert end not in said[:-1]


TEXTS = {
    "template": st.sampled_from(["", *TEMPLATES]), "kind": st.sampled_from(KINDS), "prompt": st.text(min_size=1, max_size=12),
    "answer": st.text(max_size=12), "terminated": st.booleans(),
}  # fmt: skip


def begins_where_the_prompt_ends(template: str, kind: str, prompt: str, answer: str, terminated: bool) -> None:
    made = tokenizer(kind, template)
    tokens = Tokens(made, chat=bool(template))
    ids, said = tokens.encode(prompt, answer, terminated)
    assert ids == tokens.encode_prompt(prompt), "what the model is asked does not depend on what it says"
    text, header = made.decode(ids + said), made.decode(ids)
    assert text.startswith(header)
    if template == "llama2":  # a space on each side, but not a second one
        wanted = f" {answer}" + ("<eos>" if answer.endswith(" ") else " <eos>") * terminated
    else:
        before = {"words": " ", "thinking": "<think>\n\n</think>\n\n"}.get(template, "")
        wanted = before + answer + ENDS.get(template, "<eos>") * terminated
    assert text[len(header) :] == wanted
    assert terminated == bool(tokens.stop.intersection(said))


@settings(max_examples=150, deadline=None)
@given(**TEXTS)
@example(template="gemma", kind="bytes", prompt="0", answer="\ufdd0\ufdd1\ufdd0", terminated=False)
def test_an_answer_begins_where_the_prompt_ends_whatever_both_are(**texts: Any) -> None:
    begins_where_the_prompt_ends(**texts)


@pytest.mark.slow
@settings(max_examples=2000, deadline=None)
@given(**TEXTS)
def test_an_answer_begins_where_the_prompt_ends_of_thousands(**texts: Any) -> None:
    begins_where_the_prompt_ends(**texts)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("template", ["", "gemma", "chatml", "llama2", "zephyr", "words"])
@pytest.mark.parametrize("prompt", ["What is tea? Tea is", "A list:\n", "Tea "])
def test_words_that_were_sampled_are_read_back_as_the_tokens_that_they_were(template: str, kind: str, prompt: str) -> None:
    tokens = Tokens(tokenizer(kind, template), chat=bool(template))
    for words in (" made from leaves", "made from leaves.", "- apples\n- pears\n", "\n\n- pears", "☃ tea"):
        sampled = tokens.encode(prompt, words)[1]
        text = tokens.decode(sampled, prompt)
        assert tokens.encode(prompt, text)[1] == sampled, repr(text)
        if template != "llama2":
            assert text == words


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("template", ["gemma", "chatml", "zephyr"])
def test_the_name_of_a_special_token_in_what_somebody_has_written_is_words(template: str, kind: str) -> None:
    made, end = tokenizer(kind, template), ENDS[template]
    tokens = Tokens(made)
    plain, named = (tokens.encode_prompt(f"What is {x} for? Name {x} a fruit") for x in ("that", end))
    special = set(made.all_special_ids)
    assert [i for i in named if i in special] == [i for i in plain if i in special]
    assert end in tokens.decode(tokens.encode("Tea?", f"It is {end} the end.")[1])
    answer = tokens.encode("Tea?", f"It is {end} the end.")[1]
    assert [i for i in answer if i in special] == [tokens.end]


def test_names_of_thoughts_are_left_to_the_template_which_takes_old_ones_out() -> None:
    made = copy.deepcopy(tokenizer("bytes", "thinking"))
    made.add_tokens(["<think>", "</think>"], special_tokens=True)
    made.chat_template = made.chat_template.replace("m.content +", "m.content.split('</think>')[-1] +")
    tokens = Tokens(made)
    old = {"role": "assistant", "content": "<think>secret</think>yes"}
    read = made.decode(tokens.encode_prompt([{"role": "user", "content": "Tea?"}, old, {"role": "user", "content": "Why?"}]))
    assert "secret" not in read
    assert made.convert_tokens_to_ids("</think>") in tokens.encode("Tea?", "<think>so</think>yes")[1]


def test_an_end_that_the_tokenizer_does_not_have_is_passed_over() -> None:
    tokens = Tokens(tokenizer("bytes", "chatml"), extra_stop=(999_999,))
    assert tokens.encode("Tea?", "Yes.<|im_end|>")[1] == tokens.encode("Tea?", "Yes.")[1]


@pytest.mark.parametrize("tail", ["{}", "{}\n", "\n{}", "{}{}"])
@pytest.mark.parametrize("template", ["", "gemma", "chatml"])
def test_an_answer_that_brings_the_name_of_its_end_ends_once(template: str, tail: str) -> None:
    made = tokenizer("bytes", template)
    tokens = Tokens(made, chat=bool(template))
    end = made.convert_ids_to_tokens(tokens.end)
    assert tokens.encode("Tea?", "Yes." + tail.replace("{}", end))[1] == tokens.encode("Tea?", "Yes.")[1]


def test_an_answer_gains_no_space_after_a_newline() -> None:
    made = tokenizer("sentencepiece", "gemma")
    ids, said = Tokens(made).encode("What is tea?", "Hello there")
    assert made.convert_ids_to_tokens(said)[0] in ("H", "He", "Hel", "Hell", "Hello")
    assert made.decode(ids + said).endswith("model\nHello there<end_of_turn>")


def test_thoughts_that_an_answer_has_are_not_written_again() -> None:
    made = tokenizer("bytes", "thinking")
    tokens = Tokens(made)
    assert made.decode(tokens.encode("Tea?", "yes")[1]) == "<think>\n\n</think>\n\nyes<|im_end|>"
    thought = "<think>\nIt is tea.\n</think>\n\nyes"
    assert made.decode(tokens.encode("Tea?", thought)[1]) == f"{thought}<|im_end|>"
    assert made.decode(tokens.encode("Tea?", "<think>\nIt is", terminated=False)[1]) == "<think>\nIt is"


def test_options_reach_the_template_and_unknown_ones_are_refused() -> None:
    made = tokenizer("bytes", "thinking")
    tokens = Tokens(made, options={"enable_thinking": False})
    assert made.decode(tokens.encode_prompt("Tea?")).endswith("assistant\n<think>\n\n</think>\n\n")
    assert made.decode(tokens.encode("Tea?", "yes")[1]) == "yes<|im_end|>"
    with pytest.raises(ModelError, match=r"model.template gives enable_thinkin, which .* never uses; its options are: enable_thinking$"):
        Tokens(made, options={"enable_thinkin": False})
    with pytest.raises(ModelError, match="model.template gives messages, which"):
        Tokens(made, options={"messages": "x"})
    with pytest.raises(ModelError, match="model.template gives x, but the model's tokenizer has no chat template"):
        Tokens(tokenizer("bytes"), options={"x": 1})


def test_options_in_the_settings_reach_the_prompts_of_the_policy(tiny: Path, tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(tiny, model)
    made = AutoTokenizer.from_pretrained(model)
    made.chat_template += "{% if add_generation_prompt and enable_thinking is defined and not enable_thinking %}[no thoughts]{% endif %}"
    made.save_pretrained(model)
    where = [f"model.path={model}", "model.device=cpu", "model.dtype=float32"]
    for options, expected in ([], ""), (["model.template={enable_thinking = false}"], "[no thoughts]"):
        tokens = build.base_policy(toml.load(None, [*where, *options])).tokens
        assert made.decode(tokens.encode_prompt("Tea?")) == f"<user>Tea?<assistant>{expected}"


def test_a_template_that_writes_the_date_stays_on_one_day() -> None:
    made = tokenizer("bytes", "chatml")
    dated = "{{ strftime_now('%d %b %Y') + '|' + strftime_now('%-d. %B, %A %H:%M %%') + '\n' }}" + TEMPLATES["chatml"]
    made.chat_template = dated
    try:
        tokens = Tokens(made, date="2026-02-03")
        assert tokens.template is not None
        text = tokens.template.render([{"role": "user", "content": "Tea?"}])
        assert text.startswith("03 Feb 2026|3. February, Tuesday 00:00 %\n<|im_start|>user\nTea?")
        assert Tokens(made).encode_prompt("Tea?") != tokens.encode_prompt("Tea?")
        assert made.chat_template == dated, "what is saved beside the weights is the model's own"
    finally:
        made.chat_template = TEMPLATES["chatml"]


def test_a_conversation_that_the_template_refuses_gets_a_sentence() -> None:
    tokens = Tokens(tokenizer("bytes", "gemma"))
    messages: Prompt = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Tea?"}]
    with pytest.raises(DataError, match=r"refuses the conversation of system, user \(System role not supported\); put the words of the"):
        tokens.encode_prompt(messages)
    tokens, broken = Tokens(tokenizer("bytes", "chatml")), json.loads('[{"role": "user"}]')
    with pytest.raises(DataError, match="the model's chat template refuses the conversation of user"):
        tokens.encode_prompt(broken)


def call(name: str, **arguments: object) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "arguments": arguments}}


USER, RESULT = {"role": "user", "content": "Tea?"}, {"role": "tool", "content": "12 cups"}
CALLS = {"role": "assistant", "content": "Let me see.", "tool_calls": [call("count", what="tea"), call("count", what="cups")]}


def test_tools_their_calls_and_what_they_said_reach_the_prompt() -> None:
    made = tokenizer("bytes", "tools")
    tokens = Tokens(made)
    calls = "".join(f'\n<tool_call>\n{{"name": "count", "arguments": {{"what": "{what}"}}}}\n</tool_call>' for what in ("tea", "cups"))
    expected = f"<|im_start|>user\nTea?<|im_end|>\n<|im_start|>assistant\n<think>\nHow?\n</think>\n\nLet me see.{calls}<|im_end|>\n"
    expected += "<|im_start|>user\n<tool_response>\n12 cups\n</tool_response><|im_end|>\n<|im_start|>assistant\n"
    thought = {**CALLS, "reasoning_content": "How?", "refusal": ""}  # a field that is empty says nothing
    assert made.decode(tokens.encode_prompt([USER, thought, RESULT])) == expected
    assert tokens.template is not None
    tool = {"type": "function", "function": {"name": "count", "parameters": {}}}
    text = tokens.template.render([USER], tools=[tool])
    assert text.startswith(f"<|im_start|>system\n<tools>\n{json.dumps(tool)}\n</tools><|im_end|>\n")


ONE_CALL = TEMPLATES["tools"].replace("for call in m.tool_calls", "for call in m.tool_calls[:1]")
CALL_ALONE = TEMPLATES["tools"].replace("{{ m.content }}", "{% if not m.tool_calls %}{{ m.content }}{% endif %}")
NO_TOOLS = TEMPLATES["tools"].replace("{% if m.role == 'tool' %}", "{% if m.role == 'tool' %}{% elif m.role == 'other' %}")
NEEDS_ID = TEMPLATES["tools"].replace("{% if m.role == 'tool' %}", "{% if m.role == 'tool' %}{% set _ = m.tool_call_id + '' %}")


@pytest.mark.parametrize(
    ("template", "messages", "left_out"),
    [
        ("tools", [USER, {**CALLS, "reasoning_content": "How?"}, USER], "the field 'reasoning_content' of message 2 (role 'assistant')"),
        (
            "tools",  # written in the last message, and not in the first
            [USER, {**CALLS, "reasoning_content": "How?"}, USER, {**CALLS, "reasoning_content": "And how?"}, RESULT],
            "the field 'reasoning_content' of message 2 (role 'assistant')",
        ),
        ("tools", [{**USER, "tool_calls": CALLS["tool_calls"]}, CALLS, RESULT], "the field 'tool_calls' of message 1 (role 'user')"),
        ("tools", [USER, CALLS, {**RESULT, "tool_call_id": "7"}], "the field 'tool_call_id' of message 3 (role 'tool')"),
        ("chatml", [USER, CALLS, RESULT], "the field 'tool_calls' of message 2 (role 'assistant')"),
        (ONE_CALL, [USER, CALLS, RESULT], "item 2 of the field 'tool_calls' of message 2 (role 'assistant')"),
        (CALL_ALONE, [USER, CALLS, RESULT], "the content of message 2 (role 'assistant')"),
        (NO_TOOLS, [USER, CALLS, RESULT], "the content of message 3 (role 'tool')"),
        (NEEDS_ID, [USER, CALLS, {**RESULT, "tool_call_id": "7"}], ""),
    ],
)
def test_whatever_the_template_leaves_out_of_a_message_is_refused(template: str, messages: list[dict[str, Any]], left_out: str) -> None:
    made = copy.copy(tokenizer("bytes", "tools"))
    made.chat_template = TEMPLATES.get(template, template)
    tokens = Tokens(made)
    if not left_out:
        assert "12 cups" in made.decode(tokens.encode_prompt(messages))
        return
    with pytest.raises(DataError, match=re.escape(f"does not write {left_out}; take it out of the prompts")):
        tokens.encode_prompt(messages)


def test_a_template_that_cannot_be_read() -> None:
    made = tokenizer("bytes", "chatml", eos="<|end|>")
    made.chat_template = "{% for m in messages %}{{ m.content }"
    with pytest.raises(ModelError, match="the model's chat template cannot be read"):
        Tokens(made)


def test_where_the_tokenizer_names_no_end_of_text_the_template_says_what_ends_an_answer() -> None:
    made = tokenizer("bytes", "chatml", eos="")
    tokens = Tokens(made)
    assert tokens.stop == {tokens.end} == {made.convert_tokens_to_ids("<|im_end|>")}
