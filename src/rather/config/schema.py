"""Every setting of a run: one pydantic model a section, unknown keys refused, every key described; toml.py reads and writes them.

The settings of learners stand beside the learners.
"""

import math
from datetime import date
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, NonNegativeInt, PositiveInt, model_validator

from rather.config.control import Control
from rather.learners.dpo_settings import DPOSettings
from rather.learners.grpo_settings import GRPOSettings
from rather.learners.kto_settings import KTOSettings
from rather.learners.off_policy_settings import OffPolicySettings
from rather.learners.ppo_settings import PPOSettings
from rather.learners.reward_settings import HeldBack, REEDSettings, RewardSettings
from rather.learners.settings import Optimization, Sampling
from rather.learners.zeroth_settings import ZerothSettings
from rather.settings import OFF_POLICY, REWARDED, ForActing, ForEval, ForLearners, ForLearnersAndSampling, Free, MattersTo, Section


def _day(value: object) -> str:
    return str(date.fromisoformat(str(value))) if value else ""


class Run(Section):
    """The name of the run, and where its files are."""

    name: Free[str] = Field(default="run", description="Name of the run, its folder, and in the store.", pattern=r"^\.*[\w-][\w.-]*$")
    folder: Free[str] = Field(default="runs", description="Folder that holds the run's folder.")
    store: Free[str] = Field(default="", description="SQLite file or postgresql+psycopg:// URL; empty: store.db in the run's folder.")
    seed: int = Field(default=0, description="Seed of everything that is drawn.", ge=0)
    date: Annotated[str, BeforeValidator(_day)] = Field(
        default="", description="Date that chat templates write; empty: the run's first day."
    )
    threads: Free[int] = Field(default=0, description="CPU threads for matrix work; 0: PyTorch's choice.", ge=0)


class Model(Section):
    """The base model."""

    path: ForLearnersAndSampling[str] = Field(
        default="", description="Model folder, .gguf file, name on the Hugging Face hub, or package:NAME for one in a Python package."
    )
    train: ForLearners[Literal["lora", "full"]] = Field(
        default="lora", description="Train low-rank adapters on a frozen base, or all weights."
    )
    rank: ForLearners[int] = Field(default=16, description="Rank of a new LoRA adapter; model.adapter brings its own.", ge=1)
    alpha: ForLearners[float] = Field(default=32.0, description="Scale of a new adapter: updates are multiplied by alpha / rank.", gt=0)
    blocks: ForLearners[int] = Field(
        default=0, description="How many of the last blocks get a new LoRA adapter; 0: all. Fewer train faster.", ge=0
    )
    adapter: ForLearnersAndSampling[str] = Field(
        default="", description="Folder of a LoRA adapter (PEFT) that the run starts with, which is the reference, too; empty: a new one."
    )
    base: Free[str] = Field(
        default="", description="The model that saved adapters name as their base, for peft; empty: where model.path was found."
    )
    dtype: Literal["auto", "float32", "bfloat16"] = Field(
        default="auto", description="What activations are computed in; auto: bfloat16 where the hardware multiplies it."
    )
    weights: Literal["auto", "int8", "q4"] = Field(
        default="auto",
        description="What frozen weights are held in; int8, q4: quantized, in 53 or 28 % of bfloat16's memory, on a CPU. "
        "On a GPU by NVIDIA this has been run under Triton's interpreter only.",
    )
    device: str = Field(default="auto", description='"cpu", "cuda", "cuda:1", "mps" (Apple); auto: a GPU by NVIDIA if there is one.')
    gradient_checkpointing: Free[bool] = Field(default=False, description="Compute activations again in backward: less memory, more time.")
    chat: bool | None = Field(default=None, description="Put plain prompts through the chat template; unset: if the model has one.")
    template: dict[str, bool | int | float | str] = Field(default={}, description="The chat template's options: {enable_thinking = false}.")


