"""Runs whose reward model is a head on the frozen model: trained alone, gone on with, and as what PPO learns from."""

import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from runs import go

from rather.config import toml
from rather.core import Label
from rather.errors import CheckpointError, ConfigError, ModelError
from rather.learners import checkpoint, prequential
from rather.pipeline import build, files
from rather.pipeline.run import Run
from rather.pipeline.terminal import Terminal
from rather.pipeline.trained import merge, reward, trained
from rather.text.head.model import RewardHead


@pytest.fixture
def settings(text_run: list[str]) -> list[str]:
    return [*text_run, "reward.held_out=0.4", "train.learner=reward", "reward.kind=head", "train.steps=100"]


def last(run: Run, name: str = "reward") -> dict[str, Any]:
    return checkpoint.check(checkpoint.every(run.checkpoints(0, name))[-1])


def test_a_head_is_fitted_in_one_step_and_again_when_labels_have_come(settings: list[str], tmp_path: Path) -> None:
    run = go(settings)
    run.sample()
    run.label()
    folder = run.train()
    manifest = last(run)
    assert manifest["step"] == 1, "whatever train.steps says"
    assert go(settings).train() == folder, "there is nothing left to do"
    assert (tmp_path / "run" / "features.db").exists()
    (row,) = run.metrics.read("train-reward-0")
    assert row["comparisons"] == len(run.labels(0, "reward").comparisons)
    assert [r["questions"] for r in run.metrics.read("reward-eval")]
    head = build.saved_reward(run.config, folder)
    assert isinstance(head, RewardHead)
    run.store.add_judge("ann", "person")
    run.store.answer_all([Label(q.id, "ann", 1.0) for q in run.store.questions("run", "train")])
    later = go(settings)
    later.train()
    assert last(later)["step"] == 2
    assert len(last(later)["labels"]) > len(manifest["labels"])
    data = later.labels(0, "reward").comparisons
    cold = RewardHead(later.domain.base_policy, layers=[1, 2], seed=0).learn(data)  # type: ignore[arg-type]
    fitted = build.saved_reward(later.config, later.last(0))
    assert isinstance(fitted, RewardHead)
    assert fitted.learned.posterior.w == pytest.approx(cold.posterior.w, abs=1e-6)
    with pytest.raises(CheckpointError, match="was trained with reward.kind = 'head', not 'lora'"):
        go(settings, "reward.kind=lora").train()


def test_a_head_scores_files_and_is_not_merged(settings: list[str], tmp_path: Path) -> None:
    run = go(settings)
    run.sample()
    run.label()
    folder = run.train()
    (tmp_path / "answers.jsonl").write_text('{"prompt": "question 1?", "a": "ab", "b": "b", "preference": 1}\n')
    found = trained(str(folder), [], "", None, "auto", Console(quiet=True))  # type: ignore[arg-type]
    assert isinstance(found.model, RewardHead)
    assert files.score(found.model, "head", str(tmp_path / "answers.jsonl"), None, lambda n: None).count == 1
    with pytest.raises(ModelError, match="a reward head cannot be merged"):
        merge(found, tmp_path / "merged", "float32")
    (judge,) = go(settings, "judge.kind=model", f"judge.checkpoint={folder}").judges
    (answer,) = judge.judge(run.labels(0, "reward").comparisons[:1])
    assert answer is not None


