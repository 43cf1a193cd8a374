"""Files of prompts answered and of answers scored, as the command line does."""

import json
from pathlib import Path

import pytest
import torch

import rather
from command import run as command
from rather.core import Task
from rather.data.continued import write
from rather.data.readers import read_rows
from rather.errors import DataError
from rather.learners.settings import Sampling
from rather.pipeline import files, trained
from rather.pipeline.files import generate
from rather.pipeline.terminal import Terminal
from rather.text.reward_model import RewardModel


def run(folder: Path, *arguments: str, fails: bool = False) -> str:
    done = command([*arguments], folder)
    assert bool(done.returncode) == fails, done.stdout + done.stderr
    return done.stderr if fails else done.stdout


def rows(path: Path) -> list[dict]:
    return [row for _, row in read_rows(path)]


def test_what_is_made_is_kept_and_gone_on_with(tmp_path: Path) -> None:
    target, asked = tmp_path / "out.jsonl", [{"n": i} for i in range(7)]
    seen: list[int] = []

    def double(some):
        if len(seen) > 3 and not (tmp_path / "go on").exists():
            raise KeyboardInterrupt
        seen.extend(i for i, _ in some)
        return [[row | {"twice": 2 * row["n"]}] * 2 for _, row in some]

    with pytest.raises(KeyboardInterrupt):
        write(target, "a", asked, double, 2, lambda n: None)
    assert not target.exists()
    part = tmp_path / ".out.jsonl.part"
    with part.open("a") as file:
        file.write('[{"n": 4, "tw')  # as a kill -9 leaves it
    for about, others in (("b", asked), ("a", asked[:-1])):
        with pytest.raises(DataError, match="was begun with other rows or settings"):
            write(target, about, others, double, 2, lambda n: None)
    (tmp_path / "go on").touch()
    done: list[int] = []
    assert write(target, "a", asked, double, 2, done.append) == 14
    assert seen == [0, 1, 2, 3, 4, 5, 6], "nothing is made twice"
    assert done == [4, 2, 1]
    assert rows(target) == [{"n": i, "twice": 2 * i} for i in range(7) for _ in range(2)]
    assert not part.exists()
    with pytest.raises(DataError, match="is there already"):
        write(target, "a", asked, double, 2, lambda n: None)


@pytest.mark.parametrize("form", ["jsonl", "csv", "parquet"])
def test_generate_answers_each_row_as_the_library_does(tiny: Path, tmp_path: Path, form: str) -> None:
    asked = [{"prompt": p, "id": i} for i, p in enumerate(["ab", "cde", "ab"])]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in asked))
    options = ["generate", str(tiny), "p.jsonl", f"out.{form}", "-n", "2", "--max-tokens", "9", "--temperature", "0", "--dtype", "float32"]
    run(tmp_path, *options)
    found = rows(tmp_path / f"out.{form}")
    assert [int(row["id"]) for row in found] == [0, 0, 1, 1, 2, 2]
    expected = rather.load(tiny, dtype="float32").generate(["ab", "cde", "ab"], max_tokens=9, temperature=0)
    assert [row["completion"] for row in found] == [text for text in expected for _ in range(2)]


def test_two_do_not_write_one_file(tmp_path: Path) -> None:
    target, asked = tmp_path / "out.jsonl", [{"n": i} for i in range(3)]

    def work(some):
        with pytest.raises(DataError, match="another command writes"):
            write(target, "a", asked, work, 2, lambda n: None)
        return [[row] for _, row in some]

    assert write(target, "a", asked, work, 2, lambda n: None) == 3
    assert rows(target) == asked


