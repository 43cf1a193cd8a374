"""Unsupervised exploration before the first questions: the policy learns to visit new states, so that these are about varied behavior."""

from rather.core import Answered
from rather.errors import CheckpointError
from rather.learners import checkpoint
from rather.learners.checkpoint import Lineage
from rather.pipeline import build
from rather.pipeline.state import State
from rather.settings import UNSUPERVISED


def explore(run: State) -> None:
    """Train the policy that the first round begins with for control.unsupervised_steps steps, rewarded for how new states are.

    That is unsupervised pre-training as in PEBBLE (Lee et al. 2021): before anybody is asked, and without the environment's reward.

    Raises:
        ConfigError: the run cannot train a policy.
        CheckpointError: it was begun with other settings.
    """
    folder, steps = run.checkpoints(0, UNSUPERVISED), run.config.control.unsupervised_steps
    found = checkpoint.every(folder)
    if not steps or (found and checkpoint.finished(checkpoint.check(found[-1]))):
        return
    from rather.control.state_entropy import StateEntropy  # here, since runs about text do without gymnasium

    own = run.config.run.model_copy(update={"seed": build.seed(run.config, UNSUPERVISED, 0)})  # of other episodes than the first round's
    config = run.config.model_copy(update={"run": own})
    learner = run.domain.improver(0, run.domain.base_policy, StateEntropy(seed=own.seed), steps, config, None)
    run.learn(learner, UNSUPERVISED, 0, steps, _lineage(run))


def otherwise(run: State) -> bool:
    """Whether the run has explored with other settings than it has now."""
    found = checkpoint.every(run.checkpoints(0, UNSUPERVISED))
    try:
        for path in found[-1:]:
            checkpoint.check_same(path, _lineage(run))
    except CheckpointError:
        return True
    return False


def _lineage(run: State) -> Lineage:
    return run.lineage(UNSUPERVISED, Answered([]), run.config.control.unsupervised_steps)
