"""Training that is stopped, killed or damaged."""

import hashlib
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from rather.errors import CheckpointError
from rather.learners import checkpoint
from rather.learners.metrics import CLOCK, Metrics

SCRIPT = """
import sys, time
from pathlib import Path
import torch
torch.set_num_threads(1)
from learners.test_learners import comparisons
from rather.learners.checkpoint import Lineage
from fixed import fixed
from rather.learners.dpo import DPO
from rather.learners.reward import Reward
from rather.learners.metrics import Metrics
from rather.text import load
from rather.text.reward_model import RewardModel
from rather.learners.train import train

model, folder, kind, pause = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], float(sys.argv[4])
full = kind == "dpo-full"
dtype = torch.bfloat16 if kind == "dpo-bfloat16" else torch.float32
start = load.policy(model, torch.device("cpu"), dtype, full, 1.0)
trained, parameters = (start, load.parameters(start)) if full else load.with_adapter(start, "policy", 4, 8.0, 0)
how = fixed(12, 4, lr=1e-2, warmup=2, schedule="cosine")
if kind == "reward":
    reward = RewardModel(trained, 2, 0, parameters=[])
    each = [c.__class__(c.a, c.b, c.preference, c.key, "ab"[i % 2]) for i, c in enumerate(comparisons(10))]
    learner = Reward(reward, each, [*parameters, reward.heads], **how)
else:
    learner = DPO(trained, comparisons(10), start, parameters, **how)
step = learner.step
def slow():
    time.sleep(pause)
    return step()
learner.step = slow
metrics = Metrics(folder / "metrics.jsonl")
train(learner, 12, folder / "checkpoints", Lineage({"seed": {"a": 1}}, 3, [1, 2, 3]), metrics, every=2,
      progress=lambda step, values: print(step, flush=True))
"""


def command(tiny: Path, folder: Path, kind: str, pause: float = 0.0) -> list[str]:
    return [sys.executable, "-c", SCRIPT, str(tiny), str(folder), kind, str(pause)]


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}


