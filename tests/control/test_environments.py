"""What strangers' environments do wrong is one sentence, before anything is learned from it."""

import sys
import textwrap
from pathlib import Path

import gymnasium
import numpy as np
import pytest
from gymnasium.spaces import Box, Dict, Discrete

from rather.config import toml
from rather.control import environments
from rather.control.clips import again
from rather.control.collect import RolloutSegments
from rather.control.environments import allowed, environment, inputs
from rather.control.models import ControlPolicy
from rather.control.rollout import ControlSampler
from rather.core import Comparison, Task
from rather.errors import ConfigError, DataError
from rather.store import Store

MODULE = """
    import gymnasium
    import numpy as np
    from gymnasium.spaces import Box, Discrete

    class Counter(gymnasium.Env):
        observation_space = Box(0, 100, (2,), np.float32)
        action_space = Discrete(2)
        metadata = {"render_modes": ["human"], "render_fps": 30}

        def __init__(self, render_mode=None):
            self.render_mode = render_mode

        def reset(self, *, seed=None, options=None):
            super().reset(seed=seed)
            self.time = 0
            return np.zeros(2, np.float32), {}

        def step(self, action):
            self.time += 1
            return np.full(2, self.time, np.float32), 1.0, False, self.time == 5, {}

    gymnasium.register("MODULE/Counter-v0", Counter)
"""


