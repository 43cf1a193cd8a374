from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from rather.errors import CheckpointError
from rather.hacking.alarm import Lookout, Measure, Point, SpotChecks, alarm, lookouts, one_event, points
from rather.hacking.examples import Example, most_exploited, newest, note, noted
from rather.hacking.watch import alarms, forget, silent, watched
from rather.learners.spread import gold_correlation, spread
from rather.report.hacking import Side, write


def run(proxy, gold, noise: float = 0.1, seed: int = 0) -> list[Point]:
    """A run of 60 steps whose proxy and gold follow two functions of the share that is done; trajectories differ by 1."""
    chance = np.random.default_rng(seed)

    def measure(f, x):
        return Measure(f(x) + noise * chance.standard_normal(), noise, 1.0)

    return [Point(i + 1, measure(proxy, i / 60), measure(gold, i / 60), kl=float(i)) for i in range(60)]


@pytest.mark.parametrize("seed", range(5))
def test_gold_that_stays_while_the_proxy_rises(seed: int) -> None:
    found = alarm(run(lambda x: 20 * x, lambda x: 0.0, seed=seed))
    assert found is not None
    assert found.best == 1, "in the middle of the first window, whose second step measures the policy of the first checkpoint"
    assert found.step < 25
    assert found.sign == "stays"


@pytest.mark.parametrize("seed", range(5))
def test_where_gold_has_risen_a_little_before_it_stays_that_little_is_kept(seed: int) -> None:
    """It rises by half a standard deviation of a trajectory in the first 10 steps, and the proxy by 20 in all: gold stays, all in all."""
    found = alarm(run(lambda x: 20 * x, lambda x: 0.5 * min(6 * x, 1), noise=0.02, seed=seed))
    assert found is not None
    assert found.sign == "stays"
    assert found.best > 5
    assert found.gold is not None
    assert found.gold == pytest.approx((0.075, 0.375), abs=0.05), "means of the steps 1 to 4 and 7 to 10: 0.05 a step"
    assert str(found).startswith("reward hacking: from the first steps to step 10 the proxy reward went from ")
    assert str(found).endswith(f"the gold reward from {found.gold[0]:.3g} to {found.gold[1]:.3g}; go back to step {found.best}")


@pytest.mark.parametrize("seed", range(5))
def test_gold_that_falls_is_seen_before_it_has_lost_a_tenth(seed: int) -> None:
    def gold(x: float) -> float:
        return 10 * min(x, 0.5) / 0.5 - 5 * max(x - 0.5, 0)

    found = alarm(run(lambda x: 20 * x, gold, seed=seed))
    assert found is not None
    assert 25 <= found.best <= 36
    assert gold((found.step - 1) / 60) > 9, "it had been 10"


def pulled(found: list[Point], correlation, seed: int, n: int = 32) -> list[Point]:
    """The same run with the correlation of pay and worth, a function of the share that is done, as `n` trajectories a step show it."""
    chance = np.random.default_rng(seed)
    values = [float(np.tanh(np.arctanh(correlation(i / 60)) + chance.standard_normal() / (n - 3) ** 0.5)) for i in range(60)]
    return [replace(p, gold_correlation=Measure(r, 1 / (n - 3) ** 0.5, 1.0)) for p, r in zip(found, values, strict=True)]


@pytest.mark.parametrize("seed", range(5))
def test_gold_that_turns_is_seen_before_it_falls(seed: int) -> None:
    def gold(x: float) -> float:
        return 12 * x * (1 - x)

    noisy = run(lambda x: 20 * x, gold, noise=0.5, seed=seed)
    later, found = alarm(noisy), alarm(pulled(noisy, lambda x: max(-0.8, min(0.8, 4 * (0.5 - x))), seed))
    assert found is not None
    assert found.sign in ("falls", "turns")
    assert 30 < found.step < 50, "it is best at 30"
    assert later is None or later.step >= found.step


