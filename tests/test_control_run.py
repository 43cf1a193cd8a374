"""Runs about control, from the command line."""

import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file

from rather.core import Label
from rather.learners.metrics import CLOCK
from rather.pipeline.run import Run
from rather.store import Store
from rather.store.clips import facts

RUN = """
[run]
name = "small"
[control]
env = "rather/CheckpointCar-v0"
gold = "laps"
envs = 4
rollout_segment = 50
hidden = [16]
[query]
comparisons = 12
fragment = 20
episodes = 4
[judge]
panel = [{ name = "expert", utility = "total_reward", temperature = 0.01 }]
[train]
learner = "ppo"
reward = "labels"
steps = 6
batch_size = 100
lr = 1e-3
checkpoint_every = 2
[reward]
members = 2
epochs = 3
batch_size = 6
held_out = 0.0
[eval]
prompts = 3
[loop]
rounds = 2
"""


@pytest.fixture
def run(tmp_path: Path) -> Path:
    path = tmp_path / "run.toml"
    path.write_text(RUN)
    return path


def rows(folder: Path) -> list[dict]:
    return [json.loads(x) for x in (folder / "metrics.jsonl").read_text().splitlines()]


def test_a_loop_asks_learns_and_improves_round_by_round(rather, run: Path, tmp_path: Path) -> None:
    out = rather("loop", run).stdout
    assert re.search(r"mean return .* mean laps .* on 3 held-out seeds; before:", out.replace("\n", " "), re.IGNORECASE)
    questions = Store(str(tmp_path / "runs/small/store.db")).questions("small", "train")
    assert len(questions) == 12
    assert [q.comparison.key.split("/")[0] for q in questions].count("round-0") == 8, "hyperbolic: 2 to 1"
    assert {q.why for q in questions} == {"random", "disagreement"}
    assert {len(q.comparison.a[0].actions) for q in questions} == {20}
    found = rows(tmp_path / "runs/small")
    assert [r["step"] for r in found if r["phase"] == "train-ppo-1"] == [1, 2, 3, 4, 5, 6]
    again = rather("loop", run).stdout
    assert "training" not in again, "a finished run has nothing to do"
    rather("report", run)


def test_fragments_of_several_lengths_are_compared_with_their_like(rather, run: Path, tmp_path: Path) -> None:
    rather("loop", run, "query.fragment=[5,20,30]")
    questions = [q.comparison for q in Store(str(tmp_path / "runs/small/store.db")).questions("small", "train")]
    lengths = [(len(c.a[0].actions), len(c.b[0].actions)) for c in questions]
    assert all(a == b for a, b in lengths)
    first = [a for c, (a, _) in zip(questions, lengths, strict=True) if c.key.startswith("round-0/")]
    assert [first.count(n) for n in (5, 20, 30)] == [3, 2, 3]
    assert len({c.key for c in questions}) == 12
    assert "fragments of 5 and 20 and 30 steps are compared" in rather("doctor", run, "query.fragment=[5,20,30]").stdout.replace("\n", " ")


def test_a_reward_head_is_fitted_in_one_step_and_chooses_questions(rather, run: Path, tmp_path: Path) -> None:
    head = ["reward.kind=head", "reward.members=1", "train.pessimism=0.5"]
    rather("loop", run, *head)
    questions = Store(str(tmp_path / "runs/small/store.db")).questions("small", "train")
    assert {q.why for q in questions} == {"random", "disagreement"}
    assert len({q.score for q in questions if q.why == "disagreement"}) > 1, "one member is a whole posterior"
    found = rows(tmp_path / "runs/small")
    fits = [r for r in found if r["phase"].startswith("train-reward")]
    assert [(r["phase"], r["step"], r["comparisons"]) for r in fits] == [("train-reward-0", 1, 8), ("train-reward-1", 1, 12)]
    assert "training" not in rather("loop", run, *head).stdout, "a finished run has nothing to do"
    (saved,) = (tmp_path / "runs/small/checkpoints/reward-1").glob("step-*/model")
    (answers := tmp_path / "answers.jsonl").write_text('{"prompt": "q", "completion": "a"}\n')
    assert "is about control, and this is about text" in rather("score", saved, answers, code=2).stderr.replace("\n", " ")


