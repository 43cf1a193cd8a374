"""SURF: cuts, pseudo-labels, what they are cut from, and that all of it is the same when a fit goes on."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given
from torch import nn

from rather import control
from rather.config import toml
from rather.control import surf
from rather.control.environments import environment
from rather.control.models import collate
from rather.control.rollout import piece
from rather.core import Batch, Comparison, Task, Trajectory
from rather.errors import ConfigError, DataError
from rather.learners.reward_settings import SURFSettings
from test_control_run import RUN
from test_going_on import go, last, rows, stop


def trajectory(observations: list[float], key: str = "0") -> Trajectory:
    """One that shows these, the last one after its end, and acts by numbers from 0 on."""
    steps = len(observations) - 1
    arrays = {"observations": np.array(observations, np.float32)[:, None], "actions": np.arange(steps, dtype=np.float32)[:, None]}
    return Trajectory(Task("e", key), "p", logprobs=np.zeros(steps, np.float32), rewards=np.zeros(steps, np.float32), **arrays)


def shown(t: Trajectory) -> list[float]:
    assert t.observations is not None
    return t.observations[:, 0].tolist()


class Weighed(nn.Module):
    """Members whose reward is each a weight times what is shown."""

    def __init__(self, *weights: float) -> None:
        super().__init__()
        self.members = len(weights)
        self.weights = nn.Parameter(torch.tensor(weights))

    def collate(self, trajectories: Any) -> Batch:
        return collate(trajectories)

    def scores(self, batch: Batch) -> torch.Tensor:
        total = (batch.observations[:, : batch.mask.shape[1], 0] * batch.mask).sum(-1)
        return self.weights[:, None] * total


def test_a_cut_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 8 steps at least a half: 4, 5, 6, 7 or 8, of which 0.5 draws the third; 6 steps begin at 0, 1 or 2, of 9 steps at 0 to 3."""
    chances = {"crop/5/q": 0.5, "crop/5/q/a0": 0.0, "crop/5/q/b0": 0.99}
    monkeypatch.setattr(surf, "drawn", lambda seed, name: chances[name] if seed == 3 else None)
    asked = Comparison((trajectory([*range(9)]),), (trajectory([*range(10, 20)]),), 1.0, "q")
    cut = surf.cropped(asked, 0.5, 3, "5/q")
    assert shown(cut.a[0]) == [0, 1, 2, 3, 4, 5, 6]
    assert shown(cut.b[0]) == [13, 14, 15, 16, 17, 18, 19]
    assert cut.b[0].actions[:, 0].tolist() == [3, 4, 5, 6, 7, 8]  # type: ignore[index]
    assert (cut.preference, cut.key) == (1.0, "q")
    assert surf.cropped(asked, 1.0, 3, "5/q") is asked


@given(st.integers(1, 9), st.integers(1, 9), st.floats(0.01, 1.0), st.integers(0, 99))
def test_cuts_are_of_one_length_within_their_fragments(one: int, other: int, least: float, step: int) -> None:
    asked = Comparison((trajectory([*range(one + 1)]),), (trajectory([*range(other + 1)]),), 1.0, "q")
    cut = surf.cropped(asked, least, 0, f"{step}/q")
    if least < 1:
        assert max(1, least * min(one, other)) <= len(shown(cut.a[0])) - 1 == len(shown(cut.b[0])) - 1 <= min(one, other)
    for t, was in ((cut.a[0], one), (cut.b[0], other)):
        assert shown(t) == [*range(int(shown(t)[0]), int(shown(t)[-1]) + 1)]
        assert shown(t)[-1] <= was


def test_cuts_differ_from_step_to_step_and_reach_both_ends() -> None:
    asked = Comparison((trajectory([*range(5)]),), (trajectory([*range(5)]),), 1.0, "q")
    found = {tuple(shown(surf.cropped(asked, 0.75, 0, f"{step}/q").a[0])) for step in range(60)}
    assert found == {(0, 1, 2, 3), (1, 2, 3, 4), (0, 1, 2, 3, 4)}