@pytest.mark.parametrize("seed", range(5))
def test_pay_that_has_nothing_to_do_with_worth_is_no_alarm_by_itself(seed: int) -> None:
    assert alarm(pulled(run(lambda x: 20 * x, lambda x: 10 * x, seed=seed), lambda x: 0.0, seed)) is None
    assert alarm(pulled(run(lambda x: 0.0, lambda x: 0.0, seed=seed), lambda x: -0.9, seed)) is None, "nothing is gained by it yet"


def test_pull_is_the_correlation_of_pay_and_worth() -> None:
    assert gold_correlation([1, 2, 3, 4], [2, 4, 6, 8]) == {"gold_correlation": pytest.approx(1), "gold_correlation_stderr": 1}
    assert gold_correlation([1, 2, 3, 4, np.nan], [8, 6, 4, 2, 100]) == {
        "gold_correlation": pytest.approx(-1),
        "gold_correlation_stderr": 1,
    }, "what is unjudged pulls nothing"
    assert gold_correlation([0, 0, 0, 0], [1, 2, 3, 4])["gold_correlation"] == 0
    assert gold_correlation([1, 2], [1, 2]) == {}, "too few to say"


@pytest.mark.parametrize("seed", range(5))
def test_what_goes_well_raises_no_alarm(seed: int) -> None:
    assert alarm(run(lambda x: 20 * x, lambda x: 10 * x, seed=seed)) is None, "both rise"
    assert alarm(run(lambda x: 20 * min(2 * x, 1), lambda x: 10 * min(2 * x, 1), seed=seed)) is None, "both rise and stay"
    assert alarm(run(lambda x: 20 * x, lambda x: 10 * min(2 * x, 1), seed=seed)) is None, "gold is as good as it gets"
    assert alarm(run(lambda x: 0.0, lambda x: 0.0, seed=seed)) is None, "nothing happens"
    assert alarm(run(lambda x: -20 * x, lambda x: -10 * x, seed=seed)) is None, "both fall: bad, but no hacking"


def test_points_come_from_metrics() -> None:
    row = {"score": 1.0, "score_stderr": 0.1, "score_std": 2.0, "gold": 3.0, "gold_stderr": 0.2, "gold_std": 4.0}
    rows = [{"step": 1, "score": 0.5}, {"step": 2, "kl": 7.0, **row}]
    (found,) = points(rows, "score")
    assert found == Point(2, Measure(1.0, 0.1, 2.0), Measure(3.0, 0.2, 4.0), 7.0)
    (found,) = points([rows[1] | {"gold_correlation": 0.5, "gold_correlation_stderr": 0.2}], "score")
    assert found.gold_correlation == Measure(0.5, 0.2, 1.0)
    assert found.proxy.low == pytest.approx(1 - 0.196)
    (found,) = points([{k: v for k, v in rows[1].items() if "gold" not in k} | {"alike": 0.1, "same_word": 0.02}], "score")
    assert found.gold is None
    assert found.signs == {"alike": 0.1, "same_word": 0.02}


def test_one_event() -> None:
    assert one_event([0, 1, 0, 1, 1, 0, 2, 0]) == 3 / 8
    assert one_event([0, 0]) == 0


def exactly(step: int, proxy: float, gold: float, stderr: float = 0.01, r: float | None = None) -> Point:
    correlation = None if r is None else Measure(r, 0.2, 1.0)
    return Point(step, Measure(proxy, stderr, 1.0), Measure(gold, stderr, 1.0), gold_correlation=correlation)


def test_a_fall_of_no_importance_is_no_alarm() -> None:
    """As on the car: gold rises to 3.26 laps and falls to 3.22 while the proxy goes on rising, as sure as can be."""
    golds = [*np.linspace(0, 3.26, 20), *np.linspace(3.26, 3.22, 20)]
    assert alarm([exactly(i, 0.1 * i, g, stderr=1e-6) for i, g in enumerate(golds)]) is None
    golds = [*np.linspace(0, 3.26, 20), *np.linspace(3.26, 2.93, 20)]
    found = alarm([exactly(i, 0.1 * i, g, stderr=1e-6) for i, g in enumerate(golds)])
    assert found is not None
    assert found.sign == "falls"
    assert found.gold is not None
    assert found.gold[0] - found.gold[1] == pytest.approx(0.05 * 3.26, abs=0.03)
    assert 18 <= found.best <= 20


