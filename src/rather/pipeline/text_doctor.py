"""What may be wrong with a run about text: the machine that computes it, its model, its tokenizer, its prompts and its answers."""

from functools import cached_property
from pathlib import Path

import torch

from rather import kernels
from rather.config.schema import Config
from rather.errors import Check, Finding
from rather.pipeline import build
from rather.store import Store
from rather.store.rows import LEARNED
from rather.text import foreign, load
from rather.text.files import description
from rather.text.tokens import Tokens


def machine() -> list[Finding]:
    """What this machine offers to language models."""
    found: list[Finding] = []
    if torch.cuda.is_available():
        found.append(Finding("good", f"GPU: {torch.cuda.get_device_name()}"))
        if kernels.on_gpu(torch.empty(0, device="cuda")) is None:
            found.append(
                Finding(
                    "note",
                    "this GPU is older than Ampere, or Triton is missing (pip install triton): language models take several times as long",
                )
            )
    else:
        precision = load.dtype("auto", torch.device("cpu"))
        found.append(Finding("good", f"no GPU; this processor computes in {str(precision).removeprefix('torch.')}"))
        if kernels.library(precision) is None:
            found.append(
                Finding("note", "no C compiler (cc, or what CC says): language models sample two to three times slower on this processor")
            )
    return found


class Looks:
    """Looks at a run about text."""

    def __init__(self, config: Config, store: Store) -> None:
        self.config, self.store = config, store

    @property
    def checks(self) -> list[Check]:
        """Everything that is looked at."""
        return [self.model, self.tokenizer, self.prompts, self.answers]

    @cached_property
    def folder(self) -> Path:
        """The folder or file of the model; its weights need not be there."""
        return load.located(self.config.model.path, self.config.model.adapter, weights=False)[0]

    @cached_property
    def tokens(self) -> Tokens:
        """The tokenizer of the model; a GGUF file's takes seconds to read."""
        m = self.config.model
        return Tokens.load(self.folder, m.chat, m.template, self.config.run.date)

    @cached_property
    def sizes(self) -> tuple[int, int]:
        """The context of the model in tokens, and the rows of its embedding, by its description."""
        config = description.read_config(self.folder)
        if reason := description.unsupported(config):
            text = foreign.configuration(self.folder, reason).get_text_config()
            return foreign.context(text), text.vocab_size
        shape = description.shape_of(config)
        return shape.context, shape.vocabulary

    def model(self) -> list[Finding]:
        """Whether the model can be read, and what LoRA adapts in it."""
        m, path = self.config.model, self.folder
        on, reason = load.device(m.device), description.unsupported(description.read_config(path))
        if load.BITS[m.weights]:
            load.check_quantized(on, m.train == "full", reason)
        if _locally(m.path) or any(path.glob("*.safetensors")):
            found = [Finding("good", f"the model {path} can be read: {load.check(path)[0]}")]
        else:
            words = _described(path)
            found = [Finding("note", f"the model {m.path} is described as {words}; its weights are fetched when they are first needed")]
        if load.BITS[m.weights] and on.type == "cuda":
            found.append(Finding("note", "quantized weights on a GPU have been run under Triton's interpreter only, never on one"))
        if reason and m.train == "lora":
            found.append(Finding("good", foreign.adapted(path, reason)))
        return found

    def tokenizer(self) -> list[Finding]:
        """Whether each of its tokens has a row of the embedding, and what begins and ends an answer."""
        tokens, (_, rows) = self.tokens, self.sizes
        last = max(tokens.tokenizer.get_vocab().values())
        if last >= rows:
            more = "take the tokenizer that belongs to the model"
            return [Finding("bad", f"the tokenizer has a token number {last}, but the model's embedding {rows} rows; {more}")]
        template = "a chat template" if tokens.template else "no chat template: prompts are put to the model as they are"
        ends = " or ".join(repr(token) for token in tokens.tokenizer.convert_ids_to_tokens(sorted(tokens.stop)))
        there = f"{last + 1} tokens for {rows} rows of the embedding"
        return [Finding("good", f"the tokenizer has {there}, and {template}; answers end with {ends}")]

    def prompts(self) -> list[Finding]:
        """How many prompts there are, and whether they fit."""
        found = list[Finding]()
        fit = build.fit(self.config, self.tokens, self.sizes[0], lambda said: found.append(Finding("note", said)))
        train, held_out = fit.tasks(*build.tasks(self.config))
        grade = "note" if len(held_out) < 30 else "good"
        more = "; a win rate on so few has a wide interval" if grade == "note" else ""
        return [*found, Finding(grade, f"{len(train)} training prompts, {len(held_out)} held out{more}")]

    def answers(self) -> list[Finding]:
        """Whether answers come to their end, and differ."""
        questions = self.store.questions(self.config.run.name, LEARNED)
        answers = [t for q in questions for t in (*q.comparison.a, *q.comparison.b)]
        if not answers:
            return [Finding("note", "no questions yet; run `rather sample`")]
        found = list[Finding]()
        cut = sum(not t.terminated for t in answers) / len(answers)
        if cut > 0.5:
            more = f"sample.max_tokens is {self.config.sample.max_tokens}: raise it, or learn to be brief"
            found.append(Finding("note", f"{100 * cut:.0f} % of the answers were truncated at the limit; {more}"))
        same = sum(q.comparison.b != () and q.comparison.a[0].text == q.comparison.b[0].text for q in questions) / len(questions)
        if same > 0.1:
            found.append(Finding("bad", f"{100 * same:.0f} % of the questions have two equal answers; raise sample.temperature"))
        return found or [Finding("good", f"{len(questions)} questions, {100 * cut:.0f} % of answers truncated at the limit")]


def _described(path: Path) -> str:
    """What kind of model a folder describes that has no weights yet, in words.

    Raises:
        ModelError: such a model cannot be read.
    """
    config = description.read_config(path)
    reason = description.unsupported(config)
    if reason:
        return f"{foreign.configuration(path, reason).model_type} through transformers"
    shape = description.shape_of(config)
    return f"{shape.family} with {shape.layers} layers"


def _locally(name: str) -> bool:
    """Whether a model is on this machine by its name: a folder, a file or a package."""
    return name.startswith("package:") or Path(name).exists()
