import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from rather.core import Comparison, Task, Trajectory
from rather.errors import ConfigError, DataError
from rather.verify.checker import Checker, Verified
from rather.verify.tasks import made
from rather.verify.verifiers import VERIFIERS, Check, boxed, code, number, pattern, reasoning_gym, schema

sys.path.append(str(Path(__file__).parent))


def answer(text: str, gold: str = "7", actions: int = 3) -> Trajectory:
    return Trajectory(Task("t", "1", "p", gold), "p", text, actions=np.arange(actions))


@pytest.mark.parametrize(
    ("text", "gold", "right"),
    [
        ("It is 12.", "12", True), ("12.0", "12", True), ("$1,234", "1234", True), ("x = -3", "-3", True), ("\N{MINUS SIGN}3", "-3", True),
        ("1e3", "1000", True), (".5", "0.5", True), ("12 or 13", "12", False), ("1 2 3 4 5 6 7 8 9", "7", False), ("-12", "12", False),
        ("twelve", "12", False), ("", "12", False), ("112", "12", False), ("12,13", "12", False),
        ("E-6", "-6", True), ("1e999", "12", False), (".", "12", False), ("1.e5", "5", True),
        ("\N{ARABIC-INDIC DIGIT SEVEN}", "7", True), ("\N{SUPERSCRIPT TWO}", "2", False),
    ],
)  # fmt: skip
def test_the_last_number_counts(text: str, gold: str, right: bool) -> None:
    assert number(text, gold, Check("number")) == right


def test_numbers_within_a_tolerance_and_answers_that_are_none() -> None:
    assert number("3.14", "3.14159", Check("number", tolerance=0.01)) == 1
    assert number("3.14", "3.14159", Check("number")) == 0
    with pytest.raises(DataError, match="'seven' is no number"):
        number("7", "seven", Check("number"))


@pytest.mark.parametrize(
    ("text", "right"),
    [
        (r"so \boxed{\frac{1}{2}}", True), (r"\boxed{0.5}", True), (r"\boxed{\frac{2}{4}}", True), (r"\boxed{x = 1/2}", True),
        (r"\boxed{1/3}", False), ("0.5", False), (r"\boxed{}", False), (r"\boxed{1/2", False),
        (r"\boxed{1/2} or \boxed{1/3}", False), (r"\boxed{1/2, 1/3}", False), (r"\boxed{\{1/2, 1/3\}}", False),
        (r"\boxed{1/2 \text{ or } 1/3}", False), (r"\boxed{x}", False), (r"\boxed{x > 0}", False), (r"\boxed{\text{the answer}}", False),
    ],
)  # fmt: skip
def test_mathematics_in_one_box(text: str, right: bool) -> None:
    assert boxed(text, r"\frac{1}{2}", Check("boxed")) == right


def test_a_pattern_fits_once_and_holds_the_answer() -> None:
    check = Check("pattern", pattern=r"<answer>(?P<answer>.*?)</answer>")
    assert pattern("<answer> 7 </answer>", "7", check) == 1
    for wrong in ("7", "<answer>8</answer>", "<answer>7</answer><answer>8</answer>", "<answer>7 8</answer>"):
        assert pattern(wrong, "7", check) == 0
    assert pattern("so: yes", "", Check("pattern", pattern="yes$")) == 1
    with pytest.raises(ConfigError, match="no regular expression"):
        pattern("", "", Check("pattern", pattern="("))
    with pytest.raises(ConfigError, match="needs its pattern"):
        pattern("", "", Check("pattern"))


def test_json_fits_its_schema(tmp_path: Path) -> None:
    wanted = '{"type": "object", "required": ["a"], "properties": {"a": {"type": "integer"}}}'
    check = Check("schema")
    assert schema('{"a": 1}', wanted, check) == schema('Here:\n```json\n{"a": 1}\n```', wanted, check) == 1
    for wrong in ('{"b": 1}', '{"a": "x"}', '{"a": 1, "a": "x"}', "NaN", "", "[" * 100_000, '```json\n{"a":1}\n```\n```json\n{}\n```'):
        assert schema(wrong, wanted, check) == 0
    (tmp_path / "s.json").write_text(wanted)
    assert schema('{"a": 1}', "", Check("schema", schema_file=str(tmp_path / "s.json"))) == 1
    with pytest.raises(DataError, match="cannot be used"):
        schema("{}", '{"type": 3}', check)


def test_code_is_run_against_the_tests() -> None:
    tests = "assert double(2) == 4\nassert double(3) == 6"
    assert code("```python\ndef double(x): return 2 * x\n```", tests, Check("code")) == 1
    assert code("def double(x): return 4", tests, Check("code")) == 0
    assert code("def double(x): return 4", tests, Check("code", partial=True)) == 0.5


