"""A finished run goes on with more; one in the middle ends what it began; what cannot go on is refused before anything is asked."""

import io
import json
import shutil
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from pydantic import Field
from rich.console import Console

from rather.cli import page
from rather.config import toml
from rather.config.schema import Config
from rather.control import studio
from rather.core import Label
from rather.errors import CheckpointError, ConfigError, DataError
from rather.learners import checkpoint, train
from rather.learners.metrics import CLOCK
from rather.learners.train import Stopped
from rather.pipeline import answering, build, live, text_domain
from rather.pipeline.run import Run
from rather.report.report import Report
from rather.settings import Section
from rather.store import clips
from test_control_run import RUN as CONTROL


def go(known: list[str], *changed: str) -> Run:
    return Run(toml.load(None, [*known, *changed]), Console(quiet=True))


@pytest.fixture
def text(tiny: Path, tmp_path: Path) -> list[str]:
    rows = [{"prompt": f"question {i}?", "split": "held_out" if i < 2 else "train"} for i in range(14)]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    found = [
        f"model.path={tiny}",
        "model.dtype=float32",
        "model.rank=2",
        f"run.folder={tmp_path}",
        f"data.prompts={tmp_path}/prompts.jsonl",
    ]
    return [
        *found,
        "sample.max_tokens=6",
        "train.batch_size=2",
        "train.lr=1e-2",
        "train.epochs=1",
        "data.limit=6",
        "train.checkpoint_every=1",
    ]


@pytest.fixture
def control(tmp_path: Path) -> list[str]:
    (tmp_path / "run.toml").write_text(CONTROL)
    loaded = toml.load(tmp_path / "run.toml", [])
    small = ["reward.members=1", "query.comparisons=6", "control.envs=2", "control.rollout_segment=20", "train.steps=2", "query.episodes=2"]
    return [f"{s}.{k}={json.dumps(v)}" for s, k, v in _changed(loaded)] + [PANEL, *small, f"run.folder={tmp_path}"]


PANEL = 'judge.panel=[{ name = "expert", utility = "total_reward", temperature = 0.01 }]'


def _changed(loaded: Config) -> list[tuple[str, str, Any]]:
    default = Config().model_dump()
    return [
        (s, k, v)
        for s, values in loaded.model_dump().items()
        for k, v in values.items()
        if v != default[s][k] and (s, k) != ("judge", "panel")
    ]


def last(run: Run, name: str = "", number: int = 0) -> dict[str, Any]:
    return checkpoint.check(checkpoint.every(run.checkpoints(number, name))[-1])


def rows(run: Run) -> list[dict[str, Any]]:
    return [{k: v for k, v in row.items() if k not in CLOCK} for row in run.metrics.read() if row["phase"].startswith("train-")]


@pytest.mark.parametrize("learner", ["dpo", "reward", "sft"])
def test_more_labels_are_learnt_from_the_last_checkpoint_on(text: list[str], learner: str) -> None:
    text = [*text, f"train.learner={learner}", "reward.held_out=0.0", 'judge.panel=[{ name = "expert", utility = "thorough" }]']
    go(text).loop()
    first = last(go(text))
    again = go(text)
    again.loop()
    assert last(again) == first, "a finished run has nothing to do"
    go(text, "data.limit=9").loop()  # three prompts more, which are three questions more
    second = last(run := go(text, "data.limit=9"))
    assert second["step"] > first["step"]
    assert second["before"] == [{key: first[key] for key in ("step", "watermark", "labels")}]
    assert set(first["labels"]) < set(second["labels"])
    assert second["watermark"] == max(second["labels"])
    steps = [row["step"] for row in rows(run)]
    assert steps == list(range(1, second["step"] + 1)), "it goes on, it does not begin again"
    places = json.loads((checkpoint.every(run.checkpoints(0))[-1] / "learner.json").read_text())["place"]
    if learner != "sft":  # of which some are ties
        assert sorted(set(places.values())) in ([1], [1, 2]), "each has been used once, as train.epochs says, but for the last batch"
        assert len(places) == (9 if learner == "dpo" else len(second["labels"]))


