"""Names what is wrong with a machine or a run, and the remedy."""

import math
import os
import shutil
from functools import partial
from typing import Any

import torch

from rather.errors import Finding, findings
from rather.learners import checkpoint
from rather.pipeline import text_doctor
from rather.pipeline.domain import Domain
from rather.pipeline.state import State
from rather.store import tally
from rather.store.rows import LEARNED


def machine(domain: Domain | None = None) -> list[Finding]:
    """What this machine offers to runs of a domain; by default to language models."""
    found = [Finding("good", f"PyTorch {torch.__version__}, {torch.get_num_threads()} threads on {os.cpu_count()} processors")]
    found += text_doctor.machine() if domain is None else domain.machine()
    if os.environ.get("OMP_WAIT_POLICY", "").upper() != "PASSIVE":
        found.append(Finding("note", "OMP_WAIT_POLICY is not PASSIVE: on a shared machine idle threads take time from others"))
    free = shutil.disk_usage(".").free / 2**30
    grade = "good" if free > 5 else "bad"
    found.append(Finding(grade, f"{free:.0f} GiB of disk are free" + ("" if free > 5 else "; make room for checkpoints")))
    return found


def run(run: State) -> list[Finding]:
    """What is wrong with a run, from its settings to its metrics."""
    return findings([*run.domain.checks(run.store), *(partial(check, run) for check in (_labels, _training, _checkpoints))])


def _labels(run: State) -> list[Finding]:
    labels = run.store.labels(run.config.run.name, LEARNED)
    if not labels:
        return [Finding("note", "no labels yet; run `rather label`")]
    found = list[Finding]()
    abstained = sum(x.preference is None for x in labels) / len(labels)
    if abstained > 0.2:
        found.append(Finding("bad", f"judges abstained on {100 * abstained:.0f} % of the questions; look at how they are asked"))
    agreement = tally.count(run.store, run.config.run.name, LEARNED, resamples=200).agreement
    if agreement.questions >= 20 and agreement.high < 0.2:
        more = "the labels are mostly noise: sharpen judge.instruction, or leave out the judge who differs"
        found.append(Finding("bad", f"judges hardly agree (alpha {agreement.alpha:.2f}); {more}"))
    return found or [Finding("good", f"{len(labels)} labels")]


def _training(run: State) -> list[Finding]:
    found = list[Finding]()
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
        if sum(row.get("grad_norm", 0.0) > 50 * run.config.train.max_grad_norm for row in rows) > len(rows) / 4:
            found.append(Finding("note", f"{phase}: gradients are far above train.max_grad_norm; lower train.lr"))
    return found or [Finding("good", "nothing odd in the metrics")]


def _checkpoints(run: State) -> list[Finding]:
    found = list[Finding]()
    for folder in sorted((run.folder / "checkpoints").glob("*/step-*")):
        manifest = checkpoint.check(folder)
        found.append(Finding("good", f"{folder}: whole, from {len(manifest['labels'])} labels"))
    return found
