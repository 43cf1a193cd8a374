"""A round that mends: after an alarm people compare answers of the policy that was hacked with those of the one that was gone back to."""

import json
from collections import Counter
from html import escape
from pathlib import Path
from typing import Any

import pytest
from runs import go

from rather.config import toml
from rather.core import Label
from rather.errors import CheckpointError, ConfigError, TrainingError
from rather.hacking import examples
from rather.hacking.alarm import Alarm
from rather.hacking.watch import Watch
from rather.learners import checkpoint
from rather.learners.metrics import Metrics
from rather.pipeline import build, resume, state
from rather.pipeline.mended import MendedReward
from rather.text.head.model import RewardHead


class AtStep4(Watch):
    """An alarm at step 4 of a training's first round, which says that step 2 was best."""

    def __init__(self, rounds: Any = ((),), proxy: str = "score", dismissed: Any = ()) -> None:
        super().__init__(rounds, proxy, dismissed)
        self.first, self.seen = len(rounds) == 1, [row["step"] for row in rounds[-1]][-1:]

    @property
    def raised(self) -> Alarm | None:
        return Alarm(4, 2, (0.0, 1.0), (1.0, 0.0), "falls") if self.first and self.seen and self.seen[0] >= 4 else None

    def __call__(self, step: int, values: dict[str, float]) -> bool:
        self.seen = [step]
        return self.raised is not None


@pytest.fixture
def settings(text_run: list[str], monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setattr(state, "Watch", AtStep4)
    return [
        *text_run, "train.learner=grpo", "train.reward=labels", "reward.kind=head", "reward.held_out=0", "train.steps=6",
        "train.batch_size=2", "grpo.group_size=2", "train.lr=1e-2", "train.checkpoint_every=1", "hack.then=mend", "hack.gold=brief",
        "loop.rounds=2",
        "sample.temperature=2.0",
    ]  # fmt: skip


def test_the_next_round_asks_about_the_hacked_policy_and_trusts_the_reward_less(settings: list[str]) -> None:
    run = go(settings)
    run.loop()
    first, second = run.checkpoints(0), run.checkpoints(1)
    assert checkpoint.check(checkpoint.every(first)[-1])["step"] == 2
    note = json.loads((first / "exploited.json").read_text())
    assert note["step"] == 4
    shown = examples.noted(first, 4)
    assert shown
    assert all(x.proxy[1] > x.proxy[0] and x.gold is not None for x in shown)
    assert not (second / "exploited.json").exists(), "it has ended without an alarm"
    page = run.report().html
    assert "What was exploited" not in page, "that is the page of `rather hack`"
    assert "The answers that gained most by the proxy reward" in page
    assert escape(shown[0].after.strip()) in page
    hacked = sorted(path.name for path in first.glob("hacked-step-*"))
    assert hacked == ["hacked-step-000003", "hacked-step-000004"]
    asked = [q.comparison for q in run.store.questions("run", "train") if q.comparison.key.startswith("round-1/")]
    assert len(asked) == 10
    assert all({t.policy for side in (c.a, c.b) for t in side} == {"run@0-2", "run@0-4"} for c in asked)

    drawn = run.domain.sampler(run.domain.restored(first / hacked[-1] / "model", "run@0-4"), lambda n: None)
    tasks = run.domain.tasks[0]
    own = {t.task.key: t.text for t in drawn.sample(tasks, build.seed(run.config, "sample-hacked", 1))}
    said = {t.task.key: t.text for c in asked for side in (c.a, c.b) for t in side if t.policy == "run@0-4"}
    assert said == own

    last = checkpoint.check(checkpoint.every(second)[-1])
    assert last["step"] == 6
    kept = last["settings"]
    assert (kept["grpo"]["kl"], kept["train"]["pessimism"]) == (0.05, 1.0)
    assert checkpoint.check(checkpoint.every(first)[-1])["settings"]["train"]["pessimism"] == 0.0
    reward = run.domain.reward_fn(checkpoint.every(run.checkpoints(1, "reward"))[-1], run.settings(1))
    assert isinstance(reward, RewardHead)
    assert reward.pessimism == 1.0
    assert len(last["labels"]) > len(checkpoint.check(checkpoint.every(first)[-1])["labels"]), "old and new labels"
    assert run.settings(0) == run.config

    (first / "exploited.json").unlink()  # killed before they were kept
    again = go(settings)
    again.train(0)
    assert json.loads((first / "exploited.json").read_text()) == note
    again.loop()
    assert checkpoint.every(second)[-1] == checkpoint.every(again.checkpoints(1))[-1]
    with pytest.raises(CheckpointError, match=r"grpo.kl = 0.05, not 0.1"):
        go(settings, "hack.kl=0.1").loop()
    with pytest.raises(CheckpointError, match=r"train.pessimism = 1.0, not 0.0"):
        go(settings, "hack.then=back").loop()


def test_of_several_answers_the_first_two_are_of_either_policy(settings: list[str]) -> None:
    run = go(settings, "query.answers=4", "query.random_share=1", "query.strategy=near_tie")
    run.loop()
    asked = [q.comparison for q in run.store.questions("run", "train") if q.comparison.key.startswith("round-1/")]
    assert all({t.policy for side in (c.a, c.b) for t in side} == {"run@0-2", "run@0-4"} for c in asked)


def test_a_killed_mending_goes_on_exactly(settings: list[str], tmp_path: Path) -> None:
    whole = go(settings)
    whole.loop()
    parts = [x if not x.startswith("run.folder") else f"run.folder={tmp_path}/parts" for x in settings]
    go(parts).sample(0)
    go(parts).label()
    go(parts).train(0)
    run = go(parts)
    chosen = next(iter(run.domain.questions(run, 1)))  # killed before they were kept
    del chosen
    go(parts).sample(1)
    go(parts).label()
    go(parts).train(1)
    ours, theirs = (checkpoint.every(r.checkpoints(1))[-1] for r in (whole, go(parts)))
    assert (ours / "model" / "adapter_model.safetensors").read_bytes() == (theirs / "model" / "adapter_model.safetensors").read_bytes()


def test_a_round_that_has_stopped_is_not_mended(settings: list[str]) -> None:
    stopped = [*settings, "hack.then=stop"]
    go(stopped).sample(0)
    go(stopped).label()
    go(stopped).train(0)
    with pytest.raises(ConfigError, match="round 0 has ended at its alarm, with the policy of step 4, and has not gone back"):
        go(settings).sample(1)


def test_without_an_alarm_nothing_is_mended(settings: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state, "Watch", Watch)
    run = go(settings, "train.steps=2")
    run.loop()
    assert run.settings(1) == run.config
    asked = [q.comparison for q in run.store.questions("run", "train") if q.comparison.key.startswith("round-1/")]
    assert all({t.policy for side in (c.a, c.b) for t in side} == {"run@0-2"} for c in asked)


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ("loop.rounds=1", "it is the next round that mends; set loop.rounds to 2 or more"),
        ("train.reward=model", 'train.reward is "model"; take "back", and rather.MendedReward in Python'),
        ("control.env=Pendulum-v1", 'for control take "back"'),
        ("reward.kind=lora", "hack.pessimism goes by how much members differ; set reward.members to 3"),
        ("sample.contrast=['x ', 'y ']", "leave sample.contrast out"),
        ("hack.gold=", "set hack.gold, or hack.checks, without which nobody knows where it was best"),
        ("train.learner=dpo", "has no reward that can be hacked"),
    ],
)
def test_what_cannot_be_mended_is_refused(settings: list[str], changed: str, why: str) -> None:
    extra = ["control.gold=laps"] if changed.startswith("control") else []
    with pytest.raises(ConfigError, match=why):
        resume.check_watched(toml.load(None, [*settings, changed, *extra]))


