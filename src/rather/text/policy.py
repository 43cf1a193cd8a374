"""Language models as policies, samplers and reward models: from trajectories to packed tokens and back.

Shape letters: B trajectories, T answer tokens (padded), P prompt tokens (padded), K ensemble members, C width.
"""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from rather.core import UNUSED, Batch, Perturbation, Task, Trajectory, perturbed, row_seed
from rather.errors import DataError, ModelError
from rather.scale import ranks
from rather.text import engine, lora, weights
from rather.text.collate import collate
from rather.text.foreign import ForeignPolicy
from rather.text.packing import Packed, pack, sent
from rather.text.tokens import Tokens
from rather.text.transformer import TokenLogprobs, Transformer

Begun = tuple[Packed, tuple[int, Tensor]]
"""A batch end to end, and the first block that has not seen it with what enters there, as `Transformer` takes it up."""


def pack_batch(batch: Batch, model: Transformer) -> Packed:
    """The batch laid end to end for `model`, each distinct prompt once."""
    # By NumPy: PyTorch wakes all its threads to look through a few thousand tokens.
    prompts, answers = ([torch.from_numpy(row[row != UNUSED]) for row in x.numpy()] for x in (batch.observations, batch.actions))
    return pack(prompts, answers, model.shape.window, model.dtype, device=model.embedding.weight.device)


