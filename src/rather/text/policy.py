"""Language models as policies, samplers and critics: from trajectories to packed tokens and back.

Shape letters: B trajectories, T answer tokens (padded), P prompt tokens (padded), C width.
"""

import copy
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from rather.core import UNUSED, Batch, Perturbation, Trajectory
from rather.errors import DataError
from rather.learners.settings import LoRA
from rather.scale import ranks
from rather.text import engine, lora, weights
from rather.text.collate import collate
from rather.text.files import scored
from rather.text.files.shifted import shifted
from rather.text.language_model import LanguageModel, free_name, refuse_second
from rather.text.linear import packed
from rather.text.packing import Packed, pack, sent
from rather.text.tokens import Tokens
from rather.text.transformer import TokenLogprobs, Transformer

Begun = tuple[Packed, tuple[int, Tensor]]
"""A batch end to end, and the first block that has not seen it with what enters there, as `Transformer` takes it up."""


def pack_batch(batch: Batch, model: Transformer) -> Packed:
    """The batch laid end to end for `model`, each distinct prompt once."""
    # By NumPy: PyTorch wakes all its threads to look through a few thousand tokens.
    prompts, answers = ([torch.from_numpy(row[row != UNUSED]) for row in x.numpy()] for x in (batch.observations, batch.actions))
    return pack(prompts, answers, model.dtype, device=model.device)


