"""What learners share: the order of the data, pairs of sides as rows of a batch, and the optimizer's step.

Shape letters: B trajectories, N comparisons, K ensemble members.
"""

# PyTorch says in part alone what `backward`, `step` and `tolist` take and give.
# pyright: reportUnknownMemberType=false

import hashlib
import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any

import torch
from torch import Tensor, nn

from rather.core import Batch, Comparison, Model, Trajectory
from rather.errors import ConfigError, TrainingError
from rather.kernels import perceptrons
from rather.learners.settings import Optimization
from rather.scale import ranks


class Order:
    """Goes through `count` items again and again, in a new order each time: the place of epoch e depends on e and the seed alone."""

    def __init__(self, count: int, seed: int) -> None:
        if not count:
            raise TrainingError("there is nothing to learn from; give at least one comparison that is no tie, one answer, or one prompt")
        self.count, self.seed = count, seed
        self.place = 0

    def take(self, wanted: int) -> list[int]:
        """The next `wanted` items; fewer than `count` of them are all different."""
        taken = self.at(self.place, wanted)
        self.place += wanted
        return taken

    def at(self, place: int, wanted: int) -> list[int]:
        """The `wanted` items from a place in the order on."""
        places = [divmod(p, self.count) for p in range(place, place + wanted)]
        orders = {epoch: self._shuffled(epoch) for epoch in dict(places)}
        return [orders[epoch][index] for epoch, index in places]

    def _shuffled(self, epoch: int) -> list[int]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
        return numbers(torch.randperm(self.count, generator=generator))


class LeastUsed:
    """Goes through items that keep coming in: always those that have been used least, the others by chance; `place` counts the uses."""

    def __init__(self, names: Sequence[str], seed: int) -> None:
        self.names, self.seed, self.place = list(names), seed, dict[str, int]()

    @classmethod
    def after(cls, before: "Order | LeastUsed", were: Sequence[str], names: Sequence[str], seed: int) -> "LeastUsed":
        """The order of the items there are now, with the uses of those that `were` there before."""
        found = cls(names, seed)
        if isinstance(before, LeastUsed):
            found.place = before.place
        elif before.place:
            whole, rest = divmod(before.place, before.count)
            begun = set(before.at(before.place - rest, rest))
            found.place = {name: whole + (i in begun) for i, name in enumerate(were)}
        return found

    def take(self, wanted: int) -> list[int]:
        """`wanted` different items, or all there are."""
        used = [self.place.get(name, 0) for name in self.names]
        ranked = sorted(range(len(used)), key=lambda i: (used[i], drawn(self.seed, f"{self.names[i]}/{used[i]}")))
        for i in ranked[:wanted]:
            self.place[self.names[i]] = used[i] + 1
        return ranked[:wanted]


def at_place(place: int | dict[str, int], names: Sequence[str], seed: int) -> Order | LeastUsed:
    """The order of items at a place that was kept: a number, or how often each has been used."""
    if isinstance(place, dict):
        order = LeastUsed(names, seed)
        order.place = place
        return order
    order = Order(len(names), seed)
    order.place = place
    return order


def names(comparisons: Sequence[Comparison]) -> list[str]:
    """What items are remembered by while others come in beside them; the pairs that one answer says are counted."""
    found, often = list[str](), Counter[str]()
    for c in comparisons:
        name = f"{c.key}/{c.judge}" if c.judge else c.key
        often[name] += 1
        found.append(name if often[name] == 1 else f"{name}#{often[name]}")
    return found


def drawn(seed: int, name: str) -> float:
    """A number in [0, 1) that depends on the seed and the name alone."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{name}".encode()).digest()[:6], "big") / 2**48


def numbers(x: Tensor) -> list[Any]:
    """The entries of a tensor as Python's numbers, nested as it is."""
    return x.numpy(force=True).tolist()


Size = tuple[float, dict[int, int]]
"""What an item makes a model forward: tokens (or actions) of its own, and the lengths of the prompts that it shares, by their numbers."""


def sizes(batch: Batch) -> list[Size]:
    """What each row of a batch makes a model forward."""
    own: list[float] = numbers(batch.mask.sum(-1))
    prompts: list[dict[int, int]] = (
        [{}] * len(own) if batch.prompts is None else [{number: length} for number, length in numbers(batch.prompts)]
    )
    return list(zip(own, prompts, strict=True))


