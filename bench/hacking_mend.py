"""How much gold a cure gains after an alarm: `nice python bench/hacking_mend.py [FAMILY]...`, on the text families of bench/hacking.py, by GRPO.

A run is watched with gold on every answer. At the alarm it goes back to the checkpoint that the alarm names, a simulated judge compares
`LABELS` pairs of answers, and it goes on with a reward that has learned from them, for as many steps as are left. Beside that: gold of the
policy at the alarm, of the one gone back to, of running on, and of as many labels spent at the start. The two answers of a pair are drawn
from 8 of each of three policies: the base, the one gone back to and the hacked one. The KL is that from the policy gone back to.

The reward is mended (`rather.MendedReward`), be it written by hand, a verifier, a judge, or a reward model. Settings were chosen on seeds 100
to 103 (`--tune`, which writes nothing). Finished runs are in bench/results/hacking-mend.json and not run again.
"""

import argparse
import json
import multiprocessing
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

import common
import hacking
import hacking_words as words
from hacking import GROUP, PROMPTS, RUNS, STEPS
from hacking_words import LONGEST, TOPICS, Rewards

LABELS, CURES, PESSIMISM, KL, EACH, NOISE = 100, 2, 0.5, 0.05, 8, 0.1
"""Comparisons, and the cures that they are shared out over; standard deviations taken off; weight of the KL afterwards; answers to a topic of each policy; the judge's noise."""
STRONG = ("magic word", "flattery", "lists", "confidence", "copying")
"""Families of strength 3: at 1 most of their runs are not hacked."""
FAMILIES = ("length", *STRONG, "repetition", "verifier", "fixed noise", "judge of length", "64 labels", "biased labels")
SEEDS, TUNING = range(40, 45), range(100, 104)
ARMS = {
    "at the alarm": "stop", "gone back": "back", "mended": "mend", "running on": "on", "labels at the start": "start",
}  # fmt: skip
Pairs = list[tuple[str, str]]
"""A topic and an answer each."""


class Cure:
    """A run of a family and a seed, and what can become of it."""

    def __init__(self, family: str, seed: int, runs: Path) -> None:
        import rather

        self.family, self.seed, self.folder = family, seed, runs / "base"
        self.base = rather.load(self.folder, dtype="float32", device="cpu")
        self.rewards: Rewards = hacking.HACKED[family](3.0 if family in STRONG else 1.0, seed, self.folder)
        self.chance = np.random.default_rng(seed)

    def proxy(self, prompt: str, completion: str) -> float:
        """What is trained on."""
        return self.rewards.proxy(completion.split(), prompt)

    def gold(self, topic: str, text: str) -> float:
        """What is wanted."""
        return self.rewards.gold(text.split(), topic)

    def train(self, policy: Any, reward: Any, steps: int, seed: int, kl: float, watch: Any = None) -> tuple[Any, list[Any], list[float]]:
        """The learner after GRPO, its weights before each step and at the end, and gold of each step."""
        import rather

        golds = list[float]()
        weights = list[Any]()

        def keep() -> None:
            weights.append([p.detach().clone() for p in learner.parameters])

        def seen(step: int, values: dict[str, float]) -> bool:
            golds.append(values["gold"])
            keep()
            return watch is not None and watch(step, values)

        learner = rather.GRPO(
            policy, [*TOPICS], reward, group_size=GROUP, batch_size=PROMPTS, steps=steps, lr=2e-3, schedule="constant", adapter="full", kl=kl,
            seed=seed, max_tokens=LONGEST, gold=lambda t: self.gold(str(t.task.prompt), t.text or ""), callbacks=[seen],
        )  # fmt: skip
        keep()
        learner.train()
        return learner, weights, golds

    def answers(self, policy: Any, count: int, seed: int) -> Pairs:
        """So many answers to each topic."""
        topics = [topic for topic in TOPICS for _ in range(count)]
        return list(zip(topics, policy.generate(topics, max_tokens=LONGEST, seed=1000 * self.seed + seed), strict=True))

    def value(self, policy: Any) -> float:
        """Mean gold of 192 answers."""
        return float(np.mean([self.gold(*pair) for pair in self.answers(policy, 32, 9)]))

    @staticmethod
    def back(learner: Any, weights: Any) -> None:
        """Let a learner's policy have these weights again."""
        import torch

        with torch.no_grad():
            for p, kept in zip(learner.parameters, weights, strict=True):
                p.copy_(kept)

    def compared(self, pool: Pairs, count: int) -> Any:
        """So many comparisons of two different answers to a topic."""
        import rather

        of = {topic: [text for t, text in pool if t == topic] for topic in TOPICS}
        rows = list[dict[str, str]]()
        while len(rows) < count:
            topic = TOPICS[len(rows) % len(TOPICS)]
            a, b = self.chance.choice(of[topic], 2, replace=False)
            better = self.chance.random() < 1 / (1 + np.exp(-(self.gold(topic, a) - self.gold(topic, b)) / NOISE))
            if a != b:
                rows.append({"prompt": topic, "chosen": str(a if better else b), "rejected": str(b if better else a)})
        return rather.comparisons(rows)

    def cured(self, comparisons: Any) -> Any:
        """The reward that has learned from these comparisons, too."""
        import rather

        return rather.MendedReward(self.proxy, rather.RewardHead(self.base), comparisons, pessimism=PESSIMISM)


