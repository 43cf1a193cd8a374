"""The commands that use a model, trained or not: talk to it, have it answer files of prompts, score answers, serve it."""

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from rather.cli import interrupt
from rather.cli.options import console, open_store
from rather.errors import ConfigError

if TYPE_CHECKING:
    from rather.judges.best_of import BestOf
    from rather.learners.settings import Sampling
    from rather.pipeline.trained import Compute
    from rather.store import Store
    from rather.text.language_model import LanguageModel

commands = typer.Typer()

Model = Annotated[
    str, typer.Argument(help="Model folder, .gguf file, adapter or name on the hub; or a run's TOML file: what it has trained.")
]
Adapter = Annotated[str, typer.Option(help="Adapter folder in PEFT's format, on that model.")]
DType = Annotated[Literal["auto", "float32", "bfloat16"], typer.Option(help="What it computes in.")]
MaxTokens = Annotated[int, typer.Option(help="Longest answer, in tokens.", min=1)]
Temperature = Annotated[float, typer.Option(help="0 takes the likeliest token.", min=0)]
BestOfN = Annotated[int, typer.Option(help="Draw that many answers and give the one that --reward scores highest.", min=1)]
RewardOf = Annotated[
    str,
    typer.Option(help="What scores them: a run's TOML file (its newest reward model or head), a checkpoint, or a folder with either."),
]
TopP = Annotated[float, typer.Option(help="Keep the likeliest tokens up to this total probability.", min=0, max=1)]


def open_model(what: str, adapter: str, dtype: "Compute") -> "LanguageModel":
    """The language model of that name, or the newest policy of a run's TOML file."""
    from rather.pipeline.trained import trained
    from rather.text.language_model import LanguageModel

    found = trained(adapter or what, [], what if adapter else "", None, dtype, console).model
    if not isinstance(found, LanguageModel):
        raise ConfigError(f"{what} is a reward model, which scores answers and gives none; rather score asks it")
    return found


def chosen(policy: "LanguageModel", count: int, reward: str, dtype: "Compute") -> "tuple[LanguageModel | BestOf, str]":
    """The policy that gives the best of `count` answers by a reward, and digits that stand for this; for 1 the policy itself.

    Raises:
        ConfigError: --best-of and --reward do not stand together.
    """
    from rather.judges.best_of import BestOf
    from rather.pipeline.trained import reward as reward_of

    if count == 1 and not reward:
        return policy, ""
    if not reward:
        raise no_reward(count)
    if count == 1:
        raise ConfigError(f"--reward {reward} chooses among several answers; say among how many: --best-of 8")
    scores, digits = reward_of(reward, dtype, console)
    return BestOf(policy, scores, count), digits


def no_reward(count: int) -> ConfigError:
    """The error where nothing says which answer is the best."""
    return ConfigError(f"--best-of {count} needs --reward, which says what the best of {count} answers is")


def drawing(command: str, **options: float) -> "Sampling":
    """How a command's answers are drawn.

    Raises:
        ConfigError: a number is not one that it can be.
    """
    from rather.learners.settings import Sampling
    from rather.settings import given

    return given(command, options, Sampling)[0]


def recording(where: str, run: str) -> "tuple[Store, str]":
    """The store and the run that what comes of using a model goes to: those of a run's TOML file, or a file of its own and that `run`."""
    from rather.store import Store

    if where.endswith(".toml"):
        config, store = open_store(Path(where), None)
        return store, config.run.name
    return Store(where), run


def named(where: str) -> str:
    """What a model is called that stands there: its file's or folder's name; the dots of a version stay."""
    path = Path(where).resolve()
    return path.stem if path.suffix in (".toml", ".gguf") else path.name


def keys_of(said: str) -> list[str]:
    """The keys in the environment variable, comma between.

    Raises:
        ConfigError: it says something, but no key.
    """
    keys = [key for part in said.split(",") if (key := part.strip())]
    if said and not keys:
        raise ConfigError(
            f"RATHER_API_KEYS is {said!r}, which holds no key; name the keys, comma between, or unset it: nobody needs one then"
        )
    return keys