def test_more_epochs_or_steps_go_on_and_a_judge_who_comes_later_is_learnt(text: list[str]) -> None:
    text = [*text, "train.learner=reward", "reward.held_out=0.0"]
    go(text).loop()
    first = last(go(text))["step"]
    go(text, "train.epochs=2").loop()
    second = last(go(text))
    assert (second["step"], second["before"]) == (2 * first, [])
    go(text, f"train.steps={2 * first + 1}").loop()
    run = go(text)
    assert last(run)["step"] == 2 * first + 1
    run.store.add_judge("aunt", "person")
    run.store.answer_all([Label(q.id, "aunt", 1.0) for q in run.store.questions("run", "train")])
    go(text, f"train.steps={2 * first + 1}").loop()
    assert last(run)["step"] == 2 * first + 1 + 3, "six answers more, two a step"
    assert {"temperature/aunt", "temperature/expert"} <= set(rows(run)[-1])


def test_the_curve_of_calibration_is_that_of_the_last_reward_model(text: list[str]) -> None:
    text = [*text, "train.learner=reward", "reward.held_out=0.5"]
    go(text).sample()
    store = go(text).store
    store.add_judge("ann", "person")
    store.answer_all([Label(q.id, "ann", 1.0) for q in store.questions("run", "train")])
    for steps in (1, 2):
        go(text, f"train.steps={steps}").train()
        phases = [{row["step"] for row in go(text).metrics.read(phase)} for phase in ("reward-eval", "calibration")]
        assert phases == [{steps}, {steps}]


def test_people_who_come_after_a_checkpoint_are_learnt_as_well(text: list[str]) -> None:
    text = [*text, "train.learner=reward", "reward.held_out=0.0", "judge.kind=people", "judge.wait_s=0"]
    go(text).sample()
    people = ["ann", "ben", "cem"]
    for count, name in enumerate(people, 1):
        run = go(text)
        run.store.add_judge(name, "person")
        run.store.answer_all([Label(q.id, name, 1.0) for q in run.store.questions("run", "train")])
        run.train()
        assert last(run)["step"] == 3 * count, "six answers more, two a step"
        learned = {key for key in rows(run)[-1] if key.startswith("temperature/")}
        assert learned == ({f"temperature/{x}" for x in people[:count]} if count > 1 else set())


