"""Spot checks: an alarm without gold is confirmed, or not, by comparisons of now with the policy that it names."""

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from runs import go

from rather.core import Label
from rather.errors import ConfigError
from rather.hacking.alarm import Alarm, Measure, Point, lookouts
from rather.hacking.sequential import Verdict, verdict
from rather.hacking.spot_check import SpotCheck
from rather.hacking.watch import Watch, dismissals
from rather.learners import checkpoint
from rather.learners.metrics import Metrics
from rather.learners.train import Stopped
from rather.pipeline import spot_checks, state
from rather.pipeline.run import Run
from rather.report.report import Report

LOST = set[str]()
"""Answers that the judge of these tests likes less than all others."""


def compared(run: Run) -> list[tuple[int, float, str]]:
    """The alarm's step, the step of the policy that was compared, and what came of it, of every spot check of round 0."""
    rows = [row for row in run.metrics.read() if row["phase"].startswith("spot-0-")]
    return [(int(row["phase"].rpartition("-")[2]), row["step"], row["result"]) for row in rows]


def test_it_is_sure_after_seven_of_seven() -> None:
    """The wealth after n of n is the mean of (1 + b)^n over b from 0 to 1: (2^(n + 1) - 1) / (n + 1), 18.1 for 6 and 31.9 for 7."""
    assert verdict([0.0] * 6) == Verdict("unsure", 0.0, 6)
    assert verdict([0.0] * 40) == Verdict("worse", 0.0, 7)
    assert verdict([1.0] * 40) == Verdict("no worse", 7.0, 7)
    assert verdict([0.5] * 40) == Verdict("unsure", 20.0, 40)
    assert verdict([]) == Verdict("unsure", 0, 0)
    assert verdict([0.0, 1.0] * 20).result == "unsure"


def test_by_chance_it_is_wrong_in_one_of_twenty_at_most_and_it_finds_what_is_there() -> None:
    chance = np.random.default_rng(0)
    fair = [verdict(chance.integers(0, 2, 100).astype(float)).result for _ in range(2000)]
    assert 0.001 < fair.count("worse") / 2000 < 0.05
    assert 0.001 < fair.count("no worse") / 2000 < 0.05
    found = [verdict((chance.random(40) < 0.2).astype(float)) for _ in range(200)]
    assert sum(v.result == "worse" for v in found) > 180
    assert np.median([v.comparisons for v in found]) < 20


def test_answers_after_a_dismissed_alarm_are_compared_with_those_then() -> None:
    def points(level: Any) -> list[Point]:
        return [Point(i, Measure(0.1 * i, 0.1, 1.0), None, signs={"alike": level(i), "same_word": 0.1}) for i in range(1, 60)]

    once = points(lambda i: 0.1 if i < 20 else 0.4)
    raised = lookouts([once])[-1].raised
    assert raised is not None
    dismissed = lookouts([once], [[raised.step]])[-1]
    assert dismissed.raised is None, "it is as it was when it was checked"
    twice = points(lambda i: 0.1 if i < 20 else 0.4 if i < 40 else 0.9)
    later = lookouts([twice], [[raised.step]])[-1].raised
    assert later is not None
    assert later.step > 40
    assert later.best > 20, "it names what was checked"
    assert lookouts([[], once], [[], [raised.step]])[-1].raised is None
    assert lookouts([once, []], [[], [raised.step]])[0].raised is not None, "another round's"
    as_it_was = points(lambda i: 0.4)
    assert lookouts([once, as_it_was], [[raised.step]])[-1].raised is None, "what was dismissed in one round is none in the next"
    assert lookouts([once, as_it_was], [])[-1].raised is not None


