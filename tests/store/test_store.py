import hashlib
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import reference
import sqlalchemy as sa

from rather.core import Comparison, Label, Task, Trajectory
from rather.errors import DataError, StoreError
from rather.store import Store
from rather.store.people import bearer, noted
from rather.store.quality import FLAGS, Asking


def question(key: str, a: str = "yes", b: str = "no") -> Comparison:
    task = Task("file", key, f"prompt {key}")
    return Comparison((Trajectory(task, "p@0", a),), (Trajectory(task, "p@0", b),), key=key)


@pytest.fixture
def store(where: str) -> Store:
    made = Store(where)
    for name in ("ann", "ben"):
        made.add_judge(name, "person")
    yield made
    made.close()


def test_a_question_comes_back_as_it_was_asked(store: Store) -> None:
    messages = [{"role": "user", "content": "héllo \N{SNOWMAN}"}]
    a = Trajectory(Task("f", "1", messages, "42"), "p@3", "words", terminated=False)
    steps = {"actions": np.arange(3), "rewards": np.ones(3, np.float32), "observations": np.zeros((4, 2))}
    b = Trajectory(Task("env", "7"), "p@4", **steps)
    store.ask("run", [Comparison((a, a), (b,), key="k")], why="near-tie", scores=[0.5])
    (found,) = store.questions("run")
    assert (found.why, found.score, found.purpose, len(found.comparison.a)) == ("near-tie", 0.5, "train", 2)
    assert found.comparison.a[0].task == a.task
    assert (found.comparison.a[1].text, found.comparison.a[1].terminated) == ("words", False)
    for name, value in steps.items():
        np.testing.assert_array_equal(getattr(found.comparison.b[0], name), value)


def test_asking_twice_adds_nothing(store: Store) -> None:
    first = store.ask("run", [question("1"), question("2")])
    assert store.ask("run", [question("2"), question("3")])[0] == first[1]
    assert store.keys("run", "train") == {"1", "2", "3"}


def test_all_questions_are_stored_or_none(store: Store) -> None:
    broken = Comparison((Trajectory(Task("f", "1", "x"), "p", "a"),), (Trajectory(Task("f", "1", object()), "p", "b"),), key="2")  # type: ignore[arg-type]
    with pytest.raises(Exception, match="JSON"):
        store.ask("run", [question("1"), broken])
    assert store.keys("run", "train") == set()


def test_the_latest_answer_counts_and_undo_brings_the_question_back(store: Store) -> None:
    one, two = store.ask("run", [question("1"), question("2")])
    store.answer(Label(one, "ann", 1.0))
    store.answer(Label(one, "ann", 0.0))
    store.answer(Label(one, "ben", 1.0))
    assert [(x.judge, x.preference) for x in store.labels("run")] == [("ann", 0.0), ("ben", 1.0)]
    assert store.answered("run").comparisons[0].preference == 0.5
    assert {(c.judge, c.preference) for c in store.answered("run", each=True).comparisons} == {("ann", 0.0), ("ben", 1.0)}
    assert store.undo("run", "ann") == one
    assert [x.judge for x in store.labels("run")] == ["ben"]
    assert [q.id for q in store.questions("run", unanswered_by="ann")] == [one, two]
    assert [row["kind"] for row in store.history("run")] == ["answer", "answer", "answer", "undo"]
    assert store.undo("run", "ann") is None


def test_labels_come_back_by_their_numbers_whether_they_still_count_or_not(store: Store) -> None:
    one, two = store.ask("run", [question("1"), question("2")])
    first = store.answer(Label(one, "ann", 1.0))
    second = store.answer(Label(two, "ann", 0.0, seconds=0.1))
    store.answer(Label(one, "ann", 0.0))
    store.undo("run", "ann")
    assert [x.id for x in store.labels("run")] == [second]
    assert [(x.id, x.preference, x.flags) for x in store.labels("run", among={first, second})] == [(first, 1.0, ()), (second, 0.0, ())]
    found = store.answered("run", among={first}, without=FLAGS)
    assert ([c.preference for c in found.comparisons], found.labels) == ([1.0], [first])


