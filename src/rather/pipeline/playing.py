"""The trained policy of a run about control, or of a saved agent, with its environment: to watch it, and to export it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rather.config.toml import load as load_settings
from rather.control.agent import EVALUATION, PPO
from rather.control.models import ControlPolicy
from rather.control.rollout import ControlSampler
from rather.control.studio import Studio
from rather.core import Task, Trajectory
from rather.errors import ConfigError
from rather.pipeline.control_domain import ControlDomain
from rather.pipeline.run import Run
from rather.pipeline.terminal import Terminal


@dataclass(frozen=True)
class TrainedPolicy:
    """A policy, and the studio that makes and draws its environment."""

    policy: ControlPolicy
    studio: Studio

    def play(self, episodes: int, seed: int, deterministic: bool, render_mode: str | None = None) -> list[Trajectory]:
        """So many episodes, one after the other, in an environment of that render mode.

        Raises:
            DataError: an observation or a reward is not a finite number.
        """
        sampler = ControlSampler(self.policy, lambda: self.studio.make(render_mode), rows=1, deterministic=deterministic)
        tasks = [Task(self.studio.env, str(EVALUATION * (seed + 1) + i)) for i in range(episodes)]
        found = sampler.sample(tasks, seed)
        for env in sampler.idle:
            env.close()
        return found


def trained_policy(source: str, changes: Sequence[str], round_: int | None, untrained: bool, console: Terminal) -> TrainedPolicy:
    """The policy of the run `source`, a TOML file, after a round (None: the last one), or of the agent that `save` wrote to a folder.

    `untrained`: the run's policy as it was before training.

    Raises:
        ConfigError: the run is not about control, or the arguments are for a run.
        TrainingError: the run has not been trained.
        CheckpointError: there is no agent in the folder.
    """
    if source.endswith(".toml"):
        run = Run(load_settings(source, changes), console)
        if not isinstance(run.domain, ControlDomain):
            raise ConfigError(f"the run {run.config.run.name!r} is about text; rather chat and rather generate have its policy answer")
        if run.config.train.learner == "reward" and not untrained:
            raise ConfigError(
                f"the run {run.config.run.name!r} trains a reward model and no policy; --untrained is the policy that it judges"
            )
        if untrained and round_ is not None:
            raise ConfigError(f"--untrained is the policy before the first round, and --round {round_} one after it; leave one of them out")
        number = run.begun if round_ is None else round_
        if not untrained:
            run.last(number)
        policy = run.domain.base_policy if untrained else run.policy(number + 1)
        assert isinstance(policy, ControlPolicy)
        return TrainedPolicy(policy, run.domain.clips.studio(""))
    if changes or round_ is not None or untrained:
        raise ConfigError(f"settings, --round and --untrained are for a run's TOML file, and {source!r} is none")
    if (Path(source) / "manifest.json").exists():
        raise ConfigError(f"{source} is a checkpoint, which does not say how its environment is made; give the run's TOML file")
    agent = PPO.load(source)
    assert isinstance(agent.env, str)
    return TrainedPolicy(agent.policy, Studio("", "", agent.env, agent.settings.horizon, agent.settings.takes_pictures))