def parts(batch: Batch, tokens: int) -> list[slice]:
    """Neighboring rows of a batch that make a model forward at most about `tokens` tokens, and if it can be enough for every rank."""
    if ranks.count() == 1:
        prompts = 0 if batch.prompts is None else int(batch.prompts[:, 1].sum())
        if batch.mask.numel() + prompts <= tokens:
            return [slice(0, len(batch))]
    return grouped(sizes(batch), tokens)


def grouped(items: Sequence[Size], tokens: float) -> list[slice]:
    """Neighboring items that make a model forward at most about `tokens` tokens together; one that makes it forward more is alone."""
    every = {number: length for _, prompts in items for number, length in prompts.items()}
    tokens = min(tokens, math.ceil((sum(own for own, _ in items) + sum(every.values())) / ranks.count()))
    starts, used, seen = [0], 0.0, dict[int, int]()
    for i, (own, prompts) in enumerate(items):
        more = own + sum(prompts[number] for number in prompts.keys() - seen.keys())
        if used and used + more > tokens:
            starts.append(i)
            used, seen, more = 0.0, {}, own + sum(prompts.values())
        used += more
        seen |= prompts
    return [slice(start, end) for start, end in zip(starts, [*starts[1:], len(items)], strict=True)]


WITHOUT_GRADIENT = 4
"""Times `micro_batch_tokens` that a model forwards at a time where no gradient is needed: nothing is kept for it."""


