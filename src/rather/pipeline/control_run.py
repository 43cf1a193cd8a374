"""A run about control, phase by phase: let the policy act, compare fragments, learn a reward, improve the policy, again."""

import itertools
import math
import subprocess
import time
from functools import cached_property
from pathlib import Path
from typing import Any

from rather.control import studio
from rather.control.collect import Stretches
from rather.control.environments import environment, inputs
from rather.control.gradients import ByHand
from rather.control.models import ControlCritic, ControlPolicy, ControlReward
from rather.control.rollout import ControlSampler, check_lengths, fragments, identity
from rather.control.studio import Studio
from rather.core import Answered, Task, Trajectory, spread
from rather.errors import ConfigError, DataError, TrainingError
from rather.learners import checkpoint
from rather.learners.ppo import PPO
from rather.learners.reward import Reward
from rather.pipeline import build, query, resume
from rather.pipeline.lock import exclusive
from rather.pipeline.nudge import Acting
from rather.pipeline.run import Run
from rather.store.clips import missing, progress, retry
from rather.zeroth.spaces.control import ControlSpace

WAVES = 4
"""How often a policy acts for the fragments of a round, where those that there are do not suffice."""


class ControlRun(Run):
    """One run about control: its settings, its folder and its store."""

    drawing: subprocess.Popen[bytes] | None = None
    fit: Any = None  # the environment says how long an attempt is

    def make(self, meant: bool = False, pictures: bool = False) -> Any:
        """The environment; `meant`: paying control.gold, if that is set, instead of its own reward."""
        c = self.config.control
        how: dict[str, Any] = {"render_mode": "rgb_array"} if pictures else {}
        return environment(c.env, c.horizon or None, c.gold if meant else "", c.pixels, **how)

    @cached_property
    def tasks(self) -> tuple[list[Task], list[Task]]:
        """Reset seeds to compare attempts on, and others to evaluate on."""
        c = self.config
        held_out = c.eval.prompts or 20
        return [self._task(i) for i in range(c.query.attempts)], [self._task(1_000_000 + i) for i in range(held_out)]

    @cached_property
    def start(self) -> ControlPolicy:
        """The policy that starts the run, at random."""
        return self._new_policy(f"{self.config.run.name}@start")

    def policy(self, number: int) -> ControlPolicy:
        """The policy at the beginning of round `number`."""
        if number == 0:
            return self.start
        last = checkpoint.every(self.checkpoints(number - 1))
        if not last:
            raise TrainingError(f"round {number - 1} has no checkpoint in {self.checkpoints(number - 1)}; run `rather train` first")
        policy = self._new_policy(f"{self.config.run.name}@{number - 1}-{checkpoint.check(last[-1])['step']}")
        policy.restore(last[-1] / "model")
        return policy

    def attempts(self, policy: ControlPolicy, tasks: list[Task], meant: bool, best: bool = False) -> list[Trajectory]:
        """One attempt at each task."""
        sampler = ControlSampler(policy, lambda: self.make(meant), self.config.control.envs, best=best)
        return sampler.sample(tasks, self.seed("attempts", 0))

    # Phases

    @exclusive
    def sample(self, number: int = 0) -> int:
        """Fragments of attempts become the round's questions, chosen by query.strategy; returns how many are new.

        The attempts are the newest policy's and, as many, those of the policies before it: a reward that was learnt on good attempts
        alone does not know that bad ones are bad.
        """
        c, q = self.config, self.config.query
        self.ready(number)
        shares, have = query.shares(q.comparisons, c.loop.rounds, q.schedule), self.store.keys(c.run.name, "train")
        asked = [sum(key.startswith(f"round-{n}/") for key in have) for n in range(number + 1)]
        wanted = shares[number] - asked[number]
        if number == c.loop.rounds - 1:  # which asks what was added after the rounds before it
            wanted = q.comparisons - sum(asked)
        resume.note_sampling(self, number, asked[number])
        if wanted <= 0:
            self._show()
            return 0
        if c.judge.kind == "people":
            self.make(pictures=True).close()  # what cannot be drawn at all is refused now
        newest, first, what = number, 0, "query"
        if asked[number]:  # the round goes on: its newest policy acts, at seeds of its own
            newest, first, what = (
                number + self.trained(number),
                100_000 + asked[number] * c.loop.rounds * q.attempts,
                f"query-{asked[number]}",
            )
        seed = self.seed(what, number) % 2**32
        pieces = self._fragments(newest, first, wanted, seed)
        before = self._reward_before(newest)
        scores = None if before is None else before.each(pieces)
        picks = query.choose(q.strategy, scores, len(pieces), wanted, q.candidates, q.random_share, seed)
        if len(picks) < wanted:
            remedy = "shorten query.fragment or ask fewer questions; an environment that always begins alike brings little to compare"
            self.console.print(f"Only {len(picks)} of {wanted} questions are asked, since no more fragments differ; {remedy}.")
        questions = [self.question(f"round-{number}/{asked[number] + i}", (pieces[p.a],), (pieces[p.b],)) for i, p in enumerate(picks)]
        self.store.ask(c.run.name, questions, why=[p.why for p in picks], scores=[p.score for p in picks])
        resume.keep_sampling(self, number, len(picks))
        self._show()
        return len(picks)

    def _fragments(self, newest: int, first: int, questions: int, seed: int) -> list[Trajectory]:
        """Distinct fragments, none of which was asked about before, for so many questions: two each, and more to choose from.

        They are of the policies up to the `newest`, at seeds from the `first` on. Where the episodes hold fewer, the newest policy acts
        in more of them, up to a point.
        """
        q, name = self.config.query, self.config.run.name
        old = [t for question in self.store.questions(name, "train") for side in question.comparison.sides for t in side]
        known, used = {identity(t) for t in old}, {t.task.key for t in old}
        found = list[Trajectory]()
        with self.console.status("letting the policy act"):
            for before in range(newest + 1):
                tasks = [self._task(first + (newest * (newest + 1) // 2 + before) * q.attempts + j) for j in range(q.attempts)]
                share = q.attempts if before == newest else -(-q.attempts // newest)
                found += self.attempts(self.policy(before), tasks[:share], meant=True)
        length = q.fragment or min(len(t.rewards) for t in found)  # type: ignore[arg-type]
        fresh = (t for i in itertools.count() if (t := self._task(2_000_000 + 50_000 * newest + i)).key not in used)
        pieces = list[Trajectory]()
        for wave in range(WAVES + 1):
            if not self.config.control.uneven:
                check_lengths(found)
            before, pieces = len(pieces), fragments(found, length, 2 * questions * q.candidates, seed, known)
            lacking = 2 * questions - len(pieces)
            if lacking <= 0 or wave == WAVES or (wave and len(pieces) == before):
                break
            each = len(pieces) / len(found) or 1.0
            more = max(min(math.ceil(lacking / each), 2 * lacking), q.attempts)
            said = f"{len(found)} episodes hold {len(pieces)} new distinct fragments of {length} steps, and {questions} questions need"
            self.console.print(f"{said} {2 * questions}: the policy acts in {more} episodes more.", highlight=False)
            with self.console.status("letting the policy act"):
                found += self.attempts(self.policy(newest), list(itertools.islice(fresh, more)), meant=True)
        return pieces

    @property
    def studio(self) -> Studio:
        """What draws clips of this run."""
        c = self.config
        return Studio(self.store.where, c.run.name, c.control.env, c.control.horizon, c.control.pixels)

    def draw(self) -> None:
        """Have the clips that people need drawn in the background, if any are missing."""
        name = self.config.run.name
        if self.drawing is None or self.drawing.poll() is not None:
            retry(self.store, name)
            if missing(self.store, name):
                self.drawing = studio.begin(self.studio)

    def _show(self) -> None:
        """Have clips drawn, if people are to see them, and wait for the first one.

        Raises:
            DataError: none can be drawn.
        """
        if self.config.judge.kind != "people":
            return
        self.draw()
        begun = progress(self.store, self.config.run.name)
        with self.console.status("drawing the first clip"):
            while self.drawing is not None and self.drawing.poll() is None:
                now = progress(self.store, self.config.run.name)
                if now.drawn > begun.drawn:
                    break
                time.sleep(0.1)
        now = progress(self.store, self.config.run.name)
        if now.failed and not now.drawn:
            raise DataError(f"people would see nothing, so that no question is given out: {now.problem}")
        if now.failed:
            self.console.print(f"{now}.", markup=False)
        elif self.drawing is not None and self.drawing.poll():
            raise DataError(f"the process that draws clips ended with exit code {self.drawing.poll()} before the first one was drawn")

    def label(self, purpose: str = "train") -> int:
        """Have every open question answered; returns how many answers are new."""
        if self.config.judge.kind == "terminal":
            raise ConfigError('a terminal shows no clips; set judge.kind to "people" and open the page: rather serve')
        return super().label(purpose)

    @exclusive
    def evaluate(self, number: int = 0) -> str | None:
        """Let the trained policy and the start take their likeliest actions on held-out seeds; returns how they did, in words."""
        last = checkpoint.every(self.checkpoints(number))
        if not last:
            raise TrainingError(f"there is no trained policy in {self.checkpoints(number)} yet; run `rather train` first")
        values: dict[str, float] = {}
        said = []
        for who, policy in (("policy", self.policy(number + 1)), ("start", self.start)):
            for what, meant in (("return", False), *([("gold", True)] if self.config.control.gold else [])):
                found = self.attempts(policy, self.tasks[1], meant, best=True)
                values |= spread(f"{what}_{who}", [float(t.rewards.sum()) for t in found])  # type: ignore[union-attr]
            named = [("return", "mean return")] + [("gold", f"mean {self.config.control.gold}")] * bool(self.config.control.gold)
            parts = [f"{name} {values[f'{w}_{who}']:.4g} (+-{1.96 * values[f'{w}_{who}_error']:.2g})" for w, name in named]
            said.append(", ".join(parts))
        step, digest = checkpoint.check(last[-1])["step"], checkpoint.digest(last[-1])
        self.metrics.replace(f"eval-{number}", step, values | {"prompts": len(self.tasks[1])}, checkpoint=digest)
        return f"{said[0]} on {len(self.tasks[1])} held-out seeds; before: {said[1]}"

    def drive(self, number: int = 0) -> Trajectory:
        """A deterministic episode of the trained policy at a held-out seed."""
        (found,) = self.attempts(self.policy(number + 1), self.tasks[1][:1], meant=False, best=True)
        return found

    # What they are made of

    def acting(self, number: int) -> Acting:
        """Who acts in zeroth-order optimisation: a copy of the policy, whose net's numbers are moved."""
        z, policy = self.config.zeroth, self._new_policy(f"{self.config.run.name}@{number}")
        policy.load_state_dict(self.policy(number).state_dict())
        policy.space = ControlSpace(policy, z.names, **({} if z.kind == "gaussian" else {"kind": z.kind, "block": z.block}))
        return Acting(policy, self.start)

    def sampler(self, policy: ControlPolicy, advance: Any) -> ControlSampler:
        """Lets `policy` act; at temperature 0 by its likeliest actions."""
        del advance
        return ControlSampler(policy, lambda: self.make(meant=True), self.config.control.envs, best=not self.config.sample.temperature)

    def learner(self, number: int, name: str, data: Answered, steps: int) -> Reward:
        del number
        if name != "reward":
            raise ConfigError(f'a run about control learns by "ppo" or "reward", not by {name!r}')
        model = self._new_reward()
        how = build.optimization(self.config, "reward", steps or build.steps(self.config, "reward", len(data.comparisons)))
        comparisons = data.comparisons
        if self.config.judge.kind == "people":  # whose answers are still coming in
            comparisons = [q.comparison for q in self.store.questions(self.config.run.name, "train")]
        if comparisons:
            model.see([t for c in comparisons for side in (c.a, c.b) for t in side])
        # Centring would say that two good fragments are worth no more than two bad ones: scores of fragments need no fixed level.
        center, temperatures = self.config.reward.center or 0.0, self.config.reward.temperatures
        return Reward(model, data.comparisons, list(model.layers), center=center, temperatures=temperatures, **how)

    def _payer(self, saved: Path) -> ControlReward | None:
        match self.config.train.reward:
            case "environment":
                return None
            case "verify":
                raise ConfigError('control has no verifiers; set train.reward to "labels" or "environment"')
        return self._saved_reward(saved)

    def _saved_reward(self, saved: Path) -> ControlReward:
        model = self._new_reward()
        model.restore(saved / "model")
        return model

    def _improver(self, number: int, payer: ControlReward | None, steps: int) -> PPO:
        c = self.config
        if c.train.learner != "ppo":
            raise ConfigError(f'a run about control learns by "ppo" or "reward", not by {c.train.learner!r}')
        if not c.train.steps:
            raise ConfigError("train.steps is 0; in control it says how many stretches PPO learns from in a round, so set it")
        rows = c.control.envs * c.control.stretch
        # With AdamW's usual 1e-8, steps along directions that have hardly been seen ruin some seeds (Huang et al. 2022, detail 3).
        how = build.optimization(c, "ppo", steps) | {"eps": 1e-5, "micro_batch_tokens": rows}
        how |= c.ppo.model_dump() | {"rollout_batch_size": rows, "critic_lr": None}
        self._check_ends()
        policy = self.policy(number) if number else self._new_policy(f"{c.run.name}@0")
        critic = ControlCritic(inputs(self.make()), c.control.hidden, policy.normaliser, c.run.seed)
        reference = self._new_policy("reference")  # where every round's policy comes from: how far it has gone is measured
        source = Stretches(policy, self.make, c.control.envs, c.control.stretch, c.run.seed + 7919 * number, c.control.gold)
        by_hand = ByHand(policy, critic)
        return PPO(policy, (), payer, reference, [by_hand.parameter], critic=critic, source=source, by_hand=by_hand, **how)

    def _check_ends(self) -> None:
        """Let the untrained policy act in an episode to its end, where nothing limits one.

        Raises:
            DataError: it does not end.
        """
        if self.make().get_wrapper_attr("longest") is not None:
            self.attempts(self.start, self.tasks[1][:1], meant=False)

    def _new_policy(self, name: str) -> ControlPolicy:
        env, c = self.make(), self.config.control
        policy = ControlPolicy(inputs(env), env.action_space, c.hidden, c.normalise, self.config.run.seed)
        policy.name = name
        return policy

    def _new_reward(self) -> ControlReward:
        env = self.make()
        return ControlReward(inputs(env), env.action_space, self.config.reward.members, self.config.control.hidden, self.config.run.seed)

    def _task(self, number: int) -> Task:
        return Task(self.config.control.env, str(self.config.run.seed * 10_000_000 + number))
