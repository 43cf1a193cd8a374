"""A run whose learner asks as it goes: zeroth-order optimization, in this process or spread over several."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from rather.config.schema import Config, Train
from rather.core import Perturbation, Policy, Task, Trajectory
from rather.errors import ConfigError
from rather.learners.checkpoint import Lineage
from rather.learners.dpo_settings import DPOSettings
from rather.pipeline import resume
from rather.pipeline.domain import Domain, domain_of
from rather.pipeline.state import State
from rather.zeroth import first_order
from rather.zeroth.first_order import FirstOrder
from rather.zeroth.learner import Zeroth
from rather.zeroth.questions import Acting, Questions

STYLE_CONTRASTS = [
    ["Answer in as few words as possible.", "Answer at length and in detail."],
    ["Be warm, joyful and enthusiastic.", "Be cold, gloomy and negative."],
    ["Speak to me directly, as you would to a friend.", "Be impersonal and objective."],
    ["Answer in a formal, academic style.", "Answer in a casual, slangy style."],
    ["Answer like a poet, with images.", "Answer with plain technical facts."],
    ["Explain as if to a small child.", "Explain as if to a professor."],
    ["Answer with a question.", "Answer with statements only."],
    ["Answer with a numbered list.", "Answer in one flowing paragraph."],
]
"""What `rather nudge` mixes: eight numbers, which a hundred answers can find."""


def acting(domain: Domain, policy: Policy, number: int) -> Acting:
    """What asks in round `number`, which begins with `policy`."""
    return Acting(*domain.perturbable(policy, number), domain.base_policy, domain.sampler)


def fit(run: State, number: int) -> Path:
    """Move the policy by what judges say, until the answers are used up; returns the last checkpoint.

    Raises:
        ConfigError: a setting is given that this learner does not take, or there are no held-out tasks to compare on.
    """
    if (judges := run.config.train.judges) != Train().judges:
        raise ConfigError(f'with train.learner = "zeroth" every judge counts; leave train.judges as it is (now {judges})')
    if run.config.zeroth.check_every and not run.domain.tasks[1]:
        raise ConfigError("there are no held-out prompts to compare on; set data.held_out, add a split column, or zeroth.check_every = 0")
    who = acting(run.domain, run.policy(number), number)
    learner, scale = made(run.config, who), run.config.scale
    pool = None
    if scale.workers:
        if isinstance(learner, FirstOrder):
            raise ConfigError("scale.workers spreads directions, and first-order learning has none; set it to 0")
        if number:
            raise ConfigError("scale.workers works in the first round alone; set loop.rounds to 1 or scale.workers to 0")
        from rather.scale.pool import Pool

        pool = Pool(Replica, (run.config.model_dump(),), scale.workers, scale.address)
    questions = Questions(run, run.domain.tasks, number, who, learner, pool)

    def feed(step: int, asked_to_stop: Callable[[], bool]) -> Lineage | None:
        more = questions.ask(step, asked_to_stop)
        return run.lineage("zeroth", questions.learned(), 0) if more else None  # how many steps there will be is not known beforehand

    lineage = resume.with_last_labels(run.lineage("zeroth", questions.learned(), 0), run.checkpoints(number))
    try:
        return run.learn(learner, "zeroth", number, 0, lineage, feed, open_=True)
    finally:
        if pool is not None:
            pool.close()


def made(config: Config, acting: Acting) -> Zeroth:
    """What learns from the answers."""
    learner = first_order.made(config.zeroth, acting.policy, acting.space, acting.base, config.dpo.beta)
    if isinstance(learner, FirstOrder) and config.dpo != DPOSettings(beta=config.dpo.beta):
        raise ConfigError(f'with zeroth.estimator = "{config.zeroth.estimator}" dpo.beta alone counts; leave the rest of [dpo] as it is')
    return learner


class Replica:
    """The policy of a run in another process, which moves by itself as the run's does; see `scale.pool`."""

    def __init__(self, settings: dict[str, Any]) -> None:
        config = Config.model_validate(settings)
        torch.set_num_threads(1)
        self.domain = domain_of(config, Console(quiet=True))
        self.acting = acting(self.domain, self.domain.base_policy, 0)
        self.learner = made(config, self.acting)

    def sample(
        self, first: int, log: list[Any], name: str, tasks: Sequence[Task], seed: int, perturbations: Sequence[Perturbation | None]
    ) -> list[Trajectory]:
        """Move by what has been logged since event `first`, then act."""
        self.learner.replay(log[len(self.learner.log) - first :])
        self.acting.policy.name = name
        return self.domain.sampler(self.acting.policy, lambda n: None).sample(tasks, seed, perturbations)
