"""Learning from labels, from the last checkpoint on: what was begun is finished first, and what has come since is learned after it.

A training keeps the labels and the number of steps that it began with. Once it has finished it goes on where there is more: more labels,
or more steps by `train.steps` or `train.epochs`. The number of steps is always that of the whole training, and so is the learning rate:
it is that of a training which had so many steps from the beginning.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

from rather.config import criteria, guidelines
from rather.config.schema import Config
from rather.config.toml import mattering
from rather.core import Answered
from rather.errors import ConfigError
from rather.learners import checkpoint
from rather.learners.checkpoint import Lineage
from rather.learners.learner import HeldOut
from rather.learners.reward import Reward
from rather.pipeline import build, held_out, spot_checks
from rather.pipeline.state import State
from rather.pipeline.unused import unused
from rather.scale import ranks
from rather.settings import REWARDED, UNSUPERVISED
from rather.store.rows import LEARNED


def last(folder: Path) -> dict[str, Any] | None:
    """The manifest of the last checkpoint in `folder`, whose files are whole; None where there is none."""
    found = checkpoint.every(folder)
    return checkpoint.check(found[-1]) if found else None


def with_last_labels(lineage: Lineage, folder: Path) -> Lineage:
    """`lineage` as that of a training that has learned from the labels of the last checkpoint in `folder`, if there is one."""
    manifest = last(folder)
    return lineage if manifest is None else replace(lineage, watermark=manifest["watermark"], labels=manifest["labels"])


def fit(run: State, number: int, name: str) -> Path:
    """Train the learner called `name` on the labels of round `number`; returns the last checkpoint."""
    folder = run.checkpoints(number, name)
    stage = last(folder)
    if stage is not None and not checkpoint.finished(stage) and not ended_early(run, folder):
        began = ranks.everyones(run.labels(number, name, {*stage["labels"]}))[0]
        kept = stage["settings"].get("_held_out")
        _learn(run, number, name, began, stage["settings"]["_steps"], follows=bool(stage.get("before")), kept=kept)
        stage = last(folder)
    data = ranks.everyones(run.labels(number, name))[0]  # another may come in while they are read
    say_left_out(run, data)
    steps = build.steps(run.config, name, len(data.comparisons))
    if stage is None:
        return _learn(run, number, name, data, steps)
    found = checkpoint.every(folder)[-1]
    checkpoint.check_same(found, run.lineage(name, data, steps))
    new, gone = set(data.labels) - set(stage["labels"]), set(stage["labels"]) - set(data.labels)
    if new:  # they are used as often as the others were
        items = max(1, round(len(data.comparisons) * len(new) / len(data.labels)))
        steps = max(steps, stage["step"] + build.further(run.config, name, items))
    if stage["step"] >= steps or (not new and ended_early(run, folder)):
        if gone:
            said = f"{len(gone)} of the labels that {found} learned from do not count any more; train anew without them: --fresh"
            run.console.print(said, markup=False, highlight=False)
        return found
    if not new:
        return _learn(run, number, name, data, steps, follows=bool(stage.get("before")))
    return _learn(run, number, name, ranks.everyones(run.labels(number, name, {*stage["labels"]}))[0], steps, then=data)


def ended_early(run: State, folder: Path) -> bool:
    """Whether the last checkpoint in `folder` is of a fit that reward.patience has ended."""
    held, patience = checkpoint.skeleton(checkpoint.every(folder)[-1]).get("held_out"), run.config.reward.patience
    return held is not None and 0 < patience <= held["since"]


def say_left_out(run: State, data: Answered) -> None:
    """Say how many answers are not learned from, and why, if there are any."""
    if count := data.left_out.total():
        reasons = ", ".join(f"{n} {flag}" for flag, n in data.left_out.most_common())
        run.console.print(f"{count} answer{'s' if count > 1 else ''} left out: {reasons}", markup=False, highlight=False)


def steps_of_policy(stage: dict[str, Any] | None, steps: int, labels: list[int]) -> int:
    """Where a policy goes to that is to take `steps` steps on the rewards of a reward model that has learned from `labels`.

    In the middle of its training: to the end of it. Where its reward model has learned more since: so many steps more.
    """
    if stage is None:
        return steps
    if not checkpoint.finished(stage):
        return stage["settings"]["_steps"]
    return stage["step"] + steps if stage["labels"] != labels else steps


def _learn(
    run: State,
    number: int,
    name: str,
    data: Answered,
    steps: int,
    follows: bool = False,
    then: Answered | None = None,
    kept: list[int] | None = None,
) -> Path:
    """Go on from the last checkpoint with the labels in `data`, or `then` others; `follows`: as one that has gone on before.

    `kept` are the labels that reward.patience goes by, where the training has begun with them.
    """
    criteria.check_said(run.config, data.comparisons)
    learner = run.learner(number, name, data, steps)
    if follows:
        learner.follow(data.comparisons)
    lineage = run.lineage(name, then or data, steps)
    held = None
    if run.config.reward.patience and isinstance(learner, Reward):
        held_back = ranks.everyones(run.labels(number, name, None if kept is None else {*kept}, kept=True))[0]
        lineage = replace(lineage, settings=lineage.settings | {"_held_out": held_back.labels})
        if held_back.comparisons:
            held = HeldOut(learner, held_back.comparisons, 0, run.config.reward.patience)
        else:
            run.console.print("No answered question is kept back so far, so that this fit takes all its steps, whatever reward.patience.")

    def feed(*_: object) -> Lineage | None:
        nonlocal then
        if then is not None:
            learner.follow(then.comparisons)
            then = None
            if held is not None:
                held.forget()
        return None if held is not None and held.over else lineage

    found = run.learn(held or learner, name, number, steps, lineage, feed, callbacks=[held] if held else [])
    if name == "reward":
        held_out.check_reward(run, learner.model, checkpoint.read(found)["step"])
    return found


def ready(run: State, number: int) -> None:
    """Make sure that training can go on in round `number`, before anything is sampled or asked.

    Raises:
        CheckpointError: its last checkpoint was trained with other settings, or with prompts, a tokenizer or a reward model that have
            changed since.
        ConfigError: see `ready_to_learn` and `guidelines.read`; or several ranks are to train where comparisons correct verifiers.
    """
    guidelines.read(run.config.judge.guidelines)
    ready_to_learn(run)
    run.check_mends(number)
    if run.corrects_verifiers(number) and ranks.wanted() > 1:
        raise ConfigError(f"comparisons correct the verifiers of round {number} in one process; start it without torchrun")
    for name in learners(run.config):
        for found in checkpoint.every(run.checkpoints(number, name))[-1:]:
            checkpoint.check_same(found, run.lineage(name, Answered([]), 0, run.settings(number), number))


def ready_to_learn(run: State) -> None:
    """Make sure that what is learned from is there or will be asked for, and that the model reads it as before; note what is `unused`.

    Raises:
        ConfigError: see `check_tokenizer`, `check_watched`, `held_out.check_patience`, `criteria.check_learned` and `Domain.check_learner`.
    """
    criteria.check_learned(run.config, run.store)
    check_tokenizer(run)
    check_watched(run.config)
    spot_checks.check_settings(run)
    held_out.check_opponent(run)
    run.domain.check_learner()
    if "reward" in learners(run.config):
        held_out.check_patience(run.config)
    if build.corrected(run.config):
        _ = run.answering_training.judges  # one that cannot be made is noticed now
    for sentence in unused(run.config, learners(run.config)):
        run.note(sentence)


def check_watched(config: Config) -> None:
    """Make sure that an alarm which is to end a training can go off.

    Raises:
        ConfigError: the learner has no reward, or control no gold reward.
    """
    if config.hack.then == "nothing":
        return
    if config.train.learner not in REWARDED:
        raise ConfigError(f'hack.then is "{config.hack.then}", but train.learner "{config.train.learner}" has no reward that can be hacked')
    if config.control.env and not config.control.gold:
        raise ConfigError(f'hack.then is "{config.hack.then}"; set control.gold, without which no alarm can go off in control')
    if config.hack.goes_back and not (config.control.gold or config.hack.gold or config.hack.checks):
        what = "hack.gold, or hack.checks, without which nobody knows where it was best"
        raise ConfigError(f'hack.then is "{config.hack.then}"; set {what}')
    if config.hack.then == "mend":
        check_mended(config)


def check_mended(config: Config) -> None:
    """Make sure that a reward can be mended in the round after an alarm.

    Raises:
        ConfigError: it is not learned from the run's labels, or there is no such round.
    """
    r = config.reward
    if config.control.env:
        raise ConfigError('hack.then is "mend", which compares answers of language models; for control take "back"')
    if config.train.reward not in ("labels", "verify"):
        what = f'hack.then is "mend", which learns from more labels, and train.reward is "{config.train.reward}"'
        raise ConfigError(f'{what}; take "back", and rather.MendedReward in Python')
    if build.corrected(config):
        check_corrected(config)
    if any(config.sample.contrast or ()):
        raise ConfigError('hack.then is "mend", whose rounds draw one answer of each policy; leave sample.contrast out')
    if config.loop.rounds < 2:
        raise ConfigError('hack.then is "mend", and it is the next round that mends; set loop.rounds to 2 or more')
    if config.hack.pessimism and not build.corrected(config) and r.kind == "lora" and r.members < 2:
        what = "hack.pessimism goes by how much members differ"
        raise ConfigError(f"{what}; set reward.members to 3, reward.kind to head, or hack.pessimism to 0")


def check_corrected(config: Config) -> None:
    """Make sure that comparisons can correct verifiers.

    Raises:
        ConfigError: nobody but the verifiers would compare, or not two answers.
    """
    what = 'hack.then is "mend", where comparisons correct the verifiers'
    if config.judge.kind == "verifier":
        raise ConfigError(f'{what}, and judge.kind is "verifier": they would agree with themselves; let people, a model or a panel judge')
    if config.query.answers != 2:
        raise ConfigError(f"{what}, two of three policies' answers at a time; set query.answers to 2")


def learners(config: Config) -> list[str]:
    """What learns in a round: train.learner, the reward model, where it is trained on the labels first, and exploration before that."""
    t = config.train
    reward = ["reward"] if t.learner in REWARDED and t.reward == "labels" else []
    return [t.learner, *reward, *([UNSUPERVISED] if config.control.unsupervised_steps else [])]


def check_tokenizer(run: State) -> None:
    """Make sure that the tokenizer is the one that answers were sampled with.

    Raises:
        ConfigError: it has changed since.
    """
    for row in run.metrics.read():
        if "tokenizer" not in row or row["tokenizer"] == run.domain.tokenizer:
            continue
        number, path = row["phase"].removeprefix("sample-"), run.config.model.path
        if any(key.startswith(f"round-{number}/") for key in run.store.keys(run.config.run.name, LEARNED)):
            was = row["settings"]["model"]["path"]
            what = "has changed since" if path == was else f"is not that of {was!r}, with which"
            remedy = f"round {number} was sampled; put it back, or use another run.name"
            raise ConfigError(f"the tokenizer or chat template of model.path = {path!r} {what} {remedy}")


def note_sampling(run: State, number: int, there: int) -> None:
    """Say so where the questions of a round, `there` already, were sampled with other settings.

    Raises:
        ConfigError: sampling was stopped in the middle, and would go on with other settings.
    """
    phase, now = f"sample-{number}", mattering(run.config, "sample")
    if not there:
        run.metrics.rewind(phase, -1)
    rows = run.metrics.read(phase)
    seeds = [{"run": {"seed": int(row["seed"])}} for row in rows]  # what older lines know
    changed = [", ".join(checkpoint.differences(row.get("settings", was), now, now)) for row, was in zip(rows, seeds, strict=True)]
    said = f"questions of round {number} were sampled with"
    missing = int(rows[-1].get("wanted", 0)) - there if rows else 0
    if missing > 0 and changed[-1]:
        raise ConfigError(f"{said} {changed[-1]}, and {missing} are still missing; set that back, or use another run.name")
    for what in dict.fromkeys(filter(None, changed)):
        remedy = "and stay as they are; to sample again use another run.name"
        run.console.print(f"note: {said} {what}, {remedy}", markup=False, highlight=False)


def keep_sampling(run: State, number: int, questions: int, wanted: int = 0) -> None:
    """Write down how many questions of a round have been sampled, with which settings, and how many the round is to have."""
    values = {"questions": float(questions), "wanted": float(wanted), "seed": float(run.config.run.seed)}
    words = {"tokenizer": digits} if (digits := run.domain.tokenizer) else {}
    run.metrics.write(f"sample-{number}", 0, values, settings=mattering(run.config, "sample"), **words)