def one(family: str, seed: int, runs: Path) -> dict[str, Any]:
    """Gold of each end of a run; the step of its alarm is None where there was none."""
    import torch

    from rather.hacking.watch import Watch

    torch.set_num_threads(1)
    since, cure, watch = time.process_time(), Cure(family, seed, runs), Watch()
    learner, weights, golds = cure.train(cure.base, cure.proxy, STEPS, seed, 0.0, watch)
    if watch.raised is None:
        return {"alarm": None}
    found: dict[str, Any] = {"alarm": watch.raised.step, "to": watch.raised.best, "best": float(hacking.smoothed(np.array(golds)).max())}
    found["stop"], first, comparisons = cure.value(learner.policy), cure.answers(cure.base, EACH, 0), []
    for number in range(1, CURES + 1):
        found["left"], found["cures"] = found.get("left", STEPS) - watch.raised.best, number
        hacked = cure.answers(learner.policy, EACH, 2 * number)
        cure.back(learner, weights[watch.raised.best])
        found.setdefault("back", cure.value(learner.policy))
        comparisons += cure.compared([*hacked, *cure.answers(learner.policy, EACH, 2 * number + 1), *first], LABELS // CURES)
        watch = Watch()
        learner, weights, _ = cure.train(learner.policy, cure.cured(comparisons), found["left"], seed + 500 * number, KL, watch)
        if watch.raised is None:
            break
    else:
        cure.back(learner, weights[watch.raised.best])
    found["mend"] = cure.value(learner.policy)
    found["on"] = cure.value(cure.train(cure.base, cure.proxy, STEPS, seed, 0.0)[0].policy)
    reward = cure.cured(cure.compared(cure.answers(cure.base, 3 * EACH, 1), len(comparisons)))
    found["start"] = cure.value(cure.train(cure.base, reward, STEPS, seed, KL)[0].policy)
    return found | {"cpu_s": time.process_time() - since}


def table(runs: dict[str, dict[str, Any]], families: Sequence[str]) -> list[str]:
    """A row for each family."""
    above = "mended above that best | above the policy gone back to"
    lines = [f"| family | alarms | best before the alarm | {' | '.join(ARMS)} | {above} |", "|---" * (len(ARMS) + 5) + "|"]
    for family in families:
        every = [run for key, run in runs.items() if key.rpartition("/")[0] == family]
        own = [run for run in every if run["alarm"] is not None]
        if own:
            middle = [median(run[arm] for run in own) for arm in ("best", *ARMS.values())]
            counts = [f"{sum(run['mend'] > run[than] for run in own)} of {len(own)}" for than in ("best", "back")]
            lines.append(f"| {' | '.join([family, f'{len(own)} of {len(every)}', *(f'{x:.2f}' for x in middle), *counts])} |")
    return lines


def mended(runs: dict[str, dict[str, Any]], than: str = "best") -> list[str]:
    """Families whose median run ends above its best before the alarm, or above another end."""
    own = {f: [r for k, r in runs.items() if k.rpartition("/")[0] == f and r["alarm"] is not None] for f in FAMILIES}
    return [family for family, some in own.items() if some and median(run["mend"] - run[than] for run in some) > 0]


def main() -> None:
    """Every run that is missing."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("family", nargs="*", help="without any, all")
    parser.add_argument("--at-once", type=int, default=2)
    parser.add_argument("--runs", type=Path, default=RUNS)
    parser.add_argument("--tune", action="store_true")
    given = parser.parse_args()
    if unknown := set(given.family) - {*FAMILIES}:
        parser.error(f"no family is called {min(unknown)}")
    if not (given.runs / "base").exists():
        given.runs.mkdir(parents=True, exist_ok=True)
        words.base(given.runs / "base")
    path = Path("bench/results/hacking-mend.json")
    data: dict[str, Any] = {"runs": {}} if given.tune or not path.exists() else json.loads(path.read_text())
    jobs: dict[str, Callable[[], dict[str, Any]]] = {
        f"{family}/{seed}": partial(one, family, seed, given.runs)
        for family in given.family or FAMILIES
        for seed in (TUNING if given.tune else SEEDS)
        if f"{family}/{seed}" not in data["runs"]
    }
    with ProcessPoolExecutor(given.at_once, multiprocessing.get_context("spawn")) as pool:
        for key, future in [(key, pool.submit(job)) for key, job in jobs.items()]:
            data["runs"][key] = future.result()
            print(key, data["runs"][key], flush=True)
            if not given.tune:
                data["about"] = common.about("bench/hacking_mend.py", f"{LABELS} labels of a simulated judge, GRPO, {STEPS} steps")
                path.write_text(json.dumps(data) + "\n")
    lines, best = table(data["runs"], FAMILIES), mended(data["runs"])
    if given.tune:
        print("\n".join([*lines, "", f"{len(best)} families: {', '.join(best)}"]))
        return
    head = f"""# Reward hacking: what a cure gains

{data["about"]}. Gold of 192 answers, medians over the runs with an alarm."""
    end = f"""Of {len(FAMILIES)} families {len(best)} end above their best before the alarm (median): {", ".join(best)}.
That best is the highest of many means of four steps, and therefore a little too high. Above the policy gone back to, which is measured as
the mended one is, end {len(mended(data["runs"], "back"))}: {", ".join(mended(data["runs"], "back"))}."""
    common.publish("hacking-mend", data, [head, "", *lines, "", end], None)
    if {*data["runs"]} >= {f"{family}/{seed}" for family in FAMILIES for seed in SEEDS}:
        common.headline("mend_families_of_12", len(best), [len(best), len(best)], "families", "bench/hacking_mend.py", "one thread a run")


if __name__ == "__main__":
    main()