def test_tasks_of_reasoning_gym_are_scored_as_it_scores_them() -> None:
    name = "reasoning_gym:chain_sum?min_terms=2&max_terms=2&min_digits=1&max_digits=1"
    train, held_out = made(name, 60, 0.5, 0, whole=True)
    assert len(train) == len(held_out) == 30
    assert not {t.prompt for t in train} & {t.prompt for t in held_out}
    task = train[0]
    total = eval(task.prompt.split(":")[1].split("=")[0])
    for text, right in ((str(total), True), (f"<answer>{total}</answer>", True), (str(total + 1), False)):
        assert (reasoning_gym(text, task.answer, Check("reasoning_gym")) == 1) == right
    plain, _ = made(name, 60, 0.5, 0, whole=False)
    assert plain[0].answer == str(total)
    with pytest.raises(ConfigError, match="no data set 'chain_som'"):
        made("reasoning_gym:chain_som", 5, 0.5, 0, False)
    with pytest.raises(ConfigError, match="cannot make chain_sum with 'mini=2'"):
        made("reasoning_gym:chain_sum?mini=2", 5, 0.5, 0, False)


@pytest.fixture
def checker():
    made = []

    def make(*checks: Check, workers: int = 1) -> Checker:
        made.append(Checker(checks, workers))
        return made[-1]

    yield make
    for c in made:
        c.close()


def users(name: str, **more: float) -> Check:
    return Check("python", function=f"verifiers_of_users:{name}", **more)


def test_scores_are_weighed(checker) -> None:
    both = checker(Check("number", weight=3), users("half", weight=1))
    assert both.score([answer("7"), answer("8")]) == [0.875, 0.125]


def test_what_cannot_be_judged_is_counted_and_shown(checker) -> None:
    for name, why in (("shy", "it cannot judge"), ("broken", "raised ZeroDivisionError: division by zero"), ("fatal", "its process died")):
        c = checker(users(name))
        assert c.score([answer("7"), answer("8")]) == [None, None]
        assert dict(c.problems) == {f"python: {why}": 2}


def test_one_that_hangs_costs_one_answer(checker) -> None:
    c = checker(Check("pattern", pattern=r"(a+)+$", timeout_s=0.5), workers=2)
    assert c.score([answer("aaa"), answer("a" * 60 + "b"), answer("aa")]) == [1, None, 1]
    assert dict(c.problems) == {"pattern: no answer within 0.5 s": 1}
    slow = checker(Check("boxed", timeout_s=1))
    assert slow.score([answer(r"\boxed{10^{10^{10^{10}}}}"), answer(r"\boxed{7}")]) == [None, 1]


def test_what_a_verifier_prints_is_no_score(checker) -> None:
    assert checker(users("loud")).score([answer("7")]) == [0]


def test_what_is_set_up_wrongly_stops_the_run(checker) -> None:
    for check, sentence in (
        (Check("nomber"), "there is no verifier 'nomber'; take one of number, boxed"),
        (users("missing"), "'verifiers_of_users:missing' cannot be imported"),
        (Check("python", function="nonsense"), "cannot be imported.*write module:name"),
        (Check("number", weight=0), "a weight above 0"),
    ):
        with pytest.raises(ConfigError, match=sentence):
            checker(check).score([answer("7")])
    with pytest.raises(ConfigError, match="'seven' is no number"):
        checker(Check("number")).score([answer("7", "seven")])


def test_as_a_judge_it_prefers_the_right_answer(checker) -> None:
    right, wrong = answer("7"), answer("8")
    pairs = [Comparison((a,), (b,)) for a, b in ((right, wrong), (wrong, right), (right, right))]
    assert checker(Check("number")).judge(pairs) == [1.0, 0.0, 0.5]
    assert checker(users("shy")).judge(pairs) == [None] * 3


def test_a_sampler_whose_answers_are_paid(checker) -> None:
    class Known:
        def sample(self, tasks, seed, perturbations=None):
            return [answer("7", actions=2), answer("6", actions=3)]

    right, wrong = Verified(Known(), checker(Check("number"))).sample([], 0)
    assert right.rewards.tolist() == [0, 1]
    assert wrong.rewards.tolist() == [0, 0, 0]
    unjudged, _ = Verified(Known(), checker(users("shy"))).sample([], 0)
    assert np.isnan(unjudged.rewards[-1])


def test_every_verifier_is_tested_here() -> None:
    assert set(VERIFIERS) == {"number", "boxed", "pattern", "schema", "code", "python", "reasoning_gym"}


def test_a_hanging_verifier_does_not_outlive_a_killed_run() -> None:
    code = """
import json, time
from rather.verify.checker import _Process
from rather.verify.verifiers import Check
p = _Process([Check("pattern", pattern=r"(a+)+$", timeout_s=0.5)])
p._start()
p.process.stdin.write((json.dumps({"check": 0, "text": "a" * 60 + "b", "answer": ""}) + "\\n").encode())
p.process.stdin.flush()
print(p.process.pid, flush=True)
time.sleep(60)
"""
    run = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert run.stdout is not None
    worker = int(run.stdout.readline())
    run.kill()
    run.wait()
    run.stdout.close()
    stat, until = Path(f"/proc/{worker}/stat"), time.monotonic() + 30
    assert stat.exists(), "it is at work"
    while stat.exists() and stat.read_text().split()[2] != "Z":
        assert time.monotonic() < until, "it is still there"
        time.sleep(0.2)
