"""What a run about text is refused for, before anything is sampled or asked."""

from collections.abc import Callable

from rather.config.schema import Config
from rather.errors import ConfigError
from rather.judges.known import utility
from rather.learners import kto
from rather.learners.dpo import LOSSES
from rather.learners.reward_settings import REEDSettings
from rather.pipeline import build
from rather.settings import REWARDED
from rather.text.head import states
from rather.text.language_model import LanguageModel
from rather.verify.functions import load_function


def check_settings(config: Config) -> None:
    """Make sure that settings go together, whatever is done with the run.

    Raises:
        ConfigError: they do not, or are of control.
    """
    q = config.query
    if q.strategy in ("double_thompson", "information_directed") and q.answers <= 2:
        raise ConfigError(f'query.strategy = "{q.strategy}" chooses two of several answers; set query.answers to 3 or more')
    if q.answers == 1:
        build.check_alone(config)
    for name, plain in REEDSettings().model_dump().items():
        if (value := getattr(config.reward, name)) != plain:
            raise ConfigError(f"reward.{name} = {value} is of fragments of episodes, and the run is about text; leave it at {plain:g}")


def check_learner(config: Config, base: Callable[[], LanguageModel]) -> None:
    """Make sure that train.learner can learn; `base` gives the base policy where that has to be looked at.

    Raises:
        ConfigError: its loss, its batch, its reward or its gold reward cannot be had.
        ModelError: a reward head would read layers that the model does not have.
    """
    t, r = config.train, config.reward
    if t.learner == "kto":
        kto.check_batch("train.batch_size", t.batch_size)
    if t.learner == "dpo" and config.dpo.loss not in LOSSES:
        load_function(config.dpo.loss, "dpo.loss")
    if t.learner == "grpo" and not config.sample.temperature:
        raise ConfigError("sample.temperature is 0, at which all answers of a group of grpo are the same; set it above 0")
    if r.kind == "head" and r.layers and t.learner != "zeroth":
        states.check_layers(base(), r.layers)
    if t.learner in REWARDED:
        if t.reward == "environment":
            raise ConfigError('text has no environment that rewards; set train.reward to "verify", "labels" or "model"')
        if t.reward == "model":
            build.check_reward_folder(config, 'train.reward = "model"')
        if config.hack.gold:
            utility(config.hack.gold)


def check_sampled(config: Config) -> None:
    """Make sure that two answers to a prompt can differ.

    Raises:
        ConfigError: they cannot.
    """
    first, second = config.sample.contrast or ("", "")
    if config.sample.temperature == 0 and first == second and config.query.answers > 1:
        what = "sample.temperature is 0, at which both answers to a prompt are the same, and there is nothing to compare"
        raise ConfigError(f"{what}; set it above 0, or sample.contrast to two instructions")