class AtStep4(Watch):
    """An alarm without gold at step 4, which says that step 2 was the last good one."""

    def __init__(self, rounds: Any = ((),), proxy: str = "score", dismissed: Any = ()) -> None:
        super().__init__(rounds, proxy)
        self.dismissed, self.seen = {step for steps in dismissed for step in steps}, [row["step"] for row in rounds[-1]][-1:]

    @property
    def raised(self) -> Alarm | None:
        return Alarm(4, 2, (0.0, 1.0), None, "alike") if self.seen and self.seen[0] >= 4 and not self.dismissed else None

    def __call__(self, step: int, values: dict[str, float]) -> bool:
        self.seen = [step]
        return self.raised is not None


@pytest.fixture
def settings(text_run: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setattr(state, "Watch", AtStep4)
    mine = ModuleType("spot_judge")
    mine.better = lambda prompt, a, b: 0.5 if (a in LOST) == (b in LOST) else float(a not in LOST)  # type: ignore[attr-defined]
    mine.spaces = lambda text, answer: text.count(" ") / 16  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "spot_judge", mine)
    LOST.clear()
    return [
        *text_run, "train.learner=grpo", "train.reward=labels", "reward.kind=head", "reward.held_out=0", "train.steps=6",
        "train.batch_size=2", "grpo.group_size=2", "train.lr=1e-2", "train.checkpoint_every=1", "hack.then=back", "hack.checks=10",
        "sample.temperature=2.0", "judge.kind=function", "judge.function=spot_judge:better",
    ]  # fmt: skip


def start(settings: list[str]) -> Any:
    run = go(settings)
    run.sample()
    run.label()
    return run


def worse(monkeypatch: pytest.MonkeyPatch) -> None:
    """The judge likes the policy of now less."""
    asked = spot_checks._ask

    def ask(run: Any, purpose: str, tasks: Any, policies: Any, names: list[str]) -> None:
        asked(run, purpose, tasks, policies, names)
        for q in run.store.questions("run", purpose):
            LOST.update(t.text for side in (q.comparison.a, q.comparison.b) for t in side if t.policy == names[0])

    monkeypatch.setattr(spot_checks, "_ask", ask)


