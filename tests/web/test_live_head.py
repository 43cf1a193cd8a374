"""A reward head that learns with every answer, as processes: the page, people over HTTP, and a learner that is killed and started again."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from clients import answer_to, given
from process import Process, Server, person, until
from rich.console import Console

from rather.config import toml
from rather.learners import prequential
from rather.learners.head_learner import HeadLearner
from rather.pipeline.run import Run
from rather.store import asking
from rather.store.quality import Asking
from rather.text.head.model import RewardHead

RUN = """
[run]
name = "tiny"
store = "{store}"
[model]
path = "{model}"
dtype = "float32"
[data]
prompts = "prompts.jsonl"
[sample]
max_tokens = 8
[judge]
kind = "people"
[query]
strategy = "d_optimal"
random_share = 0.0
[reward]
kind = "head"
held_out = 0.0
[train]
learner = "reward"
checkpoint_every = 3
"""
QUESTIONS = 12


class Beside:
    """What the test sees of a learner in another process."""

    def __init__(self, folder: Path) -> None:
        known = [f"run.folder={folder / 'runs'}", f"data.prompts={folder / 'prompts.jsonl'}"]
        self.run = Run(toml.load(folder / "run.toml", known), Console(quiet=True))

    def lines(self) -> list[dict[str, Any]]:
        return self.run.metrics.read("train-reward-0")

    def learned(self) -> bool:
        """Whether it has learned from all answers there are."""
        there = len(self.run.labels(0, "reward").comparisons)
        return bool(self.lines()) and self.lines()[-1]["comparisons"] == there

    def ordered(self) -> bool:
        """Whether all open questions that can be learned from have been put in order."""
        there = [q for q in asking.waiting(self.run.store, "tiny") if self.run.domain.learnable(q.comparison)]
        return all(q.score is not None for q in there)


def answer(client: httpx.Client) -> None:
    """Answer the next question; the longer side is better."""
    shown = given(client)
    left, right = (sum(len(text["text"]) for text in side) for side in shown["sides"])
    sent = client.post("/api/answers", json=answer_to(shown, choice="left" if left > right else "right", seconds=1.0))
    assert sent.status_code == 200, sent.text


@pytest.mark.slow
def test_a_head_learns_with_every_answer_and_chooses_the_next_question(
    where: str, tiny: Path, tmp_path: Path, rather: Callable[..., Any]
) -> None:
    rows = [{"prompt": f"question {i}?", "split": "train"} for i in range(QUESTIONS)]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    (tmp_path / "run.toml").write_text(RUN.format(model=tiny, store=where))
    rather("sample", "run.toml")
    beside = Beside(tmp_path)
    store = beside.run.store
    store.set_asking("tiny", Asking(gold=0, repeats=0, random=0, leave_out=()))
    with Server(tmp_path) as serve, Process(tmp_path, "train", "run.toml") as train, person(serve) as client:
        assert client.get("/api/owner/curves").json()["predicted"] == ""
        for _ in range(5):
            answer(client)
            until(beside.learned)
        until(beside.ordered)
        best = max(asking.waiting(store, "tiny"), key=lambda q: (q.score is not None, q.score))
        assert best.why == "d_optimal"
        assert given(client)["id"] == best.id, "the most wanted one comes next"
        assert client.get("/api/owner/curves").json()["predicted"] == prequential.sentence(beside.lines()[-1]) != ""
        train.kill()
        for _ in range(2):
            answer(client)
        train.start()
        until(beside.learned)
        while given(client) is not None:
            answer(client)
        train.wait()
    lines, answered = beside.lines(), beside.run.labels(0, "reward")
    assert len(answered.labels) == QUESTIONS
    assert [row["step"] for row in lines] == [*range(1, len(lines) + 1)], "no step is counted twice"
    head = RewardHead(beside.run.domain.base_policy, layers=None)  # type: ignore[arg-type]
    expected = HeadLearner(head, answered.comparisons, prequential=True).step()
    assert expected["answers"] > QUESTIONS / 2
    assert {k: lines[-1][k] for k in expected if "prequential" in k or k == "answers"} == pytest.approx(
        {k: v for k, v in expected.items() if "prequential" in k or k == "answers"}, abs=1e-5
    ), "each answer was predicted once, by the head of those before it"
    said = rather("status", "run.toml").stdout
    assert f"Reward head: {prequential.sentence(expected)}." in said
    assert f"{prequential.sentence(expected)}." in train.log.read_text()
    store.close()
