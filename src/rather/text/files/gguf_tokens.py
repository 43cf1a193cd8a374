"""A tokenizer as the metadata of a GGUF file.

Byte-level BPE ("gpt2") with the rule by which llama.cpp cuts texts into words; SentencePiece's BPE ("llama"), whose merges llama.cpp finds
by the scores of tokens.
"""

import json
from collections.abc import Iterator
from itertools import groupby
from typing import Any

from rather.errors import ModelError
from rather.text.files.gguf_file import SPACE
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
NORMAL, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 3, 4, 5, 6
BYTES = [f"<0x{i:02X}>" for i in range(256)]
NEVER = -1000.0  # the score of a token that no merge makes
REMEDY = "rather writes byte-level BPE as that of GPT-2, SmolLM, Llama 3 and Qwen, and SentencePiece's as that of Gemma"


def metadata(tokens: Tokens, size: int) -> dict[str, Any]:
    """The metadata of a tokenizer for a model with `size` rows of embeddings, by key.

    Raises:
        ModelError: the tokenizer is of another kind, or does what GGUF has no word for; the message names it.
    """
    tokenizer = tokens.tokenizer
    described = json.loads(tokenizer.backend_tokenizer.to_str())
    if described["model"]["type"] != "BPE":
        raise ModelError(f"a tokenizer of the kind {described['model']['type']} cannot be written as GGUF; {REMEDY}")
    write = _sentencepiece if described["model"].get("byte_fallback") else _byte_level
    found = write(described, size)
    words = found["tokens"]
    ids = tokenizer("a")["input_ids"]
    found["add_bos_token"] = tokenizer.bos_token_id is not None and ids[0] == tokenizer.bos_token_id
    ends = sorted(tokens.stop, key=lambda i: (i != tokens.eos, i != tokens.end, i))
    if len(ends) > len(ENDS):
        raise ModelError(f"answers end with {len(ends)} tokens, {', '.join(words[i] for i in ends)}; GGUF has a place for {len(ENDS)}")
    special = {"bos": tokenizer.bos_token_id, "unknown": tokenizer.unk_token_id, "padding": tokenizer.pad_token_id}
    special |= dict(zip(ENDS, ends, strict=False))
    found |= {f"{name}_token_id": i for name, i in special.items() if i is not None}
    return {f"tokenizer.ggml.{key}": value for key, value in found.items()} | (
        {"tokenizer.chat_template": tokenizer.get_chat_template()} if tokens.template else {}
    )


def _byte_level(described: dict[str, Any], size: int) -> dict[str, Any]:
    rule, model = _rule(described), described["model"]
    if model.get("ignore_merges") and rule != "llama-bpe":
        raise ModelError(f"a tokenizer that ignores merges and cuts words as {rule!r} cannot be written; {REMEDY}")
    words, kinds = _words(described, size)
    merges = [" ".join(pair) for pair in _merges(model)]
    return {"model": "gpt2", "pre": rule, "tokens": words, "token_type": kinds, "merges": merges}


def _sentencepiece(described: dict[str, Any], size: int) -> dict[str, Any]:
    """llama.cpp merges whichever neighbors make the token of the highest score: the one whose merges come first."""
    model, prefix = described["model"], _prefix(described)
    odd = [key for key in ("ignore_merges", "dropout", "continuing_subword_prefix", "end_of_word_suffix") if model.get(key)]
    if odd or not model["vocab"].keys() >= {*BYTES}:
        what = f"has {odd[0]}" if odd else "lacks some of the tokens <0x00> to <0xFF>"
        raise ModelError(f"a tokenizer of SentencePiece's kind that {what} cannot be written as GGUF; {REMEDY}")
    for token in described["added_tokens"]:
        spaces = {" ", SPACE} & {*token["content"]}
        if (spaces and token["content"] not in model["vocab"]) or (token["normalized"] and (prefix or spaces)):
            raise ModelError(f"a tokenizer whose token {token['content']!r} stands for text with other spaces cannot be written; {REMEDY}")
    scores = _scores(model, {token["content"] for token in described["added_tokens"]})
    words, kinds = _words(described, size)
    for i, (word, kind) in enumerate(zip(words, kinds, strict=True)):
        if word in BYTES or (kind == USER_DEFINED and SPACE in word):  # which llama.cpp would print as it stands
            kinds[i] = BYTE if word in BYTES else NORMAL
    return {
        "model": "llama", "pre": "default", "tokens": words, "token_type": kinds, "add_space_prefix": prefix,
        "scores": [scores.get(word, NEVER) for word in words],
    }  # fmt: skip


def _prefix(described: dict[str, Any]) -> bool:
    """Whether a space is put before every text between special tokens."""
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
    prepended = {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": SPACE}, replace]}
    cut = {"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": False}  # no space is left to cut at
    never = {"type": "Metaspace", "replacement": SPACE, "prepend_scheme": "never", "split": False}
    steps = described["normalizer"], described["pre_tokenizer"]
    if steps not in ((replace, None), (replace, cut), (None, never), (prepended, None)):
        by = " and ".join(json.dumps(step, ensure_ascii=False)[:120] for step in steps if step)
        raise ModelError(f"a tokenizer of SentencePiece's kind that treats spaces by {by or 'nothing'} cannot be written as GGUF; {REMEDY}")
    return steps[0] == prepended


def _scores(model: dict[str, Any], added: set[str]) -> dict[str, float]:
    """The scores of the tokens that are merged, if by them llama.cpp merges as `tokenizers` does."""
    merges = _merges(model)
    made = [token for token, _ in groupby(first + second for first, second in merges)]
    scores = {token: -float(i) for i, token in enumerate(made)}
    known = {*merges}
    vocab = model["vocab"].keys() - added
    without = (
        (word[:i], word[i:])
        for word in vocab
        for i in range(1, len(word))
        if word[:i] in vocab and word[i:] in vocab and (word[:i], word[i:]) not in known
    )
    pair = next(without, None)
    if len(scores) < len(made) or pair:
        what = f"does not merge {pair[0]!r} and {pair[1]!r}" if pair else "merges in an order that no scores of tokens give"
        raise ModelError(f"a tokenizer of SentencePiece's kind that {what} cannot be written as GGUF; {REMEDY}")
    return scores


def _merges(model: dict[str, Any]) -> list[tuple[str, str]]:
    return [tuple(pair.split(" ")) if isinstance(pair, str) else tuple(pair) for pair in model["merges"]]  # type: ignore[misc]


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
