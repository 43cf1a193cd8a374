"""Environments at the boundary: made by name, and held to what Gymnasium promises. Errors say in a sentence what one does wrong.

Shape letter: I inputs.
"""

import difflib
import importlib
import sys
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any, NoReturn, TypeGuard

import gymnasium
import numpy as np
from gymnasium.envs.registration import load_env_creator
from gymnasium.error import Error
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete, Space, Tuple, flatdim, flatten
from numpy.typing import ArrayLike

from rather.control.wrappers import CombinedActions, FixedHorizon, GoldReward
from rather.errors import ConfigError, DataError, RatherError
from rather.settings import check_seed
from rather.verify.functions import load_function

LONGEST = 10_000
"""Steps that an episode may last where neither the environment nor control.horizon limits them."""

FORMS = {
    "reset": (2, "Gymnasium's reset takes seed and options and returns (observation, info)"),
    "step": (5, "Gymnasium's step returns (observation, reward, terminated, truncated, info)"),
}
"""How many parts each returns, and which."""


Env = gymnasium.Env
Maker = Callable[[], gymnasium.Env]


def environment(
    of: str | Maker,
    horizon: int | None = None,
    gold: str = "",
    pixels: bool = False,
    wrappers: Sequence[str] = (),
    kwargs: Mapping[str, object] | None = None,
) -> gymnasium.Env:
    """The Gymnasium environment of that name, or `module:name` of a module that registers it, in the current folder or installed.

    Or what a function without arguments makes; `kwargs` are for the constructors of named ones. It is put into `wrappers`, the first
    innermost: each is the "module:name" of what takes an environment and returns one. Every episode lasts `horizon` steps if that is
    given, and pays the growth of `info[gold]` if that is. Only with `pixels` may observations be pictures.

    Raises:
        ConfigError: there is none of that name, it cannot be made or drawn, or its spaces are of a kind that cannot be learned.
    """
    name = title(of)
    try:
        env = _registered(of, horizon if not wrappers or horizon is None else -1, kwargs or {}) if isinstance(of, str) else _made(of)
        seen, done = env.observation_space, env.action_space
    except Error as e:
        near = difflib.get_close_matches(name.rpartition(":")[2], gymnasium.registry, 1)
        hint = f"; did you mean {near[0]}?" if near and near[0] != name else ""
        raise ConfigError(f"the environment {name!r} cannot be made: {_first_line(e)}{hint}") from None
    except RatherError:
        raise
    except ModuleNotFoundError as e:
        raise ConfigError(f"the environment {name!r} cannot be made: it needs the package {e.name}; install it") from None
    except Exception as e:
        missing = isinstance(e, TypeError) and "required" in str(e)
        hint = "; give the arguments of its constructor defaults, or set control.kwargs" if missing else ""
        raise ConfigError(f"the environment {name!r} cannot be made: its constructor raised {_named(e)}{hint}") from e
    for wrapper in wrappers:
        env = _wrapped(env, wrapper)
    combined = CombinedActions(env) if isinstance(env.action_space, MultiDiscrete | MultiBinary) else None
    env = combined or env
    seen, done = env.observation_space, env.action_space
    _check(seen, f"observations of {name}")
    if isinstance(done, Box) and not np.prod(done.shape):
        raise ConfigError(f"actions of {name} are {done}, which holds no number; there is nothing to do")
    if not (isinstance(done, Discrete) or (isinstance(done, Box) and len(done.shape) == 1)):
        raise ConfigError(
            f"actions of {name} are {done}; choices (Discrete, MultiDiscrete, MultiBinary) or a Box of one dimension can be learned"
        )
    if not pixels:
        _check_size(seen, name)
    own = None if env.spec is None else env.spec.max_episode_steps
    if horizon is not None and own is not None and own < horizon:
        raise ConfigError(f"horizon is {horizon}, but {name} makes environments that end after {own} steps; make them without that limit")
    limited = horizon is not None or own is not None
    env = Checked(env, name, None if limited else LONGEST, combined)
    if gold:
        env = GoldReward(env, gold)
    return env if horizon is None else FixedHorizon(env, horizon)


def title(of: str | Maker) -> str:
    """What an environment is called: its name, or that of the function which makes it."""
    return of if isinstance(of, str) else getattr(of, "__qualname__", type(of).__name__)


def check_env(env: object, seed: object) -> None:
    """Refuse what is neither the id of an environment nor a function that makes one, and what is no seed.

    Raises:
        ConfigError: it is neither, or the seed is no whole number of 0 or more.
    """
    check_seed(seed)
    if not (isinstance(env, str) or callable(env)):
        hint = "; give a function that makes it, such as lambda: MyEnv()" if isinstance(env, gymnasium.Env) else ""
        raise ConfigError(f"env is {env!r}, which is neither the id of an environment nor a function that makes one{hint}")


def _made(of: Maker) -> gymnasium.Env:
    env = of()
    if not isinstance(env, gymnasium.Env):
        raise ConfigError(f"the function {title(of)!r} made {_short(env)}, which is no gymnasium.Env")
    return env


