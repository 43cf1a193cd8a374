"""Names what is wrong with a machine or a run, and the remedy."""

import math
import os
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch

from rather import kernels
from rather.errors import Finding, RatherError
from rather.learners import checkpoint
from rather.pipeline import build
from rather.store.agreement import measure
from rather.text import foreign, load
from rather.text.files import description
from rather.text.tokens import Tokens


def machine(text: bool = True) -> list[Finding]:
    """What this machine offers, with `text` to language models too."""
    found = [Finding("good", f"PyTorch {torch.__version__}, {torch.get_num_threads()} threads on {os.cpu_count()} processors")]
    if text:
        found += _for_language_models()
    if os.environ.get("OMP_WAIT_POLICY", "").upper() != "PASSIVE":
        found.append(Finding("note", "OMP_WAIT_POLICY is not PASSIVE: on a shared machine idle threads take time from others"))
    free = shutil.disk_usage(".").free / 2**30
    grade = "good" if free > 5 else "bad"
    found.append(Finding(grade, f"{free:.0f} GiB of disk are free" + ("" if free > 5 else "; make room for checkpoints")))
    return found


def _for_language_models() -> list[Finding]:
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


def run(run: Any) -> list[Finding]:
    """What is wrong with a run, from its settings to its metrics."""
    own: tuple[Check, ...] = (_model, _tokenizer, _prompts, _answers)
    if run.config.control.env:
        from rather.control import doctor  # here, since it needs Gymnasium

        own = (doctor.check,)
    found = []
    for check in (*own, _labels, _training, _checkpoints):
        try:
            found += check(run)
        except RatherError as e:
            found.append(Finding("bad", str(e)))
    return list(dict.fromkeys(found))  # the same fault stops several checks


Check = Callable[[Any], list[Finding]]


def _model(run: Any) -> list[Finding]:
    m = run.config.model
    path, _ = load.located(m.path, m.adapter, weights=False)
    load.device(m.device)
    reason = description.unsupported(description.read_config(path))
    if _locally(m.path) or any(path.glob("*.safetensors")):
        found = [Finding("good", f"the model {path} can be read: {load.check(path)[0]}")]
    else:
        words = _described(path)
        found = [Finding("note", f"the model {m.path} is described as {words}; its weights are fetched when they are first needed")]
    if reason and m.train == "lora":
        found.append(Finding("good", foreign.adapted(path, reason)))
    return found


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


def _sizes(path: Path) -> tuple[int, int]:
    """The context of the model at `path` in tokens, and the rows of its embedding, by its description."""
    config = description.read_config(path)
    if reason := description.unsupported(config):
        text = foreign.configuration(path, reason).get_text_config()
        return foreign.context(text), text.vocab_size
    shape = description.shape_of(config)
    return shape.context, shape.vocabulary


def _locally(name: str) -> bool:
    """Whether a model is on this machine by its name: a folder, a file or a package."""
    return name.startswith("package:") or Path(name).exists()


@cache  # a GGUF file's takes seconds to read
def _tokens(run: Any) -> tuple[Tokens, int, int]:
    """The tokenizer of a run's model, its context, and the rows of its embedding."""
    m = run.config.model
    path, _ = load.located(m.path, m.adapter, weights=False)
    return Tokens.load(path, m.chat, m.template, run.config.run.date), *_sizes(path)


def _tokenizer(run: Any) -> list[Finding]:
    """Whether each of its tokens has a row of the embedding, and what begins and ends an answer."""
    tokens, _, rows = _tokens(run)
    last = max(tokens.tokenizer.get_vocab().values())
    if last >= rows:
        more = "take the tokenizer that belongs to the model"
        return [Finding("bad", f"the tokenizer has a token number {last}, but the model's embedding {rows} rows; {more}")]
    template = "a chat template" if tokens.template else "no chat template: prompts are put to the model as they are"
    ends = " or ".join(repr(token) for token in tokens.tokenizer.convert_ids_to_tokens(sorted(tokens.stop)))
    return [
        Finding("good", f"the tokenizer has {last + 1} tokens for {rows} rows of the embedding, and {template}; answers end with {ends}")
    ]


