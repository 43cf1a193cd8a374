"""The learner's curves beside the owner's figures: read from a metrics.jsonl as it grows, and drawn in a real Chromium."""

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
from clients import program
from playwright.sync_api import BrowserContext, expect
from questions import question

from conftest import served
from rather.core import Label
from rather.hacking import alarm, examples
from rather.hacking.curves import POINTS, Curves
from rather.learners.metrics import Metrics
from rather.store import Store
from rather.store.people import invite


@pytest.fixture
def metrics(tmp_path: Path) -> Metrics:
    return Metrics(tmp_path / "metrics.jsonl")


def points(found: dict[str, Any], title: str) -> dict[str, list[list[float]]]:
    """The curves of the plot whose title begins so, by name."""
    (plot,) = [p for p in found["plots"] if p["title"].startswith(title)]
    return {s["name"]: s["points"] for s in plot["series"]}


def test_each_learner_has_its_curves(metrics: Metrics) -> None:
    read = Curves(metrics.path)
    nothing = {"plots": [], "alarms": [], "exploited": [], "predicted": "", "problem": ""}
    assert read.read() == nothing, "there is no file yet"
    assert Curves(None).read() == nothing
    metrics.write("sample-0", 0, {"questions": 12.0})
    metrics.write("train-reward-0", 1, {"accuracy": 0.5, "score": 0.1})
    metrics.write("train-dpo-0", 1, {"accuracy": 0.75, "log_ratio": -0.2})
    metrics.write("train-ppo-0", 1, {"kl": 0.01, "score": 2.0})
    metrics.write("train-grpo-1", 7, {"kl": 0.02, "score": 3.0})
    metrics.write("check-0", 4, {"kl": 0.03, "answers": 40.0, "win_rate": 0.6, "win_rate_low": 0.5, "win_rate_high": 0.7})
    for number, rate in enumerate((0.55, 0.65)):
        metrics.write(f"eval-{number}", 90, {"win_rate": rate, "win_rate_low": rate - 0.1, "win_rate_high": rate + 0.1, "prompts": 50})
    found = read.read()
    assert points(found, "Comparisons that the learner orders") == {"reward, round 0": [[1, 0.5]], "dpo, round 0": [[1, 0.75]]}
    assert points(found, "KL from the reference") == {"ppo, round 0": [[1, 0.01]], "grpo, round 1": [[7, 0.02]]}
    assert points(found, "KL from the base policy") == {"round 0": [[40, 0.03]]}
    assert points(found, "Log-ratio") == {"dpo, round 0": [[1, -0.2]]}
    assert points(found, "Mean reward") == {"ppo, round 0": [[1, 2.0]], "grpo, round 1": [[7, 3.0]]}
    rates = [p for p in found["plots"] if p["title"].startswith("Win rate")]
    assert [(p["over"], p["percent"]) for p in rates] == [("answers", True), ("round", True)]
    assert rates[0]["series"][0]["points"] == [[40, 0.6, 0.5, 0.7]]
    assert rates[1]["series"][0]["points"] == [[0, 0.55, pytest.approx(0.45), pytest.approx(0.65)], [1, 0.65, pytest.approx(0.55), 0.75]]


def test_a_file_that_grows_is_read_on_and_one_that_is_written_anew_is_read_anew(metrics: Metrics, monkeypatch: pytest.MonkeyPatch) -> None:
    read, taken = Curves(metrics.path), list[bytes]()
    take = Curves._take
    monkeypatch.setattr(Curves, "_take", lambda self, line: (taken.append(line), take(self, line))[1])
    for step in range(5):
        metrics.write("train-ppo-0", step, {"kl": float(step)})
    assert points(read.read(), "KL") == {"ppo, round 0": [[step, step] for step in range(5)]}
    with metrics.path.open("ab") as file:
        file.write(b'{"phase": "train-ppo-0", "step": 5, "kl"')
    assert points(read.read(), "KL") == {"ppo, round 0": [[step, step] for step in range(5)]}, "a torn line is not there yet"
    with metrics.path.open("ab") as file:
        file.write(b": 5}\n")
    assert points(read.read(), "KL") == {"ppo, round 0": [[step, step] for step in range(6)]}
    assert len(taken) == 6, "no line was read twice"
    metrics.rewind("train-ppo-0", 2)
    metrics.write("train-ppo-0", 3, {"kl": 30.0})
    assert points(read.read(), "KL") == {"ppo, round 0": [[0, 0], [1, 1], [2, 2], [3, 30]]}
    inode = metrics.path.stat().st_ino
    metrics.path.write_text("".join(json.dumps({"phase": "train-ppo-0", "step": i, "kl": 9}) + "\n" for i in range(9)))
    assert metrics.path.stat().st_ino == inode, "written over in place"
    assert points(read.read(), "KL") == {"ppo, round 0": [[i, 9] for i in range(9)]}
    metrics.path.unlink()
    assert read.read()["plots"] == []


