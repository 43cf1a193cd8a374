"""A language model in the space that zeroth-order optimization moves it in."""

from collections.abc import Callable, Sequence
from typing import Literal

from rather.core import Sampler, Task
from rather.errors import ConfigError
from rather.learners.zeroth_settings import ZerothSettings
from rather.text.policy import TextPolicy
from rather.text.prompts.fit import instructed
from rather.zeroth.offsets import DirectionOptions
from rather.zeroth.spaces.steering import StyledAnswers, steering
from rather.zeroth.spaces.weights import Factors, LowRank, Weights


def perturbable(
    z: ZerothSettings, base: object, tasks: Sequence[Task], greedy: Sampler, own: Callable[[Literal["lora", "full"]], TextPolicy]
) -> TextPolicy:
    """The model with the space that `z` names; a steering vector is fitted to what it does with `tasks`, answered by `greedy`.

    `own` makes a policy whose adapter or weights may be moved, since `base` stays what it is.

    Raises:
        ConfigError: the model is not one of rather's own architectures, or the space and its directions do not go together.
    """
    if not isinstance(base, TextPolicy):
        raise ConfigError("zeroth moves rather's own architectures only; take dpo or grpo for this model")
    how: DirectionOptions = {"kind": z.kind, "block": z.block}
    if z.space == "steering":
        tokens, some = base.tokens, list(tasks[: max(48, z.components + 1)])
        prompts = [tokens.cut(tokens.encode_prompt(t.prompt), base.context) for t in some if t.prompt is not None]
        instructions = [instruction for both in z.contrasts for instruction in both]
        first, *styled = _styled_answers(greedy, some[:16], ["", *instructions]) if instructions else [StyledAnswers((), ())]
        contrasts = list(zip(styled[0::2], styled[1::2], strict=True))
        space = steering(base.model, prompts, z.layers, z.components, contrasts, first.answers)
        space.how = how
        return TextPolicy(base.model, base.tokens, base.adapter, base.temperature, base.name, space)
    if z.space == "lora":
        policy = own("lora")
        assert policy.adapter is not None
        policy.space = Factors(policy.model, policy.adapter, **how)
        return policy
    if z.space == "low_rank" and z.kind != "gaussian":
        raise ConfigError(f'zeroth.kind is {z.kind!r}; low-rank directions are "gaussian"')
    policy = own("full")
    policy.space = LowRank(policy.model, z.layers, z.rank) if z.space == "low_rank" else Weights(policy.model, z.names, **how)
    return policy


def _styled_answers(greedy: Sampler, tasks: Sequence[Task], instructions: Sequence[str]) -> list[StyledAnswers]:
    """With each instruction at the end of the prompts, or none, what greedy answers to the tasks are."""
    found = greedy.sample([instructed(t, i) for i in instructions for t in tasks], 0)
    rows = [(t.observations.tolist(), t.actions.tolist()) for t in found if t.observations is not None and t.actions is not None]
    n = len(tasks)
    return [StyledAnswers(*zip(*rows[i : i + n], strict=True)) for i in range(0, len(rows), n)]
