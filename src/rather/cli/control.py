"""The commands that use a policy for control, trained or not: watch it act, write it for other programs."""

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from rather.cli.model import Round
from rather.cli.options import Settings, complete_file, console

commands = typer.Typer()

Source = Annotated[str, typer.Argument(help="A run's TOML file, or a folder that agent.save() wrote.", autocompletion=complete_file)]
Untrained = Annotated[bool, typer.Option("--untrained", help="The policy as it was before training.")]


@commands.command()
def play(
    source: Source,
    settings: Settings = None,
    video: Annotated[Path | None, typer.Option(help="Write what is seen to this file: .webp, .gif or .mp4.")] = None,
    episodes: Annotated[int, typer.Option(help="How many episodes.", min=1)] = 3,
    seed: Annotated[int, typer.Option(help="The same seed: the same episodes.", min=0)] = 0,
    sampled: Annotated[bool, typer.Option("--sampled", help="Draw actions as in training, instead of deterministic ones.")] = False,
    round_: Round = None,
    untrained: Untrained = False,
) -> None:
    """Let a trained policy act in its environment, in a window where there is a display; say each episode's return.

    rather play run.toml

    rather play run.toml --video drive.mp4 --episodes 1

    Without a display only the returns are printed; MuJoCo draws videos there with MUJOCO_GL=egl.
    """
    from contextlib import closing

    from rather.control.rollout import rewards
    from rather.control.studio import Painter
    from rather.control.video import check
    from rather.pipeline.playing import trained_policy

    if video is not None:
        check(video)
    trained = trained_policy(source, settings or [], round_, untrained, console)
    window = "human" if video is None and displayed() and trained.studio.windowed else None
    with closing(Painter(trained.studio)) as painter:
        if video is not None:
            painter.try_drawing()  # what cannot be drawn is refused before anything acts
        found = trained.play(episodes, seed, not sampled, window)
        returns = [float(rewards(t).sum()) for t in found]
        for number, (trajectory, episode_return) in enumerate(zip(found, returns, strict=True), 1):
            console.print(f"Episode {number}: return {episode_return:.4g} in {len(rewards(trajectory))} steps", highlight=False)
        console.print(f"Mean return {sum(returns) / len(returns):.4g}", highlight=False)
        if video is not None:
            console.print(f"{painter.video(found, video)} frames in {video}", soft_wrap=True, markup=False, highlight=False)
    if video is None and not window:
        why = f"{trained.studio.env} opens no window" if displayed() else "There is no display to show it on"
        console.print(f"{why}; --video FILE writes what is seen.", markup=False, highlight=False)


@commands.command(name="export-policy")
def export_policy(
    source: Source,
    file: Annotated[Path, typer.Argument(help="The new file: .onnx, or .npz for NumPy.")],
    settings: Settings = None,
    round_: Round = None,
) -> None:
    """Write a trained policy for other programs: flat observations in, deterministic actions out.

    rather export-policy run.toml policy.onnx

    rather export-policy run.toml policy.npz

    ONNX Runtime runs the first one on nearly anything; the second needs NumPy and ten lines: docs/guides/environment.md.
    """
    from rather.control.export import export
    from rather.pipeline.playing import trained_policy

    trained = trained_policy(source, settings or [], round_, False, console)
    export(trained.policy, trained.studio.make(), file)
    console.print(f"The policy: {file}", soft_wrap=True, markup=False, highlight=False)


def displayed() -> bool:
    """Whether there is a display that a window can be on."""
    return sys.platform in ("darwin", "win32") or bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))
