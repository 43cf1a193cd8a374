"""A Bradley-Terry reward model (Christiano et al. 2017; Ouyang et al. 2022), as an ensemble, with a temperature per judge."""

# PyTorch says in part alone what `backward`, `step` and `tolist` take and give.
# pyright: reportUnknownMemberType=false

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Unpack

import torch
from torch import nn

from rather.core import Comparison, RewardModel
from rather.learners.common import LeastUsed, Means, Order, Pairs, Stepper, agreement, at_place, drawn, names
from rather.learners.inputs import check_comparisons
from rather.learners.learner import Learner, digest_of_comparisons
from rather.learners.reward_settings import RewardOptions, RewardSettings
from rather.learners.settings import Optimization
from rather.learners.train import Callback
from rather.losses import bradley_terry_loss
from rather.settings import given


class Reward(Learner[RewardModel, Sequence[Comparison]]):
    """Fits scores to preferences: P(a better) = sigmoid((s_a - s_b) / temperature of the judge).

    `model.scores(batch)` gives (K, B) scores, K = `model.members`, whose `parameters` learn. Each of several members learns from a random
    80 % of its own. With `temperatures` that of each judge is learned; the mean of their inverses is held at 1, since scores have no
    scale. Judges who come later join them. `center` weighs (s_a + s_b)^2.

    Raises:
        ConfigError: an argument is not known, or its value is wrong.
    """

    name = "reward"
    best = ("loss", -1.0)

    def __init__(
        self,
        model: RewardModel,
        comparisons: Sequence[Comparison],
        parameters: Sequence[nn.Parameter],
        *,
        seed: int = 0,
        callbacks: Sequence[Callback] = (),
        folder: Path | str | None = None,
        **options: Unpack[RewardOptions],
    ) -> None:
        own, how = given("RewardModel.fit", options, RewardSettings, Optimization)
        self.comparisons = check_comparisons(comparisons)
        settings = {"reward": own, "data": {"comparisons": digest_of_comparisons(self.comparisons)}}
        super().__init__(model, how.steps_on(len(self.comparisons)), how, seed, settings, callbacks, folder)
        self.center = 0.01 if own.center is None else own.center
        self.judges = sorted({c.judge for c in self.comparisons}) if own.temperatures else []
        self.log_temperatures = nn.Parameter(torch.zeros(len(self.judges)))
        self.order: Order | LeastUsed = Order(len(self.comparisons), seed)
        self.stepper = Stepper(parameters, how, self.steps, [self.log_temperatures] if self.judges else [])
        members = model.members
        generator = torch.Generator().manual_seed(seed)
        self.learns = torch.rand(members, len(self.comparisons), generator=generator) < (0.8 if members > 1 else 1.1)

    @property
    def epoch(self) -> int:
        """Steps in which every comparison is used once."""
        return -(-len(self.comparisons) // self.how.batch_size)

    @torch.no_grad()
    def evaluate(self, data: Sequence[Comparison]) -> dict[str, float]:
        """The share of comparisons that the mean score orders as they were judged, ties left out, and its loss at a temperature of 1."""
        means, comparisons = Means(), check_comparisons(data)
        for start in range(0, len(comparisons), self.how.batch_size):
            pairs = Pairs.of(self.model, comparisons[start : start + self.how.batch_size])
            for part, *_ in pairs.split(self.how.micro_batch_tokens):
                a, b = part.scores(self.model.scores(part.batch).mean(0))
                means.add(accuracy=agreement(a, b, part.preference))
                means.weigh(len(part), loss=bradley_terry_loss(a, b, part.preference))
        return means.result()

    def follow(self, comparisons: Sequence[Comparison]) -> None:
        """Learn from these from now on; those that were there before keep their place."""
        before, now, self.comparisons = names(self.comparisons), names(comparisons), list(comparisons)
        self.order = LeastUsed.after(self.order, before, now, self.seed)
        self._join()
        if self.model.members > 1:
            rows = [[drawn(self.seed, f"{member}/{name}") < 0.8 for name in now] for member in range(self.model.members)]
            self.learns = torch.tensor(rows)
        else:
            self.learns = torch.ones(1, len(self.comparisons), dtype=torch.bool)

    def step(self) -> dict[str, float]:
        """One optimizer step on a batch of comparisons."""
        chosen = self.order.take(self.how.batch_size)
        pairs = Pairs.of(self.model, self.batch(chosen))
        learns = self.learns[:, chosen].to(pairs.preference.device)
        judges = [self.comparisons[i].judge for i in chosen]
        total = learns.sum().clamp(min=1)
        means, loss = Means(), 0.0
        for part, here, _, weight in pairs.split(self.how.micro_batch_tokens):
            a, b = part.scores(self.model.scores(part.batch))
            used = learns[:, here]
            difference = ((a - b) * self._scales(judges[here], a.device))[used]
            preference = part.preference.expand_as(a)[used]
            part_loss = 0 * (a + b).sum()  # the other ranks wait for its gradient
            if used.any():
                part_loss = bradley_terry_loss(difference, torch.zeros_like(difference), preference)
                part_loss = part_loss + self.center * (a + b)[used].square().mean()
                part_loss = part_loss * (weight * used.sum() / total)
            part_loss.backward()
            if not weight:
                continue
            loss = loss + part_loss.detach()
            mean_a, mean_b = a.mean(0), b.mean(0)
            means.add(accuracy=agreement(mean_a, mean_b, part.preference), score=torch.cat([mean_a, mean_b]))
            means.add(margin=((part.preference - 0.5).sign() * (mean_a - mean_b)), length=part.batch.mask.sum(-1))
            if len(a) > 1:
                means.add(disagreement=(a - b).std(0))
        loss = loss + self.further(chosen, means)
        learned = {f"temperature/{name}": t for name, t in self.temperatures().items()}
        return self.stepper.step(loss) | means.result() | learned | {"tokens": float(pairs.batch.mask.sum())}

    def batch(self, chosen: Sequence[int]) -> list[Comparison]:
        """The comparisons of a step, as they are learned from."""
        return [self.comparisons[i] for i in chosen]

    def further(self, chosen: Sequence[int], means: Means) -> torch.Tensor | float:
        """What is learned beside the comparisons of a step: its loss, whose gradient it leaves in the parameters."""
        del chosen, means
        return 0.0

    def temperatures(self) -> dict[str, float]:
        """The temperature of each judge: above 1 for one whose answers say little; of a single one nothing can be said."""
        if len(self.judges) < 2:
            return {}
        with torch.no_grad():
            values = 1 / self._trust()
        return {name: float(value) for name, value in zip(self.judges, values, strict=True)}

    def state_dict(self) -> dict[str, Any]:
        """Optimizer state, judge temperatures and the place in the data."""
        state = {"stepper": self.stepper.state_dict(), "place": self.order.place}
        return state | {"log_temperatures": self.log_temperatures.detach(), "judges": list(self.judges)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take `state` back; judges who have come since join those that it knows.

        Raises:
            ValueError: it has another number of temperatures than of judges.
        """
        judges, temperatures = state.get("judges", self.judges), state["log_temperatures"]
        if temperatures.shape != (len(judges),):
            raise ValueError(f"{temperatures.numel()} temperatures for the judges {', '.join(judges)}")
        self.stepper.load_state_dict(state["stepper"])
        self.order = at_place(state["place"], names(self.comparisons), self.seed)
        self.judges, self.log_temperatures.data = list(judges), temperatures.to(self.log_temperatures, copy=True)
        self._join()

    def _join(self) -> None:
        """Learn a temperature of those who judged a comparison and have none yet."""
        new = sorted({c.judge for c in self.comparisons} - set(self.judges)) if self.judges else []
        if new:
            self.judges += new
            self.stepper.grow(self.log_temperatures, len(new))

    def _scales(self, judges: Sequence[str], device: torch.device) -> torch.Tensor:
        if not self.judges:
            return torch.ones(len(judges), device=device)
        return self._trust()[torch.tensor([self.judges.index(j) for j in judges])].to(device)

    def _trust(self) -> torch.Tensor:
        """Inverse temperatures (J,), of mean 1: one judge who says nothing, whose temperature has no bound, does not move the others'."""
        return len(self.judges) * torch.softmax(-self.log_temperatures, 0)
