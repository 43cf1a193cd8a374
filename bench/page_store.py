"""A store of the size of a real project, written in bulk for `bench/page.py`: questions, and 2.5 labels each of 20 people.

Of ten questions seven have the three answers that are wanted, two have two answers and one has none. Half have a score. A hundredth of the
answers were changed. The first person has answered an eighth of all, which are still open and have the highest scores. Beside the questions
there are known ones (gold), a hundredth as many, and people's own again, a fortieth as many.
"""

import json
import random
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from rather.core import Comparison, Task, Trajectory
from rather.store import Store, counting, rows
from rather.store import tables as t
from rather.store.people import invite
from rather.store.quality import Asking

RUN, PEOPLE, OVERLAP, CHUNK = "r", 20, 3, 5000


def fill(store: Store, questions: int, people: int = PEOPLE) -> list[str]:
    """Write it all; returns everybody's tokens."""
    chance = random.Random(0)
    tokens = [invite(store, f"person {i}") for i in range(people)]
    store.set_asking(RUN, Asking(OVERLAP))
    with store.transaction() as connection:
        judges = [r.id for r in connection.execute(t.judge.select().order_by(t.judge.c.id))]
    words = sorted(
        {w for line in Path("src/rather/data/prompts.jsonl").read_text().splitlines() for w in json.loads(line)["prompt"].split()}
    )

    def text(count: int) -> str:
        return " ".join(chance.choices(words, k=count))

    def asked(beginning: str, count: int) -> Iterator[tuple[str, Comparison]]:
        for i in range(count):
            key = f"{beginning}{i}"
            task = Task("bench", key, f"{key}: {text(15)}")
            yield key, Comparison((Trajectory(task, "policy@0", text(50)),), (Trajectory(task, "policy@0", text(50)),), key=key)

    first, last = 7 * questions // 10, 7 * questions // 10 + questions // 8

    def ask(beginning: str, count: int, purpose: str) -> list[int]:
        numbers = list[int]()
        for some in parts(asked(beginning, count)):
            places = range(len(numbers), len(numbers) + len(some))
            scores = [
                (first <= i < last) + chance.random() if purpose == "train" and (i % 2 or first <= i < last) else None for i in places
            ]
            with store.transaction(write=True) as connection:
                numbers += rows.add_questions(connection, RUN, some, purpose, "random", scores)
        return numbers

    gold, numbers = ask("gold/", max(1, questions // 100), "gold"), ask("", questions, "train")
    pairs = [(number, judge) for number in numbers[:first] for judge in chance.sample(judges, 3)]
    busy = set(numbers[first:last])
    for number in numbers[first : 9 * questions // 10]:
        pairs += [(number, judge) for judge in ([judges[0], chance.choice(judges[1:])] if number in busy else chance.sample(judges[1:], 2))]
    repeated = chance.sample(pairs[: len(pairs) // 2], questions // 40)
    again = ask("again/", len(repeated), "repeat")
    known = [{"comparison": number, "preference": float(chance.random() < 0.5), "judge": None, "original": None} for number in gold]
    known += [
        {"comparison": n, "preference": 1.0, "judge": judge, "original": old} for n, (old, judge) in zip(again, repeated, strict=True)
    ]
    pairs += [(number, judge) for number in gold for judge in judges]
    chance.shuffle(pairs)
    pairs += [(number, judge) for number, (_, judge) in zip(again, repeated, strict=True)]
    pairs += chance.sample(pairs, len(pairs) // 100)

    def label(number: int, judge: int) -> dict[str, Any]:
        return {
            "comparison": number, "judge": judge, "kind": "answer", "preference": chance.choice([0.0, 0.0, 0.5, 1.0, 1.0]), "reason": "",
            "seconds": chance.expovariate(0.1), "shown": chance.choice(["ab", "ba"]), "flags": [], "created": 1.7e9,
        }  # fmt: skip

    with store.transaction(write=True) as connection:
        for some in parts(known):
            rows.insert_all(connection, t.probe, some)
    for some in parts(pairs):
        with store.transaction(write=True) as connection:
            rows.insert_all(connection, t.label, [label(*pair) for pair in some])
            counting.answered(connection, [number for number, _ in some])
    return tokens


def parts(items: Iterable[Any]) -> Iterator[list[Any]]:
    """So many of them at a time."""
    rest = iter(items)
    while some := list(islice(rest, CHUNK)):
        yield some


def crowd(store: Store, questions: int, people: int) -> list[str]:
    """A small store that everybody is to answer completely; returns everybody's tokens."""
    words = "a sentence of some length, as answers have them; " * 12
    pairs = [(Task("bench", str(i), f"question {i}?"), f"{words}{i}", f"{i} {words}") for i in range(questions)]
    store.ask(RUN, [Comparison((Trajectory(task, "p", a),), (Trajectory(task, "p", b),), key=task.key) for task, a, b in pairs])
    store.set_asking(RUN, Asking(people, repeats=0))
    return [invite(store, f"person {i}") for i in range(people)]
