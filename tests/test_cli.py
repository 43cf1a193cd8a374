"""Every command in a temporary folder, with a tiny random model; and what bad input gets: one sentence and exit code 2."""

import json
import os
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pexpect
import pytest

Rather = Callable[..., object]

RUN = """
[run]
name = "tiny"
[model]
path = "{model}"
dtype = "float32"
rank = 4
[data]
prompts = "prompts.jsonl"
[sample]
max_tokens = 16
[train]
batch_size = 4
lr = 1e-2
epochs = 2
checkpoint_every = 2
{more}
"""


@pytest.fixture
def run(tiny: Path, tmp_path: Path) -> Path:
    """A run's TOML file with 12 training and 6 held-out prompts."""
    rows = [{"prompt": f"question {i}?", "split": "held_out" if i % 3 == 2 else "train"} for i in range(18)]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    path = tmp_path / "run.toml"
    path.write_text(RUN.format(model=tiny, more=""))
    return path


COMMANDS = ["sample", "label", "train", "loop", "eval", "import", "export", "status", "report", "hack", "config", "doctor"]


def test_help_teaches(rather: Rather) -> None:
    text = rather("--help").stdout
    for command in COMMANDS:
        assert command in text
        help_ = rather(command, "--help").stdout
        assert len(help_) > 300
        assert "FILE" in help_.upper()


def test_help_breaks_lines_at_the_terminals_width_not_where_the_code_does(rather: Rather) -> None:
    (line,) = [line for line in rather("import", "--help").stdout.splitlines() if "A question is identified by" in line]
    assert len(line.strip()) > 150


def test_a_run_command_by_command(rather: Rather, run: Path, tmp_path: Path) -> None:
    assert "12 new questions" in rather("sample", run).stdout
    assert "0 new questions; 12 in all" in rather("sample", run).stdout
    assert "36 new answers" in rather("label", run).stdout
    assert "checkpoints/dpo-0/step-000006" in rather("train", run).stdout
    evaluated = rather("eval", run).stdout
    assert re.search(r"win rate against the base model: \d+\.\d % \(95 % interval", evaluated)
    for what in ("nats a token under the base model", "words an answer", "answers that end", "repeated pairs of words", "distinct words"):
        assert what in " ".join(evaluated.split()), "what it cost"
    status = rather("status", run).stdout
    assert "expert" in status
    assert "Krippendorff" in status
    rather("report", run)
    page = (tmp_path / "runs/tiny/report.html").read_text()
    assert "<svg" in page
    assert "simulated" in page
    assert not re.search(r'(?:src|href)="?(?:https?:)?//', page), "nothing is fetched"
    assert "54 rows" in rather("export", run, "all.jsonl").stdout
    doctor = rather("doctor", run).stdout
    assert "whole, from" in doctor
    assert re.search(r"can be read: llama with 2 layers and [\d,]+ parameters in float32", " ".join(doctor.split()))
    assert "step-000006" in rather("train", run).stdout, "a finished run has nothing to do"
    lines = [json.loads(x) for x in (tmp_path / "runs/tiny/metrics.jsonl").read_text().splitlines()]
    assert [x["step"] for x in lines if x["phase"] == "train-dpo-0"] == [1, 2, 3, 4, 5, 6]


def test_a_loop_of_two_rounds_then_a_reward_model_that_judges(rather: Rather, run: Path, tmp_path: Path) -> None:
    out = rather("loop", run, "loop.rounds=2").stdout
    assert "Win rate against the base model" in out
    assert "Agreement of 3 simulated judges on 24 questions" in out
    assert (tmp_path / "runs/tiny/checkpoints/dpo-1").is_dir()
    again = rather("loop", run, "loop.rounds=2").stdout
    assert "sampling" not in again
    assert "training" not in again
    trained = rather("train", run, "train.learner=reward", "reward.members=2").stdout
    assert "orders held-out questions right" in trained
    checkpoint = max((tmp_path / "runs/tiny/checkpoints/reward-0").iterdir())
    rather("sample", run, "run.name=second")
    judged = rather("label", run, "run.name=second", "judge.kind=model", "judge.name=rm", f"judge.checkpoint={checkpoint}")
    assert "12 new answers" in judged.stdout
    assert "Calibration" in (rather("report", run), (tmp_path / "runs/tiny/report.html").read_text())[1]


