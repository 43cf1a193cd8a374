"""Who reads and writes: judges by name, in the transaction that needs them. Who has been erased leaves their number to somebody else."""

from sqlalchemy import Connection, select

from rather.errors import InvitationError, StoreError
from rather.store import tables as t
from rather.store.engine import now

_BY_NAME = select(t.judge.c.id)


def number_of(connection: Connection, name: str) -> int:
    """The judge's number.

    Raises:
        StoreError: there is no such judge.
    """
    return _there(connection.execute(_BY_NAME.filter_by(name=name)).scalar(), name)


def writer(connection: Connection, name: str, invitation: int | None = None) -> int:
    """The number of a judge who is about to write, if the `invitation` that let them in, if any, still holds.

    Until the transaction ends nobody erases them. While somebody does, it waits, and goes by what is left then.

    Raises:
        InvitationError: the invitation has ended.
        StoreError: there is no such judge.
    """
    locked = _BY_NAME.filter_by(name=name).with_for_update(read=True, key_share=True)
    found = connection.execute(locked).scalar()
    if invitation is not None:
        holds = select(t.invitation.c.id).filter_by(id=invitation, judge=found).where(t.invitation.c.expires > now())
        if connection.execute(holds).first() is None:
            raise InvitationError("this invitation has expired or been taken back")
    return _there(found, name)


def _there(found: int | None, name: str) -> int:
    if found is None:
        raise StoreError(f"the store knows no judge {name!r}; add it first")
    return found
