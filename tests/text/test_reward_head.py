"""The reward head on tiny random models: its states beside those of `transformers`, its cache, and that it learns and comes back."""

import json
import sqlite3
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import rather as library
from rather.core import UNUSED, Comparison, RewardModel, Task, Trajectory
from rather.errors import ConfigError, ModelError, StoreError, TrainingError
from rather.judges.model import ModelJudge
from rather.learners.ppo import LooksBeside
from rather.learners.saved_head import FACTS
from rather.text import load
from rather.text.head import states
from rather.text.head.model import RewardHead
from rather.text.policy import TextPolicy

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def base(tiny: Path) -> TextPolicy:
    return load.policy(tiny, CPU, torch.float32, False, 1.0)


def answer(text: str, prompt: Any = "say", key: str = "0") -> Trajectory:
    return Trajectory(Task("f", key, prompt), "p", text)


def comparisons(n: int, seed: int = 0) -> list[Comparison]:
    """Answers of a's and b's; the one with more a's is preferred."""
    chance, found = np.random.default_rng(seed), []
    for i in range(n):
        words = ["".join("a" if x < q else "b" for x in chance.random(8)) for q in chance.random(2)]
        a, b = (w.count("a") for w in words)
        sides = [(answer(w, f"prompt {i % 5}", str(i)),) for w in words]
        found.append(Comparison(*sides, preference=0.5 if a == b else float(a > b), key=str(i), judge="me"))
    return found


def test_states_are_those_of_transformers(family: tuple[Any, Path]) -> None:
    """After each block and, normed, after the last; two answers share their prompt, and a third has another."""
    reference, folder = family
    model = TextPolicy(load.weights.load(folder, torch.float32), None)  # type: ignore[arg-type]
    prompts, answers = [[1, 2, 3], [1, 2, 3], [4, 5]], [[6, 7, 8, 9], [10], [11, 12, 13]]
    pad = torch.nn.utils.rnn.pad_sequence
    rows = [pad([torch.tensor(x) for x in each], batch_first=True, padding_value=UNUSED) for each in (prompts, answers)]
    batch = library.core.Batch(*rows, *[torch.empty(0)] * 5)  # type: ignore[attr-defined]
    found = states.states(model, batch, [1, 2])
    for i, (prompt, said) in enumerate(zip(prompts, answers, strict=True)):
        with torch.no_grad():
            every = reference(torch.tensor([prompt + said]), output_hidden_states=True).hidden_states
        own = [x[0, len(prompt) :].float() for x in every[1:]]
        expected = torch.stack([part for x in own for part in (x[-1], x.mean(0))])
        if reference.config.model_type == "granite":  # which divides the last states by logits_scaling where we make logits
            expected[2:] /= 1.5
        torch.testing.assert_close(found[i], expected, atol=2e-4, rtol=1e-4)


def test_what_transformers_computes_has_the_same_states(tiny: Path, base: TextPolicy) -> None:
    from transformers import AutoModelForCausalLM

    from rather.text.foreign import ForeignPolicy

    foreign = ForeignPolicy(AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32), base.tokens)
    ts = [answer("good"), answer("a longer one"), answer("x", [{"role": "user", "content": "hm"}])]
    found = [states.states(model, model.collate(ts), [1, 2]) for model in (base, foreign)]
    torch.testing.assert_close(*found, atol=1e-4, rtol=1e-4)
    assert RewardHead(foreign).fit(comparisons(20)).score("say", ["aaaa", "bbbb"])[0] > 0


def test_it_learns_what_is_preferred_and_is_sure_of_what_it_knows(base: TextPolicy) -> None:
    head = library.RewardHead(base, layers=[1, 2]).fit(comparisons(60))
    assert isinstance(head, RewardModel)
    unseen = [c for c in comparisons(200, 1) if c.preference != 0.5]
    right = (head.probabilities(unseen) > 0.5) == np.array([c.preference == 1 for c in unseen])
    assert right.mean() > 0.85
    good, bad = head.score("prompt 1", ["aaaaaaaa", "bbbbbbbb"])
    assert good > bad + 0.5
    _, known = head.differences(unseen)
    _, odd = head.differences([Comparison((answer("?!"),), (answer("0 0"),))])
    assert odd > known.max()


