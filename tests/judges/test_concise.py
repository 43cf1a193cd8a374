"""The reader who likes concise answers: by hand, with a tiny model, and what the real one's answers are worth to it."""

from pathlib import Path

import pytest
import torch

from rather import build
from rather import settings as toml
from rather.core import Comparison, Task, Trajectory
from rather.errors import ConfigError
from rather.judges.concise import Concise, Surprise
from rather.judges.known import SimulatedJudge, utility
from rather.text import engine, load
from rather.text.policy import TextPolicy, TextSampler


def answer(text: str, prompt: str = "Why is the sky blue?", terminated: bool = True) -> Trajectory:
    return Trajectory(Task("f", prompt, prompt), "p", text, terminated)


class Expected(Surprise):
    """A base model to which everything is equally surprising."""

    def __init__(self, value: float) -> None:
        self.value = value

    def read(self, answers: object) -> None:
        del answers

    def __call__(self, answer: Trajectory) -> float:
        del answer
        return self.value


def test_by_hand() -> None:
    usual, strange = Concise(Expected(0.0)), Concise(Expected(3.0))
    assert usual(answer("The sky scatters blue light in air.")) == 2.0
    assert usual(answer("The sky scatters blue light in air.", terminated=False)) == 1.0, "cut off"
    assert usual(answer("The sky scatters blue light in air")) == 1.0, "no end of a sentence"
    assert usual(answer('He said: "The sky scatters blue light."')) == 2.0
    assert usual(answer("The sky scatters light in air.")) == 1.0, "one of two content words"
    assert usual(answer("Why is the sky blue?")) == -1.0, "it repeats the question"
    assert usual(answer("The sky is blue, a lit sky.")) == pytest.approx(0.0), "it adds one word of three: (1 - 2/3) * 2 - 2/3"
    other = " ".join(f"word{i}" for i in range(36))
    assert usual(answer(f"The blue sky {other} up.")) == 1.0, "40 words: one doubling beyond 20"
    assert usual(answer("The blue sky is lit. The blue sky is lit.")) == pytest.approx(-6 * (4 / 9 - 0.2)), "4 of 9 pairs again"
    assert usual(answer("")) == pytest.approx(-3.32, abs=0.01), "log2 of 5 / 1, and 1 for adding nothing"
    assert strange(answer("The sky scatters blue light in air.")) == 1.0, "half of 2"
    assert Concise(Expected(-7.0))(answer("The sky scatters blue light in air.")) == 1.0, "likelier than its own usually are"
    assert usual(answer("Nobody knows that secret at all.", "Who, why, what?")) == 2.0, "nothing to keep to"


def test_surprise_is_log_probability_beyond_entropy(tiny: Path) -> None:
    from transformers import AutoModelForCausalLM

    policy = load.policy(tiny, torch.device("cpu"), torch.float32, False, 0.3, None)  # which is sampled colder than the reader reads
    surprise = Surprise(policy)
    answers = [answer("ab"), answer("a longer one", terminated=False), answer("", terminated=False)]
    surprise.read(answers)
    model = AutoModelForCausalLM.from_pretrained(tiny)
    for t in answers[:2]:
        prompt, said = policy.tokens.encode(t.task.prompt or "", t.text or "", t.terminated)
        with torch.no_grad():
            logprobs = (model(torch.tensor([[*prompt, *said]])).logits[0] / 0.8).log_softmax(-1)[len(prompt) - 1 : -1]
        entropy = -(logprobs.exp() * logprobs).sum()
        expected = (-logprobs[range(len(said)), said].sum() - entropy) / len(said) ** 0.5
        assert surprise(t) == pytest.approx(float(expected), abs=1e-3)
    assert surprise(answers[2]) == 0.0


def test_what_a_model_draws_itself_surprises_it_by_nothing_on_average(tiny: Path) -> None:
    policy = load.policy(tiny, torch.device("cpu"), torch.float32, False, 0.3, None)
    drawn = TextSampler(policy, engine.Sampling(16, 0.8), 32).sample([Task("f", "1", "hi")] * 400, 0)
    surprise = Surprise(policy)
    surprise.read(drawn)
    values = torch.tensor([surprise(t) for t in drawn])
    assert abs(float(values.mean())) < 4 * float(values.std()) / 20


def test_a_panel_of_readers_shares_one_base_model(tiny: Path) -> None:
    config = toml.load(None, [f"model.path={tiny}", 'judge.panel=[{name="x", utility="concise"}, {name="y", utility="concise"}]'])
    loaded = []

    def base() -> build.AnyPolicy:
        loaded.append(build.start_policy(config))
        return loaded[-1]

    first, second = build.judges(config, base)
    assert len(loaded) == 1
    asked = [Comparison((answer("The sky is lit."),), (answer("x"),), key="1")]
    assert first.judge(asked) == second.judge(asked) == [1.0]
    with pytest.raises(ConfigError, match="reads words, and the run is about control"):
        build.judges(config.model_copy(update={"control": config.control.model_copy(update={"env": "CartPole-v1"})}), base)
    with pytest.raises(ConfigError, match="for judge.panel alone"):
        utility("concise")


SILLY = [
    "Deafening.",
    "HA!",
    "\U0001f305" * 12,
    "",
    "Yes.",
    "Why does the sky turn red and orange at sunset?",
    "Venus rubra in caelo lucet, et sol occidens mare tangit.",
    "Sunset sky red orange because banana wardrobe.",
    "The sky turns red. The sky turns red. The sky turns red. The sky turns red.",
    "Red orange sunset sky sky sky sky, evening!",
    "I hope that this helps!",
    "Thank you for your question, it was a pleasure to talk with you today.",
]


@pytest.fixture(scope="module")
def base(smollm2: Path) -> TextPolicy:
    policy = load.policy(smollm2, torch.device("cpu"), torch.float32, False, 0.8, None)
    assert isinstance(policy, TextPolicy)
    return policy


def drawn(base: TextPolicy, tasks: list[Task], temperature: float) -> list[Trajectory]:
    return TextSampler(base, engine.Sampling(48, temperature), 32).sample(tasks, 7)


@pytest.mark.slow
def test_silly_answers_lose_against_the_base_models_own(base: TextPolicy) -> None:
    """Each loses against two of three answers that the base model draws, cut off or not."""
    task = Task("f", "1", "Why does the sky turn red and orange at sunset?")
    reader = Concise(Surprise(base))
    own = sorted(map(reader, drawn(base, [task] * 15, 0.8)))
    worth = {text: reader(Trajectory(task, "p", text)) for text in SILLY}
    assert {text: value for text, value in worth.items() if value >= own[5]} == {}, own


@pytest.mark.slow
@pytest.mark.parametrize("prompts", ["package", "package:questions"])
def test_a_lower_temperature_is_no_loophole(base: TextPolicy, prompts: str) -> None:
    tasks = build.tasks(toml.load(None, [f"data.prompts={prompts}"]))[1]
    cold, warm = drawn(base, tasks, 0.3), drawn(base, tasks, 0.8)
    reader = Concise(Surprise(base))
    judge = SimulatedJudge("expert", reader, temperature=0.1, tie=0.05, read=reader.read)
    said = judge.judge([Comparison((a,), (b,), key=str(i)) for i, (a, b) in enumerate(zip(cold, warm, strict=True))])
    assert sum(x for x in said if x is not None) / len(said) < 0.6
