"""Clips are drawn in a process that may die; what cannot be drawn is said, and nobody is asked about it."""

import os
import subprocess
import sys
import time
from ctypes.util import find_library
from html import unescape
from pathlib import Path

import numpy as np
import pytest
from starlette.testclient import TestClient

from rather.control.studio import Painter, Studio, draw
from rather.core import Comparison, Task, Trajectory
from rather.errors import DataError
from rather.store import Store
from rather.store.clips import facts, missing, problems, progress, retry
from rather.store.people import invite
from rather.web.app import create
from rather.web.project import Project
from test_control_run import COUNTER, OWN, RUN

DEADLY = "__import__('os').kill(__import__('os').getpid(), 11)"
PEOPLE = [*OWN, "judge.kind=people", "loop.rounds=1"]


@pytest.fixture
def counter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Put the module of a small environment in the current folder; its pictures are what `render` says."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MUJOCO_GL", raising=False)
    (tmp_path / "run.toml").write_text(RUN)

    def write(render: str, before: str = "np.full((16, 16, 3), int(self.place), np.uint8)") -> None:
        assert before in COUNTER
        (tmp_path / "counter.py").write_text(COUNTER.replace(before, render))

    return write


def episode(seed: int) -> Trajectory:
    """What Counter-v0 shows if nothing is done for three steps."""
    from gymnasium.utils.seeding import np_random

    place = float(np_random(seed)[0].integers(50))
    steps = {"actions": np.zeros(3, np.int64), "rewards": np.zeros(3, np.float32), "observations": np.full((4, 1), place, np.float32)}
    return Trajectory(Task("counter:Counter-v0", str(seed)), "p", terminated=False, **steps)


def test_a_process_that_dies_of_a_clip_costs_that_clip_alone(counter) -> None:
    deadly = int(episode(4).observations[0, 0])
    counter(f"np.full((8, 8, 3), 9, np.uint8) if self.place != {deadly} else {DEADLY}")
    painter = Painter(Studio("", "r", "counter:Counter-v0"))
    try:
        assert painter.film(episode(3))[1]["frames"] == 2
        with pytest.raises(DataError, match=r"the process that draws counter:Counter-v0 died by signal SIGSEGV; .* set MUJOCO_GL=egl"):
            painter.film(episode(4))
        assert painter.film(episode(3))[1]["frames"] == 2, "another one goes on"
    finally:
        painter.close()


@pytest.mark.parametrize(
    ("render", "sentence"),
    [
        ("__import__('os')._exit(3)", r"died with exit code 3; on a machine without a display set MUJOCO_GL=egl for MuJoCo$"),
        ("no_display()", r"cannot be drawn: NameError: name 'no_display' is not defined; .*MUJOCO_GL=egl"),
        ("None", r"drew None; pictures must be \(height, width, 3\) bytes"),
        ("np.zeros((4, 4))", r"drew an array of shape \(4, 4\) and float64; pictures must be"),
    ],
)
def test_what_keeps_a_clip_from_being_drawn_is_said(counter, render: str, sentence: str) -> None:
    counter(render)
    painter = Painter(Studio("", "r", "counter:Counter-v0"))
    try:
        with pytest.raises(DataError, match=sentence):
            painter.film(episode(3))
    finally:
        painter.close()


def test_where_nothing_can_be_drawn_the_rest_is_not_tried_and_it_is_tried_again_when_asked(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "store.db"))
    store.ask("r", [Comparison((episode(i),), (episode(i + 1),), key=str(i)) for i in (0, 2)])
    tried = []

    def broken(trajectory: Trajectory) -> tuple[bytes, dict[str, int]]:
        tried.append(trajectory.task.key)
        raise DataError(f"no display for {trajectory.task.key}")

    studio = Studio(store.where, "r", "counter:Counter-v0")
    assert draw(studio, broken) == 0
    assert tried == ["0", "1"]
    now = progress(store, "r")
    assert (now.drawn, now.failed, now.waiting, now.problem) == (0, 4, 0, "no display for 0"), "nobody waits for the others"
    assert str(now) == "0 clips are drawn, 4 cannot be drawn, and their questions are not given out: no display for 0"
    assert problems(store, "r") == ["no display for 0", "no display for 1"]
    retry(store, "r")
    picture = {"frames": 1, "columns": 1, "width": 4, "height": 3, "milliseconds": 50}
    assert draw(studio, lambda t: (b"RIFF", picture)) == 4
    assert not missing(store, "r")
    assert len(facts(store, [1, 2, 3, 4])) == 4
    retry(store, "r")
    assert progress(store, "r").drawn == 4, "what is drawn stays"
    store.close()


