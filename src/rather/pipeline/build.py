"""Settings to objects: what a run is made of, and the parts of one about text."""

import os
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any, Literal

from torch import nn

from rather.config.schema import Config
from rather.core import Comparison, Judge, Task, Trajectory
from rather.data.forms import read_tasks
from rather.errors import ConfigError
from rather.judges.best_of import BestOf, BestSampler
from rather.judges.concise import Concise, Reader, Surprise
from rather.judges.functions import FunctionJudge
from rather.judges.known import CONCISE, SimulatedJudge, utility
from rather.judges.language import LanguageJudge
from rather.judges.model import ModelJudge
from rather.learners import checkpoint, kto
from rather.learners.saved_head import FACTS
from rather.learners.settings import Optimization
from rather.pipeline import sizes
from rather.scale import ranks
from rather.settings import REWARDED
from rather.store.rows import LEARNED
from rather.text import engine, load
from rather.text.foreign import ForeignPolicy
from rather.text.head.model import RewardHead
from rather.text.language_model import TextSampler
from rather.text.policy import TextPolicy
from rather.text.prompts.fit import Fit, instructed, suffixed
from rather.text.reward_model import RewardModel
from rather.text.tokens import Tokens
from rather.verify import tasks as made_tasks
from rather.verify.checker import Checker, Columns
from rather.verify.functions import load_function
from rather.verify.verifiers import Check
from rather.zeroth.spaces import text as spaces

AnyPolicy = TextPolicy | ForeignPolicy

ALONE = "Is this answer good: helpful, correct and clear? And of two, which is better?"
"""What people are asked by default where each question is one answer, but for those of an evaluation."""


def dated(config: Config) -> Config:
    """The settings with the day on which the run began, unless they name one: the same whenever the run goes on.

    It is kept in the run's folder; where that cannot be written to and holds none, it is today.
    """
    if config.run.date:
        return config
    path, day = config.folder / "date.txt", str(date.today())
    try:
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            draft = path.with_suffix(f".{os.getpid()}")
            draft.write_text(day)
            draft.replace(path)
        day = path.read_text()
    except OSError:
        pass
    return config.model_copy(update={"run": config.run.model_copy(update={"date": ranks.everyones(day)[0]})})


def seed(config: Config, what: str, number: int) -> int:
    """The seed of what is drawn in a phase of a round."""
    return random.Random(f"{config.run.seed}/{what}/{number}").getrandbits(40)


def tasks(config: Config) -> tuple[list[Task], list[Task]]:
    """Training and held-out tasks."""
    d, (train, held_out) = config.data, _every_task(config)
    train, held_out = train[: d.limit or None], held_out[: config.eval.prompts or None]
    return [suffixed(t, d.suffix) for t in train], [suffixed(t, d.suffix) for t in held_out]


def _every_task(config: Config) -> tuple[list[Task], list[Task]]:
    """All tasks that there are, as they stand there."""
    d = config.data
    if d.prompts.startswith(made_tasks.PREFIX):
        whole = any(check.kind == "reasoning_gym" for check in config.verify.checks)
        return made_tasks.made(d.prompts, d.count, d.held_out, config.run.seed, whole)
    others = any(check.kind == "python" for check in config.verify.checks)
    return read_tasks(d.prompts, d.column, d.held_out, verified(config), others)


def base_policy(config: Config, full: bool = False) -> AnyPolicy:
    """The model that starts the run, its weights in float32 if they are trained or `full`.

    An adapter that the run starts with rides on it under the name "start", which is never trained. Where the weights themselves change
    it becomes a part of them.
    """
    m, z = config.model, config.zeroth
    on = load.device(m.device)
    compute = load.dtype(m.dtype, on)
    temperature = config.sample.temperature or 1.0  # where the most likely token is taken, log-probabilities are those of temperature 1
    trains = full or m.train == "full"
    described, _ = load.located(m.path, m.adapter, weights=False)
    sizes.check_fits(described, on, compute, trains, load.BITS[m.weights])
    path, adapter = load.located(m.path, m.adapter)
    merge = adapter if trains or (config.train.learner == "zeroth" and z.space != "lora") else None
    policy = load.policy(path, on, compute, trains, temperature, m.chat, m.template, config.run.date, merge, bits=load.BITS[m.weights])
    if adapter and not merge:
        policy, parameters = load.read_adapter(policy, "start", adapter)
        for p in parameters:
            p.requires_grad_(False)
    policy.name = f"{config.run.name}@0"
    if m.base:
        load.call_base(policy, m.base)
    policy.tokens.truncate = config.data.overlong == "truncate"
    if m.gradient_checkpointing:
        if not isinstance(policy, TextPolicy):
            raise ConfigError("model.gradient_checkpointing can be set for rather's own architectures only")
        policy.model.checkpointing = True
    return policy


