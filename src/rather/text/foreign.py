"""Any other architecture, through `transformers`: the same protocols, slower.

Answers are evaluated and drawn row by row, so that no architecture's padding, positions or cache have to be known.

Shape letters: B trajectories, T answer tokens (padded), C width.
"""

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import torch
from torch import Tensor, nn

from rather.core import UNUSED, Batch, Perturbation, Trajectory
from rather.errors import DataError, ModelError
from rather.learners.settings import LoRA
from rather.scale import ranks
from rather.text import engine, foreign_lora
from rather.text.collate import collate
from rather.text.files import quantization
from rather.text.files.description import read_config
from rather.text.files.stored import folder_tensors
from rather.text.language_model import LanguageModel, free_name, refuse_second
from rather.text.sampling import doubles, draw, uniforms
from rather.text.tokens import Tokens


class ForeignPolicy(LanguageModel):
    """A causal language model of `transformers` as a policy; adapters are `peft`'s (see `foreign_lora`).

    Several policies may share `inner`, each with an adapter of its own; with `adapter` None a policy is the base alone.
    """

    def __init__(self, inner: Any, tokens: Tokens, adapter: str | None = None, temperature: float = 1.0, name: str = "policy") -> None:
        self.inner, self.tokens, self.adapter = inner, tokens, adapter
        self.temperature, self.name = temperature, name
        config = inner.config.get_text_config()
        self.context = context(config)
        self.width = config.hidden_size

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.inner.get_input_embeddings().weight.device

    def collate(self, trajectories: Sequence[Trajectory]) -> Batch:
        """Trajectories as a batch."""
        return collate(self.tokens, trajectories, self.context, self.device, shared=False)

    def evaluate(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Log-probabilities (B, T) of the actions, and entropies (B, T) without gradient; one row's logits at a time."""
        logprobs, entropies, _ = zip(*(self._row(*row) for row in _rows(batch)), strict=True)
        return _padded(logprobs, batch.mask.shape[1]), _padded(entropies, batch.mask.shape[1])

    def look(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Log-probabilities (B, T), and the hidden states (B, T + 1, C) before each token of an answer and after its last, 0 beyond."""
        logprobs, _, states = zip(*(self._row(*row) for row in _rows(batch)), strict=True)
        return _padded(logprobs, batch.mask.shape[1]), _padded(states, batch.mask.shape[1] + 1)

    def _row(self, ids: Tensor, start: int, end: int) -> tuple[Tensor, Tensor, Tensor]:
        """Log-probabilities and entropies (t,) of an answer from `start` to `end`, and its hidden states (t + 1, C)."""
        foreign_lora.activate(self.inner, self.adapter)
        out = self.inner(input_ids=ids[None], use_cache=False, output_hidden_states=True)
        every = torch.log_softmax(out.logits[0, start - 1 : end - 1].float() / self.temperature, dim=-1)
        chosen = every.gather(1, ids[start:end, None])[:, 0]
        return chosen, -(every.exp() * every).sum(-1).detach(), out.hidden_states[-1][0, start - 1 : end]

    def ends(self, batch: Batch) -> Tensor:
        """Hidden states (B, C) of the last token of each answer."""
        found = []
        foreign_lora.activate(self.inner, self.adapter)
        for ids, _, end in _rows(batch):
            states = self.inner(input_ids=ids[None, :end], use_cache=False, output_hidden_states=True).hidden_states
            found.append(states[-1][0, -1])
        return torch.stack(found)

    def layers(self, batch: Batch) -> list[list[Tensor]]:
        """For each answer the hidden states (t, C) of its tokens after each block, the first before all of them."""
        foreign_lora.activate(self.inner, self.adapter)
        found = list[list[Tensor]]()
        for ids, start, end in _rows(batch):
            states = self.inner(input_ids=ids[None, :end], use_cache=False, output_hidden_states=True).hidden_states
            found.append([x[0, start:] for x in states])
        return found

    def answer(
        self,
        requests: Sequence[engine.Request],
        sampling: engine.Sampling,
        rows: int,
        progress: Callable[[int], None],
        perturbations: Sequence[Perturbation | None] = (None,),
    ) -> list[engine.Answer]:
        """Answer every request, one after the other; `rows` has no effect.

        Raises:
            DataError: perturbations are asked for.
        """
        del rows
        if any(perturbations):
            raise DataError("only rather's own architectures can be perturbed row by row")
        answers = list[engine.Answer]()
        for request in requests:
            drawn = list(self._drawn(request, sampling))
            progress(1)
            tokens = [token for token, _ in drawn]
            answers.append(engine.Answer(tokens, [logprob for _, logprob in drawn], tokens[-1] in self.tokens.stop))
        return answers

    def stream(self, request: engine.Request, sampling: engine.Sampling) -> Iterator[int]:
        """The tokens of one answer, each as soon as it is drawn."""
        return (token for token, _ in self._drawn(request, sampling))

    @torch.no_grad()
    def _drawn(self, request: engine.Request, sampling: engine.Sampling) -> Iterator[tuple[int, float]]:
        """The tokens of one answer with their log-probabilities."""
        chances = uniforms(request.seed, sampling.max_tokens)
        every = ids = torch.tensor([request.prompt], device=self.device)
        cache = None
        for n in range(sampling.max_tokens):
            foreign_lora.activate(self.inner, self.adapter)  # another policy of the same model may have been at work meanwhile
            out = self.inner(input_ids=ids, past_key_values=cache, use_cache=True)
            drawn, logprob = draw(out.logits[:, -1], chances[n, None].to(doubles(self.device)), sampling)
            yield (token := int(drawn)), float(logprob)
            drawn = drawn.to(self.device)
            if token in self.tokens.stop:
                return
            every, cache = torch.cat([every, drawn[:, None]], dim=1), getattr(out, "past_key_values", None)
            ids = every if cache is None else drawn[:, None]  # a state of another kind, such as Mamba's, is computed again

    def trainable(self, adapter: LoRA | Literal["full"] | None, seed: int) -> "tuple[ForeignPolicy, list[nn.Parameter]]":
        """A policy to train that leaves this one as it is, and its parameters; see `LanguageModel.trainable`.

        Raises:
            ConfigError: a new adapter is asked for, but the policy has one.
            ModelError: the adapter is for some of the blocks, which rather does not know here, or `peft` is missing.
        """
        if adapter == "full":
            inner = self._merged().float().requires_grad_(True)
            return ForeignPolicy(inner, self.tokens, None, self.temperature, self.name), foreign_lora.every(inner)
        name = free_name(getattr(self.inner, "peft_config", {}))
        if self.adapter is None:
            new = adapter or LoRA()
            if new.blocks:
                raise ModelError("LoRA: blocks can be set for rather's own architectures only")
            parameters = foreign_lora.add(self.inner, name, new.rank, new.alpha, seed)
        else:
            refuse_second(adapter)
            with TemporaryDirectory() as folder:
                foreign_lora.save(self.inner, self.adapter, Path(folder))
                parameters = foreign_lora.load(self.inner, name, Path(folder))
        return ForeignPolicy(self.inner, self.tokens, name, self.temperature, self.name), parameters

    def _merged(self) -> Any:
        """A copy of the model with the adapter as a part of its weights."""
        inner = copy.deepcopy(self.inner)
        return inner if not hasattr(inner, "peft_config") else foreign_lora.baked(inner, self.adapter)

    def merge(self, folder: Path | str, dtype: torch.dtype | None = None, score: Tensor | None = None) -> None:
        """Write the model with the adapter as a part of its weights, as a Hugging Face folder; see `LanguageModel.merge`.

        Raises:
            ModelError: it is to score whole texts.
        """
        if score is not None:
            raise ModelError(f"a reward model on {self.inner.config.model_type!r} cannot be written; those of rather's own families can")
        self._merged().to(dtype).save_pretrained(folder)
        self.tokens.save(Path(folder))

    def save(self, folder: Path | str) -> None:
        """Write the adapter in PEFT's format, or the whole model with its tokenizer."""
        folder = Path(folder)
        if ranks.rank():  # every rank has all of it
            return
        if self.adapter is not None:
            foreign_lora.save(self.inner, self.adapter, folder)
            return
        self.inner.save_pretrained(folder)
        self.tokens.save(folder)

    def restore(self, folder: Path) -> None:
        """Take over the weights that `save` wrote, in place."""
        if self.adapter is not None:
            foreign_lora.load(self.inner, self.adapter, folder)
        else:
            state = read(folder, torch.float32, "it was saved by transformers").state_dict()
            self.inner.load_state_dict(state)


def _rows(batch: Batch) -> list[tuple[Tensor, int, int]]:
    """For each row its tokens without padding, and where the answer starts and ends."""
    rows = []
    for prompt, answer in zip(batch.observations, batch.actions, strict=True):
        prompt, answer = prompt[prompt != UNUSED], answer[answer != UNUSED]
        rows.append((torch.cat([prompt, answer]).to(batch.mask.device), len(prompt), len(prompt) + len(answer)))
    return rows


def _padded(rows: Sequence[Tensor], length: int) -> Tensor:
    """Rows (t, ...) as (B, length, ...), 0 after their ends."""
    return torch.stack([torch.cat([row, row.new_zeros(length - len(row), *row.shape[1:])]) for row in rows])


def context(config: Any) -> int:
    """The tokens that a model of this configuration sees; one with a state has no limit of its own."""
    return getattr(config, "max_position_embeddings", None) or 2**20


def configuration(path: Path, reason: str) -> Any:
    """The configuration of the model at `path`, by `transformers`; `reason` says why that has to read it.

    Raises:
        ModelError: `transformers` does not know it either, it is quantized, or it is no causal language model.
    """
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoConfig
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

    described = read_config(path)
    for part in (described, described.get("text_config")):
        if isinstance(part, dict) and quantization.schemes_of(part):
            raise ModelError(f"{path} is quantized, which rather reads for its own architectures only ({reason}); take it in bfloat16")
    try:
        config: Any = AutoConfig.from_pretrained(path)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, StrictDataclassError) as e:
        raise _unreadable(path, reason, e) from None
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise ModelError(f"{path} holds {config.model_type!r}, which is no causal language model; rather trains those alone")
    return config


def check(path: Path, reason: str) -> str:
    """What kind of model is at `path`, in words, without reading its weights; `reason` says why `transformers` has to read it.

    Raises:
        ModelError: what `skeleton` raises, or it has no weights.
    """
    config = skeleton(path, reason).config
    tensors = folder_tensors(path)
    count = sum(math.prod(stored.shape) for stored in tensors.values())
    formats = " and ".join(sorted({stored.format for stored in tensors.values()}))
    return f"{config.model_type} through transformers, with {count:,} parameters in {formats}"


def skeleton(path: Path, reason: str) -> Any:
    """The model at `path` without its weights, by `transformers`; `reason` says why that has to read it.

    Raises:
        ModelError: what `configuration` raises, or `transformers` knows the architecture, but not with these settings.
    """
    from transformers import AutoModelForCausalLM

    config = configuration(path, reason)
    try:
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(config)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError, ImportError) as e:
        raise _unreadable(path, reason, e) from None


