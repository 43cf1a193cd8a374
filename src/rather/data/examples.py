"""What comes with the package: settings of whole runs, and prompt files."""

from importlib.resources import files
from pathlib import Path

from rather.errors import ConfigError

FOLDER = Path(str(files("rather") / "data"))
PREFIX = "package:"


def descriptions() -> dict[str, str]:
    """Name of each example run and the sentence that describes it."""
    return {path.stem: path.read_text().splitlines()[0].removeprefix("# ") for path in sorted((FOLDER / "examples").glob("*.toml"))}


def settings(name: str) -> str:
    """The TOML file of an example run.

    Raises:
        ConfigError: there is no example of that name.
    """
    if name not in descriptions():
        raise ConfigError(f"there is no example {name!r}; take one of {', '.join(descriptions())}")
    return (FOLDER / "examples" / f"{name}.toml").read_text()


def prompt_file(name: str) -> Path:
    """The file that `data.prompts` names: "package" and "package:NAME" come with rather, anything else is a path.

    Raises:
        ConfigError: no prompt file of that name comes with rather.
    """
    if name != "package" and not name.startswith(PREFIX):
        return Path(name)
    path = FOLDER / f"{name.removeprefix('package').removeprefix(':') or 'prompts'}.jsonl"
    known = {p.stem: p for p in FOLDER.glob("*.jsonl")}
    if path.stem not in known:
        raise ConfigError(f"no prompt file {name!r} comes with rather; take one of {', '.join(PREFIX + stem for stem in sorted(known))}")
    return known[path.stem]
