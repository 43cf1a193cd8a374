"""Tokenizers of the usual kinds, trained on a few sentences, and chat templates as they are in use."""

from functools import cache
from typing import Any

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

SENTENCES = [
    "Hello there, what would you like to know about tea? Tea is made from leaves and hot water.",
    "A list of three things:\n- apples\n- pears\n\nThe answer is 42, and that is all. Yes, I would.",
    "What is the capital of France? Paris. Name a fruit, please: an apple or a pear.\nuser assistant model system",
]
MARKS = ["<eos>", "<bos>", "<start_of_turn>", "<end_of_turn>", "<|im_start|>", "<|im_end|>", "<|user|>", "<|assistant|>", "<|end|>"]

TEMPLATES = {
    "gemma": "{{ bos_token }}{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for m in messages %}{{ '<start_of_turn>' + ('model' if m.role == 'assistant' else m.role) + '\n' + m.content | trim + "
    "'<end_of_turn>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}",
    "chatml": "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
    "llama2": "{% for m in messages %}{% if m.role == 'user' %}{{ bos_token + '[INST] ' + m.content + ' [/INST]' }}"
    "{% else %}{{ ' ' + m.content + ' ' + eos_token }}{% endif %}{% endfor %}",
    "zephyr": "{% for m in messages %}{{ '<|' + m.role + '|>\n' + m.content + eos_token + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}",
    "phi3": "{% for m in messages %}{{ '<|' + m.role + '|>\n' + m.content + '<|end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}",
    "thinking": "{% for m in messages %}{% if m.role == 'assistant' %}{{ '<|im_start|>assistant\n' }}"
    "{% if '</think>' not in m.content %}{{ '<think>\n\n</think>\n\n' }}{% endif %}{{ m.content + '<|im_end|>\n' }}"
    "{% else %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
    "{% if enable_thinking is defined and enable_thinking is false %}{{ '<think>\n\n</think>\n\n' }}{% endif %}{% endif %}",
    # As Qwen's: reasoning of the assistant is written after the last message of the user alone, tool calls only for the assistant.
    "tools": "{% if tools %}{{ '<|im_start|>system\n<tools>' }}{% for tool in tools %}{{ '\n' + tool | tojson }}{% endfor %}"
    "{{ '\n</tools><|im_end|>\n' }}{% endif %}{% set ns = namespace(last=-1) %}"
    "{% for m in messages %}{% if m.role == 'user' %}{% set ns.last = loop.index0 %}{% endif %}{% endfor %}{% for m in messages %}"
    "{% if m.role == 'tool' %}{{ '<|im_start|>user\n<tool_response>\n' + m.content + '\n</tool_response><|im_end|>\n' }}"
    "{% else %}{{ '<|im_start|>' + m.role + '\n' }}{% if m.role == 'assistant' and loop.index0 > ns.last and m.reasoning_content %}"
    "{{ '<think>\n' + m.reasoning_content + '\n</think>\n\n' }}{% endif %}{{ m.content }}{% if m.role == 'assistant' and m.tool_calls %}"
    "{% for call in m.tool_calls %}{% if call.function %}{% set call = call.function %}{% endif %}"
    "{{ '\n<tool_call>\n' + {'name': call.name, 'arguments': call.arguments} | tojson + '\n</tool_call>' }}{% endfor %}{% endif %}"
    "{{ '<|im_end|>\n' }}{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
    "words": "{% for m in messages %}{{ m.role + ': ' + m.content + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant:' }}{% endif %}",
}
ENDS = {
    "gemma": "<end_of_turn>", "chatml": "<|im_end|>", "llama2": "<eos>", "zephyr": "<eos>", "phi3": "<|end|>", "thinking": "<|im_end|>",
    "tools": "<|im_end|>", "words": "<eos>",
}  # fmt: skip
KINDS = ("sentencepiece", "bytes")


@cache
def tokenizer(kind: str, template: str = "", eos: str = "<eos>") -> Any:
    """A tokenizer of this kind with a template by name: as SentencePiece makes them, with a space before the first word, or of bytes."""
    if kind == "sentencepiece":
        raw = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
        raw.normalizer = normalizers.Sequence([])
        raw.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="first", split=True)
        raw.decoder = decoders.Sequence([
            decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0),
        ])  # fmt: skip
        special = ["<unk>", *MARKS, *(f"<0x{i:02X}>" for i in range(256))]
        trainer = trainers.BpeTrainer(vocab_size=700, special_tokens=special, initial_alphabet=["\n", "▁"], show_progress=False)
        raw.train_from_iterator(SENTENCES, trainer)
        # Bytes are no marks: text that looks like one stays text.
        kept = {s for s in special if not s.startswith("<0x")}
        raw = _unmarked(raw, kept)
    else:
        raw = Tokenizer(models.BPE())
        raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        raw.decoder = decoders.ByteLevel()
        raw.post_processor = processors.ByteLevel(trim_offsets=True)
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        raw.train_from_iterator(
            SENTENCES, trainers.BpeTrainer(vocab_size=700, special_tokens=MARKS, initial_alphabet=alphabet, show_progress=False)
        )
    made = PreTrainedTokenizerFast(
        tokenizer_object=raw,
        eos_token=eos or None,
        bos_token="<bos>",
        additional_special_tokens=[m for m in MARKS if m not in (eos, "<bos>")],
    )
    made.chat_template = TEMPLATES.get(template)
    return made


def _unmarked(raw: Tokenizer, kept: set[str]) -> Tokenizer:
    """The tokenizer with no special tokens but `kept`."""
    import json

    state = json.loads(raw.to_str())
    state["added_tokens"] = [t for t in state["added_tokens"] if t["content"] in kept]
    return Tokenizer.from_str(json.dumps(state))
