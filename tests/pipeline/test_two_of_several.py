"""`query.strategy` and `query.answers` in runs."""

import pytest
from rich.console import Console

from rather.config import toml
from rather.errors import ConfigError
from rather.pipeline.run import Run


@pytest.mark.parametrize("strategy", ["double_thompson", "information_directed"])
def test_control_has_no_best_answer(strategy: str) -> None:
    with pytest.raises(ConfigError, match=f'^query.strategy = "{strategy}" looks for the best answer to one prompt, and the run is about'):
        Run(toml.load(None, ["control.env=Pendulum-v1", f"query.strategy={strategy}"]), Console(quiet=True))
