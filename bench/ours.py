"""Our side: `ours.py generate|dpo|reward float32|bfloat16[+checkpointing]`, full training."""

import numpy as np
import torch

import common
from rather.core import Comparison, Task, Trajectory
from rather.learners.common import Optimisation
from rather.learners.dpo import DPO
from rather.learners.reward import Reward
from rather.text import engine, load
from rather.text.policy import TextReward


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
precision, _, checkpointing = variant.partition("+")
dtype = getattr(torch, precision)
policy = load.policy(common.MODEL, torch.device("cpu"), dtype, task != "generate", 1.0)
policy.model.checkpointing = bool(checkpointing)
if task == "generate":
    prompts = [tuple(policy.tokens.encode_prompt(p)) for p in common.instructions()]
    requests = [engine.Request(p, i) for i, p in enumerate(p for p in prompts for _ in range(common.ANSWERS))]
    sampling = engine.Sampling(common.NEW)
    clock = common.Clock().time(lambda: engine.generate(policy.model, requests, sampling, frozenset(), rows=len(requests)))
    tokens = len(requests) * common.NEW
else:
    how = Optimisation(100, common.PAIRS, lr=1e-6, micro_tokens=1024)
    asked, parameters = comparisons(common.PAIRS * 4), load.parameters(policy)
    if task == "dpo":  # as in TRL's default, the reference is scored in every step; it is a copy of the start
        reference = load.policy(common.MODEL, torch.device("cpu"), dtype, False, 1.0)
        learner = DPO(policy, reference, asked, parameters, how, when="each")
    else:
        model = TextReward(policy, 1, 0)
        learner = Reward(model, asked, [*parameters, model.heads], how)
    clock = common.Clock().time(learner.step)
    tokens = common.PAIRS * 2 * (common.PROMPT + common.ANSWER)
common.emit(f"rather {variant}", tokens, clock, ("rather",))
