"""Runs of the tests in this folder."""

from rich.console import Console

from rather.config import toml
from rather.pipeline.run import Run


def go(known: list[str], *changed: str) -> Run:
    """A run of these settings, which says nothing."""
    return Run(toml.load(None, [*known, *changed]), Console(quiet=True))