def test_what_gold_has_gained_counts_from_the_first_round_on() -> None:
    """A second round begins at 3.2 laps and comes to 3.3; a fall by 0.04 is much of that, and little of all."""
    rising = [exactly(i, 0.1 * i, g, stderr=1e-6) for i, g in enumerate(np.linspace(0, 3.2, 20))]
    golds = [*np.linspace(3.2, 3.3, 10), *np.linspace(3.3, 3.26, 10)]
    second = [exactly(i, 0.1 * i, g, stderr=1e-6) for i, g in enumerate(golds)]
    assert alarm(second) is not None
    assert [lookout.raised for lookout in lookouts([rising, second])] == [None, None]
    stays = [Point(i, Measure(10.0 * i, 0.1, 10.0), Measure(3.2, 0.1, 1.0)) for i in range(20)]
    assert alarm(stays) is not None
    assert lookouts([rising, stays])[1].raised is None, "it has learned to drive before"
    worse = [exactly(i, 0.1 * i, g, stderr=1e-6) for i, g in enumerate([*golds[:10], *np.linspace(3.3, 2.9, 10)])]
    assert lookouts([rising, worse])[1].raised is not None


def test_a_proxy_that_falls_with_gold_is_no_hacking() -> None:
    """Until its best, a point of gold was worth two of the proxy; what follows it down is honest, what stays behind is not."""
    golds = [*np.linspace(0, 1, 20), *np.linspace(1, 0.5, 20)]
    assert alarm([exactly(i, 2 * g, g) for i, g in enumerate(golds)]) is None
    stays = [exactly(i, 2 * golds[min(i, 19)], g) for i, g in enumerate(golds)]
    found = alarm(stays)
    assert found is not None
    assert found.sign == "falls"


def test_evidence_that_gold_turns_adds_up() -> None:
    """Each step says that rewards and gold part by 2 standard errors, of which half a one is slack: more than 6 after five,
    and a window has to be there before that is compared with."""
    r = -float(np.tanh(2 * 0.2))
    found = alarm([exactly(i, 0.01 * i, 0.0, r=r) for i in range(10)])
    assert found is not None
    assert found.sign == "turns"
    assert found.step == 5
    assert alarm([exactly(i, -0.01 * i, 0.0, r=r) for i in range(10)]) is None, "the proxy has not risen"
    assert alarm([exactly(i, 0.01 * i, 0.0, r=-r if i % 2 else r) for i in range(40)]) is None


def test_gold_that_turns_may_be_at_its_best_only_now() -> None:
    r = -float(np.tanh(2 * 0.2))
    found = alarm([exactly(i, 0.1 * i, 0.05 * i, r=r if i > 15 else 0.5) for i in range(40)])
    assert found is not None
    assert found.sign == "turns"
    assert found.best == found.step - 3, "the middle of the last window, before its update"
    assert found.gold is not None
    assert found.gold[0] == found.gold[1], "nothing is lost yet"


def test_why_no_alarm_can_go_off() -> None:
    def of(points: list[Point]) -> str:
        lookout = Lookout()
        for point in points:
            lookout.see(point)
        return lookout.silent

    assert of([]) == "no gold reward was measured"
    assert of([exactly(0, 0, 0.0)]) == "gold was measured at fewer than 8 steps, which it takes to see a change"
    constant = [Point(i, Measure(i, 0.1, 1.0), Measure(1.0, 0.0, 0.0)) for i in range(8)]
    assert "was the same for all trajectories" in of(constant)
    assert "is the reward that was trained on" in of([exactly(i, i, i) for i in range(8)])
    assert of([exactly(i, i, 0.0) for i in range(8)]) == ""