def _prompts(run: Any) -> list[Finding]:
    tokens, context, _ = _tokens(run)
    found: list[Finding] = []
    fit = build.fit(run.config, tokens, context, lambda said: found.append(Finding("note", said)))
    train, held_out = fit.tasks(*build.tasks(run.config))
    grade = "note" if len(held_out) < 30 else "good"
    more = "; a win rate on so few has a wide interval" if grade == "note" else ""
    return [*found, Finding(grade, f"{len(train)} training prompts, {len(held_out)} held out{more}")]


def _answers(run: Any) -> list[Finding]:
    questions = run.store.questions(run.config.run.name, "train")
    answers = [t for q in questions for t in (*q.comparison.a, *q.comparison.b)]
    if not answers:
        return [Finding("note", "no questions yet; run `rather sample`")]
    found = []
    cut = sum(not t.terminated for t in answers) / len(answers)
    if cut > 0.5:
        more = f"sample.max_tokens is {run.config.sample.max_tokens}: raise it, or learn to be brief"
        found.append(Finding("note", f"{100 * cut:.0f} % of the answers were cut off at the limit; {more}"))
    same = sum(q.comparison.a[0].text == q.comparison.b[0].text for q in questions) / len(questions)
    if same > 0.1:
        found.append(Finding("bad", f"{100 * same:.0f} % of the questions have two equal answers; raise sample.temperature"))
    return found or [Finding("good", f"{len(questions)} questions, {100 * cut:.0f} % of answers cut off at the limit")]


def _labels(run: Any) -> list[Finding]:
    labels = run.store.labels(run.config.run.name, "train")
    if not labels:
        return [Finding("note", "no labels yet; run `rather label`")]
    found = []
    abstained = sum(x.preference is None for x in labels) / len(labels)
    if abstained > 0.2:
        found.append(Finding("bad", f"judges abstained on {100 * abstained:.0f} % of the questions; look at how they are asked"))
    agreement = measure(labels, resamples=200)
    if agreement.questions >= 20 and agreement.high < 0.2:
        more = "the labels are mostly noise: sharpen judge.instruction, or leave out the judge who differs"
        found.append(Finding("bad", f"judges hardly agree (alpha {agreement.alpha:.2f}); {more}"))
    return found or [Finding("good", f"{len(labels)} labels")]


def _training(run: Any) -> list[Finding]:
    found = []
    for phase in {row["phase"] for row in run.metrics.read() if row["phase"].startswith("train-")}:
        rows = run.metrics.read(phase)
        first, last = rows[: max(1, len(rows) // 4)], rows[-max(1, len(rows) // 4) :]

        def mean(part: list[dict[str, Any]], key: str) -> float:
            values = [row[key] for row in part if key in row]
            return sum(values) / len(values) if values else math.nan

        if "-dpo-" in phase and len(rows) >= 8:
            if mean(last, "accuracy") < 0.55:
                found.append(Finding("bad", f"{phase}: accuracy is still near one half; raise train.lr or train.epochs"))
            drop = mean(first, "logprob_preferred") - mean(last, "logprob_preferred")
            if drop > 20:
                more = "usual for DPO as long as the other answers fall more, but lower train.lr or raise dpo.beta if answers get odd"
                found.append(Finding("note", f"{phase}: the preferred answers' log-probability fell by {drop:.0f} nats; {more}"))
            if mean(last, "entropy") < 0.3 * mean(first, "entropy"):
                found.append(Finding("bad", f"{phase}: entropy collapsed; lower train.lr or raise dpo.beta"))
        if sum(row["grad_norm"] > 50 * run.config.train.max_grad_norm for row in rows) > len(rows) / 4:
            found.append(Finding("note", f"{phase}: gradients are far above train.max_grad_norm; lower train.lr"))
    return found or [Finding("good", "nothing odd in the metrics")]


def _checkpoints(run: Any) -> list[Finding]:
    found = []
    for folder in sorted((run.folder / "checkpoints").glob("*/step-*")):
        manifest = checkpoint.check(folder)
        found.append(Finding("good", f"{folder}: whole, from {len(manifest['labels'])} labels"))
    return found