def test_scores_rewards_and_judgments_agree(base: TextPolicy) -> None:
    head = RewardHead(base, layers=[1, 2]).fit(comparisons(40))
    ts = [answer("aab"), answer("b"), answer("abab", "another")]
    batch = head.collate(ts)
    scores = head.scores(batch)
    mean, covariance = head.believed(ts)
    assert scores.shape == (1, 3)
    assert scores[0].numpy() == pytest.approx(mean, abs=1e-5)
    rewards = head.rewards(batch)
    assert rewards.sum(-1).numpy() == pytest.approx(mean, abs=1e-5)
    assert [int(x) for x in rewards.ne(0).sum(-1)] == [1, 1, 1]
    pair = Comparison((ts[0],), (ts[1],))
    difference, variance = head.differences([pair])
    assert difference == pytest.approx([mean[0] - mean[1]])
    assert variance == pytest.approx([covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1]], rel=1e-4)
    assert ModelJudge("head", head).judge([pair]) == pytest.approx([1 / (1 + np.exp(-difference[0]))], abs=1e-5)
    two = head.sides([Comparison((ts[0], ts[1]), (ts[2],))])
    assert two[0, 0] == pytest.approx(head.features(ts[:2]).mean(0)), "a side of several trajectories is their mean"


@pytest.mark.parametrize("members", [1, 3])
def test_a_reward_model_starts_as_a_head_on_the_last_token(base: TextPolicy, tmp_path: Path, members: int) -> None:
    pairs = comparisons(40)
    model = library.RewardModel(base, members).start_from_head(pairs, cache=tmp_path / "features.db")
    head = RewardHead(base, members, layers=[states.depth(base)])
    head.groups = (0,)
    head.learn(pairs)
    batch = model.collate([t for c in pairs for t in (*c.a, *c.b)])
    ours, theirs = model.scores(batch), head.scores(batch)
    torch.testing.assert_close(ours - ours[:, :1], theirs - theirs[:, :1], atol=1e-4, rtol=1e-3)
    assert accuracy_of(model, pairs) > 0.9, "before a step"
    assert accuracy_of(library.RewardModel(base, members), pairs) < 0.9
    assert accuracy_of(model.fit(pairs, epochs=1, lr=1e-3), pairs) > 0.9
    model.tail = [1]
    with pytest.raises(ConfigError, match="has learned to score already"):
        model.start_from_head(pairs)


def accuracy_of(model: RewardModel, pairs: list[Comparison]) -> float:
    """The share of the pairs that have a better side which are scored so."""
    sure = [c for c in pairs if c.preference != 0.5]
    with torch.no_grad():
        a, b = model.scores(model.collate([t for side in ("a", "b") for c in sure for t in getattr(c, side)])).mean(0).view(2, -1)
    return float(((a > b) == torch.tensor([c.preference > 0.5 for c in sure])).float().mean())  # type: ignore[operator]


def test_members_are_drawn_from_the_posterior(base: TextPolicy) -> None:
    one, several = (RewardHead(base, k, layers=[2]).fit(comparisons(40)) for k in (1, 400))
    ts = [answer("aab"), answer("b")]
    scores = several.scores(several.collate(ts)).numpy()
    mean, covariance = one.believed(ts)
    assert scores.mean(0) == pytest.approx(mean, abs=1e-4)
    assert np.cov(scores.T) == pytest.approx(covariance, rel=0.4)
    drawn = one.sampled(ts, 3, 400)
    assert np.cov(drawn.T) == pytest.approx(covariance, rel=0.4)
    assert np.array_equal(drawn, one.sampled(ts, 3, 400))
    assert not np.array_equal(drawn, one.sampled(ts, 4, 400))


