"""Runs about text: prompts, language models, answers to compare."""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from functools import cached_property, partial
from itertools import zip_longest
from pathlib import Path
from typing import Any

from rich.console import Console
from torch import nn

from rather.config.schema import Config
from rather.core import Answered, Comparison, LabelLearner, Policy, RewardSource, Sampler, Space, Task, Trajectory, row_seed, task_facts
from rather.errors import Check, ConfigError, Finding
from rather.judges.best_of import BestOf
from rather.judges.known import utility
from rather.judges.model import ModelJudge
from rather.learners import checkpoint
from rather.learners.common import check_pessimism
from rather.learners.dpo import DPO
from rather.learners.grpo import GRPO
from rather.learners.head import Array
from rather.learners.head_learner import HeadLearner
from rather.learners.kto import KTO
from rather.learners.ppo import PPO
from rather.learners.progress import progress
from rather.learners.reward import Reward
from rather.learners.reward_settings import RewardSettings
from rather.learners.settings import Sampling
from rather.learners.sft import SFT, examples
from rather.pipeline import build, evaluation, query, text_checks, text_doctor
from rather.pipeline.build import AnyPolicy
from rather.pipeline.query import Chosen, Rounds
from rather.pipeline.strategies import best, moments, wishes
from rather.store import Store
from rather.store.rows import LEARNED
from rather.text import load
from rather.text.critic import TextCritic
from rather.text.head.model import RewardHead
from rather.text.language_model import TextSampler
from rather.text.policy import TextPolicy
from rather.text.prompts.fit import Fit
from rather.text.reward_model import RewardModel as TextReward
from rather.verify.checker import Checker, Scorer, Verified

CHUNK = 32
"""Prompts that are answered between two commits to the store."""
TOKENIZER = ("tokenizer*", "chat_template*", "*tokens*.json", "vocab*", "merges.txt", "*.model", "*.tiktoken")
"""The files of a model folder that say how prompts become text and tokens."""


def two_of_each(
    strategy: str, before: ModelJudge, answers: Sequence[Sequence[Trajectory]], seed: int, at_random: Sequence[bool]
) -> tuple[list[tuple[Trajectory, Trajectory]], list[float]]:
    """The two of several answers to each prompt that `strategy` asks about, by what the reward model believes, and how much it wants them.

    Where a question is `at_random` they are the two that were drawn first. Of equal answers one is a candidate, since a comparison of the
    two would teach nothing.
    """
    distinct = [list({t.text: t for t in group}.values()) for group in answers]
    groups = [some if len(some) > 1 else group for some, group in zip(distinct, answers, strict=True)]
    mean, covariance = believed(before, [t for group in groups for t in group])
    chosen, scores, start = list[tuple[Trajectory, Trajectory]](), list[float](), 0
    for group, by_chance in zip(groups, at_random, strict=True):
        own = slice(start, start := start + len(group))
        wished = wishes(strategy, mean[own], covariance[own, own], row_seed(seed, group[0].task, len(group)))
        i, j = (0, 1) if by_chance else best(wished)
        chosen.append((group[i], group[j]))
        scores.append(float(wished[i, j]))
    return chosen, scores


def believed(before: ModelJudge, trajectories: Sequence[Trajectory]) -> tuple[Array, Array]:
    """Means (N,) and covariance (N, N) of the scores of trajectories: a reward head's posterior, or the moments of an ensemble."""
    if isinstance(before.model, RewardHead):
        return before.model.believed(trajectories)
    return moments(before.each(trajectories).double().numpy(force=True))