@pytest.mark.slow
def test_sample_status_doctor_and_page_say_that_clips_cannot_be_drawn(rather, counter, tmp_path: Path) -> None:
    counter(DEADLY)
    said = "the process that draws counter:Counter-v0 died by signal SIGSEGV; on a machine without a display set MUJOCO_GL=egl for MuJoCo"
    assert said in rather("sample", "run.toml", *PEOPLE, code=2).stderr.replace("\n", " ")
    assert said in rather("status", "run.toml", *PEOPLE).stdout.replace("\n", " ")
    assert said in rather("doctor", "run.toml", *PEOPLE, code=1).stdout.replace("\n", " ")
    store = Store(str(tmp_path / "runs/small/store.db"))
    with TestClient(create(store, Project("small", "Which?"), "k")) as ann:
        found = ann.get("/api/next", headers={"Authorization": f"Bearer {invite(store, 'ann', 'annotator', 1)}"}).json()
        assert found["question"] is None, "it would be a blank box"
        assert found["problem"] == said
        # The display is there now: the same command draws what is missing.
        counter("np.full((16, 16, 3), 7, np.uint8)")
        rather("sample", "run.toml", *PEOPLE)
        assert progress(store, "small").drawn
        assert problems(store, "small") == []
    store.close()


def test_one_that_draws_for_people_alone_is_refused_before_anybody_acts(rather, counter, tmp_path: Path) -> None:
    counter('["human"]', '["rgb_array"]')
    sentence = "counter:Counter-v0 cannot be drawn: its render modes are ['human'], and clips need 'rgb_array'"
    assert sentence in rather("sample", "run.toml", *PEOPLE, code=2).stderr.replace("\n", " ")
    store = Store(str(tmp_path / "runs/small/store.db"))
    assert store.questions("small") == []
    store.close()
    assert sentence in rather("status", "run.toml", *PEOPLE).stdout.replace("\n", " ")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            (DEADLY,),
            "the process that draws counter:Counter-v0 died by signal SIGSEGV; on a machine without a display set MUJOCO_GL=egl for MuJoCo",
        ),
        (
            ('["human"]', '["rgb_array"]'),
            "counter:Counter-v0 cannot be drawn: its render modes are ['human'], and clips need 'rgb_array'",
        ),
    ],
)
def test_hack_goes_on_where_nothing_can_be_drawn(rather, counter, tmp_path: Path, change: tuple[str, ...], said: str) -> None:
    counter(*change)
    (tmp_path / "counter.py").write_text((tmp_path / "counter.py").read_text().replace("{}", '{"place": self.place}'))
    short = [*OWN[:1], "control.gold=place", "query.fragment=10", "query.comparisons=3", "loop.rounds=1", "train.steps=1", "eval.prompts=1"]
    out = rather("hack", "run.toml", *short).stdout.replace("\n", " ")
    assert out.count(f"The page shows no drive: {said}.") == 2, "of the run and of its twin"
    page = unescape((tmp_path / "runs/small/hacking.html").read_text())
    assert page.count(f"No drive is shown: {said}.") == 2
    assert "data:image/webp" not in page
    assert "place a trajectory" in page


@pytest.mark.slow
def test_what_is_said_of_mujoco_without_a_display_helps(tmp_path: Path) -> None:
    """The real MuJoCo cannot be drawn without a display; with what the sentence says it can."""
    pytest.importorskip("mujoco")
    if find_library("EGL") is None:
        pytest.skip("no EGL")
    (tmp_path / "run.toml").write_text(RUN)
    command = [sys.executable, "-m", "rather", "sample", "run.toml", "control.env=HalfCheetah-v5", "control.gold=", "judge.kind=people"]
    without = {name: value for name, value in os.environ.items() if name not in ("DISPLAY", "WAYLAND_DISPLAY", "MUJOCO_GL")}
    said = subprocess.run(command, cwd=tmp_path, env=without, capture_output=True, text=True, check=False)
    assert said.returncode == 2
    assert "on a machine without a display set MUJOCO_GL=egl for MuJoCo" in said.stderr.replace("\n", " ")
    subprocess.run(command, cwd=tmp_path, env=without | {"MUJOCO_GL": "egl"}, check=True)
    store = Store(str(tmp_path / "runs/small/store.db"))
    for _ in range(600):  # the others are drawn in the background
        if not progress(store, "small").waiting:
            break
        time.sleep(0.1)
    assert problems(store, "small") == []
    assert progress(store, "small").waiting == 0
    assert progress(store, "small").drawn > 0
    store.close()