@pytest.mark.slow
def test_full_training_and_sft(rather: Rather, run: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    rather("sample", run)
    rather("label", run)
    rather("train", run, "train.learner=sft", "model.train=full")
    saved = max((tmp_path / "runs/tiny/checkpoints/sft-0").iterdir()) / "model"
    AutoModelForCausalLM.from_pretrained(saved)
    assert "Win rate" not in rather("eval", run, "train.learner=sft", "model.train=full").stderr
    assert "12 new questions" in rather("sample", run, f"model.path={saved}", "run.name=next").stdout


VOWELS = """
def share(text, answer):
    return sum(c in "aeiou" for c in text) / max(len(text), 1)
"""


LIKED = """
def share(completion, liked):
    return sum(c in liked for c in completion) / max(len(completion), 1)
"""


@pytest.mark.slow
def test_grpo_on_a_function_of_the_users(rather: Rather, run: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(LIKED)
    rows = [json.loads(row) for row in (tmp_path / "prompts.jsonl").read_text().splitlines()]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row | {"liked": "aeiou"}) + "\n" for row in rows))
    with run.open("a") as file:
        file.write('[verify]\nchecks = [{ kind = "python", function = "mine:share" }]\n')
    settings = ("train.learner=grpo", "train.steps=30", "model.train=full", "eval.answers=4")
    out = rather("loop", run, *settings).stdout
    after, before = map(float, re.findall(r"(\d+\.\d) % \(95 %", out.replace("\n", " ")))
    assert "Held-out score" in out
    assert after > 2 * before
    assert "sampling" not in out, "no questions are asked"
    rows = [json.loads(x) for x in (tmp_path / "runs/tiny/metrics.jsonl").read_text().splitlines()]
    first, last = (next(r for r in rows if r["step"] == n) for n in (1, 30))
    assert first["ratio"] == pytest.approx(1, abs=1e-5)
    assert last["score"] > 2 * first["score"]
    assert "mean score" in (rather("report", run, *settings), (tmp_path / "runs/tiny/report.html").read_text())[1].lower()


@pytest.mark.slow
@pytest.mark.parametrize("learner", ["grpo", "ppo"])
def test_verifiers_that_raise_on_every_answer_end_the_run(rather: Rather, run: Path, tmp_path: Path, learner: str) -> None:
    (tmp_path / "mine.py").write_text("def broken(text, answer):\n    return text['answer']\n")
    with run.open("a") as file:
        file.write('[verify]\npatience = 2\nchecks = [{ kind = "python", function = "mine:broken" }]\n')
    done = rather("train", run, f"train.learner={learner}", "train.steps=30", "ppo.rollout_batch_size=4", code=2)
    assert "nothing was judged in 2 steps in a row: python: raised TypeError: string indices must be integers" in done.stderr
    assert "easier" not in done.stderr + done.stdout
    rows = [json.loads(x) for x in (tmp_path / "runs/tiny/metrics.jsonl").read_text().splitlines()]
    assert [(r["step"], r["unjudged"]) for r in rows] == [(1, 1.0)], "a step without a judged answer is one of training"


PICKY = """
def share(text, answer):
    return None if text.count("e") == 1 else text.count("a") / max(len(text), 1)
"""


