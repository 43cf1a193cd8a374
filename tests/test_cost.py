"""What a win rate costs: by hand, then with a model."""

import json
import math
import re
import shutil
import sqlite3
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from rather.core import Task, Trajectory
from rather.judges.wording import asked, content_words, repetition, words
from rather.report.cost import Cost, Traits, base_logprobs, cost, traits
from rather.text import load


def answer(text: str, prompt: str = "Why is the sky blue?", terminated: bool = True) -> Trajectory:
    return Trajectory(Task("f", prompt, prompt), "p", text, terminated)


def test_words_by_hand() -> None:
    assert words("Don\u2019t STOP, it's no_w 3 o'clock\u2014Stra\u00dfe!") == [
        "don\u2019t",
        "stop",
        "it's",
        "no",
        "w",
        "3",
        "o'clock",
        "strasse",
    ]
    assert content_words("Why does a train stop? Trains, training; the stops!") == {"train", "stop"}
    assert content_words("Please write about it") == set()
    assert repetition(["a", "b", "a", "b", "a"]) == 0.5  # ab ba ab ba: two of four stood there before
    assert repetition(["a"]) == repetition([]) == 0.0
    assert asked([{"role": "system", "content": "s"}, {"role": "user", "content": "u"}, {"role": "user", "content": "v"}]) == "u\nv"


def test_traits_by_hand() -> None:
    answers = [answer("The sky is the sky is"), answer("No.", terminated=False)]
    # log-probabilities -6 of 6 tokens and -2 of 2: -8 / 8. Pairs: the-sky sky-is is-the the-sky sky-is, 2 of 5 again; none in "No."
    found = traits(answers, [(-6.0, 6), (-2.0, 2)])
    assert found == Traits(logprob=-1.0, length=3.5, ended=0.5, repetition=0.2, distinct_words=4.0, on_topic=0.5)
    assert traits([answer("", terminated=False)], [(0.0, 0)]).logprob == 0.0


FINE = Traits(-1.0, 20.0, 0.9, 0.1, 100.0, 0.8)


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"logprob": -1.51}, "the answers are 0.51 nats a token less likely under the base model than its own (limit 0.5)"),
        ({"distinct_words": 49.0}, "the answers hold 49 distinct words, fewer than half of the base model's 100"),
        ({"on_topic": 0.39}, "39 % of the answers share a content word with their prompt, fewer than half of the base model's 80 %"),
    ],
)
def test_each_warning_has_its_limit(changed: dict[str, float], sentence: str) -> None:
    assert Cost(replace(FINE, **changed), FINE).warnings() == [sentence]
    at_the_limit = replace(FINE, logprob=-1.5, distinct_words=50.0, on_topic=0.4)
    assert Cost(at_the_limit, FINE).warnings() == []


def test_what_is_written_is_read_again_and_said() -> None:
    found = Cost(replace(FINE, logprob=-1.25, ended=1.0), FINE)
    assert found.metrics()["nats_lost"] == 0.25
    assert Cost.read({"prompts": 3, **found.metrics()}) == found
    assert Cost.read({"prompts": 3}) is None, "what an earlier version wrote has no cost"
    assert str(found).startswith("nats a token under the base model: -1.25, before -1.00; words an answer: 20.0, before 20.0")
    assert "answers that end: 100 %, before 90 %" in str(found)


