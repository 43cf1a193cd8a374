"""Episodes as video files: WebP and GIF animations, and MP4.

Shape letters: F frames, H and W pixels.
"""

from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from PIL import Image

from rather.control.clips import frames
from rather.core import Trajectory
from rather.errors import ConfigError, installing

SUFFIXES = (".webp", ".gif", ".mp4")
PER_SECOND = 30
"""Frames of a second at most; of an environment that is faster some are left out."""


def check(file: Path) -> None:
    """Make sure that a video can be written there, before anything acts.

    Raises:
        ConfigError: its name ends otherwise, or a package is missing.
    """
    if file.suffix not in SUFFIXES:
        raise ConfigError(f"{file} must end in {', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]}, which says what kind of video it is")
    if file.suffix == ".mp4" and find_spec("av") is None:
        raise ConfigError(f"{file} needs the package av: {installing('video')}; .webp and .gif need nothing more")


def write(trajectories: Sequence[Trajectory], make: Callable[[], gymnasium.Env], file: Path) -> int:
    """Play episodes again, one after the other, and write what is seen at the environment's own speed; returns how many frames.

    Raises:
        DataError: an environment shows something else than the record says, or draws no pictures.
    """
    check(file)
    env = make()
    try:
        speed = int(env.metadata.get("render_fps") or PER_SECOND)
        every = -(-speed // PER_SECOND)
        seen = (frame for t in trajectories for frame in frames(t, env, every))
        file.parent.mkdir(parents=True, exist_ok=True)
        part = file.with_name(f".{file.stem}.part{file.suffix}")
        count = (_mp4 if file.suffix == ".mp4" else _animation)(seen, part, speed / every)
        part.replace(file)
        return count
    finally:
        env.close()


def _animation(seen: Iterator[np.ndarray], file: Path, per_second: float) -> int:
    pictures = [Image.fromarray(frame) for frame in seen]
    options: dict[str, Any] = {"method": 2, "quality": 70} if file.suffix == ".webp" else {}
    pictures[0].save(file, save_all=True, append_images=pictures[1:], duration=round(1000 / per_second), loop=0, **options)
    return len(pictures)


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