@pytest.mark.slow
def test_labels_that_verifiers_cannot_give_say_why_and_come_once_that_is_mended(rather: Rather, run: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("def share(text, answer):\n    return text['answer']\n")
    with run.open("a") as file:
        file.write('[judge]\nkind = "verifier"\n[verify]\nchecks = [{ kind = "python", function = "mine:share" }]\n')
    rather("sample", run)
    said = "nothing was judged in the open questions: python: raised TypeError: string indices must be integers"
    for command in ("label", "loop"):
        assert said in rather(command, run, code=2).stderr.replace("\n", " ")
    (tmp_path / "mine.py").write_text(PICKY)
    new = int(re.findall(r"(\d+) new answers", rather("label", run).stdout)[0])
    assert 0 < new < 12, "some questions stay open"
    assert "0 new answers. Next: rather train" in rather("label", run).stdout, "which is no error"


@pytest.mark.slow
def test_an_evaluation_that_verifies_nothing_says_why_and_goes_on_once_that_is_mended(rather: Rather, run: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(VOWELS)
    with run.open("a") as file:
        file.write('[verify]\nchecks = [{ kind = "python", function = "mine:share" }]\n')
    settings = ("train.learner=ppo", "train.steps=1", "ppo.rollout_batch_size=4")
    rather("train", run, *settings)
    (tmp_path / "mine.py").write_text("def share(text, answer):\n    return text['answer']\n")
    said = "nothing was judged in the evaluation: python: raised TypeError: string indices must be integers"
    for _ in range(2):
        assert said in rather("eval", run, *settings, code=2).stderr
    (tmp_path / "mine.py").write_text(VOWELS)
    assert "held-out score" in rather("eval", run, *settings).stdout


@pytest.mark.slow
def test_an_evaluation_in_which_all_abstain_says_so(rather: Rather, run: Path) -> None:
    panel = 'judge.panel=[{ name = "shy", skip_below = 1000.0 }]'
    rather("loop", run, "train.steps=1")
    out = rather("eval", run, panel).stdout
    assert "there is no win rate: all 6 answers are abstentions" in out


@pytest.mark.slow
def test_hacking_is_caught_in_text(rather: Rather, run: Path, tmp_path: Path) -> None:
    """What is paid is a character that a brief answer does not need; what is meant is to come to an end."""
    (tmp_path / "mine.py").write_text("def spaces(text, answer):\n    return text.count(' ') / 16\n")
    with run.open("a") as file:
        file.write('[verify]\nchecks = [{ kind = "python", function = "mine:spaces" }]\n[hack]\ngold = "brief"\n')
    out = rather("hack", run, "train.learner=grpo", "train.steps=40", "model.train=full", "train.schedule=constant").stdout
    assert "reward hacking: from " in out
    page = (tmp_path / "runs/tiny/hacking.html").read_text()
    assert page.count("<svg") == 3
    assert "reward hacking: from " in page
    shown = re.findall(r"proxy (\S+), gold (\S+)</span>", page)
    assert 2 <= len(shown) <= 6, "answers of base and policy to three prompts at most"
    assert all(float(after) > float(before) for (before, _), (after, _) in zip(shown[0::2], shown[1::2], strict=True))
    rows = [json.loads(x) for x in (tmp_path / "runs/tiny/metrics.jsonl").read_text().splitlines()]
    golds = {r["step"]: r["gold"] for r in rows if "gold" in r}
    caught, best = map(int, re.search(r"to (?:step )?(\d+) the proxy reward went .* go back to step (\d+)", " ".join(out.split())).groups())
    assert golds[40] < golds[1] < golds[best], "it did good, and then harm"
    assert best < caught < best + 8


@pytest.mark.slow
def test_ppo_on_a_reward_model_learnt_from_the_labels(rather: Rather, run: Path, tmp_path: Path) -> None:
    settings = ("train.learner=ppo", "train.reward=labels", "train.steps=3", "ppo.rollout_batch_size=8", "train.epochs=4")
    out = rather("loop", run, *settings).stdout
    assert "orders held-out questions right" in out
    assert "Win rate against the base model" in out
    rows = [json.loads(x) for x in (tmp_path / "runs/tiny/metrics.jsonl").read_text().splitlines()]
    assert [r["step"] for r in rows if r["phase"] == "train-ppo-0"] == [1, 2, 3]
    manifest = json.loads((tmp_path / "runs/tiny/checkpoints/ppo-0/step-000003/manifest.json").read_text())
    assert manifest["labels"], "what the reward model was trained on made the policy too"
    assert "sampling" not in rather("loop", run, *settings).stdout, "a finished run has nothing to do"
    refused = rather("train", run, *settings, "reward.lr=1e-3", code=2).stderr
    assert re.search(r"reward-0/step-\d+ was trained with reward.lr = None, not 0.001; set it back, train with --fresh", refused)
    assert "checkpoint: " in rather("train", run, *settings, "reward.lr=1e-3", "--fresh").stdout
    assert {p.name for p in (tmp_path / "runs/tiny/checkpoints").iterdir()} == {"ppo-0", "ppo-0-old-1", "reward-0", "reward-0-old-1"}


def test_what_verifies_nothing_is_refused(rather: Rather, run: Path) -> None:
    assert "verify.checks needs at least one verifier" in rather("train", run, "train.learner=grpo", code=2).stderr
    wrong = 'verify.checks=[{kind="nomber"}]'
    assert "there is no verifier 'nomber'" in rather("train", run, "train.learner=grpo", wrong, code=2).stderr


def test_import_train_and_new_labels(rather: Rather, run: Path, tmp_path: Path) -> None:
    rows = [{"prompt": f"q{i}", "chosen": "yes", "rejected": "no"} for i in range(8)]
    (tmp_path / "c.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    assert "8 new questions, 0 changed answers, 0 already there" in rather("import", run, "c.jsonl").stdout
    assert "0 new questions, 0 changed answers, 8 already there" in rather("import", run, "c.jsonl").stdout
    rather("train", run)
    (tmp_path / "more.jsonl").write_text(json.dumps({"prompt": "new", "chosen": "yes", "rejected": "no"}) + "\n")
    rather("import", run, "more.jsonl")
    assert "step-000005" in rather("train", run).stdout, "it goes on, for one label more"
    assert "with train.lr = 0.01, not 0.001; set it back, train with --fresh" in rather("train", run, "train.lr=1e-3", code=2).stderr
    rather("train", run, "--fresh", "train.lr=1e-3")
    assert (tmp_path / "runs/tiny/checkpoints/dpo-0-old-1").is_dir()


def terminal(folder: Path, command: str, *settings: str) -> pexpect.spawn:
    arguments = ["-m", "rather", command, "run.toml", "judge.kind=terminal", "judge.name=ann", *settings]
    environment = {**os.environ, "TERM": "dumb", "COLUMNS": "200"}
    return pexpect.spawn(sys.executable, arguments, cwd=str(folder), timeout=60, encoding="utf-8", env=environment)


@pytest.mark.slow
def test_people_at_the_terminal(run: Path, rather: Rather, tmp_path: Path) -> None:
    rather("sample", run, "data.limit=2")
    child = terminal(tmp_path, "label")
    for number in (1, 2):
        child.expect(f"question {number} of 2")
        time.sleep(0.5)
        child.send("1")
    child.expect("2 new answers")
    child.expect(pexpect.EOF)
    child = terminal(tmp_path, "loop", "data.limit=3")  # one more question, which is left open
    child.expect("question 3 of 3")
    time.sleep(0.5)
    child.send("q")
    child.expect("1 questions are open; the answers so far are kept")
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 130


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["train.lerning=1"], "there is no setting train.lerning; did you mean train.learner?"),
        (["model.path=nowhere.gguf"], "there is no model at nowhere.gguf"),
        (["model.path="], "no model is named"),
        (["model.device=cuda:7"], "model.device is 'cuda:7', but this machine has"),
        (["data.prompts=none.jsonl"], "there is no file none.jsonl"),
        (["data.prompts=broken.jsonl"], "line 2 of broken.jsonl is no JSON"),
        (["data.prompts=empty.csv"], "empty.csv is empty"),
        (["sample.max_tokens=250"], "leave no room for 250 of answer in the model's context of 256"),
        (["run.store=text.db"], "file is not a database"),
        (["run.store=/proc/x/store.db"], "cannot be made"),
    ],
)
def test_bad_input(rather: Rather, run: Path, tmp_path: Path, arguments: list[str], sentence: str) -> None:
    (tmp_path / "broken.jsonl").write_text('{"prompt": "a"}\n{"prompt\n')
    (tmp_path / "empty.csv").write_text("")
    (tmp_path / "text.db").write_text("this is no database, but a long enough text to be looked at" * 20)
    done = rather("sample", run, *arguments, code=2)
    assert sentence in done.stderr
    assert "Traceback" not in done.stderr + done.stdout


