"""Episodes as video files: WebP and GIF animations, and MP4.

Shape letters: F frames, H and W pixels.
"""

import math
import os
from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from PIL import Image

from rather.control.clips import frames
from rather.core import Trajectory
from rather.errors import ConfigError, DataError, installing

SUFFIXES = (".webp", ".gif", ".mp4")
PER_SECOND = 30
"""Frames of a second at most; of an environment that is faster some are left out."""
WIDTH = 480
"""Pixels across an animation (WebP, GIF) at most."""


def check(file: Path) -> None:
    """Make sure that a video can be written there, before anything acts.

    Raises:
        ConfigError: its name ends otherwise, it or its folder cannot be written, or a package is missing.
    """
    if file.suffix not in SUFFIXES:
        raise ConfigError(f"{file} must end in {', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]}, which says what kind of video it is")
    if file.is_dir() or not (near := next(p for p in file.absolute().parents if p.exists())).is_dir() or not os.access(near, os.W_OK):
        raise ConfigError(f"{file} cannot be written: {'it is a folder' if file.is_dir() else 'its folder cannot be written to'}")
    if file.suffix == ".mp4" and find_spec("av") is None:
        raise ConfigError(f"{file} needs the package av: {installing('video')}; .webp and .gif need nothing more")


def write(trajectories: Sequence[Trajectory], make: Callable[[], gymnasium.Env], file: Path) -> int:
    """Play episodes again, one after the other, and write what is seen at the environment's own speed; returns how many frames.

    Raises:
        DataError: an environment shows something else than the record says, or draws no pictures.
    """
    check(file)
    env = make()
    part = file.with_name(f".{file.stem}.part{file.suffix}")
    try:
        speed = _speed(env)
        every = math.ceil(speed / PER_SECOND)
        seen = _of_one_size(frame for t in trajectories for frame in frames(t, env, every))
        file.parent.mkdir(parents=True, exist_ok=True)
        count = (_mp4 if file.suffix == ".mp4" else _animation)(seen, part, speed / every)
        part.replace(file)
        return count
    finally:
        part.unlink(missing_ok=True)
        env.close()


def _speed(env: gymnasium.Env) -> float:
    """Frames of a second, as the environment says."""
    said = env.metadata.get("render_fps") or PER_SECOND
    if not (isinstance(said, int | float) and 0 < said < math.inf):
        raise DataError(f"the environment's render_fps is {said!r}; it must be a number above 0")
    return float(said)


def _of_one_size(seen: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
    first = None
    for frame in seen:
        first = frame.shape if first is None else first
        if frame.shape != first:
            raise DataError(
                f"the environment draws {first[1]} x {first[0]} pixels in one episode and {frame.shape[1]} x {frame.shape[0]} in another"
            )
        yield frame


def _animation(seen: Iterator[np.ndarray], file: Path, per_second: float) -> int:
    pictures = [_smaller(Image.fromarray(frame)) for frame in seen]
    unit = 10 if file.suffix == ".gif" else 1  # milliseconds that such a file can tell apart
    ends = [round(1000 * i / per_second / unit) * unit for i in range(len(pictures) + 1)]
    options: dict[str, Any] = {"method": 2, "quality": 70} if file.suffix == ".webp" else {}
    pictures[0].save(file, save_all=True, append_images=pictures[1:], duration=[b - a for a, b in pairwise(ends)], loop=0, **options)
    return len(pictures)


def _smaller(picture: Image.Image) -> Image.Image:
    """A picture of WIDTH pixels across at most: all of an animation are in memory."""
    if picture.width <= WIDTH:
        return picture
    return picture.resize((WIDTH, max(1, round(picture.height * WIDTH / picture.width))), Image.Resampling.LANCZOS)


def _mp4(seen: Iterator[np.ndarray], file: Path, per_second: float) -> int:
    from fractions import Fraction

    import av

    count = 0
    with av.open(str(file), "w") as out:
        stream = out.add_stream("libx264", rate=Fraction(per_second).limit_denominator(1000))
        for frame in seen:
            height, width = (size - size % 2 for size in frame.shape[:2])  # of colors at half the resolution there are whole ones alone
            if not count:
                stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
            out.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame[:height, :width]), format="rgb24")))
            count += 1
        out.mux(stream.encode())
    return count
