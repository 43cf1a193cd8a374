"""What the documents say is so."""

import json
import re
import runpy
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rather.pipeline.online_dpo import OnlineDPO
from rather.text.open import load
from test_cli import run  # noqa: F401
from test_control_run import RUN as CONTROL
from test_nudge import CONTROL as NUDGE
from test_off_policy_run import RUN as SAC

ROOT = Path(__file__).parent.parent


@pytest.mark.slow
def test_every_metric_is_explained_and_every_explained_metric_exists(
    rather: Callable[..., object],
    run: Path,  # noqa: F811
    tmp_path: Path,
    tiny: Path,
) -> None:
    rather("loop", run)
    rather("train", run, "train.learner=reward", "reward.members=2", "reward.held_out=0.5")
    rather("loop", run, "run.name=head", "train.learner=reward", "reward.kind=head")
    live = [run, "run.name=live", "train.learner=reward", "reward.kind=head"]
    rather("sample", *live)
    rather("label", *live)
    rather("train", *live, "judge.kind=people", "judge.wait_s=0")
    rather("train", run, "train.learner=sft")
    rather("train", run, "train.learner=kto")
    checks = 'verify.checks=[{kind="pattern", pattern="e"}]'
    rather("loop", run, "train.learner=grpo", "train.steps=2", "hack.gold=brief", "grpo.kl_bound=1", checks)
    rather("train", run, "train.learner=ppo", "train.steps=2", "ppo.rollout_batch_size=8", "ppo.normalize_reward=true", checks)
    (tmp_path / "control.toml").write_text(CONTROL.replace("rounds = 2", "rounds = 1"))
    rather("loop", tmp_path / "control.toml", "reward.pseudo_labels=1", "reward.dynamics=1", "reward.held_out=0.3", "reward.patience=2")
    (tmp_path / "sac.toml").write_text(SAC.replace("rounds = 2", "rounds = 1"))
    rather("loop", tmp_path / "sac.toml", "control.unsupervised_steps=1")
    (tmp_path / "nudge.toml").write_text(NUDGE)
    rather("train", tmp_path / "nudge.toml", "zeroth.answers=36")
    model = load(tiny, dtype="float32", device="cpu")
    shape: dict[str, Any] = {"labels": 2, "batch_size": 2, "max_tokens": 4, "kl_bound": 1.0, "folder": tmp_path / "runs/online"}
    OnlineDPO(model, ["say a", "say b"], lambda prompt, a, b: 0.5, **shape).train()
    files = [tmp_path / f"runs/{name}/metrics.jsonl" for name in ("tiny", "head", "live", "small", "sac", "grid", "online")]
    lines = [line for file in files for line in file.read_text().splitlines()]
    written = {re.sub("^temperature/.*", "temperature/JUDGE", key) for line in lines for key in json.loads(line)}
    table = [line.split("|")[1] for line in (ROOT / "docs/reference/metrics.md").read_text().splitlines() if line.startswith("| `")]
    assert written == {key for cell in table for key in re.findall("`([^`]+)`", cell)}


def test_the_readme_names_the_two_commands_and_no_file_that_is_not_there() -> None:
    text = (ROOT / "README.md").read_text()
    assert "```\nmake demo\nmake test\n```" in text
    for name in re.findall(r"\]\(([\w/.]+)\)", text):
        assert (ROOT / name).exists(), name


def test_every_page_that_the_package_names_is_there() -> None:
    """Comments of `rather config` and help texts send readers to pages."""
    named = {name for path in (ROOT / "src").rglob("*.py") for name in re.findall(r"docs/[\w/-]+\.md", path.read_text())}
    assert len(named) > 4
    assert {name for name in named if not (ROOT / name).exists()} == set()