def trained_policy(config: Config, base: AnyPolicy, name: str = "policy") -> tuple[AnyPolicy, list[nn.Parameter]]:
    """What is trained: a new adapter on the base policy's base, a copy of the base policy's own, or all weights; and its parameters."""
    m = config.model
    if m.train == "full":
        return base, load.parameters(base)
    if base.adapter and (folder := load.located(m.path, m.adapter)[1]):
        return load.read_adapter(base, name, folder)
    return load.with_adapter(base, name, m.rank, m.alpha, config.run.seed, m.blocks)


def perturbable(config: Config, base: AnyPolicy, tasks: Sequence[Task]) -> TextPolicy:
    """The base policy with a space that zeroth-order optimization moves it in; see `spaces.text.perturbable`."""

    def own(what: Literal["lora", "full"]) -> TextPolicy:
        policy = trained_policy(config, base)[0] if what == "lora" else base_policy(config, full=True)
        assert isinstance(policy, TextPolicy)
        return policy

    greedy = TextSampler(base, engine.Sampling(config.sample.max_tokens, 0.0), config.sample.batch_size)
    return spaces.perturbable(config.zeroth, base, tasks, greedy, own)


def sampler(config: Config, policy: AnyPolicy | BestOf, progress: Callable[[int], None]) -> TextSampler:
    """Draws answers from `policy`."""
    s = config.sample
    how = engine.Sampling(s.max_tokens, s.temperature, s.top_p, s.top_k, s.min_p)
    if isinstance(policy, BestOf):
        return BestSampler(policy, how, s.batch_size, progress)
    return TextSampler(policy, how, s.batch_size, progress)


def answers(config: Config, sampler: TextSampler, tasks: Sequence[Task], seed: int, count: int = 2) -> list[list[Trajectory]]:
    """So many answers to each task, two of which become a question.

    With `sample.contrast` they are drawn with either instruction in turn, and kept as answers to the task without it: such answers differ
    more, so that a comparison says more (Yang et al. 2023, RLCD, where the instruction takes the judge's place).
    """
    contrast = config.sample.contrast or ("", "")
    found = sampler.sample([instructed(t, contrast[i % 2]) for t in tasks for i in range(count)], seed)
    if any(contrast):  # its tokens and their log-probabilities are those after another prompt
        kept = zip(found, (t for t in tasks for _ in range(count)), strict=True)
        found = [replace(answer, task=task, observations=None, actions=None, logprobs=None) for answer, task in kept]
    return [found[i : i + count] for i in range(0, len(found), count)]


def fit(config: Config, tokens: Tokens, context: int, tell: Callable[[str], None]) -> Fit:
    """What measures prompts and answers against a context of so many tokens, with each instruction that prompts are sampled with."""
    instructions = config.sample.contrast or ()
    if config.train.learner == "zeroth" and config.zeroth.space == "steering":
        instructions = ("", *(instruction for both in config.zeroth.contrasts for instruction in both))
    return Fit(tokens, context, config.sample.max_tokens, config.data.overlong, tell, instructions)


def verified(config: Config) -> bool:
    """Whether the reward is that of verifiers; then they compare the policy with the base policy, too."""
    return config.train.learner in REWARDED and config.train.reward == "verify"


def corrected(config: Config) -> bool:
    """Whether comparisons correct the verifiers after an alarm."""
    return verified(config) and config.hack.then == "mend"


def asks_first(config: Config) -> bool:
    """Whether each round begins with questions that need labels; zeroth-order optimization asks as it goes."""
    t = config.train
    return t.learner != "zeroth" and not (t.learner in REWARDED and t.reward != "labels")


