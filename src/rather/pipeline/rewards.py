"""What rewards the policy of a round: verifiers, a reward model, the environment, or verifiers that comparisons correct after an alarm."""

from collections.abc import Collection
from pathlib import Path

from rather.config import criteria
from rather.core import Answered, RewardModel
from rather.errors import TrainingError
from rather.pipeline import build, resume
from rather.pipeline.build import AnyPolicy
from rather.pipeline.mended import MendedReward
from rather.pipeline.state import State
from rather.verify.checker import Checker


def corrections(run: State, number: int, among: Collection[int] | None = None) -> Answered:
    """The comparisons that correct the verifiers of round `number`: all, which are waited for, or labels `among` these.

    Without any where nothing is corrected.

    Raises:
        TrainingError: there are none.
    """
    if not run.corrects_verifiers(number):
        return Answered([])
    if among is None:
        run.answering_training.have_answered(build.purpose(run.config))
    answered = run.labels(number, "verify", among)
    resume.say_left_out(run, answered)
    if not answered.comparisons:
        answer = "serve" if run.config.judge.kind == "people" else "label"
        remedy = f"run `rather sample --round {number}` and `rather {answer}`, or `rather loop`"
        raise TrainingError(f"no comparison has an answer, by which the verifiers of round {number} are to be corrected; {remedy}")
    criteria.check_said(run.config, answered.comparisons)
    return answered


def reward_fn(run: State, number: int, saved: Path, data: Answered) -> Checker | MendedReward | RewardModel | None:
    """What rewards the policy of round `number`: the reward model in the checkpoint `saved`, or verifiers, corrected by `data`.

    None where it is the environment alone.

    Raises:
        CheckpointError: there is no such reward model.
        DataError: the comparisons cannot correct, as when they are of sets of answers.
    """
    config = run.settings(number)
    reward = run.domain.reward_fn(saved, config)
    if not (isinstance(reward, Checker) and run.corrects_verifiers(number)):
        return reward
    base = run.domain.base_policy
    assert isinstance(base, AnyPolicy)
    try:
        return MendedReward(reward, build.reward_head(run.config, base), data.comparisons, pessimism=config.train.pessimism)
    except BaseException:
        reward.close()
        raise


def close(run: State, reward: object) -> None:
    """End verifiers' processes, and say what they could not judge."""
    checker = reward.scorer if isinstance(reward, MendedReward) else reward
    if isinstance(checker, Checker):
        checker.close()
        for problem, count in checker.problems.most_common(3):
            run.console.print(f"{count} answers could not be verified: {problem}", markup=False)
