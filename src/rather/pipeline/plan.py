"""What a run about text will take, before anything is loaded: bytes of each part in each phase, from settings and description alone.

The plan is that of `rather loop`. Phases come one after the other, so that a run takes what the largest does.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch

from rather.config.schema import Config
from rather.errors import ConfigError, ModelError
from rather.learners.common import WITHOUT_GRADIENT
from rather.pipeline import build, sizes
from rather.pipeline.sizes import MASTER, Pieces, Sizes
from rather.text import load
from rather.text.files import adapter as adapter_files
from rather.text.files import description
from rather.text.head.model import AT_ONCE, TOKENS
from rather.text.shape import Shape

PROCESS, WORD, CONTEXT = 450e6, 1700, 0.5e9
"""Bytes of Python with our packages on a CPU, and of a token of the tokenizer (bench/plan.py measures both), and of a context of CUDA."""
FRAGMENTS = 0.3
"""Share of a training step's activations that the C library cannot use again on a CPU, where they lie between others (bench/plan.py)."""
CRITIC = 256
"""Width of the critic of text."""
MAPPED, CACHE = "model file, mapped", "cache of keys and values"


@dataclass(frozen=True)
class Phase:
    """What a run holds in one of its phases: bytes by part."""

    name: str
    parts: dict[str, float]

    @property
    def total(self) -> float:
        """Bytes in all."""
        return sum(self.parts.values())


@dataclass(frozen=True)
class Plan:
    """What a run takes in each phase, if the longest prompt has so many `tokens` together with its answer."""

    phases: list[Phase]
    tokens: int

    @property
    def largest(self) -> Phase:
        """The phase that takes most."""
        return max(self.phases, key=lambda phase: phase.total)

    @property
    def needed(self) -> float:
        """Bytes that must be there: all but the mapped file, which the system lets go when memory is short."""
        return max(phase.total - phase.parts.get(MAPPED, 0) for phase in self.phases)


def of_run(config: Config, tokens: int = 2048) -> Plan:
    """What `rather loop` takes with these settings, if the longest prompt has `tokens` tokens together with its answer.

    Raises:
        ConfigError: the run is about control, or nothing is known of what it computes.
        ModelError: the model's description cannot be read, or it is not one of rather's own architectures.
    """
    if config.control.env:
        raise ConfigError("a plan is of language models; a policy for control is small")
    if config.train.learner == "zeroth" and config.zeroth.estimator in ("dpo", "reinforce"):
        kind = config.zeroth.estimator
        raise ConfigError(f'there is no plan for zeroth.estimator = "{kind}"; train.learner = "dpo" takes about as much')
    m, on = config.model, _on(config)
    if on not in ("cpu", "cuda"):
        raise ConfigError(f'there is no plan for model.device = "{m.device}"; take "cpu" or "cuda", or "auto" for what is here')
    path, adapter = load.located(m.path, m.adapter, weights=False)
    shape = _shape(path)
    if load.BITS[m.weights]:
        load.check_quantized(torch.device(on), m.train == "full", None)
    rank = 0 if adapter is None else int(adapter_files.read_config(adapter).get("r", m.rank))
    return _Work(config, path, shape, min(tokens, shape.context), rank).plan


def advice(config: Config, tokens: int, memory: float) -> tuple[list[str], Plan]:
    """Changes of settings, as one writes them, that let the run fit into so many bytes, or come nearest: first what saves most."""
    changes, plan = list[str](), of_run(config, tokens)
    while plan.needed > memory:
        found = [(change, of_run(_changed(config, change), tokens)) for change in _savings(config)]
        change, best = min(found, key=lambda each: each[1].needed)
        if best.needed > 0.98 * plan.needed:
            break
        name = change.partition("=")[0]
        config, plan, changes = _changed(config, change), best, [*(x for x in changes if not x.startswith(f"{name}=")), change]
    return changes, plan


def _savings(config: Config) -> list[str]:
    """The changes of a setting that may save memory."""
    m, rows, together = config.model, config.sample.batch_size, config.train.micro_batch_tokens
    tried = {  # quantized weights on a CPU alone: they have never been run on a GPU
        "model.gradient_checkpointing=true": not m.gradient_checkpointing,
        "model.dtype=bfloat16": _compute(config) == MASTER,
        "model.weights=int8": _on(config) == "cpu" and m.train == "lora" and m.weights == "auto",
        "model.weights=q4": _on(config) == "cpu" and m.train == "lora" and m.weights == "int8",
        "model.train=lora": m.train == "full",
        f"sample.batch_size={max(1, rows // 2)}": True,
        f"train.micro_batch_tokens={max(1, together // 2)}": together > 128,
    }
    return [change for change, possible in tried.items() if possible]


