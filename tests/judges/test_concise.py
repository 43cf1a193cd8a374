"""The reader who likes concise answers: by hand, with a tiny model, and what the real one's answers are worth to it."""

from pathlib import Path

import pytest
import torch
from rich.console import Console

from rather.config import toml as toml
from rather.core import Comparison, Task, Trajectory
from rather.errors import ConfigError
from rather.judges.concise import Concise, Surprise
from rather.judges.known import SimulatedJudge, utility
from rather.judges.wording import content_words, words
from rather.pipeline import build
from rather.pipeline.domain import domain_of
from rather.text import engine, load
from rather.text.language_model import TextSampler
from rather.text.policy import TextPolicy


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
        loaded.append(build.base_policy(config))
        return loaded[-1]

    first, second = build.judges(config, base)
    assert len(loaded) == 1
    asked = [Comparison((answer("The sky is lit."),), (answer("x"),), key="1")]
    assert first.judge(asked) == second.judge(asked) == [1.0]
    control = config.model_copy(update={"control": config.control.model_copy(update={"env": "CartPole-v1"})})
    with pytest.raises(ConfigError, match="reads words, and the run is about control"):
        build.judges(control, domain_of(control, Console(quiet=True)).reader)
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


GOOD = {
    "How can I save energy at home?": (
        "You can save energy at home by turning off lights when you leave a room and using energy-efficient appliances.",
        "Turn off lights and appliances when you are not using them, and insulate your home well.",
    ),
    "How do bees make honey?": (
        "Bees make honey by collecting nectar from flowers and storing it in their hives, where it slowly dries and thickens.",
        "Bees collect nectar from flowers, carry it to the hive and turn it into honey.",
    ),
    "Why is the sky blue?": (
        "The sky is blue because the air scatters blue light from the sun more than light of other colors.",
        "The sky appears blue because sunlight is scattered by tiny molecules of air in the atmosphere.",
    ),
    "What is a telescope used for?": (
        "A telescope is used to look at distant objects in space, such as stars, planets and galaxies.",
        "Telescopes are used by astronomers to observe the moon, the planets and faraway stars.",
    ),
    "What is the difference between a planet and a star?": (
        "A star is a huge ball of hot gas that makes its own light, while a planet orbits a star and reflects its light.",
        "A planet is a body that orbits a star, while a star produces its own light and heat.",
    ),
    "Describe a thunderstorm.": (
        "A thunderstorm is a storm with lightning, thunder, heavy rain and strong winds.",
        "Dark clouds gather, lightning flashes across the sky, and a thunderstorm brings heavy rain.",
    ),
    "Tell me something about dolphins.": (
        "Dolphins are intelligent marine mammals that live in groups and communicate by sounds.",
        "Dolphins are highly social animals, and they use clicks and whistles to communicate with each other.",
    ),
    "What should I know about chess?": (
        "Chess is a game of strategy for two players, who try to checkmate the opponent's king.",
        "You should know that chess is a board game for two players, and that each piece moves in its own way.",
    ),
}


def silly_answers(prompt: str, good: str) -> dict[str, str]:
    """What nobody wants to read, by what is wrong with it."""
    keywords = [word for word in words(prompt) if content_words(word)]
    some = good.split()
    return {
        "one word": f"{keywords[-1].capitalize()}.",
        "emojis": "\U0001f31f\U0001f600\U0001f44d" * 4,
        "the question": prompt,
        "Latin": "Gallia est omnis divisa in partes tres, quarum unam incolunt Belgae.",
        "a list of nothing": "\n".join(f"Advantage {i}: {keywords[i % len(keywords)]}" for i in (1, 2, 3)),
        "one sentence again and again": " ".join([" ".join(some[:6]).rstrip(",.") + "."] * 4),
        "another subject": "The train to the city leaves every morning, and most people buy a ticket at the station.",
        "half of a sentence": " ".join(some[: len(some) // 2]),
        "keywords": " ".join(keywords),
        "keywords as a sentence": f"{' '.join(keywords).capitalize()}.",
        "nothing": "",
        "a refusal": "I'm sorry, I can't help with that.",
        "a refusal with keywords": f"I'm sorry, but I can't help you with {' and '.join(keywords)}.",
    }


@pytest.mark.slow
def test_silly_answers_lose_against_good_ones_that_people_have_written(base: TextPolicy) -> None:
    """Each that has ended loses against both good answers to its prompt, with two exceptions, which are left out.

    The question, said again, beats the second good answer about energy at home and both about chess. Nor is it tried what silly answers
    are worth that were cut off: the reader misses no end there, and prefers the first half of a good sentence to that whole sentence,
    after which the base model would have gone on. It knows good answers by the base model's own words, not by sense: "Everybody should
    know a little about chess." is worth more than both good ones.
    """
    left_out = {("How can I save energy at home?", "the question"), ("What should I know about chess?", "the question")}
    reader, wins = Concise(Surprise(base)), {}
    for prompt, good in GOOD.items():
        silly = silly_answers(prompt, good[0])
        reader.read([answer(text, prompt) for text in (*good, *silly.values())])
        least = min(reader(answer(text, prompt)) for text in good)
        worth = {what: reader(answer(text, prompt)) for what, text in silly.items()}
        wins |= {(prompt, what): (value, least) for what, value in worth.items() if value >= least and (prompt, what) not in left_out}
    assert wins == {}


@pytest.mark.slow
@pytest.mark.parametrize("prompts", ["package", "package:questions"])
def test_a_lower_temperature_is_no_loophole(base: TextPolicy, prompts: str) -> None:
    tasks = build.tasks(toml.load(None, [f"data.prompts={prompts}"]))[1]
    cold, warm = drawn(base, tasks, 0.3), drawn(base, tasks, 0.8)
    reader = Concise(Surprise(base))
    judge = SimulatedJudge("expert", reader, temperature=0.1, tie=0.05, read=reader.read)
    said = judge.judge([Comparison((a,), (b,), key=str(i)) for i, (a, b) in enumerate(zip(cold, warm, strict=True))])
    assert sum(x for x in said if x is not None) / len(said) < 0.6