def test_a_policy_is_compared_with_the_best_of_several_answers_of_the_base(settings: list[str]) -> None:
    shape = ["train.learner=dpo", "train.steps=1", "sample.temperature=2"]
    run = go(settings, *shape, "eval.best_of=4")
    run.sample()
    run.label()
    run.train()
    said = run.evaluate()
    assert said is not None
    assert said.startswith("win rate against the best of 4 answers of the base model: ")
    (row,) = run.metrics.read("eval-0")
    alone = row["evaluation"]
    best = {t.task.key: t.text for c in run.store.answered("run", alone).comparisons for t in (*c.a, *c.b) if t.policy == "run@start"}
    head = RewardHead(run.domain.base_policy, layers=[1, 2], seed=0).fit(run.labels(0, "reward").comparisons)  # type: ignore[arg-type]
    sampler = run.domain.sampler(run.domain.base_policy, lambda n: None)
    for task in run.domain.tasks[1]:
        drawn = sampler.sample([task] * 4, build.seed(run.config, "eval-start", 0))
        scores = head.score(str(task.prompt), [t.text or "" for t in drawn])
        assert best[task.key] == drawn[scores.index(max(scores))].text
    assert "against the best of 4 answers of the base model on 2 held-out prompts" in run.report().html
    plain = go(settings, *shape)
    assert "the base model:" in (plain.evaluate() or "")
    assert plain.metrics.read("eval-0")[-1]["evaluation"] != alone
    again = go(settings, *shape, "eval.best_of=4")
    again.evaluate()
    assert again.metrics.read("eval-0")[-1]["evaluation"] == alone
    again.store.add_judge("ann", "person")
    again.store.answer_all([Label(q.id, "ann", 1.0) for q in again.store.questions("run", "train")])
    again.evaluate()
    assert again.metrics.read("eval-0")[-1]["evaluation"] != alone, "another reward chooses"


def test_a_run_takes_something_off_what_it_is_unsure_of(settings: list[str]) -> None:
    run = go(settings, "train.learner=grpo", "train.reward=labels", "train.pessimism=0.5")
    run.sample()
    run.label()
    saved = run._fit(0, "reward")
    reward = run.domain.reward_fn(saved, run.config)
    assert isinstance(reward, RewardHead)
    assert reward.pessimism == 0.5
    assert run.domain.reward_model(saved).pessimism == 0, "a judge is not pessimistic"  # type: ignore[attr-defined]
    for wrong, why in (
        (["reward.kind=lora"], "set reward.members to 3, or reward.kind to head"),
        (["train.reward=verify"], "takes something off a learned"),
    ):
        with pytest.raises(ConfigError, match=why):
            go(settings, "train.learner=grpo", "train.reward=labels", "train.pessimism=0.5", *wrong)


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        (["train.learner=dpo", "reward.kind=lora"], 'chooses by a reward, and there is none; set reward.kind = "head"'),
        (["train.learner=dpo", "sample.temperature=0"], "draws the same answer 4 times; set sample.temperature above 0"),
        (["train.learner=grpo", "train.reward=verify"], "this is a run whose reward is verifiers'; set it to 1"),
        (["control.env=Pendulum-v1", "train.learner=ppo", "reward.kind=lora", "reward.layers=[]"], "this is control; set it to 1"),
    ],
)
def test_where_nothing_chooses_the_best_of_several_it_is_refused_before_anything_is_done(
    settings: list[str], changed: list[str], why: str
) -> None:
    run = go(settings, "eval.best_of=4", *changed)
    with pytest.raises(ConfigError, match=why):
        run.loop()
    assert not run.store.keys("run", "train")


@pytest.mark.parametrize("learner", ["ppo", "grpo"])
def test_policies_learn_from_a_head(settings: list[str], learner: str) -> None:
    shape = ["train.reward=labels", "train.steps=1", "train.batch_size=2", "ppo.rollout_batch_size=2", "grpo.group_size=2"]
    run = go(settings, f"train.learner={learner}", *shape)
    run.sample()
    run.label()
    run.train()
    assert last(run)["step"] == 1
    assert last(run, learner)["step"] == 1
    assert isinstance(run.domain.reward_model(checkpoint.every(run.checkpoints(0, "reward"))[-1]), RewardHead)