class Data(Section):
    """The prompts."""

    prompts: str = Field(
        default="package",
        description='File (.jsonl, .csv, .parquet), "reasoning_gym:NAME?option=value", "package", "package:questions", "package:topics".',
    )
    count: ForActing[int] = Field(default=1000, description="Tasks that reasoning_gym makes.", ge=2)
    suffix: str = Field(default="", description="Text put after every prompt, such as how to write the answer.")
    column: str = Field(default="prompt", description="Column that holds the prompt.")
    held_out: float = Field(default=0.2, description="Share of prompts kept for evaluation where the file has no split column.", ge=0, lt=1)
    limit: ForActing[int] = Field(default=0, description="Use only that many training prompts; 0: all.", ge=0)
    overlong: Literal["error", "skip", "truncate"] = Field(
        default="error", description="Prompts that are too long: an error, left out, or cut."
    )


class Sample(Sampling):
    """How answers are drawn."""

    batch_size: Free[int] = Field(default=32, description="Answers decoded at a time.", ge=1)
    contrast: ForLearnersAndSampling[tuple[str, str] | None] = Field(
        default=None, description='Two instructions, "" for none: each answer of a question is drawn with one, and stored without it.'
    )


class Panelist(Section):
    """One simulated judge."""

    name: str = Field(description="Name of the judge.")
    utility: str = Field(default="brief", description="What this judge likes: concise, or a name in the table of judges/known.py.")
    temperature: float = Field(default=0.5, description="Noise: P(a) = sigmoid((u_a - u_b) / temperature).", gt=0)
    mistake: float = Field(default=0.0, description="Probability of answering at random.", ge=0, le=1)
    tie: float = Field(default=0.0, description="Utilities closer than this are called a tie.", ge=0)
    abstain: float = Field(default=0.0, description="Probability of giving no answer.", ge=0, le=1)
    discount: float = Field(default=1.0, description="control: weight of a step one further from the end; below 1: myopic.", gt=0, le=1)
    skip_below: float = Field(default=-math.inf, description="No answer where both utilities are below it.")


def _panel() -> list[Panelist]:
    return [
        Panelist(name="expert", temperature=0.1, tie=0.05),
        Panelist(name="regular", temperature=0.3, mistake=0.05, tie=0.1),
        Panelist(name="careless", temperature=0.8, mistake=0.15, tie=0.1, abstain=0.05),
    ]


class Judge(Section):
    """Who compares the answers."""

    kind: ForEval[Literal["panel", "people", "terminal", "model", "language", "verifier", "function"]] = Field(
        default="panel",
        description="A simulated panel, people on the page (rather serve), you at this terminal, a reward model, "
        "a language model behind a URL, the verifiers, or a function of yours.",
    )
    name: ForEval[str] = Field(default="me", description="Name under which answers are stored; members of a panel have their own.")
    panel: ForEval[list[Panelist]] = Field(default_factory=_panel, description="The members of a simulated panel.")
    checkpoint: Annotated[str, MattersTo(*REWARDED, "eval")] = Field(default="", description='Reward model, for kind "model".')
    url: ForEval[str] = Field(default="http://127.0.0.1:8000/v1", description='OpenAI-compatible endpoint, for kind "language".')
    model: ForEval[str] = Field(default="", description='Model name at that endpoint, for kind "language".')
    function: Free[str] = Field(default="", description='"module:name" of a function of (prompt, a, b), for kind "function".')
    key_variable: Free[str] = Field(default="OPENAI_API_KEY", description="Environment variable that holds the endpoint's key, if any.")
    instruction: ForEval[str] = Field(
        default="Which answer is better: more helpful, correct and clear?", description="The question that judges are asked."
    )
    guidelines: Free[str] = Field(
        default="", description="Markdown file with longer rules, which people read before their first question; empty: none."
    )
    criteria: Free[list[str]] = Field(
        default=[], description='Criteria (at most 6) on which people judge, too: ["helpful", "honest"]; empty: only the whole answer.'
    )
    timeout_s: Free[float] = Field(default=60.0, description="Seconds to wait for the endpoint.", gt=0)
    wait_s: Free[float] = Field(
        default=math.inf, description="people: seconds to wait for one more answer before a round ends with those there are.", ge=0
    )
    concurrency: Free[int] = Field(default=8, description="Requests to the endpoint at a time.", ge=1)


