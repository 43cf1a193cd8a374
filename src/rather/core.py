"""The few types that everything shares: records that people and files see, the batch that learning sees, and protocols.

Shape letters: B trajectories, T actions (padded), P prompt tokens, A action dimensions, D trajectories a side.
Only numpy is imported here, so that the store and the labelling page start without torch.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

import numpy as np

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor
    from torch.nn import Parameter

Message = dict[str, Any]
Prompt = str | list[Message]
"""What a language model is asked: plain text, or a conversation of {"role", "content"} messages, some with `tool_calls` or the like."""

UNUSED = -1
"""Marks padding among the token ids of a `Batch`."""


@dataclass(frozen=True)
class Task:
    """What is attempted: a prompt, or an environment with a reset seed.

    `source` names the data set or environment, `key` the row or seed in it. `answer` and `row`, the other columns of the prompt's row,
    are for verifiers and reward functions alone: no policy ever sees them. The store keeps no `row`.
    """

    source: str
    key: str
    prompt: Prompt | None = None
    answer: str | None = None
    row: Mapping[str, Any] = field(default_factory=dict[str, Any], hash=False, compare=False)


def task_facts(task: Task) -> dict[str, Any]:
    """What digests of tasks are made of: all fields, but for an empty `row`, which tasks have not always had."""
    facts = asdict(task)
    return facts if task.row else {key: value for key, value in facts.items() if key != "row"}


def row_seed(seed: int, task: Task, index: int) -> int:
    """The seed of one answer's own generator, from what the answer is and not from where it lies."""
    text = f"{seed}\0{task.source}\0{task.key}\0{index}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:7], "big")


@dataclass(frozen=True, eq=False)
class Trajectory:
    """One trajectory of a task.

    `policy` says who acted ("run@step" or "import:file"). `observations` is (P,) prompt tokens for text, (T+1, *obs) for
    control; `actions` (T,) or (T, A); `logprobs` (T,) in nats under the policy that acted; `rewards` (T,). `terminated`
    is True when the task itself ended the trajectory, False when a limit cut it. `text` holds the words, for text only: words
    outlive tokens, so the store keeps `text`, and `actions` is None for a trajectory that was read back from it. `before` holds
    the actions from the reset to where a fragment begins, so that it can be played again; None for whole trajectories.
    """

    task: Task
    policy: str
    text: str | None = None
    terminated: bool = True
    observations: np.ndarray | None = None
    actions: np.ndarray | None = None
    logprobs: np.ndarray | None = None
    rewards: np.ndarray | None = None
    before: np.ndarray | None = None


@dataclass(frozen=True, eq=False)
class Comparison:
    """A question, "which side would you rather have?", and its answer once there is one.

    `a` and `b` are sides of D trajectories each; which trajectory is `a` was drawn at random. `preference` is P(a better) in
    [0, 1], or None while nobody has judged. `key` names the question within its run, `judge` who answered, `label` that answer's number.

    A question may be "which of these would you rather have?", with `others` beside a and b. Its answer is `best`, the number of the
    side that was picked, or a preference of 0.5 where no side stands out; learning sees it as `pairs`.

    It may also be one trajectory alone, with none in `b`: "is this good?"; `preference` is then P(good), an unpaired label.
    """

    a: tuple[Trajectory, ...]
    b: tuple[Trajectory, ...]
    preference: float | None = None
    key: str = ""
    judge: str = ""
    others: tuple[tuple[Trajectory, ...], ...] = ()
    best: int | None = None
    label: int = 0

    @property
    def sides(self) -> tuple[tuple[Trajectory, ...], ...]:
        """All sides: a, b and the others; a alone where there is nothing to compare it with."""
        return (self.a, self.b, *self.others) if self.b else (self.a,)

    def pairs(self) -> list[Comparison]:
        """The comparisons of two sides that the answer says: the side that was picked is better than each other one."""
        if not self.others:
            return [self]
        first, better = (0, self.preference) if self.best is None else (self.best, 1.0)
        rest = [side for i, side in enumerate(self.sides) if i != first]
        return [Comparison(self.sides[first], side, better, self.key, self.judge, label=self.label) for side in rest]

    def swapped(self) -> Comparison:
        """The same question with its sides exchanged."""
        preference = None if self.preference is None else 1.0 - self.preference
        return replace(self, a=self.b, b=self.a, preference=preference)


