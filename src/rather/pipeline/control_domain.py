"""Runs about control: let the policy act, compare fragments, learn a reward, improve the policy, again."""

import math
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from rich.console import Console

from rather.config.schema import Config
from rather.control import build as control
from rather.control.clips import again
from rather.control.collect import RolloutSegments
from rather.control.environments import Env, environment
from rather.control.exploration import explored
from rather.control.models import ControlPolicy, ControlReward
from rather.control.off_policy import OffPolicy, check_installed
from rather.control.reward_head import RewardHead
from rather.control.rollout import ControlSampler, check_lengths, fragments, rewards
from rather.control.settings import PPOSettings, RewardSettings
from rather.control.squashed import squashed_policy
from rather.control.state_entropy import StateEntropy
from rather.control.studio import Painter
from rather.control.surf import Lead
from rather.core import Answered, Comparison, Learner, Policy, RewardSource, Space, Task, Trajectory
from rather.errors import Check, ConfigError, DataError, Finding
from rather.judges.concise import Reader
from rather.judges.known import CONCISE
from rather.learners import checkpoint
from rather.learners.common import check_pessimism
from rather.learners.head_learner import HeadLearner
from rather.learners.reward import Reward
from rather.learners.reward_settings import REEDSettings
from rather.learners.spread import spread
from rather.pipeline import build, control_doctor, query
from rather.pipeline.clips import Clips
from rather.pipeline.fragments import Fragments
from rather.pipeline.query import Chosen, Rounds
from rather.settings import OFF_POLICY, REWARDED
from rather.store import Store
from rather.verify.checker import Scorer
from rather.zeroth.spaces.control import ControlSpace

CONTROL_LEARNERS = ("ppo", *OFF_POLICY, "reward")


