"""Who may answer over the web: people with an invite link. The store keeps a hash of its token, never the token itself."""

import hashlib
import secrets
from dataclasses import dataclass
from typing import Any, Literal

import sqlalchemy as sa
from sqlalchemy import Row, select

from rather.errors import StoreError
from rather.store import counting
from rather.store import tables as t
from rather.store.engine import now
from rather.store.store import Store

Role = Literal["annotator", "owner"]
DAY_S = 86_400


@dataclass(frozen=True)
class Person:
    """Somebody with an invitation that holds: neither revoked nor expired."""

    name: str
    role: str
    simulated: bool = False
    expires: float = 0.0


def invite(store: Store, name: str, role: Role = "annotator", days: float = 30, simulated: bool = False) -> str:
    """Invite a person, or give them a new link in place of the old one; returns the token, 128 bits that are kept nowhere.

    A `simulated` one is a program that answers as a person would; what it says is kept as a simulated judge's.

    Raises:
        StoreError: the name belongs to a judge that is no person, or to a person of another role.
    """
    store.add_judge(name, "simulated" if simulated else "person")
    token = secrets.token_urlsafe(16)
    known = person(store, name)
    if known is not None and known.role != role:
        raise StoreError(f"{name!r} is already here as {known.role}; revoke that first, or take another name")
    values = {"role": role, "invite_hash": _hash(token), "details": {"expires": now() + days * DAY_S}}
    with store.transaction(write=True) as connection:
        connection.execute(sa.update(t.judge).where(t.judge.c.name == name).values(values))
    return token


def revoke(store: Store, name: str) -> None:
    """Take a person's invitation back: their link and their sessions end at once; their answers stay."""
    with store.transaction(write=True) as connection:
        connection.execute(sa.update(t.judge).where(t.judge.c.name == name).values(invite_hash=None))


def erase(store: Store, name: str) -> int:
    """Delete all that a person has answered, and their name; returns how many rows that were. Backups and exports are not reached."""
    with store.transaction(write=True) as connection:
        if connection.dialect.name == "sqlite":
            connection.exec_driver_sql("PRAGMA secure_delete=ON")
        who = connection.execute(select(t.judge.c.id).where(t.judge.c.name == name)).scalar()
        if who is None:
            return 0
        counting.forget(connection, who)
        again = list(connection.execute(select(t.probe.c.comparison).where(t.probe.c.judge == who)).scalars())
        connection.execute(sa.delete(t.probe).where(t.probe.c.judge == who))
        connection.execute(sa.delete(t.lease).where(t.lease.c.judge == who))
        gone = connection.execute(sa.delete(t.label).where(t.label.c.judge == who)).rowcount
        for some in counting.parts(again):
            for table in (t.lease, t.label, t.side):
                there = connection.execute(sa.delete(table).where(table.c.comparison.in_(some))).rowcount
                gone += there if table is t.label else 0
            connection.execute(sa.delete(t.comparison).where(t.comparison.c.id.in_(some)))
        connection.execute(sa.delete(t.judge).where(t.judge.c.id == who))
    return gone


def note(store: Store, who: str, what: str) -> None:
    """Write down what an owner did; nothing takes it back."""
    with store.transaction(write=True) as connection:
        connection.execute(sa.insert(t.audit).values(who=who, what=what, created=now()))


def noted(store: Store, latest: int = 200) -> list[dict[str, Any]]:
    """What owners did, the latest first."""
    with store.transaction() as connection:
        found = connection.execute(select(t.audit).order_by(t.audit.c.id.desc()).limit(latest))
        return [{"who": r.who, "what": r.what, "created": r.created} for r in found]


def person(store: Store, name: str) -> Person | None:
    """The person called `name`, if their invitation holds."""
    return _valid(store, t.judge.c.name == name)


def bearer(store: Store, token: str) -> Person | None:
    """Whose token this is, if the invitation holds."""
    return _valid(store, t.judge.c.invite_hash == _hash(token))


def everybody(store: Store) -> list[Person]:
    """All people whose invitation holds."""
    with store.transaction() as connection:
        rows = connection.execute(select(t.judge).where(t.judge.c.invite_hash.is_not(None)).order_by(t.judge.c.id)).all()
    return [_person(r) for r in rows if _holds(r)]


def _valid(store: Store, which: Any) -> Person | None:
    with store.transaction() as connection:
        row = connection.execute(select(t.judge).where(which, t.judge.c.invite_hash.is_not(None))).first()
    return _person(row) if row is not None and _holds(row) else None


def _person(row: Row[Any]) -> Person:
    return Person(row.name, row.role, row.kind == "simulated", row.details["expires"])


def _holds(row: Row[Any]) -> bool:
    return row.details.get("expires", 0) > now()


def _hash(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()