def test_a_prompt_that_is_too_long_is_named_before_any_is_answered(tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_text("".join(json.dumps({"prompt": "a" * n}) + "\n" for n in (3, 400, 3)))
    model = rather.load(tiny, dtype="float32")
    with pytest.raises(DataError, match="prompt '1': 402 tokens leave no room"):
        generate(model, "", str(tmp_path / "p.jsonl"), tmp_path / "out.jsonl", Sampling(max_tokens=4), 1, 0, lambda n: None)
    assert [path.name for path in tmp_path.iterdir()] == ["p.jsonl"], "else the mended file would have to begin anew"


def test_a_run_that_was_trained_on_does_not_go_on_with_a_file(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "AT_ONCE", 1)
    (tmp_path / "p.jsonl").write_text('{"prompt": "a"}\n' * 2)
    model = rather.load(tiny, dtype="float32")

    def stop(done: int) -> None:
        if done:
            raise KeyboardInterrupt

    def answer(advance) -> int:
        return generate(model, "run.toml", str(tmp_path / "p.jsonl"), tmp_path / "out.jsonl", Sampling(max_tokens=4), 1, 0, advance)

    model.name = "run@0-100"
    with pytest.raises(KeyboardInterrupt):
        answer(stop)
    model.name = "run@0-200"
    with pytest.raises(DataError, match="was begun with other rows or settings"):
        answer(lambda n: None)
    model.name = "run@0-100"
    assert answer(lambda n: None) == 2


def test_a_number_that_cannot_be_is_refused_in_one_sentence(tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_text('{"prompt": "ab"}\n')
    for options, says in ((["--top-p", "0"], "top_p"), (["--temperature", "1e-42"], "too low to divide by")):
        said = run(tmp_path, "generate", str(tiny), "p.jsonl", "out.jsonl", *options, fails=True)
        assert says in " ".join(said.split())
        assert "Traceback" not in said


def test_generate_refuses_before_it_reads_the_model(tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_text('{"prompt": "ab"}\n')
    for target, says in (("p.jsonl", "is there already"), ("out.txt", "is none of .jsonl")):
        assert says in run(tmp_path, "generate", "no/model", "p.jsonl", target, fails=True)


@pytest.fixture
def scorer(tiny: Path, tmp_path: Path) -> RewardModel:
    """A reward model whose scores differ."""
    model = RewardModel(rather.load(tiny, dtype="float32"), members=2)
    with torch.no_grad():
        model.heads.copy_(torch.randn(model.heads.shape, generator=torch.Generator().manual_seed(3)))
    model.save(tmp_path / "rm")
    return model


def test_score_says_how_often_the_preferred_side_is_ahead(tmp_path: Path, scorer: RewardModel) -> None:
    texts = ["x", "yz", "hello", "abc", "q", "no way"]
    pairs = [(a, b) for a in texts for b in texts if a < b]
    ahead = dict(zip(texts, scorer.score("ab", texts), strict=True))
    data = [{"prompt": "ab", "a": a, "b": b, "preference": (1.0, 0.0, 0.5)[i % 3]} for i, (a, b) in enumerate(pairs)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in data))
    said = run(tmp_path, "score", "rm", "pairs.jsonl", "out.jsonl", "--dtype", "float32")
    right = [(ahead[r["a"]] > ahead[r["b"]]) == (r["preference"] == 1) for r in data if r["preference"] != 0.5]
    assert f"Accuracy {100 * sum(right) / len(right):.1f} %" in said
    assert f"n = {len(right)}" in said
    for row, given in zip(rows(tmp_path / "out.jsonl"), data, strict=True):
        assert row["score_a"] == pytest.approx(ahead[given["a"]], abs=1e-4)
        assert ("margin" in row) == (given["preference"] != 0.5)
        if "margin" in row:
            assert row["margin"] == pytest.approx((2 * given["preference"] - 1) * (row["score_a"] - row["score_b"]))


def test_scores_are_kept_and_gone_on_with(tmp_path: Path, scorer: RewardModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """The figures are those of all rows, and no other reward model goes on with the file."""
    texts = ["x", "yz", "hello", "abc", "q"]
    data = [{"prompt": "ab", "chosen": a, "rejected": b} for a in texts for b in texts if a != b]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in data))
    source, target = str(tmp_path / "pairs.jsonl"), tmp_path / "out.jsonl"
    monkeypatch.setattr(files, "SCORED", 3)
    asked, done = list[list[str]](), list[int]()

    class Stopping:
        collate = scorer.collate

        def score(self, prompt: str, answers: list[str]) -> list[float]:
            asked.append(answers)
            if len(asked) == 8:
                raise KeyboardInterrupt
            return scorer.score(prompt, answers)

    with pytest.raises(KeyboardInterrupt):
        files.score(Stopping(), "one", source, target, done.append)  # type: ignore[arg-type]
    assert not target.exists()
    assert sum(done) == 6
    with pytest.raises(DataError, match="was begun with other rows or settings"):
        files.score(scorer, "another", source, target, done.append)
    done.clear()
    found, whole = files.score(Stopping(), "one", source, target, done.append), files.score(scorer, "one", source, None, lambda n: None)  # type: ignore[arg-type]
    assert (sum(done), len(asked)) == (len(data), 8 + len(data) - 6)
    assert found == whole
    assert len(rows(target)) == len(data)


@pytest.mark.parametrize(
    ("row", "columns"),
    [
        ({"prompt": "ab", "completion": "x"}, {"score"}),
        ({"prompt": "ab", "a": "x", "b": "yz"}, {"score_a", "score_b"}),
        ({"prompt": "ab", "completion": "x", "label": True}, {"score"}),
        ({"prompt": "ab", "chosen": "x", "rejected": "yz"}, {"score_a", "score_b", "margin"}),
    ],
)
def test_score_takes_answers_with_and_without_preferences(tmp_path: Path, scorer: RewardModel, row: dict, columns: set[str]) -> None:
    (tmp_path / "data.jsonl").write_text(json.dumps(row) + "\n")
    run(tmp_path, "score", "rm", "data.jsonl", "out.jsonl", "--dtype", "float32")
    (found,) = rows(tmp_path / "out.jsonl")
    assert {name for name in found if name.startswith(("score", "margin"))} == columns
    expected = dict(zip(("x", "yz"), scorer.score("ab", ["x", "yz"]), strict=True))
    for name, text in (("score", "completion"), ("score_a", "a"), ("score_b", "b")):
        if name in found:
            assert found[name] == pytest.approx(expected[found[text]], abs=1e-4)


def test_a_policy_is_not_asked_for_scores_nor_a_reward_model_for_words(tiny: Path, tmp_path: Path, scorer: RewardModel) -> None:
    (tmp_path / "p.jsonl").write_text('{"prompt": "ab", "completion": "x"}\n')
    assert "is no reward model" in run(tmp_path, "score", str(tiny), "p.jsonl", fails=True)
    (tmp_path / "q.jsonl").write_text('{"prompt": "ab"}\n')
    assert "is a reward model" in run(tmp_path, "generate", "rm", "q.jsonl", "out.jsonl", fails=True)


@pytest.fixture
def head(tiny: Path, tmp_path: Path) -> rather.RewardHead:
    """A head that likes a's."""
    rows = [{"prompt": f"p{i}", "chosen": "a" * (i % 5 + 1), "rejected": "bc" * (i % 3 + 1)} for i in range(20)]
    head = rather.RewardHead(rather.load(tiny, dtype="float32")).fit(rather.comparisons(rows))
    head.save(tmp_path / "head")
    return head


@pytest.mark.parametrize("reward", ["head", pytest.param("rm", marks=pytest.mark.slow)])
def test_generate_writes_the_best_of_several_and_its_score(
    tiny: Path, tmp_path: Path, head: rather.RewardHead, scorer: RewardModel, reward: str
) -> None:
    (tmp_path / "p.jsonl").write_text('{"prompt": "ab"}\n{"prompt": "cde"}\n')
    options = ["--best-of", "5", "--reward", reward, "-n", "2", "--max-tokens", "9", "--dtype", "float32", "--seed", "4"]
    run(tmp_path, "generate", str(tiny), "p.jsonl", "out.jsonl", *options)
    tasks = [Task("rows", str(i), p) for i, p in enumerate(["ab", "cde"]) for _ in range(2)]
    best = rather.BestOf(rather.load(tiny, dtype="float32"), head if reward == "head" else scorer, 5)
    found = rows(tmp_path / "out.jsonl")
    expected = best.sampler(Sampling(max_tokens=9)).sample(tasks, 4)
    assert len({row["completion"] for row in found}) > 2
    scored = {(row["prompt"], row["completion"]): row["score"] for row in found}
    assert scored.keys() == {(t.task.prompt, t.text) for t in expected}
    for t in expected:
        assert t.rewards is not None
        assert scored[t.task.prompt, t.text] == pytest.approx(t.rewards[-1], abs=1e-4)  # type: ignore[index]


def test_a_file_does_not_go_on_with_another_reward(
    tiny: Path, tmp_path: Path, head: rather.RewardHead, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "p.jsonl").write_text('{"prompt": "a"}\n' * 2)
    _, before = trained.reward(str(tmp_path / "head"), "auto", Terminal())
    head.fit(rather.comparisons([{"prompt": "p", "chosen": "b", "rejected": "aa"}])).save(tmp_path / "head")
    _, after = trained.reward(str(tmp_path / "head"), "auto", Terminal())
    assert before != after
    policy = rather.load(tiny, dtype="float32")
    monkeypatch.setattr(files, "AT_ONCE", 1)

    def answer(policy, digits: str, advance) -> int:
        return generate(policy, digits, str(tmp_path / "p.jsonl"), tmp_path / "out.jsonl", Sampling(max_tokens=4), 1, 0, advance)

    def stop(done: int) -> None:
        if done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        answer(rather.BestOf(policy, head, 3), before, stop)
    for others, digits in ((rather.BestOf(policy, head, 3), after), (rather.BestOf(policy, head, 4), before), (policy, before)):
        with pytest.raises(DataError, match="was begun with other rows or settings"):
            answer(others, digits, lambda n: None)
    assert answer(rather.BestOf(policy, head, 3), before, lambda n: None) == 2


def test_best_of_without_what_it_needs_is_refused_in_one_sentence(tiny: Path, tmp_path: Path, head: rather.RewardHead) -> None:
    (tmp_path / "p.jsonl").write_text('{"prompt": "ab"}\n')
    (tmp_path / "q.jsonl").write_text('{"prompt": "ab", "score": 1}\n')
    (tmp_path / "run.toml").write_text(f'[model]\npath = "{tiny}"\n[data]\nprompts = "p.jsonl"\n')
    for options, says in (
        (["--best-of", "8"], "--best-of 8 needs --reward"),
        (["--reward", "head"], "say among how many: --best-of 8"),
        (["--best-of", "8", "--reward", "head", "--temperature", "0"], "draws the same answer 8 times"),
        (["--best-of", "8", "--reward", "run.toml"], "has no reward model yet; run `rather train run.toml"),
        (["--best-of", "8", "--reward", str(tiny)], "is no reward model"),
        (["--best-of", "0", "--reward", "head"], "Input should be greater than or equal to 1"),
    ):
        said = run(tmp_path, "generate", str(tiny), "p.jsonl", "out.jsonl", *options, fails=True)
        assert says in " ".join(said.replace("│", "").split())
        assert "Traceback" not in said
    said = run(tmp_path, "generate", str(tiny), "q.jsonl", "out.jsonl", "--best-of", "2", "--reward", "head", fails=True)
    assert "has a column 'score' already" in " ".join(said.split())
