"""Text trajectories as a batch: encoded, checked against the context, padded.

Shape letters: B trajectories, T answer tokens (padded), P prompt tokens (padded).
"""

from collections.abc import Sequence

import torch
from torch import nn

from rather.core import UNUSED, Batch, Trajectory
from rather.errors import DataError
from rather.text.tokens import Tokens


def collate(tokens: Tokens, trajectories: Sequence[Trajectory], context: int, device: torch.device) -> Batch:
    """Encode and pad; attempts at one task form a group.

    An attempt keeps the exact tokens that were sampled; one that was read from a store or file is encoded from its words.

    Raises:
        DataError: a prompt with its answer is longer than the model's context of `context` tokens.
    """
    prompts, answers = [], []
    for t in trajectories:
        assert t.task.prompt is not None
        prompt = tokens.encode_prompt(t.task.prompt) if t.observations is None else t.observations.tolist()
        answer = tokens.encode_answer(t.text or "", t.terminated) if t.actions is None else t.actions.tolist()
        if len(prompt) + len(answer) > context:
            size = f"{len(prompt)} + {len(answer)} tokens"
            raise DataError(f"prompt {t.task.key!r} with its answer has {size}; the model's context is {context}")
        prompts.append(torch.tensor(prompt))
        answers.append(torch.tensor(answer, dtype=torch.long))
    longest = max(len(a) for a in answers)
    mask = torch.stack([(torch.arange(longest) < len(a)).float() for a in answers])
    kept = {name: torch.zeros(len(answers), longest) for name in ("logprobs", "rewards")}
    for name, into in kept.items():
        for row, t in zip(into, trajectories, strict=True):
            values = getattr(t, name)
            if values is not None:
                row[: len(values)] = torch.as_tensor(values, dtype=torch.float32)
    keys: dict[tuple[str, str], int] = {}
    groups = [keys.setdefault((t.task.source, t.task.key), len(keys)) for t in trajectories]
    pad = nn.utils.rnn.pad_sequence
    return Batch(
        observations=pad(prompts, batch_first=True, padding_value=UNUSED).to(device),
        actions=pad(answers, batch_first=True).to(device),
        mask=mask.to(device),
        logprobs=kept["logprobs"].to(device),
        rewards=kept["rewards"].to(device),
        terminated=torch.tensor([t.terminated for t in trajectories], device=device),
        groups=torch.tensor(groups, device=device),
    )