class TextPolicy(LanguageModel):
    """A language model of rather's own architectures.

    With `adapter` None it is the base alone: the reference of a policy that is an adapter on the same base. A `space` may be
    perturbed (see `spaces`). `space.beside`: its numbers are added to what the model computes; else they are in the weights, where `adopt`
    finds them. `space.in_turn`: the model is `at` one perturbation after the other, since they cannot be sampled from together.
    """

    def __init__(
        self,
        model: Transformer,
        tokens: Tokens,
        adapter: str | None = None,
        temperature: float = 1.0,
        name: str = "policy",
        space: Any = None,
    ) -> None:
        self.model, self.tokens, self.adapter, self.space = model, tokens, adapter, space
        self.temperature, self.name = temperature, name
        self.context, self.width = model.shape.context, model.shape.width

    @property
    def beside(self) -> bool:
        """Whether a part of the policy is beside the model: its space's numbers."""
        return self.space is not None and self.space.beside

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.model.device

    def collate(self, trajectories: Sequence[Trajectory]) -> Batch:
        """Trajectories as a batch; see `collate`."""
        return collate(self.tokens, trajectories, self.context, self.device)

    def evaluate(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Log-probabilities (B, T) of the actions at the policy's temperature, and entropies (B, T) without gradient.

        Prompts that several rows share are forwarded once, and logits exist for a few hundred tokens at a time.
        """
        laid = pack_batch(batch, self.model)
        return self._scores(self._hidden(laid, laid.chosen(laid.before)), batch)

    def ends(self, batch: Batch, begun: Begun | None = None) -> Tensor:
        """Hidden states (B, C) of the last token of each answer; an answer has at least one, if only the one that ends it."""
        laid, lower = begun or (pack_batch(batch, self.model), None)
        return self._hidden(laid, laid.chosen([places[-1:] for places in laid.after]), lower)

    def look(self, batch: Batch, begun: Begun | None = None) -> tuple[Tensor, Tensor]:
        """Log-probabilities (B, T) as `evaluate` gives them, and from the same pass the hidden states (B, T + 1, C) before each token
        of an answer and after its last, 0 beyond: what a critic judges by.
        """
        laid, lower = begun or (pack_batch(batch, self.model), None)
        wanted = [torch.cat([before, after[-1:]]) for before, after in zip(laid.before, laid.after, strict=True)]
        hidden = self._hidden(laid, laid.chosen(wanted), lower)
        lengths, place = batch.mask.sum(-1, keepdim=True), torch.arange(batch.mask.shape[1] + 1, device=self.device)
        states = hidden.new_zeros(len(batch), len(place), self.width).masked_scatter((place <= lengths)[..., None], hidden)
        ends = np.cumsum([len(x) for x in wanted])
        acted = laid.chosen([torch.from_numpy(np.delete(np.arange(ends[-1]), ends - 1))])
        return self._scores(hidden[acted], batch)[0], states

    def _scores(self, hidden: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """Log-probabilities and entropies (B, T) of all actions, given the hidden states (N, C) before them."""
        actions, empty = batch.actions.numpy(), torch.zeros_like(batch.mask)
        known = actions != UNUSED
        # Counted on the host: a mask on a GPU would be waited for.
        where, targets = sent(torch.from_numpy(np.stack([np.flatnonzero(known), actions[known]])), hidden.device)
        keep = not self.model.checkpointing
        found = TokenLogprobs.apply(hidden, self.model.head, targets, self.temperature, keep)
        logprobs, entropy = (empty.flatten().index_copy(0, where, x).view_as(empty) for x in found)  # type: ignore[union-attr]
        return logprobs, entropy

    def is_as(self, other: "TextPolicy") -> bool:
        """Whether both have the same weights and adapter, and no space."""
        return self.model is other.model and self.adapter == other.adapter and self.space is other.space is None

    def begin(self, batch: Batch, other: "TextPolicy") -> tuple[Begun, ...]:
        """What both policies compute alike, for `ends` and `look`, if one is the other's base."""
        if not (self.model is other.model and self.adapter and other.adapter is None and self.space is other.space is None):
            return ()
        laid, first = pack_batch(batch, self.model), lora.first(self.model, self.adapter)
        return ((laid, (first, self.model(laid.ids, laid.positions, laid, before=first))),)

    def _hidden(self, laid: Packed, wanted: Tensor, lower: tuple[int, Tensor] | None = None) -> Tensor:
        shift = self.space.shift() if self.beside else None
        return self.model(laid.ids, laid.positions, laid, self.adapter, wanted, shift, lower)

    def answer(
        self,
        requests: Sequence[engine.Request],
        sampling: engine.Sampling,
        rows: int,
        progress: Callable[[int], None],
        perturbations: Sequence[Perturbation | None] = (None,),
    ) -> list[engine.Answer]:
        """Answer every request, `rows` at a time; `Request.policy` says under which of the `perturbations`.

        Raises:
            DataError: the policy has no space to perturb.
        """
        if self.space is None and any(perturbations):
            raise DataError("this policy has no space to perturb; give it one, such as a steering vector")
        answer = partial(engine.generate, self.model, sampling=sampling, stop=self.tokens.stop, rows=rows, progress=progress)
        if self.space is not None and self.space.in_turn:
            found: dict[int, engine.Answer] = {}
            for i, p in enumerate(perturbations):
                mine = [n for n, r in enumerate(requests) if r.policy == i]
                with self.space.at(p):
                    found |= zip(mine, answer(requests=[requests[n] for n in mine]), strict=True)
            return [found[n] for n in range(len(requests))]
        if self.space is None or (not any(perturbations) and not self.beside):
            with ranks.whole(self.model):
                return answer(requests=requests, adapter=self.adapter)
        return answer(requests=requests, adapter=self.adapter, several=self.space.several(perturbations))

    @torch.no_grad()
    def stream(self, request: engine.Request, sampling: engine.Sampling) -> Iterator[int]:
        """The tokens of one answer, each as soon as it is drawn; the model must not be trained or moved meanwhile."""
        several = self.space.several([None]) if self.beside else None
        with packed(self.model, self.model.dtype):
            work = engine.Generation(engine.Rows(self.model, 1, sampling, self.adapter, several), self.tokens.stop)
            finished = work.join({0: request})
            while not finished:
                yield work.drawing[0].tokens[-1]
                finished = work.go()
            yield finished[0].tokens[-1]

    def weights(self) -> dict[str, Tensor]:
        """The tensors that are trained: those of the adapter, or all."""
        mark = "" if self.adapter is None else f".{self.adapter}."
        return {name: p.detach() for name, p in self.model.named_parameters() if mark in f".{name}."}

    def trainable(self, adapter: LoRA | Literal["full"] | None, seed: int) -> "tuple[TextPolicy, list[nn.Parameter]]":
        """A policy to train that leaves this one as it is, and its parameters; see `LanguageModel.trainable`."""
        if adapter == "full":
            lora.refuse_quantized(self.model)
            model = lora.merged(self.model, self.adapter) if self.adapter else copy.deepcopy(self.model)
            model = model.float().requires_grad_(True)  # activations are computed in the model's dtype as before
            return TextPolicy(model, self.tokens, None, self.temperature, self.name), list(model.parameters())
        name = free_name(lora.names(self.model))
        if self.adapter is None:
            new = adapter or LoRA()
            parameters = lora.add(self.model, name, new.rank, new.alpha, seed, new.blocks)
        else:
            refuse_second(adapter)
            parameters = lora.copied(self.model, self.adapter, name)
        return TextPolicy(self.model, self.tokens, name, self.temperature, self.name), parameters

    def save(self, folder: Path | str) -> None:
        """Write the adapter in PEFT's format, the steering vector, or the whole model with its tokenizer as a Hugging Face folder."""
        folder = Path(folder)
        if self.beside:
            self.space.save(folder)
        elif self.adapter is not None:
            lora.save(self.model, self.adapter, folder, str(self.model.description.get("_name_or_path", "")))
        else:
            with ranks.whole(self.model):
                if ranks.rank() == 0:
                    weights.save(self.model, folder)
                    self.tokens.save(folder)

    def merged(self) -> Transformer:
        """What adapter or space have made of the model.

        Raises:
            ModelError: the model has no place for a steering vector.
        """
        if self.beside:
            return shifted(self.model, {i: x[0] for i, x in self.space.after().items()})
        return self.model if self.adapter is None else lora.merged(self.model, self.adapter)

    def merge(self, folder: Path | str, dtype: torch.dtype | None = None, score: Tensor | None = None) -> None:
        """Write the model that is `merged` as a Hugging Face folder that needs nothing else; see `LanguageModel.merge`."""
        folder = Path(folder)
        if score is None:
            weights.save(self.merged(), folder, dtype)
            self.tokens.save(folder)
        else:
            weights.save(self.merged(), folder, dtype, scored.Head(score, scored.save_tokens(self.tokens, folder)))

    def restore(self, folder: Path) -> None:
        """Take over the weights that `save` wrote, in place."""
        if self.beside:
            self.space.restore(folder)
        elif self.adapter is not None:
            lora.load(self.model, self.adapter, folder)
        else:
            lora.refuse_quantized(self.model)
            saved = dict(weights.load(folder, torch.float32).named_parameters())
            with ranks.whole(self.model, changed=True), torch.no_grad():
                for name, p in self.model.named_parameters():
                    if name in saved:
                        p.copy_(saved[name])
        if self.space is not None and not self.beside:
            self.space.adopt()
