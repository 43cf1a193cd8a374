"""What the owner sees over time is what the rows say, whatever the span."""

import random
from collections.abc import Iterator
from typing import Any

import pytest
import reference
import sqlalchemy as sa
from test_counting import filled, live, question

from rather.core import Label
from rather.store import Store
from rather.store import tables as t
from rather.store.decisions import decide
from rather.store.overview import DRAWN, MOST_SPANS, figures
from rather.store.quality import Asking

DAY_S = 86_400
NOW = 1_700_000_000


@pytest.fixture
def store(where: str) -> Iterator[Store]:
    made = Store(where)
    yield made
    made.close()


def at_times(store: Store, *times: float) -> None:
    """The labels were given then, in their order."""
    with store.transaction(write=True) as connection:
        numbers = list(connection.execute(sa.select(t.label.c.id).order_by(t.label.c.id)).scalars())
        for number, time in zip(numbers, times, strict=True):
            connection.execute(sa.update(t.label).where(t.label.c.id == number).values(created=time))


def over_time(store: Store) -> dict[str, Any]:
    found = figures(store, "r").counted["over_time"]
    assert found is not None
    return found


def test_by_hand(store: Store) -> None:
    for name in ("ann", "ben", "cat"):
        store.add_judge(name, "person")
    first, second, third, _ = store.ask("r", [question(str(i)) for i in range(4)])
    store.set_asking("r", Asking(overlap=2, leave_out=("late",)))
    assert figures(store, "r").counted["over_time"] is None, "nobody has said anything"
    given = [
        (first, "ann", 1.0), (first, "ben", 1.0), (second, "ann", 1.0), (second, "ben", 0.0), (second, "cat", 1.0), (third, "ann", None),
    ]  # fmt: skip
    for number, name, preference in given:
        store.answer(Label(number, name, preference, "", 5.0))
    hour = NOW // 3600 * 3600
    at_times(store, hour, hour + 10, hour + 3600, hour + 3600, hour + 2 * 3600 + 1, hour + 90 * 3600)
    found = over_time(store)
    # 60 spans of two minutes would hold two hours, 60 of 5 minutes do; the skipped question is no answer.
    assert (found["span_s"], found["start"], found["count"]) == (300, hour, 25)
    assert found["completed"] == [1] + [0] * 23 + [1], "the second has its two answers, the last of which came at the end"
    assert found["agreement"] == [1.0] + [None] * 23 + [1 / 3], "of the three pairs of answers to the second, one is the same"
    assert {p["name"]: [i for i, count in enumerate(p["answers"]) if count] for p in found["people"]} == {
        "ann": [0, 12], "ben": [0, 12], "cat": [24],
    }  # fmt: skip
    assert [p["name"] for p in found["people"]] == ["ann", "ben", "cat"], "who gave most comes first"
    store.answer(Label(third, "ben", 1.0, "", 5.0, "ab", ("late",)))
    store.answer(Label(third, "cat", 1.0, "", 5.0))
    at_times(store, *[hour] * 6, hour + 200, hour + 299)
    assert over_time(store)["agreement"] == [1 / 2, None, None, None, None], "late ones do not count: 1 + 1 of 1 + 3 pairs are the same"
    fourth = store.questions("r")[3].id
    decide(store, "r", "ann", fourth, 1.0)
    decide(store, "r", "ann", first, 1.0)
    at_times(store, *[hour] * 8, hour + 7000, hour + 60)
    found = over_time(store)
    assert (found["span_s"], found["count"]) == (300, 24), "what is decided is counted up to its time"
    assert found["completed"] == [3] + [0] * 22 + [1], "what is complete and decided counts once"


@pytest.mark.parametrize("days", [0.01, 1, 20, 400, 5000])
def test_of_any_span_it_is_what_the_rows_say(where: str, days: float) -> None:
    store, chance = Store(where), random.Random(int(days))
    numbers = filled(store)
    for i in range(DRAWN):  # more people than are told apart
        store.add_judge(f"person {i}", "person")
        store.answer(Label(numbers[i], f"person {i}", 1.0, "", 5.0))
    live(store, numbers, chance, 60)
    with store.transaction() as connection:
        count = connection.execute(sa.select(sa.func.count()).select_from(t.label)).scalar() or 0
    at_times(store, *sorted(float(NOW + chance.randrange(int(days * DAY_S))) for _ in range(count)))
    found = over_time(store)
    assert 1 <= found["count"] <= MOST_SPANS
    assert found["count"] > 8, "and not too coarse"
    assert sum(map(sum, [found["others"], *(p["answers"] for p in found["people"])])) == sum(
        x.preference is not None for x in reference.labels(store, "r")
    )
    assert found == reference.over_time(store, "r", found["start"], found["span_s"], found["count"])
    store.close()
