"""Settings of Stable-Baselines3's SAC and TD3, by the names that they have there."""

from typing import Literal

from pydantic import Field

from rather.settings import Section


class OffPolicySettings(Section):
    """SAC and TD3 of Stable-Baselines3, for train.learner = "sb3:SAC" and "sb3:TD3"; train.lr and train.batch_size are not theirs."""

    learning_rate: float = Field(default=3e-4, description="Learning rate of policy and critics.", gt=0)
    buffer_size: int = Field(default=1_000_000, description="Steps that the replay buffer holds, the newest ones.", ge=1)
    learning_starts: int = Field(default=100, description="Steps at random before learning begins.", ge=0)
    batch_size: int = Field(default=256, description="Steps of the buffer that an update learns from.", ge=1)
    tau: float = Field(default=0.005, description="Share of the critics that target critics take over at an update.", gt=0, le=1)
    gamma: float = Field(default=0.99, description="Discount of what comes later.", gt=0, le=1)
    train_freq: int = Field(default=1, description="Steps in each copy of the environment between updates.", ge=1)
    gradient_steps: int = Field(default=1, description="Updates after so many steps; -1: as many as there were steps.", ge=-1)
    n_steps: int = Field(default=1, description="Steps whose rewards are summed before the critics look ahead.", ge=1)
    ent_coef: Literal["auto"] | float = Field(default="auto", description='SAC: weight of the entropy; "auto" learns it.')
    policy_delay: int = Field(default=2, description="TD3: updates of the critics for one of the policy.", ge=1)
    target_policy_noise: float = Field(default=0.2, description="TD3: standard deviation of the noise on target actions.", ge=0)
    target_noise_clip: float = Field(default=0.5, description="TD3: the most of that noise.", ge=0)
    action_noise: float = Field(default=0.1, description="TD3: noise of actions while it learns, in halves of their range.", ge=0)
