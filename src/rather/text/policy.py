"""Language models as policies, samplers and reward models: from trajectories to packed tokens and back.

Shape letters: B trajectories, T answer tokens (padded), P prompt tokens (padded), K ensemble members, C width.
"""

import hashlib
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from rather.core import UNUSED, Batch, Perturbation, Task, Trajectory
from rather.errors import DataError
from rather.text import engine
from rather.text.packing import Packed, pack
from rather.text.tokens import Tokens
from rather.text.transformer import TokenLogprobs, Transformer


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


def pack_batch(batch: Batch, window: int | None) -> Packed:
    """The batch laid end to end, each distinct prompt once."""
    lengths = batch.mask.sum(-1).long().tolist()
    prompts = [row[row != UNUSED] for row in batch.observations]
    return pack(prompts, [row[:n] for row, n in zip(batch.actions, lengths, strict=True)], window)


class TextPolicy:
    """A language model as a policy: the state is the text so far, an action is a token.

    With `adapter` None it is the base alone: the reference of a policy that is an adapter on the same base.
    """

    def __init__(
        self, model: Transformer, tokens: Tokens, adapter: str | None = None, temperature: float = 1.0, name: str = "policy"
    ) -> None:
        self.model, self.tokens, self.adapter = model, tokens, adapter
        self.temperature, self.name = temperature, name

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.model.embedding.weight.device

    def collate(self, trajectories: Sequence[Trajectory]) -> Batch:
        """Trajectories as a batch; see `collate`."""
        return collate(self.tokens, trajectories, self.model.shape.context, self.device)

    def evaluate(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Log-probabilities (B, T) of the actions at the policy's temperature, and entropies (B, T) without gradient.

        Prompts that several rows share are forwarded once, and logits exist for a few hundred tokens at a time.
        """
        laid = pack_batch(batch, self.model.shape.window)
        hidden = self.model(laid.ids, laid.positions, laid, self.adapter)
        used = batch.mask.bool()
        weight = self.model.unembedding.weight
        found = TokenLogprobs.apply(hidden[torch.cat(laid.before)], weight, batch.actions[used], self.temperature)
        empty = torch.zeros_like(batch.mask)
        logprobs, entropy = (empty.masked_scatter(used, values) for values in found)  # type: ignore[union-attr]
        return logprobs, entropy


class TextSampler:
    """Draws answers from a policy with the policy's own weights."""

    def __init__(
        self, policy: TextPolicy, sampling: engine.Sampling, rows: int = 32, progress: Callable[[int], None] = lambda n: None
    ) -> None:
        self.policy, self.sampling, self.rows, self.progress = policy, sampling, rows, progress

    def sync(self) -> None:
        """Nothing to do: sampler and learner share their weights."""

    def sample(
        self, tasks: Sequence[Task], seed: int, perturbations: Sequence[Perturbation | None] | None = None
    ) -> list[Trajectory]:
        """One answer a task; the i-th depends on its task, `seed` and how often the task came before, on nothing else.

        Raises:
            DataError: a prompt leaves no room in the context for `max_tokens` of answer.
        """
        if perturbations is not None and any(perturbations):
            raise DataError("the text sampler takes no perturbations yet")
        tokens, context = self.policy.tokens, self.policy.model.shape.context
        requests, seen = [], dict[tuple[str, str], int]()
        for task in tasks:
            assert task.prompt is not None
            prompt = tokens.encode_prompt(task.prompt)
            if len(prompt) + self.sampling.max_tokens > context:
                room = f"{len(prompt)} tokens leave no room for {self.sampling.max_tokens} of answer"
                raise DataError(f"prompt {task.key!r}: {room} in the model's context of {context}")
            attempt = seen[task.source, task.key] = seen.get((task.source, task.key), -1) + 1
            requests.append(engine.Request(tuple(prompt), row_seed(seed, task, attempt)))
        answers = engine.generate(
            self.policy.model, requests, self.sampling, tokens.stop, self.policy.adapter, self.rows, self.progress
        )
        return [
            Trajectory(
                task=task,
                policy=self.policy.name,
                text=tokens.decode(a.tokens),
                terminated=a.terminated,
                observations=torch.tensor(r.prompt).numpy(),
                actions=torch.tensor(a.tokens).numpy(),
                logprobs=torch.tensor(a.logprobs).numpy(),
            )
            for task, r, a in zip(tasks, requests, answers, strict=True)
        ]


def row_seed(seed: int, task: Task, attempt: int) -> int:
    """The seed of one answer's own generator, from what the answer is and not from where it lies."""
    text = f"{seed}\0{task.source}\0{task.key}\0{attempt}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:7], "big")


class TextReward(nn.Module):
    """A language model with K linear heads that score whole answers: the hidden state of the last token times a head.

    The K members of an ensemble share the body and start from different heads.
    """

    def __init__(self, model: Transformer, tokens: Tokens, adapter: str | None, members: int, seed: int) -> None:
        super().__init__()
        self.model, self.tokens, self.adapter = model, tokens, adapter
        generator = torch.Generator().manual_seed(seed)
        width = model.shape.width
        self.heads = nn.Parameter((torch.randn(members, width, generator=generator) / width).to(self.device))

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.model.embedding.weight.device

    def collate(self, trajectories: Sequence[Trajectory]) -> Batch:
        """Trajectories as a batch; see `collate`."""
        return collate(self.tokens, trajectories, self.model.shape.context, self.device)

    def scores(self, batch: Batch) -> Tensor:
        """Scores (K, B) of each member, float32. An answer has at least one token, if only the one that ends it."""
        laid = pack_batch(batch, self.model.shape.window)
        hidden = self.model(laid.ids, laid.positions, laid, self.adapter)
        ends = torch.stack([places[-1] for places in laid.after])
        return self.heads @ hidden[ends].float().T

    def rewards(self, batch: Batch) -> Tensor:
        """Rewards (B, T): the mean score of the members on the last token, 0 on the others."""
        rewards = torch.zeros_like(batch.mask)
        last = (batch.mask.sum(-1).long() - 1).clamp(min=0)
        return rewards.scatter(1, last[:, None], self.scores(batch).mean(0)[:, None])