def test_pseudo_labels_of_a_hand_made_ensemble() -> None:
    """Sums of 6 and 0: members say sigmoid(6) = 0.9975 and sigmoid(3) = 0.9526, 0.975 in the mean. Of 12 and 0: 0.99999 and 0.9975."""
    six, twelve, none = (trajectory([value, 9.0]) for value in (6.0, 12.0, 0.0))
    pairs = [Comparison((six,), (none,)), Comparison((twelve,), (none,)), Comparison((none,), (twelve,)), Comparison((none,), (none,))]
    model = Weighed(1.0, 0.5)
    assert [c.preference for c in surf.pseudo_labeled(model, pairs, 0.99, 4)] == [None, 1.0, 0.0, None]  # type: ignore[arg-type]
    assert surf.pseudo_labeled(model, pairs[:1], 0.98, 4)[0].preference is None, "their mean logit would say 0.989"  # type: ignore[arg-type]
    assert [c.preference for c in surf.pseudo_labeled(model, pairs, 0.97, 4)] == [1.0, 1.0, 0.0, None]  # type: ignore[arg-type]


def learner(model: nn.Module, comparisons: list[Comparison], pool: list[Trajectory], **settings: Any) -> surf.SURF:
    how = {"batch_size": 2, "lr": 0.1, "schedule": "constant", "center": 0.0, "steps": 6, "max_grad_norm": 1e9}
    s = SURFSettings(**settings)
    return surf.SURF(model, comparisons, [*model.parameters()], s, lambda _: pool, **how)  # type: ignore[arg-type]