def test_a_long_run_has_as_many_points_as_a_short_one_and_they_are_means(metrics: Metrics) -> None:
    count = 10 * POINTS + 3
    metrics.path.write_text("".join(json.dumps({"phase": "train-dpo-0", "step": i, "accuracy": i % 2}) + "\n" for i in range(count)))
    (found,) = points(Curves(metrics.path).read(), "Comparisons").values()
    assert POINTS / 2 <= len(found) <= POINTS
    assert [x for x, _ in found] == sorted(x for x, _ in found)
    assert found[0] == [7.5, 0.5], "sixteen steps are one point: 0 to 15, half of them 1"
    assert found[-1][0] > count - 17, "the last steps are there"


def test_what_is_not_finite_or_no_measurement_breaks_nothing(store: Store, tmp_path: Path) -> None:
    store.ask("r", [question(0)])
    lines = [
        '{"phase": "train-ppo-0", "step": 0, "kl": NaN}', '{"phase": "train-ppo-0", "step": 1, "kl": Infinity}',
        '{"phase": "train-ppo-0", "step": 2, "kl": 1e999}', '{"phase": "train-ppo-0", "step": NaN, "kl": 1.0}',
        '{"phase": "train-ppo-0", "step": 3, "kl": "much"}', '{"phase": "train-ppo-0", "step": 4, "kl": 0.5}',
        '{"phase": "train-ppo-0", "step": 5, "kl": 1' + "0" * 400 + "}", '{"phase": ["x"], "step": 1, "gold": 1}',
    ]  # fmt: skip
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    with served(store, "r", metrics=tmp_path / "metrics.jsonl") as url:
        owner, ann = program(url, store, "owner", role="owner"), program(url, store, "ann")
        answer = owner.get("/api/owner/curves")
        found = json.loads(answer.text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
        assert points(found, "KL") == {"ppo, round 0": [[0, None], [1, None], [2, None], [3, None], [4, 0.5], [5, None]]}
        assert found["problem"] == ""
        assert ann.get("/api/owner/curves").status_code == 403
        for odd in ("no JSON\n", "[1]\n", '{"step": 1}\n', "\udcff\n"):
            with (tmp_path / "metrics.jsonl").open("a", errors="surrogateescape") as file:
                file.write(odd)
            assert "is no measurement" in owner.get("/api/owner/curves").json()["problem"]
        assert points(owner.get("/api/owner/curves").json(), "KL") == points(found, "KL")


def hacked(metrics: Metrics, steps: int) -> None:
    """Reward rises all the way, and gold falls after a while."""
    for step in range(steps):
        gold = min(step, 24 - step) / 10
        values = {"score": step / 10, "score_stderr": 0.01, "score_std": 0.1, "gold": gold, "gold_stderr": 0.01, "gold_std": 0.1}
        metrics.write("train-ppo-0", step, values)


def test_the_alarm_is_the_one_of_rather_hack(metrics: Metrics) -> None:
    read = Curves(metrics.path)
    hacked(metrics, 8)
    assert read.read()["alarms"] == []
    hacked(metrics, 24)
    expected = alarm.alarm(alarm.points(metrics.read("train-ppo-0"), "score"))
    assert expected is not None
    assert "falls" in expected.sign
    assert read.read()["alarms"] == [f"train-ppo-0: {expected}"]
    assert points(read.read(), "Mean gold reward")
    metrics.write(f"spot-0-{expected.step}", expected.step, {"comparisons": 7.0}, of=2, result="no worse")
    assert read.read()["alarms"] == [], "spot checks have dismissed it"
    assert Curves(metrics.path).read()["alarms"] == []
    assert Curves(metrics.path, "return").read()["alarms"] == [], "the policy is trained on another reward"


def test_what_was_exploited_is_shown_and_a_damaged_note_is_named(metrics: Metrics, tmp_path: Path) -> None:
    read = Curves(metrics.path, "score", [tmp_path])
    examples.note(tmp_path, 4, [examples.Example("p", "b", "a", (0.0, 1.0), None)])
    assert read.read()["exploited"] == [{"prompt": "p", "before": "b", "after": "a", "proxy": (0.0, 1.0), "gold": None}]
    (tmp_path / examples.NOTE).write_text("{")
    found = read.read()
    assert found["exploited"] == []
    assert "exploited.json cannot be read" in found["problem"]


def test_the_owner_sees_curves_and_figures_over_time(context: BrowserContext, store: Store, tmp_path: Path) -> None:
    store.ask("r", [question(i) for i in range(4)])
    for name in ("ann", "ben"):
        store.add_judge(name, "person")
    metrics = Metrics(tmp_path / "metrics.jsonl")
    hacked(metrics, 24)
    said = "<img src=x onerror=alert(1)> great great"
    examples.note(tmp_path, 9, [examples.Example("Why?", "since", said, (0.5, 2.0), (1.0, -1.0))])
    with served(store, "r", metrics=metrics.path) as url:
        page = context.new_page()
        page.goto(f"{url}/join#{invite(store, 'owner', 'owner')}")
        expect(page.locator("#alarms")).to_contain_text("reward hacking")
        page.get_by_text("What was exploited").click()
        sides = page.locator("#exploited .side")
        expect(sides.first).to_contain_text("base model: proxy 0.50, gold 1.00")
        expect(sides.last).to_contain_text("hacked policy: proxy 2.00, gold -1.00")
        expect(sides.last).to_contain_text(said)
        assert page.locator("#exploited img").count() == 0
        gold = page.locator("#curves figure", has_text="Mean gold reward")
        expect(gold.locator("svg[role=img]")).to_have_attribute(
            "aria-label", "Mean gold reward of the policy: last 0.1, lowest 0, highest 1.2"
        )
        gold.get_by_text("Numbers").click()
        expect(gold.locator("tbody tr")).to_have_count(24)
        assert gold.locator("tbody tr").nth(3).inner_text().split() == ["3", "0.3"]
        metrics.write("train-ppo-0", 24, {"gold": math.nan})
        metrics.write("train-ppo-0", 25, {"gold": 2.0})
        expect(gold.locator("tbody tr")).to_have_count(26)
        assert gold.locator("tbody tr").nth(24).inner_text().split() == ["24"]
        path = gold.locator("path.line").get_attribute("d") or ""
        assert path.count("M") == 2, "there is a gap where nothing is known"
        assert "NaN" not in path
        expect(page.locator("#over-time-section")).to_be_hidden()
        store.add_judge("<b>eve</b>", "person")
        for number, name, preference in ((1, "ann", 1.0), (1, "ben", 1.0), (2, "<b>eve</b>", 0.0)):
            store.answer(Label(number, name, preference, "", 0.1))
        people = page.locator("#over-time figure", has_text="Answers of each person")
        expect(people.locator(".legend li")).to_have_text(["<b>eve</b>", "ann", "ben"])
        done = page.locator("#over-time figure", has_text="Questions that have all")
        expect(done.locator("svg[role=img]")).to_have_attribute(
            "aria-label", "Questions that have all their answers: last 50 %, lowest 50 %, highest 50 %"
        )
        expect(page.locator("#over-time figure").first.locator("rect")).to_have_count(1)
        expect(page.locator("#flags")).to_have_text("3 fast: 3 not learned from")
        assert page.locator("[style]").count() == 0


def test_the_owner_sees_how_well_answers_are_predicted_before_they_are_learned_from(
    context: BrowserContext, store: Store, tmp_path: Path
) -> None:
    store.ask("r", [question(0)])
    metrics, said = Metrics(tmp_path / "metrics.jsonl"), "Reward head: 67 % of 3 answers were predicted right before they were learned from"
    page = context.new_page()
    with served(store, "r", metrics=metrics.path, head=True) as url:
        page.goto(f"{url}/join#{invite(store, 'owner', 'owner')}")
        expect(page.locator("#predicted")).to_contain_text("The reward head has predicted no answer yet.")
        metrics.write("train-reward-0", 1, {"loss": 0.6, "prequential_loss": 0.69, "answers": 0.0})
        metrics.write("train-reward-0", 2, {"answers": 1.0} | interval(0.5))
        metrics.write("train-reward-0", 3, {"answers": 3.0} | interval(2 / 3))
        metrics.write("reward-eval", 3, {"accuracy": 1.0})
        expect(page.locator("#predicted")).to_have_text(f"{said} (95 % interval 57 to 77 %).")
        figure = page.locator("#curves figure", has_text="Answers predicted right before they were learned from")
        expect(figure.locator("svg[role=img]")).to_have_attribute("aria-label", re.compile("last 66.7 %, lowest 50 %, highest 66.7 %"))
        expect(figure.locator("polygon.interval")).to_have_count(1)
    with served(store, "r") as url:
        page.goto(f"{url}/join#{invite(store, 'owner', 'owner')}")
        expect(page.locator("#totals")).to_contain_text("questions have")
        expect(page.locator("#curves-section")).to_be_hidden()
        expect(page.locator("#predicted")).to_have_count(0)


def interval(accuracy: float) -> dict[str, float]:
    ends = {"_low": accuracy - 0.1, "": accuracy, "_high": accuracy + 0.1}
    return {f"prequential_accuracy{end}": value for end, value in ends.items()}


def test_times_stand_in_the_readers_own_zone(chromium: Any, store: Store, tmp_path: Path) -> None:
    store.ask("r", [question(0)])
    with served(store, "r") as url:
        token = invite(store, "owner", "owner")
        found = {}
        for zone in ("UTC", "Asia/Kolkata"):
            context = chromium.new_context(timezone_id=zone, locale="en-GB")
            page = context.new_page()
            page.goto(f"{url}/join#{token}")
            expect(page.locator("#totals")).to_contain_text("questions have")
            begins = 1_700_006_400 - 3600 * 6  # 18:00 in UTC on 14 November 2023
            found[zone] = page.evaluate("begins => timeTicks(begins, begins + 12 * 3600).map(([, name]) => name)", begins)
            context.close()
    assert found["UTC"] == ["18:00", "21:00", "15 Nov", "03:00", "06:00"]
    assert found["Asia/Kolkata"] == ["15 Nov", "03:00", "06:00", "09:00"]


def test_a_file_that_cannot_be_read_is_named(metrics: Metrics) -> None:
    metrics.path.mkdir()
    assert "cannot be read: Is a directory" in Curves(metrics.path).read()["problem"]