def test_people_who_answer_while_it_waits(settings: list[str]) -> None:
    """What has come is learned when nobody answers any more, and what comes later when it is called again."""
    people = [*settings, "judge.kind=people", "judge.wait_s=0"]
    run = go(people)
    run.sample()
    run.store.add_judge("ann", "person")
    numbers = [q.id for q in run.store.questions("run", "train")]
    run.store.answer_all([Label(n, "ann", 1.0) for n in numbers[:6]])
    run.train()
    first = last(run)
    run.store.answer_all([Label(n, "ann", 0.0) for n in numbers[6:]])
    go(people).train()
    assert last(run)["step"] == first["step"] + 1
    assert len(last(run)["labels"]) > len(first["labels"])
    go(people).train()
    assert last(run)["step"] == first["step"] + 1


def test_nets_of_control_do_not_start_as_a_head() -> None:
    with pytest.raises(ConfigError, match='^reward.start = "head" reads states of a language model, and the run is about control'):
        go(["control.env=Pendulum-v1", "reward.start=head"])


def test_a_reward_model_goes_on_from_a_head(settings: list[str]) -> None:
    """In a run: the first step is already right more often than not, and what was read of the labels is kept."""
    known = [*settings, "reward.kind=lora", "reward.start=head", "train.steps=1", "train.batch_size=64", "reward.held_out=0"]
    run = go([*known, "run.name=from-head"])
    run.loop()
    assert run.metrics.read("train-reward-0")[0]["accuracy"] > 0.9
    assert (Path(run.config.store).parent / "features.db").exists()


def test_what_people_said_was_predicted_first_whenever_it_is_learned(settings: list[str], tmp_path: Path) -> None:
    """The same answers in one training or in three; `rather status` says how it went, and so does the training."""
    said, rows = dict[str, str](), dict[str, dict[str, Any]]()
    for name, kind, parts in (("at-once", "people", [10]), ("in-parts", "people", [1, 4, 5]), ("there", "terminal", [4, 6])):
        known = [*settings, "reward.held_out=0", f"judge.kind={kind}", "judge.wait_s=0", f"run.name={name}"]
        run = go(known)
        run.sample()
        run.store.add_judge("ann", "person")
        numbers = [q.id for q in run.store.questions(name, "train")][::-1]
        for count in parts:
            some, numbers = numbers[:count], numbers[count:]
            run.store.answer_all([Label(n, "ann", float(n % 3 > 0)) for n in some])
            out = io.StringIO()
            Run(toml.load(None, known), Console(file=out, width=200)).train()
            said[name] = out.getvalue()
        rows[name] = run.metrics.read("train-reward-0")[-1]
        comparisons = run.labels(0, "reward").comparisons
    once, *others = ({k: v for k, v in rows[name].items() if k == "answers" or "prequential" in k} for name in rows)
    assert len(once) == 5
    assert once["answers"] == len(comparisons)
    for other in others:
        assert other == pytest.approx(once, abs=1e-6)
    for everything in said.values():
        assert f"{prequential.sentence(rows['at-once'])}.\n" in everything


def test_the_newest_head_of_a_run_chooses_answers_whatever_the_run_trains_now(settings: list[str], tmp_path: Path) -> None:
    run = go(settings)
    run.sample()
    run.label()
    folder = run.train()
    (tmp_path / "run.toml").write_text(toml.document(go(settings, "train.learner=grpo", "train.reward=labels").config))
    head, digits = reward(str(tmp_path / "run.toml"), "auto", Terminal(quiet=True))
    assert isinstance(head, RewardHead)
    assert digits == checkpoint.digest(folder)
    same, _ = reward(str(folder), "auto", Terminal(quiet=True))
    assert head.score("question 1?", ["ab", "cde"]) == same.score("question 1?", ["ab", "cde"])
    run.store.add_judge("ann", "person")
    run.store.answer_all([Label(q.id, "ann", 1.0) for q in run.store.questions("run", "train")])
    newest = go(settings).train()
    assert newest != folder
    assert reward(str(tmp_path / "run.toml"), "auto", Terminal(quiet=True))[1] == checkpoint.digest(newest)
