"""What a run is about: a domain, text or control, turns tasks into trajectories and these into batches; nobody else asks which it is."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol

from rather.errors import findings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from rich.console import Console

    from rather.config.schema import Config
    from rather.core import Answered, Comparison, LabelLearner, Learner, Policy, RewardModel, RewardSource, Sampler, Space, Task, Trajectory
    from rather.errors import Check, Finding
    from rather.judges.concise import Reader
    from rather.pipeline.query import Chosen, Rounds
    from rather.store import Store
    from rather.verify.checker import Checker, Scorer


class Domain(Protocol):
    """What a run is given, by text or by control."""

    config: Config
    """The run's settings, as the domain completes them."""
    parallel: bool
    """Whether several ranks can train together."""

    @cached_property
    def tasks(self) -> tuple[list[Task], list[Task]]:
        """Training and held-out tasks."""
        ...

    @cached_property
    def tokenizer(self) -> str:
        """Digits that stand for how words become tokens; none where there are no words."""
        ...

    def contents(self, sections: dict[str, dict[str, Any]]) -> dict[str, str]:
        """Digests of what settings in these sections name, by setting."""
        ...

    # Who acts

    @cached_property
    def base_policy(self) -> Policy:
        """The policy that a run starts from, which stays what it is."""
        ...

    def opponent(self, run: Rounds, number: int, progress: Callable[[int], None]) -> Sampler:
        """What the policy of round `number` is compared with acts: the base policy, or the best of several of its answers by the reward.

        Raises:
            ConfigError: there is no reward to choose by.
        """
        ...

    def base_files(self) -> tuple[Path | None, Path | None]:
        """Where the base policy comes from, and the adapter on it; None where there is none."""
        ...

    def reader(self) -> Reader:
        """The base model, for judges who ask how likely words are.

        Raises:
            ConfigError: there are no words.
        """
        ...

    def restored(self, folder: Path, name: str) -> Policy:
        """The trained policy that `save` wrote to `folder`, under a name."""
        ...

    def perturbable(self, policy: Policy, number: int) -> tuple[Policy, Space]:
        """What zeroth-order optimization moves in round `number`, which begins with `policy`, and the space that it moves in."""
        ...

    def sampler(self, policy: Policy, progress: Callable[[int], None]) -> Sampler:
        """Lets `policy` act."""
        ...

    # What is asked

    def questions(self, run: Rounds, number: int) -> Iterator[Chosen]:
        """The questions that round `number` still lacks, some at a time."""
        ...

    def draw(self, store: Store) -> None:
        """Have what people need to see drawn in the background, if anything is missing."""
        ...

    def show(self, store: Store) -> None:
        """See `draw`, and wait until there is something to see.

        Raises:
            DataError: nothing can be drawn.
        """
        ...

    def check_shown(self) -> None:
        """Make sure that whoever answers can see the questions.

        Raises:
            ConfigError: a terminal cannot show them.
        """
        ...

    # What learns

    def check_learner(self) -> None:
        """Make sure that train.learner can learn, before anything is sampled or asked.

        Raises:
            ConfigError: it cannot.
        """
        ...

    def learnable(self, comparison: Comparison) -> bool:
        """Whether the sides of a question differ and fit the policy."""
        ...

    def prepared(self, comparisons: Sequence[Comparison]) -> list[Comparison]:
        """Comparisons of questions that are `learnable`, as they are learned from."""
        ...

    def learner(self, name: str, data: Answered, steps: int, store: Store) -> LabelLearner:
        """What learns from the labels in `data`, for so many steps.

        Raises:
            ConfigError: the learner called `name` does not learn from labels, or not in this domain.
        """
        ...

    def reward_model(self, saved: Path) -> RewardModel:
        """The reward model in a checkpoint."""
        ...

    def reward_fn(self, saved: Path, config: Config) -> Checker | RewardModel | None:
        """What rewards the policy by the round's settings: verifiers, the reward model in `saved`, or nothing but the environment."""
        ...

    def improver(
        self, number: int, policy: Policy, reward_fn: Scorer | RewardSource | None, steps: int, config: Config, before: Path | None
    ) -> Learner:
        """What learns from the rewards of `reward_fn`, for so many steps, in round `number` with `config`, which begins with `policy`.

        `before` is the last checkpoint of the round before, where there is one.
        """
        ...

    # How it did

    def measured(self, policy: Callable[[], Policy]) -> tuple[dict[str, float], str] | None:
        """What policy and base policy come to on held-out tasks, as metrics and in words; None where judges have to compare them."""
        ...

    def twin(self) -> Config | None:
        """The settings of the same run paid by a hand-written reward instead of labels; None where there is none."""
        ...

    def episode(self, policy: Policy) -> tuple[Trajectory, bytes, str] | None:
        """An episode of the policy to look at, as WebP or why it cannot be drawn; None where nothing moves."""
        ...

    # What may be wrong

    def machine(self) -> list[Finding]:
        """What this machine has of what the domain needs."""
        ...

    def checks(self, store: Store) -> list[Check]:
        """What to look at before a run: the policy, the tasks, the questions."""
        ...


def domain_of(config: Config, console: Console) -> Domain:
    """The domain that these settings are about: the one place that chooses, and imports no more than is needed."""
    if config.control.env:
        from rather.pipeline.control_domain import ControlDomain

        return ControlDomain(config, console)
    from rather.pipeline.text_domain import TextDomain

    return TextDomain(config, console)


def problems(config: Config, console: Console, store: Store) -> list[Finding]:
    """What is wrong with a run, where its domain can be looked at in a moment: a language model would have to be loaded."""
    if not config.control.env:
        return []
    return [finding for finding in findings(domain_of(config, console).checks(store)) if finding.grade == "bad"]
