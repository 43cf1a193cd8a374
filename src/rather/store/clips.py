"""Clips of control trajectories: picture sheets that a browser plays, kept beside the trajectories they show."""

from dataclasses import asdict, dataclass

from sqlalchemy import insert, select
from sqlalchemy.exc import IntegrityError

from rather.core import Trajectory
from rather.store import rows
from rather.store import tables as t
from rather.store.store import Store

ASKED = t.clip.join(t.side, t.side.c.trajectory == t.clip.c.trajectory).join(t.comparison, t.comparison.c.id == t.side.c.comparison)


@dataclass(frozen=True)
class Clip:
    """A WebP picture of `frames` frames of `width` x `height` pixels, `columns` side by side, each shown for `milliseconds`."""

    webp: bytes
    frames: int
    columns: int
    width: int
    height: int
    milliseconds: int


def missing(store: Store, run: str) -> list[tuple[int, Trajectory]]:
    """The run's control trajectories that have no clip yet, with their numbers, in the order they were asked about."""
    asked = select(t.side.c.trajectory).join(t.comparison).where(t.comparison.c.run == run)
    drawn = select(t.clip.c.trajectory).where(t.clip.c.trajectory == t.trajectory.c.id).exists()
    wanted = select(t.trajectory).where(t.trajectory.c.id.in_(asked), t.trajectory.c.text.is_(None), ~drawn)
    with store.transaction() as connection:
        return [(r.id, rows.from_row(r)) for r in connection.execute(wanted.order_by(t.trajectory.c.id))]


def keep(store: Store, trajectory: int, clip: Clip | None, problem: str = "") -> None:
    """Keep a trajectory's clip, or why there is none; the first one counts."""
    facts = {} if clip is None else {k: v for k, v in asdict(clip).items() if k != "webp"}
    values = {"trajectory": trajectory, "webp": clip and clip.webp, "facts": facts, "problem": problem}
    try:
        with store.transaction(write=True) as connection:
            connection.execute(insert(t.clip).values(values))
    except IntegrityError:
        pass  # somebody else was faster


def facts(store: Store, trajectories: list[int]) -> dict[int, dict[str, int]]:
    """What a browser needs to know of each clip: frames, columns, width, height, milliseconds."""
    wanted = select(t.clip.c.trajectory, t.clip.c.facts).where(t.clip.c.trajectory.in_(trajectories))
    with store.transaction() as connection:
        return {r.trajectory: r.facts for r in connection.execute(wanted)}


def picture(store: Store, trajectory: int, run: str) -> bytes | None:
    """The WebP picture, if the run asks about that trajectory."""
    wanted = select(t.clip.c.webp).select_from(ASKED)
    wanted = wanted.where(t.clip.c.trajectory == trajectory, t.comparison.c.run == run)
    with store.transaction() as connection:
        return connection.execute(wanted.limit(1)).scalar()


def problems(store: Store, run: str) -> list[str]:
    """Why clips could not be made."""
    wanted = select(t.clip.c.problem).select_from(ASKED)
    with store.transaction() as connection:
        return sorted(set(connection.execute(wanted.where(t.comparison.c.run == run, t.clip.c.problem != "")).scalars()))