def test_log_probabilities_are_the_base_models_at_temperature_1(tiny: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    policy = load.policy(tiny, torch.device("cpu"), torch.float32, False, 0.7, None)
    answers = [answer("hi"), answer("a longer one", "What?", terminated=False), answer("", terminated=False)]
    found = base_logprobs(policy, answers)
    assert [n for _, n in found] == [3, 12, 0]
    assert policy.temperature == 0.7
    model = AutoModelForCausalLM.from_pretrained(tiny)
    for t, (total, n) in zip(answers[:2], found[:2], strict=True):
        prompt, said = policy.tokens.encode(t.task.prompt or "", t.text or "", t.terminated)
        ids = [*prompt, *said]
        with torch.no_grad():
            logprobs = model(torch.tensor([ids])).logits[0].log_softmax(-1)
        expected = sum(float(logprobs[i - 1, ids[i]]) for i in range(len(ids) - n, len(ids)))
        assert total == pytest.approx(expected, abs=1e-4)
    both = cost(policy, answers[:1], answers[1:2])
    assert both.policy.logprob == pytest.approx(found[0][0] / 3)
    assert both.nats_lost == pytest.approx(found[1][0] / 12 - found[0][0] / 3)
    assert not math.isnan(both.base.length)


@pytest.mark.slow
def test_eval_and_report_print_the_warnings_and_twenty_answers_before_and_after(rather, tiny: Path, tmp_path: Path) -> None:
    """A run is trained and evaluated; then its held-out answers are rewritten where they are kept, and it is evaluated again."""
    shutil.copytree(tiny, tmp_path / "model")
    weights = load_file(path := tmp_path / "model/model.safetensors")
    weights["model.embed_tokens.weight"] *= 10  # the base model repeats characters, and finds others unlikely
    save_file(weights, path, {"format": "pt"})
    rows = [{"prompt": f"Which river, {i}?", "split": "held_out" if i < 24 else "train"} for i in range(28)]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    settings = ["model.path=model", "model.dtype=float32", "data.prompts=prompts.jsonl", "sample.max_tokens=8", "eval.answers=1"]
    (tmp_path / "run.toml").write_text("[train]\nbatch_size = 4\nepochs = 1\n")
    rather("loop", "run.toml", *settings)
    store = sqlite3.connect(tmp_path / "runs/run/store.db")

    def rewrite(which: str, word: str) -> None:
        """All that a policy says to held-out prompts is `word` and, for the base model, the number of the prompt in letters."""
        numbers = store.execute(f"select id from trajectory where policy {which} order by id").fetchall()
        assert len(numbers) == 24
        for i, (number,) in enumerate(numbers):
            text = f"{word} {chr(97 + i) * 12}" if word == "river" else word
            store.execute("update trajectory set text = ?, answer = null, terminated = true where id = ?", (text, number))
        store.commit()

    base, policy = "= 'run@start' and task in (select task from trajectory where policy like 'run@0-%')", "like 'run@0-%'"
    rewrite(base, "river")
    rewrite(policy, "river")
    assert "warning:" not in rather("eval", "run.toml", *settings).stdout
    rewrite(policy, "Qz?x Kv!w")
    out = " ".join(rather("eval", "run.toml", *settings).stdout.split())
    assert out.count("warning:") == 3
    lost = re.search(r"warning: the answers are (\d+\.\d\d) nats a token less likely under the base model than its own \(limit 0.5\)", out)
    assert lost is not None
    assert float(lost[1]) > 0.5
    few = "the answers hold 4 distinct words, fewer than half of the base model's 25"  # river and 24 others
    off = "0 % of the answers share a content word with their prompt, fewer than half of the base model's 100 %"
    assert f"warning: {few}" in out
    assert f"warning: {off}" in out
    rather("report", "run.toml", *settings)
    page = (tmp_path / "runs/run/report.html").read_text()
    assert page.count("<strong>Warning:</strong>") == 3
    for sentence in (lost[0].removeprefix("warning: "), few.replace("'", "&#39;"), off.replace("'", "&#39;")):
        assert f"<strong>Warning:</strong> {sentence}." in page
    assert len(re.findall(r'<span class="tag">before(?:, preferred)?</span>river [a-x]{12}</div>', page)) == 20
    assert len(re.findall(r'<span class="tag">after(?:, preferred)?</span>Qz\?x Kv!w</div>', page)) == 20
    assert len(set(re.findall(r"Which river, \d+\?", page))) == 20
