import time
from pathlib import Path

import pytest

from rather.errors import ConfigError
from rather.learners.metrics import Metrics, mirrors


def test_tensorboard_is_told_what_the_file_is_told(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    metrics = Metrics(tmp_path / "metrics.jsonl", mirrors(True, "", tmp_path))
    for step in (1, 2):
        metrics.write("train-dpo-0", step, {"loss": 0.5 / step}, checkpoint="abc")
    found = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(e.step, e.value) for e in found.Scalars("train-dpo-0/loss")] == [(1, 0.5), (2, 0.25)]


def test_weights_and_biases_is_told_what_the_file_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import wandb

    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    metrics = Metrics(tmp_path / "metrics.jsonl", mirrors(False, "my-project", tmp_path))
    metrics.write("train-dpo-0", 1, {"loss": 0.5})
    run = wandb.run
    assert run is not None
    first = run.id
    wandb.finish()
    (written,) = tmp_path.rglob("*.wandb")
    until = time.monotonic() + 30  # another process writes it, on a busy machine a little later
    while b"train-dpo-0/loss" not in written.read_bytes():
        assert time.monotonic() < until
        time.sleep(0.1)
    mirrors(False, "my-project", tmp_path)
    assert wandb.run is not None
    assert wandb.run.id == first, "a run that goes on is the same run there"
    wandb.finish()


def test_a_mirror_that_is_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "wandb", None)
    with pytest.raises(ConfigError, match="wandb; install it or switch it off"):
        mirrors(False, "my-project", tmp_path)


def test_a_line_that_a_full_disk_has_cut_off_is_taken_out_before_the_next(tmp_path: Path) -> None:
    metrics = Metrics(tmp_path / "metrics.jsonl")
    metrics.write("train", 1, {"loss": 1.0})
    with metrics.path.open("a") as file:
        file.write('{"phase": "train", "st')
    metrics.write("train", 2, {"loss": 0.5})
    assert [row["step"] for row in metrics.read()] == [1, 2]
    metrics.rewind("train", 1)
    assert [row["step"] for row in metrics.read()] == [1]
