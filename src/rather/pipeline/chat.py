"""A conversation with a language model at the terminal, or with two of which one says which answer one would rather have."""

import random
import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from rich.console import Console
from rich.text import Text

from rather.core import Comparison, Label, Message, Task, Trajectory
from rather.errors import DataError
from rather.judges.best_of import BestOf
from rather.judges.people import clean, pressed
from rather.learners.settings import Sampling
from rather.store import Store
from rather.store.intake import check_characters
from rather.text.engine import Request
from rather.text.language_model import LanguageModel
from rather.text.prompts.streaming import Words
from rather.text.sampling import Sampling as Drawing

HELP = (
    "/undo takes the last exchange back, /retry draws its answer again, /system TEXT sets the instruction, /clear starts over, /quit ends"
)
KEYS = "12=s"


@dataclass
class Labels:
    """Where preferences go: a run's questions in a store, answered by the person at the terminal."""

    store: Store
    run: str
    judge: str
    count: int = 0

    def keep(self, answers: list[Trajectory], shown: str, preference: float | None, seconds: float) -> None:
        """Put the question and its answer into the store."""
        self.store.add_judge(self.judge, "person")
        a, b = answers
        (question,) = self.store.ask(self.run, [Comparison((a,), (b,), key=f"chat/{secrets.token_hex(16)}")], why="chat")
        reason = "skipped" if preference is None else ""
        self.store.answer(Label(question, self.judge, preference, reason, seconds, shown))
        self.count += preference is not None


@dataclass
class Chat:
    """A conversation: the models that answer, one or two, and what has been said.

    Of two answers the one that is preferred goes on; of a tie the first that was shown. Which model is shown first is drawn each time.
    """

    models: Sequence[LanguageModel | BestOf]
    sampling: Sampling
    console: Console
    seed: int
    labels: Labels | None = None
    messages: list[Message] = field(default_factory=list[Message])
    turns: int = 0

    def begin(self, system: str) -> None:
        """Forget what was said, and set the instruction."""
        self.messages = [{"role": "system", "content": system}] if system else []

    def say(self, line: str) -> bool:
        """Take a line of the person: a command, or words to answer; returns whether the conversation goes on."""
        try:
            check_characters(line, "the line")
        except DataError as e:
            self.console.print(Text(str(e), style="red"))
            return True
        command, _, rest = line.strip().partition(" ")
        system = next((m["content"] for m in self.messages if m["role"] == "system"), "")
        match command:
            case "/quit" | "/exit":
                return False
            case "/clear":
                self.begin(system)
            case "/system":
                self.begin(rest.strip())
                self.console.print("The conversation starts over.", style="dim")
            case "/undo" | "/retry":
                before = [*self.messages]
                said = self._undo()
                if said is None:
                    self.console.print("Nothing has been said yet.", style="dim")
                elif command == "/retry":
                    if not self._answered(said):
                        self.messages = before
                else:
                    self.console.print(Text(f"Taken back: {clean(said)}", style="dim"))
            case _ if command.startswith("/"):
                self.console.print(HELP, style="dim")
            case "":
                pass
            case _:
                self._answered(line)
        return True

    def _undo(self) -> str | None:
        if not self.messages or self.messages[-1]["role"] != "assistant":
            return None
        said = self.messages[-2]["content"]
        del self.messages[-2:]
        return said

    def _answered(self, line: str) -> bool:
        """Answer a line of the person; returns whether it was answered. Else nothing of it is kept."""
        asked: list[Message] = [*self.messages, {"role": "user", "content": line}]
        self.turns += 1
        order = random.Random(f"{self.seed}/{self.turns}").sample(range(len(self.models)), len(self.models))
        try:
            answers = {i: self._answer(self.models[i], asked, str(n) if len(order) > 1 else "") for n, i in enumerate(order, 1)}
            chosen = self._preferred(answers, order) if self.labels is not None and len(order) > 1 else order[0]
        except DataError as e:
            self.console.print(Text(f"{e}; /undo or /clear makes room"), style="red")
            return False
        except KeyboardInterrupt:
            self.console.print("\nstopped; the question is not kept", style="dim")
            return False
        self.messages = [*asked, {"role": "assistant", "content": answers[chosen].text}]
        return True

    def _preferred(self, answers: dict[int, Trajectory], order: list[int]) -> int:
        assert self.labels is not None
        if answers[0].text == answers[1].text:
            self.console.print("Both say the same.", style="dim")
            return order[0]
        self.console.print("[bold]1[/bold] or [bold]2[/bold]: the better one  [bold]=[/bold] tie  [bold]s[/bold] skip")
        start = time.monotonic()
        key = pressed(KEYS)
        chosen = order[int(key) - 1] if key in "12" else order[0]
        preference = {"=": 0.5, "s": None}.get(key, float(chosen == 0))
        self.labels.keep([answers[0], answers[1]], "".join("ab"[i] for i in order), preference, time.monotonic() - start)
        return chosen

    def _answer(self, model: LanguageModel | BestOf, asked: list[Message], title: str) -> Trajectory:
        """One answer: printed while it is drawn, but whole where one is the best of several, lest it be known by that."""
        policy = model.policy if isinstance(model, BestOf) else model
        ids = policy.tokens.encode_prompt(asked)
        room = policy.context - len(ids)
        if room < 1:
            raise DataError(f"the conversation has {len(ids)} tokens, and {policy.name} sees {policy.context}")
        sampling = self.sampling.model_copy(update={"max_tokens": min(room, self.sampling.max_tokens)})
        if title:
            self.console.rule(title, align="left")
        if any(isinstance(m, BestOf) for m in self.models):
            return self._whole(model, asked, sampling, blind=bool(title))
        words, text, ended = Words(policy.tokens, asked), "", False
        for token in policy.stream(Request(tuple(ids), self.seed + self.turns), Drawing(**sampling.model_dump())):
            if token in policy.tokens.stop:
                ended = True
            else:
                text += self._print(words.add([token]))
        text += self._print(words.end())
        self.console.print("" if ended else " ...")
        return Trajectory(Task("chat", "", asked), model.name, text, ended)

    def _whole(self, model: LanguageModel | BestOf, asked: list[Message], sampling: Sampling, blind: bool) -> Trajectory:
        """One answer, printed when it is known, with its reward unless it is to be compared."""
        self.console.print("sampling; the answer comes whole", style="dim")
        (answer,) = model.sampler(sampling).sample([Task("chat", "", asked)], self.seed + self.turns)
        self._print(answer.text or "")
        self.console.print("" if answer.terminated else " ...")
        if isinstance(model, BestOf) and answer.rewards is not None and not blind:
            self.console.print(f"best of {model.n}, score {answer.rewards[-1]:.2f}", style="dim", highlight=False)
        return Trajectory(answer.task, model.name, answer.text, answer.terminated)

    def _print(self, words: str) -> str:
        self.console.out(clean(words), end="", highlight=False)
        return words


def converse(chat: Chat, read: Callable[[], str]) -> None:
    """Let the person and the model take turns until one of the commands or the end of input ends it."""
    while True:
        try:
            line = read()
        except (EOFError, KeyboardInterrupt):
            chat.console.print()
            return
        if not chat.say(line):
            return
