"""The section of a run's settings that says which environment it is about."""

import json
from typing import Any, Literal, Self

from pydantic import Field, PositiveInt, model_validator

from rather.settings import OFF_POLICY, ForLearners, Section


class Control(Section):
    """A Gymnasium environment in place of a language model: set env, and a run is about control."""

    env: str = Field(default="", description='Name of the environment, such as "Pendulum-v1"; empty: the run is about text.')
    horizon: int = Field(
        default=0, description="Steps of every episode, the last ones in an absorbing state; 0: as the environment says.", ge=0
    )
    kwargs: dict[str, Any] = Field(default={}, description="Arguments of the environment's constructor, such as { gravity = 9.0 }.")
    wrappers: list[str] = Field(
        default=[], description='"module:name" of functions or classes that wrap the environment, the first one innermost.'
    )
    gold: str = Field(default="", description="Name of the gold reward in the environment's info, such as laps; empty: the reward.")
    allow_uneven: bool = Field(default=False, description="Allow episodes of different lengths, which may show the better one.")
    envs: ForLearners[int] = Field(default=16, description="Copies of the environment that the policy acts in.", ge=1)
    rollout_segment: ForLearners[int] = Field(default=100, description="Steps in each copy between updates.", ge=1)
    restart: ForLearners[bool] = Field(
        default=False, description="Train an untrained policy in each round, on the reward of all labels so far."
    )
    keep_critic: ForLearners[bool] = Field(
        default=False, description="Let each round's critic begin as the one of the round before, whatever reward that has known."
    )
    unsupervised_steps: int = Field(
        default=0,
        description="Steps, counted as train.steps, in which the policy explores before the first questions (PEBBLE).",
        ge=0,
    )
    network: Literal["mlp", "cnn"] = Field(
        default="mlp", description='Of policy, critic and reward nets: "mlp", the layers of hidden; "cnn", the Nature CNN, for pictures.'
    )
    hidden: list[PositiveInt] = Field(
        default=[64, 64], description="Widths of the hidden layers; empty: a linear policy (Discrete: a table)."
    )
    policy_network: str = Field(
        default="", description='"module:name" of a function of (inputs, outputs) that makes the policy\'s torch.nn.Module; empty: hidden.'
    )
    critic_network: str = Field(
        default="", description='"module:name" of a function of (inputs, 1) that makes the critic\'s torch.nn.Module; empty: hidden.'
    )
    log_std_init: ForLearners[float] = Field(
        default=0.0, description="Logarithm of the standard deviation that a Box's actions begin with.", ge=-20, le=2
    )
    normalize: bool = Field(
        default=True, description="Scale observations by their running mean and standard deviation; cnn: pixels by 1/255, always."
    )
    pixels: bool = Field(default=False, description="Take environments that show pictures, laid flat, whatever memory that takes.")

    def policy_steps(self, steps: int, rounds: int) -> int:
        """The fewest steps of the environment that a policy learns in, where each of so many rounds has `steps` segments."""
        segments = steps if self.restart else self.unsupervised_steps + steps * rounds
        return min(segments, self.unsupervised_steps or segments) * self.envs * self.rollout_segment

    @model_validator(mode="after")
    def _free(self) -> Self:
        reserved = {
            "render_mode": "clips need their own",
            "max_episode_steps": "set control.horizon",
            "disable_env_checker": "it is checked",
        }
        for name in reserved.keys() & self.kwargs.keys():
            raise ValueError(f"kwargs cannot set {name}: {reserved[name]}")
        try:
            json.dumps(self.kwargs, allow_nan=False)
        except (TypeError, ValueError) as e:
            raise ValueError(f"kwargs cannot be kept: {e}; take numbers, words, truth values, lists and tables") from None
        changed = [name for name, field in type(self).model_fields.items() if getattr(self, name) != field.default]
        if changed and not self.env:
            raise ValueError(f"{changed[0]} is of an environment, and control.env is empty; set it, or leave {changed[0]} out")
        return self

    @model_validator(mode="after")
    def _explores(self) -> Self:
        if self.unsupervised_steps and self.takes_pictures:
            raise ValueError("unsupervised_steps compares states number by number, which says little of pictures; set it to 0")
        return self

    @model_validator(mode="after")
    def _one_network(self) -> Self:
        if self.network == "cnn":
            for name in ("hidden", "policy_network", "critic_network"):
                if getattr(self, name) != type(self).model_fields[name].default:
                    raise ValueError(f'network = "cnn" has layers of its own, and {name} brings others; leave one of them out')
        return self

    @property
    def takes_pictures(self) -> bool:
        """Whether observations may be pictures."""
        return self.pixels or self.network == "cnn"

    def check_networks(self, learner: str, exploration: float, dynamics: float, reward: str) -> None:
        """Refuse networks that cannot be what the run makes of them.

        Raises:
            ValueError: the learner has networks of its own, or numbers of the policy's are perturbed that it does not have, or reward nets
                have no hidden tanh layers that could learn `dynamics`, or a `reward` head would see pictures.
        """
        if self.policy_network and (exploration or learner == "zeroth"):
            what = "query.exploration" if exploration else 'train.learner = "zeroth"'
            raise ValueError(f"{what} moves numbers of the policy's own layers, and control.policy_network brings another network")
        if learner in OFF_POLICY and (self.policy_network or self.critic_network):
            raise ValueError(f'train.learner = "{learner}" has networks of its own; leave control.policy_network and critic_network out')
        if learner in (*OFF_POLICY, "zeroth") and self.network == "cnn":
            raise ValueError(f'train.learner = "{learner}" cannot train control.network = "cnn"; take "ppo"')
        if reward == "head" and self.network == "cnn":
            raise ValueError('reward.kind = "head" sees no pictures, and control.network is "cnn"; take reward.kind = "lora"')
        if dynamics and (self.network == "cnn" or not self.hidden):
            other = 'control.network = "cnn" has others' if self.network == "cnn" else "control.hidden is empty"
            raise ValueError(f"reward.dynamics = {dynamics} trains hidden tanh layers, and {other}; set it to 0")