@pytest.mark.parametrize("tokens", [1, 2**16])
def test_the_loss_of_pseudo_labels_by_hand(tokens: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Labels: two ties of 2 and 1, each of loss (log(1 + e) + log(1 + 1/e)) / 2 and gradient (sigmoid(1) - 0.5).

    Pairs of 3 and -3: sigmoid(6) = 0.9975, loss log(1 + e^-6), gradient -6 sigmoid(-6); of 3 and 3, or -3 and -3, one half.
    """
    ties = [Comparison((trajectory([2.0, 0.0]),), (trajectory([1.0, 0.0]),), 0.5, str(i)) for i in range(2)]
    of = learner(Weighed(1.0), ties, [trajectory([3.0, 0.0]), trajectory([-3.0, 0.0])], pseudo_labels=8, pseudo_weight=0.5)
    of.how = of.how.model_copy(update={"micro_batch_tokens": tokens})
    gradients = list[float]()
    monkeypatch.setattr(of.stepper.optimizer, "step", lambda: gradients.append(of.stepper.parameters[0].grad.item()))  # type: ignore[union-attr]
    found = of.step()
    share = found["pseudo_labels"]
    assert 0.2 < share < 0.8
    tie = (math.log1p(math.e) + math.log1p(1 / math.e)) / 2
    assert found["loss"] == pytest.approx(tie + 0.5 * share * math.log1p(math.exp(-6)), abs=1e-6)
    sigmoid = 1 / (1 + math.exp(-1))
    assert gradients == pytest.approx([sigmoid - 0.5 - 0.5 * share * 6 / (1 + math.exp(6))], abs=1e-6)


def test_a_fit_that_goes_on_is_the_one_that_was_not_stopped() -> None:
    chance = np.random.default_rng(0)
    asked = [
        Comparison((trajectory(chance.normal(size=9).tolist()),), (trajectory(chance.normal(size=9).tolist()),), float(i % 2), str(i))
        for i in range(5)
    ]
    pool = [trajectory(chance.normal(size=30).tolist()) for _ in range(4)]
    settings = {"crop": 0.5, "pseudo_labels": 3, "confidence": 0.5}
    whole = learner(Weighed(0.1, 0.2), asked, pool, **settings)
    before = [whole.step() for _ in range(3)]
    weights, state = whole.model.weights.detach().clone(), whole.state_dict()  # type: ignore[attr-defined]
    state = {**state, "stepper": json_of(state["stepper"])}
    rest = [whole.step() for _ in range(3)]
    again = learner(Weighed(0.0, 0.0), asked, pool, **settings)
    again.load_state_dict(state)
    again.model.weights.data.copy_(weights)  # type: ignore[attr-defined]
    assert [again.step() for _ in range(3)] == rest
    assert torch.equal(again.model.weights, whole.model.weights)  # type: ignore[attr-defined]
    assert before[0]["pseudo_labels"] == 1.0


def test_a_learner_cuts_otherwise_in_each_step() -> None:
    asked = [Comparison((trajectory([*range(9)]),), (trajectory([*range(9)]),), 1.0, "q", "ann")]
    of = learner(Weighed(1.0), asked, [], crop=0.5)
    cuts = list[list[list[float]]]()
    for step in range(6):
        (cut,) = of.batch([0])
        cuts.append([shown(cut.a[0]), shown(cut.b[0])])
        expected = surf.cropped(asked[0], 0.5, 0, f"{step}/q/ann")
        assert cuts[-1] == [shown(expected.a[0]), shown(expected.b[0])]
        of.step()
    assert len({str(cut) for cut in cuts}) > 3


def json_of(state: dict[str, Any]) -> dict[str, Any]:
    """A copy, which later steps leave alone."""
    moments = [{name: x.clone() for name, x in kept.items()} for kept in state["moments"]]
    return {"steps": state["steps"], "moments": moments}


def test_unlabeled_fragments_are_as_long_as_those_that_were_compared() -> None:
    pool = [trajectory([*range(100, 103)]), trajectory([*range(200, 204)]), trajectory([300.0, 301.0])]
    asked = [Comparison((trajectory([1.0, 2.0, 3.0]),), (trajectory([1.0, 2.0, 3.0]),), 1.0, "q")]
    of = learner(Weighed(1.0), asked, pool, pseudo_labels=1)
    pairs = [of.pair(0, str(i)) for i in range(60)]
    assert {tuple(shown(t)) for c in pairs for t in (*c.a, *c.b)} == {(100, 101, 102), (200, 201, 202), (201, 202, 203)}
    with pytest.raises(DataError, match="unlabeled trajectories have at most 1 steps, and sides of comparisons 2; give longer ones"):
        learner(Weighed(1.0), asked, pool[2:], pseudo_labels=1)


def test_what_leads_to_fragments_is_played_again() -> None:
    """Of two fragments of one episode the later one says more; of a whole episode nothing is missing."""
    one, two = control.rollouts("Pendulum-v1", 2)
    asked = [Comparison((piece(one, 3, 4),), (piece(one, 50, 10),), 1.0, "0"), Comparison((two,), (piece(one, 20, 10),), 1.0, "1")]
    found = surf.Lead(lambda: environment("Pendulum-v1", None))(asked)
    assert [len(t.actions) for t in found] == [60, 200]  # type: ignore[arg-type]
    assert found[1] is two
    np.testing.assert_allclose(found[0].observations, one.observations[:61], atol=1e-6)  # type: ignore[index]
    np.testing.assert_array_equal(found[0].actions, one.actions[:60])  # type: ignore[index]
    assert piece(piece(one, 10, 20), 5, 3).before.shape[0] == 15  # type: ignore[union-attr]
    other = replace(piece(one, 50, 10), task=Task("Pendulum-v1", "77"))
    with pytest.raises(DataError, match="differs from the record at step 0 of seed 77"):
        surf.Lead(lambda: environment("Pendulum-v1", None))([Comparison((other,), (two,), 1.0, "2")])


def test_comparisons_that_come_later_have_unlabeled_fragments_of_their_own_length() -> None:
    asked = [Comparison((trajectory([*range(n + 1)]),), (trajectory([*range(n + 1)]),), 1.0, str(n)) for n in (2, 3)]
    pool = [trajectory([*range(100, 103)])]
    of = learner(Weighed(1.0), asked[:1], pool, pseudo_labels=1)
    pool.append(trajectory([*range(200, 204)]))  # what is unlabeled may grow, too
    of.follow(asked)
    assert {tuple(shown(t)) for i in range(20) for c in [of.pair(1, str(i))] for t in (*c.a, *c.b)} == {(200, 201, 202, 203)}
    assert "pseudo_labels" in of.step()


def test_two_policies_that_began_from_one_reset_seed_are_played_again_each() -> None:
    agents = [control.PPO("Pendulum-v1", envs=1, seed=seed) for seed in (0, 1)]
    one, two = (replace(agent.rollouts(1, seed=7)[0], policy=f"round-{i}") for i, agent in enumerate(agents))
    assert one.task == two.task
    found = surf.Lead(lambda: environment("Pendulum-v1", None))([Comparison((piece(one, 15, 5),), (piece(two, 10, 10),), 1.0, "0")])
    assert [t.policy for t in found] == ["round-0", "round-1"]
    for t, episode in zip(found, (one, two), strict=True):
        np.testing.assert_array_equal(t.actions, episode.actions[:20])  # type: ignore[index]
        np.testing.assert_allclose(t.observations, episode.observations[:21], atol=1e-6)  # type: ignore[index]


def test_pseudo_labels_from_python() -> None:
    episodes = control.rollouts("Pendulum-v1", 6)
    asked = control.compare([piece(t, 0, 20) for t in episodes], lambda a, b: "a")
    heard = []
    small = {"members": 2, "hidden": (8,), "epochs": 4, "batch_size": 3}
    model = control.RewardModel(
        "Pendulum-v1", pseudo_labels=2, confidence=0.5, crop=0.75, callbacks=[lambda s, m: heard.append(m)], **small
    )
    model.fit(asked, unlabeled=episodes)
    assert [m["pseudo_labels"] for m in heard][1:] == [1.0] * 3, "rewards begin at 0, where nobody is sure"
    with pytest.raises(ConfigError, match="pseudo_labels is 2, and nothing is unlabeled; give trajectories as unlabeled"):
        model.fit(asked)
    with pytest.raises(ConfigError, match="unlabeled trajectories are learned from by pseudo_labels and dynamics; set one"):
        control.RewardModel("Pendulum-v1", **small).fit(asked, unlabeled=episodes)


def test_a_run_with_surf_goes_on_exactly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "run.toml").write_text(RUN)
    loaded = toml.load(tmp_path / "run.toml", [])
    parts = [(part, getattr(loaded, part).model_dump(exclude_defaults=True)) for part in ("query", "control", "train")]
    known = [f"{part}.{key}={json.dumps(value)}" for part, values in parts for key, value in values.items()]
    judge = 'judge.panel=[{ name = "expert", utility = "total_reward", temperature = 0.01 }]'
    reward = [
        "reward.members=2",
        "reward.epochs=4",
        "reward.batch_size=4",
        "reward.crop=0.75",
        "reward.pseudo_labels=2",
        "reward.confidence=0.6",
    ]
    known = [*known, judge, *reward, "reward.lr=0.1", "train.learner=reward", "train.steps=0", f"run.folder={tmp_path}"]
    for name in ("whole", "stopped"):
        go(known, f"run.name={name}").sample()
        go(known, f"run.name={name}").label()
    go(known, "run.name=whole").train()
    stop(go(known, "run.name=stopped"), 3, monkeypatch)
    go(known, "run.name=stopped").train()
    assert rows(go(known, "run.name=stopped")) == rows(go(known, "run.name=whole"))
    assert max(row["pseudo_labels"] for row in rows(go(known, "run.name=whole"))) > 0
    assert last(go(known, "run.name=stopped"))["files"] == last(go(known, "run.name=whole"))["files"]


@pytest.mark.parametrize(("name", "default", "value"), [("confidence", 0.99, 0.9), ("pseudo_weight", 1, 0.5)])
def test_what_is_of_pseudo_labels_is_refused_without_them(name: str, default: float, value: float) -> None:
    said = f"{name} = {value} is of pseudo-labels, and pseudo_labels is 0; set it to 4, or {name} to {default}$"
    with pytest.raises(ConfigError, match=f"^control.RewardModel: {said}"):
        control.RewardModel("Pendulum-v1", **{name: value})  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=f"reward: {said}"):
        toml.load(None, [f"reward.{name}={value}"])
    assert getattr(toml.load(None, [f"reward.{name}={value}", "reward.pseudo_labels=1"]).reward, name) == value


@pytest.mark.parametrize(("setting", "plain"), [("crop=0.75", 1), ("pseudo_labels=4", 0), ("dynamics=0.5", 0)])
def test_a_run_about_text_has_no_fragments(setting: str, plain: int) -> None:
    name, _, value = setting.partition("=")
    with pytest.raises(
        ConfigError, match=f"reward.{name} = {value} is of fragments of episodes, and the run is about text; leave it at {plain}"
    ):
        go([f"reward.{setting}"])