WRAPPERS = """
    class Doubled(gymnasium.RewardWrapper):
        def reward(self, reward):
            return 2 * reward

    def shifted(env):
        return gymnasium.wrappers.TransformReward(env, lambda reward: reward + 1)

    def with_more(env, more):
        return env

    def no_env(env):
        return 3

    class Skips(gymnasium.Wrapper):
        def step(self, action):
            for _ in range(3):
                self.env.step(action)
            return self.env.step(action)
"""


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest):
    """Put a module into the current folder that registers an environment, with something in it replaced; returns the name."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p not in ("", str(tmp_path))])
    name = f"counter_{abs(hash(request.node.name))}"

    def module(before: str = "", after: str = "") -> str:
        assert before in MODULE
        text = textwrap.dedent(MODULE.replace(before, after) if before else MODULE).replace("MODULE", name)
        (tmp_path / f"{name}.py").write_text(text)
        return f"{name}:{name}/Counter-v0"

    yield module
    sys.modules.pop(name, None)
    gymnasium.registry.pop(f"{name}/Counter-v0", None)


def play(name: str, horizon: int | None = None, **kwargs) -> int:
    """Steps of an episode."""
    env = environment(name, horizon, kwargs=kwargs)
    policy = ControlPolicy(inputs(env), env.action_space)
    (found,) = ControlSampler(policy, lambda: env).sample([Task(name, "3")], 0)
    assert found.rewards is not None
    return len(found.rewards)


def test_a_module_in_the_current_folder_is_found(write) -> None:
    assert play(write()) == 5


def test_a_module_that_is_not_there_is_named(write) -> None:
    name = write()
    with pytest.raises(ConfigError, match=r"there is no module 'countre', which control.env = 'countre:Counter-v0' names;.*current folder"):
        environment("countre:Counter-v0")
    with pytest.raises(ConfigError, match=r"cannot be made: .*did you mean"):
        environment(name.replace("Counter-v0", "Countre-v0"))


@pytest.mark.parametrize(
    ("before", "after", "sentence"),
    [
        ("import numpy as np", "import numpy as np, no_such_package", r"it needs the package no_such_package; install it$"),
        ("import numpy as np", "import numpy as np; 1 / 0", r"importing counter_\d+ raised ZeroDivisionError: division by zero$"),
        ("class Counter", "def def", r"importing counter_\d+ raised SyntaxError: "),
        ("render_mode=None", "size, render_mode=None", r"missing 1 required positional argument: 'size'.*; give the arguments .* defaults"),
        ("self.render_mode =", "import no_such; self.render_mode =", r"it needs the package no_such; install it$"),
        ("self.render_mode = render_mode", "raise OSError('no licence')", r"cannot be made: its constructor raised OSError: no licence$"),
        ("gymnasium.Env)", "object)", r"must inherit from the gymnasium.Env class"),
        ("observation_space = Box(0, 100, (2,), np.float32)", "", r"cannot be made: .*observation_space"),
        ("Box(0, 100, (2,), np.float32)", "Box(0, 255, (64, 48, 3), np.uint8)", r"pictures of 64 x 48 x 3, 9,216 numbers a step, 8.8 MiB"),
        ("Box(0, 100, (2,), np.float32)", "Box(0, 255, (84, 84), np.uint8)", r"or insist with control.pixels = true$"),
    ],
)  # fmt: skip
def test_one_that_cannot_be_made_says_why(write, before: str, after: str, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence) as found:
        environment(write(before, after))
    assert "\n" not in str(found.value)


@pytest.mark.parametrize(
    ("before", "after", "sentence"),
    [
        ("return np.zeros(2, np.float32), {}", "return np.zeros(2, np.float32)", r"reset with seed 3 returned array.*reset takes seed and"),
        ("reset(self, *, seed=None, options=None)", "reset(self)", r"reset with seed 3 raised TypeError.*Gymnasium's reset takes seed and"),
        ("False, self.time == 5, {}", "self.time == 5, {}", r"step 1 of seed 3 returned \(array.*Gymnasium's step returns \(observation"),
        ("False, self.time == 5, {}", "False, {}, {}", r"step 1 of seed 3 returned \{\} where True or False belongs; Gymnasium's step"),
        ("1.0, False", "None, False", r"step 1 of seed 3 returned the reward None; a reward must be one number$"),
        ("1.0, False", "np.ones(2), False", r"step 1 of seed 3 returned the reward array\(\[1., 1.\]\); a reward must be one number$"),
        ("1.0, False", "float('nan'), False", r"returned the reward nan at step 1 of seed 3; rewards must be finite$"),
        ("np.full(2,", "np.full(3,", r"step 1 of seed 3 showed an observation of shape \(3,\), but its observation space is Box"),
        ("np.full(2,", "np.full((2, 1),", r"showed an observation of shape \(2, 1\)"),
        ("np.zeros(2, np.float32)", "np.zeros(4, np.float32)", r"reset with seed 3 showed an observation of shape \(4,\)"),
        ("np.zeros(2, np.float32)", "'nothing'", r"reset with seed 3 showed 'nothing', which is no observation of Box"),
        ("np.zeros(2, np.float32)", "(1, [2, 3])", r"reset with seed 3 showed \(1, \[2, 3\]\), which is no observation of Box"),
        ("self.time += 1", "self.time += 1; 1 / (4 - self.time)", r"step 4 of seed 3 raised ZeroDivisionError: division by zero$"),
        ("self.time == 5, {}", "False, {}", r"has lasted 10,000 steps and there is no limit to it; set control.horizon to the steps"),
    ],
)  # fmt: skip
def test_one_that_breaks_its_promises_says_where(write, before: str, after: str, sentence: str) -> None:
    with pytest.raises(DataError, match=sentence) as found:
        play(write(before, after))
    assert "\n" not in str(found.value)


def test_a_horizon_sees_shapes_too(write) -> None:
    with pytest.raises(DataError, match=r"showed an observation of shape \(2, 1\)"):
        play(write("np.full(2,", "np.full((2, 1),"), horizon=5)


def test_a_limit_ends_what_does_not_end_by_itself(write) -> None:
    name = write("self.time == 5, {}", "False, {}")
    assert play(name, horizon=12) == 12
    assert play(name, max_episode_steps=7) == 7
    assert play("CartPole-v1", horizon=700) == 700, "beyond the environment's own limit of 500"


def test_pictures_are_taken_if_insisted_on(write) -> None:
    name = write("Box(0, 100, (2,), np.float32)", "Box(0, 255, (4, 4, 3), np.uint8)")
    assert inputs(environment(name, pixels=True)) == 48


def test_one_that_draws_for_people_alone_gives_no_clips(write) -> None:
    with pytest.raises(ConfigError, match=r"cannot be drawn: its render modes are \['human'\], and clips need 'rgb_array'"):
        environment(write(), kwargs={"render_mode": "rgb_array"})


def test_parts_and_states_are_looked_at() -> None:
    class Parts(gymnasium.Env):
        observation_space = Dict({"where": Box(-1, 1, (2,)), "mode": Discrete(3, start=1)})
        action_space = Discrete(2)
        shown: dict = {}  # noqa: RUF012

        def reset(self, *, seed=None, options=None):
            return self.shown, {}

    env = environments.Checked(Parts(), "Parts-v0")
    where = np.zeros(2, np.float32)
    Parts.shown = {"where": where, "mode": 3}
    env.reset(seed=1)
    for wrong, sentence in (
        ({"where": where}, "has the parts mode, where"),
        ({"where": where, "mode": 0}, "showed 0, which its observation space Discrete"),
        ({"where": where, "mode": 1.5}, r"showed 1.5, which is no observation of Discrete"),
        ({"where": where[:1], "mode": 1}, r"of shape \(1,\)"),
    ):
        Parts.shown = wrong
        with pytest.raises(DataError, match=sentence):
            env.reset(seed=1)


def test_an_environment_gets_whole_numbers_where_it_wants_them() -> None:
    space = Box(np.array([0, -3]), np.array([10, 3]), dtype=np.int32)
    found = allowed(space, np.array([2.7, -9.0], np.float32))
    assert found.dtype == np.int32
    assert found.tolist() == [3, -3], "rounded, and held within the bounds"
    assert allowed(Box(0, 255, (1,), np.uint8), np.array([300.2])).tolist() == [255]
    assert allowed(Box(-1, 1, (3,)), np.array([0.5, -9.0, 1.5], np.float32)).tolist() == [0.5, -1.0, 1.0]


class Sum(gymnasium.Env):
    """Shows the sum of the actions since the reset; `received` holds every action as it came."""

    observation_space = Box(-1000, 1000, (2,), np.float32)
    action_space = Box(-3, 3, (2,), np.int32)
    received: list[np.ndarray] = []  # noqa: RUF012

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.total = np.zeros(2)
        return self.total.astype(np.float32), {}

    def step(self, action):
        self.received.append(action)
        self.total = self.total + action
        return self.total.astype(np.float32), 1.0, False, False, {}


def test_acting_and_replay_give_an_environment_whole_numbers(tmp_path: Path) -> None:
    name = "test/Sum-v0"
    gymnasium.register(name, Sum, max_episode_steps=20)
    Sum.received.clear()

    def make() -> gymnasium.Env:
        return environment(name)

    try:
        policy = ControlPolicy(inputs(make()), make().action_space)
        first, second = ControlSampler(policy, make).sample([Task(name, "3"), Task(name, "4")], 0)
        assert len(Sum.received) == 40
        assert first.actions is not None
        assert first.actions.dtype.kind == "f", "what the policy drew is what is learned from"
        segments = RolloutSegments(policy, make, 2, 15, seed=0)
        segments.collect(0)
        assert len(Sum.received) == 40 + 30
        RolloutSegments(policy, make, 2, 15, seed=0).load_state_dict(segments.state_dict())
        assert len(Sum.received) == 70 + 30, "it is brought back to where it was"
        store = Store(str(tmp_path / "store.db"))
        store.ask("r", [Comparison((first,), (second,), key="1")])
        for trajectory in (t for side in store.questions("r")[0].comparison.sides for t in side):
            assert list(again(trajectory, make())) == [*range(21)]
        store.close()
        assert len(Sum.received) == 100 + 40
        assert {(action.dtype, action.shape) for action in Sum.received} == {(np.dtype(np.int32), (2,))}
        assert {*np.concatenate(Sum.received)} <= {*range(-3, 4)}
    finally:
        gymnasium.registry.pop(name)


def test_arguments_and_wrappers_of_a_named_environment(write) -> None:
    name = write()
    with Path(f"{name.partition(':')[0]}.py").open("a") as file:
        file.write(textwrap.dedent(WRAPPERS))
    module = name.partition(":")[0]
    env = environment(name, wrappers=[f"{module}:Doubled", f"{module}:shifted"])
    env.reset(seed=0)
    assert env.step(0)[1] == 3.0, "the first one innermost"
    skipping = environment("Pendulum-v1", 60, wrappers=[f"{module}:Skips"])
    skipping.reset(seed=0)
    ends = [skipping.step(np.zeros(1, np.float32))[3] for _ in range(60)]
    assert ends == [False] * 59 + [True], "a horizon counts the steps that are seen"
    heavy, light = (environment("Pendulum-v1", kwargs={"g": g}) for g in (20.0, 1.0))
    first = [e.reset(seed=3)[0] for e in (heavy, light)]
    assert (first[0] == first[1]).all()
    assert not (heavy.step(np.zeros(1, np.float32))[0] == light.step(np.zeros(1, np.float32))[0]).all()
    for wrappers, why in (
        ([f"{module}:with_more"], r"raised TypeError: .*more.*; it is called with the environment alone"),
        ([f"{module}:no_env"], "returned 3, which is no gymnasium.Env"),
        ([f"{module}:Double"], "did you mean 'Doubled'?"),
        (["nowhere:at"], "control.wrappers: the module 'nowhere' cannot be imported"),
        (["mine"], "control.wrappers is 'mine'; write \"module:name\""),
    ):
        with pytest.raises(ConfigError, match=why):
            environment(name, wrappers=wrappers)
    with pytest.raises(ConfigError, match="constructor raised TypeError: .*gravty"):
        environment("Pendulum-v1", kwargs={"gravty": 1.0})


def test_arguments_that_are_rathers_own_are_refused(tmp_path: Path) -> None:
    for changed, why in (
        ("control.kwargs={render_mode = 'human'}", "kwargs cannot set render_mode: clips need their own"),
        ("control.kwargs={max_episode_steps = 5}", "kwargs cannot set max_episode_steps: set control.horizon"),
        ("control.kwargs={when = 2020-01-01}", "kwargs cannot be kept: Object of type date is not JSON serializable"),
    ):
        with pytest.raises(ConfigError, match=why):
            toml.load(None, ["control.env=Pendulum-v1", changed])
    with pytest.raises(ConfigError, match="kwargs is of an environment, and control.env is empty"):
        toml.load(None, ["control.kwargs={g = 1.0}"])
    known = toml.load(None, ["control.env=Pendulum-v1", "control.kwargs={g = 1.0}", "control.wrappers=['a:b']"])
    (tmp_path / "run.toml").write_text(toml.document(known))
    assert toml.load(tmp_path / "run.toml") == known


def test_an_environment_may_change_what_it_is_given(write) -> None:
    name = write("def __init__(self, render_mode=None):", "def __init__(self, render_mode=None, table=()):\n            table.append(1)")
    kwargs = {"table": [1, 2]}
    for _ in range(3):
        environment(name, kwargs=kwargs)
    assert kwargs == {"table": [1, 2]}


def test_an_environment_that_shows_the_same_array_again(write) -> None:
    name = write("return np.full(2, self.time, np.float32), 1.0", "self.shown[:] = self.time; return self.shown, 1.0")
    text = Path(f"{name.partition(':')[0]}.py").read_text()
    changed = text.replace("return np.zeros(2, np.float32), {}", "self.shown = np.zeros(2, np.float32); return self.shown, {}")
    Path(f"{name.partition(':')[0]}.py").write_text(changed)
    env = environment(name)
    (found,) = ControlSampler(ControlPolicy(inputs(env), env.action_space), lambda: env).sample([Task(name, "3")], 0)
    assert found.observations is not None
    assert found.observations[:, 0].tolist() == [0, 1, 2, 3, 4, 5]


def test_rewards_that_do_not_follow_the_seed_are_refused_on_resume(write) -> None:
    name = write("return np.full(2, self.time, np.float32), 1.0", "return np.full(2, self.time, np.float32), np.random.random()")
    policy = ControlPolicy(2, Discrete(2))
    source = RolloutSegments(policy, lambda: environment(name), 2, 3, 0)
    source.collect(0)
    state = source.state_dict()
    with pytest.raises(DataError, match="bring other rewards than before"):
        RolloutSegments(policy, lambda: environment(name), 2, 3, 0).load_state_dict(state)
    RolloutSegments(policy, lambda: environment(name), 2, 3, 0).load_state_dict({k: v for k, v in state.items() if k != "returns"})