def there(config: Config) -> float:
    """Bytes of memory that are free now, on the device that the settings name."""
    return sizes.memory(load.device(config.model.device))[0]


def _shape(path: Path) -> Shape:
    config = description.read_config(path)
    if reason := description.unsupported(config):
        raise ModelError(f"a plan is of rather's own architectures; transformers has to read {path} ({reason})")
    return description.shape_of(config)


def _changed(config: Config, change: str) -> Config:
    name, _, value = change.partition("=")
    section, _, key = name.partition(".")
    changed = config.model_dump()
    changed[section][key] = value
    return Config.model_validate(changed)


def _on(config: Config) -> str:
    """The kind of device; one that is named need not be here."""
    name = config.model.device
    return load.device(name).type if name == "auto" else name.partition(":")[0]


def _compute(config: Config) -> int:
    """Bytes of a number that is computed."""
    name = config.model.dtype
    if name == "auto" and _on(config) == "cuda" and not torch.cuda.is_available():
        return 2  # a GPU that is planned for
    return load.dtype(name, torch.device(_on(config))).itemsize


def _sizes(config: Config, path: Path) -> Sizes:
    m = config.model
    return Sizes(_shape(path), _compute(config), m.train == "full", load.BITS[m.weights], _on(config) == "cuda", path)