@dataclass(frozen=True)
class Label:
    """One judge's answer to one stored question.

    `preference` is P(a better) in [0, 1], None for an abstention, whose `reason` may say why. Of more than two sides it is 1 where a
    was picked and 0 where another one was, which is number `best`. `seconds` is the time it took, `shown` the letters of the sides in
    the order in which they stood before the judge, `flags` what makes the answer suspicious. `criteria` are preferences for a on each of
    the criteria that were asked for beside the whole.
    """

    comparison: int
    judge: str
    preference: float | None
    reason: str = ""
    seconds: float | None = None
    shown: str = "ab"
    flags: tuple[str, ...] = ()
    id: int | None = None
    best: int | None = None
    criteria: Mapping[str, float] = field(default_factory=dict[str, float], hash=False)


@dataclass(frozen=True, eq=False)
class Batch:
    """B trajectories as tensors, padded on the right: all that losses and learners see.

    `observations` (B, P) prompt tokens for text, (B, T+1, *obs) for control; `actions` (B, T) or (B, T, A). Those of text are on the
    host, with UNUSED as padding. `mask` (B, T) is 1 where an action was taken; `logprobs` and `rewards` (B, T); `terminated` (B,);
    `groups` (B,) is equal for trajectories of the same task. `prompts` (B, 2), on the host, are a number and a length: rows of the same
    number share one pass over their prompt; None where there are none.
    """

    observations: Tensor
    actions: Tensor
    mask: Tensor
    logprobs: Tensor
    rewards: Tensor
    terminated: Tensor
    groups: Tensor
    prompts: Tensor | None = None

    def __len__(self) -> int:
        return len(self.actions)

    def select(self, rows: slice | Tensor) -> Batch:
        """The rows that a slice or an index tensor names."""
        known = {f.name: x for f in fields(self) if (x := getattr(self, f.name)) is not None}
        return Batch(**{name: x[rows if isinstance(rows, slice) else rows.to(x.device)] for name, x in known.items()})


@dataclass(frozen=True)
class Perturbation:
    """Names a direction v(seed) in parameter space, scaled by `scale`; v is rebuilt from the seed by `direction`, never sent."""

    seed: int
    scale: float


def perturbed(policy: str, perturbation: Perturbation | None) -> str:
    """The name of a policy that was perturbed, as trajectories keep it: `run@3+0.5*v(77)`."""
    return policy if perturbation is None else f"{policy}{perturbation.scale:+}*v({perturbation.seed})"


def perturbation_of(policy: str) -> Perturbation | None:
    """The perturbation in a policy's name; None if it has none."""
    found = re.search(r"([+-]\d+(?:\.\d+)?(?:e[+-]\d+)?)\*v\((\d+)\)$", policy)
    return None if found is None else Perturbation(int(found[2]), float(found[1]))


def direction(seed: int, size: int, kind: Literal["gaussian", "sphere", "block"] = "gaussian", block: int = 1) -> np.ndarray:
    """The direction v(seed), (size,) float32.

    "gaussian": N(0, I). "sphere": uniform on the unit sphere. "block": `block` coordinates drawn at random are +-block^-1/2, the
    others 0 (Zhang and Ying 2025, ICLR, alg. 2). E[v v^T] is I for the first, I / size for the others.
    """
    chance = np.random.default_rng(seed)
    if kind == "block":
        v = np.zeros(size, np.float32)
        v[chance.choice(size, block, replace=False)] = chance.choice((-1.0, 1.0), block) / math.sqrt(block)
        return v
    v = chance.standard_normal(size, dtype=np.float32)
    return v / np.linalg.norm(v) if kind == "sphere" else v


class Model(Protocol):
    """What a learner trains: it collates trajectories, and goes to disk and back."""

    def collate(self, trajectories: Sequence[Trajectory]) -> Batch:
        """Turn trajectories into a batch."""
        ...

    def save(self, folder: Path) -> None:
        """Write what is trained into `folder`."""
        ...

    def restore(self, folder: Path) -> None:
        """Take over what `save` wrote, in place."""
        ...


