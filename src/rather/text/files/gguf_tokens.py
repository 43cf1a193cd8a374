"""A tokenizer as the metadata of a GGUF file: byte-level BPE ("gpt2"), with the rule by which llama.cpp cuts texts into words."""

import json
from collections.abc import Iterator
from typing import Any

from rather.errors import ModelError
from rather.text.tokens import Tokens

WORD = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
RULES = {
    (("ByteLevel", True),): "gpt-2",
    (("Digits", True), ("ByteLevel", True)): "smollm",
    (("Split", WORD + r"\p{N}{1,3}" + REST), ("ByteLevel", False)): "llama-bpe",
    (("Split", WORD + r"\p{N}" + REST), ("ByteLevel", False)): "qwen2",
}
"""llama.cpp's names of the rules, by the steps that `tokenizers` takes."""
ENDS = ("eos", "eot", "eom")  # end of sequence, of turn, of message: llama.cpp stops at each
NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5
REMEDY = "rather writes byte-level BPE as that of GPT-2, SmolLM, Llama 3 and Qwen"


def metadata(tokens: Tokens, size: int) -> dict[str, Any]:
    """The metadata of a tokenizer for a model with `size` rows of embeddings, by key.

    Raises:
        ModelError: the tokenizer is of another kind, or does what GGUF has no word for; the message names it.
    """
    tokenizer = tokens.tokenizer
    described = json.loads(tokenizer.backend_tokenizer.to_str())
    model = described["model"]
    if model["type"] != "BPE" or model.get("byte_fallback"):
        kind = f"{model['type']} with byte_fallback" if model.get("byte_fallback") else model["type"]
        raise ModelError(f"a tokenizer of the kind {kind} cannot be written as GGUF; {REMEDY}")
    rule = _rule(described)
    if model.get("ignore_merges") and rule != "llama-bpe":
        raise ModelError(f"a tokenizer that ignores merges and cuts words as {rule!r} cannot be written; {REMEDY}")
    words, kinds = _words(described, size)
    ids = tokenizer("a")["input_ids"]
    found: dict[str, Any] = {
        "model": "gpt2", "pre": rule, "tokens": words, "token_type": kinds,
        "merges": [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]],
        "add_bos_token": tokenizer.bos_token_id is not None and ids[0] == tokenizer.bos_token_id,
    }  # fmt: skip
    ends = sorted(tokens.stop, key=lambda i: (i != tokens.eos, i != tokens.end, i))
    if len(ends) > len(ENDS):
        raise ModelError(f"answers end with {len(ends)} tokens, {', '.join(words[i] for i in ends)}; GGUF has a place for {len(ENDS)}")
    special = {"bos": tokenizer.bos_token_id, "unknown": tokenizer.unk_token_id, "padding": tokenizer.pad_token_id}
    special |= dict(zip(ENDS, ends, strict=False))
    found |= {f"{name}_token_id": i for name, i in special.items() if i is not None}
    return {f"tokenizer.ggml.{key}": value for key, value in found.items()} | (
        {"tokenizer.chat_template": tokenizer.get_chat_template()} if tokens.template else {}
    )


def _words(described: dict[str, Any], size: int) -> tuple[list[str], list[int]]:
    """Every token's name and type; rows of the embedding without a token get a name that no text has."""
    names = {i: (word, NORMAL) for word, i in described["model"]["vocab"].items()}
    for token in described["added_tokens"]:
        for flag in ("lstrip", "rstrip", "single_word"):
            if token[flag]:
                raise ModelError(f"a tokenizer whose token {token['content']!r} has {flag} cannot be written; {REMEDY}")
        names[token["id"]] = token["content"], CONTROL if token["special"] else USER_DEFINED
    if max(names) >= size:
        raise ModelError(f"the tokenizer has a token number {max(names)}, but the model's embedding {size} rows")
    every = [names.get(i, (f"[PAD{i}]", UNUSED)) for i in range(size)]
    return [word for word, _ in every], [kind for _, kind in every]


def _rule(described: dict[str, Any]) -> str:
    normalizer = (described.get("normalizer") or {}).get("type")
    if normalizer not in (None, "NFC"):
        raise ModelError(f"a tokenizer that normalizes texts by {normalizer} cannot be written; {REMEDY}")
    steps = tuple(_steps(described.get("pre_tokenizer") or {"type": "no rule"}))
    if steps not in RULES:
        by = " and ".join(str(step) for step in steps)
        raise ModelError(f"a tokenizer that cuts texts into words by {by} cannot be written as GGUF; {REMEDY}")
    return RULES[steps]


def _steps(pre: dict[str, Any]) -> Iterator[tuple[Any, ...]]:
    match pre:
        case {"type": "Sequence", "pretokenizers": parts}:
            for part in parts:
                yield from _steps(part)
        case {"type": "ByteLevel", "add_prefix_space": False, "use_regex": regex}:
            yield "ByteLevel", regex
        case {"type": "Digits", "individual_digits": individual}:
            yield "Digits", individual
        case {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}:
            yield "Split", pattern
        case _:
            yield (pre["type"], json.dumps({key: value for key, value in pre.items() if key != "type"})[:80])