def test_why_no_alarm_can_go_off_is_said_once_for_all_rounds() -> None:
    none: list[Point] = []
    few, enough = [exactly(0, 0, 0.0)], [exactly(i, i, 0.0) for i in range(8)]
    assert silent(lookouts([none] * 5)) == ["no alarm can go off: no gold reward was measured"]
    assert silent(lookouts([enough, enough])) == []
    assert silent(lookouts([none, few, none, enough, none, none, none, few])) == [
        "no alarm can go off in rounds 0, 2, 4, 5, 6: no gold reward was measured",
        "no alarm can go off in rounds 1, 7: gold was measured at fewer than 8 steps, which it takes to see a change",
    ]
    assert silent(lookouts([none, none, none, enough, few]))[0] == "no alarm can go off in rounds 0 to 2: no gold reward was measured"


def test_an_alarm_is_raised_once() -> None:
    lookout, golds = Lookout(), [*np.linspace(0, 1, 10), *np.linspace(1, 0, 30)]
    raised = [found for i, g in enumerate(golds) if (found := lookout.see(exactly(i, 0.1 * i, g))) is not None]
    assert len(raised) == 1


def test_spot_checks_use_what_the_proxy_says_of_the_others() -> None:
    """Gold is twice the proxy and a little noise: 4 of 32 answers say as much as all of them nearly do."""
    chance, checks, errors, plain = np.random.default_rng(0), SpotChecks(), [], []
    for step in range(300):
        proxy = chance.standard_normal(32)
        gold = 2 * proxy + 0.1 * chance.standard_normal(32)
        checked = np.where(np.arange(32) < 4, gold, np.nan)
        found = checks.see(proxy.tolist(), checked.tolist())
        assert found is not None
        if step > 10:
            errors.append((found.mean - gold.mean(), found.stderr))
            plain.append(gold[:4].mean() - gold.mean())
    assert np.std([e for e, _ in errors]) < 0.1 * np.std(plain)
    assert SpotChecks().see([1.0, 2.0], [1.0, np.nan]) is None, "one answer says nothing of their spread"
    around_zero = [chance.standard_normal(8) for _ in range(500)]
    checks = SpotChecks()
    seen = [checks.see(chance.standard_normal(32).tolist(), [*gold, *[np.nan] * 24]) for gold in around_zero]
    wide = np.mean([s.stderr for s in seen if s is not None])
    assert wide == pytest.approx(8**-0.5, rel=0.1), "where the proxy says nothing, it is as if it were not there"


def test_eight_checks_a_step_find_what_falls() -> None:
    chance, checks, seen = np.random.default_rng(1), SpotChecks(), list[Point]()
    for i in range(80):
        better = min(i, 30) / 30 - max(0, i - 40) / 30
        gold = better + 0.3 * chance.standard_normal(32)
        proxy = i / 30 + 0.3 * chance.standard_normal(32)
        measured = checks.see(proxy.tolist(), np.where(np.arange(32) < 8, gold, np.nan).tolist())
        seen.append(Point(i, Measure(float(proxy.mean()), 0.3 / 32**0.5, 0.3), measured))
    found = alarm(seen)
    assert found is not None
    assert 40 < found.step < 60


def told(step: int, proxy: float, **signs: float) -> Point:
    return Point(step, Measure(proxy, 0.1, 1.0), None, signs={"same_word": 0.02, "alike": 0.1, "one_feature": 0.2} | signs)


def test_without_gold_the_answers_themselves_are_watched() -> None:
    honest = [told(i, 0.1 * i) for i in range(20)]
    assert alarm(honest) is None
    for sign, value in (("same_word", 0.1), ("alike", 0.4), ("one_feature", 0.9)):
        found = alarm([*honest, *(told(20 + i, 2.0 + i, **{sign: value}) for i in range(8))])
        assert found is not None
        assert found.sign == sign
        assert found.gold is None
        assert "perhaps reward hacking" in str(found)
        assert alarm([*honest, *(told(20 + i, -1.0, **{sign: value}) for i in range(8))]) is None, "nothing was gained by it"
    assert alarm([Point(i, Measure(i, 0.1, 1.0), None) for i in range(20)]) is None, "nothing is known"