class TextPolicy:
    """A language model as a policy: the state is the text so far, an action is a token.

    With `adapter` None it is the base alone: the reference of a policy that is an adapter on the same base. `space` may be
    perturbed (see `spaces`). `space.beside`: its numbers are added to what the model computes; else they are in the weights, where `adopt`
    finds them. `space.in_turn`: the model is `at` one perturbation after the other, since they cannot be sampled from together.
    """

    memoryless = False

    def __init__(
        self,
        model: Transformer,
        tokens: Tokens,
        adapter: str | None = None,
        temperature: float = 1.0,
        name: str = "policy",
        space: Any = None,
    ) -> None:
        self.model, self.tokens, self.adapter, self.space = model, tokens, adapter, space
        self.temperature, self.name = temperature, name
        self.context, self.width = model.shape.context, model.shape.width

    @property
    def beside(self) -> bool:
        """Whether a part of the policy is beside the model: its space's numbers."""
        return self.space is not None and self.space.beside

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.model.embedding.weight.device

    def collate(self, trajectories: Sequence[Trajectory]) -> Batch:
        """Trajectories as a batch; see `collate`."""
        return collate(self.tokens, trajectories, self.context, self.device)

    def evaluate(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Log-probabilities (B, T) of the actions at the policy's temperature, and entropies (B, T) without gradient.

        Prompts that several rows share are forwarded once, and logits exist for a few hundred tokens at a time.
        """
        laid = pack_batch(batch, self.model)
        return self._scores(self._hidden(laid, laid.chosen(laid.before)), batch)

    def ends(self, batch: Batch, begun: Begun | None = None) -> Tensor:
        """Hidden states (B, C) of the last token of each answer; an answer has at least one, if only the one that ends it."""
        laid, lower = begun or (pack_batch(batch, self.model), None)
        return self._hidden(laid, laid.chosen([places[-1:] for places in laid.after]), lower)

    def look(self, batch: Batch, begun: Begun | None = None) -> tuple[Tensor, Tensor]:
        """Log-probabilities (B, T) as `evaluate` gives them, and from the same pass the hidden states (B, T + 1, C) before each token
        of an answer and after its last, 0 beyond: what a critic judges by.
        """
        laid, lower = begun or (pack_batch(batch, self.model), None)
        wanted = [torch.cat([before, after[-1:]]) for before, after in zip(laid.before, laid.after, strict=True)]
        hidden = self._hidden(laid, laid.chosen(wanted), lower)
        lengths, place = batch.mask.sum(-1, keepdim=True), torch.arange(batch.mask.shape[1] + 1, device=self.device)
        states = hidden.new_zeros(len(batch), len(place), self.width).masked_scatter((place <= lengths)[..., None], hidden)
        ends = np.cumsum([len(x) for x in wanted])
        acted = laid.chosen([torch.from_numpy(np.delete(np.arange(ends[-1]), ends - 1))])
        return self._scores(hidden[acted], batch)[0], states

    def _scores(self, hidden: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """Log-probabilities and entropies (B, T) of all actions, given the hidden states (N, C) before them."""
        actions, empty = batch.actions.numpy(), torch.zeros_like(batch.mask)
        known = actions != UNUSED
        # Counted on the host: a mask on a GPU would be waited for.
        where, targets = sent(torch.from_numpy(np.stack([np.flatnonzero(known), actions[known]])), hidden.device)
        keep = not self.model.checkpointing
        found = TokenLogprobs.apply(hidden, self.model.unembedding.weight, targets, self.temperature, keep)
        logprobs, entropy = (empty.flatten().index_copy(0, where, x).view_as(empty) for x in found)  # type: ignore[union-attr]
        return logprobs, entropy

    def begin(self, batch: Batch, other: "TextPolicy") -> tuple[Begun, ...]:
        """What both policies compute alike, for `ends` and `look`, if one is the other's base."""
        if not (self.model is other.model and self.adapter and other.adapter is None and self.space is other.space is None):
            return ()
        laid, first = pack_batch(batch, self.model), lora.first(self.model, self.adapter)
        return ((laid, (first, self.model(laid.ids, laid.positions, laid, before=first))),)

    def _hidden(self, laid: Packed, wanted: Tensor, lower: tuple[int, Tensor] | None = None) -> Tensor:
        shift = self.space.shift() if self.beside else None
        return self.model(laid.ids, laid.positions, laid, self.adapter, wanted, shift, lower)

    def generate(
        self,
        requests: Sequence[engine.Request],
        sampling: engine.Sampling,
        rows: int,
        progress: Callable[[int], None],
        perturbations: Sequence[Perturbation | None] = (None,),
    ) -> list[engine.Answer]:
        """Answer every request, `rows` at a time; `Request.policy` says under which of the `perturbations`.

        Raises:
            DataError: the policy has no space to perturb.
        """
        if self.space is None and any(perturbations):
            raise DataError("this policy has no space to perturb; give it one, such as a steering vector")
        answer = partial(engine.generate, self.model, sampling=sampling, stop=self.tokens.stop, rows=rows, progress=progress)
        if self.space is not None and self.space.in_turn:
            found: dict[int, engine.Answer] = {}
            for i, p in enumerate(perturbations):
                mine = [n for n, r in enumerate(requests) if r.policy == i]
                with self.space.at(p):
                    found |= zip(mine, answer(requests=[requests[n] for n in mine]), strict=True)
            return [found[n] for n in range(len(requests))]
        if self.space is None or (not any(perturbations) and not self.beside):
            with ranks.whole(self.model):
                return answer(requests=requests, adapter=self.adapter)
        return answer(requests=requests, adapter=self.adapter, several=self.space.several(perturbations))

    def weights(self) -> dict[str, Tensor]:
        """The tensors that are trained: those of the adapter, or all."""
        mark = "" if self.adapter is None else f".{self.adapter}."
        return {name: p.detach() for name, p in self.model.named_parameters() if mark in f".{name}."}

    def save(self, folder: Path) -> None:
        """Write the adapter in PEFT's format, the steering vector, or the whole model with its tokenizer as a Hugging Face folder."""
        if self.beside:
            self.space.save(folder)
        elif self.adapter is not None:
            lora.save(self.model, self.adapter, folder, str(self.model.description.get("_name_or_path", "")))
        else:
            with ranks.whole(self.model):
                if ranks.rank() == 0:
                    weights.save(self.model, folder)
                    self.tokens.save(folder)

    def merge(self, folder: Path) -> None:
        """Write what the space has made of the model as a Hugging Face folder that needs nothing else.

        Raises:
            ModelError: the model has no place for a steering vector.
        """
        if self.beside:
            weights.save_shifted(self.model, {i: x[0] for i, x in self.space.after().items()}, folder)
        else:
            weights.save(self.model if self.adapter is None else lora.merged(self.model, self.adapter), folder)
        self.tokens.save(folder)

    def restore(self, folder: Path) -> None:
        """Take over the weights that `save` wrote, in place."""
        if self.beside:
            self.space.restore(folder)
        elif self.adapter is not None:
            lora.load(self.model, self.adapter, folder)
        else:
            saved = dict(weights.load(folder, torch.float32).named_parameters())
            with ranks.whole(self.model, changed=True), torch.no_grad():
                for name, p in self.model.named_parameters():
                    if name in saved:
                        p.copy_(saved[name])
        if self.space is not None and not self.beside:
            self.space.adopt()


class TextSampler:
    """Draws answers from a policy with the policy's own weights."""

    def __init__(
        self,
        policy: TextPolicy | ForeignPolicy,
        sampling: engine.Sampling,
        rows: int = 32,
        progress: Callable[[int], None] = lambda n: None,
    ) -> None:
        self.policy, self.sampling, self.rows, self.progress = policy, sampling, rows, progress

    def sync(self) -> None:
        """Nothing to do: sampler and learner share their weights."""

    def sample(self, tasks: Sequence[Task], seed: int, perturbations: Sequence[Perturbation | None] | None = None) -> list[Trajectory]:
        """One answer a task; the i-th depends on its task, its perturbation, `seed` and how often both came before, on nothing else.

        Answers under different perturbations are drawn with the same numbers.

        Raises:
            DataError: a prompt leaves no room in the context for `max_tokens` of answer, or the policy cannot be perturbed.
        """
        tokens, context = self.policy.tokens, self.policy.context
        wanted = [None] * len(tasks) if perturbations is None else list(perturbations)
        kinds = list(dict.fromkeys(wanted))
        requests, seen = [], dict[tuple[str, str, Perturbation | None], int]()
        for task, p in zip(tasks, wanted, strict=True):
            assert task.prompt is not None
            prompt = tokens.cut(tokens.encode_prompt(task.prompt), context - self.sampling.max_tokens)
            if len(prompt) + self.sampling.max_tokens > context:
                room = f"{len(prompt)} tokens leave no room for {self.sampling.max_tokens} of answer"
                raise DataError(f"prompt {task.key!r}: {room} in the model's context of {context}")
            index = seen[task.source, task.key, p] = seen.get((task.source, task.key, p), -1) + 1
            requests.append(engine.Request(tuple(prompt), row_seed(seed, task, index), kinds.index(p)))
        own = self.policy.generate(requests[ranks.share(requests)], self.sampling, self.rows, self.progress, kinds)
        answers = [answer for theirs in ranks.everyones(own) for answer in theirs]
        return [
            Trajectory(
                task=task,
                policy=perturbed(self.policy.name, p),
                text=tokens.decode(a.tokens[:-1] if a.terminated else a.tokens, task.prompt),
                terminated=a.terminated,
                observations=torch.tensor(r.prompt).numpy(),
                actions=torch.tensor(a.tokens).numpy(),
                logprobs=torch.tensor(a.logprobs).numpy(),
            )
            for task, p, r, a in zip(tasks, wanted, requests, answers, strict=True)
        ]


class TextReward(nn.Module):
    """K linear heads on a language model that score whole answers from the hidden state of the last token.

    The K members of an ensemble share the `body`, whose adapter or weights are trained with them.
    """

    def __init__(self, body: TextPolicy | ForeignPolicy, members: int, seed: int) -> None:
        super().__init__()
        self.body = body
        self.members = members
        generator = torch.Generator().manual_seed(seed)
        self.heads = nn.Parameter((torch.randn(members, body.width, generator=generator) / body.width).to(body.device))

    def collate(self, trajectories: Sequence[Trajectory]) -> Batch:
        """Trajectories as a batch; see `collate`."""
        return self.body.collate(trajectories)

    def scores(self, batch: Batch, *begun: Begun) -> Tensor:
        """Scores (K, B) of each member, float32."""
        return self.heads @ self.body.ends(batch, *begun).float().T

    def rewards(self, batch: Batch, *begun: Begun) -> Tensor:
        """Rewards (B, T): the mean score of the members on the last token, 0 on the others."""
        rewards = torch.zeros_like(batch.mask)
        last = batch.mask.sum(-1).long() - 1
        return rewards.scatter(1, last[:, None], self.scores(batch, *begun).mean(0)[:, None])

    def beside(self, reference: TextPolicy | ForeignPolicy, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """`rewards`, and what `reference.look` gives; the blocks that the two have in common see the batch once."""
        begun = self.body.begin(batch, reference) if isinstance(self.body, TextPolicy) and isinstance(reference, TextPolicy) else ()
        return self.rewards(batch, *begun), *reference.look(batch, *begun)

    def save(self, folder: Path) -> None:
        """Write the body as a policy is written, and the heads as reward_heads.safetensors."""
        self.body.save(folder)
        if ranks.rank() == 0:
            save_file({"heads": self.heads.detach().cpu()}, folder / "reward_heads.safetensors")

    def restore(self, folder: Path) -> None:
        """Take over the weights that `save` wrote, in place.

        Raises:
            ModelError: `folder` holds no reward model, or one with another number of members.
        """
        self.body.restore(folder)
        try:
            heads = load_file(folder / "reward_heads.safetensors")["heads"]
        except (OSError, KeyError, SafetensorError) as e:
            raise ModelError(f"{folder} holds no reward model: {e}") from None
        if heads.shape != self.heads.shape:
            raise ModelError(f"{folder} has {len(heads)} ensemble members, not {len(self.heads)}; set reward.members to it")
        with torch.no_grad():
            self.heads.copy_(heads)


class TextCritic(nn.Module):
    """V(s) of every state of an answer: a net of one layer (no bias) on the hidden states that the reference has of it anyway.

    So it costs no pass through a language model, and its learning rate has nothing to do with the policy's.
    """

    def __init__(self, width: int, device: torch.device, seed: int, hidden: int = 256) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.first = nn.Parameter((torch.randn(width, hidden, generator=generator) / width**0.5).to(device))
        self.head = nn.Parameter(torch.zeros(hidden, device=device))

    def values(self, seen: Tensor) -> Tensor:
        """Values (B, T + 1) of hidden states (B, T + 1, C); 0 where these are, after the end."""
        return nn.functional.silu(seen.float() @ self.first) @ self.head
