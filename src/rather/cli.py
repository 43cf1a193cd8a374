"""The command line: each command is one library call, all are driven by one TOML file with overrides."""

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from typer.core import TyperGroup

from rather import __version__, cli_store, interrupt
from rather.cli_store import File, Settings, complete_file, complete_first, console, count_answers, print_agreement
from rather.config import guidelines
from rather.data import examples
from rather.errors import ConfigError

if TYPE_CHECKING:
    from rather.pipeline.run import Run


class Interrupted(Exception):  # noqa: N818
    """Ctrl-C, with what there is to say about it."""


class Commands(TyperGroup):
    """Lets `main` say what a Ctrl-C left behind; Typer alone would end without a word."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command."""
        try:
            interrupt.working = True
            return super().invoke(ctx)
        except KeyboardInterrupt as e:
            raise Interrupted(str(e) or interrupt.KEPT) from e
        finally:
            interrupt.working = False


app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="""[bold]rather[/bold]: from "I'd rather have this one" to better policies.

A run is one TOML file. The usual way through it:

  rather config > run.toml      a file with every setting, described
  rather loop run.toml          sample, label, train, evaluate; Ctrl-C and the same command go on later
  rather report run.toml        one HTML page with the plots
  rather hack run.toml          is the reward being hacked?

Any setting can be changed on the command line: [cyan]rather loop run.toml train.lr=1e-4 run.seed=3[/cyan]""",
)

app.add_typer(cli_store.commands)

Round = Annotated[int, typer.Option("--round", help="Round of the outer loop, from 0.")]


def _run(file: Path, settings: list[str] | None) -> "Run":
    from rather.config import toml as toml
    from rather.pipeline.run import Run

    return Run(toml.load(file, settings or []), console)


@app.command()
def loop(file: File, settings: Settings = None) -> None:
    """Sample, label, train and evaluate, for loop.rounds rounds. Stopped at any point, the same command goes on from there.

    At the end it prints the win rate against the base model on held-out prompts, and writes the report.
    """
    run = _run(file, settings)
    result = run.loop()
    if result is not None:
        console.print(f"\n[bold]{result[0].upper()}{result[1:]}[/bold]", highlight=False)
    print_agreement(run.store, run.config.run.name, count_answers(run.store, run.config.run.name))
    _write_report(run)


@app.command()
def sample(file: File, settings: Settings = None, round_: Round = 0) -> None:
    """Draw two answers to each training prompt from the newest policy; each pair becomes a question in the store."""
    run = _run(file, settings)
    new = run.sample(round_)
    count, ask = len(run.store.keys(run.config.run.name, "train")), "serve" if run.config.judge.kind == "people" else "label"
    console.print(f"{new} new questions; {count} in all. Next: rather {ask} {file}")


@app.command()
def label(file: File, settings: Settings = None) -> None:
    """Have the open questions answered by the run's judges.

    judge.kind says who they are: a simulated panel, a reward model, a language model behind an OpenAI-compatible URL, or
    people: you, here (keys: 1 left, 2 right, = tie, s skip, u undo, q stop). Every answer is on disk before the next question.
    """
    run = _run(file, settings)
    if run.config.judge.kind == "people":
        run = _run(file, [*(settings or []), "judge.kind=terminal"])
    new = run.label()
    console.print(f"{new} new answers. Next: rather train {file}")