class Learning(Section):
    """What is trained, and how."""

    learner: Free[Literal["sft", "reward", "dpo", "kto", "ppo", "grpo", "sb3:SAC", "sb3:TD3", "zeroth"]] = Field(
        default="dpo", description="What is trained, and how; sb3: by Stable-Baselines3, in control."
    )
    reward: Annotated[Literal["verify", "labels", "model", "environment"], MattersTo(*REWARDED)] = Field(
        default="verify",
        description="Reward of ppo, grpo and sb3: verify.checks, a model learned from the labels, judge.checkpoint's, or the environment.",
    )
    pessimism: Annotated[float, MattersTo(*REWARDED)] = Field(
        default=0.0,
        description="Standard deviations of its members (head: of its posterior) that are taken off a learned reward.",
        ge=0,
        allow_inf_nan=False,
    )


class Train(Optimization, Learning):  # in this order the learner is the section's first key
    """The learner and its optimizer."""

    flagged: bool = Field(
        default=True, description="Learn from suspicious answers, too, except fast ones and those that the owner of the page leaves out."
    )
    judges: list[str] = Field(default=["*"], description="Judges whose labels are learned from, by name, * for any (not zeroth).")
    criterion: str = Field(default="", description="Learn from the preferences on this one of judge.criteria; empty: on the whole.")


Strategy = Literal[
    "random", "disagreement", "near_tie", "entropy", "large_gap", "bald", "d_optimal", "double_thompson", "information_directed"
]


class Query(Section):
    """Which pairs are asked about: of fragments in control; of answers to a prompt, and in which order, for text."""

    comparisons: Free[int] = Field(default=100, description="control: questions in all rounds together.", ge=1)
    questions: Free[int] = Field(
        default=0, description="text: questions in all rounds, about prompts in turn; 0: each round asks about every prompt.", ge=0
    )
    schedule: Free[Literal["constant", "hyperbolic"]] = Field(default="hyperbolic", description="Equally many each round, or most early.")
    fragment: Free[NonNegativeInt | Annotated[list[PositiveInt], Field(min_length=1)]] = Field(
        default=50, description="control: steps of a side; several: equally many questions of each; 0: whole episodes."
    )
    strategy: Free[Strategy] = Field(default="disagreement", description="Which pairs are wanted most; see docs/concepts/preferences.md.")
    answers: Annotated[int, MattersTo("sample")] = Field(
        default=2,
        description="text: answers to each prompt, of which the strategy takes two; without a reward model two are drawn. "
        "1: people are asked of each answer whether it is good (kto).",
        ge=1,
    )
    candidates: Free[int] = Field(default=10, description="Pairs that are looked at for each one that is asked.", ge=1)
    random_share: Free[float] = Field(default=0.2, description="Share of questions drawn at random, whatever the strategy.", ge=0, le=1)
    episodes: Annotated[int, MattersTo("zeroth")] = Field(
        default=16, description="Episodes of the newest policy that fragments are taken from, each round.", ge=2
    )
    exploration: Free[float] = Field(
        default=0.0, description="control: share of episodes acted in with offset actions and other noise than the policy's.", ge=0, le=1
    )


class Check(Section):
    """One verifier."""

    kind: str = Field(description="number, boxed, pattern, schema, code, python or reasoning_gym; see docs/guides/verifier.md.")
    weight: float = Field(default=1.0, description="Weight of its score among the others'.", ge=0)
    tolerance: float = Field(default=0.0, description="number: relative error that still counts as right.", ge=0)
    pattern: str = Field(default="", description="pattern: a regular expression; its group `answer` must hold the task's answer.")
    schema_file: str = Field(default="", description="schema: file with the JSON schema; empty: the task's answer is the schema.")
    function: str = Field(default="", description='python: "module:name" of a function of (prompt, completion, **columns).')
    partial: bool = Field(default=False, description="code: score the share of tests that pass.")
    timeout_s: float = Field(default=5.0, description="Seconds for one answer; beyond it is unjudged.", gt=0)
    memory_mb: int = Field(default=512, description="code: memory of the program, in MiB.", ge=64)


