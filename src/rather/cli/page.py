"""The commands about the labelling page: serve it, and let simulated judges answer on it."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from rather.cli import interrupt
from rather.cli.options import Settings, complete_file, console, open_run
from rather.config import guidelines
from rather.errors import ConfigError

commands = typer.Typer()


@commands.command()
def serve(
    file: Annotated[
        Path | None, typer.Argument(help="The run's TOML file; with --demo none is needed.", autocompletion=complete_file)
    ] = None,
    settings: Settings = None,
    demo: Annotated[bool, typer.Option("--demo", help="Fill a store with example questions and show the page.")] = False,
    host: Annotated[str, typer.Option(help="Address to listen on; any other than this machine's own needs TLS.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on; 0: a free one.", min=0, max=65535)] = 8008,
    overlap: Annotated[int, typer.Option(help="People who answer each question; 0: unchanged (1 in a new run).", min=0, max=1000)] = 0,
    certificate: Annotated[str, typer.Option(help="TLS certificate file.")] = "",
    key: Annotated[str, typer.Option(help="TLS key file.")] = "",
    insecure: Annotated[bool, typer.Option("--insecure", help="Allow unencrypted HTTP from other machines.")] = False,
    url: Annotated[str, typer.Option(help="Address that people open, if it is a proxy's: https://example.org/labels")] = "",
    behind_proxy: Annotated[
        str, typer.Option(help="Addresses or networks of the proxy, separated by commas; with --url, this machine by default.")
    ] = "",
    new_link: Annotated[bool, typer.Option("--new-link", help="Make a new link for the owner; the old one ends.")] = False,
) -> None:
    """Put the run's open questions on a page that several people answer in their browsers; Ctrl-C stops it, nothing is lost.

    The first start prints the owner's link, once. The owner opens it and makes a link for each person who answers.

    `rather serve --demo` shows the page with example questions (text, mathematics, clips, sets of answers), in the folder runs/demo-page.

    Behind a TLS proxy: [cyan]rather serve run.toml --url https://example.org/labels[/cyan]; docs/guides/serving.md has nginx and Caddy.
    """
    from rather.hacking.curves import Curves
    from rather.pipeline import build, resume
    from rather.web.project import Project
    from rather.web.serve import owner_link, server

    if demo:
        if file is not None:
            raise ConfigError(f"--demo shows questions of its own, and {file} would be left out; give one of the two")
        from rather.store import Store
        from rather.web import demo as example

        store, project = Store(str(Path("runs") / "demo-page" / "store.db")), Project(example.RUN, example.INSTRUCTION)
        with console.status("making questions and drawing clips"):
            example.fill(store)
    elif file is None:
        raise ConfigError("give the run's TOML file, or --demo")
    else:
        run = open_run(file, settings)
        run.ready(run.begun)
        run.domain.draw(run.store)
        judge = run.config.judge
        rules = guidelines.read(judge.guidelines)
        store = run.store
        head = any(build.is_head(run.config, name) for name in resume.learners(run.config))
        curves = Curves(run.metrics.path, run.proxy, [run.checkpoints(number) for number in range(run.config.loop.rounds)])
        project = Project(run.config.run.name, build.instruction(run.config), rules, tuple(judge.criteria), curves.read, head)
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


@commands.command()
def panel(
    link: Annotated[str, typer.Argument(help="The owner's link that `rather serve` printed.")],
    file: Annotated[
        Path | None, typer.Argument(help="A run's TOML file with the panel; without one: the default.", autocompletion=complete_file)
    ] = None,
    settings: Settings = None,
    pace: Annotated[float, typer.Option(help="Seconds between two answers of one judge.", min=0)] = 0.0,
    wait: Annotated[bool, typer.Option("--wait", help="Wait for new questions when there is none left, until Ctrl-C.")] = False,
) -> None:
    """Let a simulated panel answer a page's questions over HTTP, exactly as people's browsers do.

    For trying things out, for tests and for teaching; its answers are stored as simulated. For control the judges need
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