@pytest.mark.slow
def test_a_run_that_is_killed_goes_on_as_if_it_had_not_been(rather, run: Path, tmp_path: Path) -> None:
    rather("loop", run, "run.name=whole", "train.reward=environment", "train.steps=40")
    command = [sys.executable, "-m", "rather", "loop", str(run), "run.name=killed", "train.reward=environment", "train.steps=40"]
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    metrics = tmp_path / "runs/killed/metrics.jsonl"
    while not metrics.exists() or metrics.read_text().count("\n") < 7:
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    rather("loop", run, "run.name=killed", "train.reward=environment", "train.steps=40")
    whole, killed = (
        [{k: v for k, v in r.items() if k not in (*CLOCK, "checkpoint")} for r in rows(tmp_path / f"runs/{name}")]
        for name in ("whole", "killed")
    )
    assert killed == whole
    names = ("whole", "killed")
    first, second = ((tmp_path / f"runs/{n}/checkpoints/ppo-1/step-000040/model/policy.safetensors").read_bytes() for n in names)
    assert first == second


@pytest.mark.slow
def test_hack_shows_the_twin_beside_the_run(rather, run: Path, tmp_path: Path) -> None:
    out = rather("hack", run, "train.steps=8").stdout
    assert out.count("on 3 held-out seeds") == 2
    page = (tmp_path / "runs/small/hacking.html").read_text()
    assert page.count("data:image/webp;base64,") == 2
    assert page.count("<svg") == 4
    first = next(r for r in rows(tmp_path / "runs/small-written") if r["phase"] == "train-ppo-0")
    assert "disagreement" not in first


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (["control.env=CartPoll-v1"], "'CartPoll-v1' cannot be made"),
        (["control.gold=lapps"], "control.gold is 'lapps', but the environment's info has 'laps'"),
        (["train.reward=verify"], 'control has no verifiers; set train.reward to "labels" or "environment"'),
        (["train.learner=grpo"], "learns by ppo, sb3:SAC, sb3:TD3, reward, not by 'grpo'"),
        (["train.learner=dpo"], "learns by ppo, sb3:SAC, sb3:TD3, reward, not by 'dpo'"),
        (["train.reward=model"], 'train.reward = "model" needs judge.checkpoint, the folder of a reward model'),
        (["judge.kind=model", "judge.checkpoint=runs"], 'judge.kind = "model" reads words, and the run is about control; take "panel"'),
        (["hack.gold=brief"], "hack.gold is a utility of answers, and the run is about control; set control.gold"),
        (["control.hidden=[16,0]"], "control.hidden.1: input should be greater than 0 (got 0)"),
        (["control.env=CartPole-v1", "control.gold=", "query.fragment=5"], "which gives their returns away"),
        (["query.fragment=500"], "no episode has 500 steps"),
        (["query.fragment=[20,500]"], "no episode has 500 steps"),
        (["query.fragment=[]"], "query.fragment"),
        (["query.fragment=[0,5]"], "query.fragment"),
        (["train.steps=0"], "train.steps is 0; in control it says how many segments the policy learns from"),
    ],
)
def test_bad_input(rather, run: Path, settings: list[str], sentence: str) -> None:
    said = rather("loop", run, *settings, code=2)
    assert sentence in said.stderr.replace("\n", " ")
    assert "compares" not in said.stdout, "before anybody is asked"


def test_one_held_out_episode_has_no_interval(rather, run: Path, tmp_path: Path) -> None:
    """Of one return no standard error is known."""
    out = rather("loop", run, "eval.prompts=1", "loop.rounds=1").stdout.replace("\n", " ")
    assert re.search(r"mean return -?[\d.]+, mean laps -?[\d.]+ on 1 held-out seeds; before: mean return [^+]*$", out, re.IGNORECASE)
    (evaluated,) = (row for row in rows(tmp_path / "runs/small") if row["phase"] == "eval-0")
    assert {"return_policy", "gold_base"} <= evaluated.keys()
    assert not [name for name in evaluated if name.endswith("_stderr")]


def test_hack_needs_something_that_is_meant(rather, run: Path) -> None:
    assert "there is no gold reward" in rather("hack", run, "control.gold=", code=2).stderr.replace("\n", " ")
    assert "have a proxy reward that can be hacked" in rather("hack", run, "train.learner=reward", code=2).stderr.replace("\n", " ")


