"""What does not fit the model's context is found before anything is done, and equal answers are not learned from."""

import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from rather.config.schema import Config
from rather.core import Comparison, Label, Task, Trajectory
from rather.errors import ConfigError, DataError
from rather.learners.common import Pairs
from rather.pipeline import build
from rather.pipeline.run import Run
from rather.text import load
from rather.text.engine import Sampling
from rather.text.language_model import TextSampler
from rather.text.policy import TextPolicy
from rather.text.prompts.fit import Fit
from rather.verify.checker import Checker

CPU = torch.device("cpu")
LONG = "x" * 300  # tokens, and two more of the template, where the context has 256


@pytest.fixture(scope="module")
def policy(tiny: Path) -> TextPolicy:
    return load.policy(tiny, CPU, torch.float32, False, 1.0)


@pytest.fixture
def fit(policy: TextPolicy) -> Callable[..., Fit]:
    def make(overlong: str, told: list[str], max_tokens: int = 10) -> Fit:
        policy.tokens.truncate = overlong == "truncate"
        return Fit(policy.tokens, policy.context, max_tokens, overlong, told.append)  # type: ignore[arg-type]

    return make


def tasks(*prompts: str) -> list[Task]:
    return [Task("f", str(i), p) for i, p in enumerate(prompts)]


def question(prompt: str, a: str, b: str, key: str = "k") -> Comparison:
    task = Task("f", key, prompt)
    return Comparison((Trajectory(task, "p", a),), (Trajectory(task, "p", b),), 1.0, key)


def test_all_prompts_that_leave_no_room_are_named_at_once(fit: Callable[..., Fit]) -> None:
    told: list[str] = []
    ask = tasks("a", LONG, "b" * 244, "c" * 245, *["d" * 250] * 7)  # 244 + 2 + 10 tokens fit
    with pytest.raises(DataError) as e:
        fit("error", told).tasks(ask, [])
    said = str(e.value)
    assert said.startswith("9 of 11 prompts leave no room for 10 of answer in the model's context of 256: '1' (xxx")
    assert "has 302 tokens, '3' (ccc" in said
    assert said.endswith('has 252 tokens and 4 more; set data.overlong to "skip" or "truncate", or sample.max_tokens lower')
    assert fit("skip", told).tasks(ask, ask[3:5] + ask[:1]) == ([ask[0], ask[2]], [ask[0]])
    assert told == ["11 of 14 prompts leave no room for 10 of answer in the model's context of 256 and are left out (data.overlong)"]
    assert fit("truncate", told).tasks(ask, []) == (ask, [])
    assert "9 of 11 prompts leave no room" in told[1]
    with pytest.raises(DataError, match="so that none is left to train on"):
        fit("skip", told).tasks(ask[1:2], ask[:1])
    with pytest.raises(ConfigError, match="sample.max_tokens is 256, which leaves no room for a prompt"):
        fit("skip", told, 256).tasks(ask, [])


def test_what_the_template_refuses_is_named_with_its_row(fit: Callable[..., Fit], policy: TextPolicy) -> None:
    assert policy.tokens.template is not None
    field: dict[str, str] = {"role": "user", "content": "Tea?", "name": "Ann"}
    ask = [Task("f", "7", [field])]
    with pytest.raises(DataError, match=r"prompt '7' \(Tea\?\): the model's chat template does not write the field 'name' of message 1"):
        fit("skip", []).tasks(ask, [])


def test_a_prompt_that_is_cut_keeps_its_end_and_what_begins_every_text(fit: Callable[..., Fit], policy: TextPolicy) -> None:
    tokens = policy.tokens
    fit("truncate", [])
    ids = tokens.encode_prompt("ab" + LONG + "cd")
    assert tokens.cut(ids, 4) == ids[-4:]
    assert tokens.cut(ids, len(ids)) == ids
    tokens.tokenizer.bos_token = "<user>"  # as if it began every text
    assert tokens.cut(ids, 4) == [ids[0], *ids[-3:]]
    tokens.tokenizer.bos_token = None
    (answer,) = TextSampler(policy, Sampling(10)).sample([Task("f", "1", "ab" + LONG + "cd")], 0)
    assert answer.observations is not None
    assert answer.observations.tolist() == ids[-246:]
    tokens.truncate = False
    with pytest.raises(DataError, match="leave no room"):
        TextSampler(policy, Sampling(10)).sample([Task("f", "1", LONG)], 0)


