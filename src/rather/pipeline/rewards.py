"""What rewards the policy of a round: verifiers, a reward model, the environment, or after an alarm verifiers that comparisons mend."""

from collections.abc import Collection
from pathlib import Path

from rather.core import Answered, RewardModel
from rather.errors import TrainingError
from rather.pipeline import build
from rather.pipeline.build import AnyPolicy
from rather.pipeline.mended import MendedReward
from rather.pipeline.state import State
from rather.verify.checker import Checker


def mending(run: State, number: int, among: Collection[int] | None = None) -> Answered:
    """The comparisons that mend the verifiers of round `number`: all, for which it waits, or labels `among` these; else none.

    Raises:
        TrainingError: nobody has compared any answers.
    """
    if not run.mended(number):
        return Answered([])
    if among is None:
        run.comparing.have_answered(build.purpose(run.config))
    found = run.labels(number, run.config.train.learner, among)
    if not found.comparisons:
        how = f"run `rather sample --round {number}` and `rather label`, or `rather loop`, which does both"
        raise TrainingError(f"nobody has compared answers, by which the verifiers of round {number} are to be mended; {how}")
    return found


def reward_fn(run: State, number: int, saved: Path, data: Answered) -> Checker | MendedReward | RewardModel | None:
    """What rewards the policy of round `number`, of which a reward model is in the checkpoint `saved`; `data` mends verifiers."""
    config = run.settings(number)
    found = run.domain.reward_fn(saved, config)
    if not (isinstance(found, Checker) and run.mended(number)):
        return found
    base = run.domain.base_policy
    assert isinstance(base, AnyPolicy)
    try:
        return MendedReward(found, build.reward_head(run.config, base), data.comparisons, pessimism=config.train.pessimism)
    except BaseException:
        found.close()
        raise


def close(run: State, found: object) -> None:
    """End verifiers' processes, and say what they could not judge."""
    if isinstance(found, MendedReward):
        found = found.scorer
    if isinstance(found, Checker):
        found.close()
        for problem, count in found.problems.most_common(3):
            run.console.print(f"{count} answers could not be verified: {problem}", markup=False)
