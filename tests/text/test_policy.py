from pathlib import Path

import numpy as np
import pytest
import torch

from rather.core import UNUSED, Task, Trajectory
from rather.errors import DataError
from rather.text import load, lora, transformer
from rather.text.critic import TextCritic
from rather.text.engine import Sampling
from rather.text.language_model import TextSampler
from rather.text.packing import pack
from rather.text.policy import TextPolicy
from rather.text.reward_model import RewardModel
from rather.text.transformer import TokenLogprobs

CPU = torch.device("cpu")


@pytest.fixture
def policy(tiny: Path) -> TextPolicy:
    return load.policy(tiny, CPU, torch.float32, False, 1.0)


def answers(prompts: tuple[str, ...] = ("ab", "cde", "ab", "f"), texts: tuple[str, ...] = ("xyz", "q", "uvwxyz", "")) -> list[Trajectory]:
    return [Trajectory(Task("f", p, p), "p", t, terminated=i != 1) for i, (p, t) in enumerate(zip(prompts, texts, strict=True))]


def test_collate_shapes_and_groups(policy: TextPolicy) -> None:
    batch = policy.collate(answers())
    # "uvwxyz" and its end are seven tokens; the second answer was cut off and has no end; the empty one is its end alone
    assert batch.mask.sum(-1).tolist() == [4, 1, 7, 1]
    assert batch.groups.tolist() == [0, 1, 0, 2]
    assert batch.terminated.tolist() == [True, False, True, True]
    assert batch.actions[3, 0] == policy.tokens.end


def test_sampled_tokens_are_kept_exactly(policy: TextPolicy) -> None:
    odd = Trajectory(Task("f", "1", "a"), "p", "xy", True, observations=np.array([9, 8]), actions=np.array([50, 51, 52]))
    batch = policy.collate([odd])
    assert batch.observations.tolist() == [[9, 8]]
    assert batch.actions.tolist() == [[50, 51, 52]]


def test_sampler_and_learner_agree_so_the_first_ratio_is_one(policy: TextPolicy) -> None:
    lora.add(policy.model, "policy", 4, 8.0, seed=0)
    adapted = TextPolicy(policy.model, policy.tokens, "policy")
    with torch.no_grad():
        for p in lora.parameters(policy.model, "policy"):
            p.add_(0.1 * torch.randn(p.shape, generator=torch.Generator().manual_seed(1)))
    tasks = [Task("f", p, p) for p in ("ab", "cde", "ab", "f")]
    batch = adapted.collate(TextSampler(adapted, Sampling(12)).sample(tasks, seed=0))
    with torch.no_grad():
        found = adapted.evaluate(batch)[0]
        base = policy.evaluate(batch)[0]
    torch.testing.assert_close(found, batch.logprobs, atol=1e-5, rtol=0)
    assert (found - base).abs().max() > 1e-2, "the adapter is at work, and the reference is without it"


def test_padding_micro_batches_and_packing_change_no_logprob(policy: TextPolicy) -> None:
    rows = answers()
    whole = policy.evaluate(policy.collate(rows))
    for i, row in enumerate(rows):
        alone = policy.evaluate(policy.collate([row]))
        for part, all_rows in zip(alone, whole, strict=True):
            torch.testing.assert_close(all_rows[i, : part.shape[1]], part[0], atol=1e-5, rtol=0)
            assert (all_rows[i, part.shape[1] :] == 0).all()
    parts = [policy.evaluate(policy.collate(rows).select(slice(i, i + 2)))[0] for i in (0, 2)]
    torch.testing.assert_close(torch.cat(parts), whole[0], atol=1e-5, rtol=0)


def test_uneven_lengths_cost_what_their_tokens_cost(policy: TextPolicy) -> None:
    """Log-normal lengths: every token that the model is given is one that is needed."""
    lengths = np.exp(np.random.default_rng(0).normal(2.5, 0.6, 12)).astype(int)
    prompts = [np.arange(5, 8 + i % 3) for i in range(len(lengths))]
    rows = [
        Trajectory(Task("f", str(i % 3), "x"), "p", "", observations=p, actions=np.arange(n) % 40 + 5)
        for i, (p, n) in enumerate(zip(prompts, lengths, strict=True))
    ]
    given: list[int] = []
    handle = policy.model.register_forward_pre_hook(lambda _, inputs: given.append(len(inputs[0])))
    policy.evaluate(policy.collate(rows))
    handle.remove()
    assert max(lengths) > 3 * min(lengths)
    distinct = 3 + 1 + 2  # what all prompts begin with, and what two of them go on with; their last tokens are counted, too
    assert given == [distinct + sum(lengths)]