def test_teachers_see_the_rewards_they_are_meant_to() -> None:
    from rather.core import Comparison, Task, Trajectory
    from rather.judges.known import SimulatedJudge, total_reward

    def side(*rewards: float) -> tuple[Trajectory]:
        return (Trajectory(Task("e", "0"), "p", rewards=np.array(rewards), actions=np.arange(len(rewards))),)

    early, late, poor = side(3, 0, 0), side(0, 0, 2), side(0, 0, 0.1)
    asked = [Comparison(early, late, key="1"), Comparison(late, early, key="2"), Comparison(poor, poor, key="3")]

    def answers(**how: float) -> list[float | None]:
        return SimulatedJudge("j", total_reward, temperature=1e-6, **how).judge(asked)

    assert answers()[:2] == [1, 0], "oracle"
    assert answers(discount=0.5)[:2] == [0, 1], "myopic: 3 / 4 < 2"
    assert answers(tie=1.5) == [0.5] * 3, "equal"
    assert answers(skip_below=0.5) == [1, 0, None], "skip"
    many = [Comparison(early, late, key=str(i)) for i in range(2000)]
    mistaken = SimulatedJudge("j", total_reward, temperature=1e-6, mistake=0.2).judge(many)
    assert sum(mistaken) / 2000 == pytest.approx(0.9, abs=0.03), "mistake: 20 % are coin flips"
    noisy = SimulatedJudge("j", total_reward, temperature=1.0).judge(many)
    assert sum(noisy) / 2000 == pytest.approx(1 / (1 + np.exp(-1)), abs=0.03), "noisy: sigmoid(3 - 2)"


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["lora", "head"])
def test_people_compare_clips_that_are_drawn_in_the_background(tmp_path: Path, kind: str) -> None:
    (tmp_path / "run.toml").write_text(RUN)
    people = ["judge.kind=people", "judge.wait_s=0", "loop.rounds=1", f"reward.kind={kind}"]
    sampled = subprocess.run([sys.executable, "-m", "rather", "sample", "run.toml", *people], cwd=tmp_path, capture_output=True, text=True)
    assert "12 new questions" in sampled.stdout, sampled.stderr
    store = Store(str(tmp_path / "runs/small/store.db"))
    store.add_judge("ann", "person")
    until = time.monotonic() + 90
    answered = 0
    while answered < 12:
        assert time.monotonic() < until
        question = store.lease("small", "ann")
        if question is None:  # its clips are not there yet
            time.sleep(0.2)
            continue
        known = facts(store, [n for side in question.trajectories for n in side])
        assert [f["frames"] for f in known.values()] == [21, 21]
        better = question.comparison.a[0].rewards.sum() > question.comparison.b[0].rewards.sum()
        store.answer(Label(question.id, "ann", float(better)))
        answered += 1
    done = subprocess.run([sys.executable, "-m", "rather", "train", "run.toml", *people], cwd=tmp_path, capture_output=True, text=True)
    assert "ppo-0" in done.stdout, done.stdout + done.stderr
    manifest = json.loads(next((tmp_path / "runs/small/checkpoints/reward-0").glob("step-*/manifest.json")).read_text())
    assert manifest["watermark"] == max(manifest["labels"])
    if kind == "head":
        (fit,) = (r for r in rows(tmp_path / "runs/small") if r["phase"] == "train-reward-0")
        assert fit["answers"] == 12, "each was predicted before it was learned from"
        assert 0 <= fit["prequential_accuracy_low"] <= fit["prequential_accuracy"] <= fit["prequential_accuracy_high"] <= 1
    store.close()


COUNTER = """
import gymnasium
import numpy as np


class Counter(gymnasium.Env):
    observation_space = gymnasium.spaces.Box(0, 100, (1,), np.float32)
    action_space = gymnasium.spaces.Discrete(2)
    metadata = {"render_modes": ["rgb_array"], "render_fps": 30}

    def __init__(self, render_mode=None):
        self.render_mode = render_mode

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.time = 0
        self.place = float(self.np_random.integers(50))
        return np.array([self.place], np.float32), {}

    def step(self, action):
        self.time += 1
        self.place += action
        return np.array([self.place], np.float32), float(action), False, self.time >= 20, {}

    def render(self):
        return np.full((16, 16, 3), int(self.place), np.uint8)


gymnasium.register("Counter-v0", Counter)
"""
OWN = ["control.env=counter:Counter-v0", "control.gold=", "query.fragment=10"]