@dataclass(frozen=True)
class _Work:
    """A run's settings beside its model: what is forwarded, and what is held meanwhile."""

    config: Config
    path: Path
    shape: Shape
    tokens: int
    rank: int

    @cached_property
    def sizes(self) -> Sizes:
        return _sizes(self.config, self.path)

    @property
    def plan(self) -> Plan:
        return Plan(list(self._phases()), self.tokens)

    @property
    def answer(self) -> int:
        """Tokens of an answer."""
        return min(self.config.sample.max_tokens, self.tokens - 1)

    @property
    def online(self) -> bool:
        return self.config.train.learner in ("ppo", "grpo")

    @property
    def scored(self) -> bool:
        """Whether a reward model scores what is sampled."""
        return self.online and self.config.train.reward in ("labels", "model")

    @cached_property
    def lora(self) -> float:
        """A new adapter, or the copy of the one that the run starts with; a reward head needs none."""
        m = self.config.model
        if build.is_head(self.config, self.config.train.learner) and not self.rank:
            return 0
        return 0 if self.sizes.full else self.sizes.adapter(self.rank, 0) if self.rank else self.sizes.adapter(m.rank, m.blocks)

    @property
    def trained(self) -> float:
        """What learns, in bytes."""
        learner = self.config.train.learner
        own = MASTER * self.sizes.numbers if self.sizes.full else self.lora
        return own + (MASTER * (self.shape.width + 1) * CRITIC if learner == "ppo" else 0)

    def _phases(self) -> Iterator[Phase]:
        c, s, gpu = self.config, self.sizes, self.sizes.gpu
        process = {"process": CONTEXT if gpu else PROCESS + WORD * self.shape.vocabulary}
        if self.path.is_file() and not gpu:
            process[MAPPED] = float(self.path.stat().st_size)
        models = (3 if self.scored else 2) if s.full else 1
        adapters = self.lora * (2 if self.scored and c.reward.kind == "lora" else 1) + (self.lora if self.rank else 0)
        held = (
            process
            | {"weights": float(s.weights * models)}
            | ({"adapters": adapters} if adapters else {})
            | self._perturbed()
            | self._published()
        )
        head = {} if gpu or self.shape.tied else {"the head being read": 2.0 * MASTER * self.shape.vocabulary * self.shape.width}
        yield Phase("loading", held | head)
        copies = {"weights laid out for sampling": float(s.copies)} if s.copies else {}
        moments = {"AdamW": 2 * self.trained} if self.online else {}
        sampling = self._sampling()
        yield Phase("sampling", held | copies | moments | sampling)
        if gpu:  # where graphs of decoding steps are kept, with what they write to
            held = held | copies | {CACHE: sampling[CACHE]}
        elif not s.full:
            held = held | copies
        for some in self._scoring():
            yield Phase("scoring", held | moments | some)
        if c.train.learner == "reward" and "head" in (c.reward.kind, c.reward.start):
            yield Phase("reading", held | self._reading())
        if c.train.learner != "zeroth" and not build.is_head(c, c.train.learner):
            yield Phase("training", held | {"gradient": self.trained, "AdamW": 2 * self.trained} | self._training())
            if not gpu:
                yield Phase("saving", held | {"AdamW": 2 * self.trained, "copies being written": 2 * self.trained})

    def _perturbed(self) -> dict[str, float]:
        """What zeroth-order optimization moves, beside the base model: weights, what they were, offsets, and those of a perturbation."""
        z = self.config.zeroth
        if self.config.train.learner != "zeroth" or z.space == "steering":
            return {}
        own = self.lora if z.space == "lora" else MASTER * self.sizes.numbers
        return {"what is perturbed": (3 if z.space == "low_rank" else 4) * float(own)}

    def _published(self) -> dict[str, float]:
        """A reward model that `transformers` reads, too: a model of its own."""
        j, learned = self.config.judge, self.online and self.config.train.reward == "model"
        if not (j.checkpoint and (learned or j.kind == "model") and build.published(Path(j.checkpoint))):
            return {}
        return {"reward model": float(_sizes(self.config, load.locate(j.checkpoint, weights=False)).weights)}

    def _sampling(self) -> dict[str, float]:
        """Rows that are drawn together: their cache, their prompts as they are read, all different, and logits."""
        rows, s = self.config.sample.batch_size, self.sizes
        prompt = self.tokens - self.answer
        reading = s.passing(Pieces(prompt, 0, rows, 1))
        return {
            CACHE: float(s.cache(rows, prompt, self.answer)),
            "activations": max(reading, 2.0 * rows * prompt * self.shape.kv_heads * self.shape.head_width * s.compute),
            "logits": 2.0 * rows * self.shape.vocabulary * s.compute,
        }

    def _scoring(self) -> Iterator[dict[str, float]]:
        """Passes without gradient: the reference before DPO and in KTO, reward model and reference on what was sampled."""
        name = self.config.train.learner
        if (name == "dpo" and self.config.dpo.has_reference) or name == "kto" or self.online:
            of = self._together(WITHOUT_GRADIENT * self.config.train.micro_batch_tokens, self.config.ppo.rollout_batch_size)
            passing, logits = self.sizes.passing(of), self.sizes.logits(of.answers * of.answer)
            yield {"activations": passing} if passing > logits else {"logits": logits}

    def _reading(self) -> dict[str, float]:
        """States of labeled answers for a reward head: nothing is kept for backward, and what is learned is small."""
        of = self._together(WITHOUT_GRADIENT * TOKENS, AT_ONCE // 2)
        return {"activations": self.sizes.passing(of)}

    def _training(self) -> dict[str, float]:
        """A part of a step: what is kept for backward, and what passes through beside it."""
        c, s, name = self.config, self.sizes, self.config.train.learner
        of = self._together(c.train.micro_batch_tokens, c.train.batch_size)
        predicted = of.answers * (1 if name == "reward" else of.answer)
        rank, checkpointing = 0 if s.full else self.rank or c.model.rank, c.model.gradient_checkpointing
        kept = s.kept(of, predicted, rank, c.model.blocks, checkpointing) * (1 if s.gpu else 1 + FRAGMENTS)
        if name == "reward":
            return {"activations": kept}
        logits = s.logits(predicted, s.full, s.full and not checkpointing)
        compared = (name == "grpo" and (c.grpo.kl or c.grpo.measure_kl)) or (name == "dpo" and c.dpo.reference_logprobs == "each")
        beside = s.passing(of) if compared else 0.0
        return {"activations": kept, "logits": logits} | ({"reference": beside} if beside > logits else {})

    def _together(self, limit: int, count: int) -> Pieces:
        """What is forwarded at a time where that are about `limit` tokens: whole comparisons, or some answers of a group."""
        name, prompt, answer = self.config.train.learner, self.tokens - self.answer, self.answer
        each = {"dpo": 2, "kto": 2, "reward": 2, "grpo": self.config.grpo.group_size}.get(name, 1)
        count = count if name == "ppo" else self.config.train.batch_size
        unit = prompt + each * answer
        if name == "grpo" and unit > limit:
            return Pieces(prompt, answer, 1, max(1.0, (limit - prompt) / answer))
        return Pieces(prompt, answer, max(1.0, min(float(count), limit / unit)), each)
