"""Words that this project does not use, since the field has others: `python tests/words.py` counts them in README, docs and src.

It prints how often each is found and where; `tests/test_words.py` holds the number to a ceiling. Identifiers are read word by word:
`told_of` counts as "told". CHANGELOG and docs/log.md, which tell what was, do not count, nor do old names that must be
read (renamed.py) and migrations of the database.
"""

import re
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
KINDS = ("*.py", "*.md", "*.toml", "*.html", "*.js", "*.ipynb")
KEPT = ("docs/log.md", "src/rather/renamed.py", "src/rather/store/migrations/")

WORDS = {
    "trajectory, answer, episode": r"attempts?|deeds?|_drive|\bdrives?(?=\")|(?:\b(?:a|the|each|per|of) )sample(?= [a-z]*s\b)",
    "rollout, rollout_segment": r"stretch(?:es)?|acts? anew|acting anew",
    "label, preference": r"heard|told|said_of|anyhow",
    "reward": r"pay|pays|paid|payers?|payment|worth|earn(?:s|ed)?",
    "gold reward": r"gold measure|what is (?:really )?meant|what was meant|is meant|meant(?!_for| for\b| to\b)",
    "gold_correlation": r"pull(?:s|ed)?",
    "style_directions, contrast pairs": r"manners?",
    "update": r"moved",
    "base_policy, base model": r"the start(?!s| of\b|[a-z])|its start\b|starting (?:model|policy)|start_policy|(?:run|acting)\.start\b",
    "deterministic, greedy": r"likeliest|best=(?:True|False)",
    "truncated, terminated": r"cut off|cuts off",
    "std": r"(?<!standard )deviations?",
    "stderr": r"(?:score|return|gold|policy|base|\{name\})_error",
    "interval": r"half the width",
    "policy, critic, reward_model": r"actors?|ref_model|value_net|rm",
    "logprobs": r"logps",
    "batch_size and others": r"micro_tokens|sample\.rows|ppo\.answers|grpo\.size|grpo\.again",
    "baseline": r"the peer|\bits(?= \|)",
    "American spelling": r"(?:optimi|normali|initiali|generali|minimi|maximi)s(?:e[ds]?|ers?|ing|ations?)|centr(?:e[ds]?|ing)",
}
"""What to say, and a pattern of what not to."""


def files() -> Iterator[Path]:
    """README, docs and the package."""
    yield ROOT / "README.md"
    for folder in ("docs", "src"):
        for kind in KINDS:
            yield from sorted(p for p in (ROOT / folder).rglob(kind) if not str(p.relative_to(ROOT)).startswith(KEPT))


def found(text: str) -> Iterator[tuple[str, int, str]]:
    """What to say instead, the line and the word, of every struck word in a text."""
    for say, pattern in WORDS.items():
        for match in re.finditer(rf"(?<![A-Za-z])(?:{pattern})(?![a-z])", text, flags=re.IGNORECASE):
            yield say, text.count("\n", 0, match.start()) + 1, match[0]


def main() -> int:
    """Print all places; returns how many there are."""
    places: dict[str, list[str]] = {}
    for path in files():
        for say, line, word in found(path.read_text(encoding="utf-8")):
            places.setdefault(say, []).append(f"{path.relative_to(ROOT)}:{line}: {word}")
    for say, where in sorted(places.items(), key=lambda item: -len(item[1])):
        print(f"{len(where)} where {say} belongs", *(f"  {place}" for place in where), sep="\n")
    total = sum(map(len, places.values()))
    print(f"{total} in all")
    return total


if __name__ == "__main__":
    sys.exit(0 if main() else 1)
