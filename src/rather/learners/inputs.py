"""What learners are given, checked and put together: comparisons, a policy of which something learns, and what scores its trajectories."""

import copy
import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, Protocol, Self, TypeVar, runtime_checkable

import torch
from torch import Tensor, nn

from rather.core import Batch, Comparison, Critic, Model, Policy, RewardSource, Sampler, Task, Trajectory
from rather.errors import ConfigError, DataError
from rather.learners.common import Means, Order, Pairs, agreement, in_parts
from rather.learners.rollouts import LearningReward, Rollouts, Source
from rather.learners.settings import LoRA, Optimization, Sampling
from rather.settings import check_seed
from rather.verify.checker import Scorer, Verified
from rather.verify.functions import RewardFunctions

RewardFn = Callable[..., Any]
"""A function of (prompt, completion, **columns); see `verify.functions`."""
RewardFns = RewardFn | list[RewardFn | tuple[RewardFn, float]]
"""A reward function, or several, some of them with a weight."""
AnyReward = RewardSource | LearningReward | Scorer | RewardFns


class Reference(Policy, Protocol):
    """A frozen policy, whose pass over a trajectory gives a critic what it judges by."""

    def look(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Log-probabilities (B, T), and the states (B, T + 1, C) before each action and after the last, from one pass."""
        ...


@runtime_checkable
class TrainablePolicy(Reference, Protocol):
    """A language model, of which a policy can be made that learns."""

    temperature: float

    def trainable(self, adapter: LoRA | Literal["full"] | None, seed: int) -> tuple[Self, list[nn.Parameter]]:
        """A policy to train that leaves this one as it is, and its parameters."""
        ...

    def sampler(self, sampling: Sampling) -> Sampler:
        """What lets it act."""
        ...

    def critic(self, seed: int) -> Critic:
        """A new critic, which judges by what `look` sees."""
        ...


P = TypeVar("P", bound=Policy)


def check_comparisons(comparisons: Sequence[Comparison], alone: bool = False) -> list[Comparison]:
    """Comparisons as a list; `alone`: some of them may be answers alone.

    Raises:
        DataError: one of them is something else, has not been judged, or has one side and may not.
    """
    if not isinstance(comparisons, Sequence):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise DataError(f"comparisons is a {type(comparisons).__name__}, not a list; rather.comparisons makes one")
    for i, c in enumerate(comparisons):
        if not isinstance(c, Comparison):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise DataError(f"item {i} of comparisons is a {type(c).__name__}, not a Comparison; rather.comparisons makes them from rows")
        if not (c.b or alone):
            raise DataError(f"item {i} of comparisons has one side only; leave it out, or learn from it by KTO")
        if c.preference is None:
            raise DataError(f"item {i} of comparisons has no preference; leave it out")
        if not 0 <= c.preference <= 1:
            raise DataError(f"item {i} of comparisons has the preference {c.preference}; give P(a better), from 0 to 1")
    return list(comparisons)


@torch.no_grad()
def accuracy(model: Model, comparisons: Sequence[Comparison], scores: Callable[[Batch], Tensor], how: Optimization) -> dict[str, float]:
    """The share of comparisons whose sides the `scores` (B,) order as they were judged, ties left out."""
    means = Means()
    for start in range(0, len(comparisons), how.batch_size):
        for part, *_ in Pairs.of(model, comparisons[start : start + how.batch_size]).split(how.micro_batch_tokens):
            means.add(accuracy=agreement(*part.scores(scores(part.batch)), part.preference))
    return means.result()


def trainee(
    policy: P, adapter: LoRA | Literal["full"] | None, seed: int, parameters: Sequence[nn.Parameter] | None
) -> tuple[P, list[nn.Parameter]]:
    """The policy that learns, and its parameters: `policy` itself where they are given, else one that leaves it as it is.

    Raises:
        ConfigError: `adapter` is neither a LoRA, "full" nor None, or stands beside `parameters`; or the seed is none.
    """
    check_seed(seed)
    if parameters is not None:
        if adapter is not None:
            raise ConfigError("adapter and parameters say two things about what learns; give one of them")
        return policy, list(parameters)
    if not (adapter is None or adapter == "full" or isinstance(adapter, LoRA)):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise ConfigError(f'adapter is {adapter!r}; give rather.LoRA(rank=16), or "full" to train all weights')
    if not isinstance(policy, TrainablePolicy):
        raise no_model("the policy", policy)
    return policy.trainable(adapter, seed)


def reference_of(policy: Policy, reference: Policy | None) -> Policy:
    """The reference that was given, or `policy` itself.

    Raises:
        ConfigError: it is no model.
    """
    if reference is not None and not callable(getattr(reference, "evaluate", None)):
        raise no_model("the reference", reference)
    return policy if reference is None else reference


def language_model(name: str, policy: object) -> TrainablePolicy:
    """A policy that something can be made of that learns.

    Raises:
        ConfigError: it is something else; the message calls it by `name`.
    """
    if not isinstance(policy, TrainablePolicy):
        raise no_model(name, policy)
    return policy


def no_model(name: str, policy: object) -> ConfigError:
    """The error where a model is needed."""
    return ConfigError(f"{name} is a {type(policy).__name__}, not a model; rather.load reads one")


def acting(
    policy: P,
    reference: Reference | None,
    adapter: LoRA | Literal["full"] | None,
    seed: int,
    parameters: Sequence[nn.Parameter] | None,
    sampling: Sampling,
) -> tuple[P, Reference | None, list[nn.Parameter]]:
    """The policy that acts and learns, its reference and its parameters, as `trainee`; log-probabilities are those of what is sampled.

    Where nothing says which parameters learn the reference is `policy` itself.
    """
    model, learned = trainee(policy, adapter, seed, parameters)
    if parameters is None:
        frozen = copy.copy(language_model("the reference", policy if reference is None else reference))
        for each in (language_model("the policy", model), frozen):
            each.temperature = sampling.temperature or 1.0  # where the most likely token is taken, those of temperature 1
        return model, frozen, learned
    return model, reference, learned


def rollouts(
    model: Policy,
    tasks: Sequence[Task],
    each: int,
    times: int,
    sampler: Sampler | None,
    source: Source | None,
    reward: AnyReward | None,
    sampling: Sampling,
    seed: int,
    gold: Callable[[Trajectory], float] | None,
) -> tuple[Source, RewardSource | None]:
    """What collects `times` trajectories of `each` tasks a step, and the reward model that scores them, unless rewards come with them.

    Raises:
        ConfigError: `reward` is no reward, there is none, or it scores answers where a `source` brings rewards with them.
    """
    model_of_rewards = reward if isinstance(reward, RewardSource) else None
    if source is not None:
        if reward is not model_of_rewards:
            raise ConfigError(f"reward is {reward!r:.80}, but a source brings rewards with what it collects; leave one of them out")
        return source, model_of_rewards
    if reward is None and sampler is None:
        what = "give a reward model, a function of (prompt, completion, **columns), or a list of functions"
        raise ConfigError(f"there is no reward, and answers to prompts bring none; {what}")
    acts = language_model("the policy", model).sampler(sampling) if sampler is None else sampler
    learning: LearningReward | None = None
    if isinstance(reward, LearningReward):
        learning, acts = reward, Verified(acts, reward)
    elif reward is not None and not isinstance(reward, RewardSource):
        acts = Verified(acts, reward if isinstance(reward, Scorer) else reward_functions(reward))
    order = Order(len(tasks), seed)

    def some(number: int) -> list[Task]:
        return [tasks[i] for i in order.at(number * each, each) for _ in range(times)]

    return Rollouts(model, acts, some, seed, gold, learning), model_of_rewards


def kind_of(reward: AnyReward | None) -> str | None:
    """What stands for a reward in checkpoints: its class, or "function"."""
    return None if reward is None else type(reward).__name__ if isinstance(reward, RewardSource | Scorer) else "function"


def together(reward: AnyReward | None, answers: int) -> int:
    """How many of so many answers a step are to the same prompt: two where a reward compares them.

    Raises:
        ConfigError: they make no pairs.
    """
    if not isinstance(reward, LearningReward):
        return 1
    if answers % 2:
        raise ConfigError(f"rollout_batch_size is {answers}, but the reward compares two answers to each prompt; give an even number")
    return 2


def reward_functions(reward: RewardFns) -> RewardFunctions:
    """What scores answers by a function, or by a list of functions, some of them in a pair with their weight.

    Raises:
        ConfigError: it is something else.
    """
    functions, weights = list[RewardFn](), list[float]()
    for each in [reward] if callable(reward) or not isinstance(reward, list) else reward:  # pyright: ignore[reportUnnecessaryIsInstance]
        pair = (each, 1.0) if callable(each) else each
        if not isinstance(pair, tuple) or len(pair) != 2 or not callable(pair[0]) or not isinstance(pair[1], int | float):  # pyright: ignore[reportUnnecessaryIsInstance]
            what = "a reward model, a function of (prompt, completion, **columns), or a list of functions or of (function, weight)"
            raise ConfigError(f"reward is or holds {each!r:.80}; give {what}")
        if not math.isfinite(pair[1]):
            raise ConfigError(f"the weight of a reward function is {pair[1]!r}; give a finite number")
        functions.append(pair[0])
        weights.append(float(pair[1]))
    return RewardFunctions(functions, weights)


def mean_score(source: Source, reward_model: RewardSource | None, tasks: Sequence[Task], micro_batch_tokens: int) -> dict[str, float]:
    """The mean score of one trajectory of each task, those without one left out.

    Raises:
        ConfigError: `source` does not say how tasks are sampled.
    """
    if not isinstance(source, Rollouts):
        raise ConfigError(f"a policy that acts in a {type(source).__name__} cannot be evaluated on tasks; leave eval out")
    batch = source.model.collate(source.sampler.sample(tasks, source.seed))
    rewards = batch.rewards
    if reward_model is not None:
        (rewards,) = in_parts(batch, micro_batch_tokens, lambda part: (reward_model.rewards(part),))
    scores = (rewards * batch.mask).sum(-1)
    return {"score": float(scores.nanmean())}