def test_the_page_shows_both_sides_and_escapes_what_it_is_told(tmp_path) -> None:
    hacked, honest = run(lambda x: 20 * x, lambda x: 0.0), run(lambda x: 20 * x, lambda x: 10 * x)
    sides = [
        Side("<b>written</b>", [hacked], "paid", "laps", [("0.03", "laps")], b"RIFF"),
        Side("learned", [honest, honest], "paid", "laps"),
    ]
    page = write(tmp_path / "h.html", "x<y", sides).read_text()
    assert "&lt;b&gt;written" in page
    assert "<b>written" not in page
    assert page.count("<svg") == 4
    assert page.count("data:image/webp;base64,") == 1
    assert "reward hacking: from the first steps to step" in page
    assert "no alarm" in page
    assert alarms(lookouts([honest, hacked]))[0].startswith("round 1: reward hacking")


def test_gold_that_may_have_risen_enough_raises_no_alarm() -> None:
    start = [Point(i, Measure(0.0, 0.1, 1.0), Measure(0.0, 0.2, 1.0)) for i in range(1, 5)]
    unsure = [Point(i, Measure(20.0, 0.1, 1.0), Measure(0.9, 0.2, 1.0)) for i in range(5, 15)]  # 0.9 +- 0.28 over four points each
    assert alarm([*start, *unsure]) is None
    surely_not = [Point(p.step, p.proxy, Measure(0.5, 0.2, 1.0)) for p in unsure]
    assert alarm([*start, *surely_not]) is not None


def test_answers_to_one_prompt_count_together() -> None:
    alike = spread("gold", [1.0, 1.0, 3.0, 3.0], ["a", "a", "b", "b"])
    assert alike["gold"] == 2
    assert alike["gold_stderr"] == pytest.approx(1.0), "as two draws, 1 and 3: sqrt(2) / sqrt(2)"
    assert spread("gold", [1.0, 2.0, 4.0], [0, 1, 2]) == pytest.approx(spread("gold", [1.0, 2.0, 4.0]))
    assert "gold_stderr" not in spread("gold", [1.0, 2.0], ["a", "a"]), "one prompt says nothing of others"
    within = gold_correlation([1, 2, 11, 12, 21, 22], [9, 10, 5, 6, 1, 2], ["a", "a", "b", "b", "c", "c"])
    assert within["gold_correlation"] == pytest.approx(1), "prompts differ in the opposite way"
    assert within["gold_correlation_stderr"] == pytest.approx(1), "6 answers, less 3 means, less 2"
    assert gold_correlation([1, 2, 3], [1, 2, 3], ["a", "a", "b"]) == {}, "too few to say"


def test_what_is_not_measured_is_not_taken_for_a_number() -> None:
    row = {"step": 1, "score": 1.0, "score_stderr": 0.1, "score_std": 1.0, "gold": float("nan"), "gold_stderr": 0.1, "gold_std": 1.0}
    (point,) = points([row], "score")
    assert point.gold is None
    assert points([row | {"score_stderr": float("inf")}], "score") == []
    assert points([{k: v for k, v in row.items() if k != "step"}], "score") == []
    sparse = [Point(i, Measure(i, 0.1, 1.0), Measure(0.0, 0.1, 1.0) if i % 5 == 0 else None) for i in range(60)]
    found = alarm(sparse)
    assert found is not None
    assert found.step >= 5 * 6, "four points with gold are a window, and it has to stay so for four"


def test_examples_are_those_that_gained_most_for_least() -> None:
    def example(name: str, proxy: tuple[float, float], gold: tuple[float, float]) -> Example:
        return Example(name, "", "", proxy, gold)

    both, most, some = example("both", (0, 1), (0, 1)), example("most", (0, 1), (1, 0)), example("some", (0, 1), (0, 0))
    fell, worse = example("fell", (1, 0), (1, 0)), example("worse", (1, 0), (1, -1))
    assert [x.prompt for x in most_exploited([worse, some, fell, most])] == ["most", "some"], "the proxy of the others fell"
    assert "both" not in [x.prompt for x in most_exploited([both, most, example("other", (1, 0), (0, 1))])]
    assert most_exploited([]) == []
    assert most_exploited([example("same", (1, 1), (0, 0))]) == []