class Verify(Section):
    """The verifiers: what can be checked without a judge."""

    checks: list[Check] = Field(default_factory=list, description="The verifiers; the score is the mean of theirs by weight.")
    workers: Free[int] = Field(default=0, description="Processes that verify; 0: one a core.", ge=0)
    patience: Free[int] = Field(default=3, description="Steps in a row without one judged answer that end the training.", ge=1)


class Reward(REEDSettings, HeldBack, RewardSettings):
    """The Bradley-Terry reward model."""

    kind: Literal["lora", "head"] = Field(
        default="lora",
        description="Train an adapter with a head (control: nets), or fit a head alone, in a moment: to states of the frozen model, or to"
        " products of observations and actions.",
    )
    layers: list[int] = Field(
        default=[], description="head: numbers of blocks after which states are read; empty: half, three quarters and all of them."
    )
    start: Literal["random", "head"] = Field(
        default="random", description="lora: score at random at first, or as a reward head that reads the state of the last token (text)."
    )
    members: int = Field(default=1, description="Members of the ensemble.", ge=1)
    epochs: Free[float | None] = Field(default=None, description="Times that every label is used; unset: train.epochs.", gt=0)
    lr: float | None = Field(default=None, description="Learning rate; unset: train.lr.", gt=0)
    batch_size: int | None = Field(default=None, description="Comparisons a step; unset: train.batch_size.", ge=1)

    @model_validator(mode="after")
    def _starts(self) -> Self:
        if self.kind == self.start == "head":
            raise ValueError('start = "head" is for kind = "lora", which goes on from there; leave one of them out')
        of_nets = [name for name in REEDSettings.model_fields if getattr(self, name) != REEDSettings.model_fields[name].default]
        if self.kind == "head" and of_nets:
            raise ValueError(f'kind = "head" is fitted in one step, without {", ".join(of_nets)}; leave them out, or take kind = "lora"')
        return self


class Scale(Section):
    """Zeroth-order optimization on several processes or machines, through Ray; see docs/guides/many-machines.md."""

    workers: int = Field(default=0, description="Processes that directions are spread over, one core each; 0: none but this one.", ge=0)
    address: str = Field(default="", description='A Ray cluster, such as "ray://head:10001" or "auto"; empty: one on this machine.')


class Eval(Section):
    """The comparison with the base model on held-out prompts."""

    prompts: Free[int] = Field(default=0, description="Use only that many held-out prompts; 0: all.", ge=0)
    answers: int = Field(default=1, description="Pairs of answers a prompt.", ge=1)
    best_of: int = Field(default=1, description="Text: compare with the best of so many answers of the base model, by the reward.", ge=1)

    @property
    def against(self) -> str:
        """What the policy is compared with, in words."""
        return "the base model" if self.best_of == 1 else f"the best of {self.best_of} answers of the base model"


class Loop(Section):
    """The outer loop: sample, label, train, again and again."""

    rounds: int = Field(default=1, description="How often answers are sampled from the newest policy and compared.", ge=1)


class Hack(Section):
    """The gold reward, measured beside the proxy that ppo and grpo optimize, so that reward hacking shows."""

    gold: str = Field(default="", description="Text: a utility in judges/known.py that answers are measured by; control: see control.gold.")
    then: Literal["nothing", "stop", "back", "mend"] = Field(
        default="nothing", description="At the alarm: go on; end the training; also go back to where gold was best; also mend the reward."
    )
    checks: int = Field(
        default=0, description="Text without gold: at an alarm, ask so many comparisons at most with the best checkpoint; 0: none.", ge=0
    )
    kl: float = Field(
        default=0.05,
        description="mend: weight of the KL in the round after an alarm (verifiers: from then on), unless grpo.kl or ppo.kl is higher.",
        ge=0,
        allow_inf_nan=False,
    )
    pessimism: float = Field(
        default=1.0,
        description="mend: train.pessimism in the round after an alarm (verifiers: from then on), unless that is higher.",
        ge=0,
        allow_inf_nan=False,
    )

    @property
    def compares(self) -> bool:
        """Whether an alarm needs an earlier policy."""
        return self.goes_back or self.checks > 0

    @property
    def goes_back(self) -> bool:
        """Whether an alarm takes a training back to where gold was best."""
        return self.then in ("back", "mend")


