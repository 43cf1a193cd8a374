"""Online DPO (Guo et al. 2024, OAIF): the policy answers, a judge compares two answers to each prompt, and DPO learns from that at once."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Unpack

import torch
from torch import Tensor, nn

from rather.core import Batch, Comparison, Trajectory
from rather.data.rows import Prompts, tasks
from rather.errors import ConfigError
from rather.judges.given import JudgeLike
from rather.learners.common import Order, in_parts
from rather.learners.dpo import DPO, Loss, loss_name
from rather.learners.dpo_settings import DPOOptions, DPOSettings
from rather.learners.inputs import acting
from rather.learners.learner import Learner, digest
from rather.learners.settings import LoRA, Optimization, Sampling, SamplingOptions
from rather.learners.train import Callback
from rather.losses import kl_estimate
from rather.pipeline.online import Questions
from rather.report.compare import compared
from rather.settings import given
from rather.text.head.model import RewardHead
from rather.text.language_model import LanguageModel

NOT_HERE = {
    "epochs": "give steps, or labels, which say how many there are",
    "reference_logprobs": "the reference is evaluated at each step",
}
"""Arguments of DPO that are about comparisons which are there from the beginning."""


class OnlineDPOOptions(DPOOptions, SamplingOptions, total=False):
    """The settings of DPO and of sampling as keyword arguments."""


class OnlineDPO(Learner[LanguageModel, Prompts]):
    """One step: answer the next `batch_size` prompts, have two answers to each compared, and take `updates` optimizer steps of DPO.

    An optimizer step learns from the comparisons that have been used least, the new ones before all others: with one update it is the
    online DPO of Guo et al. `judge` is a function of (prompt, a, b), a reward model or any judge. Of more than two `answers` to a prompt
    two are taken at random, or by `strategy` and what a reward `head` believes, which learns from every comparison (see `OnlineReward`).
    Where the judge abstains, or all answers to a prompt are alike, a comparison that was used before takes the place of a new one.

    With `kl_bound` the policy is held within about so many nats a token of the reference. The KL is estimated on each step's answers (k3),
    and averaged with that of the steps before, which count half. A policy that is further is taken back along the straight line to where
    it began, to the square root of bound over KL of the way, since the KL grows with the square of the way (interpolation of weights, Rame
    et al. 2024, "WARP"). After the last step new answers are drawn, and it is held to their KL alone.

    There are as many steps as `labels` take. With more `steps` it goes on when they are used up, without asking. Comparisons are in the
    checkpoints, so that a stopped training goes on exactly. The given `policy` stays as it is; of it, reference, adapter and `loss` see
    `DPO`.

    Raises:
        ConfigError: an argument is not known, or its value is wrong.
        DataError: a prompt cannot be read.
    """

    name = "online_dpo"
    best = ("win_rate", 1.0)

    def __init__(
        self,
        policy: LanguageModel,
        prompts: Prompts,
        judge: JudgeLike,
        labels: int = 200,
        answers: int = 2,
        *,
        strategy: str = "random",
        head: RewardHead | None = None,
        updates: int = 1,
        kl_bound: float | None = None,
        reference: LanguageModel | None = None,
        loss: str | Loss = "dpo",
        adapter: LoRA | Literal["full"] | None = None,
        seed: int = 0,
        callbacks: Sequence[Callback] = (),
        folder: Path | str | None = None,
        **options: Unpack[OnlineDPOOptions],
    ) -> None:
        for name, instead in NOT_HERE.items():
            if name in options:
                raise ConfigError(f"OnlineDPO has no argument {name!r}; {instead}")
        whole = isinstance(answers, int) and isinstance(updates, int)  # pyright: ignore[reportUnnecessaryIsInstance]
        if not whole or answers < 2 or updates < 1:
            raise ConfigError(f"OnlineDPO: answers is {answers} and updates {updates}; give at least 2 answers and 1 update")
        if kl_bound is not None and not (isinstance(kl_bound, int | float) and kl_bound > 0):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise ConfigError(f"OnlineDPO: kl_bound is {kl_bound}; give nats a token above 0, or None")
        if kl_bound is not None and reference is not None and reference is not policy:
            raise ConfigError("OnlineDPO: kl_bound takes the policy back to where it began; leave out the reference, or the bound")
        named = {"loss": loss} if isinstance(loss, str) else {}
        own, how, sampling = given("OnlineDPO", {**options, **named}, DPOSettings, Optimization, Sampling)
        if not sampling.temperature:
            raise ConfigError("OnlineDPO: temperature is 0, at which all answers to a prompt are the same; set it above 0")
        self.prompts, self.answers, self.updates = tasks(prompts), answers, updates
        self.order, self.questions = Order(len(self.prompts), seed), Questions("OnlineDPO", judge, labels, strategy, seed, head)
        model, frozen, self.learned = acting(policy, reference, adapter, seed, None, sampling)
        assert isinstance(frozen, LanguageModel)
        self.reference, self.sampling, self.sampler = frozen, sampling, model.sampler(sampling)
        about = {"answers": answers, "updates": updates, "kl_bound": kl_bound}
        settings = {"dpo": own, "sample": sampling, "online": about, "data": {"prompts": digest([t.prompt for t in self.prompts])}}
        steps = how.steps or math.ceil(labels / how.batch_size)
        super().__init__(model, steps, how, seed, settings, callbacks, folder, loss=loss_name(loss))
        shared = {name: value for name, value in options.items() if name not in Sampling.model_fields}
        self.options: dict[str, Any] = {**shared, "loss": loss, "seed": seed, "steps": self.steps * updates}
        if own.has_reference:
            # Each step: what it says of a pair in another batch differs in its last bits, and a training may be stopped.
            self.options |= {"reference": frozen, "reference_logprobs": "each"}
        self.done, self.dpo = 0, None
        self.kl_bound, self.kl = kl_bound, 0.0
        self.start = [p.detach().clone() for p in self.learned] if kl_bound is not None else []

    @property
    def parameters(self) -> list[nn.Parameter]:
        """All that learns."""
        return self.learned

    @property
    def taken(self) -> int:
        """Steps that have been taken."""
        return self.done

    @property
    def comparisons(self) -> list[Comparison]:
        """All that the judge has answered."""
        return self.questions.comparisons

    def evaluate(self, data: Prompts) -> dict[str, float]:
        """How often the judge prefers the policy to the reference, in one answer to each of other prompts; see `compare.win_rate`.

        Raises:
            JudgeError: it abstains from all of them.
        """
        base = self.reference.sampler(self.sampling)
        return {"win_rate": compared(self.sampler, base, tasks(data), self.questions.judge, self.seed).mean}

    def step(self) -> dict[str, float]:
        """Sample, ask, and take the optimizer steps that follow; none while there is no comparison."""
        held = dict[str, float]()
        if self.questions.left or self.kl_bound is not None:
            answers = self._draw()
            if self.kl_bound is not None:
                held = self._hold(answers, self.kl_bound)
            head = self.questions.head
            self.questions.ask(answers, None if head is None else head.read(answers))
        else:
            self.questions.ask([], None)
        self.done += 1
        if not self.comparisons:
            return self.questions.metrics() | held
        learner = self._following()
        first, *others = [learner.step() for _ in range(self.updates)]
        if self.kl_bound is not None and self.done == self.steps:
            held |= {"taken_back": self._hold(self._draw(), self.kl_bound, alone=True)["taken_back"]}
        return first | self.questions.metrics() | held | {"tokens": first["tokens"] + sum(other["tokens"] for other in others)}

    def _draw(self) -> list[Trajectory]:
        """Answers to the prompts of the step that comes next."""
        chosen = self.order.at(self.done * self.how.batch_size, self.how.batch_size)
        asked = [self.prompts[i] for i in chosen for _ in range(self.answers)]
        return self.sampler.sample(asked, self.seed * 1_000_003 + self.done)

    def state_dict(self) -> dict[str, Any]:
        """What was asked and answered, DPO's state, and the number of steps."""
        own = {"taken": self.done, "kl": self.kl, "questions": self.questions.state_dict()}
        return own | {"dpo": None if self.dpo is None else self.dpo.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take `state` back."""
        self.done, self.dpo, self.kl = state["taken"], None, state.get("kl", 0.0)  # which older checkpoints do not have
        self.questions.load_state_dict(state["questions"])
        if state["dpo"] is not None:
            self._following().load_state_dict(state["dpo"])

    @torch.no_grad()
    def _hold(self, answers: Sequence[Trajectory], bound: float, alone: bool = False) -> dict[str, float]:
        """Take the policy back as far as the bound demands, by the KL on these answers of it, `alone` or with those of the steps before."""
        batch = self.model.collate(answers)

        def each(part: Batch) -> tuple[Tensor]:
            return ((kl_estimate(part.logprobs, self.reference.evaluate(part)[0], "k3") * part.mask).sum(-1),)

        (sums,) = in_parts(batch, self.how.micro_batch_tokens, each)
        now = float(sums.double().sum() / batch.mask.sum())
        self.kl = (self.kl + now) / 2 if self.done and not alone else now
        share = min(1.0, math.sqrt(bound / self.kl)) if self.kl > 0 else 1.0
        if share < 1:
            self.kl *= share**2
            self.put_back([start + share * (p - start) for p, start in zip(self.learned, self.start, strict=True)])
        return {"kl_token": now, "taken_back": 1 - share}

    def _following(self) -> DPO[LanguageModel]:
        """DPO on all comparisons so far; it is made when there are some."""
        if self.dpo is None:
            self.dpo = DPO(self.model, self.comparisons, parameters=self.learned, **self.options)
        self.dpo.follow(self.comparisons)
        return self.dpo