def judges(config: Config, reader: Callable[[], Reader], verifiers: bool = True) -> list[Judge]:
    """Who answers the questions; none for people, who are asked by `judges.people`. `reader` gives the base model to those who need it.

    Where the reward is that of verifiers it is they, or without `verifiers` whoever judge.kind says.
    """
    j = config.judge
    match "verifier" if verifiers and verified(config) else j.kind:
        case "panel":
            return [*panel(config, reader)]
        case "model":
            check_reward_folder(config, 'judge.kind = "model"')
            return [ModelJudge(j.name, saved_reward(config, Path(j.checkpoint)), config.train.micro_batch_tokens)]
        case "language":
            if not j.model:
                raise ConfigError('judge.kind = "language" needs judge.model, the name of the model at judge.url')
            key = os.environ.get(j.key_variable, "")
            return [LanguageJudge(j.name, j.url, j.model, j.instruction, key, j.timeout_s, j.concurrency)]
        case "function":
            if not j.function:
                raise ConfigError('judge.kind = "function" needs judge.function, such as "module:name", a function of (prompt, a, b)')
            return [FunctionJudge(load_function(j.function, "judge.function"), j.name)]
        case "verifier":
            return [checker(config)]
        case "people" | "terminal":
            return []


def panel(config: Config, reader: Callable[[], Reader]) -> list[SimulatedJudge]:
    """The simulated judges; those who like what is concise share one reading of the answers by the base model.

    Raises:
        ConfigError: there are none, or two of the same name.
    """
    members, concise = config.judge.panel, None
    if not members or len({p.name for p in members}) < len(members):
        raise ConfigError("judge.panel needs at least one judge, and each needs a name of its own")
    if any(p.utility == CONCISE for p in members):
        concise = Concise(Surprise(reader(), config.train.micro_batch_tokens))
    made = list[SimulatedJudge]()
    for p in members:
        likes, read = (concise, concise.read) if concise and p.utility == CONCISE else (utility(p.utility), None)
        made.append(SimulatedJudge(utility=likes, read=read, seed=config.run.seed, **p.model_dump(exclude={"utility"})))
    return made


def checker(config: Config) -> Checker:
    """The verifiers; what was read back from the store gets its columns from the prompt file."""

    def columns() -> Columns:
        return {(t.source, t.key): t.row for some in _every_task(config) for t in some}

    checks = [Check(**check.model_dump()) for check in config.verify.checks]
    return Checker(checks, config.verify.workers or _cores(), columns=columns)


