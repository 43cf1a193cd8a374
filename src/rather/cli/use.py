"""The commands that use a model, trained or not: talk to it, have it answer files of prompts, score answers, serve it."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rather.cli import interrupt
from rather.cli.options import console, open_store
from rather.errors import ConfigError

if TYPE_CHECKING:
    from rather.store import Store
    from rather.text.policy import LanguageModel

commands = typer.Typer()

Model = Annotated[str, typer.Argument(help="Model folder, .gguf file, adapter or name on the hub; or a run's TOML file: what it trained.")]
Adapter = Annotated[str, typer.Option(help="Adapter folder in PEFT's format, on that model.")]
Device = Annotated[str, typer.Option(help='"cpu", "cuda" or "auto".')]
DType = Annotated[str, typer.Option(help='What it computes in: "float32", "bfloat16" or "auto".')]


def open_model(what: str, adapter: str = "", device: str = "auto", dtype: str = "auto") -> "LanguageModel":
    """The language model of that name, or the newest policy of a run's TOML file."""
    from rather.pipeline.run import Run
    from rather.text.open import load
    from rather.text.policy import LanguageModel

    if not what.endswith(".toml"):
        return load(what, adapter=adapter or None, device=device, dtype=dtype)  # type: ignore[arg-type]
    if adapter:
        raise ConfigError(f"--adapter is {adapter}, but {what} is a run, which has one of its own; give its model in place of the run")
    run = Run(what, console, **{"model.device": device, "model.dtype": dtype})
    policy = run.policy(run.begun + 1 if run.trained(run.begun) else 0)
    if not isinstance(policy, LanguageModel):
        raise ConfigError(f"{what} is about control; give a run about text")
    return policy


def recording(where: str) -> "tuple[Store, str]":
    """The store and the run that what comes of using a model goes to: those of a run's TOML file, or a file of its own."""
    from rather.store import Store

    if where.endswith(".toml"):
        config, store = open_store(Path(where), None)
        return store, config.run.name
    return Store(where), "run"


@commands.command()
def api(
    model: Model,
    adapter: Annotated[list[str] | None, typer.Option(help="Adapter folder on that model, as a model of its own; may be repeated.")] = None,
    name: Annotated[str, typer.Option(help="What the model is called in requests; empty: as its file or folder.")] = "",
    host: Annotated[str, typer.Option(help="Address to listen at; another than this machine's own needs keys and TLS.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen at.")] = 8000,
    rows: Annotated[int, typer.Option(help="Answers that are drawn at a time.", min=1)] = 32,
    waiting: Annotated[int, typer.Option(help="Answers that may wait for their turn; beyond it: status 429.", min=1)] = 256,
    record: Annotated[str, typer.Option(help="Store to keep every answer in, with its tokens: a file, or a run's TOML file.")] = "",
    device: Device = "auto",
    dtype: DType = "auto",
    certificate: Annotated[str, typer.Option(help="TLS certificate file.")] = "",
    key: Annotated[str, typer.Option(help="TLS key file.")] = "",
    insecure: Annotated[bool, typer.Option("--insecure", help="Let keys and answers travel in the clear all the same.")] = False,
) -> None:
    """Serve a model as OpenAI's API does: /v1/chat/completions, /v1/completions, /v1/models; Ctrl-C stops it.

    Requests share the model's passes: each joins as soon as one of the rows is free. Each --adapter is a model of its own, on the same
    weights. With --record answers can be compared later, by POST /v1/preferences, and a run learns from that. The keys that may use the
    server stand in the environment variable RATHER_API_KEYS, comma between; without it nobody needs one.
    """
    from rather.text.open import load_adapter
    from rather.text.policy import TextPolicy
    from rather.web.openai import KEYS, Served, server

    policy = open_model(model, device=device, dtype=dtype)
    if not isinstance(policy, TextPolicy):
        raise ConfigError(f"{model} goes through transformers; rather serves its own architectures alone: docs/internals/engine.md")
    adapters = dict[str, str]()
    for folder in adapter or ():
        mounted = load_adapter(policy, Path(folder))[0]
        assert isinstance(mounted, TextPolicy)
        assert mounted.adapter is not None
        adapters[Path(folder).name] = mounted.adapter
    called = name or Path(model).stem
    if len({called, *adapters}) <= len(adapter or ()):
        raise ConfigError(f"two of {', '.join([called, *(adapter or ())])} have the same name; give --name, or rename a folder")
    store, run = recording(record) if record else (None, "")
    keys = [part for part in os.environ.get(KEYS, "").split(",") if part]
    serving, at = server(Served(called, policy, adapters, rows, waiting, store, run), keys, host, port, certificate, key, insecure)
    console.print(f"{', '.join([called, *adapters])} at {at}/v1", soft_wrap=True, highlight=False, markup=False)
    try:
        serving.run()
    except KeyboardInterrupt:
        interrupt.leave()