def test_the_readme_is_short_and_the_citation_names_the_version() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 100
    version = re.search('^version = "(.*)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert version
    assert f"\nversion: {version[1]}\n" in (ROOT / "CITATION.cff").read_text()


def test_no_machine_path_in_the_tree() -> None:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    assert listed
    for name in listed:
        path = ROOT / name
        if path.suffix in (".py", ".md", ".toml", ".txt") and path.exists():
            assert "/work/" + "main" not in path.read_text(), name


def test_the_benchmarks_state_the_headlines_as_they_were_measured() -> None:
    rows = json.loads((ROOT / "bench/results/headlines.json").read_text())
    lines = [line for page in ("README.md", "docs/benchmarks.md") for line in (ROOT / page).read_text().splitlines()]
    stated = {name: line for name in rows for line in lines if f"`{name}`" in line}
    assert stated.keys() == rows.keys()
    for name, row in rows.items():
        low, high = row["spread"]
        assert f"| {row['value']:g} ({low:g} to {high:g}) {row['unit']} |" in stated[name]
        assert {"command", "commit", "machine"} <= row.keys()


def test_the_readme_states_figures_as_they_were_measured() -> None:
    readme, page = ((ROOT / name).read_text() for name in ("README.md", "docs/benchmarks.md"))
    runs = json.loads((ROOT / "bench/results/demo.json").read_text())["rows"]
    rates, lows = ([round(100 * row["sampled"][key]) for row in runs] for key in ("win_rate", "win_rate_low"))
    seconds = [round(row["cpu_s"]) for row in runs]
    low, high = json.loads((ROOT / "bench/results/headlines.json").read_text())["demo_sensible_of_20"]["spread"]
    assert f"win rate {min(rates)} to {max(rates)} % against the base model" in readme
    assert f"(lower ends of the 95 % intervals {min(lows)} to {max(lows)} %)" in readme
    assert f"{low:g} to {high:g} of 20 answers sensible" in readme
    assert f"{min(seconds)} to {max(seconds)} CPU seconds on one core" in readme
    labels = json.loads((ROOT / "bench/results/headlines.json").read_text())["labels_to_75"]["value"]
    assert f"a win rate of 75 % after [{labels:g} answers]" in readme

    measured = (ROOT / "bench/results/cpu-bfloat16.md").read_text()
    on_cpu = re.findall(r"^\| \w.*two CPU cores \| (\d+) tokens a CPU s \| \D*(\d+) \| (.*) \|$", readme, re.MULTILINE)
    assert len(on_cpu) == 2
    for ours, baseline, ratio in on_cpu:
        assert f"| {ours} | {baseline} | {ratio} |" in measured
    on_gpu = [line for line in readme.splitlines() if "one H100 |" in line]
    assert len(on_gpu) == 2
    for line in on_gpu:
        cells = line.partition("one H100 |")[2]
        for figure in re.findall(r"\d+,\d+|\d+\.\d+(?= [sx]\b)", cells):
            assert figure in page, f"{figure} of README is not on the page of benchmarks"


def test_the_tutorial_states_figures_as_they_were_measured() -> None:
    page, index = ((ROOT / "docs" / name).read_text() for name in ("start/from-100-comparisons.md", "index.md"))
    measured = (ROOT / "bench/results/best-of.md").read_text()
    rows = [line for line in measured.splitlines() if re.match(r"\| \d", line)]
    assert rows
    assert [line for line in page.splitlines() if re.match(r"\| \d", line)] == rows
    rates = [float(line.split("|")[2].removesuffix(" % ")) for line in rows]
    for text in (page, index):
        assert f"win rate of {min(rates):.0f} to {max(rates):.0f} %" in text


def test_pages_state_the_figures_of_the_car_and_the_plan_as_they_were_measured() -> None:
    results, docs = ROOT / "bench/results", ROOT / "docs"
    low, high = json.loads((results / "headlines.json").read_text())["plan_error_percent"]["spread"]
    assert f"from {-low:.0f} % too low to {high:.0f} % too high" in (docs / "guides/memory.md").read_text()
    runs = json.loads((results / "car.json").read_text()).values()
    crossings = [row["r-written"]["return_policy"] for row in runs]
    laps = [row["r"]["gold_policy"] for row in runs]
    drive, fail = [x for x in laps if x > 1], [x for x in laps if x < 1]
    pages = [(docs / name).read_text() for name in ("guides/reward-hacking.md", "concepts/reward-hacking.md", "start/ten-minutes.md")]
    for page in pages:
        assert f"{min(crossings):.0f} to {max(crossings):.0f} crossings" in page
        assert f"{min(drive):.1f} to {max(drive):.1f} laps" in page
    faults = (docs / "known-faults.md").read_text()
    assert f"On {len(fail)} of {len(laps)} seeds the policy drives {fail[0]:.2f} and {fail[1]:.2f} laps" in faults
    assert f"on the others {min(drive):.1f} to {max(drive):.1f}" in faults


def test_the_operating_curve_has_all_rows_of_the_results() -> None:
    made = runpy.run_path(str(ROOT / "docs" / "operating_curve.py"))
    rows = made["rows"]()
    assert {name: len(points) for name, points in rows.items()} == {"gold on every answer": 12, "gold on 8 answers a step": 12}
    headlines = json.loads((ROOT / "bench/results/headlines.json").read_text())
    ours = {times: caught for times, caught, *_ in rows["gold on every answer"]}
    assert round(ours[0.2] / 100, 3) == headlines["alarm_tpr_gold"]["value"]
    assert made["PICTURE"].read_text() == made["draw"](), "python docs/operating_curve.py draws it again"
