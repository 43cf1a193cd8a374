"""`rather.control.PPO`: what it refuses, how it acts, learns, stops and goes on."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Dict, Discrete
from torch import nn

import rather
from rather import control
from rather.control.settings import PPOOptions, PPOSettings, RewardOptions, RewardSettings
from rather.errors import CheckpointError, ConfigError, DataError

SMALL = {"envs": 2, "rollout_segment": 16, "batch_size": 16, "update_epochs": 2, "hidden": (8,)}


class Bandit(gymnasium.Env):
    """One step an episode: arm 1 pays 1, arm 0 nothing. It shows 2, then the arm."""

    observation_space = Box(0, 2, (1,), np.float32)
    action_space = Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.array([2], np.float32), {}

    def step(self, action):
        return np.array([action], np.float32), float(action), True, False, {}


class Parts(Bandit):
    """Shows a number and a choice."""

    observation_space = Dict({"x": Box(-1, 1, (2,), np.float32), "y": Discrete(3)})

    def reset(self, *, seed=None, options=None):
        gymnasium.Env.reset(self, seed=seed)
        return {"x": np.zeros(2, np.float32), "y": 1}, {}

    def step(self, action):
        return {"x": np.ones(2, np.float32), "y": 2}, 1.0, True, False, {}


def linear(weight: list[list[float]], bias: list[float]) -> nn.Linear:
    net = nn.Linear(len(weight[0]), len(weight))
    net.load_state_dict({"weight": torch.tensor(weight), "bias": torch.tensor(bias)})
    return net


def numbers(agent: control.PPO) -> dict[str, torch.Tensor]:
    both = {"policy": agent.policy, "critic": agent.critic}
    return {f"{which}.{name}": x.clone() for which, net in both.items() for name, x in net.state_dict().items()}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"gama": 0.9}, "control.PPO has no argument 'gama'; did you mean gamma?"),
        ({"banana": None}, "control.PPO has no argument 'banana'; it takes batch_size, "),
        ({"gamma": 2}, r"control.PPO: gamma: input should be less than or equal to 1 \(got 2\)"),
        ({"schedule": "fast"}, "schedule: input should be 'constant', 'linear' or 'cosine' .got 'fast'"),
        ({"hidden": "wide"}, "hidden: input should be a valid tuple .got 'wide'"),
        ({"env": "CartPole-v2"}, "CartPole-v2"),
        ({"env": 3}, "env is 3, which is neither the id of an environment nor a function that makes one"),
        ({"env": Bandit()}, "give a function that makes it, such as lambda: MyEnv()"),
        ({"env": lambda: 3}, "made 3, which is no gymnasium.Env"),
        ({"env": lambda made=Bandit(): made}, "env is a function that returns the same environment again"),
        ({"env": lambda: gymnasium.make("CartPole-v1"), "horizon": 600}, "horizon is 600, but .* end after 500 steps"),
        ({"seed": None}, "^seed is None; give a whole number of 0 or more$"),
        ({"seed": -1}, "^seed is -1; give"),
        ({"policy": 3}, "policy is 3; it must be a torch.nn.Module"),
        ({"policy": nn.Linear(4, 3)}, r"policy made shape \(2, 3\) of \(2, 4\); it must map observations \(2, 4\) to \(2, 2\), a logit"),
        ({"policy": nn.Linear(5, 2)}, r"policy cannot take \(2, 4\) .*; it must map observations \(2, 4\) to \(2, 2\), a logit"),
        ({"critic": nn.Linear(4, 2)}, r"critic made shape \(2, 2\) of \(2, 4\); it must map observations \(2, 4\) to \(2, 1\), a value"),
        ({"reward": nn.Linear(4, 1)}, r"reward cannot take \(2, 4\) and \(2, 2\)"),
        ({"callbacks": print}, r"^callbacks is <built-in function print>; give a list of functions"),
        ({"callbacks": 3}, r"^callbacks is 3; give a list of functions"),
        ({"reward": "high"}, "reward is 'high'; give a RewardModel, an nn.Module, or a function"),
        ({"reward": control.RewardModel("Pendulum-v1")}, "reward is a model of 3 numbers"),
        ({"reward": control.RewardModel("CartPole-v1", horizon=50)}, "reward is a model of 5 numbers"),
    ],
)
def test_what_cannot_be_used_is_said_in_a_sentence(arguments: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        control.PPO(**{"env": "CartPole-v1", **arguments})


def test_arguments_of_methods_are_checked() -> None:
    agent = control.PPO(Bandit, **SMALL)
    for steps in (0, "1", 1.5):
        with pytest.raises(ConfigError, match="^steps is "):
            agent.train(steps)  # type: ignore[arg-type]
    for call in (lambda: agent.evaluate(0), lambda: agent.rollouts(-1)):
        with pytest.raises(ConfigError, match="^episodes is "):
            call()


@pytest.mark.parametrize(("options", "settings"), [(PPOOptions, PPOSettings), (RewardOptions, RewardSettings)])
def test_type_checkers_know_the_settings(options: Any, settings: Any) -> None:
    assert options.__annotations__.keys() == settings.model_fields.keys()


def test_a_network_acts_by_its_logits() -> None:
    # Logits of observation x are (x, 1 - x): action 0 above 0.5, action 1 below.
    agent = control.PPO(Bandit, policy=linear([[1.0], [-1.0]], [0.0, 1.0]), normalize=False)
    assert agent.predict(np.array([0.6], np.float32)) == 0
    assert agent.predict([0.4]) == 1
    assert agent.predict(np.array([[0.6], [0.4], [2]], np.float32)).tolist() == [0, 1, 0]
    drawn = [agent.predict([0.5], deterministic=False) for _ in range(400)]  # each with probability 1/2
    assert 150 < sum(drawn) < 250
    with pytest.raises(DataError, match=r"the observation has shape \(2,\), but .*Bandit shows Box"):
        agent.predict([1.0, 2.0])


def test_actions_of_a_box_are_means_within_its_bounds() -> None:
    agent = control.PPO("Pendulum-v1", policy=linear([[1.0, 2.0, 3.0]], [0.5]), normalize=False)
    assert agent.predict([0.1, 0.2, -0.3]) == pytest.approx([0.1])  # 0.1 + 0.4 - 0.9 + 0.5
    assert agent.predict([1.0, 1.0, 8.0]) == pytest.approx([2.0])  # 27.5, of which the environment takes 2


def test_observations_of_several_parts() -> None:
    agent = control.PPO(Parts, **SMALL)
    assert agent.predict({"x": np.zeros(2, np.float32), "y": 1}) in (0, 1)
    assert agent.train(32).evaluate(3) == (1.0, 0.0)


def test_a_mean_return_has_its_standard_error() -> None:
    agent = control.PPO(Bandit, policy=linear([[0.0], [0.0]], [0.0, 0.0]))
    returns = [t.rewards.sum() for t in agent.rollouts(100, seed=3)]
    mean, stderr = agent.evaluate(100, deterministic=False, seed=3)
    assert mean == np.mean(returns)
    assert stderr == pytest.approx((mean * (1 - mean) / 99) ** 0.5)  # of a coin's mean; sum of squares over n - 1


def test_it_learns_which_arm_pays_and_calls_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    heard = []
    agent = control.PPO(Bandit, callbacks=[lambda step, metrics: heard.append((step, metrics["return"]))], lr=1e-2, **SMALL)
    agent.train(300)
    assert [step for step, _ in heard] == list(range(32, 321, 32))  # 300, rounded up to updates of 2 x 16 steps
    assert agent.steps == 320
    assert heard[-1][1] > heard[0][1]
    assert agent.evaluate(10) == (1.0, 0.0)
    assert list(tmp_path.iterdir()) == []


def test_a_reward_function_is_what_it_learns_from_and_evaluation_is_by_the_environment() -> None:
    seen = set()

    def against(observation: Any, action: Any, next_observation: Any) -> float:
        seen.add((float(observation[0]), action, float(next_observation[0])))
        return 1.0 - action

    agent = control.PPO(Bandit, reward=against, lr=1e-2, **SMALL).train(640)
    assert agent.evaluate(10).mean == 0.0
    assert seen == {(2.0, 0, 0.0), (2.0, 1, 1.0)}


@pytest.mark.parametrize(
    ("function", "said"),
    [
        (lambda o, a, n: "much", "returned 'much' for observation .*; it must return one finite number"),
        (lambda o, a, n: float("nan"), "returned nan"),
        (lambda o, a, n: None, "returned None"),
        (lambda o, a, n: 1 / 0, "raised ZeroDivisionError"),
        (lambda o, a: 1.0, "raised TypeError"),
    ],
)
def test_a_reward_function_that_does_not_reward_is_named(function: Any, said: str) -> None:
    with pytest.raises(DataError, match=f"reward: the function .*lambda.* {said}"):
        control.PPO(Bandit, reward=function, **SMALL).train(1)


def test_a_batched_reward_function_gets_all_steps_at_once() -> None:
    shapes = []

    @rather.batched
    def against(observations: Any, actions: Any, next_observations: Any) -> Any:
        shapes.append((observations.shape, actions.shape, next_observations.shape))
        return 1.0 - next_observations[:, 0]

    assert control.PPO(Bandit, reward=against, lr=1e-2, **SMALL).train(640).evaluate(10).mean == 0.0
    assert set(shapes) == {((32, 1), (32,), (32, 1))}
    with pytest.raises(DataError, match=r"returned shape \(2,\) for 32 steps; it must return one number a step"):
        control.PPO(Bandit, reward=rather.batched(lambda o, a, n: [1, 2]), **SMALL).train(1)


def test_a_reward_network_is_followed_and_not_trained() -> None:
    class ForArm0(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.tensor([1.0, -1.0]))

        def forward(self, observations: torch.Tensor, actions: torch.Tensor) -> torch.Tensor:
            assert observations.shape[1:] == (1,)
            return actions @ self.weight  # one-hot

    net = ForArm0()
    agent = control.PPO(Bandit, reward=net, lr=1e-2, **SMALL).train(640)
    assert agent.evaluate(10).mean == 0.0
    assert net.weight.tolist() == [1.0, -1.0]


def test_what_a_callback_returns_stops_the_training() -> None:
    agent = control.PPO(Bandit, callbacks=[lambda step, metrics: step >= 64, lambda step, metrics: None], **SMALL)
    assert agent.train(10_000).steps == 64
    assert agent.train(1).steps == 96


def test_a_falling_rate_ends_with_the_call() -> None:
    rates = []
    agent = control.PPO(Bandit, schedule="linear", lr=0.01, callbacks=[lambda step, metrics: rates.append(metrics["lr"])], **SMALL)
    agent.train(128).train(128)
    # 4 optimizer steps an update (2 epochs of 2 minibatches); the last of update u is number 4 u - 1, of 16 and then of 32.
    assert rates == pytest.approx([0.01 * (1 - (4 * u - 1) / (16 if u <= 4 else 32)) for u in range(1, 9)])


class Own(nn.Module):
    """The same layers as ours, in the words of `torch.nn`."""

    def __init__(self, of: nn.Module) -> None:
        super().__init__()
        pairs = list(zip(of.layers[0::2], of.layers[1::2], strict=True))
        layers = []
        for weight, bias in pairs:
            layers += [linear(weight.detach().t().tolist(), bias.detach().tolist()), nn.Tanh()]
        self.net = nn.Sequential(*layers[:-1])

    def forward(self, observations: torch.Tensor) -> torch.Tensor:
        return self.net(observations)


@pytest.mark.parametrize("env", ["CartPole-v1", "Pendulum-v1"])
def test_a_network_of_ones_own_learns_as_ours_does(env: str) -> None:
    ours = control.PPO(env, seed=1, **SMALL)
    theirs = control.PPO(env, seed=1, policy=Own(ours.policy.net), critic=Own(ours.critic.net), **SMALL)
    for agent in (ours, theirs):
        agent.train(64)
    for (_, before), (_, after) in zip(ours.policy.net.named_parameters(), theirs.policy.net.named_parameters(), strict=True):
        torch.testing.assert_close(after if after.dim() == 1 else after.t(), before, atol=1e-4, rtol=1e-3)


def test_policy_and_critic_may_share_layers() -> None:
    trunk = nn.Sequential(nn.Linear(1, 8), nn.Tanh())
    policy, critic = nn.Sequential(trunk, nn.Linear(8, 2)), nn.Sequential(trunk, nn.Linear(8, 1), nn.Flatten(0))
    agent = control.PPO(Bandit, policy=policy, critic=critic, lr=1e-2, **SMALL).train(640)
    assert agent.evaluate(10).mean == 1.0


def test_dropout_does_not_part_the_policy_that_acts_from_the_one_that_learns() -> None:
    ratios = []
    network = nn.Sequential(nn.Linear(1, 32), nn.Dropout(0.5), nn.Linear(32, 2))
    settings = SMALL | {"update_epochs": 1, "batch_size": 32}
    control.PPO(Bandit, policy=network, callbacks=[lambda step, metrics: ratios.append(metrics["ratio"])], **settings).train(64)
    assert ratios == pytest.approx([1.0, 1.0], abs=1e-4)


def networks() -> dict[str, nn.Module]:
    torch.manual_seed(4)
    tied = nn.Linear(4, 4)
    return {"policy": nn.Sequential(tied, nn.Tanh(), tied, nn.Linear(4, 2)), "critic": nn.Linear(4, 1)}


@pytest.mark.parametrize("own", [False, True], ids=["ours", "own"])
def test_an_agent_is_what_it_was_when_it_is_loaded(tmp_path: Path, own: bool) -> None:
    agent = control.PPO("CartPole-v1", seed=3, **(networks() if own else {}), **SMALL).train(64)
    agent.save(tmp_path / "agent")
    again = control.PPO.load(tmp_path / "agent", **(networks() if own else {}))
    torch.testing.assert_close(numbers(again), numbers(agent), atol=0, rtol=0)
    assert again.settings == agent.settings
    assert again.evaluate(3, deterministic=False) == agent.evaluate(3, deterministic=False)
    assert {path.suffix for path in (tmp_path / "agent").iterdir()} == {".safetensors", ".json"}
    again.train(32)
    if own:
        with pytest.raises(CheckpointError, match="is of another network"):
            control.PPO.load(tmp_path / "agent")


def test_an_agent_in_an_environment_of_a_function_is_loaded_with_that_function(tmp_path: Path) -> None:
    control.PPO(Bandit, **SMALL).save(tmp_path)
    with pytest.raises(ConfigError, match="give that function as env="):
        control.PPO.load(tmp_path)
    assert control.PPO.load(tmp_path, Bandit).evaluate(2).mean in (0.0, 1.0)
    with pytest.raises(CheckpointError, match="holds no agent that can be read"):
        control.PPO.load(tmp_path / "elsewhere")
    (tmp_path / "policy.safetensors").write_bytes(b"short")
    with pytest.raises(CheckpointError, match=r"policy.safetensors cannot be read"):
        control.PPO.load(tmp_path, Bandit)


@pytest.mark.parametrize("own", [False, True], ids=["ours", "own"])
def test_a_training_that_was_stopped_goes_on_bit_for_bit(tmp_path: Path, own: bool) -> None:
    def agent(folder: Path | None, stop: int = 0) -> control.PPO:
        stops = [lambda step, metrics: step == stop]
        more = networks() if own else {}
        return control.PPO("CartPole-v1", folder=folder, callbacks=stops, schedule="linear", checkpoint_every=2, **more, **SMALL)

    straight = agent(None).train(160)
    agent(tmp_path, stop=96).train(160)
    again = agent(tmp_path)
    assert again.steps == 96
    again.train(160)
    assert again.steps == 160
    torch.testing.assert_close(numbers(again), numbers(straight), atol=0, rtol=0)
    assert again.train(32).steps == 192
    rerun = agent(tmp_path).train(160)  # the same program again: there is nothing left to do
    torch.testing.assert_close(numbers(rerun), numbers(again), atol=0, rtol=0)
    assert rerun.train(64).steps == 224


def test_checkpoints_of_other_settings_are_refused(tmp_path: Path) -> None:
    control.PPO(Bandit, folder=tmp_path, **SMALL).train(32)
    with pytest.raises(CheckpointError, match=r"gamma = 0.98, not 0.5"):
        control.PPO(Bandit, folder=tmp_path, gamma=0.5, **SMALL)
    for reward, kind in ((control.StateEntropy(), "StateEntropy"), (lambda o, a, n: 0.0, "FunctionReward")):
        with pytest.raises(CheckpointError, match=f"agent.reward = 'environment', not '{kind}'; set it back, or train into another folder"):
            control.PPO(Bandit, folder=tmp_path, reward=reward, **SMALL)


def test_a_checkpoint_that_does_not_know_a_newer_setting_is_gone_on_from(tmp_path: Path) -> None:
    control.PPO(Bandit, folder=tmp_path, **SMALL).train(32, bar=False)
    (manifest,) = tmp_path.rglob("manifest.json")
    about = json.loads(manifest.read_text())
    del about["settings"]["ppo"]["network"], about["settings"]["agent"]["reward"]
    manifest.write_text(json.dumps(about))
    assert control.PPO(Bandit, folder=tmp_path, **SMALL).steps == 32


def test_the_same_seed_rolls_out_the_same_episodes_from_the_same_starts() -> None:
    one, other = control.rollouts("CartPole-v1", 3, seed=1), control.rollouts("CartPole-v1", 3, seed=1)
    assert [t.rewards.sum() for t in one] == [t.rewards.sum() for t in other]
    assert [t.observations[0].tolist() for t in one] == [
        t.observations[0].tolist() for t in control.rollouts(control.PPO("CartPole-v1", seed=9, **SMALL), 3, seed=1)
    ]
    assert one[0].observations.shape == (len(one[0].rewards) + 1, 4)
    assert one[0].task.source == "CartPole-v1"


def test_importing_it_registers_environments_and_loads_no_torch() -> None:
    code = "import sys, gymnasium, rather.control as c; gymnasium.spec('rather/GridWorld-v0'); c.__all__; assert 'torch' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
    assert {"PPO", "RewardModel", "rollouts"} <= set(dir(control))
    assert rather.control is control
    with pytest.raises(AttributeError, match="no attribute 'DQN'"):
        control.DQN  # noqa: B018


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
def test_cartpole_is_learned_with_the_defaults(seed: int) -> None:
    assert control.PPO("CartPole-v1", seed=seed).train(100_000).evaluate(20).mean > 400


def test_the_standard_deviation_of_actions_begins_where_it_is_told(tmp_path: Path) -> None:
    agent = control.PPO("Pendulum-v1", envs=1, rollout_segment=16, log_std_init=-1.5)
    (t,) = agent.rollouts(1)
    means = np.stack([agent.predict(o) for o in t.observations[:-1]])  # type: ignore[index]
    assert np.std(t.actions - means) == pytest.approx(np.exp(-1.5), rel=0.15)
    agent.save(tmp_path)
    assert control.PPO.load(tmp_path).settings.log_std_init == -1.5
    with pytest.raises(ConfigError, match="log_std_init"):
        control.PPO("Pendulum-v1", log_std_init=3.0)


@pytest.mark.parametrize("about", ['{"format": 1}', '{"format": 1, "env": "CartPole-v1"}', "[]", "{"])
def test_a_damaged_description_of_an_agent_is_refused(about: str, tmp_path: Path) -> None:
    (tmp_path / "agent.json").write_text(about)
    with pytest.raises(CheckpointError, match="holds no agent that can be read"):
        control.PPO.load(tmp_path)
