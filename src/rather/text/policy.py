"""Language models as policies, samplers and critics: from trajectories to packed tokens and back.

Shape letters: B trajectories, T answer tokens (padded), P prompt tokens (padded), C width.
"""

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Sequence
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any, Literal, Unpack

import numpy as np
import torch
from torch import Tensor, nn

from rather.core import UNUSED, Batch, Perturbation, Prompt, Task, Trajectory, perturbed, row_seed
from rather.data.rows import tasks
from rather.errors import ConfigError, DataError
from rather.learners.settings import LoRA, Sampling, SamplingOptions
from rather.scale import ranks
from rather.settings import given
from rather.text import engine, lora, weights
from rather.text.collate import collate
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


class LanguageModel(ABC):
    """A language model as a policy: the state is the text so far, an action is a token.

    Log-probabilities are those at its `temperature`. Several policies may share their weights, each with an `adapter` of its own; with
    None a policy is the base alone.
    """

    memoryless = False
    tokens: Tokens
    adapter: str | None
    temperature: float
    name: str
    context: int
    width: int

    @property
    @abstractmethod
    def device(self) -> torch.device:
        """Where the weights are."""

    @abstractmethod
    def collate(self, trajectories: Sequence[Trajectory]) -> Batch:
        """Trajectories as a batch."""

    @abstractmethod
    def evaluate(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Log-probabilities (B, T) of the actions, and entropies (B, T) without gradient."""

    @abstractmethod
    def look(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Log-probabilities (B, T), and the hidden states (B, T + 1, C) before each token of an answer and after its last, 0 beyond."""

    @abstractmethod
    def ends(self, batch: Batch) -> Tensor:
        """Hidden states (B, C) of the last token of each answer."""

    @abstractmethod
    def answer(
        self,
        requests: Sequence[engine.Request],
        sampling: engine.Sampling,
        rows: int,
        progress: Callable[[int], None],
        perturbations: Sequence[Perturbation | None] = (None,),
    ) -> list[engine.Answer]:
        """Answer every request, `rows` at a time; `Request.policy` says under which of the `perturbations`."""

    @abstractmethod
    def save(self, folder: Path | str) -> None:
        """Write the adapter in PEFT's format, or the whole model with its tokenizer as a Hugging Face folder."""

    @abstractmethod
    def merge(self, folder: Path | str) -> None:
        """Write the model with the adapter as a part of its weights, as a Hugging Face folder that needs nothing else."""

    @abstractmethod
    def restore(self, folder: Path) -> None:
        """Take over the weights that `save` wrote, in place."""

    @abstractmethod
    def trainable(self, adapter: LoRA | Literal["full"] | None, seed: int) -> "tuple[LanguageModel, list[nn.Parameter]]":
        """A policy to train that leaves this one as it is, and its parameters (float32).

        It is a new LoRA adapter on the same weights (None: `LoRA()`), a copy of the adapter that this policy has (None alone), or a copy
        of all weights ("full").

        Raises:
            ConfigError: a new adapter is asked for, but the policy has one.
        """

    def sampler(self, sampling: Sampling) -> "TextSampler":
        """What draws this policy's answers."""
        return TextSampler(self, engine.Sampling(**sampling.model_dump()))

    def critic(self, seed: int) -> "TextCritic":
        """A new critic for this policy's hidden states."""
        return TextCritic(self.width, self.device, seed)

    def generate(self, prompts: Sequence[Prompt], *, seed: int = 0, **options: Unpack[SamplingOptions]) -> list[str]:
        """One answer to each prompt, plain text or a conversation; the same `seed` gives the same answers.

        Raises:
            ConfigError: an argument is not known, or its value is wrong.
            DataError: a prompt cannot be read, or leaves no room for `max_tokens` of answer.
        """
        (sampling,) = given("generate", options, Sampling)
        if isinstance(prompts, str):
            raise DataError("prompts is one text; give a list, such as [text]")
        return [t.text or "" for t in self.sampler(sampling).sample(tasks(prompts), seed)]


class TextPolicy(LanguageModel):
    """A language model of rather's own architectures.

    With `adapter` None it is the base alone: the reference of a policy that is an adapter on the same base. A `space` may be
    perturbed (see `spaces`). `space.beside`: its numbers are added to what the model computes; else they are in the weights, where `adopt`
    finds them. `space.in_turn`: the model is `at` one perturbation after the other, since they cannot be sampled from together.
    """

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

    def answer(
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

    def trainable(self, adapter: LoRA | Literal["full"] | None, seed: int) -> "tuple[TextPolicy, list[nn.Parameter]]":
        """A policy to train that leaves this one as it is, and its parameters; see `LanguageModel.trainable`."""
        if adapter == "full":
            lora.refuse_int8(self.model)
            model = lora.merged(self.model, self.adapter) if self.adapter else copy.deepcopy(self.model)
            model = model.float().requires_grad_(True)  # activations are computed in the model's dtype as before
            return TextPolicy(model, self.tokens, None, self.temperature, self.name), list(model.parameters())
        name = free_name(lora.names(self.model))
        if self.adapter is None:
            new = adapter or LoRA()
            parameters = lora.add(self.model, name, new.rank, new.alpha, seed, new.blocks)
        else:
            refuse_second(adapter)
            parameters = lora.copied(self.model, self.adapter, name)
        return TextPolicy(self.model, self.tokens, name, self.temperature, self.name), parameters

    def save(self, folder: Path | str) -> None:
        """Write the adapter in PEFT's format, the steering vector, or the whole model with its tokenizer as a Hugging Face folder."""
        folder = Path(folder)
        if self.beside:
            self.space.save(folder)
        elif self.adapter is not None:
            lora.save(self.model, self.adapter, folder, str(self.model.description.get("_name_or_path", "")))
        else:
            with ranks.whole(self.model):
                if ranks.rank() == 0:
                    weights.save(self.model, folder)
                    self.tokens.save(folder)

    def merge(self, folder: Path | str) -> None:
        """Write what adapter or space have made of the model as a Hugging Face folder that needs nothing else.

        Raises:
            ModelError: the model has no place for a steering vector.
        """
        folder = Path(folder)
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
            lora.refuse_int8(self.model)
            saved = dict(weights.load(folder, torch.float32).named_parameters())
            with ranks.whole(self.model, changed=True), torch.no_grad():
                for name, p in self.model.named_parameters():
                    if name in saved:
                        p.copy_(saved[name])
        if self.space is not None and not self.beside:
            self.space.adopt()


def free_name(taken: Collection[str]) -> str:
    """A name for a new adapter beside those that are there."""
    return next(name for i in count(1) if (name := "policy" if i == 1 else f"policy_{i}") not in taken)


def refuse_second(adapter: LoRA | None) -> None:
    """Make sure that no new adapter is asked for where a policy has one.

    Raises:
        ConfigError: one is.
    """
    if adapter is not None:
        raise ConfigError(f"adapter is {adapter}, but the model has an adapter, of which a copy is trained; leave adapter out")


class TextSampler:
    """Draws answers from a policy with the policy's own weights."""

    def __init__(
        self,
        policy: LanguageModel,
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
        own = self.policy.answer(requests[ranks.share(requests)], self.sampling, self.rows, self.progress, kinds)
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