def test_bad_input_in_later_commands(rather: Rather, run: Path, tmp_path: Path) -> None:
    assert "there is no file other.toml" in rather("sample", "other.toml", code=2).stderr
    assert "the run has no labels to learn from; run `rather label`" in rather("train", run, code=2).stderr
    assert "there is no trained policy" in rather("eval", run, code=2).stderr
    (tmp_path / "c.jsonl").write_text('{"prompt": "x", "a": "1", "b": "2", "preference": 7}\n')
    assert "line 1 of c.jsonl: the preference 7 is outside [0, 1]" in rather("import", run, "c.jsonl", code=2).stderr
    needs = rather("label", run, "judge.kind=language", code=2).stderr
    assert "needs judge.model" in needs
    rather("sample", run)
    rather("label", run)
    rather("train", run)
    cut = tmp_path / "runs/tiny/checkpoints/dpo-0/step-000006/learner.safetensors"
    cut.write_bytes(cut.read_bytes()[:100])
    assert "was cut short: 100 of" in rather("train", run, code=2).stderr
    assert "Traceback" in rather("--debug", "train", run, code=2).stderr


def test_doctor_and_config(rather: Rather, tmp_path: Path) -> None:
    assert "PyTorch" in rather("doctor").stdout
    (tmp_path / "new.toml").write_text(rather("config").stdout)
    assert "lr = 0.0001" in rather("config", "new.toml").stdout
    bad = rather("doctor", "new.toml", code=1).stdout
    assert "bad" in bad
    assert "no model is named" in bad
    assert rather("--version").stdout.startswith("rather 0.")