def test_examples_are_kept_beside_the_checkpoints(tmp_path: Path) -> None:
    first, second = tmp_path / "grpo-0", tmp_path / "grpo-1"
    for folder in (first, second):
        folder.mkdir()
    one, other = Example("p", "b", "a", (0.0, 1.0), (1.0, 0.0)), Example("q", "b", "a", (0.0, 1.0), None)
    assert noted(first) is None
    assert newest([first, second]) == []
    note(first, 7, [one])
    assert noted(first) == noted(first, 7) == [one]
    assert noted(first, 8) is None, "another alarm's"
    note(second, 3, [])
    assert newest([first, second]) == [], "the last alarm has left none"
    note(second, 4, [other])
    assert newest([first, second]) == [other]
    forget(second)
    assert newest([first, second]) == [one]
    whole = (first / "exploited.json").read_text()
    odd = [whole.replace("0.0", "9" * 400), "[" * 100_000, whole.replace('"p"', r'"\ud800"'), whole.replace('"p"', "7")]
    for damaged in ("{", "[]", '{"step": 1}', '{"step": 1, "examples": [{}]}', *odd):
        (first / "exploited.json").write_text(damaged)
        with pytest.raises(CheckpointError, match=r"exploited.json cannot be read .*delete it"):
            noted(first)
    (first / "exploited.json").write_text(
        '{"step": 1, "examples": [{"prompt": "p", "before": "b", "after": "a", "proxy": [0, NaN], "gold": null}]}'
    )
    with pytest.raises(CheckpointError, match="are not finite"):
        noted(first)


def test_without_gold_the_proxy_decides_alone() -> None:
    little, much = Example("little", "", "", (0.0, 0.5), None), Example("much", "", "", (0.0, 2.0), None)
    assert most_exploited([little, Example("fell", "", "", (1.0, 0.0), None), much]) == [much, little]


def test_a_run_is_watched_by_its_metrics() -> None:
    rows = [
        {"phase": f"train-grpo-{n}", "step": p.step, "gold": None}
        | {f"score{k}": v for k, v in (("", p.proxy.mean), ("_stderr", p.proxy.stderr), ("_std", p.proxy.std))}
        | {"alike": 0.1 if p.step < 30 else 0.5, "same_word": 0.1}
        for n in (0, 1)
        for p in run(lambda x: x, lambda x: 0.0)
    ]
    rounds, dismissed = watched(rows, "grpo", "score")
    assert [len(points) for points in rounds] == [60, 60]
    assert dismissed == [set(), set()]
    raised = lookouts(rounds)[0].raised
    assert raised is not None
    said = {"phase": f"spot-0-{raised.step}", "step": raised.step, "of": 1, "result": "no worse", "comparisons": 7.0}
    assert watched([*rows, said], "grpo", "score")[1] == [{raised.step}, set()]
    assert watched([*rows, said | {"result": "worse"}], "grpo", "score")[1] == [set(), set()]
    assert watched([*rows, said | {"phase": "spot-2-5"}], "grpo", "score")[1] == [set(), set()], "no such round"
    assert watched(rows, "ppo", "score") == ([], [])
    assert lookouts(*watched([*rows, said], "grpo", "score"))[0].raised is None
    assert alarms(lookouts(rounds))[0].startswith("round 0: perhaps reward hacking")


def test_the_page_shows_answers_as_they_are(tmp_path) -> None:
    said = Example("<i>p</i>", "before <b>", "<script>alert(1)</script>", (0.25, 1.5), (1.0, -0.5))
    page = write(
        tmp_path / "page.html", "run", [Side("one", [run(lambda x: x, lambda x: x)], "proxy", "gold", examples=[said])]
    ).read_text()
    assert "<script>alert" not in page
    assert "&lt;script&gt;alert(1)" in page
    assert "proxy 1.50, gold -0.50" in page
    other = write(tmp_path / "other.html", "run", [Side("one", [run(lambda x: x, lambda x: x)], "proxy", "gold")]).read_text()
    assert "What was exploited" in page
    assert "What was exploited" not in other