def _registered(name: str, limit: int | None, kwargs: Mapping[str, object]) -> gymnasium.Env:
    """The environment of that name, which ends after `limit` steps of its own; -1: without a limit, since wrappers may count otherwise."""
    _import(name)
    options: dict[str, Any] = {"disable_env_checker": True, **({} if limit is None else {"max_episode_steps": limit})}
    options |= deepcopy(dict(kwargs))  # an environment may change what it is given
    if (mode := options.get("render_mode")) in ("rgb_array", "human"):
        _check_drawn(name, mode)
    return gymnasium.make(name.rpartition(":")[2], **options)


def _wrapped(env: gymnasium.Env, wrapper: str) -> gymnasium.Env:
    function = load_function(wrapper, "control.wrappers")
    try:
        found = function(env)
    except RatherError:
        raise
    except Exception as e:
        hint = "; it is called with the environment alone" if isinstance(e, TypeError) else ""
        raise ConfigError(f"the wrapper {wrapper!r} raised {_named(e)}{hint}") from e
    if not isinstance(found, gymnasium.Env):
        raise ConfigError(f"the wrapper {wrapper!r} returned {_short(found)}, which is no gymnasium.Env")
    return found


def _import(name: str) -> None:
    """Import the module that registers the environment, if the name has one."""
    module = name.rpartition(":")[0]
    if not module:
        return
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.append(here)
    try:
        importlib.import_module(module)
    except ModuleNotFoundError as e:
        if e.name and (module == e.name or module.startswith(f"{e.name}.")):
            where = f"it is looked for in the current folder, {here}, and among the installed packages"
            raise ConfigError(f"there is no module {module!r}, which control.env = {name!r} names; {where}") from None
        raise ConfigError(f"the environment {name!r} cannot be made: it needs the package {e.name}; install it") from None
    except Exception as e:
        raise ConfigError(f"the environment {name!r} cannot be made: importing {module} raised {_named(e)}") from e


def _check_drawn(name: str, mode: str) -> None:
    creator: Any = gymnasium.spec(name.rpartition(":")[2]).entry_point
    creator = load_env_creator(creator) if isinstance(creator, str) else creator
    modes = (getattr(creator, "metadata", None) or {}).get("render_modes")
    if isinstance(creator, type) and mode not in (modes or []):
        what = "a window needs" if mode == "human" else "clips need"
        raise ConfigError(f"{name} cannot be drawn: its render modes are {list(modes or [])}, and {what} {mode!r}")


def _parts(space: Space) -> list[Space]:
    """What a space is made of in the end."""
    if not isinstance(space, Dict | Tuple):
        return [space]
    within = space.spaces.values() if isinstance(space, Dict) else space.spaces
    return [part for each in within for part in _parts(each)]


def _check(space: Space, what: str) -> None:
    if not all(isinstance(part, Box | Discrete | MultiDiscrete | MultiBinary) for part in _parts(space)):
        kinds = "a Box, a Discrete, MultiDiscrete or MultiBinary space, and a Dict or Tuple of them"
        raise ConfigError(f"{what} are {space}; {kinds} can be learned")
    if not flatdim(space):
        raise ConfigError(f"{what} are {space}, which holds no number; there is nothing to learn from")


def _check_size(space: Space, name: str) -> None:
    for part in _parts(space):
        if isinstance(part, Box) and (len(part.shape) >= 3 or is_picture(part)):
            numbers = int(np.prod(part.shape))
            each = 1 if space is part and is_picture(part) else 4
            size = f"{numbers:,} numbers a step, {numbers * each * 1000 / 2**20:,.1f} MiB for every 1,000 steps"
            remedy = 'set control.network = "cnn", take an environment that shows a few numbers, or insist with control.pixels = true'
            raise ConfigError(f"{name} shows pictures of {' x '.join(map(str, part.shape))}, {size}; {remedy}")