@commands.command()
def api(
    model: Model,
    adapter: Annotated[list[str] | None, typer.Option(help="Adapter folder on that model, as a model of its own; may be repeated.")] = None,
    name: Annotated[str, typer.Option(help="What the model is called in requests; empty: as its file or folder.")] = "",
    host: Annotated[str, typer.Option(help="Address to listen at; another than this machine's own needs keys and TLS.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen at; 0: a free one.", min=0, max=65535)] = 8000,
    rows: Annotated[int, typer.Option(help="Answers that are drawn at a time.", min=1)] = 32,
    waiting: Annotated[int, typer.Option(help="Answers that may wait for their turn; beyond it: status 429.", min=1)] = 256,
    record: Annotated[str, typer.Option(help="Store to keep every answer in, with its tokens: a file, or a run's TOML file.")] = "",
    best_of: BestOfN = 1,
    reward: RewardOf = "",
    dtype: DType = "auto",
    certificate: Annotated[str, typer.Option(help="TLS certificate file.")] = "",
    key: Annotated[str, typer.Option(help="TLS key file.")] = "",
    insecure: Annotated[bool, typer.Option("--insecure", help="Let keys and answers travel in the clear all the same.")] = False,
) -> None:
    """Serve a model as OpenAI's API does: /v1/chat/completions, /v1/completions, /v1/models; Ctrl-C stops it.

    Requests share the model's passes: each joins as soon as one of the rows is free. Each --adapter is a model of its own, on the same
    weights. With --reward and --best-of each answer is the best of so many, streams too, which then come whole; a request may say `best_of`
    itself. With --record answers can be compared later, by POST /v1/preferences, and a run learns from that. The keys that may use the
    server stand in the environment variable RATHER_API_KEYS, comma between; without it nobody needs one.
    """
    from rather.judges.best_of import score_of
    from rather.pipeline.trained import reward as reward_of
    from rather.text.open import load_adapter
    from rather.text.policy import TextPolicy
    from rather.web.openai import KEYS, Served, server

    if best_of > 1 and not reward:
        raise no_reward(best_of)
    policy = open_model(model, "", dtype)
    if not isinstance(policy, TextPolicy):
        raise ConfigError(f"{model} goes through transformers; rather serves its own architectures alone: docs/internals/engine.md")
    adapters = dict[str, str]()
    for folder in adapter or ():
        mounted = load_adapter(policy, Path(folder))[0]
        assert isinstance(mounted, TextPolicy)
        assert mounted.adapter is not None
        adapters[named(folder)] = mounted.adapter
    called = name or named(model)
    if len({called, *adapters}) <= len(adapter or ()):
        raise ConfigError(f"two of {', '.join([called, *(adapter or ())])} have the same name; give --name, or rename a folder")
    store, run = recording(record, "api") if record else (None, "")
    keys = keys_of(os.environ.get(KEYS, ""))
    score = score_of(reward_of(reward, dtype, console)[0]) if reward else None
    served = Served(called, policy, adapters, rows, waiting, store, run, score, best_of)
    serving, at = server(served, keys, host, port, certificate, key, insecure)
    console.print(f"{', '.join([called, *adapters])} at {at}/v1", soft_wrap=True, highlight=False, markup=False)
    try:
        serving.run()
    except KeyboardInterrupt:
        interrupt.leave()


@commands.command()
def chat(
    model: Model,
    adapter: Adapter = "",
    against: Annotated[
        str,
        typer.Option(help='A second model, whose answers stand beside the first one\'s; "base": the first without adapter and --best-of.'),
    ] = "",
    store: Annotated[str, typer.Option(help="Where preferences go: a store, or a run's TOML file.")] = "",
    judge: Annotated[str, typer.Option(help="Your name, under which they are kept.")] = "me",
    system: Annotated[str, typer.Option(help="Instruction that stands before the conversation.")] = "",
    max_tokens: MaxTokens = 512,
    temperature: Temperature = 0.7,
    top_p: TopP = 1.0,
    best_of: BestOfN = 1,
    reward: RewardOf = "",
    seed: Annotated[int | None, typer.Option(help="The same seed and words give the same answers; by default a new one.")] = None,
    dtype: DType = "auto",
) -> None:
    """Talk to a model. With --against two answer, and a key says which answer you would rather have: a label to learn from.

    rather chat run.toml --against base

    rather chat MODEL --best-of 8 --reward head --against base

    With --best-of the first model's answers are the best of so many by a reward; they come whole, not word by word.

    /undo, /retry, /system TEXT, /clear and /quit are commands; Ctrl-C stops an answer. Preferences are kept in the run's own store, or
    with a model in runs/chat/store.db, where `rather train run.toml run.store=runs/chat/store.db run.name=chat` reads them.
    """
    from contextlib import suppress
    from importlib import import_module
    from random import SystemRandom

    from rather.pipeline.chat import HELP, Chat, Labels, converse

    if sys.stdin is None:
        raise ConfigError("standard input is closed, and what you say is read from it; run rather chat at a terminal")
    if store and not against:
        raise ConfigError(f"--store {store} is where preferences go, and one model alone gives none; give --against, too")
    sampling = drawing("chat", max_tokens=max_tokens, temperature=temperature, top_p=top_p)
    policies = [open_model(model, adapter, dtype)]
    first, _ = chosen(policies[0], best_of, reward, dtype)
    first.sampler(sampling)  # which refuses what cannot be the best
    if against:
        policies.append(base_of(policies[0], model, best_of) if against == "base" else open_model(against, "", dtype))
        policies[1].name = against
    for policy in policies:
        if policy.tokens.template is None:
            raise ConfigError(f"{policy.name} has no chat template; `rather generate` goes on with plain texts")
    labels = None
    if against:
        where = store or (model if model.endswith(".toml") else str(Path("runs", "chat", "store.db")))
        found, run = recording(where, "chat")
        labels = Labels(found, run, judge)
    talk = Chat([first, *policies[1:]], sampling, console, SystemRandom().randrange(2**31) if seed is None else seed, labels)
    talk.begin(system)
    with suppress(ImportError):  # lines can then be edited, and called back
        import_module("readline")
    console.print(HELP, style="dim")
    converse(talk, lambda: console.input("[bold]> [/bold]"))
    if labels is not None:
        console.print(f"{labels.count} preferences in {labels.store.where}, run {labels.run}", highlight=False, markup=False)