@pytest.fixture
def verified(settings: list[str]) -> list[str]:
    """Verifiers that reward small letters."""
    check = 'verify.checks=[{kind="pattern", pattern="[a-z]"}]'
    return [
        *settings,
        "train.reward=verify",
        check,
        "reward.kind=lora",
        "loop.rounds=3",
        "train.steps=5",
        "verify.workers=1",
        "train.keep=20",
    ]


def test_verifiers_are_corrected_by_comparisons_from_the_alarm_on(verified: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    made = list[MendedReward]()
    init = MendedReward.__init__

    def kept(self: MendedReward, *given: Any, **more: Any) -> None:
        init(self, *given, **more)
        made.append(self)

    monkeypatch.setattr(MendedReward, "__init__", kept)
    run = go(verified)
    run.loop()
    keys = [q.comparison.key for q in run.store.questions("run", "train")]
    assert len(keys) == 10, "the first round asks nothing, the second about every prompt, and the third saw no alarm"
    assert all(key.startswith("round-1/") for key in keys)
    pairs = Counter(
        frozenset(t.policy for side in (q.comparison.a, q.comparison.b) for t in side) for q in run.store.questions("run", "train")
    )
    base = run.domain.base_policy.name
    three = [{"run@0-4", base}, {"run@0-2", base}, {"run@0-2", "run@0-4"}]
    assert pairs == {frozenset(pair): count for pair, count in zip(three, (4, 3, 3), strict=True)}, "two of the three in turn"
    assert run.store.judges().keys() >= {"verifier", run.answering_training.judges[0].name}
    assert {x.judge for x in run.store.labels("run", "train")}.isdisjoint({"verifier"}), "they do not correct themselves"

    assert len(made) == 2, "in the second round, and in the third"
    assert [len(mended.comparisons) for mended in made] == [len(x.comparisons) for x in [run.labels(1, "verify")] * 2]
    assert [mended.pessimism for mended in made] == [1.0, 1.0]
    assert made[0].scorer is not None
    manifests = [checkpoint.check(checkpoint.every(run.checkpoints(number))[-1]) for number in range(3)]
    assert manifests[0]["labels"] == []
    assert manifests[1]["labels"] == manifests[2]["labels"] == run.labels(2, "verify").labels
    assert [m["settings"]["grpo"]["kl"] for m in manifests] == [0.0, 0.05, 0.05]
    answers = [t for c in run.labels(1, "verify").comparisons for t in (c.a[0], c.b[0])]
    by_verifiers = build.checker(run.config)
    plain, now = by_verifiers.score(answers), made[0].score(answers)
    by_verifiers.close()
    made[0].scorer.close()  # type: ignore[attr-defined]
    assert {*plain} == {0.0, 1.0}
    assert len({*now}) > 2
    assert not run.corrects_verifiers(0)
    assert not go(verified, "hack.then=back").corrects_verifiers(1)
    assert examples.noted(run.checkpoints(0), 4) is not None, "by the verifiers alone"
    run.close()


def test_a_training_on_mended_verifiers_that_was_killed_goes_on_exactly(
    verified: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = go(verified)
    whole.loop()
    whole.close()
    parts = [x if not x.startswith("run.folder") else f"run.folder={tmp_path}/parts" for x in verified]
    go(parts).train(0)
    with pytest.raises(TrainingError, match=r"no comparison has an answer, by which the verifiers of round 1 are to be corrected; run"):
        go(parts).train(1)
    go(parts).sample(1)
    go(parts).label()
    run = go(parts)
    write = Metrics.write

    def killed(self: Metrics, phase: str, step: int, *values: Any, **more: Any) -> None:
        write(self, phase, step, *values, **more)
        if (phase, step) == ("train-grpo-1", 4):
            raise KeyboardInterrupt

    monkeypatch.setattr(Metrics, "write", killed)
    with pytest.raises(KeyboardInterrupt):
        run.train(1)
    monkeypatch.setattr(Metrics, "write", write)
    number = next(q.id for q in run.store.questions("run", "train"))
    run.store.add_judge("late", "person")
    run.store.answer(Label(number, "late", 1.0))  # what it began with is not changed by that
    assert 0 < checkpoint.check(checkpoint.every(run.checkpoints(1))[-1])["step"] < 5
    go(parts).train(1)
    ours, theirs = (next(p for p in checkpoint.every(r.checkpoints(1)) if p.name.endswith("05")) for r in (whole, go(parts)))
    assert (ours / "model" / "adapter_model.safetensors").read_bytes() == (theirs / "model" / "adapter_model.safetensors").read_bytes()
    with pytest.raises(CheckpointError, match=r"reward.layers = \[1, 2\], not \[2\]"):
        go(parts, "reward.layers=[2]").train(1)
    go(parts, "reward.layers=[2]").ready(0)  # whose reward reads no states


@pytest.mark.parametrize(("questions", "rounds", "asked"), [(4, 3, [0, 2, 2]), (30, 3, [0, 10, 10]), (6, 2, [0, 6])])
def test_questions_are_kept_for_rounds_that_follow_an_alarm(
    verified: list[str], monkeypatch: pytest.MonkeyPatch, questions: int, rounds: int, asked: list[int]
) -> None:
    monkeypatch.setattr(
        AtStep4, "raised", property(lambda self: Alarm(4, 2, (0.0, 1.0), (1.0, 0.0), "falls") if self.seen >= [4] else None)
    )
    run = go(verified, f"query.questions={questions}", f"loop.rounds={rounds}", "query.schedule=constant")
    run.loop()
    keys = run.store.keys("run", "train")
    assert [sum(key.startswith(f"round-{n}/") for key in keys) for n in range(rounds)] == asked
    run.close()


def test_a_judge_that_cannot_be_made_is_refused_before_anything_is_trained(verified: list[str]) -> None:
    with pytest.raises(ConfigError, match='judge.kind = "function" needs judge.function'):
        go(verified, "judge.kind=function").loop()


def test_the_evaluation_is_the_verifiers_whoever_compares(verified: list[str]) -> None:
    for kind in ("people", "terminal"):
        run = go(verified, f"judge.kind={kind}", f"run.name={kind}")
        run.train(0)
        assert "held-out score" in (run.evaluate(0) or "")
        run.close()


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ("judge.kind=verifier", "they would agree with themselves; let people, a model or a panel judge"),
        ("query.answers=4", "two of three policies' answers at a time; set query.answers to 2"),
    ],
)
def test_verifiers_that_nobody_would_correct_are_refused(verified: list[str], changed: str, why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        resume.check_watched(toml.load(None, [*verified, changed]))