class TextDomain:
    """Language models that answer prompts."""

    parallel = True

    def __init__(self, config: Config, console: Console) -> None:
        text_checks.check_settings(config)
        self.config, self.console = build.dated(config), console

    @cached_property
    def tasks(self) -> tuple[list[Task], list[Task]]:
        """Training and held-out prompts, which fit the model."""
        return self.fit.tasks(*build.tasks(self.config))

    @cached_property
    def fit(self) -> Fit:
        """What measures prompts and answers before anything is done with them."""
        tell = partial(self.console.print, markup=False, highlight=False)
        return build.fit(self.config, self.base_policy.tokens, self.base_policy.context, tell)

    @cached_property
    def tokenizer(self) -> str:
        """Digits that stand for the tokenizer and the chat template, as their files or the GGUF file were when this was first asked."""
        path, _ = load.located(self.config.model.path, self.config.model.adapter, weights=False)
        if path.is_file():
            return evaluation.fingerprint(path)
        found = hashlib.sha256()
        for file in sorted({file for name in TOKENIZER for file in path.glob(name) if file.is_file()}):
            found.update(f"{file.name}\0{file.stat().st_size}\0".encode() + file.read_bytes())
        return found.hexdigest()

    def contents(self, sections: dict[str, dict[str, Any]]) -> dict[str, str]:
        """Digests of the tokenizer and of the prompts."""
        found = {"model.path": self.tokenizer}
        if "data" in sections:
            asked = json.dumps([task_facts(task) for task in build.tasks(self.config)[0]])  # without the model, which measures them
            found["data.prompts"] = hashlib.sha256(asked.encode()).hexdigest()
        return found

    # Who acts

    @cached_property
    def base_policy(self) -> AnyPolicy:
        """The model that starts the run."""
        with self.console.status(f"loading {self.config.model.path}"):
            return build.base_policy(self.config)

    def opponent(self, run: Rounds, number: int, progress: Callable[[int], None]) -> TextSampler:
        """The base model answers, or with eval.best_of it gives the best of several answers by the reward of round `number`."""
        if (n := self.config.eval.best_of) == 1:
            return self.sampler(self.base_policy, progress)
        if self.config.train.reward == "model":
            best = BestOf(self.base_policy, self.reward_model(Path(self.config.judge.checkpoint)), n)
            return build.sampler(self.config, best, progress)
        before = self._reward_before(run, number + 1)
        if before is None:
            why = 'chooses by a reward, and there is none; set reward.kind = "head", which learns it from labels'
            raise ConfigError(f"eval.best_of = {n} {why}")
        return build.sampler(self.config, BestOf(self.base_policy, before.model, n), progress)

    def base_files(self) -> tuple[Path | None, Path | None]:
        """Where the model is, and its adapter."""
        return load.located(self.config.model.path, self.config.model.adapter)

    def reader(self) -> AnyPolicy:
        """The base model."""
        return self.base_policy

    def restored(self, folder: Path, name: str) -> AnyPolicy:
        """The trained policy, of which there is one: it becomes what `folder` holds."""
        policy, _ = self.adapted
        policy.restore(folder)
        policy.name = name
        return policy

    def perturbable(self, policy: Policy, number: int) -> tuple[TextPolicy, Space]:
        """The trained policy, where the round before has left it."""
        del policy, number
        found = self.adapted[0]
        assert isinstance(found, TextPolicy)
        return found, found.space

    @cached_property
    def adapted(self) -> tuple[AnyPolicy, list[nn.Parameter]]:
        """What is trained: the base model with a new adapter or a space, or another copy of it; and its parameters."""
        if self.config.train.learner == "zeroth":
            with self.console.status("finding the numbers that are moved"):
                return build.perturbable(self.config, self.base_policy, self.tasks[0]), []
        if self.config.model.train == "full":  # the base must stay what it is
            return build.trained_policy(self.config, build.base_policy(self.config))
        return build.trained_policy(self.config, self.base_policy)

    def sampler(self, policy: Policy, progress: Callable[[int], None]) -> TextSampler:
        """Draws answers."""
        assert isinstance(policy, AnyPolicy)
        return build.sampler(self.config, policy, progress)

    # What is asked

    def questions(self, run: Rounds, number: int) -> Iterator[Chosen]:
        """Two answers of the newest policy to a training prompt become a question, or one; query.strategy chooses two, where it can.

        The prompts are all of them, or with query.questions as many as are the round's share, in turn. Where an alarm has ended the round
        before and is to be mended, half of the answers are those of the policy that was hacked; verifiers, about whom nothing was asked
        before, are mended by answers of the base model, too.
        """
        have = run.store.keys(self.config.run.name, LEARNED)
        missing, wanted = self._missing(have, number)
        if not missing:
            return
        verified = build.corrected(self.config)
        if not verified:
            text_checks.check_sampled(self.config)
        run.labels(
            number, "verify" if verified else self.config.train.learner
        )  # what has been imported should fit, too, before anybody is asked more
        policy, q, hacked = run.policy(number), self.config.query, run.hacked(number - 1)
        before = None if q.strategy == "random" or q.answers == 1 or verified else self._reward_before(run, number)
        count, own = min(2, q.answers) if before is None else q.answers, build.seed(self.config, "query", number)
        with progress(self.console, "sampling answers", count * len(missing)) as advance:
            for start in range(0, len(missing), CHUNK):
                some = missing[start : start + CHUNK]
                if hacked is None:
                    answers = self._answers(policy, some, number, count, advance)
                elif verified:
                    answers = self._answers_of_three(run, hacked, some, number, advance)
                else:
                    answers = self._answers_of_both(run, hacked, some, number, count, advance)
                keys = [f"round-{number}/{group[0].task.key}" for group in answers]
                by_chance = [count < 3 or run.stays_random(key) for key in keys]
                chosen, scores = (answers, None) if before is None else two_of_each(q.strategy, before, answers, own, by_chance)
                asked = [run.question(key, *((t,) for t in group)) for key, group in zip(keys, chosen, strict=True)]
                yield Chosen(asked, ["random" if x else q.strategy for x in by_chance], scores, wanted)

    def _answers(
        self, policy: Policy, tasks: Sequence[Task], number: int, count: int, advance: Callable[[int], None], of: str = "sample"
    ) -> list[list[Trajectory]]:
        """So many answers of `policy` to each prompt, drawn by the seed `of` the round."""
        return build.answers(self.config, self.sampler(policy, advance), tasks, build.seed(self.config, of, number), count)

    def _answers_of_both(
        self, run: Rounds, hacked: Path, tasks: Sequence[Task], number: int, count: int, advance: Callable[[int], None]
    ) -> list[list[Trajectory]]:
        """So many answers to each prompt, in turn of the newest policy and of the one in the checkpoint `hacked`."""
        newest = self._answers(run.policy(number), tasks, number, count - count // 2, advance)
        others = self._answers(self._hacked(hacked, number), tasks, number, count // 2, advance, "sample-hacked")
        run.policy(number)  # of the trained policy there is one
        both = zip(newest, others, strict=True)
        return [[t for pair in zip_longest(a, b) for t in pair if t is not None] for a, b in both]

    def _answers_of_three(
        self, run: Rounds, hacked: Path, tasks: Sequence[Task], number: int, advance: Callable[[int], None]
    ) -> list[list[Trajectory]]:
        """Two answers to each prompt, of two of the newest policy, the one in the checkpoint `hacked`, and the base policy, in turn."""
        place = {t.key: i for i, t in enumerate(self.tasks[0])}
        found: list[list[Trajectory]] = [[] for _ in tasks]
        policies = {
            "sample": lambda: run.policy(number),
            "sample-hacked": lambda: self._hacked(hacked, number),
            "sample-base": lambda: self.base_policy,
        }
        for left_out, (of, policy) in enumerate(policies.items()):
            rows = [i for i, t in enumerate(tasks) if place[t.key] % len(policies) != left_out]
            answers = self._answers(policy(), [tasks[i] for i in rows], number, 1, advance, of)
            for i, own in zip(rows, answers, strict=True):
                found[i] += own
        run.policy(number)  # of the trained policy there is one
        return found

    def _hacked(self, hacked: Path, number: int) -> Policy:
        """The policy in the checkpoint `hacked` of the round before."""
        return self.restored(hacked / "model", f"{self.config.run.name}@{number - 1}-{checkpoint.read(hacked)['step']}")

    def _missing(self, have: Collection[str], number: int) -> tuple[list[Task], int]:
        """The prompts that round `number` has still to ask about, and how many it asks about in all.

        Raises:
            ConfigError: they are more than there are prompts.
        """
        q, tasks, rounds = self.config.query, self.tasks[0], self.config.loop.rounds
        left = [t for t in tasks if f"round-{number}/{t.key}" not in have]
        if not q.questions:
            return left, len(tasks)
        asked = [sum(key.startswith(f"round-{n}/") for key in have) for n in range(number + 1)]
        if build.corrected(self.config):  # in rounds after an alarm alone, which nobody knows beforehand
            share = query.shares(q.questions - sum(asked[:number]), rounds - number, q.schedule)[0]
            found = left[: max(0, share - asked[number])]
            return found, asked[number] + len(found)
        if (most := max(query.shares(q.questions, rounds, q.schedule))) > len(tasks):
            each = f"query.questions = {q.questions} are {most} in one of {rounds} rounds, but there are {len(tasks)} training prompts"
            raise ConfigError(f"{each}, each asked about once a round; ask fewer, or in more rounds")
        often = Counter(key.partition("/")[2] for key in have if key.startswith(tuple(f"round-{n}/" for n in range(number))))
        found = sorted(left, key=lambda t: often[t.key])[: max(0, query.still(q.questions, rounds, q.schedule, asked))]
        return found, asked[number] + len(found)

    def _reward_before(self, run: Rounds, number: int) -> ModelJudge | None:
        """The reward model of the round before, or a reward head of the labels that are there; None if there is neither."""
        if (before := run.reward_before(number)) is not None or self.config.reward.kind != "head":
            return before
        comparisons = run.labels(number, "reward").comparisons
        if not comparisons:
            return None
        head = build.reward_head(self.config, self.base_policy)
        head.learn(comparisons, self.config.reward.temperatures)
        return ModelJudge("reward", head, self.config.train.micro_batch_tokens)

    def draw(self, store: Store) -> None:
        """Words need no drawing."""

    def show(self, store: Store) -> None:
        """Words can be seen at once."""

    def check_shown(self) -> None:
        """Words can be seen anywhere."""

    # What learns

    def check_learner(self) -> None:
        """The loss, the batch, the layers of a reward head, and who rewards; see `text_checks.check_learner`."""
        text_checks.check_learner(self.config, lambda: self.base_policy)

    def learnable(self, comparison: Comparison) -> bool:
        """Whether the answers to a question differ and fit the model."""
        return self.fit.wanted(comparison)

    def prepared(self, comparisons: Sequence[Comparison]) -> list[Comparison]:
        """Comparisons, their prompts cut where they have to be."""
        return self.fit.ready(comparisons)

    def learner(self, name: str, data: Answered, steps: int, store: Store) -> LabelLearner:
        """DPO, KTO, SFT, or what trains a reward model or fits a reward head."""
        del store
        c, comparisons = self.config, data.comparisons
        how = build.optimization(c, name, steps or build.steps(c, name, len(comparisons)))
        match name:
            case "dpo":
                trained, parameters = self.adapted
                reference = self.base_policy if c.dpo.has_reference else None
                with progress(self.console, "scoring with the reference", len(comparisons) if reference else 0) as advance:
                    return DPO(trained, comparisons, reference, parameters, progress=advance, **how, **c.dpo.model_dump())
            case "kto":
                trained, parameters = self.adapted
                return KTO(trained, comparisons, self.base_policy, parameters, **how, **c.kto.model_dump())
            case "reward" if c.reward.kind == "head":
                head = build.reward_head(c, self.base_policy)
                live = c.judge.kind in ("people", "terminal")
                given: dict[str, Any] = {"temperatures": c.reward.temperatures, "prequential": live, "steps": how["steps"]}
                return HeadLearner(head, comparisons, **given, seed=c.run.seed)
            case "reward":
                base = self.base_policy if c.model.train == "lora" else build.base_policy(c)
                trained, parameters = build.trained_policy(c, base, "reward")
                model = TextReward(trained, c.reward.members, c.run.seed, parameters=parameters)
                if c.reward.start == "head":
                    model.start_from_head(comparisons, temperatures=c.reward.temperatures, cache=build.features(c))
                own = {key: getattr(c.reward, key) for key in RewardSettings.model_fields}
                return Reward(model, comparisons, model.trained, **how, **own)
            case "sft":
                trained, parameters = self.adapted
                return SFT(trained, examples(comparisons), parameters, **how)
            case _:
                raise ConfigError(f"{name} does not learn from labels alone")

    def reward_model(self, saved: Path) -> TextReward | RewardHead:
        """The reward model in a checkpoint, on the base model where it was trained on that."""
        return build.saved_reward(self.config, saved, self.base_policy)

    def reward_fn(self, saved: Path, config: Config) -> Checker | TextReward | RewardHead:
        """The verifiers, or the reward model in the checkpoint `saved`."""
        if build.verified(self.config):
            return build.checker(self.config)
        model = self.reward_model(saved)
        model.pessimism = check_pessimism(config.train.pessimism, 2 if isinstance(model, RewardHead) else model.members)
        return model

    def improver(
        self, number: int, policy: Policy, reward_fn: Scorer | RewardSource | None, steps: int, config: Config, before: Path | None = None
    ) -> PPO[AnyPolicy] | GRPO[AnyPolicy]:
        """PPO or GRPO on the trained policy, where the round before has left it; it samples in every step."""
        del number, policy, before
        c, base, (trained, parameters) = config, self.base_policy, self.adapted
        acting: Sampler = self.sampler(trained, lambda n: None)
        model = reward_fn if isinstance(reward_fn, RewardSource) else None
        if isinstance(reward_fn, Scorer):
            acting = Verified(acting, reward_fn, c.verify.patience)
        given: dict[str, Any] = {"sampler": acting, "gold": utility(c.hack.gold) if c.hack.gold else None}
        given |= build.optimization(c, c.train.learner, steps) | {key: getattr(c.sample, key) for key in Sampling.model_fields}
        if c.train.learner == "grpo":
            return GRPO(trained, self.tasks[0], model, base, parameters, **given, **c.grpo.model_dump())
        critic = TextCritic(base.width, base.device, c.run.seed + 1)
        return PPO(trained, self.tasks[0], model, base, parameters, critic=critic, **given, **c.ppo.model_dump())

    # How it did

    def measured(self, policy: Callable[[], Policy]) -> None:
        """Judges compare answers."""

    def twin(self) -> None:
        """There is no hand-written reward."""

    def episode(self, policy: Policy) -> None:
        """Answers do not move."""

    # What may be wrong

    def machine(self) -> list[Finding]:
        """What this machine offers to language models."""
        return text_doctor.machine()

    def checks(self, store: Store) -> list[Check]:
        """The model, its tokenizer, the prompts and the answers."""
        return text_doctor.Looks(self.config, store).checks
