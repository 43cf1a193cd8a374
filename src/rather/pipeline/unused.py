"""Settings that do nothing in a run: those of learners, rewards and judges that are not part of it.

They are no error: one file serves several commands, such as `rather train run.toml train.learner=reward`.
"""

from collections.abc import Iterator, Sequence

from rather.config.schema import Config
from rather.pipeline import build
from rather.settings import REWARDED, matters


def unused(config: Config, learners: Sequence[str]) -> list[str]:
    """A sentence for each reason why settings that are not the defaults do nothing, where these learn in a round."""
    found = list[str]()
    for names, why in _reasons(config, learners):
        if changed := [key for name in names for key in _changed(config, *name.split("."))]:
            found.append(f"{', '.join(changed)} {'do' if len(changed) > 1 else 'does'} nothing in this run: {why}")
    return found


def _changed(config: Config, section: str, key: str = "") -> list[str]:
    """The settings of a section, or that one, which are not the defaults."""
    now, plain = (getattr(each, section).model_dump() for each in (config, Config()))
    return [f"{section}.{name}" for name in ([key] if key else now) if now[name] != plain[name]]


def _reasons(config: Config, learners: Sequence[str]) -> Iterator[tuple[list[str], str]]:
    """Sections and settings without effect, and why."""
    t, j = config.train, config.judge
    learner = f'train.learner is "{t.learner}"'
    sections = ("dpo", "kto", "ppo", "grpo", "sb3", "zeroth")
    of_others = [name for name in sections if not any(matters(Config.model_fields[name].metadata, learner) for learner in learners)]
    yield [*of_others, *([] if t.learner == "zeroth" else ["scale"])], learner
    if t.learner not in REWARDED:
        yield ["train.reward", "train.pessimism", "hack.gold", "hack.kl", "hack.pessimism"], f"{learner}, which no reward trains"
    elif config.hack.then != "mend":
        yield ["hack.kl", "hack.pessimism"], 'hack.then is not "mend"'
    if "reward" not in learners and config.reward.kind == "lora" and not build.corrected(config):
        yield ["reward"], f"{learner}, and no reward model is learned"
    elif config.reward.kind == "head":
        yield ["reward.epochs", "reward.lr", "reward.batch_size", "reward.center"], 'reward.kind is "head", which is fitted in one step'
    if config.control.env:
        yield ["query.questions", "query.answers"], "it is about control, where query.comparisons says how many questions are asked"
        yield ["model", "reward.layers"], "it is about control, where no language model is read"
    else:
        fragments = [f"query.{name}" for name in ("comparisons", "fragment", "candidates", "episodes", "exploration")]
        yield fragments, "it is about text, where query.questions says how many questions are asked"
    kind = f'judge.kind is "{j.kind}"'
    if j.kind != "function":
        yield ["judge.function"], kind
    if j.kind != "language":
        yield ["judge.url", "judge.model"], kind
    if j.kind != "model" and not (t.learner in REWARDED and t.reward == "model"):
        yield ["judge.checkpoint"], kind