class Policy(Model, Protocol):
    """Chooses actions; trained. A `memoryless` one sees no further than a state, so that each action can be evaluated by itself.

    `name` stands in the trajectories that it samples.
    """

    memoryless: bool
    name: str

    def evaluate(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Log-probabilities of the actions and entropies, both (B, T), float32, 0 where the mask is 0."""
        ...


@runtime_checkable
class RewardSource(Protocol):
    """Says what each action is rewarded with."""

    def rewards(self, batch: Batch) -> Tensor:
        """Rewards (B, T)."""
        ...


@runtime_checkable
class RewardModel(Model, RewardSource, Protocol):
    """Scores trajectories by one or several `members`: a score is the masked sum of the rewards, which are the members' mean."""

    members: int

    def scores(self, batch: Batch) -> Tensor:
        """Scores (K, B) of each member, float32."""
        ...


class Critic(Protocol):
    """Estimates V(s); trained beside a policy."""

    def values(self, seen: Tensor) -> Tensor:
        """Values (B, T+1) of observations or hidden states (B, T+1, ...): the last one is of the state after the last action."""
        ...

    def parameters(self) -> Iterator[Parameter]:
        """All that learns."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """All weights by name."""
        ...

    def load_state_dict(self, state: Mapping[str, Any], /) -> object:
        """Take `state` back."""
        ...


class Sampler(Protocol):
    """Lets a policy act."""

    def sync(self) -> None:
        """Take over the policy's present parameters."""
        ...

    def sample(self, tasks: Sequence[Task], seed: int, perturbations: Sequence[Perturbation | None] | None = None) -> list[Trajectory]:
        """One trajectory a task; trajectory i depends on its task, `seed` and i alone, not on what else is in the batch."""
        ...


class Space(Protocol):
    """What is perturbed: the numbers of a policy that zeroth-order optimization moves, `size` of them, all 0 in the beginning.

    `parameters` are those numbers, trained in float32. A policy that has a space acts from where the space is.
    """

    size: int
    parameters: list[Parameter]

    def combined(self, perturbations: Sequence[Perturbation], weights: Sequence[float]) -> list[Tensor]:
        """sum_k w_k scale_k v_k in float32, in the shapes of `parameters`."""
        ...

    def sync(self) -> None:
        """Let the policy know that `parameters` have changed."""
        ...

    def gather(self) -> None:
        """Bring the gradient that a backward pass through the policy left to `parameters`."""
        ...


@runtime_checkable
class Judge(Protocol):
    """Answers comparisons: a person, a simulated person, a reward model, a language model, a verifier."""

    @property
    def name(self) -> str:
        """Under which its answers are kept."""
        ...

    @property
    def kind(self) -> str:
        """What it is: "person", "simulated", ..."""
        ...

    def judge(self, comparisons: Sequence[Comparison]) -> list[float | None]:
        """P(a better) of each, or None where the judge abstains."""
        ...


class Learner(Protocol):
    """Improves a `model`, a policy or a reward model, one optimizer step a call."""

    @property
    def model(self) -> Model:
        """What is trained."""
        ...

    def step(self) -> dict[str, float]:
        """Take one step and return its metrics."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """All that an exact resume needs beside the weights: tensors, numbers and strings, nested."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take `state` back."""
        ...


class LabelLearner(Learner, Protocol):
    """Learns from comparisons, which may come in while it learns."""

    def follow(self, comparisons: Sequence[Comparison]) -> None:
        """Learn from these from now on; those that were there before keep their place."""
        ...


@dataclass(frozen=True)
class Rate:
    """A mean over `count` independent questions, with its 95 % interval; of values in [0, 1] it is said as a share."""

    mean: float
    low: float
    high: float
    count: int

    def __str__(self) -> str:
        if self.low < 0 or self.high > 1:
            return f"{self.mean:.4g} (95 % interval {self.low:.4g} to {self.high:.4g}, n = {self.count})"
        return f"{100 * self.mean:.1f} % (95 % interval {100 * self.low:.1f} to {100 * self.high:.1f} %, n = {self.count})"


@dataclass(frozen=True)
class Answered:
    """The labels that training may use, by number, and the last one's number; and how many were left out for which flag."""

    comparisons: list[Comparison]
    watermark: int = 0
    labels: list[int] = field(default_factory=list[int])
    left_out: Counter[str] = field(default_factory=Counter[str])