def test_a_policy_that_is_worse_ends_the_training(settings: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    worse(monkeypatch)
    run = start(settings)
    last = run.train()
    assert checkpoint.check(last)["step"] == 2
    (row,) = run.metrics.read("spot-0-4")
    assert f"<p>{SpotCheck.of_row(row)}</p>" in Report.of(run).html
    assert (row["result"], row["of"], row["step"]) == ("worse", 2, 4)
    assert row["comparisons"] <= 10
    purposes = {key.rpartition("/")[0] for key in run.store.keys("run", "train")}
    assert not any(p.startswith("spot") for p in purposes), "nothing is learned from them"
    assert go(settings).train() == last


def test_a_policy_that_is_no_worse_goes_on_as_if_nothing_had_been(
    settings: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    run = start(settings)  # ties alone, which show nothing
    last = run.train()
    assert checkpoint.check(last)["step"] == 6
    (row,) = run.metrics.read("spot-0-4")
    assert (row["result"], row["comparisons"]) == ("unsure", 10.0)
    other = [x.replace(f"run.folder={tmp_path}", f"run.folder={tmp_path}/other") for x in settings]
    start([*other, "hack.then=nothing", "hack.checks=0"])
    plain = go([*other, "hack.then=nothing", "hack.checks=0"]).train()
    assert (last / "model" / "adapter_model.safetensors").read_bytes() == (plain / "model" / "adapter_model.safetensors").read_bytes()
    assert go(settings).train() == last


def test_a_killed_check_asks_nothing_twice_and_decides_the_same(settings: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    run = start(settings)

    def killed(*of: Any, **values: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Metrics, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            run.train()
    before = len(run.store.labels("run"))
    again = go(settings)
    assert checkpoint.check(again.train())["step"] == 6
    assert len(again.store.labels("run")) == before
    assert compared(again) == [(4, 4, "unsure")]


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ("hack.then=nothing", "hack.checks = 10 are asked for on text, at an alarm without a gold reward; set hack.then"),
        ("hack.gold=brief", "leave hack.gold empty"),
        ("hack.checks=11", "each about another training prompt, and there are 10; ask fewer"),
    ],
)
def test_checks_that_nobody_would_make_are_refused(settings: list[str], changed: str, why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        go(settings, changed).train()


def test_verifiers_are_no_judges_of_their_own_reward(settings: list[str]) -> None:
    checks = 'verify.checks=[{kind="python", function="spot_judge:spaces"}]'
    run = go(settings, "train.reward=verify", checks)
    asked = spot_checks.Answering(run.config, run.store, run.console, run.domain.reader, verifiers=False)
    assert [judge.kind for judge in asked.judges] == ["function"]
    assert [judge.kind for judge in run.judges] == ["verifier"]


def test_an_alarm_of_an_earlier_step_is_dismissed_too(settings: list[str]) -> None:
    """A training that was stopped after an old alarm, and goes on with checks: they are about the last checkpoint."""
    plain = [*settings, "hack.then=nothing", "hack.checks=0", "train.steps=5"]
    start(plain)
    go(plain).train()
    run = go(settings)
    assert checkpoint.check(run.train())["step"] == 6
    assert [(alarm, step) for alarm, step, _ in compared(run)] == [(4, 5)]


def test_a_row_of_metrics_says_what_a_spot_check_said() -> None:
    check = SpotCheck(1, 9, 8, 3, Verdict("no worse", 7.5, 10))
    row = {"phase": check.phase, "step": check.step, **check.values, "of": check.of, "result": check.verdict.result}
    assert SpotCheck.of_row(row) == check
    assert str(check) == "spot check: the policy of step 8 is no worse than that of step 3 (7.5 of 10 comparisons won)"
    silent = SpotCheck(0, 2, 2, 1, Verdict("unsure", 0.0, 0))
    assert SpotCheck.of_row({"phase": "spot-0-2", "step": 2, **silent.values, "of": 1, "result": "unsure"}) == silent
    assert SpotCheck.of_row({"phase": "spot-0", "step": 2}) is None
    assert SpotCheck.of_row({"phase": "spot-0-3", "step": 2}) is None, "nothing has come of it"


def test_dismissals_are_read_from_metrics() -> None:
    results = {"spot-0-4": "worse", "spot-0-6": "unsure", "spot-1-8": "no worse", "spot-0-9": "no worse", "spot-2-1": "unsure"}
    rows = [
        {"phase": phase, "step": 1.0, "of": 0, "comparisons": 9.0, "win_rate": 0.5, "result": result} for phase, result in results.items()
    ]
    assert dismissals([*rows, {"phase": "spot-0-3"}, {"phase": "train-grpo-0"}], 2) == [{6, 9}, {8}]


def test_people_are_waited_for_and_nothing_is_decided_without_them(settings: list[str]) -> None:
    start(settings)
    people = ["judge.kind=people", "judge.wait_s=0"]
    for _ in range(2):
        with pytest.raises(Stopped, match="8 spot checks are open"):
            go(settings, *people).train()
    assert compared(go(settings)) == []
    run = go(settings, *people)
    run.store.add_judge("ann", "person")
    purpose = run.evaluation("spot-0-4", checkpoint.digest(checkpoint.every(run.checkpoints(0))[-1]))
    asked = run.store.questions("run", purpose)
    run.store.answer_all([Label(q.id, "ann", float(q.comparison.a[0].policy != "run@0-4")) for q in asked])
    assert checkpoint.check(run.train())["step"] == 2, "seven of seven were lost"


def test_several_processes_do_not_ask(settings: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    run = go(settings)
    monkeypatch.setattr(spot_checks.ranks, "wanted", lambda: 2)
    with pytest.raises(ConfigError, match="start it without torchrun"):
        spot_checks.check_settings(run)
