"""Two commands in one folder, and a folder that can only be read."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from rather.config import toml
from rather.errors import BusyError
from rather.pipeline.lock import alone
from rather.pipeline.run import Run

HOLD = """
import os, sys, time
from pathlib import Path
from rather.pipeline.lock import alone
with alone(Path(sys.argv[1])):
    print(os.getpid(), flush=True)
    time.sleep(100)
"""


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_the_lock_says_who_holds_it_and_is_freed_when_its_owner_dies(tmp_path: Path, how: signal.Signals) -> None:
    owner = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert owner.stdout is not None
    process = int(owner.stdout.readline())
    with pytest.raises(BusyError, match=rf"\(process {process} on \S+, since 20\S+ \S+\) is at work in {tmp_path}; wait"), alone(tmp_path):
        pass
    known = [f"run.folder={tmp_path.parent}", f"run.name={tmp_path.name}"]
    run = Run(toml.load(None, known), Console(quiet=True))
    for phase in (run.loop, run.sample, run.label, run.train, run.evaluate):
        with pytest.raises(BusyError):
            phase()
    assert Run(toml.load(None, [*known, "judge.kind=terminal"]), Console(quiet=True)).label() == 0, "a person may answer meanwhile"
    assert run.store.questions(tmp_path.name) == [], "whoever reads may"
    owner.send_signal(how)
    owner.wait()
    owner.stdout.close()
    with alone(tmp_path), alone(tmp_path):
        assert json.loads((tmp_path / "lock").read_text())["process"] == os.getpid()


def test_who_only_reads_does_not_wait_for_the_lock(tiny: Path, tmp_path: Path, rather: Callable[..., Any]) -> None:
    (tmp_path / "c.jsonl").write_text("".join(json.dumps({"prompt": f"{i}", "chosen": "yes", "rejected": "no"}) + "\n" for i in range(4)))
    (tmp_path / "run.toml").write_text(f'[model]\npath = "{tiny}"\n')
    rather("import", "run.toml", "c.jsonl")
    folder = tmp_path / "runs" / "run"
    with subprocess.Popen([sys.executable, "-c", HOLD, str(folder)], stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout is not None
        process = owner.stdout.readline().strip()
        try:
            assert f"(process {process} on " in rather("train", "run.toml", code=2).stderr, "whoever writes is refused"
            assert "run: 4 questions" in rather("status", "run.toml").stdout
            assert "4 rows in out.jsonl" in rather("export", "run.toml", "out.jsonl").stdout
            assert "Report: " in rather("report", "run.toml").stdout
            assert (folder / "report.html").stat().st_size > 1000
            assert owner.poll() is None, "it was held all the time"
        finally:
            owner.kill()


READ = """
import os, sys, traceback
from rather.__main__ import main
for command in sys.argv[1:]:
    sys.argv = ["rather", *command.split()]
    try:
        main()
    except SystemExit as e:
        print("exit", e.code, flush=True)
"""


@pytest.mark.slow
def test_a_full_disk_leaves_the_last_checkpoint_whole(tiny: Path, tmp_path: Path) -> None:
    mounts = ["unshare", "--map-root-user", "--mount"]
    if shutil.which("unshare") is None or subprocess.run([*mounts, "true"], capture_output=True).returncode:
        pytest.skip("no mount of its own can be made here")
    (tmp_path / "runs").mkdir()
    (tmp_path / "c.jsonl").write_text("".join(json.dumps({"prompt": f"{i}", "chosen": "yes", "rejected": "no"}) + "\n" for i in range(4)))
    (tmp_path / "run.toml").write_text(
        f'[model]\npath = "{tiny}"\ndtype = "float32"\ntrain = "full"\n[train]\nsteps = 4\nbatch_size = 2\ncheckpoint_every = 1\n'
        f'[run]\nstore = "{tmp_path}/store.db"\n[data]\nprompts = "c.jsonl"\n'
    )
    reader = [sys.executable, "-c", READ]
    script = 'mount -t tmpfs -o size=600k none runs && "$@" "import run.toml c.jsonl" "train run.toml" "doctor run.toml" ; '
    script += 'mount -o remount,size=20m runs && "$@" "train run.toml"'
    done = subprocess.run([*mounts, "sh", "-c", script, "sh", *reader], cwd=tmp_path, capture_output=True, text=True)
    assert "Traceback" not in done.stderr, done.stderr
    full = "error: the disk is full, so that the checkpoint of step "
    assert full in done.stderr, done.stdout + done.stderr
    assert "is whole: make room, then the same command goes on from there" in done.stderr
    assert done.stdout.count("exit 2") == 1
    assert ": whole, from 4 labels" in done.stdout.replace("\n", "")
    assert "step-000004" in done.stdout


@pytest.mark.slow
def test_a_folder_that_can_only_be_read(tiny: Path, tmp_path: Path) -> None:
    """On a mount that is read-only for root, too."""
    mounts = ["unshare", "--map-root-user", "--mount"]
    if shutil.which("unshare") is None or subprocess.run([*mounts, "true"], capture_output=True).returncode:
        pytest.skip("no mount of its own can be made here")
    rows = [{"prompt": f"question {i}?", "split": "held_out" if i < 2 else "train"} for i in range(4)]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    (tmp_path / "run.toml").write_text(
        f'[model]\npath = "{tiny}"\ndtype = "float32"\n[data]\nprompts = "prompts.jsonl"\n[sample]\nmax_tokens = 4\n'
        f'[run]\nfolder = "{tmp_path}/runs"\n'
    )
    run = Run(toml.load(tmp_path / "run.toml", [f"data.prompts={tmp_path}/prompts.jsonl"]), Console(quiet=True))
    run.loop()
    said = run.evaluate()
    assert said is not None
    run.store.close()
    files = {path: path.read_bytes() for path in (tmp_path / "runs").rglob("*") if path.is_file()}
    data = f"data.prompts={tmp_path}/prompts.jsonl"
    commands = ["status run.toml", "report run.toml", "export run.toml out.jsonl", f"eval run.toml {data}"]
    commands.append(f"eval run.toml {data} eval.answers=2")
    script = 'mount --bind runs runs && mount -o remount,bind,ro runs && ! touch runs/x 2>/dev/null && exec "$@"'
    arguments = [*mounts, "sh", "-c", script, "sh", sys.executable, "-c", READ, *commands]
    done = subprocess.run(arguments, cwd=tmp_path, capture_output=True, text=True, env={**os.environ, "COLUMNS": "200"})
    assert "Traceback" not in done.stderr, done.stderr
    assert done.returncode == 0, done.stderr
    assert "run: 2 questions" in done.stdout
    assert "run-report.html" in done.stdout
    assert (tmp_path / "run-report.html").stat().st_size > 1000
    assert (tmp_path / "out.jsonl").stat().st_size > 100
    assert said.splitlines()[0] in done.stdout
    assert done.stdout.count("exit 2") == 1, done.stdout + done.stderr
    assert "cannot be used: attempt to write a readonly database; it may not be written" in done.stderr
    assert {path: path.read_bytes() for path in (tmp_path / "runs").rglob("*") if path.is_file()} == files