def test_questions_that_are_too_long_are_refused_left_out_or_cut_alike_on_both_sides(fit: Callable[..., Fit], policy: TextPolicy) -> None:
    long, short, told = question(LONG, "yes", "no" * 20, "long"), question("a", "yes", "no", "short"), list[str]()
    strict = fit("error", told)
    assert [strict.wanted(q) for q in (long, short)] == [False, True]
    with pytest.raises(DataError, match=r"1 of 2 questions are longer than the model's context of 256 tokens: 'long' \(x+\.\.\.\) has 343"):
        strict.ready([])
    skip = fit("skip", told)
    assert [skip.wanted(q) for q in (long, short)] == [False, True]
    assert skip.ready([short]) == [short]
    assert told == ["1 of 2 questions are longer than the model's context of 256 tokens and are left out of training (data.overlong)"]
    skip.ready([short])
    assert len(told) == 1, "once is enough"
    cut = fit("truncate", told)
    assert [cut.wanted(q) for q in (long, short)] == [True, True]
    first, second = cut.ready([long, short])
    assert second is short
    batch = Pairs.of(policy, [first]).batch
    prompt = policy.tokens.encode_prompt(LONG)[-(256 - 41) :]  # the longer answer has 40 tokens and its end
    assert batch.observations.tolist() == [prompt, prompt]
    alone = question("a", "yes", "n" * 400, "alone")
    cut.wanted(alone)
    with pytest.raises(DataError, match=r"some by an answer alone: 'alone' \(a\) has 401 tokens; set data.overlong to \"skip\""):
        cut.ready([])


def test_equal_and_empty_answers_are_counted_and_left_out(fit: Callable[..., Fit]) -> None:
    told: list[str] = []
    made = fit("error", told)
    rows = [question("a", *sides, key=str(i)) for i, sides in enumerate([("x", "x"), ("", " \n"), ("x", "y"), ("x", ""), (" x", "x")])]
    assert [made.wanted(q) for q in rows] == [False, False, True, True, True]
    assert made.ready(rows[2:]) == rows[2:]
    assert told == ["2 of 5 questions have the same answer on both sides (1 of them an empty one) and are left out of training"]


def labelled(tmp_path: Path, tiny: Path, rows: Sequence[Comparison], **data: str) -> tuple[Run, Console]:
    """A run with these questions, all answered."""
    console = Console(record=True, width=500, file=io.StringIO())
    settings = {
        "run": {"folder": str(tmp_path)}, "model": {"path": str(tiny), "dtype": "float32", "rank": 2}, "train": {"steps": 1},
        "sample": {"max_tokens": 8}, "data": {"limit": 4, **data},
    }  # fmt: skip
    run = Run(Config.model_validate(settings), console)
    run.store.add_judge("j", "simulated")
    numbers = run.store.ask("run", rows)
    run.store.answer_all([Label(n, "j", 1.0) for n in numbers])
    return run, console