@app.command()
def serve(
    file: Annotated[
        Path | None, typer.Argument(help="The run's TOML file; with --demo none is needed.", autocompletion=complete_file)
    ] = None,
    settings: Settings = None,
    demo: Annotated[bool, typer.Option("--demo", help="Fill a store with example questions and show the page.")] = False,
    host: Annotated[str, typer.Option(help="Address to listen at; another than this machine's own needs TLS.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen at.")] = 8008,
    overlap: Annotated[int, typer.Option(help="People who answer each question; 0: as before (at first 1).", min=0)] = 0,
    certificate: Annotated[str, typer.Option(help="TLS certificate file.")] = "",
    key: Annotated[str, typer.Option(help="TLS key file.")] = "",
    insecure: Annotated[bool, typer.Option("--insecure", help="Let answers travel in the clear all the same.")] = False,
    url: Annotated[str, typer.Option(help="What people open, where a proxy stands before the page: https://example.org/labels")] = "",
    behind_proxy: Annotated[
        str, typer.Option(help="Addresses or networks of the proxy, comma between; with --url it is this machine's own by default.")
    ] = "",
    new_link: Annotated[bool, typer.Option("--new-link", help="Make a new link for the owner; the old one ends.")] = False,
) -> None:
    """Put the run's open questions on a page that several people answer in their browsers; Ctrl-C stops it, nothing is lost.

    At first start it prints the owner's link, once. The owner opens it and makes a link for everybody who is to answer.
    `rather serve --demo` shows the page with words, mathematics, clips and batches, in the folder runs/demo-page.

    Behind a TLS proxy: [cyan]rather serve run.toml --url https://example.org/labels[/cyan]; docs/guides/serving.md has nginx and Caddy.
    """
    from rather.hacking.curves import Curves
    from rather.web.project import Project
    from rather.web.serve import owner_link, server

    if demo:
        from rather.store import Store
        from rather.web import demo as example

        store, project = Store(str(Path("runs") / "demo-page" / "store.db")), Project(example.RUN, example.INSTRUCTION)
        with console.status("making questions and drawing clips"):
            example.fill(store)
    elif file is None:
        raise ConfigError("give the run's TOML file, or --demo")
    else:
        run = _run(file, settings)
        run.ready(run.begun)
        run.domain.draw(run.store)
        judge = run.config.judge
        rules = guidelines.read(judge.guidelines)
        store = run.store
        project = Project(run.config.run.name, judge.instruction, rules, tuple(judge.criteria), Curves(run.metrics.path).read)
        del run  # and the model, if that was looked at
    if overlap:
        store.set_asking(project.run, replace(store.asking(project.run), overlap=overlap))
    serving, at = server(store, project, host, port, certificate, key, insecure, url, behind_proxy)
    link = owner_link(store, project.run, at, new_link)
    console.print(
        f"The owner's link, shown this once: [bold]{link}[/bold]" if link else f"{at} (the owner has a link; --new-link makes another)",
        soft_wrap=True,
    )
    try:
        serving.run()
    except KeyboardInterrupt:
        interrupt.leave()  # a thread may wait for the database still: what it was to write has not been acknowledged


@app.command()
def panel(
    link: Annotated[str, typer.Argument(help="The owner's link that `rather serve` printed.")],
    file: Annotated[
        Path | None, typer.Argument(help="A run's TOML file with the panel; without one: the default.", autocompletion=complete_file)
    ] = None,
    settings: Settings = None,
    pace: Annotated[float, typer.Option(help="Seconds between two answers of one judge.", min=0)] = 0.0,
    wait: Annotated[bool, typer.Option("--wait", help="Go on when there is no question left, until Ctrl-C.")] = False,
) -> None:
    """Let a simulated panel answer a page's questions over HTTP, exactly as people's browsers do.

    For trying things out, for tests and for teaching; what it says is kept as simulated. For control the judges need
    utility = "total_reward", since a program cannot look at clips.
    """
    import threading

    from rather.config import toml as toml
    from rather.judges.panel import answer
    from rather.pipeline import build
    from rather.pipeline.domain import domain_of

    loaded = toml.load(file, [*(settings or []), "judge.kind=panel", "judge.criteria=[]", "train.reward=labels"])
    count = 0

    def answered(_: str) -> None:
        nonlocal count
        count += 1
        status.update(f"{count} answers")

    judges = build.panel(loaded, lambda: domain_of(loaded, console).reader())
    with console.status("joining") as status:
        answer(link, judges, pace, wait, answered, threading.Event())
    console.print(f"{count} answers of {len(loaded.judge.panel)} simulated judges")


@app.command()
def train(
    file: File,
    settings: Settings = None,
    round_: Round = 0,
    fresh: Annotated[bool, typer.Option("--fresh", help="Put old checkpoints aside and start anew, with all labels.")] = False,
) -> None:
    """Train on the labels in the store: train.learner is "dpo", "reward" (a Bradley-Terry reward model) or "sft".

    "ppo" and "grpo" let the policy act and learn from the reward that train.reward names: of verifiers, or of a reward model.
    The checkpoint's model/ folder holds a LoRA adapter in PEFT's format, or a whole Hugging Face model folder.
    On several GPUs: [cyan]torchrun --nproc-per-node 2 -m rather train run.toml[/cyan]
    """
    from rather.pipeline import resume
    from rather.pipeline.lock import alone
    from rather.scale import ranks

    with ranks.joined():
        console.quiet = ranks.rank() > 0
        run = _run(file, settings)
        if fresh and ranks.rank() == 0:
            with alone(run.folder):
                for name in resume.learners(run.config):
                    _put_aside(run.checkpoints(round_, name))
        ranks.wait()
        console.print(f"checkpoint: {run.train(round_)}")


@app.command(name="eval")
def evaluate(file: File, settings: Settings = None, round_: Round = 0) -> None:
    """Compare the trained policy with the base model on held-out prompts, by the run's judges; print the win rate."""
    run = _run(file, settings)
    result = run.evaluate(round_)
    console.print("no answers yet" if result is None else f"[bold]{result}[/bold]", highlight=False)


