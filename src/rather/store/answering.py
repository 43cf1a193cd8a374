"""Labels into their table, once each."""

from collections.abc import Mapping, Sequence

from sqlalchemy import Connection, insert, select
from sqlalchemy.exc import IntegrityError

from rather.core import Label
from rather.errors import StoreError
from rather.store import leasing, rows
from rather.store import tables as t
from rather.store.engine import now


def keep(
    connection: Connection, labels: Sequence[Label], judges: Mapping[str, int], tokens: Sequence[str | None] | None, where: str
) -> list[tuple[int, bool]]:
    """Write labels of `judges` down and end their leases; returns the number of each, and whether it is new rather than sent before.

    Raises:
        StoreError: a question is not in the store, which is at `where`.
    """
    kept = []
    for i, x in enumerate(labels):
        judge, token = judges[x.judge], tokens[i] if tokens else None
        values = {
            "comparison": x.comparison, "judge": judge, "kind": "abstention" if x.preference is None else "answer",
            "preference": x.preference, "best": x.best, "reason": x.reason, "seconds": x.seconds, "shown": x.shown,
            "flags": list(x.flags), "token": token, "created": now(),
        }  # fmt: skip
        try:
            with connection.begin_nested():
                number: int = connection.execute(insert(t.label).values(values)).inserted_primary_key[0]  # type: ignore[index]
                criteria = [{"label": number, "name": name, "preference": said} for name, said in x.criteria.items()]
                rows.insert_all(connection, t.criterion, criteria)
                kept.append((number, True))
        except IntegrityError as e:
            # Sent before, perhaps by another process at this very moment: the first one counts.
            before = None if token is None else sent(connection, token)
            if before is None:
                raise StoreError(f"question {x.comparison} is not in the store {where}") from e
            kept.append((before, False))
        leasing.end(connection, x.comparison, judge)
    return kept


def sent(connection: Connection, token: str) -> int | None:
    """The label that was sent with a token."""
    return connection.execute(select(t.label.c.id).where(t.label.c.token == token)).scalar()
