"""What a run has come to, as a folder that needs nothing of ours: its weights, what ends an answer, and its card."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

import rather as library
from test_cli import run  # noqa: F401

Rather = Callable[..., Any]


@pytest.fixture
def looped(rather: Rather, run: Path) -> Path:  # noqa: F811
    """A run that has been trained and evaluated."""
    rather("loop", run)
    return run


def logits(folder: Path, ids: torch.Tensor) -> torch.Tensor:
    from transformers import AutoModelForCausalLM

    with torch.no_grad():
        return AutoModelForCausalLM.from_pretrained(folder)(ids[None]).logits[0]


def test_a_run_becomes_a_folder_that_transformers_loads(rather: Rather, looped: Path, tmp_path: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

    assert "mine" in rather("merge", looped, "mine").stdout
    saved = max((tmp_path / "runs/tiny/checkpoints/dpo-0").iterdir())
    base = json.loads((saved / "model/adapter_config.json").read_text())["base_model_name_or_path"]
    ids = torch.arange(5, 60)
    with torch.no_grad():
        expected = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), saved / "model")(ids[None]).logits[0]
    torch.testing.assert_close(logits(tmp_path / "mine", ids), expected, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(logits(Path(base), ids), expected, atol=1e-2), "it has learned"
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "mine")
    assert (
        tokenizer.apply_chat_template([{"role": "user", "content": "x"}], tokenize=False, add_generation_prompt=True)
        == "<user>x<assistant>"
    )
    assert GenerationConfig.from_pretrained(tmp_path / "mine").eos_token_id == [0]
    described = json.loads((tmp_path / "mine/config.json").read_text())
    assert described["dtype"] == "float32"
    assert str(tmp_path) not in json.dumps(described)
    ours, theirs = (library.load(folder, dtype="float32", device="cpu") for folder in (saved / "model", tmp_path / "mine"))
    prompts = [f"question {i}?" for i in range(4)]
    assert theirs.generate(prompts, max_tokens=12, temperature=0) == ours.generate(prompts, max_tokens=12, temperature=0)
    rather("merge", saved, "also")
    assert torch.equal(logits(tmp_path / "also", ids), logits(tmp_path / "mine", ids))
    rather("merge", saved / "model", "half", "--dtype", "bfloat16", "--base", base)
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "half").dtype == torch.bfloat16
    torch.testing.assert_close(logits(tmp_path / "half", ids).float(), expected, atol=0.05, rtol=0.05)
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")], "no draft is left"


def test_the_card_says_what_it_was_made_of(rather: Rather, looped: Path, tmp_path: Path) -> None:
    printed = " ".join(rather("eval", looped).stdout.split())
    rather("merge", looped, "mine")
    card = (tmp_path / "mine/README.md").read_text()
    assert "12 comparisons, judged by: All of its judges are programs that simulate people" in card
    assert "| expert | simulated judge | 12 |\n| regular | simulated judge | 12 |" in card
    assert "| careless | simulated judge | 11 |" in card, "who abstained once"
    rate = card.partition("held-out prompts: ")[2].partition("), judged by")[0]
    assert "95 % interval" in rate
    assert rate in printed
    assert "expert (simulated)" in card
    assert "| `train.lr` | `0.01` |" in card
    assert "| `model.rank` | `4` |" in card
    assert "`train.beta" not in card, "a default was not set"
    assert "# license: " in card.partition("\n---\n")[0]
    assert f"`rather` {library.__version__}" in card
    assert str(tmp_path) not in card
    assert (card.count("/tmp"), card.count("runs/")) == (0, 0), "no folder of this machine"


def test_a_reward_model_of_a_run_becomes_a_folder_for_each_member(rather: Rather, looped: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForSequenceClassification

    settings = ("train.learner=reward", "reward.members=2", "train.steps=2")
    rather("train", looped, *settings)
    rather("merge", looped, "reward", *settings)
    for member in ("member-1", "member-2"):
        assert AutoModelForSequenceClassification.from_pretrained(tmp_path / "reward" / member).num_labels == 1
    card = (tmp_path / "reward/README.md").read_text()
    assert 'AutoModelForSequenceClassification.from_pretrained("reward/member-1")' in card
    assert "with reward, by `rather`" in card
    assert "a reward model cannot be written as GGUF" in " ".join(rather("gguf", looped, "x.gguf", *settings, code=2).stderr.split())


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["{model}", "there"], "there is there already; name another place, or delete it"),
        (["{model}", "new", "train.lr=1"], "settings and --round are for a run's TOML file, and"),
        (["{model}", "new", "--base", "x"], "is no adapter; leave it out"),
        (["run.toml", "new", "--base", "x"], "a run knows its base model (model.path)"),
        (["run.toml", "new"], "there is no trained policy in runs/tiny/checkpoints/dpo-0 yet"),
        (["nothing", "new"], "there is no model at nothing"),
    ],
)
def test_what_cannot_be_merged_is_refused_and_nothing_is_written(
    rather: Rather,
    run: Path,  # noqa: F811
    tiny: Path,
    tmp_path: Path,
    arguments: list[str],
    said: str,
) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "there/notes.txt").write_text("mine")
    done = rather("merge", *(x.format(model=tiny) for x in arguments), code=2)
    assert said in " ".join(done.stderr.split())
    assert (tmp_path / "there/notes.txt").read_text() == "mine"
    assert not (tmp_path / "new").exists()


DOCS = Path(__file__).parent.parent.parent / "docs"


@pytest.mark.slow
@pytest.mark.slow
def test_where_there_is_no_room_a_merge_leaves_nothing(tiny: Path, tmp_path: Path) -> None:
    """A file may have 40 kB here, as on a disk that is full."""
    command = f"ulimit -f 40; {sys.executable} -m rather merge {tiny} mine"
    done = subprocess.run(["bash", "-c", command], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "mine cannot be written" in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())


def run_page(page: str, folder: Path, shorter: Mapping[str, str]) -> list[str]:
    """Run a page's commands and Python, one after the other in one folder; returns what each printed."""
    tools = folder / "bin"
    tools.mkdir()
    for name in ("rather", "pip"):
        (tools / name).write_text(f'#!/bin/sh\nexec {sys.executable} -m {name if name == "rather" else "pip"} "$@"\n')
        (tools / name).chmod(0o755)
    text = (DOCS / page).read_text()
    for long, short in shorter.items():
        assert long in text
        text = text.replace(long, short)
    blocks, said = re.findall(r"^```(sh|python)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE), list[str]()
    for language, block in blocks:
        if block.startswith(("import openai", "import httpx")):  # see test_openai
            continue
        command = ["sh", "-e", "-c", block] if language == "sh" else [sys.executable, "-c", block]
        environment = {**os.environ, "PATH": f"{tools}:{os.environ['PATH']}"}
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{block}\n{done.stdout}\n{done.stderr}"
        said += [done.stdout] if language == "python" else []
    return said


@pytest.mark.slow
def test_the_guide_runs_as_it_stands(tmp_path: Path) -> None:
    assert len(run_page("guides/use-what-you-trained.md", tmp_path, {})) == 6
    made = {"mine", "base", "reward", "mine.gguf", "mine.Modelfile", "head", "best.jsonl"}
    assert made <= {path.name for path in tmp_path.iterdir()}


@pytest.mark.slow
def test_from_few_comparisons_to_better_answers(tmp_path: Path) -> None:
    """The tutorial with a tenth of its questions: what it does, not how well."""
    shorter = {"data.limit=100": "data.limit=10", "eval.prompts=48": "eval.prompts=5"}
    answered, rate = run_page("start/from-100-comparisons.md", tmp_path, shorter)
    assert len((tmp_path / "pairs.jsonl").read_text().splitlines()) == 10
    assert answered.startswith("[")
    assert "95 % interval" in rate
    assert "n = 5)" in rate
