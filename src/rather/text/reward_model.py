"""A reward model: heads on a language model that score whole answers.

Shape letters: B trajectories, T answer tokens (padded), K ensemble members, C width.
"""

from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Literal, Self, Unpack

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from rather.core import Batch, Comparison, Prompt, Task, Trajectory
from rather.errors import ConfigError, ModelError
from rather.learners.common import check_members, check_pessimism, in_parts, pessimistic
from rather.learners.inputs import Reference, trainee
from rather.learners.reward import Reward
from rather.learners.reward_settings import RewardOptions
from rather.learners.settings import LoRA
from rather.learners.train import Callback
from rather.scale import ranks
from rather.text import load as files
from rather.text.files import scored
from rather.text.head import states
from rather.text.head.model import RewardHead
from rather.text.language_model import LanguageModel
from rather.text.open import load, load_adapter
from rather.text.policy import Begun, TextPolicy

HEADS = "reward_heads.safetensors"
TOKENS = 1536
"""Tokens that are scored at a time, times `WITHOUT_GRADIENT`."""


class RewardModel(nn.Module):
    """K linear heads on a language model that score whole answers from the hidden state of the last token.

    The K `members` of an ensemble share a body, which is trained with them: a new adapter on `model`, which stays as it is, a copy of the
    adapter that it has, or with `adapter` "full" a copy of all its weights. With `parameters` the body is `model` itself, in which these
    learn. As a reward, a score is lower by `pessimism` standard deviations of the members.
    """

    def __init__(
        self,
        model: LanguageModel,
        members: int = 1,
        seed: int = 0,
        *,
        adapter: LoRA | Literal["full"] | None = None,
        parameters: Sequence[nn.Parameter] | None = None,
        pessimism: float = 0.0,
    ) -> None:
        super().__init__()
        body, self.learned = trainee(model, adapter, seed, parameters)
        self.body: LanguageModel = body
        self.members, self.pessimism, self.seed = check_members("RewardModel", members), check_pessimism(pessimism, members), seed
        self.tail: list[int] = []
        """Tokens that stand after the one that ends an answer, where the model has learned to score the last of them."""
        generator = torch.Generator().manual_seed(seed)
        self.heads = nn.Parameter((torch.randn(members, body.width, generator=generator) / body.width).to(body.device))

    def collate(self, trajectories: Sequence[Trajectory]) -> Batch:
        """Trajectories as a batch; see `collate`."""
        return self.body.collate(trajectories)

    def scores(self, batch: Batch, *begun: Begun) -> Tensor:
        """Scores (K, B) of each member, float32."""
        return self.heads @ self.body.ends(scored.with_tail(batch, self.tail), *begun).float().T

    def rewards(self, batch: Batch, *begun: Begun) -> Tensor:
        """Rewards (B, T): the mean score of the members, less what `pessimism` takes off, on the last token, 0 on the others."""
        last = batch.mask.sum(-1, keepdim=True).long() - 1
        return torch.zeros_like(batch.mask).scatter(1, last, pessimistic(self.scores(batch, *begun), self.pessimism)[:, None])

    def beside(self, reference: Reference, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """`rewards`, and what `reference.look` gives; the blocks that the two have in common see the batch once."""
        begun = self.body.begin(batch, reference) if isinstance(self.body, TextPolicy) and isinstance(reference, TextPolicy) else ()
        return self.rewards(batch, *begun), *reference.look(batch, *begun)

    @torch.no_grad()
    def start_from_head(self, comparisons: Sequence[Comparison], *, temperatures: bool = True, cache: Path | str | None = None) -> Self:
        """Score as a `RewardHead` does that learns from these comparisons and reads the state of the last token alone, after all blocks.

        `fit` goes on from there, with temperatures of 1. Each of several members is a draw from the posterior. What the heads had learned
        before is lost.

        Raises:
            TrainingError: there are no comparisons, or states that are not finite.
            ConfigError: the model scores what its template writes after an answer, as one from `published` does.
        """
        if self.tail:
            raise ConfigError("this reward model has learned to score already; start from a reward head on a language model")
        head = RewardHead(self.body, layers=[states.depth(self.body)], cache=cache)
        head.groups = (states.POOLINGS.index("last"),)
        self.heads.copy_(torch.from_numpy(head.learn(comparisons, temperatures).raw(self.members, self.seed)))
        return self

    def fit(
        self,
        comparisons: Sequence[Comparison],
        eval: Sequence[Comparison] | None = None,
        patience: int | None = None,
        *,
        callbacks: Sequence[Callback] = (),
        folder: Path | str | None = None,
        **options: Unpack[RewardOptions],
    ) -> Self:
        """Learn from comparisons; `eval` and `patience` as in `Learner.train`, the rest as in `learners.reward.Reward`."""
        Reward(self, comparisons, self.trained, seed=self.seed, callbacks=callbacks, folder=folder, **options).train(eval, patience)
        return self

    @property
    def trained(self) -> list[nn.Parameter]:
        """All that learns: the body's parameters, and the heads."""
        return [*self.learned, self.heads]

    def score(self, prompt: Prompt, answers: Sequence[str]) -> list[float]:
        """The mean score of the members for each of several answers to a prompt."""
        if isinstance(answers, str):
            raise ConfigError("answers is one text; give a list, such as [text]")
        rows = [Trajectory(Task("score", "0", prompt), "score", text) for text in answers]
        return in_parts(self.collate(rows), TOKENS, lambda part: (self.scores(part).mean(0),))[0].tolist() if rows else []

    @classmethod
    def load(
        cls, folder: Path | str, model: LanguageModel | None = None, *, dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    ) -> Self:
        """The reward model that `save` wrote; its adapter goes on `model`, or on the base model that it names, read in `dtype`.

        Or one that `transformers` reads (AutoModelForSequenceClassification with one label), by its folder or its name on the hub; then
        its head alone learns.

        Raises:
            ModelError: there is no reward model in `folder`, or its base model cannot be had.
        """
        folder = Path(folder)
        if not folder.exists() or ((folder / "config.json").exists() and not (folder / HEADS).exists()):
            where, on = files.locate(str(folder)), files.device("auto")
            return cls.published(files.policy(where, on, files.dtype(dtype, on), False, 1.0, date=str(date.today()), scores=True), where)
        try:
            with safe_open(folder / HEADS, "pt") as file:
                members = file.get_slice("heads").get_shape()[0]
        except (OSError, SafetensorError) as e:
            raise ModelError(f"{folder} holds no reward model: {e}") from None
        if model is None or not (folder / "adapter_config.json").exists():
            body, parameters = load(folder, dtype=dtype).trainable(None if (folder / "adapter_config.json").exists() else "full", 0)
        else:
            body, parameters = load_adapter(model, folder)
        found = cls(body, members, parameters=parameters)
        found.restore(folder)
        return found

    @classmethod
    def published(cls, body: LanguageModel, folder: Path) -> Self:
        """The reward model that `transformers` reads from `folder`, given the language model there; it scores all that the template writes.

        Raises:
            ModelError: it does not give a text one score.
        """
        head, found = scored.read_head(folder), cls(body, parameters=[])
        found.heads.detach().copy_(head)
        if body.tokens.template is not None:
            found.tail = body.tokens.tokenizer(body.tokens.template.rest, add_special_tokens=False)["input_ids"]
        return found

    def merge(self, folder: Path | str, dtype: torch.dtype | None = None) -> None:
        """Write a folder that AutoModelForSequenceClassification reads; of an ensemble one for each member, member-1 and so on in `folder`.

        Raises:
            ModelError: the body is of a family that rather does not compute itself.
        """
        for i, head in enumerate(self.heads.detach(), 1):
            self.body.merge(Path(folder) if self.members == 1 else Path(folder) / f"member-{i}", dtype, head[None])

    def save(self, folder: Path | str) -> None:
        """Write the body as a policy is written, and the heads as reward_heads.safetensors."""
        self.body.save(folder)
        if ranks.rank() == 0:
            save_file({"heads": self.heads.detach().cpu(), "tail": torch.tensor(self.tail, dtype=torch.int64)}, Path(folder) / HEADS)

    def restore(self, folder: Path) -> None:
        """Take over the weights that `save` wrote, in place.

        Raises:
            ModelError: `folder` holds no reward model, or one with another number of members.
        """
        self.body.restore(folder)
        try:
            heads = (saved := load_file(folder / HEADS))["heads"]
        except (OSError, KeyError, SafetensorError) as e:
            raise ModelError(f"{folder} holds no reward model: {e}") from None
        if heads.shape != self.heads.shape:
            raise ModelError(f"{folder} has {len(heads)} ensemble members, not {len(self.heads)}; set reward.members to it")
        self.heads.detach().copy_(heads)
        self.tail = saved.get("tail", torch.empty(0)).tolist()  # which older ones lack