def result(folder: Path) -> tuple[dict[str, str], list[dict[str, float]]]:
    """Hashes of the last checkpoint's files, and the metrics without the clock."""
    (last,) = checkpoint.every(folder / "checkpoints")[-1:]
    assert last.name == "step-000012"
    files = sorted(p for p in last.rglob("*") if p.is_file() and p.name != "manifest.json")
    hashes = {str(p.relative_to(last)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}
    return hashes, [{k: v for k, v in row.items() if k not in CLOCK} for row in Metrics(folder / "metrics.jsonl").read()]


SLOWER = [pytest.param(kind, marks=pytest.mark.slow) for kind in ("dpo-bfloat16", "dpo-full", "reward")]


@pytest.mark.parametrize("kind", ["dpo", *SLOWER])
def test_killed_and_resumed_is_bit_for_bit_the_same(tiny: Path, tmp_path: Path, kind: str) -> None:
    subprocess.run(command(tiny, tmp_path / "whole", kind), check=True, env=environment(), capture_output=True)
    expected = result(tmp_path / "whole")
    assert [row["step"] for row in expected[1]] == list(range(1, 13))
    assert all(row["seconds"] > 0 and 0.1 < row["peak_gib"] < 100 for row in Metrics(tmp_path / "whole" / "metrics.jsonl").read())
    for stop in (3, 8):
        running = subprocess.Popen(command(tiny, tmp_path / "killed", kind, 0.05), stdout=subprocess.PIPE, text=True, env=environment())
        assert running.stdout is not None
        for line in running.stdout:
            if int(line) >= stop:
                os.kill(running.pid, signal.SIGKILL)
                break
        running.stdout.close()
        assert running.wait() == -signal.SIGKILL
    (tmp_path / "killed/checkpoints/.step-000004.1/model").mkdir(parents=True)  # as a kill while it is written leaves it
    subprocess.run(command(tiny, tmp_path / "killed", kind), check=True, env=environment(), capture_output=True)
    assert result(tmp_path / "killed") == expected
    assert not list((tmp_path / "killed/checkpoints").glob(".step-*"))


@pytest.mark.slow
def test_ctrl_c_finishes_the_step_and_goes_on_from_there(tiny: Path, tmp_path: Path) -> None:
    running = subprocess.Popen(
        command(tiny, tmp_path, "dpo", 0.2), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment()
    )
    assert running.stdout is not None
    while int(running.stdout.readline()) < 3:
        pass
    running.send_signal(signal.SIGINT)
    _, err = running.communicate(timeout=60)
    stopped = re.search(r"Stopped: after step (\d+) of 12; the same command goes on from there", err)
    assert stopped, err
    assert checkpoint.every(tmp_path / "checkpoints")[-1].name == f"step-{int(stopped[1]):06d}"
    done = subprocess.run(command(tiny, tmp_path, "dpo"), check=True, env=environment(), capture_output=True, text=True)
    assert done.stdout.split()[0] == stopped[1]
    subprocess.run(command(tiny, tmp_path / "whole", "dpo"), check=True, env=environment(), capture_output=True)
    assert result(tmp_path) == result(tmp_path / "whole")


@pytest.fixture(scope="module")
def finished(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("finished")
    subprocess.run(command(tiny, folder, "dpo"), check=True, env=environment(), capture_output=True)
    return checkpoint.every(folder / "checkpoints")[-1]


def test_a_checkpoint_names_the_labels_that_made_it(finished: Path) -> None:
    manifest = checkpoint.check(finished)
    assert (manifest["labels"], manifest["watermark"], manifest["step"]) == ([1, 2, 3], 3, 12)
    assert len(checkpoint.every(finished.parent)) == 2, "old ones are deleted"


def test_a_damaged_checkpoint_is_refused(finished: Path) -> None:
    path = finished / "learner.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:-10])
    with pytest.raises(CheckpointError, match=r"learner.safetensors was cut short: .* bytes; delete that folder"):
        checkpoint.check(finished)
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(CheckpointError, match="has changed since it was written"):
        checkpoint.check(finished)
    path.write_bytes(whole)
    manifest = (finished / "manifest.json").read_text()
    (finished / "manifest.json").write_text(manifest[:50])
    with pytest.raises(CheckpointError, match="no manifest that can be read"):
        checkpoint.check(finished)
    (finished / "manifest.json").write_text(json.dumps(json.loads(manifest) | {"format": 99}))
    with pytest.raises(CheckpointError, match="newer rather"):
        checkpoint.check(finished)
    (finished / "manifest.json").write_text(manifest)


def test_a_checkpoint_of_other_settings_is_refused_and_one_of_other_labels_is_named(finished: Path) -> None:
    same, more = checkpoint.Lineage({"seed": {"a": 1}}, 3, [1, 2, 3]), checkpoint.Lineage({"seed": {"a": 1}}, 4, [1, 2, 3, 4])
    assert checkpoint.gone_on(finished, same) == same
    assert checkpoint.gone_on(finished, more).before == [{"step": 12, "watermark": 3, "labels": [1, 2, 3]}]
    with pytest.raises(CheckpointError, match=r"trained with seed.a = 1, not 2"):
        checkpoint.check_same(finished, checkpoint.Lineage({"seed": {"a": 2}}, 3, [1, 2, 3]))


def test_a_checkpoint_is_there_whole_or_not_at_all(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken:
        class model:  # noqa: N801
            @staticmethod
            def save(folder: Path) -> None:
                folder.mkdir()
                (folder / "half").write_text("x")
                raise OSError(28, "No space left on device")

    before = checkpoint.every(finished.parent)
    with pytest.raises(CheckpointError, match="the disk is full.*step-000012, is whole: make room"):
        checkpoint.save(finished.parent, 99, Broken(), checkpoint.Lineage({}, 0, []))
    assert checkpoint.every(finished.parent) == before


def test_checkpoints_are_in_the_order_of_their_steps(tmp_path: Path) -> None:
    for name in ("step-1000000", "step-999999", "step-000020", "step-000020-copy"):
        (tmp_path / name).mkdir()
    assert [path.name for path in checkpoint.every(tmp_path)] == ["step-000020", "step-999999", "step-1000000"]


def test_metrics_survive_a_cut_off_line(tmp_path: Path) -> None:
    metrics = Metrics(tmp_path / "metrics.jsonl")
    metrics.write("train", 1, {"loss": 1.0})
    with metrics.path.open("a") as file:
        file.write('{"phase": "train", "st')
    assert [row["step"] for row in metrics.read()] == [1]
    metrics.rewind("train", 1)
    metrics.write("train", 2, {"loss": 0.5})
    assert [row["step"] for row in metrics.read("train")] == [1, 2]
