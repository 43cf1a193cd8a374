"""Who may answer over the web: people with an invite link. The store keeps a hash of its token, never the token itself."""

import hashlib
import secrets
import unicodedata
from dataclasses import dataclass
from typing import Any, Literal

import sqlalchemy as sa
from sqlalchemy import ColumnElement, Connection, Row, select

from rather.errors import StoreError
from rather.store import counting, rows, written
from rather.store import tables as t
from rather.store.engine import now, scrub
from rather.store.store import Store

Role = Literal["annotator", "owner"]
DAY_S = 86_400
LONGEST_NAME = 80


@dataclass(frozen=True)
class Person:
    """Somebody with an invitation that holds, neither revoked nor expired: to one `run`, or with None to every run of the store.

    `judge` and `invitation` are their numbers in the store.
    """

    name: str
    role: str
    simulated: bool
    expires: float
    run: str | None
    judge: int
    invitation: int


def proper(name: str) -> str:
    """A person's name as it is kept: in Unicode's composed form, with single spaces.

    Raises:
        ValueError: it is empty or too long, has neither letter nor digit, or characters that cannot be seen.
    """
    kept = " ".join(unicodedata.normalize("NFC", name).split())
    if not any(c.isalnum() for c in kept) or len(kept) > LONGEST_NAME:
        raise ValueError(f"a name has 1 to {LONGEST_NAME} characters, and a letter or a digit among them")
    if not all(c.isprintable() or c in "\u200c\u200d" for c in kept):  # joiners, which some scripts write names with
        raise ValueError("a name has no characters that cannot be seen")
    return kept


def invite(store: Store, name: str, role: Role = "annotator", days: float = 30, simulated: bool = False, run: str | None = None) -> str:
    """Invite a person to a run, or without one to every run; returns the token, 128 bits that are kept nowhere.

    It ends the links of theirs that let in there, and what was begun under them. A `simulated` one is a program that answers as a person
    would; what it says is kept as a simulated judge's.

    Raises:
        StoreError: the name belongs to a judge that is no person, to a person of another role, or is like somebody else's.
    """
    with store.transaction() as connection:
        alike = [r.name for r in connection.execute(select(t.judge.c.name)) if _folded(r.name) == _folded(name) and r.name != name]
    if alike:
        raise StoreError(f"{name!r} is hard to tell from {alike[0]!r}, who is here already; take another name")
    judge = store.add_judge(name, "simulated" if simulated else "person")
    token, time = secrets.token_urlsafe(16), now()
    with store.transaction(write=True) as connection:
        there = [p for p in _everybody(connection, run) if p.judge == judge]
        if other := next((p.role for p in there if p.role != role), None):
            raise StoreError(f"{name!r} is already here as {other}; revoke that first, or take another name")
        _end(connection, judge, run)
        values = {"judge": judge, "run": run, "role": role, "hash": _hash(token), "created": time, "expires": time + days * DAY_S}
        connection.execute(sa.insert(t.invitation).values(values))
    return token


def revoke(store: Store, name: str, run: str | None = None) -> bool:
    """Take a person's invitations to a run back, or all of them: links and sessions end at once, answers stay. False if there was none."""
    with store.transaction(write=True) as connection:
        judge = connection.execute(select(t.judge.c.id).where(t.judge.c.name == name)).scalar()
        return judge is not None and _end(connection, judge, run) > 0


def erase(store: Store, name: str, run: str | None = None) -> int:
    """Delete all that a person has answered or written in a run, or in all of them, and their invitation; returns how many rows that were.

    With an answer that they wrote go the questions that show it, and what others said about those. Their name goes with the last of their
    answers. Nothing of it stays in the database's files; backups and exports are not reached.
    """
    with store.transaction(write=True) as connection:
        # Under this lock nobody writes an answer of theirs meanwhile.
        who = connection.execute(select(t.judge.c.id).where(t.judge.c.name == name).with_for_update()).scalar()
        if who is None:
            return 0
        c = t.comparison.c
        of_run = select(c.id).where(c.run == run) if run is not None else select(c.id)
        counting.forget(connection, who, run)
        again = select(t.probe.c.comparison).where(t.probe.c.judge == who, t.probe.c.comparison.in_(of_run))
        repeats = list(connection.execute(again).scalars())
        labels, leases = ((x.c.judge == who) & x.c.comparison.in_(of_run) for x in (t.label, t.lease))
        connection.execute(sa.delete(t.criterion).where(t.criterion.c.label.in_(select(t.label.c.id).where(labels))))
        decided = list(connection.execute(select(t.label.c.comparison).where(labels, t.label.c.kind == "decision").distinct()).scalars())
        gone = connection.execute(sa.delete(t.label).where(labels)).rowcount
        counting.answered(connection, decided)  # the decision before theirs holds again
        connection.execute(sa.delete(t.lease).where(leases))
        gone += written.erase(connection, who, run) + rows.delete_questions(connection, repeats)
        _end(connection, who, run)
        if connection.execute(select(t.label.c.id).where(t.label.c.judge == who).limit(1)).first() is None:
            for table in (t.lease, t.invitation, t.standing, t.probe):
                connection.execute(sa.delete(table).where(table.c.judge == who))
            connection.execute(sa.update(t.audit).where(t.audit.c.judge == who).values(judge=None))
            connection.execute(sa.update(t.audit).where(t.audit.c.who == name).values(who=""))
            connection.execute(sa.delete(t.judge).where(t.judge.c.id == who))
        connection.execute(sa.update(t.shared).values(erasures=t.shared.c.erasures + 1))
    scrub(store.engine)
    return gone


