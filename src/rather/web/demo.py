"""What `rather serve --demo` shows: pairs of answers, of episodes and of batches, made within seconds and without a model."""

import math

import numpy as np

from rather.core import Comparison, Prompt, Task, Trajectory
from rather.store import Store

RUN = "demo"
INSTRUCTION = "Which would you rather have?"
CAR = "rather/CheckpointCar-v0"
WORDS: list[tuple[Prompt, str, str]] = [
    ("Why is the sky blue?", "Air scatters **blue light more** than red light, about as $1/\\lambda^4$, so blue reaches us from all over.",
     "Because it reflects the sea."),
    ("Write a Python function that says whether a number is even.", "```python\ndef is_even(n: int) -> bool:\n  return n % 2 == 0\n```",
     "You can use the modulo operator to find out. If the remainder is zero, the number is even."),
    ("What is the solution of $x^2 - 5x + 6 = 0$?", "$x = 2$ or $x = 3$, since $x^2 - 5x + 6 = (x-2)(x-3)$.",
     "By the formula\n\n$$x = \\frac{5 \\pm \\sqrt{25 - 24}}{2}$$\n\nthe solutions are 3 and 2."),
    ("Compare tea and coffee.", "| | tea | coffee |\n|---|---|---|\n| caffeine | 20 to 50 mg | 80 to 120 mg |\n| brewing | 3 min | 4 min |",
     "Coffee has more caffeine than tea. Both are brewed with hot water."),
    ("Give me three tips for better sleep.", "1. Keep the same hours every day.\n2. No screens in the last hour.\n3. A cool, dark room.",
     "Sleep is very important. Many people do not sleep well. You should try to sleep better, for instance by going to bed."),
]  # fmt: skip
SLOGANS = [
    (["Fresh bread, every morning.", "Up before you.", "Crust you can trust."], ["Good bread.", "Good bread here.", "Good, our bread."]),
    (["Learn. Use.", "Questions welcome.", "Small groups, big steps."], ["A school for you.", "Courses, 9 to 5.", "School is key."]),
]  # fmt: skip


def fill(store: Store) -> None:
    """Put the demo's questions into the store, with their clips; what is there already is left as it is."""
    store.ask(RUN, [_words(f"words/{i}", prompt, [a], [b]) for i, (prompt, a, b) in enumerate(WORDS)], why="words")
    batches = [_words(f"batch/{i}", "Slogans: which set would you rather have?", *sides) for i, sides in enumerate(SLOGANS)]
    store.ask(RUN, batches, why="batch")
    from rather.control.studio import Studio, draw  # only the episodes need Gymnasium

    episodes = [_episode(seed, skill) for seed, skill in ((1, 0.0), (2, 1.0), (3, 0.4), (4, 0.8), (5, 0.2), (6, 0.6))]
    pairs = [Comparison((a,), (b,), key=f"drive/{i}") for i, (a, b) in enumerate(zip(episodes[0::2], episodes[1::2], strict=True))]
    pairs.append(Comparison(tuple(episodes[:2]), tuple(episodes[2:4]), key="drives/0"))
    store.ask(RUN, pairs, why="drive")
    studio = Studio(store.where, RUN, CAR)
    draw(studio, studio.film)


def _words(key: str, prompt: Prompt, a: list[str], b: list[str]) -> Comparison:
    task = Task("demo", key, prompt)
    left, right = (tuple(Trajectory(task, "demo", text) for text in side) for side in (a, b))
    return Comparison(left, right, key=key)


def _episode(seed: int, skill: float, steps: int = 60) -> Trajectory:
    """The beginning of an episode by a driver who steers well in a share `skill` of the steps, and at random in the others."""
    from rather.control.environments import environment

    env, chance = environment(CAR), np.random.default_rng(seed)
    seen, actions, rewards = [env.reset(seed=seed)[0]], list[int](), list[float]()
    for _ in range(steps):
        across, _, cosine, sine, bend_cosine, bend_sine = seen[-1][:6]
        wanted = math.atan2(bend_sine, bend_cosine) - math.atan2(sine, cosine) + 0.3 * across
        good = 6 + (2 if wanted > 0.05 else 0 if wanted < -0.05 else 1)
        actions.append(good if chance.random() < skill else int(chance.integers(9)))
        observation, reward, *_ = env.step(actions[-1])
        seen.append(observation)
        rewards.append(float(reward))
    return Trajectory(
        Task(CAR, str(seed)), "demo", terminated=False, observations=np.stack(seen), actions=np.array(actions),
        rewards=np.array(rewards, np.float32), before=np.array([], np.int64),
    )  # fmt: skip