def _cores() -> int:
    """The cores that there are for each rank."""
    return max(1, (os.cpu_count() or 1) // ranks.count())


def reward_head(config: Config, base: AnyPolicy) -> RewardHead:
    """A reward head on the base policy, with what it reads kept beside the store."""
    r = config.reward
    return RewardHead(base, r.members, config.run.seed, layers=r.layers or None, cache=features(config))


def features(config: Config) -> Path:
    """The file beside the store in which states of labeled answers are kept."""
    return (config.folder if "://" in config.store else Path(config.store).parent) / "features.db"


def saved_reward(config: Config, folder: Path, base: AnyPolicy | None = None) -> RewardModel | RewardHead:
    """The reward model in a checkpoint; its adapter goes on `base`, if that is the model it was trained on, and else on one of its own.

    What it was made of, its own run says; what becomes of a text that is too long for it, the run of `config`, which asks it. Or the one
    in a folder that `transformers` reads (AutoModelForSequenceClassification).

    Raises:
        ConfigError: it has another tokenizer than `base`, whose tokens it is to score.
    """
    if published(folder):
        return _published_reward(config, folder, base)
    manifest = checkpoint.check(folder)
    of = Config.model_validate({k: v for k, v in manifest["settings"].items() if k in Config.model_fields})
    if (folder / "model" / FACTS).exists():
        body = base_policy(of) if base is None else base
        body.tokens.truncate = config.data.overlong == "truncate"
        head = RewardHead(body, of.reward.members, of.run.seed, layers=of.reward.layers or None)
        head.restore(folder / "model")
        return head
    if of.model.train == "full":
        body, parameters = trained_policy(of, base_policy(of), "reward")
    else:  # the checkpoint has the adapter, whatever that had begun as
        base = base_policy(of.model_copy(update={"model": of.model.model_copy(update={"adapter": ""})})) if base is None else base
        body, parameters = load.read_adapter(base, "reward", folder / "model")
    body.tokens.truncate = config.data.overlong == "truncate"
    model = RewardModel(body, of.reward.members, of.run.seed, parameters=parameters)
    model.restore(folder / "model")
    return model


def check_reward_folder(config: Config, what: str) -> None:
    """Make sure that judge.checkpoint, which `what` needs, may name a reward model.

    Raises:
        ConfigError: it is empty, or there is no such folder.
    """
    name = config.judge.checkpoint
    if not name:
        raise ConfigError(f"{what} needs judge.checkpoint, the folder of a reward model")
    if not (Path(name).is_dir() or published(Path(name))):
        raise ConfigError(f"judge.checkpoint is {name!r}, and there is no such folder; give that of a reward model")


def published(folder: Path) -> bool:
    """Whether a reward model is in the form that `transformers` reads: a folder with a config.json, or a name on the hub."""
    return (folder / "config.json").exists() or not (folder.exists() or folder.is_absolute() or len(folder.parts) != 2)


def _published_reward(config: Config, folder: Path, base: AnyPolicy | None) -> RewardModel:
    m, on = config.model, load.device(config.model.device)
    where = load.locate(str(folder))
    body = load.policy(where, on, load.dtype(m.dtype, on), False, 1.0, date=config.run.date, scores=True)
    body.tokens.truncate = config.data.overlong == "truncate"
    if base is not None and body.tokens.tokenizer.get_vocab() != base.tokens.tokenizer.get_vocab():
        what = "has another tokenizer than the policy, whose tokens it is to score"
        raise ConfigError(f'the reward model {folder} {what}; let it judge instead (judge.kind = "model")')
    return RewardModel.published(body, where)


def is_head(config: Config, name: str) -> bool:
    """Whether the learner called `name` fits a reward head, each step to all labels that there are."""
    return name == "reward" and config.reward.kind == "head"


def purposes(name: str) -> tuple[str, ...]:
    """The purposes of the questions that the learner called `name` learns from: answers alone are for KTO."""
    return LEARNED if name == "kto" else ("train",)


def purpose(config: Config) -> str:
    """The purpose of the questions that the run asks: of query.answers = 1 answers alone."""
    return "unpaired" if config.query.answers == 1 and not config.control.env else "train"


def instruction(config: Config) -> str:
    """The question that people are asked; where each sees one answer and nothing else is set, whether it is good."""
    judge = config.judge
    return ALONE if purpose(config) == "unpaired" and judge.instruction == type(judge)().instruction else judge.instruction


def check_alone(config: Config) -> None:
    """Make sure that who is asked about answers alone can say, and what learns can learn from it.

    Raises:
        ConfigError: it is a learner of comparisons, a judge that compares, or there are two answers to each prompt.
    """
    learner, kind, what = config.train.learner, config.judge.kind, "query.answers = 1 asks whether an answer is good"
    if learner != "kto":
        raise ConfigError(f'{what}, which train.learner = {learner!r} does not learn from; take "kto", or 2 answers')
    if kind not in ("people", "terminal"):
        raise ConfigError(f'{what}, which judge.kind = {kind!r} does not say; take "people" or "terminal", or 2 answers')
    if config.sample.contrast:
        raise ConfigError(f"{what}, and sample.contrast draws two that differ; leave one of them out")


def enough(name: str, comparisons: Sequence[Comparison]) -> bool:
    """Whether the learner called `name` can begin on these labels: KTO needs good and bad answers."""
    return kto.both_kinds(comparisons) if name == "kto" else bool(comparisons)


def steps(config: Config, name: str, items: int) -> int:
    """Steps of the learner called `name` on `items` items; `train.steps` is for `train.learner` alone."""
    t = config.train
    if is_head(config, name):
        return 1
    if t.steps and name == t.learner:
        return t.steps
    epochs, together = t.epochs, config.ppo.rollout_batch_size if name == "ppo" else t.batch_size
    if name == "reward":
        epochs, together = config.reward.epochs or epochs, config.reward.batch_size or together
    return max(1, round(epochs * items / together))


def further(config: Config, name: str, items: int) -> int:
    """Steps that `items` items more need, which have come since the learner called `name` has finished, whatever train.steps says."""
    return steps(config.model_copy(update={"train": config.train.model_copy(update={"steps": 0})}), name, items) if items else 0


def optimization(config: Config, name: str, steps: int) -> dict[str, Any]:
    """How the learner called `name` optimizes in so many steps, as its keyword arguments."""
    t, r = config.train, config.reward
    found = {key: getattr(t, key) for key in Optimization.model_fields} | {"steps": steps, "seed": config.run.seed}
    return found | ({"lr": r.lr or t.lr, "batch_size": r.batch_size or t.batch_size} if name == "reward" else {})
