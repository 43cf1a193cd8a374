"""Settings of Stable-Baselines3's SAC and TD3, by the names that they have there."""

from typing import Literal

from pydantic import ConfigDict, Field, NonNegativeFloat, field_validator

from rather.settings import Section


class OffPolicySettings(Section):
    """SAC and TD3 of Stable-Baselines3, for train.learner = "sb3:SAC" and "sb3:TD3"; train.lr and train.batch_size are not theirs."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    learning_rate: float = Field(default=3e-4, description="Learning rate of policy and critics.", gt=0)
    buffer_size: int = Field(default=1_000_000, description="Steps that the replay buffer holds, the newest ones.", ge=1)
    learning_starts: int = Field(default=100, description="Steps at random, of all copies together, before learning begins.", ge=0)
    batch_size: int = Field(default=256, description="Steps of the buffer that an update learns from.", ge=1)
    tau: float = Field(default=0.005, description="Share of the critics that target critics take over at an update.", gt=0, le=1)
    gamma: float = Field(default=0.99, description="Discount of what comes later.", gt=0, le=1)
    train_freq: int = Field(
        default=1, description="Steps in each copy of the environment between updates; a divisor of control.rollout_segment.", ge=1
    )
    gradient_steps: int = Field(default=-1, description="Updates each time; -1: one for each step of the environments.", ge=-1)
    ent_coef: Literal["auto"] | NonNegativeFloat = Field(default="auto", description='SAC: weight of the entropy; "auto" learns it.')
    policy_delay: int = Field(default=2, description="TD3: updates of the critics for one of the policy.", ge=1)
    target_policy_noise: float = Field(default=0.2, description="TD3: standard deviation of the noise on target actions.", ge=0)
    target_noise_clip: float = Field(default=0.5, description="TD3: that noise is clipped to this.", ge=0)
    action_noise: float = Field(default=0.1, description="TD3: standard deviation of the noise of actions, in halves of their range.", ge=0)

    @field_validator("gradient_steps")
    @classmethod
    def _some(cls, value: int) -> int:
        if not value:
            raise ValueError("without updates nothing is learned; set it to 1 or more, or to -1")
        return value

    def check(self, envs: int, segment: int, steps: int) -> None:
        """See whether they go with so many copies, rollout segments of so many steps, and steps in all copies and rounds; 0: not known.

        Raises:
            ValueError: they do not.
        """
        if self.buffer_size < envs:
            raise ValueError(f"sb3.buffer_size is {self.buffer_size}, which does not hold one step of each of control.envs = {envs}")
        if segment % self.train_freq:
            raise ValueError(f"sb3.train_freq is {self.train_freq}, which does not divide control.rollout_segment = {segment}")
        if 0 < steps <= self.learning_starts:
            raise ValueError(f"sb3.learning_starts is {self.learning_starts:,}, and a policy has {steps:,} steps; it would learn nothing")
