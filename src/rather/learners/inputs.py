"""What learners are given, checked and put together: comparisons, a policy of which something learns, and what scores its attempts."""

import copy
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

from torch import nn

from rather.core import Comparison, Sampler, Task, Trajectory
from rather.errors import ConfigError, DataError
from rather.learners.common import Attempts, Model, Pairs, in_parts
from rather.learners.settings import LoRA, Sampling
from rather.verify.checker import Verified
from rather.verify.functions import RewardFunctions


def check_comparisons(comparisons: Sequence[Comparison]) -> list[Comparison]:
    """Comparisons as a list.

    Raises:
        DataError: one of them is something else, or has not been judged.
    """
    if not isinstance(comparisons, Sequence):
        raise DataError(f"comparisons is a {type(comparisons).__name__}, not a list; rather.comparisons makes one")
    for i, c in enumerate(comparisons):
        if not isinstance(c, Comparison):
            raise DataError(f"item {i} of comparisons is a {type(c).__name__}, not a Comparison; rather.comparisons makes them from rows")
        if c.preference is None or not c.b:
            raise DataError(f"item {i} of comparisons has {'no preference' if c.b else 'one side only'}; leave it out")
    return list(comparisons)


def batches(model: Model, comparisons: Sequence[Comparison], batch_size: int) -> Iterator[Pairs]:
    """Comparisons, `batch_size` at a time, as rows of a batch."""
    for start in range(0, len(comparisons), batch_size):
        yield Pairs.of(model, comparisons[start : start + batch_size])


def trainee(
    policy: Any, adapter: LoRA | Literal["full"] | None, seed: int, parameters: Sequence[nn.Parameter] | None
) -> tuple[Any, list[nn.Parameter]]:
    """The policy that learns, and its parameters: `policy` itself where they are given, else one that leaves it as it is.

    Raises:
        ConfigError: `adapter` is neither a LoRA, "full" nor None, or stands beside `parameters`.
    """
    if parameters is not None:
        if adapter is not None:
            raise ConfigError("adapter and parameters say two things about what learns; give one of them")
        return policy, list(parameters)
    if not (adapter is None or adapter == "full" or isinstance(adapter, LoRA)):
        raise ConfigError(f'adapter is {adapter!r}; give rather.LoRA(rank=16), or "full" to train all weights')
    if not hasattr(policy, "trainable"):
        raise ConfigError(f"the policy is a {type(policy).__name__}, not a model; rather.load reads one")
    return policy.trainable(adapter, seed)


def acting(
    policy: Any,
    reference: Any,
    adapter: LoRA | Literal["full"] | None,
    seed: int,
    parameters: Sequence[nn.Parameter] | None,
    sampling: Sampling,
) -> tuple[Any, Any, list[nn.Parameter]]:
    """The policy that acts and learns, its reference and its parameters, as `trainee`; log-probabilities are those of what is sampled.

    Where nothing says which parameters learn the reference is `policy` itself.
    """
    model, learned = trainee(policy, adapter, seed, parameters)
    if parameters is None:
        reference = copy.copy(policy if reference is None else reference)
        for each in (model, reference):
            each.temperature = sampling.temperature or 1.0  # where the likeliest token is taken, those of temperature 1
    return model, reference, learned


def rollouts(
    model: Any,
    tasks: Callable[[int], Sequence[Task]],
    sampler: Sampler | None,
    source: Any,
    reward: Any,
    sampling: Sampling,
    seed: int,
    gold: Callable[[Trajectory], float] | None,
) -> tuple[Any, Any]:
    """What collects attempts, and the reward model that scores them; None where their rewards come with them."""
    if source is not None:
        return source, reward
    sampler = model.sampler(sampling) if sampler is None else sampler
    if reward is not None and not hasattr(reward, "rewards"):
        sampler, reward = Verified(sampler, reward_functions(reward)), None
    return Attempts(model, sampler, tasks, seed, gold), reward


def reward_functions(reward: Any) -> RewardFunctions:
    """What scores answers by a function, or by a list of functions, some of them in a pair with their weight.

    Raises:
        ConfigError: it is something else.
    """
    functions, weights = [], []
    for each in reward if isinstance(reward, list) else [reward]:
        function, weight = each if isinstance(each, tuple) and len(each) == 2 else (each, 1.0)
        if not callable(function) or not isinstance(weight, int | float):
            what = "a reward model, a function of (prompt, completion, **columns), or a list of functions or of (function, weight)"
            raise ConfigError(f"reward is or holds {each!r:.80}; give {what}")
        functions.append(function)
        weights.append(float(weight))
    return RewardFunctions(functions, weights)


def mean_score(source: Any, reward_model: Any, tasks: Sequence[Task], micro_batch_tokens: int) -> dict[str, float]:
    """The mean score of one attempt at each task, those without one left out."""
    batch = source.model.collate(source.sampler.sample(tasks, source.seed))
    rewards = batch.rewards
    if reward_model is not None:
        (rewards,) = in_parts(batch, micro_batch_tokens, lambda part: (reward_model.rewards(part),))
    scores = (rewards * batch.mask).sum(-1)
    return {"score": float(scores.nanmean())}