class Checked(gymnasium.Wrapper):
    """Passes on observations and rewards of an environment once they are what Gymnasium promises; `longest` bounds the steps of an episode.

    `combined` is the wrapper that it was put into for its actions, if there is one.

    Raises:
        DataError: `reset` or `step` raised something or returned something else, or an episode went on for too long.
    """

    def __init__(self, env: gymnasium.Env, name: str, longest: int | None = None, combined: CombinedActions | None = None) -> None:
        super().__init__(env)
        self.name, self.longest, self.space, self.combined = name, longest, env.observation_space, combined
        self.seed: int | None = None
        self.time = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Start an episode."""
        self.seed, self.time = seed, 0
        observation, info = self._call("reset", seed=seed, options=options)
        return observation, info

    def step(self, action: object) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Act."""
        self.time += 1
        if self.longest is not None and self.time > self.longest:
            raise DataError(
                f"an episode of {self.name} has lasted {self.longest:,} steps and there is no limit to it;"
                " set control.horizon to the steps that an episode should last"
            )
        observation, reward, terminated, truncated, info = self._call("step", action)
        if not isinstance(reward, int | float | np.number) and not (isinstance(reward, np.ndarray) and reward.ndim == 0):
            self._wrong("step", f"returned the reward {_short(reward)}; a reward must be one number")
        for flag in (terminated, truncated):
            if not isinstance(flag, bool | np.bool_ | int):
                self._wrong("step", f"returned {_short(flag)} where True or False belongs; {FORMS['step'][1]}")
        return observation, float(reward), bool(terminated), bool(truncated), info

    def _call(self, what: str, *given: Any, **named: Any) -> tuple[Any, ...]:
        """What the environment's `reset` or `step` returns, whose parts are as many as promised and begin with an observation."""
        parts, form = FORMS[what]
        try:
            found = getattr(self.env, what)(*given, **named)
        except RatherError:
            raise
        except Exception as e:
            hint = f"; {form}" if isinstance(e, TypeError | ValueError) else ""
            raise DataError(f"{self._where(what)} raised {_named(e)}{hint}") from e
        if not (isinstance(found, tuple) and len(found) == parts and isinstance(found[-1], dict)):
            self._wrong(what, f"returned {_short(found)}; {form}")
        self._check_shape(found[0], what)
        return found

    def _check_shape(self, observation: Any, what: str) -> None:
        if said := misfit(self.space, observation):
            self._wrong(what, f"showed {said}")

    def _wrong(self, what: str, sentence: str) -> NoReturn:
        raise DataError(f"{self._where(what)} {sentence}")

    def _where(self, what: str) -> str:
        return f"{self.name}: reset with seed {self.seed}" if what == "reset" else f"{self.name}: step {self.time} of seed {self.seed}"


def misfit(space: Space, observation: object) -> str:
    """What is wrong with an observation that a space does not hold, after "showed" or the like; "" if nothing is. Boxes may be left."""
    if isinstance(space, Box) and type(observation) is np.ndarray and (observation.shape, observation.dtype) == (space.shape, space.dtype):
        return ""  # as it nearly always is
    if isinstance(space, Dict):
        if not isinstance(observation, Mapping) or set(observation) != set(space.spaces):
            return f"{_short(observation)}, but its observation space has the parts {', '.join(space.spaces)}"
        return next((said for key, part in space.spaces.items() if (said := misfit(part, observation[key]))), "")
    if isinstance(space, Tuple):
        if not isinstance(observation, tuple) or len(observation) != len(space.spaces):
            return f"{_short(observation)}, but its observation space has {len(space.spaces)} parts"
        return next((said for part, seen in zip(space.spaces, observation, strict=True) if (said := misfit(part, seen))), "")
    try:
        array = np.asarray(observation)
    except ValueError:  # parts of different shapes
        array = np.asarray(None)
    if array.dtype.kind not in ("biuf" if isinstance(space, Box) else "biu"):
        return f"{_short(observation)}, which is no observation of {space}"
    if array.shape != (space.shape or ()):
        return f"an observation of shape {array.shape}, but its observation space is {space}"
    if not isinstance(space, Box) and not _holds(space, array):
        return f"{_short(array.tolist())}, which its observation space {space} does not hold"
    return ""


def _holds(space: Space, array: np.ndarray) -> bool:
    """Whether choices are among those of their space."""
    if isinstance(space, MultiBinary):
        return bool(((array == 0) | (array == 1)).all())
    first, count = (space.start, space.nvec) if isinstance(space, MultiDiscrete) else (space.start, space.n)  # type: ignore[attr-defined]
    return bool(((array >= first) & (array < first + count)).all())


def _named(error: Exception) -> str:
    """A foreign error on one line."""
    return f"{type(error).__name__}: {_first_line(error)}" if str(error) else type(error).__name__


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _short(value: Any) -> str:
    text = " ".join(repr(value).split())
    return text if len(text) <= 80 else f"{text[:77]}..."


def is_picture(space: Space) -> TypeGuard[Box]:
    """Whether a space holds pictures: a Box of bytes in two dimensions or more."""
    return isinstance(space, Box) and space.dtype == np.uint8 and len(space.shape) > 1


class Eye:
    """Observations of a space as flat vectors: (I,) float32, or uint8 where they are pictures, in a quarter of the memory."""

    def __init__(self, space: Space) -> None:
        self.space, self.plain = space, isinstance(space, Box) and len(space.shape) == 1
        self.dtype = np.uint8 if is_picture(space) else np.float32

    def __call__(self, observation: object) -> np.ndarray:
        found = np.asarray(observation if self.plain else flatten(self.space, observation), self.dtype)
        return found.copy() if found is observation else found  # some environments show the same array again


def allowed(space: Space, action: ArrayLike) -> int | np.ndarray:
    """The action, or several, as the environment takes them: choices, or numbers held within the bounds, whole ones where it says so."""
    action = np.asarray(action)
    if not isinstance(space, Box):
        return int(action) if action.ndim == 0 else action
    if space.dtype is not None and space.dtype.kind in "iu":
        return np.clip(np.rint(action).astype(np.int64), space.low, space.high).astype(space.dtype)
    return np.clip(action, space.low, space.high).astype(space.dtype)


def inputs(env: gymnasium.Env) -> int:
    """How many numbers an observation is, laid flat."""
    return flatdim(env.observation_space)
