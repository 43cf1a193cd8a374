"""What `test_ranks.py` has every rank do: train each of the runs that are named, as `rather train` does."""

import os
import sys
from pathlib import Path

import torch
from rich.console import Console

from rather.config import toml
from rather.pipeline.run import Run
from rather.scale import ranks


def train(folder: Path, file: Path, runs: list[list[str]]) -> None:
    """Train runs, one after the other; each is the settings that it changes."""
    os.chdir(folder)
    torch.set_num_threads(1)
    for changes in runs:
        Run(toml.load(file, changes), Console(quiet=True)).train()


if __name__ == "__main__":
    with ranks.joined():
        assert ranks.count() == int(os.environ["WORLD_SIZE"]) > 1
        train(Path(sys.argv[1]), Path(sys.argv[2]), [run.split() for run in sys.argv[3:]])
