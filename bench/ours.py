"""Our side: `ours.py generate-ROWS|gemma-ROWS|dpo|reward|grpo|ppo float32|bfloat16[+checkpointing|+q8_0|+q4_0]`, full training of plain weights."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import torch

import common
from rather.core import Comparison, Perturbation, Task, Trajectory
from rather.kernels.quantized import Bits
from rather.learners.dpo import DPO
from rather.learners.grpo import GRPO
from rather.learners.ppo import PPO
from rather.learners.reward import Reward
from rather.learners.rollouts import Rollouts
from rather.learners.settings import OptimizationOptions
from rather.text import engine, load
from rather.text.critic import TextCritic
from rather.text.language_model import TextSampler
from rather.text.policy import TextPolicy
from rather.text.reward_model import RewardModel

BLOCKS = 5
"""Of 30 blocks those that PPO's reward model adapts: the last, so that it and the reference see a text in one pass below them."""


def comparisons(count: int) -> list[Comparison]:
    """The pairs, with their exact tokens."""
    found = []
    for i, (prompt, a, b) in enumerate(common.pairs(count)):
        task = Task("bench", str(i), "x")
        sides = [(Trajectory(task, "p", "", observations=np.array(prompt), actions=np.array(x)),) for x in (a, b)]
        found.append(Comparison(*sides, preference=1.0, key=str(i)))
    return found


task, variant = common.arguments()
torch.set_num_threads(2)
precision, _, more = variant.partition("+")
dtype = getattr(torch, precision)
task, _, rows = task.partition("-")
bits: Bits | None = 8 if more == "q8_0" else 4 if more.startswith("q4") else None
path, chat = common.FILES[more] if bits else common.MODEL, False if task in ("grpo", "ppo") else None
policy = load.policy(path, torch.device("cpu"), dtype, task not in ("generate", "gemma"), 1.0, chat, bits=bits)
assert isinstance(policy, TextPolicy)
policy.model.checkpointing = more == "checkpointing"
if task in ("generate", "gemma"):
    told = common.token_prompts(int(rows)) if task == "gemma" else map(policy.tokens.encode_prompt, common.instructions(int(rows)))
    requests = [engine.Request(tuple(prompt), i) for i, prompt in enumerate(told)]
    sampling = engine.Sampling(common.NEW)
    clock = common.Clock().time(partial(engine.generate, policy.model, requests, sampling, frozenset(), rows=len(requests)))
    tokens = len(requests) * common.NEW
elif task == "grpo":
    policy.tokens.stop = frozenset()  # every answer is as long as the peer's
    prompts = common.texts(common.GROUPS * common.TURNS, policy.tokens.encode_prompt, policy.tokens.decode)

    class Paid(TextSampler):
        """Every other answer is right, so that every group teaches something."""

        def sample(self, tasks: Sequence[Task], seed: int, perturbations: Sequence[Perturbation | None] | None = None) -> list[Trajectory]:
            """Answers with their scores."""
            pay = np.zeros(common.NEW, np.float32)
            found = super().sample(tasks, seed, perturbations)
            return [replace(t, rewards=pay + (np.arange(common.NEW) == common.NEW - 1) * (i % 2)) for i, t in enumerate(found)]

    def groups(number: int) -> list[Task]:
        """The tasks of a step."""
        chosen = range(number * common.GROUPS, (number + 1) * common.GROUPS)
        return [Task("bench", str(i), prompts[i]) for i in chosen for _ in range(common.SIZE)]

    source = Rollouts(policy, Paid(policy, engine.Sampling(common.NEW), common.GROUPS * common.SIZE), groups, 0)
    learner = GRPO(
        policy, source=source, parameters=load.parameters(policy), steps=100, lr=1e-6, schedule="constant",
        micro_batch_tokens=1280,  # two groups
    )  # fmt: skip
    clock = common.Clock().time(learner.step)
    tokens = common.GROUPS * common.SIZE * common.NEW
elif task == "ppo":  # the reward model is an adapter on the frozen start, which is the reference, too
    policy.tokens.stop = frozenset()
    prompts = common.texts(common.EPISODES * common.TURNS, policy.tokens.encode_prompt, policy.tokens.decode)
    tasks = [Task("bench", str(i), prompt) for i, prompt in enumerate(prompts)]
    start = load.policy(common.MODEL, torch.device("cpu"), dtype, False, 1.0, False)
    judged, _ = load.with_adapter(start, "reward", 16, 32.0, 0, BLOCKS)
    critic, model = TextCritic(start.width, start.device, 0), RewardModel(judged, 1, 0, parameters=[])
    sampler = TextSampler(policy, engine.Sampling(common.NEW), common.EPISODES)
    source = Rollouts(policy, sampler, lambda n: tasks[n * common.EPISODES : (n + 1) * common.EPISODES], 0)
    learner = PPO(
        policy, reward=model, reference=start, parameters=load.parameters(policy), critic=critic, source=source, update_epochs=1,
        critic_lr=1e-3, steps=100, batch_size=common.EPISODES, lr=1e-6, schedule="constant", micro_batch_tokens=3072,  # half of them
    )  # fmt: skip
    clock = common.Clock().time(learner.step)
    tokens = common.EPISODES * common.NEW
else:
    how: OptimizationOptions = {
        "steps": 100, "batch_size": common.PAIRS, "lr": 1e-6, "schedule": "constant", "micro_batch_tokens": 1536,  # all of them
    }  # fmt: skip
    asked, parameters = comparisons(common.PAIRS * 4), load.parameters(policy)
    if task == "dpo":  # as in TRL's default, the reference is scored in every step; it is a copy of the start
        reference = load.policy(common.MODEL, torch.device("cpu"), dtype, False, 1.0)
        learner = DPO(policy, asked, reference, parameters, reference_logprobs="each", **how)
    else:
        model = RewardModel(policy, 1, 0, parameters=[])
        learner = Reward(model, asked, [*parameters, model.heads], temperatures=False, **how)
    clock = common.Clock().time(learner.step)
    tokens = common.PAIRS * 2 * (common.PROMPT + common.ANSWER)
name = f"rather {variant}" + f", reward model on {BLOCKS} of 30 blocks" * (task == "ppo")
common.emit(name, tokens, clock, ("rather",))