def base_of(policy: "LanguageModel", name: str, best_of: int) -> "LanguageModel":
    """A policy without its adapter, beside which the first one has an adapter or gives the best of several answers."""
    import copy

    if policy.adapter is None and best_of == 1:
        raise ConfigError(f"{name} has no adapter to leave out; name the model that it is to be compared with: --against MODEL")
    base = copy.copy(policy)
    base.adapter = None
    return base


@commands.command()
def generate(
    model: Model,
    prompts: Annotated[
        str, typer.Argument(help="JSONL, CSV or Parquet with a column prompt, texts or conversations; or hf://datasets/...")
    ],
    target: Annotated[Path, typer.Argument(help="The new file: .jsonl, .csv or .parquet.")],
    adapter: Adapter = "",
    count: Annotated[int, typer.Option("-n", "--count", help="Answers to each prompt.", min=1)] = 1,
    max_tokens: MaxTokens = 256,
    temperature: Temperature = 1.0,
    top_p: TopP = 1.0,
    best_of: BestOfN = 1,
    reward: RewardOf = "",
    seed: Annotated[int, typer.Option(help="The same seed gives the same answers.")] = 0,
    dtype: DType = "auto",
) -> None:
    """Answer a file of prompts: each row, with a column completion, goes to a new file. The same command goes on where it was stopped.

    rather generate run.toml prompts.jsonl answers.jsonl --best-of 8 --reward run.toml

    With --best-of each answer is the best of so many by a reward, which may be on another base model; its score is a column, too.
    """
    from rather.data import continued
    from rather.data.readers import read_rows
    from rather.learners.progress import progress
    from rather.pipeline import files

    continued.check(target)
    total = sum(1 for _ in read_rows(prompts))
    sampling = drawing("generate", max_tokens=max_tokens, temperature=temperature, top_p=top_p)
    policy, by = chosen(open_model(model, adapter, dtype), best_of, reward, dtype)
    about = " ".join([model, adapter, dtype, *([by] if by else [])])
    with progress(console, "prompts", total) as advance:
        done = files.generate(policy, about, prompts, target, sampling, count, seed, advance)
    console.print(f"{done} answers in {target}", highlight=False, markup=False)


@commands.command()
def score(
    reward_model: Annotated[
        str,
        typer.Argument(
            help="Reward model or head: a run's TOML file, a checkpoint, or a folder, AutoModelForSequenceClassification's too."
        ),
    ],
    data: Annotated[str, typer.Argument(help="Comparisons (prompt, chosen, rejected; ...), or rows with prompt and completion.")],
    target: Annotated[Path | None, typer.Argument(help="A new file for the rows with their scores; without it: the figures alone.")] = None,
    dtype: DType = "auto",
) -> None:
    """Score answers by a reward model, and say how often it prefers what was preferred.

    What is done of a file is kept: the same command goes on from there.
    """
    from rather.data import continued
    from rather.data.readers import read_rows
    from rather.learners.progress import progress
    from rather.pipeline import files
    from rather.pipeline.trained import reward

    if target is not None:
        continued.check(target)
    total = sum(1 for _ in read_rows(data))
    found, digits = reward(reward_model, dtype, console)
    with progress(console, "scoring", total) as advance:
        scored = files.score(found, f"{digits} {dtype}", data, target, advance)
    where = "" if target is None else f" in {target}"
    console.print(f"{scored.count} scored{where}", highlight=False, markup=False)
    if scored.accuracy.count:
        console.print(f"Accuracy {scored.accuracy}, mean margin {scored.margin:.3g}", highlight=False)
