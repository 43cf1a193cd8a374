"""Clips of episodes: played again from seed and actions, checked against the record, and kept as WebP animations.

Shape letters: F frames, H and W pixels.
"""

import io
from collections.abc import Callable, Iterator, Sequence

import gymnasium
import numpy as np
from PIL import Image

from rather.control.environments import Eye, allowed
from rather.core import Trajectory
from rather.errors import DataError


def lead(trajectory: Trajectory, env: gymnasium.Env) -> list[np.ndarray]:
    """Bring `env` to where an episode or fragment begins; the flat observations on the way, the last one that at its beginning.

    Raises:
        DataError: the environment shows something else there than the record says.
    """
    eye = Eye(env.observation_space)
    seen = [eye(env.reset(seed=int(trajectory.task.key))[0])]
    for action in trajectory.before if trajectory.before is not None else ():
        seen.append(eye(env.step(allowed(env.action_space, action))[0]))
    _check(trajectory, 0, seen[-1])
    return seen


def again(trajectory: Trajectory, env: gymnasium.Env) -> Iterator[int]:
    """Do again in `env` what was done in an episode or fragment: yields 0 at its beginning, and each step's number after that step.

    Raises:
        DataError: the environment shows something else than the record says.
    """
    assert trajectory.actions is not None
    lead(trajectory, env)
    eye = Eye(env.observation_space)
    yield 0
    for step, action in enumerate(trajectory.actions, 1):
        _check(trajectory, step, eye(env.step(allowed(env.action_space, action))[0]))
        yield step


def _check(trajectory: Trajectory, step: int, seen: np.ndarray) -> None:
    assert trajectory.observations is not None
    if not np.allclose(seen, trajectory.observations[step], atol=1e-5):
        where = f"step {step} of seed {trajectory.task.key}"
        raise DataError(
            f"the replay of {trajectory.task.source} differs from the record at {where}: the environment does not follow from seed and"
            " actions alone, or is another version"
        )


def replay(trajectory: Trajectory, make: Callable[[], gymnasium.Env], every: int = 1) -> np.ndarray:
    """The frames (F, H, W, 3) of an episode or fragment, one every so many steps, from an environment with `render_mode="rgb_array"`.

    Raises:
        DataError: the environment shows something else than the record says, or draws no pictures.
    """
    env = make()
    try:
        return np.stack([*frames(trajectory, env, every)])
    finally:
        env.close()


def frames(trajectory: Trajectory, env: gymnasium.Env, every: int = 1) -> Iterator[np.ndarray]:
    """The frames (H, W, 3) of an episode or fragment in an environment with `render_mode="rgb_array"`, one every so many steps.

    Raises:
        DataError: the environment shows something else than the record says, or draws no pictures.
    """
    if env.render_mode != "rgb_array":
        raise DataError(f"{trajectory.task.source} draws no pictures; make it with render_mode='rgb_array'")
    first = None
    for step in again(trajectory, env):
        if step % every == 0:
            frame = np.asarray(env.render())
            first = frame if first is None else first
            if frame.ndim != 3 or frame.shape[2] != 3 or frame.dtype != np.uint8 or frame.shape != first.shape:
                what = f"an array of shape {frame.shape} and {frame.dtype}" if frame.ndim else repr(frame.item())
                raise DataError(f"{trajectory.task.source} drew {what}; pictures must be (height, width, 3) bytes, all of one size")
            yield frame


def film(trajectory: Trajectory, make: Callable[[], gymnasium.Env], width: int = 320, per_second: int = 15) -> tuple[bytes, dict[str, int]]:
    """A picture sheet of an episode, and what is needed to play it: frames, columns, width, height, milliseconds.

    Raises:
        DataError: see `replay`.
    """
    env = make()
    try:
        speed = int(env.metadata.get("render_fps") or 30)
        every = max(1, round(speed / per_second))
        seen = np.stack([*frames(trajectory, env, every)])
    finally:
        env.close()
    height = max(1, round(seen.shape[1] * min(1, width / seen.shape[2])))
    if seen.shape[2] > width:
        seen = np.stack([np.asarray(Image.fromarray(f).resize((width, height), Image.Resampling.LANCZOS)) for f in seen])
    columns = min(10, len(seen))
    facts = {"frames": len(seen), "columns": columns, "width": seen.shape[2], "height": height}
    return sheet(seen, columns), facts | {"milliseconds": round(1000 * every / speed)}


def sheet(frames: np.ndarray, columns: int = 10, quality: int = 70) -> bytes:
    """All frames side by side in one WebP picture, row by row: frame-exact, and small enough to send."""
    rows = -(-len(frames) // columns)
    _, height, width, _ = frames.shape
    canvas = np.zeros((rows * height, columns * width, 3), np.uint8)
    for i, frame in enumerate(frames):
        row, column = divmod(i, columns)
        canvas[row * height : (row + 1) * height, column * width : (column + 1) * width] = frame
    return _webp([Image.fromarray(canvas)], quality=quality)


def animation(frames: Sequence[np.ndarray] | np.ndarray, milliseconds: int = 100, quality: int = 70) -> bytes:
    """An endless WebP animation."""
    return _webp([Image.fromarray(frame) for frame in frames], quality=quality, duration=milliseconds)


def _webp(pictures: list[Image.Image], quality: int, duration: int = 0) -> bytes:
    file = io.BytesIO()
    more = {"save_all": True, "append_images": pictures[1:], "duration": duration, "loop": 0} if len(pictures) > 1 else {}
    pictures[0].save(file, "WEBP", quality=quality, method=2, **more)
    return file.getvalue()
