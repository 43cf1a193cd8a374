"""What a run comes to on what it was not trained on: held-out prompts for the policy, held-back questions for the reward model."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import torch

from rather.config.schema import Config
from rather.core import Comparison, Model, Rate, RewardModel, Trajectory
from rather.errors import ConfigError
from rather.judges.model import ModelJudge
from rather.learners import checkpoint
from rather.learners.progress import progress
from rather.learners.rates import of_any_size, rate
from rather.pipeline import build
from rather.pipeline.state import State
from rather.report.cost import Cost, cost
from rather.report.rates import calibration, win_rate
from rather.scale import ranks
from rather.verify.checker import Checker


def compare(run: State, number: int) -> str | None:
    """Compare the policy with the base policy on held-out tasks; returns how it did, in words.

    Its win rate, where verifiers or an environment say what is right its score and that of the base. None while people have not answered.

    Raises:
        TrainingError: there is no policy, or its verifiers judged nothing.
    """
    c, tasks = run.config, run.domain.tasks[1]
    check_tasks(run)
    check_opponent(run)
    last = run.last(number)
    step, digest = checkpoint.check(last)["step"], checkpoint.digest(last)
    if (measured := run.domain.measured(partial(run.policy, number + 1))) is not None:
        values, said = measured
        run.metrics.replace(f"eval-{number}", step, values | {"prompts": len(tasks)}, checkpoint=digest)
        return said
    purpose = run.evaluation(f"eval-{number}-{step}", digest, reward_fingerprint(run, number))
    have = run.store.keys(c.run.name, purpose)
    asked = [(t, i) for t in tasks for i in range(c.eval.answers)]
    missing = [(t, i) for t, i in asked if f"{purpose}/{t.key}/{i}" not in have]
    name = f"{c.run.name}@{number}-{step}-{digest}"
    if missing:
        drawn = list[list[Trajectory]]()
        with progress(run.console, "answering held-out prompts", 2 * len(missing)) as advance:
            opponent = run.domain.opponent(run, number, advance)
            ours = run.domain.sampler(run.policy(number + 1), advance)
            for sampler, seed in ((ours, "eval"), (opponent, "eval-start")):
                drawn.append(sampler.sample([t for t, _ in missing], build.seed(c, seed, number)))
        named = [replace(t, policy=name) for t in drawn[0]]
        starts = [replace(t, policy=f"{c.run.name}@start") for t in drawn[1]]
        both = zip(missing, named, starts, strict=True)
        run.store.ask(c.run.name, [run.question(f"{purpose}/{t.key}/{i}", (a,), (b,)) for (t, i), a, b in both], purpose)
    run.answering.label(purpose)
    if run.answering.kind == "people":
        run.answering.wait(purpose)
    voters = run.voters
    answered = run.store.answered(c.run.name, purpose, judges=voters or None).comparisons
    if not answered:
        silent = run.store.labels(c.run.name, purpose)
        if len({label.comparison for label in silent}) < len(asked):
            return None
        return f"there is no win rate: all {len(silent)} answers are abstentions"
    result = win_rate(answered, name)
    price = _cost(run, answered, name)
    values = {"win_rate": result.mean, "win_rate_low": result.low, "win_rate_high": result.high, "prompts": result.count}
    against = c.eval.against
    said = f"win rate against {against}: {result}"
    if build.verified(c):
        after, before = (_score(run, answered, who) for who in (name, f"{c.run.name}@start"))
        values |= {"score_policy": after.mean, "score_policy_low": after.low, "score_policy_high": after.high}
        values |= {"score_base": before.mean, "score_base_low": before.low, "score_base_high": before.high}
        said = f"held-out score: {after}; before: {before}"
    about = {"checkpoint": digest, "evaluation": purpose, "judges": voters} | ({"against": against} if c.eval.best_of > 1 else {})
    run.metrics.replace(f"eval-{number}", step, values | price.metrics(), **about)
    return "\n".join([said, f"what it cost: {price}", *(f"warning: {sentence}" for sentence in price.warnings())])


def check_tasks(run: State) -> None:
    """Make sure that there is something to compare on.

    Raises:
        ConfigError: no task is held out.
    """
    if not run.domain.tasks[1]:
        raise ConfigError("there are no held-out prompts; set data.held_out or add a split column to the prompt file")


def reward_fingerprint(run: State, number: int) -> str:
    """What stands for the reward that chooses the best of several answers of the base model after round `number`, if one does.

    A head that is fitted on the spot is what it has learned from.
    """
    c, saved = run.config, checkpoint.every(run.checkpoints(number, "reward"))
    if c.eval.best_of == 1:
        return ""
    if c.train.reward == "model":
        return run.contents({"judge": {"checkpoint": c.judge.checkpoint}}).get("judge.checkpoint", "")
    if saved:
        return checkpoint.digest(saved[-1])
    return hashlib.sha256(json.dumps(run.labels(number + 1, "reward").labels).encode()).hexdigest()[:8]


def check_opponent(run: State) -> None:
    """Make sure that there is, or will be, what eval.best_of compares the policy with.

    Raises:
        ConfigError: nothing chooses the best of several answers, or they would all be the same.
    """
    c, n = run.config, run.config.eval.best_of
    if n == 1 or c.train.learner in ("reward", "zeroth"):
        return
    if c.control.env or build.verified(c):
        why = "control" if c.control.env else "a run whose reward is verifiers'"
        raise ConfigError(f"eval.best_of = {n} compares answers that a learned reward chooses, and this is {why}; set it to 1")
    if c.sample.temperature == 0:
        raise ConfigError(f"eval.best_of = {n} at temperature 0 draws the same answer {n} times; set sample.temperature above 0")
    learned = c.train.learner in ("ppo", "grpo") or c.reward.kind == "head"
    if not (learned or any(checkpoint.every(run.checkpoints(number, "reward")) for number in range(c.loop.rounds))):
        why = 'chooses by a reward, and there is none; set reward.kind = "head", which learns it from labels'
        raise ConfigError(f"eval.best_of = {n} {why}")


def check_patience(config: Config) -> None:
    """Make sure that a fit which is to end by the loss on held-back questions can.

    Raises:
        ConfigError: none are held back, or it is not a fit of several epochs to labels that are there.
    """
    r = config.reward
    if not r.patience:
        return
    what = f"reward.patience = {r.patience} ends a fit by its loss on questions kept back"
    if not r.held_out:
        raise ConfigError(f"{what}, and reward.held_out is 0; set it to 0.2, or reward.patience to 0")
    if r.kind == "head":
        raise ConfigError(f'{what}, and reward.kind = "head" is fitted in one step; set reward.patience to 0')
    if config.judge.kind == "people":
        raise ConfigError(f'{what}, and with judge.kind = "people" labels come in while it learns; set reward.patience to 0')


def _score(run: State, answered: Sequence[Comparison], policy: str) -> Rate:
    """Mean score by the verifiers of what `policy` answered, over prompts."""
    by_task: dict[str, list[float]] = {}
    (checker,) = run.judges
    assert isinstance(checker, Checker)
    answers = [t for c in answered for side in (c.a, c.b) for t in side if t.policy == policy]
    for answer, score in zip(answers, checker.score(answers), strict=True):
        if score is not None:
            by_task.setdefault(answer.task.key, []).append(score)
    means = [sum(scores) / len(scores) for scores in by_task.values()]
    return rate(means) if all(0 <= mean <= 1 for mean in means) else of_any_size(means)


def check_reward(run: State, model: Model, step: int) -> None:
    """Accuracy and calibration on the questions that were held back, and how far the score follows length."""
    name, on = run.config.run.name, run.config.train.criterion
    judges, learnable = run.teachers(), run.domain.learnable
    kept = run.store.answered(name, "train", only=lambda c: run.held_back(c) and learnable(c), judges=judges, criterion=on)
    held = ranks.everyones(kept.comparisons)[0]
    if not held:
        return
    assert isinstance(model, RewardModel)
    judge = ModelJudge("reward", model, run.config.train.micro_batch_tokens)
    scored = judge.scores(held)
    a, b = (torch.cat([pair[i].mean(0) for pair in scored]) for i in (0, 1))
    preferences = [c.preference for c in held if c.preference is not None]
    result = calibration([float(p) for p in torch.sigmoid(a - b)], preferences)
    words = [float(len((t.text or "").split())) for side in "ab" for c in held for t in getattr(c, side)[:1]]
    for phase in ("reward-eval", "calibration"):
        run.metrics.rewind(phase, -1)
    values = {
        "accuracy": result.accuracy.mean, "accuracy_low": result.accuracy.low, "accuracy_high": result.accuracy.high,
        "questions": result.accuracy.count, "calibration_error": result.error,
    }  # fmt: skip
    if any(words):
        values["length_correlation"] = torch.corrcoef(torch.stack([torch.cat([a, b]).cpu(), torch.tensor(words)]))[0, 1].item()
    run.metrics.write("reward-eval", step, values)
    for mean, share, count in result.bins:
        run.metrics.write("calibration", step, {"predicted": mean, "observed": share, "count": count})
    chosen = " (by which its weights were chosen)" if run.config.reward.patience else ""
    run.console.print(f"The reward model orders held-out questions{chosen} right in {result.accuracy}.")


def _cost(run: State, answered: Sequence[Comparison], name: str) -> Cost:
    """What the policy called `name` has become beside the base model, in the answers that were compared."""
    answers = [t for c in answered for side in (c.a, c.b) for t in side]
    after, before = ([t for t in answers if (t.policy == name) == ours] for ours in (True, False))
    with progress(run.console, "reading with the base model", len(answers), transient=True) as advance:
        return cost(run.domain.reader(), after, before, run.config.train.micro_batch_tokens, advance)
