"""Who may answer over the web: people with an invite link. The store keeps a hash of its token, never the token itself."""

import hashlib
import secrets
from dataclasses import dataclass
from typing import Any, Literal

import sqlalchemy as sa
from sqlalchemy import Row, select

from rather.errors import StoreError
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


def invite(store: Store, name: str, role: Role = "annotator", days: float = 30) -> str:
    """Invite a person, or give them a new link in place of the old one; returns the token, 128 bits that are kept nowhere.

    Raises:
        StoreError: the name belongs to a judge that is no person, or to a person of another role.
    """
    store.add_judge(name, "person")
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
    return [Person(r.name, r.role) for r in rows if _holds(r)]


def _valid(store: Store, which: Any) -> Person | None:
    with store.transaction() as connection:
        row = connection.execute(select(t.judge).where(which, t.judge.c.invite_hash.is_not(None))).first()
    return Person(row.name, row.role) if row is not None and _holds(row) else None


def _holds(row: Row[Any]) -> bool:
    return row.details.get("expires", 0) > now()


def _hash(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()