def test_an_environment_of_ones_own_is_found_in_the_current_folder(run: Path, tmp_path: Path) -> None:
    (tmp_path / "counter.py").write_text(COUNTER)
    program = str(Path(sys.executable).with_name("rather"))  # whose folder, not the current one, is where Python looks for modules
    done = subprocess.run([program, "sample", "run.toml", *OWN], cwd=tmp_path, capture_output=True, text=True)
    assert "8 new questions" in done.stdout, done.stderr


def test_an_environment_without_a_limit_is_stopped(rather, run: Path, tmp_path: Path) -> None:
    (tmp_path / "counter.py").write_text(COUNTER.replace("self.time >= 20", "False"))
    said = rather("loop", run, *OWN, "query.episodes=2", code=2).stderr.replace("\n", " ")
    assert "lasted 10,000 steps and there is no limit to it; set control.horizon" in said
    said = rather("train", run, *OWN, "train.reward=environment", code=2).stderr.replace("\n", " ")
    assert "lasted 10,000 steps and there is no limit to it; set control.horizon" in said
    assert "train-ppo" not in (tmp_path / "runs/small/metrics.jsonl").read_text(), "before anything is learned"
    rather("sample", run, *OWN, "control.horizon=30")
    (tmp_path / "counter.py").write_text(COUNTER)
    rather("train", run, *OWN, "train.reward=environment", "train.steps=1")  # it ends by itself


@pytest.mark.slow
def test_fragments_and_pairs_are_distinct_in_all_rounds(rather, run: Path, tmp_path: Path) -> None:
    """Whole episodes are compared, of which there are far fewer than questions need; the policy acts in more of them."""
    from rather.control.rollout import identity

    (tmp_path / "counter.py").write_text(COUNTER)
    whole = [*OWN, "query.fragment=0", "query.comparisons=30", "train.steps=2"]
    out = rather("loop", run, *whole).stdout
    assert re.search(
        r"4 episodes hold 4 new distinct fragments of 20 steps, and 20 questions need\s+40: the policy acts in \d+ episodes", out
    )
    store = Store(str(tmp_path / "runs/small/store.db"))
    pairs = [[identity(t) for t in (*q.comparison.a, *q.comparison.b)] for q in store.questions("small", "train")]
    assert len(pairs) == 30
    assert len({i for pair in pairs for i in pair}) == 60, "no fragment is asked about twice, in either round"
    # More questions in the same round are about other fragments, too.
    rather("sample", run, *whole, "query.comparisons=36", "--round", "1")
    pairs = [[identity(t) for t in (*q.comparison.a, *q.comparison.b)] for q in store.questions("small", "train")]
    assert len(pairs) == 36
    assert len({i for pair in pairs for i in pair}) == 72
    store.close()


def test_where_too_few_fragments_differ_fewer_questions_are_asked(rather, run: Path, tmp_path: Path) -> None:
    alike = (
        COUNTER.replace("float(self.np_random.integers(50))", "0.0").replace("self.place += action", "pass").replace("float(action)", "1.0")
    )
    (tmp_path / "counter.py").write_text(alike)
    out = rather("sample", run, *OWN, "query.fragment=0").stdout.replace("\n", " ")
    assert "Only 0 of 8 questions are asked, since no more fragments differ" in out
    assert "0 new questions; 0 in all" in out


def test_doctor_speaks_of_environments_lengths_replay_and_questions(rather, run: Path, tmp_path: Path) -> None:
    (tmp_path / "counter.py").write_text(COUNTER)
    out = rather("doctor", run, *OWN).stdout
    assert "counter:Counter-v0: 1 numbers are observed, actions are Discrete(2)" in out
    assert "episodes last 20 steps; fragments of 10 steps are compared" in out
    assert "3 episodes that were played again from seed and actions were the same" in out
    assert "no questions yet" in out
    assert not re.search(r"token|model|prompt|answers", out), "those are of text"
    assert "query.fragment is 30, but episodes last 20 steps" in rather("doctor", run, *OWN, "query.fragment=30", code=1).stdout
    (tmp_path / "counter.py").write_text(COUNTER.replace("self.time >= 20", "self.time >= 10 + self.place"))
    out = rather("doctor", run, *OWN, code=1).stdout
    assert re.search(r"episodes last \d+ to \d+ steps, which gives their returns away to judges; set control.horizon", out)


