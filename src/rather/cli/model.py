"""The commands about a trained model: write it as a folder, or as a file, that other programs read."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from rather.cli.options import Settings, complete_file, console

commands = typer.Typer()

Source = Annotated[
    str,
    typer.Argument(
        help="A run's TOML file; or a checkpoint, an adapter, a model folder, a .gguf file, a hub name.", autocompletion=complete_file
    ),
]
Base = Annotated[str, typer.Option(help="An adapter's base model, where the one that it names is not the one to take.")]
Round = Annotated[int | None, typer.Option("--round", help="Round of the outer loop, from 0; by default the last one.")]


@commands.command()
def merge(
    source: Source,
    folder: Annotated[Path, typer.Argument(help="The new folder.")],
    settings: Settings = None,
    base: Base = "",
    round_: Round = None,
    dtype: Annotated[Literal["float32", "bfloat16"], typer.Option(help="Precision of the weights: exact, or half the size.")] = "float32",
) -> None:
    """Write what was trained as a whole model: a Hugging Face folder that `transformers` loads, with tokenizer and model card.

    rather merge run.toml mine

    rather merge runs/NAME/checkpoints/dpo-0/step-000100 mine --dtype bfloat16

    The card says what the run knows: base model, comparisons and judges, settings, win rate. The license is for you to choose.
    """
    from rather.pipeline import trained

    found = trained.trained(source, settings or [], base, round_, dtype, console)
    trained.merge(found, folder, dtype)
    console.print(f"The whole model, for `transformers` too: {folder}", soft_wrap=True, markup=False)


@commands.command()
def gguf(
    source: Source,
    file: Annotated[Path, typer.Argument(help="The new file, such as mine.gguf.")],
    settings: Settings = None,
    base: Base = "",
    round_: Round = None,
    kind: Annotated[
        Literal["f32", "f16", "bf16", "q8_0", "q4_0"], typer.Option("--type", help="Format of the matrices' numbers: exact, or smaller.")
    ] = "f16",
) -> None:
    """Write what was trained as a GGUF file, which llama.cpp and Ollama run, with tokenizer and chat template; and a Modelfile.

    rather gguf run.toml mine.gguf --type q8_0 && ollama create mine -f mine.Modelfile

    Families: Llama, Mistral without a sliding window, Qwen2, Qwen3, Gemma 3 (text), SmolLM3, OLMo 2, Granite.
    What cannot be written is refused by name.
    """
    from rather.errors import ConfigError
    from rather.pipeline import trained

    if file.suffix != ".gguf":
        raise ConfigError(f"{file} does not end in .gguf, by which programs know such a file")
    found = trained.trained(source, settings or [], base, round_, "float32", console)
    beside = trained.gguf(found, file, kind)
    console.print(f"{file}, and for `ollama create` {beside}", soft_wrap=True, markup=False)