def erasures(store: Store) -> int:
    """How often anybody has been erased from the store."""
    with store.transaction() as connection:
        return connection.execute(select(t.shared.c.erasures)).scalar_one()


def session_key(store: Store) -> str:
    """The key that sessions are signed with: the same for all servers of the store."""
    with store.transaction() as connection:
        return connection.execute(select(t.shared.c.key)).scalar_one()


def note(store: Store, who: str, what: str, judge: int | None = None) -> None:
    """Write down what an owner did, and to whom; nothing takes it back, but for the name of who is erased."""
    with store.transaction(write=True) as connection:
        connection.execute(sa.insert(t.audit).values(who=who, what=what, judge=judge, created=now()))


def noted(store: Store, latest: int = 200) -> list[dict[str, Any]]:
    """What owners did, the latest first; `whom` is "" where it is about nobody, or about somebody who has been erased."""
    wanted = select(t.audit, t.judge.c.name).outerjoin(t.judge, t.judge.c.id == t.audit.c.judge).order_by(t.audit.c.id.desc())
    with store.transaction() as connection:
        found = connection.execute(wanted.limit(latest))
        return [{"who": r.who, "what": r.what, "whom": r.name or "", "created": r.created} for r in found]


def named(store: Store, judge: int) -> str | None:
    """The name of the judge with that number."""
    with store.transaction() as connection:
        return connection.execute(select(t.judge.c.name).where(t.judge.c.id == judge)).scalar()


def numbered(store: Store) -> dict[str, int]:
    """The numbers of all judges, by name."""
    with store.transaction() as connection:
        return {r.name: r.id for r in connection.execute(select(t.judge.c.name, t.judge.c.id))}


def bearer(store: Store, token: str) -> Person | None:
    """Whose token this is, if the invitation holds."""
    holds = (t.invitation.c.hash == _hash(token)) & (t.invitation.c.expires > now())
    with store.transaction() as connection:
        row = connection.execute(_INVITED.where(holds)).first()
    return None if row is None else _person(row)


def everybody(store: Store, run: str | None = None) -> list[Person]:
    """All people whose invitation holds, for a run or for any."""
    with store.transaction() as connection:
        return _everybody(connection, run)


_INVITED = select(t.invitation, t.judge.c.name, t.judge.c.kind).join(t.judge, t.judge.c.id == t.invitation.c.judge)


def _everybody(connection: Connection, run: str | None) -> list[Person]:
    wanted = _INVITED.where(t.invitation.c.expires > now()).order_by(t.invitation.c.id)
    return [_person(r) for r in connection.execute(wanted if run is None else wanted.where(lets_into(run)))]


def _person(r: Row[Any]) -> Person:
    return Person(r.name, r.role, r.kind == "simulated", r.expires, r.run, r.judge, r.id)


def lets_into(run: str) -> ColumnElement[bool]:
    """Which invitations are to that run, or to every one."""
    return (t.invitation.c.run == run) | t.invitation.c.run.is_(None)


def _end(connection: Connection, judge: int, run: str | None) -> int:
    """End a judge's links that let into a run, or all of them; returns how many those were."""
    which = sa.delete(t.invitation).where(t.invitation.c.judge == judge)
    return connection.execute(which if run is None else which.where(lets_into(run))).rowcount


def _folded(name: str) -> str:
    """What names have in common that look alike but for capitals and width."""
    return unicodedata.normalize("NFKC", name).casefold()


def _hash(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()
