"""Text trajectories as a batch: encoded, checked against the context, padded.

Shape letters: B trajectories, T answer tokens (padded), P prompt tokens (padded).
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from rather.core import UNUSED, Batch, Trajectory
from rather.errors import DataError
from rather.text.packing import sent
from rather.text.tokens import Tokens


def collate(tokens: Tokens, trajectories: Sequence[Trajectory], context: int, device: torch.device, shared: bool = True) -> Batch:
    """Encode and pad; trajectories of one task form a group. `shared` says whether equal prompts are forwarded once.

    A trajectory keeps the exact tokens that were sampled; one that was read from a store or file is encoded from its words. Tokens stay on
    the host, where they are laid out for a pass; the rest goes to `device`.

    Raises:
        DataError: a prompt with its answer is longer than the model's context of `context` tokens.
    """
    prompts, answers = [], []
    for t in trajectories:
        assert t.task.prompt is not None
        if t.actions is None:
            prompt, answer = tokens.encode(t.task.prompt, t.text or "", t.terminated)
        else:
            prompt, answer = tokens.encode_prompt(t.task.prompt), t.actions
        prompt = tokens.cut(prompt, context - len(answer)) if t.observations is None else t.observations
        if len(prompt) + len(answer) > context:
            size = f"{len(prompt)} + {len(answer)} tokens"
            raise DataError(f"prompt {t.task.key!r} with its answer has {size}; the model's context is {context}")
        prompts.append(torch.from_numpy(np.array(prompt, np.int64)))
        answers.append(torch.from_numpy(np.array(answer, np.int64)))
    longest = max(len(a) for a in answers)
    mask = (torch.arange(longest) < torch.tensor([len(a) for a in answers])[:, None]).float()
    kept = {name: torch.zeros(len(answers), longest) for name in ("logprobs", "rewards")}
    for name, into in kept.items():
        for row, t in zip(into, trajectories, strict=True):
            values = getattr(t, name)
            if values is not None:
                row[: len(values)] = torch.as_tensor(values, dtype=torch.float32)
    keys: dict[tuple[str, str], int] = {}
    groups = [keys.setdefault((t.task.source, t.task.key), len(keys)) for t in trajectories]
    numbers_of: dict[Any, int] = {}
    known = [numbers_of.setdefault(p.numpy().tobytes() if shared else i, i) for i, p in enumerate(prompts)]
    pad = nn.utils.rnn.pad_sequence
    numbers = sent(torch.stack([mask, kept["logprobs"], kept["rewards"]]), device)
    facts = sent(torch.tensor([[t.terminated for t in trajectories], groups]), device)
    return Batch(
        observations=pad(prompts, batch_first=True, padding_value=UNUSED),
        actions=pad(answers, batch_first=True, padding_value=UNUSED),
        mask=numbers[0],
        logprobs=numbers[1],
        rewards=numbers[2],
        terminated=facts[0].bool(),
        groups=facts[1],
        prompts=torch.tensor([[number, len(p)] for number, p in zip(known, prompts, strict=True)]),
    )
