"""The commands that take a run from phase to phase: each is one call of `pipeline.run.Run`."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rather.cli.options import File, Round, Settings, console, open_run
from rather.cli.store import count_answers, print_agreement

if TYPE_CHECKING:
    from rather.pipeline.run import Run

commands = typer.Typer()


@commands.command()
def loop(file: File, settings: Settings = None) -> None:
    """Sample, label, train and evaluate, for loop.rounds rounds. Stopped at any point, the same command goes on from there.

    At the end it prints the win rate against the base model on held-out prompts, and writes the report.
    """
    run = open_run(file, settings)
    result = run.loop()
    if result is not None:
        console.print(f"\n[bold]{result[0].upper()}{result[1:]}[/bold]", highlight=False)
    print_agreement(run.store, run.config.run.name, count_answers(run.store, run.config.run.name))
    _write_report(run)


@commands.command()
def sample(file: File, settings: Settings = None, round_: Round = 0) -> None:
    """Let the newest policy answer each training prompt twice, or in control act in episodes; pairs become questions in the store."""
    from rather.store.rows import LEARNED

    run = open_run(file, settings)
    new = run.sample(round_)
    count, ask = len(run.store.keys(run.config.run.name, LEARNED)), "serve" if run.config.judge.kind == "people" else "label"
    console.print(f"{new} new {'question' if new == 1 else 'questions'}; {count} in all. Next: rather {ask} {file}")


@commands.command()
def label(file: File, settings: Settings = None) -> None:
    """Have the open questions answered by the run's judges.

    judge.kind says who answers: a simulated panel, a reward model, a language model behind an OpenAI-compatible URL, verifiers, or
    a function of yours. With "terminal" or "people" it is you, here (keys: 1 left, 2 right, = tie, s skip, u undo, q stop). Every
    answer is on disk before the next question.
    """
    run = open_run(file, settings)
    if run.config.judge.kind == "people":
        run = open_run(file, [*(settings or []), "judge.kind=terminal"])
    new = run.label()
    console.print(f"{new} new answers. Next: rather train {file}")


@commands.command()
def train(
    file: File,
    settings: Settings = None,
    round_: Round = 0,
    fresh: Annotated[bool, typer.Option("--fresh", help="Put old checkpoints aside and start anew, with all labels.")] = False,
) -> None:
    """Train what train.learner says, on the labels in the store or on a reward.

    "dpo", "kto", "reward" (a Bradley-Terry reward model) and "sft" learn from the labels. "ppo" and "grpo" sample from the policy and
    learn from the reward that train.reward names: verifiers, a reward model or the environment. So do "sb3:SAC" and "sb3:TD3" in
    control, by Stable-Baselines3. "zeroth" asks the judges to compare policies that are a small step apart.

    The checkpoint's model/ folder holds a LoRA adapter in PEFT's format, or a whole Hugging Face model folder.

    On several GPUs: [cyan]torchrun --nproc-per-node 2 -m rather train run.toml[/cyan]
    """
    from rather.pipeline import exploring, resume
    from rather.pipeline.lock import alone
    from rather.scale import ranks
    from rather.settings import UNSUPERVISED

    with ranks.joined():
        console.quiet = ranks.rank() > 0
        run = open_run(file, settings)
        if fresh and ranks.rank() == 0:
            with alone(run.folder):
                for name in resume.learners(run.config):
                    if name != UNSUPERVISED or exploring.otherwise(run):
                        _put_aside(run.checkpoints(round_, name))
        ranks.wait()
        console.print(f"checkpoint: {run.train(round_)}")


@commands.command(name="eval")
def evaluate(file: File, settings: Settings = None, round_: Round = 0) -> None:
    """Compare the trained policy with the base model on held-out prompts, by the run's judges; print the win rate."""
    run = open_run(file, settings)
    result = run.evaluate(round_)
    console.print("no answers yet" if result is None else f"[bold]{result}[/bold]", highlight=False)


@commands.command()
def report(file: File, settings: Settings = None) -> None:
    """Write the run's report: one self-contained HTML page with win rate, learning curves, agreement and example answers."""
    _write_report(open_run(file, settings))


