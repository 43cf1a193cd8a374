"""What every language model can do: evaluate, sample, be trained, saved and merged.

Shape letters: B trajectories, T answer tokens (padded), C width.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Sequence
from itertools import count
from pathlib import Path
from typing import Literal, Unpack

import torch
from torch import Tensor, nn

from rather.core import Batch, Perturbation, Prompt, Task, Trajectory, perturbed, row_seed
from rather.data.rows import tasks
from rather.errors import ConfigError, DataError
from rather.learners.settings import LoRA, Sampling, SamplingOptions
from rather.scale import ranks
from rather.settings import given
from rather.text import engine
from rather.text.critic import TextCritic
from rather.text.tokens import Tokens


class Generative(ABC):
    """What answers prompts: a language model, or what chooses among its answers."""

    name: str

    @abstractmethod
    def sampler(self, sampling: Sampling) -> "TextSampler":
        """What draws answers."""

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


class LanguageModel(Generative):
    """A language model as a policy: the state is the text so far, an action is a token.

    Log-probabilities are those at its `temperature`. Several policies may share their weights, each with an `adapter` of its own; with
    None a policy is the base alone.
    """

    memoryless = False
    tokens: Tokens
    adapter: str | None
    temperature: float
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
    def stream(self, request: engine.Request, sampling: engine.Sampling) -> Iterator[int]:
        """The tokens of one answer, each as soon as it is drawn."""

    @abstractmethod
    def save(self, folder: Path | str) -> None:
        """Write the adapter in PEFT's format, or the whole model with its tokenizer as a Hugging Face folder."""

    @abstractmethod
    def merge(self, folder: Path | str, dtype: torch.dtype | None = None, score: Tensor | None = None) -> None:
        """Write the model with the adapter as a part of its weights, as a Hugging Face folder that needs nothing else; its numbers as
        `dtype` (None: as they are). With `score` (1, C), the weights of a head, it scores whole texts: AutoModelForSequenceClassification.
        """

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


class TextSampler:
    """Draws answers from a policy with the policy's own weights."""

    def __init__(
        self, policy: LanguageModel, sampling: engine.Sampling, rows: int = 32, progress: Callable[[int], None] = lambda n: None
    ) -> None:
        self.policy, self.sampling, self.rows, self.progress = policy, sampling, rows, progress

    def sync(self) -> None:
        """Nothing to do: sampler and learner share their weights."""

    def prompt(self, task: Task) -> list[int]:
        """The tokens of a task's prompt.

        Raises:
            DataError: it leaves no room in the context for `max_tokens` of answer, or cannot be read.
        """
        assert task.prompt is not None
        tokens, context = self.policy.tokens, self.policy.context
        prompt = tokens.cut(tokens.encode_prompt(task.prompt), context - self.sampling.max_tokens)
        if len(prompt) + self.sampling.max_tokens > context:
            room = f"{len(prompt)} tokens leave no room for {self.sampling.max_tokens} of answer"
            raise DataError(f"prompt {task.key!r}: {room} in the model's context of {context}")
        return prompt

    def sample(self, tasks: Sequence[Task], seed: int, perturbations: Sequence[Perturbation | None] | None = None) -> list[Trajectory]:
        """One answer a task; the i-th depends on its task, its perturbation, `seed` and how often both came before, on nothing else.

        Answers under different perturbations are drawn with the same numbers.

        Raises:
            DataError: a prompt leaves no room in the context for `max_tokens` of answer, or the policy cannot be perturbed.
        """
        tokens = self.policy.tokens
        wanted = [None] * len(tasks) if perturbations is None else list(perturbations)
        kinds = list(dict.fromkeys(wanted))
        requests, seen = [], dict[tuple[str, str, Perturbation | None], int]()
        for task, p in zip(tasks, wanted, strict=True):
            prompt = self.prompt(task)
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