def test_abstentions_and_flags(store: Store) -> None:
    one, two = store.ask("run", [question("1"), question("2")])
    store.answer(Label(one, "ann", None, reason="both are nonsense", seconds=3.5, shown="ba"))
    store.answer(Label(two, "ann", 1.0, flags=("too fast",)))
    first, second = store.labels("run")
    assert (first.preference, first.reason, first.seconds, first.shown) == (None, "both are nonsense", 3.5, "ba")
    assert second.flags == ("too fast",)
    assert len(store.answered("run").comparisons) == 1
    assert store.answered("run", without=("too fast",)).comparisons == []


@pytest.mark.parametrize("preference", [-0.1, 1.5, float("nan")])
def test_a_label_outside_0_and_1_is_refused(store: Store, preference: float) -> None:
    (one,) = store.ask("run", [question("1")])
    with pytest.raises(DataError, match=r"outside \[0, 1\]"):
        store.answer(Label(one, "ann", preference))
    assert store.labels("run") == []


def test_a_label_for_nothing_is_refused(store: Store) -> None:
    (one,) = store.ask("run", [question("1")])
    store.answer(Label(one, "ann", 1.0))
    with pytest.raises(StoreError, match="question 99"):
        store.answer(Label(99, "ann", 1.0))
    with pytest.raises(StoreError, match="no judge 'eve'"):
        store.answer(Label(99, "eve", 1.0))


def test_an_answer_that_is_sent_twice_counts_once(store: Store) -> None:
    (one,) = store.ask("run", [question("1")])
    first = store.answer(Label(one, "ann", 1.0), token="abc")
    assert store.answer(Label(one, "ann", 1.0), token="abc") == first
    assert len(store.history("run")) == 1


def test_leases(store: Store) -> None:
    one, two = store.ask("run", [question("1"), question("2")])
    assert store.lease("run", "ann").id == one
    assert store.lease("run", "ann").id == one, "the same judge gets the same question again"
    assert store.lease("run", "ben").id == two
    store.release(one, "ann")
    store.answer(Label(two, "ben", 1.0))
    assert store.lease("run", "ben").id == one
    assert store.lease("run", "ann") is None
    store.answer(Label(one, "ben", 1.0))
    assert store.lease("run", "ann", overlap=2).id == one
    assert store.lease("run", "ben", overlap=2) is None


def test_leases_expire(store: Store) -> None:
    (one,) = store.ask("run", [question("1")])
    assert store.lease("run", "ann", seconds=2).id == one
    assert store.lease("run", "ben") is None
    time.sleep(2.1)
    assert store.lease("run", "ben").id == one


def test_a_higher_score_is_asked_earlier(store: Store) -> None:
    store.ask("run", [question("1")])
    low, high = store.ask("run", [question("2"), question("3")], scores=[0.1, 0.9])
    assert store.lease("run", "ann").id == high
    assert store.lease("run", "ben").id == low


def test_a_judge_keeps_its_kind(store: Store) -> None:
    with pytest.raises(StoreError, match="'ann' is a person judge"):
        store.add_judge("ann", "simulated")


def test_the_migrated_layout_is_that_of_the_tables(store: Store) -> None:
    from alembic.autogenerate import compare_metadata
    from alembic.migration import MigrationContext

    from rather.store.tables import metadata

    with store.engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), metadata) == []


def test_the_best_of_four_is_kept_and_learnt_from_as_pairs(store: Store) -> None:
    sides = [(Trajectory(Task("file", "k", "prompt"), "p@0", word),) for word in ("one", "two", "three", "four")]
    (number,) = store.ask("run", [Comparison(sides[0], sides[1], key="k", others=(sides[2], sides[3]))])
    question = store.question(number, "run")
    assert [side[0].text for side in question.comparison.sides] == ["one", "two", "three", "four"]
    assert len({x for numbers in question.trajectories for x in numbers}) == 4
    store.answer(Label(number, "ann", 0.0, best=2))
    store.answer(Label(number, "ben", 0.5))
    for each in (False, True):
        found = store.answered("run", each=each).comparisons
        told = [(c.a[0].text, c.b[0].text, c.preference, c.judge) for c in found]
        assert told[:3] == [("three", other, 1.0, "ann") for other in ("one", "two", "four")]
        assert told[3:] == [("one", other, 0.5, "ben") for other in ("two", "three", "four")]
    assert [x.best for x in store.labels("run")] == [2, None]
    assert [row["best"] for row in store.history("run")] == [2, None]
    judges, ratings = reference.table(store.labels("run"))
    assert (judges, ratings.tolist()) == (["ann", "ben"], [[3], [0]])


