"""PPO's objective for perceptrons, differentiated by hand: at such sizes autograd's bookkeeping costs several times the sums.

Where there is a C compiler one loop in C does it (`kernels.perceptrons`), else PyTorch's products and NumPy.
`losses.ppo_clip_loss`, `losses.value_loss` and `ControlPolicy.evaluate` say what is computed; the tests hold this file to them.
Shape letters: N single steps, I inputs, A action dimensions or choices.
"""

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from rather.control.models import ControlCritic, ControlPolicy, Perceptron, layers_backward, layers_forward
from rather.errors import TrainingError
from rather.kernels import perceptrons
from rather.learners.ppo import Credited
from rather.learners.ppo_settings import PPOSettings


class ByHand:
    """A policy and a critic whose parameters lie in one vector, `parameter`, and its gradient under PPO's objective."""

    def __init__(self, policy: ControlPolicy, critic: ControlCritic) -> None:
        assert isinstance(policy.net, Perceptron)
        assert isinstance(critic.net, Perceptron)
        self.policy, self.layers = policy, (policy.net.layers, critic.net.layers)
        own = [*policy.net.layers, *critic.net.layers]
        if policy.log_std is not None:
            own.append(policy.log_std)
        self.parameter = nn.Parameter(torch.cat([p.detach().flatten() for p in own]))
        start = 0
        for p in own:
            p.data = self.parameter.data[start : start + p.numel()].view_as(p)
            start += p.numel()
        of_policy, of_critic = ([*(len(weight) for weight in layers[::2]), len(layers[-1])] for layers in self.layers)
        small = max(len(of_policy), len(of_critic)) - 1 <= perceptrons.MAX_LAYERS and of_policy[-1] <= perceptrons.MAX_OUTPUTS
        there = small and perceptrons.library() is not None
        gaussian = policy.log_std is not None
        self.compiled = perceptrons.Gradient(self.parameter.data, of_policy, of_critic, gaussian) if there else None

    def take(self, rows: Credited) -> None:
        """Learn from these single steps from now on: what was sampled, and what it is credited with (`ppo.Credited`).

        Raises:
            TrainingError: the policy has other parameters than those that learn.
        """
        if self.layers[0][0].data_ptr() != self.parameter.data_ptr():
            raise TrainingError(
                "the policy's parameters are others than those that learn, as after a deepcopy or .double(); make a new agent"
            )
        batch = rows.batch
        seen = batch.observations[:, 0]
        self.seen = seen.float() if self.policy.normalizer is None else self.policy.normalizer(seen)
        actions = batch.actions[:, 0]
        self.actions = (actions.long() - self.policy.first if self.policy.log_std is None else actions).numpy()
        self.old, self.advantages, self.returns, self.values = (
            x[:, 0].numpy() for x in (batch.logprobs, rows.advantages, rows.returns, rows.values)
        )
        if self.compiled is not None:
            self.compiled.take(self.seen, self.actions, self.old, self.advantages, self.returns, self.values)

    @torch.no_grad()
    def backward(self, chosen: Tensor, s: PPOSettings) -> tuple[float, dict[str, float]]:
        """Leave in `parameter.grad` the gradient on the `chosen` (N,) steps under the settings `s` (`PPOSettings`).

        Returns:
            The loss, and what it is made of: policy_loss, value_loss, entropy, ratio, clipped.
        """
        gradient, parts = self._by_torch(chosen, s) if self.compiled is None else self._by_c(chosen, s, self.compiled)
        self.parameter.grad = gradient
        names: list[str] = ["policy_loss", "value_loss", "entropy", "ratio", "clipped"]
        found = dict(zip(names, map(float, parts), strict=True))
        return found["policy_loss"] + s.value_weight * found["value_loss"] - s.entropy_weight * found["entropy"], found

    def _by_c(self, chosen: Tensor, s: PPOSettings, compiled: perceptrons.Gradient) -> tuple[Tensor, np.ndarray]:
        high, dual = s.clip if s.clip_high is None else s.clip_high, math.inf if s.dual_clip is None else s.dual_clip
        return compiled(chosen, perceptrons.Objective(s.clip, high, dual, s.value_clip or math.inf, s.value_weight, s.entropy_weight))

    def _by_torch(self, chosen: Tensor, s: PPOSettings) -> tuple[Tensor, list[Any]]:
        index, n = chosen.numpy(), len(chosen)
        seen = self.seen[chosen]
        policy_layers, critic_layers = map(list, self.layers)

        out, kept = layers_forward(seen, policy_layers)
        score = self._choice if self.policy.log_std is None else self._gaussian
        logprobs, entropy, of_out = score(out.numpy(), self.actions[index])
        advantages = self.advantages[index]
        high = s.clip if s.clip_high is None else s.clip_high
        ratio = np.exp(logprobs - self.old[index])
        plain = ratio * advantages
        surrogate = np.minimum(plain, ratio.clip(1 - s.clip, 1 + high) * advantages)
        if s.dual_clip is not None:
            surrogate = np.where(advantages < 0, np.maximum(surrogate, s.dual_clip * advantages), surrogate)
        # Where the surrogate is r A its derivative by log r is r A; where it is held, it is 0.
        of_logprobs = np.where(surrogate == plain, plain, np.float32(0)) / -n
        of_logits, of_log_std = of_out(of_logprobs, s.entropy_weight / -n)
        found, _ = layers_backward(torch.from_numpy(of_logits), kept, policy_layers)

        out, kept = layers_forward(seen, critic_layers)
        error, derivative = self._error(out.numpy()[:, 0], index, s.value_clip or None)
        found += layers_backward(torch.from_numpy(derivative * (s.value_weight / n))[:, None], kept, critic_layers)[0]
        if of_log_std is not None:
            found.append(torch.from_numpy(of_log_std))
        clipped = np.count_nonzero((ratio - 1 > high) | (1 - ratio > s.clip))
        parts = [-surrogate.sum() / n, 0.5 * (error @ error) / n, entropy.sum() / n, ratio.sum() / n, clipped / n]
        return torch.cat([g.flatten() for g in found]), parts

    def _choice(self, logits: np.ndarray, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, Any]:
        """Log-probabilities (N,) and entropies (N,), and how derivatives by them become derivatives by the logits."""
        logs = logits - logits.max(1, keepdims=True)
        p = np.exp(logs)
        total = p.sum(1, keepdims=True)
        logs -= np.log(total)
        p /= total
        entropy = -(p * logs).sum(1)
        rows = np.arange(len(logits))

        def of_out(of_logprobs: np.ndarray, of_entropy: float) -> tuple[np.ndarray, None]:
            found = p * -of_logprobs[:, None]
            found[rows, actions] += of_logprobs
            if of_entropy:
                found -= np.float32(of_entropy) * p * (logs + entropy[:, None])
            return found, None

        return logs[rows, actions], entropy, of_out

    def _gaussian(self, mean: np.ndarray, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, Any]:
        """The same for densities; and derivatives by the log of the standard deviation (A,)."""
        log_std = self.policy.log_std.numpy()  # type: ignore[union-attr]
        inverse = np.exp(-log_std)
        scaled = (actions - mean) * inverse
        constant = log_std.sum() + np.float32(0.5 * np.log(2 * np.pi) * len(log_std))
        entropy = np.full(len(mean), constant + np.float32(0.5 * len(log_std)))

        def of_out(of_logprobs: np.ndarray, of_entropy: float) -> tuple[np.ndarray, np.ndarray]:
            each = of_logprobs[:, None] * scaled
            of_log_std = (each * scaled).sum(0) - of_logprobs.sum() + np.float32(of_entropy * len(mean))
            return each * inverse, of_log_std

        return -0.5 * np.square(scaled).sum(1) - constant, entropy, of_out

    def _error(self, values: np.ndarray, index: np.ndarray, clip: float | None) -> tuple[np.ndarray, np.ndarray]:
        """The critic's error (N,), the worse of two with `clip`, and the derivative of half its square."""
        error = values - self.returns[index]
        if clip is None:
            return error, error
        change = values - self.values[index]
        held = self.values[index] + change.clip(-clip, clip) - self.returns[index]
        worse = (np.abs(change) > clip) & (np.abs(held) > np.abs(error))  # within `clip` the two differ by rounding alone
        return np.where(worse, held, error), np.where(worse, np.float32(0), error)