def test_a_run_in_the_middle_keeps_its_own_labels_and_steps_and_then_goes_on(text: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped in each of the two stages and resumed, it comes to the same numbers."""
    text = [*text, "train.learner=reward", "reward.members=2", "reward.held_out=0.0"]
    for name in ("whole", "stopped"):
        go(text, f"run.name={name}").sample()
        go(text, f"run.name={name}").label()
    go(text, "run.name=whole").train()
    stop(go(text, "run.name=stopped"), 2, monkeypatch)
    for name in ("whole", "stopped"):
        go(text, f"run.name={name}", "data.limit=9").sample()
        go(text, f"run.name={name}", "data.limit=9").label()
    go(text, "run.name=whole", "train.epochs=2").train()
    stop(go(text, "run.name=stopped", "train.epochs=2"), 13, monkeypatch)
    assert last(go(text, "run.name=stopped"))["before"], "it was stopped in the second stage"
    go(text, "run.name=stopped", "train.epochs=2").train()
    whole, stopped = (last(go(text, f"run.name={name}")) for name in ("whole", "stopped"))
    assert rows(go(text, "run.name=stopped")) == rows(go(text, "run.name=whole"))
    assert stopped["files"] == whole["files"]
    assert [stage["step"] for stage in whole["before"]] == [9]


def test_a_reward_model_of_text_that_ends_early_ends_there_when_it_was_stopped_as_well(
    text: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    text = [
        *text,
        "train.learner=reward",
        "train.epochs=9",
        "train.lr=0.1",
        "reward.batch_size=4",
        "reward.held_out=0.4",
        "reward.patience=1",
    ]
    for name in ("whole", "stopped"):
        go(text, f"run.name={name}").sample()
        go(text, f"run.name={name}").label()
    go(text, "run.name=whole").train()
    stop(go(text, "run.name=stopped"), 3, monkeypatch)
    go(text, "run.name=stopped").train()
    whole, stopped = (last(go(text, f"run.name={name}")) for name in ("whole", "stopped"))
    assert whole["step"] < whole["settings"]["_steps"]
    assert rows(go(text, "run.name=stopped")) == rows(go(text, "run.name=whole"))
    assert stopped["files"] == whole["files"]


def test_a_training_goes_on_with_the_very_labels_that_it_began_with(text: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Not with one that had been withdrawn or flagged before, and still with one that is withdrawn or flagged after."""
    text = [*text, "train.flagged=false", "train.steps=4"]
    go(text).sample()
    store = go(text).store
    store.add_judge("ann", "person")
    one, two, three, four, *_ = (q.id for q in store.questions("run", "train"))
    store.answer(Label(one, "ann", 1.0))
    store.answer(Label(two, "ann", 1.0, seconds=0.1))
    numbers = [store.answer(Label(three, "ann", 1.0)), store.answer(Label(four, "ann", 1.0, seconds=1.0))]
    store.undo("run", "ann", one)
    stop(go(text), 2, monkeypatch)
    assert last(go(text))["labels"] == numbers
    store.undo("run", "ann", three)
    store.set_asking("run", replace(store.asking("run"), fastest_s=2.0))
    stop(go(text), 3, monkeypatch)
    assert (last(go(text))["labels"], last(go(text))["before"]) == (numbers, [])


def stop(run: Run, step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Train as far as that step, where it is stopped as by Ctrl-C."""

    def write(self: Any, phase: str, at: int, *rest: Any, **more: Any) -> None:
        known(self, phase, at, *rest, **more)
        if at == step and phase.startswith("train-"):
            raise Stopped

    known = train.Metrics.write
    with monkeypatch.context() as patched:
        patched.setattr(train.Metrics, "write", write)
        with pytest.raises(Stopped):
            run.train()


@pytest.mark.parametrize("kind", ["panel", "people"])
def test_training_says_how_many_answers_are_left_out_and_why(text: list[str], kind: str) -> None:
    said = io.StringIO()
    run = Run(toml.load(None, [*text, f"judge.kind={kind}", "judge.wait_s=0"]), Console(file=said, width=200))
    run.sample()
    run.store.add_judge("ann", "person")
    numbers = [q.id for q in run.store.questions("run", "train")]
    times = [0.1, 0.2, 9.0, 9.0, 9.0, 9.0]
    given = [
        Label(n, "ann", 1.0, seconds=s, flags=("late",) if i in (1, 2) else ()) for i, (n, s) in enumerate(zip(numbers, times, strict=True))
    ]
    run.store.answer_all(given)
    run.store.set_asking("run", replace(run.store.asking("run"), leave_out=("fast", "late")))
    run.train()
    assert said.getvalue().count("answers left out") == 1
    assert "3 answers left out: 2 fast, 1 late\n" in said.getvalue()
    assert len(last(run)["labels"]) == 3
    run.store.set_asking("run", replace(run.store.asking("run"), leave_out=()))
    run.train()
    assert said.getvalue().count("left out") == 1, "there are none any more"


def test_only_the_judges_who_are_named_are_learnt_from(text: list[str]) -> None:
    go(text).sample()
    run = go(text, "train.judges=['exp*', 'aunt']")
    run.label()
    run.train()
    learned = set(last(run)["labels"])
    assert learned == {x.id for x in run.store.labels("run", "train") if x.judge == "expert"}
    assert "Training learns from the labels of: expert<" in Report.of(run).html
    with pytest.raises(ConfigError, match=r"train.judges is \['uncle'\], but the judges are expert, regular, careless"):
        go(text, "train.judges=['uncle']").train()


def test_old_questions_of_another_seed_are_said_to_be(text: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    go(text).sample()
    run = Run(toml.load(None, [*text, "run.seed=3", "data.limit=7"]), Console(width=300))
    run.sample()
    assert "note: questions of round 0 were sampled with run.seed = 0, not 3, and stay as they are" in capsys.readouterr().out
    go(text, "data.limit=7").sample()
    assert len(run.store.keys("run", "train")) == 7


def test_old_questions_of_other_settings_are_said_to_be(
    text: list[str], tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(tiny, tmp_path / "other")
    go(text).sample()
    more = [*text, f"model.path={tmp_path}/other", "data.suffix=!", "sample.temperature=0.5", "data.limit=7", "train.lr=1e-3"]
    Run(toml.load(None, more), Console(width=1000)).sample()
    changed = f"model.path = '{tiny}', not '{tmp_path}/other', data.suffix = '', not '!', sample.temperature = 1.0, not 0.5"
    said = f"note: questions of round 0 were sampled with {changed}, and stay as they are; to sample again use another run.name\n"
    assert said in capsys.readouterr().out
    assert len(go(more).store.keys("run", "train")) == 7
    go(text, "data.limit=8").sample()
    Run(toml.load(None, [*more, "data.limit=8"]), Console(width=1000)).sample()
    assert capsys.readouterr().out == said, "once, and nothing is sampled"


def test_sampling_that_was_stopped_goes_on_with_its_own_settings_alone(text: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(sampling: Run, after: int) -> None:
        def answers(*given: Any) -> Any:
            if len(sampling.store.keys("run", "train")) >= after:
                raise Stopped
            return known(*given)

        known = build.answers
        with monkeypatch.context() as patched:
            patched.setattr(build, "answers", answers)
            with pytest.raises(Stopped):
                sampling.sample()

    monkeypatch.setattr(text_domain, "CHUNK", 2)
    stop(go(text), 0)
    stop(go(text, "sample.temperature=0.9"), 4)
    with pytest.raises(
        ConfigError, match=r"round 0 were sampled with sample.temperature = 0.9, not 1.0, and 2 are still missing; set that back"
    ):
        go(text).sample()
    cold = [*text, "sample.temperature=0.9"]
    stop(go(cold, "data.limit=7"), 4)
    assert go(cold, "data.limit=7").sample() == 3
    stop(go(text, "data.limit=12"), 9)
    assert go(text, "data.limit=12").sample() == 3
    assert [row["questions"] for row in go(text).metrics.read("sample-0")] == [2, 2, 2, 1, 2, 2, 1]


def test_control_asks_more_in_its_last_round_and_goes_on(control: list[str]) -> None:
    go(control).loop()
    policy, reward = last(go(control), number=1), last(go(control), "reward", 1)
    go(control, "query.comparisons=9").loop()
    run = go(control)
    questions = run.store.questions("small", "train")
    assert [q.comparison.key.split("/")[0] for q in questions] == ["round-0"] * 4 + ["round-1"] * 5
    sides = [side[0].actions.tobytes() + side[0].observations.tobytes() for q in questions for side in q.comparison.sides]  # type: ignore[union-attr]
    assert len(set(sides[-6:]) - set(sides[:-6])) == 6, "the new questions are new"
    now, again = last(run, number=1), last(run, "reward", 1)
    assert (now["step"], again["before"][0]["labels"]) == (2 * policy["step"], reward["labels"])
    assert now["before"] == [{key: policy[key] for key in ("step", "watermark", "labels")}]
    assert now["labels"] == again["labels"] > policy["labels"]
    assert last(run, number=0)["before"] == [], "the rounds before stay as they are"
    go(control, "query.comparisons=9").loop()
    assert last(run, number=1) == now
    go(control, "query.comparisons=9", "train.steps=6").loop()
    assert last(run, number=1)["step"] == 6


def test_nobody_waits_for_answers_to_a_question_whose_clip_cannot_be_drawn(control: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def sleep(seconds: float) -> None:
        raise AssertionError("it waits for an answer that cannot come")

    for module in (live, answering):
        monkeypatch.setattr(module, "time", SimpleNamespace(sleep=sleep, monotonic=time.monotonic))
    asked = go(control).sample()
    run = go(control, "judge.kind=people")
    run.store.add_judge("ann", "person")
    *drawn, (broken, _) = clips.missing(run.store, "small")
    for number, _ in drawn:
        clips.keep(run.store, number, clips.Clip(b"RIFF", frames=2, columns=2, width=4, height=3, milliseconds=50))
    while (question := run.store.lease("small", "ann")) is not None:
        run.store.answer(Label(question.id, "ann", 1.0))
    feed = live.Feed(run, 0, "reward")
    assert feed.refresh()
    assert (len(feed.answered.comparisons), feed.open) == (asked - 1, 1), "it may still be drawn"
    clips.keep(run.store, broken, None, "no display")
    assert feed.refresh()
    assert feed.open == 0
    run.answering.wait("train")
    run.train()
    assert len(last(run, "reward")["labels"]) == asked - 1
    clips.retry(run.store, "small")
    assert run.answering.wanted("train") == 1, "it is drawn again"


def test_nobody_waits_for_clips_that_were_given_up_with_others(control: list[str]) -> None:
    asked = go(control).sample()
    run = go(control, "judge.kind=people")

    def broken(_: Any) -> tuple[bytes, dict[str, int]]:
        raise DataError("no display")

    assert run.answering.wanted("train") == asked, "they may still be drawn"
    assert studio.draw(studio.Studio(run.config.store, "small", run.config.control.env), broken) == 0
    assert run.answering.wanted("train") == 0
    feed = live.Feed(run, 0, "reward")
    assert feed.refresh()
    assert feed.open == 0
    clips.retry(run.store, "small")
    assert run.answering.wanted("train") == asked, "all are tried again"


@pytest.mark.parametrize("command", ["loop", "sample", "label", "train"])
def test_what_cannot_be_continued_is_refused_before_anything_is_asked(text: list[str], command: str) -> None:
    go(text).loop()
    go(text, "run.name=run", "data.limit=7", "eval.prompts=1").sample()
    run = go(text, "data.limit=9", "train.lr=1e-3")
    before = len(run.store.keys("run", "train")), run.store.latest()
    with pytest.raises(CheckpointError, match=r"trained with train.lr = 0.01, not 0.001; set it back, train with --fresh, or use another"):
        getattr(run, command)()
    assert (len(run.store.keys("run", "train")), run.store.latest()) == before


@pytest.mark.parametrize("about", ["text", "control"])
def test_the_page_refuses_before_anything_is_asked(
    about: str, tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = request.getfixturevalue(about)
    go(known, "loop.rounds=1").loop()

    def asks(*_: Any) -> None:
        raise AssertionError("it puts questions before people")

    monkeypatch.setattr("rather.web.serve.server", asks)
    monkeypatch.setattr("rather.control.studio.begin", asks)
    path = tmp_path / "served.toml"
    path.write_text(toml.document(toml.load(None, [*known, "loop.rounds=1", "judge.kind=people"])))
    with pytest.raises(AssertionError, match="it puts"):
        page.serve(path)
    with pytest.raises(CheckpointError, match=r"was trained with train.lr = [0.]+1, not 0.5; set it back"):
        page.serve(path, ["train.lr=0.5"])


def test_control_refuses_before_anything_is_asked(control: list[str]) -> None:
    go(control).loop()
    run = go(control, "query.comparisons=9", "reward.members=3")
    with pytest.raises(CheckpointError, match=r"reward-1/step-\d+ was trained with reward.members = 1, not 3"):
        run.loop()
    assert len(run.store.keys("small", "train")) == 6


def test_the_settings_of_a_new_section_are_shared_without_being_listed(text: list[str]) -> None:
    class Novel(Section):
        """A learner of tomorrow."""

        strength: float = 1.0
        color: str = "red"

    class Tomorrow(Config):
        novel: Novel = Field(default_factory=Novel)

    def run(**novel: Any) -> Run:
        return Run(Tomorrow.model_validate(toml.load(None, text).model_dump() | {"novel": novel}), Console(quiet=True))

    run(strength=2.0).sample()
    run(strength=2.0).label()
    found = run(strength=2.0).train()
    assert checkpoint.check(found)["settings"]["novel"] == {"strength": 2.0, "color": "red"}
    assert run(strength=2.0).train() == found
    with pytest.raises(CheckpointError, match=r"was trained with novel.strength = 2.0, not 3.0"):
        run(strength=3.0).train()


def test_what_an_older_checkpoint_does_not_know_was_as_by_default(text: list[str]) -> None:
    go(text).loop()
    found = checkpoint.every(go(text).checkpoints(0))[-1]
    manifest = json.loads((found / "manifest.json").read_text())
    del manifest["settings"]["dpo"], manifest["before"]
    (found / "manifest.json").write_text(json.dumps(manifest))
    assert go(text).train() == found
    with pytest.raises(CheckpointError, match=r"dpo.beta = 0.1, not 0.2"):
        go(text, "dpo.beta=0.2").train()


@pytest.mark.parametrize("learner", ["grpo", "ppo"])
def test_prompts_that_have_changed_in_their_file_are_no_longer_those_of_the_training(text: list[str], tmp_path: Path, learner: str) -> None:
    text = [
        *text,
        f"train.learner={learner}",
        'verify.checks=[{kind="pattern", pattern="e"}]',
        "train.steps=1",
        "grpo.group_size=2",
        "ppo.rollout_batch_size=2",
    ]
    found, path = go(text).train(), tmp_path / "prompts.jsonl"
    prompts = path.read_text()
    path.write_text(prompts.replace("question 0?", "which question?"))
    assert go(text).train() == found, "that one is held out"
    path.write_text(prompts.replace("question 3?", "which question?"))
    for command in ("train", "loop"):
        with pytest.raises(
            CheckpointError, match=r"what data.prompts = '.*prompts.jsonl' holds has changed since .*step-000001 was trained"
        ):
            getattr(go(text), command)()
    manifest = json.loads((found / "manifest.json").read_text())
    del manifest["settings"]["_contents"]
    (found / "manifest.json").write_text(json.dumps(manifest))
    assert go(text).train() == found, "an older checkpoint does not know"


def test_a_reward_model_that_has_changed_in_its_folder_is_no_longer_that_of_the_training(text: list[str]) -> None:
    text = [*text, "train.steps=1"]
    for name, lr in (("first", 0.01), ("second", 0.02)):
        go(text, f"run.name={name}", "train.learner=reward", f"train.lr={lr}").loop()
    first, second = (checkpoint.every(go(text, f"run.name={name}").checkpoints(0, "reward"))[-1] for name in ("first", "second"))
    text = [*text, "train.learner=ppo", "train.reward=model", f"judge.checkpoint={first}", "ppo.rollout_batch_size=2"]
    found = go(text).train()
    assert go(text).train() == found
    shutil.rmtree(first)
    second.rename(first)
    with pytest.raises(CheckpointError, match=r"what judge.checkpoint = '.*' holds has changed since .*ppo-0/step-000001 was trained"):
        go(text).train()


def test_a_manifest_of_another_program_in_this_folder_is_no_reward_model(
    text: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("manifest.json").write_text('{"name": "a web page"}')
    run = Run(toml.load(None, text), Console(quiet=True))
    assert "judge.checkpoint" not in run.contents({"judge": {"checkpoint": ""}})


@pytest.mark.parametrize("learner", ["grpo", "ppo"])
def test_a_finished_policy_goes_on_with_more_steps_and_stays_where_they_are_set_back(
    text: list[str], learner: str, capsys: pytest.CaptureFixture[str]
) -> None:
    text = [
        *text,
        f"train.learner={learner}",
        'verify.checks=[{kind="pattern", pattern="[a-j]"}]',
        "grpo.group_size=4",
        "ppo.rollout_batch_size=4",
    ]

    def loop(steps: int) -> Run:
        run = Run(toml.load(None, [*text, f"train.steps={steps}"]), Console(width=300))
        assert "held-out score" in (run.loop() or "")
        run.judges[0].close()
        return run

    first = last(loop(2))
    assert first["step"] == 2
    second = last(run := loop(4))
    assert (second["step"], second["before"]) == (4, [])
    assert [row["step"] for row in rows(run)] == [1, 2, 3, 4], "it goes on, it does not begin again"
    for steps in (2, 4):
        assert last(loop(steps)) == second
    assert last(loop(5))["step"] == 5
    assert "--fresh" not in capsys.readouterr().out


def test_a_finished_policy_goes_on_when_its_reward_model_has_more_labels(text: list[str]) -> None:
    text = [*text, "train.learner=ppo", "train.reward=labels", "reward.held_out=0.0", "ppo.rollout_batch_size=2"]
    go(text, "train.steps=2").loop()
    policy, reward = last(go(text)), last(go(text), "reward")
    run = go(text)
    run.store.add_judge("aunt", "person")
    run.store.answer_all([Label(q.id, "aunt", 1.0) for q in run.store.questions("run", "train")])
    go(text, "train.steps=2").loop()
    now, again = last(go(text)), last(go(text), "reward")
    assert (now["step"], again["step"]) == (4, reward["step"] + 3), "as many steps again; six answers more, two a step"
    assert now["before"] == [{key: policy[key] for key in ("step", "watermark", "labels")}]
    assert again["before"] == [{key: reward[key] for key in ("step", "watermark", "labels")}]
    assert now["labels"] == again["labels"] > policy["labels"]
    go(text, "train.steps=5").loop()
    assert (last(go(text))["step"], last(go(text), "reward")) == (5, again)
    longest = last(go(text))
    go(text, "train.steps=2").loop()
    assert last(go(text)) == longest


TEMPLATE = "{% for m in messages %}{{ m.content }}{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"


@pytest.fixture
def model(tiny: Path, tmp_path: Path) -> Path:
    """A model of the test's own, whose files may be changed."""
    return Path(shutil.copytree(tiny, tmp_path / "model"))


def test_a_chat_template_that_has_changed_since_answers_were_sampled_is_refused(text: list[str], model: Path) -> None:
    text = [*text, f"model.path={model}", "train.steps=1"]
    go(text).sample()
    (model / "README.md").write_text("nothing that a prompt is made with")
    go(text).label()
    was = (model / "chat_template.jinja").read_text()
    (model / "chat_template.jinja").write_text(TEMPLATE)
    before = go(text).store.latest()
    for command in ("sample", "label", "train", "loop"):
        said = (
            r"the tokenizer or chat template of model.path = '.*model' has changed since round 0 was sampled; put it back, or use another"
        )
        with pytest.raises(ConfigError, match=said):
            getattr(go(text, "data.limit=9"), command)()
    assert go(text).store.latest() == before
    assert not checkpoint.every(go(text).checkpoints(0))
    (model / "chat_template.jinja").write_text(was)
    go(text).train()
    assert last(go(text))["step"] == 1


@pytest.mark.parametrize("name", ["chat_template.jinja", "tokenizer.json"])
def test_a_tokenizer_that_has_changed_in_its_folder_is_no_longer_that_of_the_training(text: list[str], model: Path, name: str) -> None:
    pays = 'verify.checks=[{kind="pattern", pattern="[a-j]"}]'
    text = [*text, f"model.path={model}", "train.learner=grpo", pays, "train.steps=1", "grpo.group_size=2"]
    found = go(text).train()
    (model / "README.md").write_text("nothing that a prompt is made with")
    assert go(text).train() == found
    changed = TEMPLATE if name == "chat_template.jinja" else (model / name).read_text() + " "
    (model / name).write_text(changed)
    for command in ("train", "loop"):
        with pytest.raises(CheckpointError, match=r"what model.path = '.*model' holds has changed since .*step-000001 was trained with it"):
            getattr(go(text, "train.steps=2"), command)()


def test_another_tokenizer_matters_only_where_something_was_sampled(
    text: list[str], tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / "other"
    shutil.copytree(tiny, other)
    (other / "vocab.json").write_text("{}")

    def no_memory(*given: Any) -> Any:
        raise MemoryError

    with monkeypatch.context() as patched:
        patched.setattr(build, "answers", no_memory)
        with pytest.raises(MemoryError):
            go(text).sample()
    assert go(text, f"model.path={other}").sample() == 6
    with pytest.raises(ConfigError, match=r"of model.path = '.*' is not that of '.*/other', with which round 0 was sampled; put it back"):
        go(text).sample()