def test_one_more_answer_gives_what_a_cold_fit_gives(base: TextPolicy) -> None:
    """Where the choice is made anew, at 32 labels, and where it stays."""
    every = comparisons(33)
    other = [replace(every[0], preference=1 - (every[0].preference or 0)), *every[1:]]
    warm = RewardHead(base, layers=[2])
    for some in (every[:30], every[:31], every[:32], every, other):
        found, cold = warm.learn(some), RewardHead(base, layers=[2]).learn(some)
        assert found.choice.first == (16 if len(some) < 32 else 32)
        assert found.posterior.w == pytest.approx(cold.posterior.w, abs=1e-6)


def test_one_more_answer_reads_that_alone(base: TextPolicy, monkeypatch: pytest.MonkeyPatch) -> None:
    """Comparisons that say the same are known again, whatever object they are; from the first that differs on they are read."""
    every, head, read = comparisons(40), RewardHead(base, layers=[2]), list[int]()
    head.learn(every[:36])
    sides = head.sides
    monkeypatch.setattr(head, "sides", lambda some: read.append(len(some)) or sides(some))
    head.learn([replace(c) for c in every[:37]])
    head.learn([*every[:33], every[38], *every[33:37]])
    head.learn([*every[:33], replace(every[38], judge="another"), *every[33:37]])
    assert read == [1, 5, 32, 38], "with another judge the choice is made anew"
    longer = replace(every[37].a[0], text=f"{every[37].a[0].text} b")
    found = head.learn([*every[:37], replace(every[37], a=(longer,))])
    cold = RewardHead(base, layers=[2]).learn([*every[:37], replace(every[37], a=(longer,))])
    assert found.posterior.w == pytest.approx(cold.posterior.w, abs=1e-6)


def test_it_comes_back_from_disk_as_it_was(base: TextPolicy, tiny: Path, tmp_path: Path) -> None:
    pairs = comparisons(40)
    head = RewardHead(base, 3, 5, layers=[1, 2]).fit([replace(c, judge=f"judge {i % 2}") for i, c in enumerate(pairs)])
    head.save(tmp_path)
    for again in (RewardHead.load(tmp_path, base), RewardHead.load(tmp_path, dtype="float32")):
        assert again.score("say", ["aab", "b"]) == pytest.approx(head.score("say", ["aab", "b"]), abs=1e-6)
        assert again.believed([pairs[0].a[0]])[1] == pytest.approx(head.believed([pairs[0].a[0]])[1], rel=1e-5)
        assert again.learned.temperatures() == head.learned.temperatures()
        assert again.members == 3
    assert again.learn([*pairs, *comparisons(3, 7)]).posterior.w == pytest.approx(
        RewardHead(base, 3, 5, layers=[1, 2]).learn([*pairs, *comparisons(3, 7)]).posterior.w, abs=1e-6
    )
    with torch.no_grad():
        changed = load.policy(tiny, CPU, torch.float32, False, 1.0)
        changed.model.blocks[0].down.weight += 0.01  # type: ignore[union-attr]
    with pytest.raises(ModelError, match="is of another model than this one"):
        RewardHead.load(tmp_path, changed)
    with pytest.raises(ModelError, match=r"reads layers \[1, 2\], not \[2\]"):
        RewardHead(base, layers=[2]).restore(tmp_path)
    (tmp_path / FACTS).write_text("{")
    with pytest.raises(ModelError, match="holds no reward head"):
        RewardHead.load(tmp_path, base)


