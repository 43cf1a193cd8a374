"""Reward models as `transformers` keeps them, AutoModelForSequenceClassification: a head that scores the last token of a text."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from rather.core import UNUSED, Batch
from rather.errors import ModelError
from rather.text.files.description import read_config
from rather.text.files.stored import Stored, folder_tensors
from rather.text.tokens import Tokens

HEAD = "score.weight"
KIND = "ForSequenceClassification"


class Head(NamedTuple):
    """What scores a text: `weight` (1, C) on the hidden state of its last token that is not number `pad`."""

    weight: Tensor
    pad: int


def is_scored(config: Mapping[str, Any]) -> bool:
    """Whether a config.json describes a model that scores whole texts."""
    return any(str(name).endswith(KIND) for name in config.get("architectures") or ())


def described(config: Mapping[str, Any], pad: int) -> dict[str, Any]:
    """The config.json of a language model as that of one which scores whole texts.

    Raises:
        ModelError: `transformers` has none of its family.
    """
    from transformers.models.auto.modeling_auto import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES as KNOWN

    family = config["model_type"]
    if family not in KNOWN:
        raise ModelError(f"transformers has no {KIND} of {family} models, so that a reward model of one cannot be merged; keep its run")
    return {**config, "architectures": [KNOWN[family]], "id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}, "pad_token_id": pad}


def language_model(config: Mapping[str, Any], tensors: Mapping[str, Stored]) -> tuple[dict[str, Any], dict[str, Stored]]:
    """A model that scores whole texts as a language model, without its head: its description and its tensors.

    Its embedding stands for the head over tokens, which it has not.
    """
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as KNOWN

    names = [KNOWN[config["model_type"]]] if config["model_type"] in KNOWN else config["architectures"]
    kept = {key: value for key, value in config.items() if key not in ("id2label", "label2id", "num_labels", "problem_type")}
    without = {name: tensor for name, tensor in tensors.items() if name not in (HEAD, "lm_head.weight")}
    return {**kept, "architectures": names, "tie_word_embeddings": True}, without


def read_head(folder: Path) -> Tensor:
    """The weights (1, C) of the head in `folder`.

    Raises:
        ModelError: it is no model that gives a text one score.
    """
    config = read_config(folder)
    if not is_scored(config):
        names = ", ".join(map(str, config.get("architectures") or ["nothing"]))
        raise ModelError(f"{folder} holds {names}, which is no reward model; rather reads ...{KIND} with one label")
    count = len(config.get("id2label") or "") or config.get("num_labels", 2)  # as transformers takes it
    if count != 1:
        raise ModelError(f"{folder} gives a text {count} scores (num_labels); a reward model gives one")
    tensors = folder_tensors(folder)
    if HEAD not in tensors or "score.bias" in tensors:
        what = "a bias in its head (score.bias)" if HEAD in tensors else f"no tensor {HEAD!r}, its head"
        raise ModelError(f"{folder} has {what}; rather reads reward models of {KIND} with a linear head without bias")
    head = tensors[HEAD].read()
    width = config.get("hidden_size", config.get("n_embd"))
    if head.shape != (1, width):
        raise ModelError(f"{HEAD} in {folder} has shape {tuple(head.shape)}, not {(1, width)}")
    return head


def with_tail(batch: Batch, tail: Sequence[int]) -> Batch:
    """The batch with the tokens of `tail` after each answer that has come to its end."""
    rows = torch.nonzero(batch.terminated.cpu())[:, 0]
    lengths = (batch.actions[rows] != UNUSED).sum(-1)
    actions = functional.pad(batch.actions, (0, len(tail)), value=UNUSED)
    for i, token in enumerate(tail):
        actions[rows, lengths + i] = token
    return replace(batch, actions=actions)


def save_tokens(tokens: Tokens, folder: Path) -> int:
    """Write the tokenizer of a model that scores whole texts; returns the number of its padding token.

    `transformers` scores the last token that is not padding: the padding token is none that ends an answer, padding is on the right, and
    the chat template writes nothing after the token that ends an answer.

    Raises:
        ModelError: the tokenizer has no token that padding could be.
    """
    tokenizer = copy.deepcopy(tokens.tokenizer)
    special = [tokenizer.pad_token_id, tokenizer.unk_token_id, *tokenizer.all_special_ids]
    pad = next((i for i in special if i is not None and i not in {*tokens.stop, tokens.end}), None)
    if pad is None:
        raise ModelError("every special token of the tokenizer ends answers, so that none can be padding; add one to it first")
    tokenizer.pad_token, tokenizer.padding_side = tokenizer.convert_ids_to_tokens(pad), "right"
    if tokens.template is not None and tokens.template.rest:
        whole = f"{{%- set conversation -%}}{tokenizer.get_chat_template()}{{%- endset -%}}"
        cut = f"conversation.removesuffix({tokens.template.rest!r})"
        tokenizer.chat_template = f"{whole}{{{{- conversation if add_generation_prompt else {cut} -}}}}"
    tokenizer.save_pretrained(folder)
    return pad
