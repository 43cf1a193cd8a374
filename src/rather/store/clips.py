"""Clips of control trajectories: picture sheets that a browser plays, kept beside the trajectories they show."""

from dataclasses import asdict, dataclass

from sqlalchemy import Select, delete, func, insert, literal_column, select
from sqlalchemy.exc import IntegrityError

from rather.core import Trajectory
from rather.store import rows
from rather.store import tables as t
from rather.store.store import Store

FAILED = t.clip.c.problem != literal_column("''")
"""As the index has it, so that those that could not be drawn are found without looking at the others."""
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


def _asked(run: str) -> Select[tuple[int]]:
    """The trajectories that a run asks about."""
    return select(t.side.c.trajectory).join(t.comparison).where(t.comparison.c.run == run)


def missing(store: Store, run: str) -> list[tuple[int, Trajectory]]:
    """The run's control trajectories that have no clip yet, with their numbers, in the order they were asked about."""
    drawn = select(t.clip.c.trajectory).where(t.clip.c.trajectory == t.trajectory.c.id).exists()
    wanted = select(t.trajectory).where(t.trajectory.c.id.in_(_asked(run)), t.trajectory.c.text.is_(None), ~drawn)
    with store.transaction() as connection:
        return [(number, rows.from_row(*row)) for number, *row in connection.execute(wanted.order_by(t.trajectory.c.id))]


def keep(store: Store, trajectory: int, clip: Clip | None, problem: str = "") -> None:
    """Keep a trajectory's clip, or why there is none. The first one counts, but for a clip that somebody could draw after all."""
    facts = {} if clip is None else {k: v for k, v in asdict(clip).items() if k != "webp"}
    values = {"trajectory": trajectory, "webp": clip and clip.webp, "facts": facts, "problem": problem}
    try:
        with store.transaction(write=True) as connection:
            if clip is not None:
                connection.execute(delete(t.clip).where(t.clip.c.trajectory == trajectory, t.clip.c.problem != ""))
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
    """Why clips could not be drawn, the first reason first."""
    asked = _asked(run).where(t.side.c.trajectory == t.clip.c.trajectory)
    wanted = select(t.clip.c.problem).where(FAILED, asked.correlate(t.clip).exists())
    with store.transaction() as connection:
        return list(dict.fromkeys(connection.execute(wanted.order_by(t.clip.c.trajectory)).scalars()))


def undrawable(store: Store, run: str) -> set[int]:
    """The numbers of the questions that are not given out, since a clip of theirs could not be drawn."""
    wanted = select(t.side.c.comparison).select_from(ASKED).where(t.comparison.c.run == run, FAILED)
    with store.transaction() as connection:
        return set(connection.execute(wanted).scalars())


@dataclass(frozen=True)
class Progress:
    """How many of a run's clips are drawn, could not be drawn and are still to be drawn, and why the first one could not."""

    drawn: int
    failed: int
    waiting: int
    problem: str

    def __str__(self) -> str:
        """One sentence, for people."""
        parts = [f"{self.drawn} clips are drawn"]
        parts += [f"{self.waiting} are still to be drawn"] * bool(self.waiting)
        parts += [f"{self.failed} cannot be drawn, and their questions are not given out: {self.problem}"] * bool(self.failed)
        return ", ".join(parts)


def progress(store: Store, run: str) -> Progress:
    """How far the drawing of a run's clips is."""
    shown = t.trajectory.outerjoin(t.clip, t.clip.c.trajectory == t.trajectory.c.id)
    counts = select(func.count(t.trajectory.c.id), func.count(t.clip.c.trajectory), func.count(t.clip.c.webp)).select_from(shown)
    with store.transaction() as connection:
        every, tried, drawn = connection.execute(counts.where(t.trajectory.c.id.in_(_asked(run)), t.trajectory.c.text.is_(None))).one()
    return Progress(drawn, tried - drawn, every - tried, next(iter(problems(store, run)), ""))


def retry(store: Store, run: str) -> None:
    """Forget why clips could not be drawn, so that they are tried again."""
    with store.transaction(write=True) as connection:
        connection.execute(delete(t.clip).where(t.clip.c.trajectory.in_(_asked(run)), t.clip.c.problem != ""))