def test_an_older_store_keeps_its_questions_and_answers(where: str) -> None:
    from alembic import command
    from alembic.config import Config

    from rather.store import engine

    old = sa.create_engine(engine.address(where))
    config = Config()
    config.set_main_option("script_location", str(engine.MIGRATIONS))
    with old.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "0003")
        for statement in (
            f"insert into judge (id, name, kind, role, invite_hash, details) values"
            f" (1, 'ann', 'person', 'annotator', '{hashlib.sha256(b'secret').hexdigest()}', '{{\"expires\": 1e10}}')",
            """insert into asking (run, "values") values ('run', '{"overlap": 2, "flagged": false}')""",
            "insert into audit (who, what, created) values ('owner', 'invited ann for 30 days', 0), ('owner', 'revoked zoe', 0)",
            "insert into trajectory (id, source, task, policy, text, terminated) values (1, 'f', 'k', 'p', 'x', true)",
            "insert into trajectory (id, source, task, policy, text, terminated) values (2, 'f', 'k', 'p', 'y', true)",
            "insert into comparison (id, run, key, purpose, why, created) values (1, 'run', 'k', 'train', 'random', 0)",
            "insert into side (comparison, side, place, trajectory) values (1, 'a', 0, 1), (1, 'b', 0, 2)",
            "insert into label (comparison, judge, kind, preference, reason, shown_left, flags, created)"
            " values (1, 1, 'answer', 0, '', 'a', '[]', 0), (1, 1, 'answer', 1, '', 'b', '[]', 0), (1, 1, 'undo', null, '', 'a', '[]', 0)",
            "delete from label where id = 3",  # somebody was erased
        ):
            connection.exec_driver_sql(statement)
    old.dispose()
    store = Store(where)
    (found,) = store.answered("run").comparisons
    assert (found.a[0].text, found.b[0].text, found.preference) == ("x", "y", 1.0)
    assert [row["shown"] for row in store.history("run")] == ["ab", "ba"]
    assert store.asking("run") == Asking(overlap=2, leave_out=FLAGS)
    guest = bearer(store, "secret")
    assert guest is not None
    assert (guest.name, guest.role, guest.run, guest.expires) == ("ann", "annotator", None, 1e10)
    assert [(row["what"], row["whom"]) for row in noted(store)] == [("revoked", ""), ("invited for 30 days", "ann")]
    assert store.answer(Label(1, "ann", 0.0)) == 4, "numbers of labels are not given twice"
    with store.engine.begin() as connection:  # now a question may have more sides
        connection.exec_driver_sql("insert into side (comparison, side, place, trajectory) values (1, 'h', 0, 1)")
    with pytest.raises(sa.exc.IntegrityError), store.engine.begin() as connection:
        connection.exec_driver_sql("insert into side (comparison, side, place, trajectory) values (1, 'i', 0, 1)")
    store.close()


def test_a_store_of_a_newer_version_is_refused(where: str) -> None:
    store = Store(where)
    with store.engine.begin() as connection:
        connection.execute(sa.text("update alembic_version set version_num = '9999'"))
    store.close()
    with pytest.raises(StoreError, match="newer"):
        Store(where)


def cycle(where: str, judge: str, cycles: int, clashes: "multiprocessing.Queue[tuple[str, int, float, float]]") -> None:
    store = Store(where)
    store.add_judge(judge, "simulated")
    done = 0
    while done < cycles:
        question = store.lease("run", judge)
        if question is None:
            break
        start = time.time()
        store.answer(Label(question.id, judge, 1.0))
        clashes.put((judge, question.id, start, time.time()))
        done += 1
    clashes.put((judge, -1, 0.0, 0.0))


