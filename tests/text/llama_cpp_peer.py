"""llama.cpp as a peer: the benchmarks' environment has it."""

import json
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

PEER = Path(__file__).parent.parent.parent / ".venv-bench/bin/python"
needs_llama_cpp = pytest.mark.skipif(not PEER.exists(), reason="no llama.cpp: `make bench` installs it")


def greedy(path: Path, texts: Sequence[str], max_tokens: int) -> dict[str, Any]:
    """What llama.cpp answers to `texts` at temperature 0, and the chat template that it finds."""
    script = Path(__file__).parent / "llama_greedy.py"
    done = subprocess.run([PEER, script, path, str(max_tokens)], input=json.dumps(texts), capture_output=True, text=True, check=True)
    return json.loads(done.stdout)