def test_checkpointing_keeps_less_and_gives_the_same_gradients(tiny: Path) -> None:
    found, kept = [], []
    for checkpointing in (False, True):
        policy = load.policy(tiny, CPU, torch.float32, True, 1.0)
        policy.model.checkpointing = checkpointing
        sizes: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, into=sizes: (into.append(t.numel()), t)[1], lambda t: t):
            logprobs, _ = policy.evaluate(policy.collate(answers()))
        logprobs.sum().backward()
        kept.append(sum(sizes))
        found.append([logprobs, *(p.grad for p in policy.model.parameters())])
    torch.testing.assert_close(found[1], found[0], atol=0, rtol=0)
    assert kept[1] < kept[0] / 2


@pytest.mark.parametrize("checkpointing", [True, False])
def test_logits_are_made_in_chunks_and_once_unless_blocks_are_checkpointed(
    policy: TextPolicy, checkpointing: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    inner = transformer.linear

    def measuring(x, weight):
        sizes.extend([len(x)] * (len(weight) == policy.model.shape.vocabulary))
        return inner(x, weight)

    monkeypatch.setattr(transformer, "linear", measuring)
    monkeypatch.setattr(TokenLogprobs, "CHUNK", 3)
    monkeypatch.setattr(policy.model, "checkpointing", checkpointing)
    policy.model.requires_grad_()
    policy.evaluate(policy.collate(answers()))[0].sum().backward()
    assert sizes == [3, 3, 3, 3, 1] * (1 + checkpointing)


def test_a_prompt_longer_than_the_context(policy: TextPolicy) -> None:
    long = [Task("f", "7", "x" * 250)]
    with pytest.raises(DataError, match=r"prompt '7': 252 tokens leave no room for 10 of answer in the model's context of 256"):
        TextSampler(policy, Sampling(10)).sample(long, 0)
    with pytest.raises(DataError, match="the model's context is 256"):
        policy.collate([Trajectory(long[0], "p", "y" * 20)])


def test_plain_and_conversational_prompts(policy: TextPolicy) -> None:
    messages = [{"role": "user", "content": "ab"}]
    assert policy.tokens.encode_prompt("ab") == policy.tokens.encode_prompt(messages)
    plain = load.Tokens(policy.tokens.tokenizer, chat=False)
    assert plain.encode_prompt("ab") == policy.tokens.encode_prompt("ab")[1:-1]


def test_an_answer_has_one_end(policy: TextPolicy) -> None:
    said = policy.tokens.encode("q", "ab")[1]
    assert said.count(policy.tokens.end) == 1
    assert policy.tokens.encode("q", "ab", terminated=False)[1] == said[:-1]
    assert policy.tokens.decode(said, "q") == "ab"


def test_the_token_that_ends_an_answer_is_none_of_its_words_whether_or_not_it_is_called_special(policy: TextPolicy) -> None:
    ordinary = {i for i in range(len(policy.tokens.tokenizer)) if i not in policy.tokens.special}
    policy.tokens.stop = frozenset(sorted(ordinary)[::3])
    sampled = TextSampler(policy, Sampling(12)).sample([Task("f", p, p) for p in ("ab", "cde", "ab", "f")], seed=0)
    ended = [t for t in sampled if t.terminated and len(t.actions) > 1]
    assert ended
    for t in ended:
        assert t.text == policy.tokens.decode(t.actions[:-1].tolist(), t.task.prompt)
        assert t.text != policy.tokens.decode(t.actions.tolist(), t.task.prompt)


def test_reward_scores_do_not_depend_on_the_batch(policy: TextPolicy) -> None:
    model = RewardModel(policy, members=3, seed=0, parameters=[])
    rows = answers()
    batch = model.collate(rows)
    scores = model.scores(batch)
    assert scores.shape == (3, 4)
    for i, row in enumerate(rows):
        torch.testing.assert_close(scores[:, i : i + 1], model.scores(model.collate([row])), atol=1e-5, rtol=0)
    rewards = model.rewards(batch)
    torch.testing.assert_close((rewards * batch.mask).sum(-1), scores.mean(0))
    assert ((rewards != 0).sum(-1) == 1).all(), "one reward an answer, on its last token"


def test_reward_model_to_disk_and_back(tiny: Path, tmp_path: Path) -> None:
    def build() -> RewardModel:
        adapted, _ = load.with_adapter(load.policy(tiny, CPU, torch.float32, False, 1.0), "reward", 4, 8.0, 0)
        return RewardModel(adapted, 2, seed=1, parameters=[])

    model = build()
    with torch.no_grad():
        for p in (*lora.parameters(model.body.model, "reward"), model.heads):
            p.add_(torch.randn_like(p))
    model.save(tmp_path / "saved")
    other = build()
    other.restore(tmp_path / "saved")
    batch = model.collate(answers())
    assert torch.equal(model.scores(batch), other.scores(batch))


@pytest.mark.parametrize("blocks", [0, 1])
def test_a_reward_model_beside_its_base_gives_what_both_give_alone_and_shares_the_blocks_below_its_adapter(tiny: Path, blocks: int) -> None:
    start = load.policy(tiny, CPU, torch.float32, False, 1.0)
    body, parameters = load.with_adapter(start, "reward", 4, 8.0, 0, blocks)
    model, batch = RewardModel(body, 2, seed=1, parameters=[]), start.collate(answers())
    passes = []
    with torch.no_grad():
        for p in parameters:
            p.normal_(generator=torch.Generator().manual_seed(0))
        alone = model.rewards(batch), *start.look(batch)
        for block in start.model.blocks:
            block.register_forward_hook(lambda block, *_: passes.append(block.index))
        together = model.beside(start, batch)
    assert all(torch.equal(a, b) for a, b in zip(together, alone, strict=True))
    assert sorted(passes) == ([0, 1, 1] if blocks else [0, 0, 1, 1])
    other = load.policy(tiny, CPU, torch.float32, False, 1.0)
    with torch.no_grad():
        assert torch.equal(model.beside(other, batch)[0], alone[0]), "a reference of its own shares nothing"
    assert len(passes) == (5 if blocks else 6)


def test_bfloat16_is_close_to_float32(tiny: Path) -> None:
    rows = answers()
    exact, rough = (load.policy(tiny, CPU, dtype, False, 1.0) for dtype in (torch.float32, torch.bfloat16))
    found = rough.evaluate(rough.collate(rows))[0]
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, exact.evaluate(exact.collate(rows))[0], atol=2e-2, rtol=0)


