"""The first-order counterpart of zeroth-order optimization: the gradient of the policy itself, on the same space, from comparisons."""

import torch

from rather.core import Policy, Space
from rather.learners.common import Pairs
from rather.learners.zeroth_settings import ZerothSettings
from rather.losses import bradley_terry_loss, implicit_scores, preference_reinforce_loss
from rather.zeroth.learner import Asking, Estimate, Zeroth


class FirstOrder(Zeroth):
    """Online DPO or preference REINFORCE: what is compared are two trajectories of the present policy, each answer is used once.

    It takes answers, keeps to the trust region and goes back exactly as `Zeroth` does; only the slope is another, and cannot be made again
    from seeds. `reference` is what DPO's implicit scores are counted from, with `beta`.
    """

    def __init__(self, model: Policy, space: Space, asking: Asking, how: Estimate, reference: Policy, beta: float = 0.1) -> None:
        super().__init__(model, space, asking, how)
        self.policy, self.reference, self.beta = model, reference, beta

    def move(self) -> None:
        """Follow the gradient of the loss of the answers, ties among them."""
        comparisons = [c for judged in self.answered.values() for c in judged if c.preference is not None]
        for parameter in self.space.parameters:
            parameter.grad = torch.zeros_like(parameter)
        if not comparisons:
            self.descend()
            return
        pairs = Pairs.of(self.policy, comparisons)
        for part, *_ in pairs.split(1024):
            mask = part.batch.mask
            logprobs, _ = self.policy.evaluate(part.batch)
            if self.how.estimator == "dpo":
                with torch.no_grad():
                    reference, _ = self.reference.evaluate(part.batch)
                loss = bradley_terry_loss(*part.scores(implicit_scores(logprobs, reference, mask, self.beta)), part.preference)
            else:
                loss = preference_reinforce_loss(*part.scores((logprobs * mask).sum(-1)), part.preference)
            torch.autograd.backward(loss * (len(part) / len(pairs)))
        self.space.gather()
        self.descend()


def made(z: ZerothSettings, policy: Policy, space: Space, base: Policy, beta: float = 0.1) -> Zeroth:
    """What moves `policy` in `space` by these settings: the zeroth-order learner, or its first-order counterpart."""
    first_order = z.estimator in ("dpo", "reinforce")
    asking = Asking(z.mu, z.directions, z.comparisons, z.side, z.mirrored, not first_order, z.best_of)
    how = Estimate(z.lr, z.estimator, z.link, z.trim, z.radius, z.optimizer)
    if first_order:
        return FirstOrder(policy, space, asking, how, base, beta)
    return Zeroth(policy, space, asking, how, 1 if z.kind == "gaussian" else space.size)