def test_the_cache_is_read_by_the_same_model_alone(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base, path, ts = load.policy(tiny, CPU, torch.float32, False, 1.0), tmp_path / "deep" / "features.db", [answer("aab"), answer("b")]
    passes: list[int] = []
    compute = states.states
    monkeypatch.setattr(states, "states", lambda policy, batch, layers: passes.append(len(batch)) or compute(policy, batch, layers))
    first = RewardHead(base, layers=[1, 2], cache=path).features([*ts, ts[0]])
    assert passes == [2], "an answer that comes twice is read once"
    assert np.array_equal(first[0], first[2])
    again = RewardHead(base, layers=[1, 2], cache=path)
    assert np.array_equal(again.features(ts), first[:2])
    assert passes == [2], "another process finds them there"
    again.features([answer("aab", "another prompt"), replace(ts[0], terminated=False)])
    assert passes == [2, 2]
    assert not np.array_equal(RewardHead(base, layers=[2], cache=path).features(ts), first[:2, 2:]) or passes[2:] == [2]
    with torch.no_grad():
        base.model.blocks[0].down.weight += 0.01  # type: ignore[union-attr]
    changed = RewardHead(base, layers=[1, 2], cache=path).features(ts)
    assert passes == [2, 2, 2, 2], "of a changed model nothing is there"
    assert np.abs(changed - first[:2]).max() > 1e-4
    assert sqlite3.connect(path).execute("select count(distinct base) from features").fetchone() == (3,)


def test_a_policy_that_learns_on_the_same_weights_does_not_change_the_digest(base: TextPolicy) -> None:
    before = states.digest(base, [1])
    policy, parameters = load.with_adapter(base, "policy", 4, 8.0, 0)
    assert states.digest(base, [1]) == before
    own = states.digest(policy, [1])
    assert own != before
    with torch.no_grad():
        parameters[1].add_(0.01)
    assert states.digest(policy, [1]) != own
    assert states.digest(base, [2]) != before


@pytest.mark.parametrize("bits", [4, 8])
def test_quantized_weights_are_in_the_digest(tiny: Path, bits: int) -> None:
    base = load.policy(tiny, CPU, torch.float32, False, 1.0, bits=bits)  # type: ignore[arg-type]
    before = states.digest(base, [1])
    base.model.blocks[1].down.held.scales.mul_(1.01)  # type: ignore[union-attr]
    assert states.digest(base, [1]) != before


def test_one_judge_who_errs_half_the_time(base: TextPolicy) -> None:
    chance = np.random.default_rng(0)
    pairs = [replace(c, judge="careful") for c in comparisons(60)]
    noise = [replace(c, judge="random", preference=float(chance.integers(2))) for c in comparisons(60, 1)]
    head = RewardHead(base, layers=[2]).fit([c for both in zip(pairs, noise, strict=True) for c in both])
    temperatures = head.learned.temperatures()
    assert temperatures["random"] > 5 * temperatures["careful"]
    assert not RewardHead(base, layers=[2]).fit(pairs + noise, temperatures=False).learned.temperatures()


def test_few_labels_and_odd_ones(base: TextPolicy) -> None:
    one = comparisons(1)[0]
    head = RewardHead(base, layers=[1, 2])
    single = head.learn([replace(one, preference=1.0)])
    assert head.probabilities([one]) > 0.5
    assert head.probabilities([one]) < 0.95, "one label does not make it sure"
    ties = head.learn([replace(c, preference=0.5) for c in comparisons(30)])
    assert np.abs(ties.posterior.w).max() < 1e-6
    assert single.choice.first == 1
    twice = [c for c in comparisons(10) for _ in (0, 1)]
    assert head.learn(twice).metrics()["comparisons"] == 20


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        (lambda m, p: RewardHead(m).fit([]), TrainingError, "^the reward head has no labels to learn from"),
        (lambda m, p: RewardHead(m).score("q", ["a"]), TrainingError, "^the reward head has learned nothing yet"),
        (lambda m, p: RewardHead(m).score("q", "a"), ConfigError, "^answers is one text"),
        (lambda m, p: RewardHead(m, members=0), ConfigError, "^RewardHead: members is 0"),
        (lambda m, p: RewardHead(m, layers=[2, 1]), ModelError, r"^layers is \[2, 1\]; give rising numbers of blocks from 1 to 2"),
        (lambda m, p: RewardHead(m, layers=[3]), ModelError, r"^layers is \[3\]"),
        (lambda m, p: RewardHead(m, layers=[]), ModelError, r"^layers is \[\]"),
        (lambda m, p: RewardHead(m, cache=p).features([answer("a")]), StoreError, "^the cache of features .* cannot be used .*delete it"),
        (lambda m, p: RewardHead.load(p.parent, m), ModelError, "holds no reward head"),
    ],
)
def test_bad_input_is_one_sentence(base: TextPolicy, tmp_path: Path, wrong: Any, error: type, message: str) -> None:
    path = tmp_path / "file.db"
    path.write_text("this is no database, but a file of some length, which SQLite will refuse to open as one")
    with pytest.raises(error, match=message) as e:
        wrong(base, path)
    assert "\n" not in str(e.value)


