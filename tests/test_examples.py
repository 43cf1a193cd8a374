"""The examples about language models run as they are, with a tiny model and few steps."""

import runpy
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"


@pytest.mark.parametrize(
    ("name", "arguments", "said", "written"),
    [
        ("dpo_rows.py", ["8", "adapter"], "held-out accuracy ", ["adapter"]),
        pytest.param("reward_model.py", ["8", "reward"], "read back: [", ["reward"], marks=pytest.mark.slow),
        pytest.param("ppo.py", ["2"], "step 2: score ", [], marks=pytest.mark.slow),
        pytest.param("grpo_reward_function.py", ["2"], "step 2: mean reward ", [], marks=pytest.mark.slow),
        pytest.param("zeroth_order_judge.py", ["8"], "win rate over the model: ", [], marks=pytest.mark.slow),
        pytest.param("online_judge.py", ["8"], "GRPO on what was learned: win rate ", [], marks=pytest.mark.slow),
        ("own_loss.py", ["2"], "loss 1.000 at first", []),
        ("own_judge.py", ["1"], "round 0: win rate over the model ", []),
    ],
)
def test_it_runs(
    name: str,
    arguments: list[str],
    said: str,
    written: list[str],
    tiny: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [name, str(tiny), *arguments])
    runpy.run_path(str(EXAMPLES / name), run_name="__main__")
    assert said in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == written
    assert 15 <= len((EXAMPLES / name).read_text().splitlines()) <= 40