@app.command()
def report(file: File, settings: Settings = None) -> None:
    """Write the run's report: one self-contained HTML page with win rate, learning curves, agreement and example answers."""
    _write_report(_run(file, settings))


@app.command()
def nudge(
    model: Annotated[str, typer.Argument(help="Model folder, .gguf file, or name on the Hugging Face hub.")],
    prompts: Annotated[str, typer.Option(help='Prompt file (.jsonl, .csv, .parquet), or "package": 260 of our own.')] = "package",
    settings: Settings = None,
    answers: Annotated[int, typer.Option(help="Answers you are ready to give, those about held-out prompts aside.", min=1)] = 120,
    name: Annotated[str, typer.Option(help="Name of the run; the same name goes on from where it was stopped.")] = "nudge",
    page: Annotated[bool, typer.Option("--page", help="Put the questions on the page (rather serve), not at this terminal.")] = False,
    simulated: Annotated[
        str, typer.Option(help="Let a simulated judge answer, of this taste: brief, plain, thorough, cheerful, personal.")
    ] = "",
    merge: Annotated[Path | None, typer.Option(help="Write the nudged model there, as a folder that `transformers` loads.")] = None,
) -> None:
    """Nudge a language model by saying which of two sets of answers you would rather have; no reward model, no gradient.

    Each question shows two policies a small step to either side of the present one, on the same prompts (keys: 1 left, 2 right, = tie,
    s skip, u undo, q stop). Every few answers it says how often the policy beats the model it came from on held-out prompts, how far it
    has moved, and what more answers would buy. q or Ctrl-C stops; the same command goes on. The result is a steering vector in
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


@app.command()
def hack(file: File, settings: Settings = None) -> None:
    """Show reward hacking: the proxy reward against the gold reward, with an alarm, on one page.

    The run goes through its loop, if it has not yet. About control and with a learned reward it gets a twin that is trained on the
    environment's hand-written reward, so that both can be seen side by side. The gold reward is control.gold, or for text hack.gold.
    """
    from rather.hacking.command import compare

    run = _run(file, settings)
    console.print(f"Report: {compare(run)}", soft_wrap=True)


@app.command()
def config(
    file: Annotated[
        Path | None, typer.Argument(help="A run's TOML file; without one: the defaults.", autocompletion=complete_first)
    ] = None,
    settings: Settings = None,
    example: Annotated[
        str,
        typer.Option(
            help="Print an example run instead: " + ", ".join(examples.descriptions()) + ".",
            autocompletion=lambda: examples.descriptions().items(),
        ),
    ] = "",
) -> None:
    """Print every setting with its value and what it means, as a TOML file to start from.

    rather config model.path=models/mine data.prompts=prompts.jsonl > run.toml

    rather config --example pendulum > run.toml
    """
    from rather.config import toml as toml

    if file is not None and "=" in str(file) and not file.exists():
        file, settings = None, [str(file), *(settings or [])]
    if not example:
        sys.stdout.write(toml.document(toml.load(file, settings or [])))
    elif file is not None or settings:
        raise ConfigError("--example prints a file as it is; give settings to the command that runs it: rather loop run.toml run.seed=3")
    else:
        sys.stdout.write(examples.settings(example))


@app.command()
def doctor(
    file: Annotated[
        Path | None, typer.Argument(help="A run's TOML file; without one: only the machine.", autocompletion=complete_file)
    ] = None,
    settings: Settings = None,
) -> None:
    """Say what is wrong with this machine or a run, and what to do about it. Exits with 1 if something is."""
    from rather import doctor

    run = None if file is None else _run(file, settings)
    findings = doctor.machine(None if run is None else run.domain)
    if run is not None:
        findings += doctor.run(run)
    for finding in findings:
        grade = {"good": "[green]ok[/green]", "note": "[yellow]note[/yellow]", "bad": "[red]bad[/red]"}[finding.grade]
        console.print(f"{grade}  {escape(finding.text)}")
    if any(f.grade == "bad" for f in findings):
        raise typer.Exit(1)


def _write_report(run: "Run") -> None:
    console.print(f"Report: {run.report().save()}", soft_wrap=True)


def _put_aside(folder: Path) -> None:
    number = 1
    while folder.exists() and (target := folder.with_name(f"{folder.name}-old-{number}")):
        number += 1
        if not target.exists():
            folder.rename(target)


@app.callback(invoke_without_command=True)
def options(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the whole traceback of an error.")] = False,
) -> None:
    """Options that hold for every command."""
    context.obj = debug
    if version:
        console.print(f"rather {__version__}")
        raise typer.Exit