def in_parts(batch: Batch, micro_batch_tokens: int, what: Callable[[Batch], tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
    """What a model says of a batch, without gradient, about `WITHOUT_GRADIENT` times `micro_batch_tokens` tokens at a time."""
    slices = parts(batch, WITHOUT_GRADIENT * micro_batch_tokens)
    with torch.no_grad():
        found = [(rows.start, what(batch.select(rows))) for rows, _ in ranks.mine(slices)]
    if ranks.count() > 1:
        on = batch.mask.device
        parts_ = [(start, [x.cpu() for x in said]) for start, said in found]
        everyones = dict(each for theirs in ranks.everyones(parts_) for each in theirs)
        found = [(start, tuple(x.to(on) for x in said)) for start, said in everyones.items()]
    return tuple(torch.cat(x) for x in zip(*(said for _, said in sorted(found, key=lambda each: each[0])), strict=True))


def ratio_metrics(logprobs: Tensor, old_logprobs: Tensor, mask: Tensor, low: float, high: float | None) -> dict[str, Tensor]:
    """Of every action, how its probability has changed, and whether that is clipped."""
    ratio = used(mask, (logprobs.detach() - old_logprobs).exp())
    clipped = (ratio < 1 - low) | (ratio > 1 + (low if high is None else high))
    return {"ratio": ratio, "clipped": used(mask, clipped.float())}


def used(mask: Tensor, values: Tensor) -> Tensor:
    """The values where an action was taken, NaN elsewhere: for `Means`, which needs no wait for how many there are."""
    return torch.where(mask.bool(), values, torch.nan)


OWN_LR = 0.05
"""Learning rate of numbers that are few and of the order of 1, such as log temperatures: a model's would hardly move them."""


def pessimistic(scores: Tensor, pessimism: float) -> Tensor:
    """The mean of what members say (K, ...), less `pessimism` times their standard deviation (Coste et al. 2024)."""
    return scores.mean(0) - pessimism * scores.std(0, correction=0) if pessimism else scores.mean(0)


def check_members(caller: str, members: int) -> int:
    """`members` of an ensemble.

    Raises:
        ConfigError: there are none.
    """
    if members < 1:
        raise ConfigError(f"{caller}: members is {members!r}; an ensemble has at least 1")
    return members


def check_pessimism(pessimism: float, members: int) -> float:
    """`pessimism`, where it can be had.

    Raises:
        ConfigError: it is below 0, or there is one member, which agrees with itself.
    """
    if not 0 <= pessimism < math.inf:
        raise ConfigError(f"pessimism is {pessimism!r}; give a number of standard deviations, 0 or above")
    if pessimism and members < 2:
        raise ConfigError("pessimism goes by how much the members of a reward model differ, and there is one; set members to 3 or more")
    return pessimism


@torch.no_grad()
def put(values: Sequence[Tensor], parameters: Sequence[nn.Parameter]) -> None:
    """Give parameters other values, in place."""
    for parameter, value in zip(parameters, values, strict=True):
        parameter.copy_(value)


class Stepper:
    """AdamW with its schedule: `step` clips, checks, moves and clears the gradients.

    `last` is the number of steps that the schedule of the learning rate is made for. `few` are parameters that learn at `few_lr`.
    """

    def __init__(
        self,
        parameters: Sequence[nn.Parameter],
        how: Optimization,
        last: int,
        few: Sequence[nn.Parameter] = (),
        few_lr: float = OWN_LR,
        eps: float = 1e-8,
    ) -> None:
        self.how, self.last, self.steps = how, last, 0
        split, own = ([p for p in parameters if ranks.is_split(p) == which] for which in (True, False))
        groups: list[dict[str, Any]] = [{"params": some, "lr": how.lr} for some in (split, own) if some]
        groups += [{"params": list(few), "lr": few_lr, "weight_decay": 0.0}] * bool(few)
        self.optimizer = torch.optim.AdamW(groups, weight_decay=how.weight_decay, eps=eps, fused=True)
        self.rates = [group["lr"] for group in groups]
        self.parameters: list[nn.Parameter] = [p for group in groups for p in group["params"]]
        own = self.parameters[0] if len(self.parameters) == 1 else None
        self.vector = own if own is not None and ranks.count() == 1 and perceptrons.supports(own) else None

    def step(self, loss: Tensor | float) -> dict[str, float]:
        """Move by the gradients that have been gathered.

        Raises:
            TrainingError: the loss or the gradient is not finite.
        """
        factor = self.how.factor(self.steps, self.last)
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = rate * factor
        if self.vector is not None:
            loss = float(loss)
            norm = self._move(self.vector) if math.isfinite(loss) else 0.0
            self._check_finite(loss, norm)
        else:
            norm, loss = ranks.clip_gradients(self.parameters, self.how.max_grad_norm), ranks.total(float(loss))
            self._check_finite(loss, norm)
            self.optimizer.step()
        torch.autograd.graph.increment_version(self.parameters)  # which the fused optimizer leaves out
        for parameter in self.parameters:
            parameter.grad = None
        self.steps += 1
        return {"loss": loss, "grad_norm": norm, "lr": self.how.lr * factor}

    def _move(self, vector: nn.Parameter) -> float:
        """A step of the one vector that learns, in C; returns the norm of the gradient."""
        assert vector.grad is not None
        group, state = self.optimizer.param_groups[0], self.optimizer.state[vector]
        if not state:
            state |= {"step": torch.zeros(()), "exp_avg": torch.zeros_like(vector), "exp_avg_sq": torch.zeros_like(vector)}
        moments, step = (state["exp_avg"], state["exp_avg_sq"]), int(state["step"]) + 1
        rates = group["lr"], group["betas"], group["eps"], group["weight_decay"]
        norm = perceptrons.adamw(vector.data, vector.grad, moments, step, self.how.max_grad_norm, *rates)
        state["step"] += math.isfinite(norm)
        return norm

    def _check_finite(self, loss: float, norm: float) -> None:
        if not (math.isfinite(loss) and math.isfinite(norm)):
            what = f"loss {loss}" if not math.isfinite(loss) else f"loss {loss}, gradient norm {norm}"
            raise TrainingError(f"step {self.steps + 1} is not finite ({what}); lower train.lr (now {self.how.lr:g})")

    def grow(self, parameter: nn.Parameter, count: int) -> None:
        """Let a parameter of one dimension have `count` more numbers, which begin at 0."""
        kept = self.optimizer.state.get(parameter, {})
        for name, value in [*kept.items(), ("", parameter.data)]:
            if value.dim():
                longer = torch.cat([value, value.new_zeros(count)])
                if name:
                    kept[name] = longer
                else:
                    parameter.data = longer
        parameter.grad = None

    def state_dict(self) -> dict[str, Any]:
        """Moments and the number of steps."""
        state = self.optimizer.state_dict()["state"]
        return {"steps": self.steps, "moments": [state.get(i, {}) for i in range(len(self.parameters))]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take `state` back."""
        self.steps = state["steps"]
        groups = self.optimizer.state_dict()["param_groups"]
        kept: list[dict[str, Any]] = state["moments"] or [{}] * len(self.parameters)  # of an older checkpoint that had learned nothing yet
        moments = [{k: ranks.like(v, p) for k, v in own.items()} for p, own in zip(self.parameters, kept, strict=True)]
        self.optimizer.load_state_dict({"state": dict(enumerate(moments)), "param_groups": groups})


@dataclass(frozen=True)
class Pairs:
    """N comparisons as rows of one batch: `sides` (B,) says which of the 2 N sides a row belongs to (2 i: a, 2 i + 1: b)."""

    batch: Batch
    sides: Tensor
    preference: Tensor

    @classmethod
    def of(cls, model: Model, comparisons: Sequence[Comparison]) -> "Pairs":
        """Collate comparisons that have a preference."""
        rows, sides = list[Trajectory](), list[int]()
        for i, comparison in enumerate(comparisons):
            for offset, side in enumerate((comparison.a, comparison.b)):
                rows += side
                sides += [2 * i + offset] * len(side)
        batch = model.collate(rows)
        device = batch.mask.device
        preference = torch.tensor([c.preference for c in comparisons], device=device, dtype=torch.float32)
        return cls(batch, torch.tensor(sides, device=device), preference)

    def __len__(self) -> int:
        return len(self.preference)

    def split(self, tokens: int) -> Iterator[tuple["Pairs", slice, slice, float]]:
        """Parts of whole comparisons that make a model forward at most about `tokens` tokens each: which comparisons and rows they are.

        Only those that this rank computes, with their weights; see `ranks.mine`.
        """
        rows_of: list[int] = numbers(torch.bincount(self.sides, minlength=2 * len(self)).view(-1, 2).sum(-1))
        ends = [0, *accumulate(rows_of)]
        each = sizes(self.batch)  # read now: later it would wait for the part before
        items = [_together(each[start:end]) for start, end in pairwise(ends)]
        for which, weight in ranks.mine(grouped(items, tokens)):
            first: int = which.start
            end: int = which.stop
            rows = slice(ends[first], ends[end])
            part = Pairs(self.batch.select(rows), self.sides[rows] - 2 * which.start, self.preference[which])
            yield part, which, rows, weight

    def scores(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Scores of the sides a and b, (..., N) each, from the scores (..., B) of the rows: the mean of each side."""
        total = rows.new_zeros(*rows.shape[:-1], 2 * len(self)).index_add(-1, self.sides, rows)
        counts = torch.zeros_like(total).index_add(-1, self.sides, torch.ones_like(rows))  # bincount would be waited for
        mean = total / counts
        return mean[..., 0::2], mean[..., 1::2]


def _together(items: Sequence[Size]) -> Size:
    return sum(own for own, _ in items), {number: length for _, prompts in items for number, length in prompts.items()}


def agreement(scores_a: Tensor, scores_b: Tensor, preference: Tensor) -> Tensor:
    """Which comparisons the scores order as the preference does, (N,) in {0, 1}; NaN where the preference is a tie."""
    right = ((scores_a > scores_b) == (preference > 0.5)).float()
    return torch.where(preference == 0.5, torch.nan, right)


class Means:
    """Means of several quantities over all parts of a batch, weighted by counts; NaN entries are left out.

    Sums stay on the device until `result`, so that nothing waits for it.
    """

    def __init__(self) -> None:
        self.totals: dict[str, tuple[Tensor | float, Tensor | float]] = {}

    def add(self, **values: Tensor) -> None:
        """Add every entry of each tensor."""
        for name, tensor in values.items():
            known = tensor.detach()
            self._add(name, known.nansum(), known.numel() - known.isnan().sum())

    def weigh(self, count: Tensor | float, **means: Tensor | float) -> None:
        """Add means that were taken over `count` entries."""
        for name, mean in means.items():
            self._add(name, (mean.detach() if isinstance(mean, Tensor) else mean) * count, count)

    def result(self) -> dict[str, float]:
        """The means over all ranks; a quantity without entries is left out."""
        found: dict[str, tuple[float, float]] = {}
        for own in ranks.everyones({name: (float(total), float(count)) for name, (total, count) in self.totals.items()}):
            for name, (total, count) in own.items():
                before, n = found.get(name, (0.0, 0.0))
                found[name] = (before + total, n + count)
        return {name: total / count for name, (total, count) in found.items() if count}

    def _add(self, name: str, total: Tensor | float, count: Tensor | float) -> None:
        before, n = self.totals.get(name, (0.0, 0.0))
        self.totals[name] = (before + total, n + count)