def adapted(path: Path, reason: str) -> str:
    """Which layers LoRA adapts in the model at `path`, and that experts are not among them where they are not, in words."""
    inner = skeleton(path, reason)
    layers = f"LoRA adapts the layers {', '.join(foreign_lora.reached(inner))}"
    if any(".experts." in name and p.dim() == 3 for name, p in inner.named_parameters()):
        return f'{layers}; not the experts, which are kept in one tensor a block: model.train = "full" trains them'
    return layers


def read(path: Path, dtype: torch.dtype, reason: str) -> Any:
    """The model at `path`, read by `transformers` from safetensors alone.

    Raises:
        ModelError: what `check` raises, or a tensor is missing or unknown.
    """
    from transformers import AutoModelForCausalLM

    check(path, reason)
    try:
        found: Any = AutoModelForCausalLM.from_pretrained(path, dtype=dtype, use_safetensors=True, output_loading_info=True)
    except (OSError, ValueError, KeyError, RuntimeError, ImportError) as e:
        raise _unreadable(path, reason, e) from None
    inner, info = found
    for what, names in (("lacks the tensor", info["missing_keys"]), ("has an unknown tensor", info["unexpected_keys"])):
        if names:
            raise ModelError(f"{path} {what} {min(names)!r}; {inner.config.model_type!r} in transformers would not be what was trained")
    inner.eval()
    with torch.no_grad():
        first, other = inner(input_ids=torch.tensor([[0, 1], [0, 2]]), use_cache=False).logits[:, 0].float()
    if not torch.allclose(first, other, rtol=0, atol=1e-3 * float(first.abs().max())):
        raise ModelError(
            f"{path} holds {inner.config.model_type!r}, in which tokens see those after them; rather trains causal models alone"
        )
    return inner


def _unreadable(path: Path, reason: str, e: Exception) -> ModelError:
    why = (str(e).strip() or repr(e)).splitlines()[0]
    return ModelError(f"{path} can be read neither by rather ({reason}) nor by transformers ({why})")