def test_an_environment_that_cannot_be_played_again_is_told(rather, run: Path, tmp_path: Path) -> None:
    (tmp_path / "counter.py").write_text(COUNTER.replace("self.place += action", "self.place += np.random.random()"))
    sentence = "the replay of counter:Counter-v0 differs from the record at step 1 of seed 0: the environment does not follow from seed"
    for command, code in (("doctor", 1), ("status", 0)):
        out = rather(command, run, *OWN, code=code).stdout
        assert sentence in out, command
        assert "training that was stopped cannot go on" in out
    for setting in ("reward.pseudo_labels=2", "reward.dynamics=1"):
        said = rather("sample", run, *OWN, setting, code=2).stderr.replace("\n", " ")
        assert sentence in said
        assert "reward.pseudo_labels and reward.dynamics have episodes played again: set both to 0" in said
    rather("sample", run, *OWN)


def test_pictures_as_observations_are_refused_with_their_size_unless_insisted_on(rather, run: Path, tmp_path: Path) -> None:
    shown = COUNTER.replace("Box(0, 100, (1,), np.float32)", "Box(0, 255, (8, 8, 3), np.uint8)")
    shown = shown.replace("np.array([self.place], np.float32)", "self.render()").replace("(16, 16, 3)", "(8, 8, 3)")
    (tmp_path / "counter.py").write_text(shown)
    own = [*OWN, "query.comparisons=3", "train.steps=1", "eval.prompts=1", "loop.rounds=1"]
    said = rather("loop", run, *own, code=2).stderr.replace("\n", " ")
    # 8 * 8 * 3 = 192 bytes, 1,000 times: 0.18 MiB.
    assert "counter:Counter-v0 shows pictures of 8 x 8 x 3, 192 numbers a step, 0.2 MiB for every 1,000 steps" in said
    assert "or insist with control.pixels = true" in said
    store = Store(str(tmp_path / "runs/small/store.db"))
    assert store.questions("small") == []
    run.write_text(RUN.replace("[control]", "[control]\npixels = true"))
    assert "on 1 held-out seeds" in rather("loop", run, *own).stdout.replace("\n", " ")
    assert store.questions("small")[0].comparison.a[0].observations.shape == (11, 192)
    assert store.questions("small")[0].comparison.a[0].observations.dtype == np.uint8
    small = rather("loop", run, *own, "control.network=cnn", "run.name=cnn", code=2).stderr.replace("\n", " ")
    assert 'network = "cnn" has layers of its own, and hidden brings others; leave one of them out' in small
    small = rather("loop", run, *own, "control.network=cnn", "control.hidden=[64,64]", "run.name=cnn", code=2).stderr.replace("\n", " ")
    assert 'pictures are 8 x 8 pixels, and network = "cnn" needs 36 x 36 at least' in small
    assert Store(str(tmp_path / "runs/cnn/store.db")).questions("cnn") == []
    store.close()


def test_a_run_sees_pictures_by_a_cnn(rather, run: Path, tmp_path: Path) -> None:
    """Questions, reward model, PPO, evaluation, and what is done with the policy then."""
    shown = COUNTER.replace("Box(0, 100, (1,), np.float32)", "Box(0, 255, (40, 36, 3), np.uint8)")
    shown = shown.replace("np.array([self.place], np.float32)", "self.render()").replace("(16, 16, 3)", "(40, 36, 3)")
    (tmp_path / "counter.py").write_text(shown)
    run.write_text(RUN.replace("hidden = [16]", 'network = "cnn"'))
    few = ["run.threads=1", "train.steps=2", "control.rollout_segment=20", "eval.prompts=1", "query.comparisons=6"]
    own = [*OWN, *few, "query.exploration=0.5"]
    assert "4320 numbers are observed" in rather("doctor", run, *own).stdout.replace("\n", " ")
    assert "on 1 held-out seeds" in rather("loop", run, *own).stdout.replace("\n", " ")
    policy = tmp_path / "runs/small/checkpoints/ppo-1/step-000002/model/policy.safetensors"
    assert load_file(policy)["net.features.linear.weight"].shape == (512, 64)
    rather("loop", run, *own, "run.name=again")
    assert policy.read_bytes() == Path(str(policy).replace("small", "again")).read_bytes()
    assert "Episode 1: return" in rather("play", run, *own).stdout
    rather("export-policy", run, "policy.onnx", *own)
    assert (tmp_path / "policy.onnx").exists()
    (tmp_path / "counter.py").write_text(shown.replace("(40, 36, 3)", "(30, 36, 3)"))
    assert "pictures are 30 x 36 pixels" in rather("doctor", run, *own, code=1).stdout.replace("\n", " ")


