"""Pendulum learns to stand up from 75 comparisons of 1.25-second fragments; the environment's own reward plays no part.

python examples/control_from_comparisons.py [rounds] [comparisons a round] [environment steps a round]
Expect a mean return of about -160 in the end (untrained: -1170), in 45 seconds of CPU time.
"""

import sys

from rather import control

rounds, answers, steps = map(int, (*sys.argv[1:], *("3", "25", "50_000")[len(sys.argv) - 1 :]))


def judge(a, b):
    """Who is higher up, and calmer, on average? Say "a", "b", "tie", P(a better), or None. A person could answer here."""
    score_a, score_b = ((t.observations[:, 0] - 0.01 * t.observations[:, 2] ** 2).mean() for t in (a, b))
    return "a" if score_a > score_b else "b"


reward = control.RewardModel("Pendulum-v1", members=3)
agent = control.PPO("Pendulum-v1", reward=reward, gamma=0.97, entropy_weight=0.01)
print(f"untrained: mean return {agent.evaluate(20).mean:.0f}")
comparisons = []
for i in range(rounds):
    episodes = control.rollouts(agent, 16, seed=i)
    fragments = control.fragments(episodes, length=25, count=2 * answers, seed=i)
    comparisons += control.compare(fragments, judge)
    reward.fit(comparisons)
    agent.train(steps)
    mean, stderr = agent.evaluate(20)
    print(f"after {len(comparisons)} comparisons: mean return {mean:.0f} +- {1.96 * stderr:.0f}")