@pytest.mark.slow
def test_eight_processes_lease_and_label_without_clash_or_loss(where: str) -> None:
    processes, cycles = 8, 200
    store = Store(where)
    store.ask("run", [question(str(i)) for i in range(processes * cycles)])
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    workers = [context.Process(target=cycle, args=(where, f"judge {i}", cycles, queue)) for i in range(processes)]
    for worker in workers:
        worker.start()
    answered, finished = [], 0
    while finished < processes:
        judge, number, *_ = queue.get(timeout=240)
        finished += number == -1
        answered += [(judge, number)] if number != -1 else []
    for worker in workers:
        worker.join()
    assert len(answered) == processes * cycles
    assert len({number for _, number in answered}) == processes * cycles, "a question was leased twice"
    assert {(x.judge, x.comparison) for x in store.labels("run")} == set(answered)
    assert len(store.history("run")) == processes * cycles
    store.close()


WRITER = """
import sys
from rather.core import Label
from rather.store import Store

store = Store(sys.argv[1])
while (question := store.lease("run", "ann")) is not None:
    number = store.answer(Label(question.id, "ann", 1.0), token=f"token-{question.id}")
    print(number, question.id, flush=True)
"""


@pytest.mark.slow
def test_kill_minus_nine_loses_no_acknowledged_label(where: str, tmp_path: Path) -> None:
    store = Store(where)
    store.ask("run", [question(str(i)) for i in range(50 * 60)])
    store.add_judge("ann", "person")
    (tmp_path / "writer.py").write_text(WRITER)
    chance = random.Random(0)
    acknowledged: dict[int, int] = {}
    running = [start_writer(tmp_path, where)]
    for _ in range(50):
        process = running.pop()
        running.append(start_writer(tmp_path, where))  # the next one loads while this one writes
        assert process.stdout is not None
        lines = [process.stdout.readline()]
        time.sleep(chance.random() * 0.05)
        os.kill(process.pid, signal.SIGKILL)
        lines += process.stdout.read().splitlines()
        process.wait()
        process.stdout.close()
        complete = [line.split() for line in lines if len(line.split()) == 2]
        acknowledged |= {int(number): int(which) for number, which in complete}
    running[0].kill()
    running[0].communicate()
    assert len(acknowledged) >= 50
    kept = {x.id: x.comparison for x in store.labels("run")}
    assert acknowledged.items() <= kept.items(), "an acknowledged label is gone"
    assert len(set(kept.values())) == len(store.history("run")), "a label was doubled"
    store.close()


def start_writer(folder: Path, where: str) -> "subprocess.Popen[str]":
    return subprocess.Popen([sys.executable, str(folder / "writer.py"), where], stdout=subprocess.PIPE, text=True)


def test_a_locked_store_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rather.store.engine.TIMEOUT_S", 0.1)
    store = Store(str(tmp_path / "store.db"))
    holder = sa.create_engine(f"sqlite:///{tmp_path / 'store.db'}").connect()
    holder.exec_driver_sql("BEGIN EXCLUSIVE")
    with pytest.raises(StoreError, match="locked; another program holds it"):
        store.add_judge("ann", "person")
    holder.close()
    store.add_judge("ann", "person")
    store.close()
    holder.engine.dispose()


def test_a_full_store_says_so_and_keeps_what_it_has(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "store.db"))
    (one,) = store.ask("run", [question("1")])
    store.add_judge("ann", "person")
    store.answer(Label(one, "ann", 1.0))

    def limit(connection: object, _: object) -> None:
        connection.execute("PRAGMA max_page_count=1")  # type: ignore[attr-defined]

    sa.event.listen(store.engine, "connect", limit)
    store.engine.dispose()
    with pytest.raises(StoreError, match="full; the disk is full"):
        store.ask("run", [question(str(i), "x" * 10_000) for i in range(2, 20)])
    assert [x.preference for x in store.labels("run")] == [1.0]
    assert store.keys("run", "train") == {"1"}
    store.close()


def test_what_is_no_store_says_so(tmp_path: Path) -> None:
    (tmp_path / "store.db").write_text("this is no database, but a long enough text to look at")
    with pytest.raises(StoreError, match="not a database; the file is something else"):
        Store(str(tmp_path / "store.db"))
    with pytest.raises(StoreError, match="is no store"):
        Store("nonsense://x")
    with pytest.raises(StoreError, match="cannot be used"):
        Store("postgresql+psycopg://nobody@127.0.0.1:1/none")