@commands.command()
def nudge(
    model: Annotated[str, typer.Argument(help="Model folder, .gguf file, or name on the Hugging Face hub.")],
    prompts: Annotated[str, typer.Option(help='Prompt file (.jsonl, .csv, .parquet), or "package": 260 example prompts.')] = "package",
    settings: Settings = None,
    answers: Annotated[int, typer.Option(help="Number of answers to ask for, without those about held-out prompts.", min=1)] = 120,
    name: Annotated[str, typer.Option(help="Name of the run; a run that was stopped goes on under the same name.")] = "nudge",
    page: Annotated[bool, typer.Option("--page", help="Put the questions on the page (rather serve), not at this terminal.")] = False,
    simulated: Annotated[
        str, typer.Option(help="Let a simulated judge answer, who likes this: brief, plain, thorough, cheerful, personal.")
    ] = "",
    merge: Annotated[Path | None, typer.Option(help="Write the nudged model there, as a folder that `transformers` loads.")] = None,
) -> None:
    """Nudge a language model by saying which of two sets of answers you would rather have; no reward model, no gradient.

    Each question shows two policies a small step to either side of the present one, on the same prompts (keys: 1 left, 2 right, = tie,
    s skip, u undo, q stop). Every few answers it prints the win rate against the base model on held-out prompts, the norm of the steering
    vector, and what more answers would buy. q or Ctrl-C stops; the same command goes on. The result is a steering vector in
    runs/NAME/checkpoints, which `rather` loads, and with --merge a whole model.
    """
    from rather.config import toml as toml
    from rather.pipeline.run import Run
    from rather.text.policy import TextPolicy

    loaded = toml.load(None, [*_nudge_settings(model, prompts, answers, name, page, simulated), *(settings or [])])
    run = Run(loaded, console)
    run.folder.mkdir(parents=True, exist_ok=True)
    (run.folder / "run.toml").write_text(toml.document(loaded))
    if page:
        console.print(f"Questions appear on the page of: rather serve {run.folder / 'run.toml'}", soft_wrap=True)
    last = run.train()
    console.print(f"Steering vector: {last / 'model'}", soft_wrap=True)
    if merge is not None:
        policy = run.policy(1)
        assert isinstance(policy, TextPolicy)
        policy.merge(merge)
        console.print(f"The nudged model, for `transformers` too: {merge}", soft_wrap=True)
    _write_report(run)


def _nudge_settings(model: str, prompts: str, answers: int, name: str, page: bool, simulated: str) -> list[str]:
    from rather.pipeline.nudge import STYLE_CONTRASTS

    kind = "panel" if simulated else "people" if page else "terminal"
    judge = [f'judge.panel=[{{ name = "{simulated}", utility = "{simulated}", temperature = 0.5, mistake = 0.05 }}]'] if simulated else []
    return [
        f"model.path={model}", f"data.prompts={prompts}", f"run.name={name}", f"zeroth.answers={answers}", f"judge.kind={kind}", *judge,
        "judge.instruction=Which set of answers would you rather have?", "train.learner=zeroth", "train.checkpoint_every=1",
        "sample.temperature=0.0", "sample.max_tokens=48", "sample.batch_size=64", "zeroth.mu=0.15", "zeroth.lr=0.1", "zeroth.radius=0.095",
        f"zeroth.contrasts={json.dumps(STYLE_CONTRASTS)}",
    ]  # fmt: skip


@commands.command()
def hack(file: File, settings: Settings = None) -> None:
    """Show reward hacking: the proxy reward against the gold reward, with an alarm, on one page.

    It first runs `rather loop`, if that is not done. For control with a learned reward it also trains the same policy on the
    environment's hand-written reward, and shows both side by side. The gold reward is control.gold, or for text hack.gold.
    """
    from rather.pipeline.hack import compare

    run = open_run(file, settings)
    console.print(f"Report: {compare(run)}", soft_wrap=True)


def _write_report(run: "Run") -> None:
    console.print(f"Report: {run.report().save()}", soft_wrap=True)


def _put_aside(folder: Path) -> None:
    number = 1
    while folder.exists() and (target := folder.with_name(f"{folder.name}-old-{number}")):
        number += 1
        if not target.exists():
            folder.rename(target)
