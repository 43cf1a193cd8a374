"""The model card of what a run has made: the README.md of its Hugging Face folder."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from rather import __version__

KINDS = {
    "simulated": "simulated judge", "person": "person", "reward-model": "reward model", "language-model": "language model",
    "verifier": "verifier", "function": "function", "import": "imported file",
}  # fmt: skip


class Voter(NamedTuple):
    """A judge's name and kind, and how many of their answers were learned from."""

    name: str
    kind: str
    answers: int


@dataclass(frozen=True)
class Card:
    """What is known of a trained model. `base` is the model that it was trained from, `learner` how, `comparisons` how many questions it
    learned from and `voters` who answered them; `settings` those that were set, `win_rate` a sentence about its evaluation, and `use` how
    it is used.
    """

    base: str
    learner: str = ""
    comparisons: int = 0
    voters: Sequence[Voter] = ()
    settings: Mapping[str, Any] = field(default_factory=dict[str, Any])
    win_rate: str = ""

    def text(self, title: str, use: str) -> str:
        """The card as Markdown; the license is left to whoever publishes the model."""
        parts = [self._head(), f"# {title}", f"{self._origin()}", f"```python\n{use}\n```"]
        if self.learner:
            parts += ["## What it learned from", self._answers()]
        if self.win_rate:
            parts += ["## Evaluation", self.win_rate]
        if self.settings:
            values = {name: json.dumps(_public(value), ensure_ascii=False).replace("|", "\\|") for name, value in self.settings.items()}
            rows = [f"| `{name}` | `{value}` |" for name, value in values.items()]
            parts += ["## Settings that were set", "\n".join(["| setting | value |", "|---|---|", *rows])]
        return "\n\n".join(parts) + "\n"

    def _head(self) -> str:
        lines = ["library_name: transformers", "tags: [rather, rlhf]", "# license: choose one; the base model's license may bind you"]
        if self.base.count("/") == 1 and not Path(self.base).exists():
            lines.insert(0, f"base_model: {self.base}")
        return "\n".join(["---", *lines, "---"])

    def _origin(self) -> str:
        how = f"trained from `{_public(self.base)}` with {self.learner}" if self.learner else f"written from `{_public(self.base)}`"
        return f"This model was {how}, by `rather` {__version__}."

    def _answers(self) -> str:
        if not self.comparisons:
            return "No comparison: it learned from rewards, which the settings below name."
        rows = [f"| {_plain(v.name)} | {KINDS.get(v.kind, v.kind)} | {v.answers:,} |" for v in self.voters]
        count = f"{self.comparisons:,} comparison{'s' if self.comparisons > 1 else ''}"
        if not rows:
            return f"{count}; who judged them is in the run's store."
        simulated = sum(v.kind == "simulated" for v in self.voters)
        note = {0: "", len(rows): " All of its judges are programs that simulate people; no person judged."}.get(
            simulated, f" {simulated} of its judges simulate people."
        )
        return "\n".join([f"{count}, judged by:{note}", "", "| judge | kind | answers |", "|---|---|---|", *rows])


def _public(value: Any) -> Any:
    """The value without the folders of the machine that it was set on."""
    return Path(value).name if isinstance(value, str) and Path(value).is_absolute() else value


def _plain(name: str) -> str:
    """A name that cannot break out of a table's cell."""
    return " ".join(name.replace("|", "/").split())
