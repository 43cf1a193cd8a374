"""`query.questions` in runs about text: few questions a round, about prompts in turn, each round by the policy of the one before."""

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from rather.config import toml
from rather.core import Policy
from rather.errors import ConfigError
from rather.learners import checkpoint
from rather.learners.metrics import Metrics
from rather.pipeline.query import still
from rather.pipeline.run import Run

Go = Callable[..., Run]


@pytest.fixture
def go(tiny: Path, tmp_path: Path) -> Go:
    """A run about four training prompts and two held-out ones."""
    rows = [{"prompt": f"question {i}?", "split": "held_out" if i < 2 else "train"} for i in range(6)]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    known = [
        f"model.path={tiny}", "model.dtype=float32", f"run.folder={tmp_path}", f"data.prompts={tmp_path}/prompts.jsonl", "model.rank=2",
        "sample.max_tokens=5", "train.batch_size=2", "train.steps=2", "train.checkpoint_every=1", "eval.prompts=2", "train.lr=1e-2",
        "query.schedule=constant", "loop.rounds=3", "query.questions=6",
    ]  # fmt: skip
    return lambda *changed: Run(toml.load(None, [*known, *changed]), Console(quiet=True))


def asked(run: Run) -> dict[str, list[str]]:
    """The prompts that were asked about, by round."""
    found = dict[str, list[str]]()
    for q in run.store.questions(run.config.run.name, "train"):
        number, _, prompt = q.comparison.key.partition("/")
        found.setdefault(number, []).append(prompt)
    return found


def said(run: Run) -> list[Any]:
    return [(c.key, c.preference, c.a[0].text, c.b[0].text) for c in run.labels(2, "dpo").comparisons]


def test_what_a_round_still_lacks() -> None:
    assert [still(6, 3, "constant", asked) for asked in ([0], [1], [2, 0], [2, 2, 0], [2, 1, 1])] == [2, 1, 2, 2, 2]
    assert [still(11, 3, "hyperbolic", asked) for asked in ([0], [6, 0], [6, 3, 0])] == [6, 3, 2], "as 1, 1 / 2 and 1 / 3"
    assert still(12, 3, "constant", [2, 2, 2]) == 6, "the last round asks what was added"


@pytest.mark.slow
def test_a_loop_of_small_rounds_goes_on_exactly_after_every_stop(go: Go, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = go("run.name=whole")
    whole.loop()
    per_round = asked(whole)
    assert {number: len(prompts) for number, prompts in per_round.items()} == {"round-0": 2, "round-1": 2, "round-2": 2}
    assert len({*per_round["round-0"], *per_round["round-1"]}) == 4, "every prompt before one comes again"
    policies = {t.policy for q in whole.store.questions("whole", "train") for side in q.comparison.sides for t in side}
    assert policies == {"whole@0", "whole@0-2", "whole@1-2"}, "the newest policy answers"

    write, count = Metrics.write, 0

    def stopped(self: Metrics, *given: Any, **more: Any) -> None:
        nonlocal count
        count += 1
        if count % 3 == 0:
            raise KeyboardInterrupt
        write(self, *given, **more)

    monkeypatch.setattr(Metrics, "write", stopped)
    stops, parts = 0, go("run.name=parts")
    while stops < 30:
        try:
            parts.loop()
            break
        except KeyboardInterrupt:
            parts.close()
            stops, parts = stops + 1, go("run.name=parts")
    assert 3 < stops < 30
    assert said(parts) == said(whole)
    assert checkpoint.digest(parts.last(2)) == checkpoint.digest(whole.last(2))


def test_without_it_every_round_asks_about_every_prompt(go: Go) -> None:
    """Whatever query.comparisons says, which files of settings have always held."""
    run = go("query.questions=0", "query.comparisons=2")
    assert run.sample() == 4
    assert run.sample() == 0


def test_a_round_that_was_stopped_asks_the_rest_and_what_was_added(go: Go) -> None:
    run = go("loop.rounds=1", "query.questions=2")
    assert run.sample() == 2
    assert go("loop.rounds=1", "query.questions=3").sample() == 1
    assert max(Counter(asked(run)["round-0"]).values()) == 1
    with pytest.raises(ConfigError, match=r"query.questions = 9 are 5 in one of 2 rounds, but there are 4 training prompts") as error:
        go("query.questions=9", "loop.rounds=2").sample()
    assert "ask fewer, or in more rounds" in str(error.value)


@pytest.mark.parametrize("kind", ["lora", "head"])
def test_rounds_of_a_reward_model_alone_are_answered_by_the_base_policy(go: Go, kind: str) -> None:
    """There is no other policy: the checkpoint of the round before holds a reward model."""
    own = ["train.learner=reward", f"reward.kind={kind}", "reward.layers=[1, 2]", "loop.rounds=2", "query.questions=4", "query.answers=3"]
    run = go(*own, "query.strategy=bald", "reward.members=2", "reward.held_out=0")
    run.loop()
    assert {number: len(prompts) for number, prompts in asked(run).items()} == {"round-0": 2, "round-1": 2}
    assert run.policy(1) is run.domain.base_policy
    first: Policy = run.policy(0)
    assert {t.policy for q in run.store.questions("run", "train") for side in q.comparison.sides for t in side} == {first.name}
