import json
from pathlib import Path

import pytest


@pytest.fixture
def text_run(tiny: Path, tmp_path: Path) -> list[str]:
    """Settings of a run about ten prompts and two held-out ones, with a tiny random model."""
    rows = [{"prompt": f"question {i}?", "split": "held_out" if i < 2 else "train"} for i in range(12)]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    return [
        f"model.path={tiny}", "model.dtype=float32", f"run.folder={tmp_path}", f"data.prompts={tmp_path}/prompts.jsonl",
        "sample.max_tokens=6", "reward.layers=[1, 2]",
    ]  # fmt: skip