def test_states_that_are_not_finite_are_refused_by_name(tiny: Path) -> None:
    base = load.policy(tiny, CPU, torch.float32, False, 1.0)
    with torch.no_grad():
        base.model.embedding.weight[base.tokens.encode_prompt("?")[1]] = torch.inf
    with pytest.raises(TrainingError, match="states of an answer to prompt 'odd one' are not finite"):
        RewardHead(base).features([answer("fine"), answer("?", "say", "odd one")])


def test_features_of_another_size_are_refused(base: TextPolicy, tmp_path: Path) -> None:
    head = RewardHead(base, layers=[2], cache=tmp_path / "f.db")
    head.features([answer("a")])
    connection = sqlite3.connect(tmp_path / "f.db")
    connection.execute("update features set value = x'00000000'")
    connection.commit()
    with pytest.raises(StoreError, match="holds features of another size"):
        RewardHead(base, layers=[2], cache=tmp_path / "f.db").features([answer("a")])


def test_ppo_and_grpo_are_paid_by_it(base: TextPolicy) -> None:
    head = RewardHead(base, layers=[1, 2]).fit(comparisons(40))
    shape: dict[str, Any] = {"batch_size": 4, "steps": 1, "max_tokens": 4}
    (ppo,) = library.PPO(base, ["a", "b", "c", "d"], reward=head, rollout_batch_size=4, **shape)
    assert np.isfinite(ppo["score"])
    (grpo,) = library.GRPO(base, ["a", "b"], reward=head, group_size=2, **{**shape, "batch_size": 2})
    assert np.isfinite(grpo["score"])


def test_a_training_writes_its_metrics_and_goes_on(base: TextPolicy, tmp_path: Path) -> None:
    pairs = comparisons(40)
    head = RewardHead(base, layers=[1, 2]).fit(pairs, eval=comparisons(30, 3), folder=tmp_path)
    (row,) = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert row["eval_accuracy"] > 0.8
    assert row["loss"] < 0.5
    again = RewardHead(base, layers=[1, 2]).fit(pairs, folder=tmp_path)
    assert np.array_equal(again.learned.posterior.w, head.learned.posterior.w)


@pytest.mark.parametrize("layers", [[1], [1, 2], [2]])
def test_beside_its_own_model_a_head_needs_no_pass_of_its_own(base: TextPolicy, tiny: Path, layers: list[int]) -> None:
    """As PPO asks, whose reference is the base model; a reference of its own shares nothing."""
    head = RewardHead(base, layers=layers).fit(comparisons(20))
    assert isinstance(head, LooksBeside)
    batch = base.collate([answer("abab"), answer("b"), answer("aab", "other", "1")])
    with torch.no_grad():
        alone = head.rewards(batch), *base.look(batch)
        passes, hooks = [], [block.register_forward_hook(lambda block, *_: passes.append(block.index)) for block in base.model.blocks]
        together = head.beside(base, batch)
        assert sorted(passes) == [0, 1]
        other = load.policy(tiny, CPU, torch.float32, False, 1.0)
        apart = head.beside(other, batch)
        assert len(passes) == 2 + max(layers)
    for hook in hooks:
        hook.remove()
    for x, y, z in zip(alone, together, apart, strict=True):
        torch.testing.assert_close(x, y, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(x, z, atol=1e-5, rtol=1e-5)