def test_a_reference_is_looked_at_once_for_its_logprobs_and_for_every_state_of_an_answer(tiny: Path) -> None:
    policy = load.policy(tiny, CPU, torch.float32, False, 0.7)
    tasks = [Task("t", str(i), p) for i, p in enumerate(("one two", "three"))]
    batch = policy.collate([Trajectory(t, "p", text) for t, text in zip(tasks, ("abc", "longer"), strict=True)])
    logprobs, states = policy.look(batch)
    torch.testing.assert_close(logprobs, policy.evaluate(batch)[0])
    critic = TextCritic(policy.width, CPU, seed=0)
    with torch.no_grad():
        critic.head.normal_(generator=torch.Generator().manual_seed(0))
    values = critic.values(states)
    assert values.shape == (2, batch.mask.shape[1] + 1)
    for row in range(2):  # alone, and state by state: V(s) is the critic on the last token of the text so far
        n = int(batch.mask[row].sum())
        prompt = batch.observations[row][batch.observations[row] != UNUSED]
        for t in range(n + 1):
            ids = torch.cat([prompt, batch.actions[row, :t]])
            alone = pack([ids[:-1]], [ids[-1:]], torch.float32)
            hidden = policy.model(alone.ids, alone.positions, alone, None, alone.after[0])
            torch.testing.assert_close(values[row, t], critic.values(hidden[None])[0, 0])
        assert (values[row, n + 1 :] == 0).all()