def test_with_restart_each_round_begins_with_an_untrained_policy(rather, run: Path, tmp_path: Path) -> None:
    for name, restart in (("new", "true"), ("on", "false")):
        rather("loop", run, f"run.name={name}", f"control.restart={restart}", "query.exploration=0.5", "eval.prompts=1")
    first = {name: next(r for r in rows(tmp_path / f"runs/{name}") if r["phase"] == "train-ppo-1") for name in ("new", "on")}
    assert abs(first["new"]["kl"]) < 1e-5, "it is as it was at the start"
    assert abs(first["on"]["kl"]) > 1e-3
    store = Store(str(tmp_path / "runs/new/store.db"))
    later = {
        t.policy for q in store.questions("new", "train") if q.comparison.key.startswith("round-1") for s in q.comparison.sides for t in s
    }
    assert any(policy.startswith("new@0-6") for policy in later), "questions are about the policy that the round before has trained"
    assert any("~" in policy for policy in later)
    store.close()


def test_a_critic_is_kept_from_round_to_round_where_that_is_asked_for(rather, run: Path, tmp_path: Path) -> None:
    """It begins as the one of the round before ended; else, and with control.restart, it is a new one."""
    rather("loop", run, "train.reward=environment", "run.folder=" + str(tmp_path / "runs"))
    for changes, kept in (({"keep_critic": True}, True), ({}, False), ({"keep_critic": True, "restart": True}, False)):
        own: dict[str, object] = {f"control.{key}": value for key, value in changes.items()}
        made = Run(str(run), **own, **{"train.reward": "environment", "run.folder": str(tmp_path / "runs")})
        learner = made.domain.improver(1, made.policy(1), None, 6, made.config, made.last(0))
        before = load_file(made.last(0) / "learner.safetensors")
        same = [bool((x == before[f".critic.{name}"]).all()) for name, x in learner.critic.state_dict().items()]
        assert all(same) is kept


NETWORKS = """
import torch

def policy(inputs, outputs):
    return torch.nn.Sequential(torch.nn.Linear(inputs, 12), torch.nn.ReLU(), torch.nn.Linear(12, outputs))

def critic(inputs, outputs):
    return torch.nn.Linear(inputs, outputs)

def wrong(inputs, outputs):
    return torch.nn.Linear(inputs, outputs + 1)

def broken(inputs):
    return None
"""


def test_a_run_trains_networks_of_ones_own(rather, run: Path, tmp_path: Path) -> None:
    (tmp_path / "networks.py").write_text(NETWORKS)
    own = ["control.policy_network=networks:policy", "control.critic_network=networks:critic", "run.name=own"]
    rather("loop", run, *own)
    saved = load_file(tmp_path / "runs/own/checkpoints/ppo-1/step-000006/model/policy.safetensors")
    assert saved["net.0.weight"].shape[0] == 12
    rather("loop", run, *own[:2], "run.name=again")
    again = load_file(tmp_path / "runs/again/checkpoints/ppo-1/step-000006/model/policy.safetensors")
    assert all(bool((saved[name] == again[name]).all()) for name in saved), "weights are drawn by the seed"
    assert "Episode 1: return" in rather("play", run, *own).stdout
    for setting, said in (
        (
            "control.policy_network=networks:wrong",
            'the network of control.policy_network = "networks:wrong" made shape (2, 10) of (2, 9); it must map observations (2, 9) to'
            " (2, 9), a logit for each action",
        ),
        (
            "control.critic_network=networks:wrong",
            'the network of control.critic_network = "networks:wrong" made shape (2, 2) of (2, 9); it must map observations',
        ),
        ("control.policy_network=networks:broken", "it is called with how many numbers go in and come out"),
        ("control.critic_network=networks:nothing", "nothing"),
        ("control.policy_network=networks:policy", "query.exploration moves numbers of the policy's own layers"),
    ):
        explored = ["query.exploration=0.5"] if "exploration" in said else []
        found = rather("loop", run, "run.name=refused", setting, *explored, code=2)
        assert said in " ".join(found.stderr.split())
        assert "compares" not in found.stdout, "before anybody is asked"