class Log(Section):
    """Where metrics go beside metrics.jsonl."""

    tensorboard: bool = Field(default=False, description="Write TensorBoard files too (needs the package tensorboard).")
    wandb: str = Field(default="", description="Weights & Biases project to log to (needs the package wandb); empty: none.")


class Config(Section):
    """A whole run."""

    run: Run = Field(default_factory=Run)
    model: Model = Field(default_factory=Model)
    data: Annotated[Data, MattersTo("ppo", "grpo", "zeroth", "sample")] = Field(default_factory=Data)
    sample: Sample = Field(default_factory=Sample)
    judge: Judge = Field(default_factory=Judge)
    train: ForLearners[Train] = Field(default_factory=Train)
    dpo: Annotated[DPOSettings, MattersTo("dpo", "zeroth")] = Field(default_factory=DPOSettings)
    kto: Annotated[KTOSettings, MattersTo("kto")] = Field(default_factory=KTOSettings)
    ppo: Annotated[PPOSettings, MattersTo("ppo")] = Field(default_factory=PPOSettings)
    grpo: Annotated[GRPOSettings, MattersTo("grpo")] = Field(default_factory=GRPOSettings)
    sb3: Annotated[OffPolicySettings, MattersTo(*OFF_POLICY)] = Field(default_factory=OffPolicySettings)
    verify: Annotated[Verify, MattersTo("ppo", "grpo", "eval")] = Field(default_factory=Verify)
    zeroth: Annotated[ZerothSettings, MattersTo("zeroth")] = Field(default_factory=ZerothSettings)
    control: ForLearnersAndSampling[Control] = Field(default_factory=Control)
    query: ForLearnersAndSampling[Query] = Field(default_factory=Query)
    reward: Annotated[Reward, MattersTo("reward")] = Field(default_factory=Reward)
    eval: ForEval[Eval] = Field(default_factory=Eval)
    loop: Free[Loop] = Field(default_factory=Loop)
    scale: Free[Scale] = Field(default_factory=Scale)
    hack: Free[Hack] = Field(default_factory=Hack)
    log: Free[Log] = Field(default_factory=Log)

    @model_validator(mode="after")
    def _networks(self) -> Self:
        self.control.check_networks(self.train.learner, self.query.exploration, self.reward.dynamics, self.reward.kind)
        return self

    @model_validator(mode="after")
    def _off_policy(self) -> Self:
        c, learner = self.control, self.train.learner
        if learner not in OFF_POLICY:
            return self
        if not c.env:
            raise ValueError(f'train.learner = "{learner}" learns in an environment, and control.env is empty; set it, or take another')
        self.sb3.check(c.envs, c.rollout_segment, c.policy_steps(self.train.steps, self.loop.rounds))
        return self

    @model_validator(mode="after")
    def _restart(self) -> Self:
        if self.control.restart and self.hack.goes_back:
            raise ValueError(
                f'hack.then = "{self.hack.then}" may go back to where a round began, and with control.restart that is an untrained policy;'
                ' set hack.then to "stop", or control.restart to false'
            )
        return self

    @model_validator(mode="after")
    def _pessimism(self) -> Self:
        t, r = self.train, self.reward
        if t.pessimism and t.learner in REWARDED:
            if t.reward not in ("labels", "model"):
                raise ValueError(f'train.pessimism takes something off a learned reward, and train.reward is "{t.reward}"; set it to 0')
            if t.reward == "labels" and r.kind == "lora" and r.members < 2:
                raise ValueError("train.pessimism goes by how much members differ; set reward.members to 3, or reward.kind to head")
        return self

    @property
    def folder(self) -> Path:
        """The run's own folder."""
        return Path(self.run.folder) / self.run.name

    @property
    def store(self) -> str:
        """Where the run's store is."""
        return self.run.store or str(self.folder / "store.db")