class ControlDomain:
    """A Gymnasium environment, policies that act in it, and reward nets."""

    parallel = False

    def __init__(self, config: Config, console: Console) -> None:
        if config.reward.start == "head":
            reason = "reads states of a language model, and the run is about control"
            raise ConfigError(f'reward.start = "head" {reason}; leave it at "random"')
        if (strategy := config.query.strategy) in ("double_thompson", "information_directed"):
            what = "looks for the best answer to one prompt, and the run is about control"
            raise ConfigError(f'query.strategy = "{strategy}" {what}; take another, such as "bald"')
        if config.control.unsupervised_steps and (learner := config.train.learner) not in ("ppo", *OFF_POLICY):
            raise ConfigError(f"control.unsupervised_steps is for ppo, sb3:SAC and sb3:TD3, and train.learner is {learner!r}; set it to 0")
        if (kind := config.judge.kind) in ("model", "language", "verifier"):
            raise ConfigError(f'judge.kind = "{kind}" reads words, and the run is about control; take "panel", "people" or "function"')
        if config.hack.gold:
            raise ConfigError("hack.gold is a utility of answers, and the run is about control; set control.gold, or leave both out")
        self.config, self.console = config, console

    def make(self, gold: bool = False, render_mode: str | None = None) -> Env:
        """The environment; `gold`: paying control.gold, if that is set, instead of its own reward."""
        c = self.config.control
        kwargs = c.kwargs | ({"render_mode": render_mode} if render_mode else {})
        return environment(c.env, c.horizon or None, c.gold if gold else "", c.takes_pictures, c.wrappers, kwargs)

    @cached_property
    def settings(self) -> PPOSettings:
        """The settings of policy, critic and PPO."""
        c = self.config
        known = c.train.model_dump() | c.ppo.model_dump() | c.control.model_dump()
        return PPOSettings.model_validate({key: value for key, value in known.items() if key in PPOSettings.model_fields})

    @cached_property
    def reward_settings(self) -> RewardSettings:
        """The settings of a reward model, which is not centered by default.

        Centering would say that two good fragments get no more reward than two bad ones: scores of fragments need no fixed level.
        """
        r, c = self.config.reward, self.config.control
        known = r.model_dump(include={"members", "temperatures", *REEDSettings.model_fields})
        if r.kind == "head":
            return RewardSettings(kind="head", **known)
        return RewardSettings(network=c.network, hidden=tuple(c.hidden), center=r.center or 0.0, **known)

    @cached_property
    def tokenizer(self) -> str:
        """There are no words."""
        return ""

    @cached_property
    def tasks(self) -> tuple[list[Task], list[Task]]:
        """Reset seeds to compare episodes on, and others to evaluate on."""
        c = self.config
        held_out = c.eval.prompts or 20
        return [self._task(i) for i in range(c.query.episodes)], [self._task(1_000_000 + i) for i in range(held_out)]

    def contents(self, sections: dict[str, dict[str, Any]]) -> dict[str, str]:
        """Settings of control name nothing that may change by itself."""
        del sections
        return {}

    # Who acts

    @cached_property
    def base_policy(self) -> ControlPolicy:
        """The base policy, with random weights."""
        return self._new_policy(f"{self.config.run.name}@start")

    def opponent(self, run: Rounds, number: int, progress: Callable[[int], None]) -> ControlSampler:
        """The base policy acts."""
        del run, number
        return self.sampler(self.base_policy, progress)

    def base_files(self) -> tuple[None, None]:
        """It comes from a seed, not from a file."""
        return None, None

    def reader(self) -> Reader:
        """There are no words."""
        raise ConfigError(f'the utility "{CONCISE}" reads words, and the run is about control; take another, such as "total_reward"')

    def restored(self, folder: Path, name: str) -> ControlPolicy:
        """A policy of its own with the weights in `folder`."""
        policy = self._new_policy(name)
        policy.restore(folder)
        return policy

    def perturbable(self, policy: Policy, number: int) -> tuple[ControlPolicy, Space]:
        """A copy of the policy, whose net's numbers are moved."""
        assert isinstance(policy, ControlPolicy)
        z, moved = self.config.zeroth, self._new_policy(f"{self.config.run.name}@{number}")
        moved.load_state_dict(policy.state_dict())
        moved.space = ControlSpace(moved, z.names, kind=z.kind, block=z.block)
        return moved, moved.space

    def sampler(self, policy: Policy, progress: Callable[[int], None]) -> ControlSampler:
        """Lets `policy` act; at temperature 0 by deterministic actions."""
        del progress
        return self._sampler(policy, gold=True, deterministic=not self.config.sample.temperature)

    def _sampler(self, policy: Policy, gold: bool, deterministic: bool) -> ControlSampler:
        assert isinstance(policy, ControlPolicy)
        return ControlSampler(policy, lambda: self.make(gold), self.config.control.envs, deterministic=deterministic)

    def episodes(self, policy: Policy, tasks: list[Task], gold: bool, deterministic: bool = False) -> list[Trajectory]:
        """One episode of each task."""
        return self._sampler(policy, gold, deterministic).sample(tasks, build.seed(self.config, "attempts", 0))

    # What is asked

    def questions(self, run: Rounds, number: int) -> Iterator[Chosen]:
        """Fragments of episodes become the round's questions; see `Fragments`."""
        c, q = self.config, self.config.query
        have = run.store.keys(c.run.name, "train")
        asked = [sum(key.startswith(f"round-{n}/") for key in have) for n in range(number + 1)]
        wanted = query.still(q.comparisons, c.loop.rounds, q.schedule, asked)
        if wanted <= 0:
            return
        if c.judge.kind == "people":
            self.make(render_mode="rgb_array").close()  # what cannot be drawn at all is refused now
        self._check_replay()
        yield Fragments(c, self.console, self._explored, self._task).chosen(run, number, asked[number], wanted)

    def _explored(self, policy: Policy, tasks: list[Task]) -> list[Trajectory]:
        """One episode of each task, a share of them, query.exploration, acted in by variants of the policy."""
        assert isinstance(policy, ControlPolicy)
        count = math.ceil(self.config.query.exploration * len(tasks))
        found = explored(policy, tasks[:count], partial(self.make, True), build.seed(self.config, "attempts", 0))
        return found + (self.episodes(policy, tasks[count:], gold=True) if count < len(tasks) else [])

    @cached_property
    def clips(self) -> Clips:
        """The process that draws what people see."""
        return Clips(self.config, self.console)

    def draw(self, store: Store) -> None:
        """Have the clips that people need drawn in the background, if any are missing."""
        self.clips.draw(store)

    def show(self, store: Store) -> None:
        """Have clips drawn, if people are to see them, and wait for the first one; see `Clips.show`."""
        self.clips.show(store)

    def check_shown(self) -> None:
        """A terminal shows no clips."""
        if self.config.judge.kind == "terminal":
            raise ConfigError('a terminal shows no clips; set judge.kind to "people" and open the page: rather serve')

    # What learns

    def learnable(self, comparison: Comparison) -> bool:
        """Fragments differ when they are asked about, and the environment says how long they are."""
        del comparison
        return True

    def prepared(self, comparisons: Sequence[Comparison]) -> list[Comparison]:
        """Comparisons as they are."""
        return [*comparisons]

    def learner(self, name: str, data: Answered, steps: int, store: Store) -> Reward | HeadLearner:
        """What trains a reward model or fits a reward head."""
        if name != "reward":
            raise ConfigError(f"a run about control learns by {', '.join(CONTROL_LEARNERS)}, not by {name!r}")
        c, model, comparisons = self.config, self._new_reward(), data.comparisons
        if c.judge.kind == "people":  # whose answers are still coming in
            comparisons = [q.comparison for q in store.questions(c.run.name, "train")]
        if comparisons:
            model.see([t for c in comparisons for side in (c.a, c.b) for t in side])
        if isinstance(model, RewardHead):
            live: dict[str, Any] = {"prequential": c.judge.kind == "people", "steps": steps or 1}
            return HeadLearner(model, data.comparisons, temperatures=c.reward.temperatures, seed=c.run.seed, **live)
        how = build.optimization(c, "reward", steps or build.steps(c, "reward", len(data.comparisons)))
        return control.reward_learner(model, data.comparisons, self.reward_settings, unlabeled=Lead(self.make), **how)

    def reward_model(self, saved: Path) -> ControlReward:
        """The reward model in a checkpoint."""
        model = self._new_reward()
        model.restore(saved / "model")
        return model

    def reward_fn(self, saved: Path, config: Config) -> ControlReward | None:
        """The reward model in the checkpoint `saved`, or nothing but the environment."""
        if config.train.reward == "environment":
            return None
        model = self.reward_model(saved)
        model.pessimism = check_pessimism(config.train.pessimism, 2 if isinstance(model, RewardHead) else model.members)
        return model

    def improver(
        self, number: int, policy: Policy, reward_fn: Scorer | RewardSource | None, steps: int, config: Config, before: Path | None = None
    ) -> Learner:
        """PPO on segments of every environment's time, or a learner of Stable-Baselines3 that has as many."""
        c = config
        self._check_ends()
        if isinstance(reward_fn, StateEntropy) and c.train.reward == "labels":
            self._check_asked()
        if c.control.restart or policy is self.base_policy:
            policy = self._new_policy(f"{c.run.name}@{number}")
        assert isinstance(policy, ControlPolicy)
        assert reward_fn is None or isinstance(reward_fn, ControlReward | StateEntropy)
        s, seed, env = self.settings, c.run.seed, self.make()
        if c.train.learner in OFF_POLICY:
            algorithm, chance = c.train.learner.removeprefix("sb3:"), seed + 7919 * number
            learner = OffPolicy(algorithm, policy, self.make, reward_fn, s.envs, s.rollout_segment, chance, c.control.gold, c.sb3)
            if before is not None and not c.control.restart:
                checkpoint.put_state(before, partial(learner.go_on_from, critics=number > 0))  # what was explored had other values
            return learner
        critic = control.critic(env, policy, s, seed, control.own_network(env, "critic", c.control.critic_network, seed))
        if before is not None and number and c.control.keep_critic and not c.control.restart:
            checkpoint.put_state(before, lambda state: critic.load_state_dict(state["critic"]))
        reference = self._new_policy("reference")  # where every round's policy comes from: how far it has gone is measured
        source = RolloutSegments(policy, self.make, s.envs, s.rollout_segment, seed + 7919 * number, c.control.gold)
        return control.ppo(policy, critic, source, s, seed, reward_fn, reference, steps, c.ppo.kl, c.ppo.kl_target)

    # How it did

    def measured(self, policy: Callable[[], Policy]) -> tuple[dict[str, float], str]:
        """Let the trained policy and the base policy act deterministically on held-out seeds."""
        values: dict[str, float] = {}
        said, measure = list[str](), self.config.control.gold
        for who, acting in (("policy", policy()), ("base", self.base_policy)):
            for what, gold in (("return", False), *([("gold", True)] if measure else [])):
                found = self.episodes(acting, self.tasks[1], gold, deterministic=True)
                values |= spread(f"{what}_{who}", [float(rewards(t).sum()) for t in found], self.tasks[1])
            named = [("return", "mean return")] + [("gold", f"mean {measure}")] * bool(measure)
            means = ((name, values[f"{w}_{who}"], values.get(f"{w}_{who}_stderr")) for w, name in named)
            said.append(", ".join(f"{name} {mean:.4g}" + ("" if e is None else f" (+-{1.96 * e:.2g})") for name, mean, e in means))
        return values, f"{said[0]} on {len(self.tasks[1])} held-out seeds; before: {said[1]}"

    def twin(self) -> Config | None:
        """The same run for as many steps in one round, paid by the environment's own reward, where it is paid by labels."""
        c = self.config
        if c.train.reward != "labels":
            return None
        steps = c.control.unsupervised_steps + c.train.steps * c.loop.rounds
        changed = {
            "run": c.run.model_copy(update={"name": f"{c.run.name}-written"}), "loop": c.loop.model_copy(update={"rounds": 1}),
            "train": c.train.model_copy(update={"reward": "environment", "steps": steps}),
            "control": c.control.model_copy(update={"unsupervised_steps": 0}),
            "hack": c.hack.model_copy(update={"then": "nothing"}),
        }  # fmt: skip
        return c.model_copy(update=changed)

    def episode(self, policy: Policy) -> tuple[Trajectory, bytes, str]:
        """A deterministic episode at a held-out seed, drawn in a process that may die."""
        (found,) = self.episodes(policy, self.tasks[1][:1], gold=False, deterministic=True)
        painter = Painter(self.clips.studio(str(self.config.store)))
        try:
            return found, painter.animate(found), ""
        except DataError as e:
            return found, b"", str(e)
        finally:
            painter.close()

    # What may be wrong

    def machine(self) -> list[Finding]:
        """Any machine will do."""
        return []

    def checks(self, store: Store) -> list[Check]:
        """The learner, the environment, the clips and the questions."""
        looks = control_doctor.Looks(self.config, partial(self.make, gold=True), partial(self.make, render_mode="rgb_array"), store)
        return [self._learner_found, *looks.checks]

    def _learner_found(self) -> list[Finding]:
        """Nothing, where a policy can be trained; else the error says why not."""
        self.check_learner()
        return []

    def check_learner(self) -> None:
        """See whether a policy can be trained; zeroth order sees for itself, before it asks."""
        c, train = self.config, self.config.train
        if train.learner not in (*CONTROL_LEARNERS, "zeroth"):
            raise ConfigError(f"a run about control learns by {', '.join(CONTROL_LEARNERS)}, not by {train.learner!r}")
        if c.control.gold and train.learner != "zeroth":
            self.make(gold=True).reset(seed=0)  # which says whether it is there
        if train.learner not in REWARDED:
            return
        if train.reward == "verify":
            raise ConfigError('control has no verifiers; set train.reward to "labels" or "environment"')
        if train.reward == "model":
            build.check_reward_folder(c, 'train.reward = "model"')
        if not train.steps:
            raise ConfigError("train.steps is 0; in control it says how many segments the policy learns from in a round, so set it")
        if train.learner in OFF_POLICY:
            check_installed()
        control.own_network(self.make(), "critic", c.control.critic_network, c.run.seed)

    def _check_replay(self) -> None:
        """Make sure that episodes can be played again where reward nets learn from what fragments were cut from; see `Lead`.

        Raises:
            DataError: an episode is another one when it is played again.
        """
        if not (self.config.reward.pseudo_labels or self.config.reward.dynamics):
            return
        (found,) = self.episodes(self.base_policy, self.tasks[0][:1], gold=False)
        try:
            for _ in again(found, self.make()):
                pass
        except DataError as e:
            raise DataError(f"{e}; reward.pseudo_labels and reward.dynamics have episodes played again: set both to 0") from None

    def _check_asked(self) -> None:
        """Make sure that questions can be asked about episodes, before the policy explores.

        Raises:
            ConfigError: nobody would see anything.
            DataError: episodes are not of one length, too short for a fragment, or cannot be drawn or played again.
        """
        c, q = self.config, self.config.query
        self.check_shown()
        self._check_replay()
        found = self.episodes(self.base_policy, self.tasks[0][:4], gold=False)
        if not c.control.allow_uneven:
            check_lengths(found)
        for length in q.fragment if isinstance(q.fragment, list) else [q.fragment]:
            fragments(found, length or 1, 1, c.run.seed)
        if c.judge.kind == "people":
            painter = Painter(self.clips.studio(str(c.store)))
            try:
                painter.animate(found[0])
            finally:
                painter.close()

    def _check_ends(self) -> None:
        """Let the untrained policy act in an episode to its end, where nothing limits one.

        Raises:
            DataError: it does not end.
        """
        if self.make().get_wrapper_attr("longest") is not None:
            self.episodes(self.base_policy, self.tasks[1][:1], gold=False)

    def _new_policy(self, name: str) -> ControlPolicy:
        env, seed = self.make(), self.config.run.seed
        if self.config.train.learner in OFF_POLICY:
            policy = squashed_policy(env, self.config.control.hidden, seed)
        else:
            policy = control.policy(env, self.settings, seed, control.own_network(env, "policy", self.config.control.policy_network, seed))
        policy.name = name
        return policy

    def _new_reward(self) -> ControlReward:
        return control.reward_model(self.make(), self.reward_settings, self.config.run.seed)

    def _task(self, number: int) -> Task:
        return Task(self.config.control.env, str(self.config.run.seed * 10_000_000 + number))
