"""TRL's trainers as a peer: the benchmarks' environment has them."""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

PEER = Path(__file__).parent.parent.parent / ".venv-bench/bin/python"
needs_trl = pytest.mark.skipif(not PEER.exists(), reason="no TRL: `make bench` installs it")


def another(model: Path, folder: Path) -> Path:
    """A copy of a model in `folder` with other weights."""
    copy = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    with torch.no_grad():
        for p in copy.parameters():
            p.add_(0.3 * p.std() * torch.randn_like(p))
    copy.save_pretrained(folder)
    for file in model.glob("tokenizer*"):
        (folder / file.name).write_bytes(file.read_bytes())
    return folder


def losses(model: Path, reference: Path, folder: Path, rows: list[dict[str, Any]], asked: dict[str, Any]) -> dict[str, float]:
    """The loss of TRL's trainers on one batch of all rows, by name; see `trl_losses.py`."""
    told = {"model": str(model), "reference": str(reference), "folder": str(folder), "rows": rows, "asked": asked}
    script, alone = Path(__file__).parent / "trl_losses.py", {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run([PEER, script], input=json.dumps(told), capture_output=True, text=True, check=False, env=alone)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])