def test_training_measures_all_rows_before_its_first_step(tmp_path: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [question(f"q{i}", "yes", "no", f"import/{i}") for i in range(6)]
    rows += [question(LONG, "yes", "no", "import/long"), question("same", "yes", "yes", "import/same")]
    run, _ = labelled(tmp_path, tiny, rows)
    with monkeypatch.context() as m:
        m.setattr(TextPolicy, "evaluate", lambda *_: pytest.fail("the reference has been asked"))
        for phase in (run.sample, run.train, run.loop):
            with pytest.raises(DataError, match="1 of 8 questions are longer than the model's context"):
                phase()
        assert len(run.store.questions("run")) == 8, "nothing has been sampled"
    (tmp_path / "skip").mkdir()
    run, console = labelled(tmp_path / "skip", tiny, rows, overlong="skip")
    assert len(run.labels(0, "dpo").comparisons) == len(run.labels(0, "dpo").labels) == 6, "nor does a checkpoint name their labels"
    run.train()
    said = console.export_text()
    assert "1 of 8 questions have the same answer on both sides (0 of them an empty one) and are left out of training" in said
    assert "1 of 8 questions are longer than the model's context of 256 tokens and are left out of training" in said
    (tmp_path / "cut").mkdir()
    run, console = labelled(tmp_path / "cut", tiny, rows, overlong="truncate")
    run.train()
    assert "1 of 8 questions are longer than the model's context of 256 tokens and lose the beginning of their prompts" in (
        console.export_text()
    )


@pytest.mark.parametrize("learner", ["dpo", "grpo", "ppo", "zeroth"])
def test_prompts_are_measured_before_anything_is_sampled(tmp_path: Path, tiny: Path, learner: str) -> None:
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text(
        "".join(f'{{"prompt": "q{i}", "split": "train"}}\n' for i in range(6)) + f'{{"prompt": "{LONG}", "split": "held_out"}}\n'
    )
    settings = {
        "run": {"folder": str(tmp_path)}, "model": {"path": str(tiny), "dtype": "float32"}, "data": {"prompts": str(prompts)},
        "train": {"learner": learner}, "verify": {"checks": [{"kind": "number"}]}, "sample": {"max_tokens": 8},
    }  # fmt: skip
    run = Run(Config.model_validate(settings), Console(quiet=True))
    with pytest.raises(DataError, match="1 of 7 prompts leave no room for 8 of answer"):
        run.sample() if learner == "dpo" else run.train()
    assert not run.store.questions("run")


@pytest.mark.parametrize("overlong", ["skip", "truncate"])
@pytest.mark.parametrize("learner", ["grpo", "ppo", "zeroth"])
def test_what_acts_as_it_learns_meets_no_prompt_that_is_too_long_or_its_end(
    tmp_path: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch, learner: str, overlong: str
) -> None:
    rows = [{"prompt": f"q{i}", "split": "train" if i < 3 else "held_out"} for i in range(5)]
    rows += [{"prompt": LONG + split, "split": split} for split in ("train", "held_out")]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = {
        "run": {"folder": str(tmp_path)}, "model": {"path": str(tiny), "dtype": "float32", "rank": 2},
        "data": {"prompts": str(tmp_path / "prompts.jsonl"), "overlong": overlong}, "sample": {"max_tokens": 8},
        "train": {"learner": learner, "steps": 2, "batch_size": 4}, "verify": {"checks": [{"kind": "pattern", "pattern": "[a-m]"}]},
        "ppo": {"rollout_batch_size": 8}, "grpo": {"group_size": 2}, "eval": {"answers": 2},
        "zeroth": {"answers": 8, "directions": 2, "side": 2, "check_every": 1, "checks": 2, "contrasts": [["Be brief.", "Be " + "o" * 20]]},
    }  # fmt: skip
    console = Console(record=True, width=500, file=io.StringIO())
    run, drawn = Run(Config.model_validate(settings), console), list[Trajectory]()
    sample = TextSampler.sample

    def noted(self: TextSampler, *arguments: Any) -> list[Trajectory]:
        drawn.extend(found := sample(self, *arguments))
        return found

    monkeypatch.setattr(TextSampler, "sample", noted)
    run.train()
    assert run.evaluate() is not None
    for judge in run.judges:
        if isinstance(judge, Checker):
            judge.close()
    prompts = {str(t.task.prompt): t.observations.tolist() for t in drawn if t.observations is not None}
    assert {"q0", "q1", "q2", "q3", "q4"} <= prompts.keys()
    long = {prompt: ids for prompt, ids in prompts.items() if prompt.startswith(LONG)}
    if overlong == "skip":
        assert not long
        assert "2 of 7 prompts leave no room for 8 of answer in the model's context of 256 and are left out" in console.export_text()
    else:
        assert {LONG + "train", LONG + "held_out"} <= long.keys()
        for prompt, ids in long.items():
            assert ids == run.domain.base_policy.tokens.encode_prompt(prompt)[-248:]
        assert (
            "2 of 7 prompts leave no room for 8 of answer in the model's context of 256; their beginnings are truncated"
            in console.export_text()
        )


def test_a_prompt_that_an_instruction_of_zeroth_order_makes_too_long_is_found_first(tmp_path: Path, tiny: Path) -> None:
    rows = [{"prompt": f"q{i}", "split": "held_out" if i % 2 else "train"} for i in range(4)] + [{"prompt": "x" * 240, "split": "train"}]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = {
        "run": {"folder": str(tmp_path)}, "model": {"path": str(tiny), "dtype": "float32"}, "train": {"learner": "zeroth"},
        "data": {"prompts": str(tmp_path / "prompts.jsonl")}, "sample": {"max_tokens": 8},
        "zeroth": {"answers": 2, "directions": 1, "check_every": 0, "contrasts": [["Be brief.", "Be long."]]},
    }  # fmt: skip
    config = Config.model_validate(settings)
    with pytest.raises(DataError, match="1 of 5 prompts leave no room for 8 of answer"):
        Run(config, Console(quiet=True)).train()
    config = config.model_copy(update={"data": config.data.model_copy(update={"overlong": "skip"})})
    run = Run(config, Console(quiet=True))
    run.train()
    assert {t.prompt for t in run.domain.tasks[0]} == {"q0", "q2"}


def test_where_no_held_out_prompt_is_left_zeroth_order_says_so(tmp_path: Path, tiny: Path) -> None:
    (tmp_path / "prompts.jsonl").write_text(f'{{"prompt": "q", "split": "train"}}\n{{"prompt": "{LONG}", "split": "held_out"}}\n')
    settings = {
        "run": {"folder": str(tmp_path)}, "model": {"path": str(tiny), "dtype": "float32"}, "train": {"learner": "zeroth"},
        "data": {"prompts": str(tmp_path / "prompts.jsonl"), "overlong": "skip"}, "sample": {"max_tokens": 8},
    }  # fmt: skip
    with pytest.raises(ConfigError, match="there are no held-out prompts to compare on; set data.held_out"):
        Run(Config.model_validate(settings), Console(quiet=True)).train()


@pytest.mark.parametrize("train", ["lora", "full"])
@pytest.mark.parametrize(("before", "now"), [("error", "truncate"), ("truncate", "error")])
def test_the_run_that_asks_a_reward_model_says_what_becomes_of_what_is_too_long(
    tmp_path: Path, tiny: Path, before: str, now: str, train: str
) -> None:
    rows = [question(f"q{i}", "yes", "no", f"import/{i}") for i in range(6)]
    run, _ = labelled(tmp_path, tiny, rows, overlong=before)
    learned = run.config.model_dump() | {
        "train": {"learner": "reward", "steps": 1},
        "model": {**run.config.model.model_dump(), "train": train},
    }
    saved = Run(Config.model_validate(learned), Console(quiet=True)).train()
    asking = {"judge": {"kind": "model", "checkpoint": str(saved)}, "data": {"overlong": now}}
    (judge,) = build.judges(Config.model_validate(asking), lambda: pytest.fail("it has a base of its own"))
    if now == "error":
        with pytest.raises(DataError, match="prompt 'long' with its answer has"):
            judge.judge([question(LONG, "yes", "no", "long")])
    else:
        assert len(judge.judge([question(LONG, "yes", "no", "long")])) == 1
