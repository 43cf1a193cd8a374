import threading
from pathlib import Path

import pytest
import torch

from rather.errors import ModelError
from rather.text import load, lora
from rather.text.engine import Request, generate
from rather.text.policy import TextPolicy
from rather.text.prompts.streaming import Words
from rather.text.sampling import Sampling
from rather.text.serving import BusyError, Piece, Worker

CPU = torch.device("cpu")


@pytest.fixture
def policy(tiny: Path) -> TextPolicy:
    return load.policy(tiny, CPU, torch.float32, False, 1.0)


class Client:
    """Collects what a worker delivers."""

    def __init__(self) -> None:
        self.pieces: dict[int, list[Piece]] = {}
        self.changed = threading.Condition()
        self.steps = 0

    def __call__(self, pieces: list[Piece]) -> None:
        with self.changed:
            self.steps += 1
            for piece in pieces:
                self.pieces.setdefault(piece.key, []).append(piece)
            self.changed.notify_all()

    def wait(self, keys: list[int]) -> list[tuple[list[int], list[float], str]]:
        with self.changed:
            assert self.changed.wait_for(lambda: all(self.pieces.get(k, [None])[-1] and self.pieces[k][-1].finish for k in keys), 60)
        whole = [self.pieces[k] for k in keys]
        return [([t for p in w for t in p.tokens], [x for p in w for x in p.logprobs], w[-1].finish) for w in whole]


def adapter(model, name: str, seed: int) -> str:
    for p in lora.add(model, name, 3, 5.0, 0):
        p.data = 0.3 * torch.randn(p.shape, generator=torch.Generator().manual_seed(seed))
    return name


def test_what_is_served_is_what_is_generated_whoever_else_asks(policy: TextPolicy) -> None:
    kinds = [Sampling(9), Sampling(5, 0.0), Sampling(12, 0.7, top_k=5), Sampling(7, 1.3, top_p=0.8)]
    requests = [Request(tuple(range(3, 4 + i)), i, sampling=kinds[i % 4]) for i in range(9)]
    client = Client()
    worker = Worker(policy, client, rows=3, waiting=9)
    worker.start()
    whole, pieces = worker.submit(requests[::2], whole=True), worker.submit(requests[1::2])
    found = client.wait([*whole, *pieces])
    worker.close()
    assert {len(client.pieces[key]) for key in whole} == {1}
    assert max(len(client.pieces[key]) for key in pieces) > 3
    assert not worker.whole
    for request, (tokens, logprobs, finish) in zip([*requests[::2], *requests[1::2]], found, strict=True):
        assert request.sampling is not None
        (alone,) = generate(policy.model, [Request(request.prompt, request.seed)], request.sampling, policy.tokens.stop)
        assert tokens == alone.tokens
        assert logprobs == pytest.approx(alone.logprobs, abs=1e-5)
        assert finish == ("stop" if alone.terminated else "length")


def test_several_adapters_answer_in_one_pass_as_each_does_alone(policy: TextPolicy) -> None:
    names = [adapter(policy.model, f"a{i}", i) for i in range(2)]
    client = Client()
    worker = Worker(policy, client, rows=6, adapters=names)
    worker.start()
    requests = [Request((5, 6, 7), seed, which, Sampling(10)) for seed in range(2) for which in range(3)]
    found = client.wait(worker.submit(requests))
    worker.close()
    for request, (tokens, logprobs, _) in zip(requests, found, strict=True):
        own = [None, *names][request.policy]
        (alone,) = generate(policy.model, [Request(request.prompt, request.seed)], Sampling(10), policy.tokens.stop, own)
        assert tokens == alone.tokens
        assert logprobs == pytest.approx(alone.logprobs, abs=1e-5)
    assert len({tuple(tokens) for tokens, _, _ in found}) > 3, "they differ"


def test_a_row_of_someone_who_has_gone_is_free_again(policy: TextPolicy) -> None:
    client = Client()
    worker = Worker(policy, client, rows=1, waiting=2)
    worker.start()
    (first,) = worker.submit([Request((4, 5), 1, sampling=Sampling(40))])
    with client.changed:
        assert client.changed.wait_for(lambda: first in client.pieces, 60)
    second, third = worker.submit([Request((6,), 2, sampling=Sampling(3)), Request((7,), 3, sampling=Sampling(3))])
    with pytest.raises(BusyError, match="2 requests wait, and 2 may"):
        worker.submit([Request((8,), 4)])
    worker.cancel([first, second])
    client.wait([third])
    worker.close()
    assert not client.pieces[first][-1].finish
    assert second not in client.pieces


def test_a_worker_that_fails_says_so_to_everybody(policy: TextPolicy, monkeypatch: pytest.MonkeyPatch) -> None:
    client = Client()
    monkeypatch.setattr(threading, "excepthook", lambda _: None)
    worker = Worker(policy, client, rows=1)
    worker.start()
    worker.submit([Request((10**6,), 1, sampling=Sampling(3))])  # a token that the model has not
    worker.join(60)
    assert not worker.is_alive()
    assert client.steps == 1
    assert not client.pieces, "an empty delivery says that it has failed"
    with pytest.raises(ModelError, match="the model has failed"):
        worker.submit([Request((4,), 1)])


def test_an_answer_streams_as_it_is_generated(policy: TextPolicy) -> None:
    for seed in range(5):
        (whole,) = generate(policy.model, [Request((4, 5, 6), seed)], Sampling(20), policy.tokens.stop)
        assert list(policy.stream(Request((4, 5, 6), seed), Sampling(20))) == whole.tokens
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("prompt", ["Hi", [{"role": "user", "content": "Hi"}]])
@pytest.mark.parametrize("text", ["An apple. ", "naïve 😀👩‍👩‍👧 日本語\n\n  x", " lead", ""])
def test_words_come_as_they_are_decoded(smollm2: Path, prompt, text: str) -> None:
    from rather.text.tokens import Tokens

    tokens = Tokens.load(smollm2)
    ids = tokens.encode(prompt, text, terminated=False)[1] if text else []
    for step in (1, 2, 5):
        words = Words(tokens, prompt)
        pieces = [words.add(ids[i : i + step]) for i in range(0, len(ids), step)]
        assert "\ufffd" not in "".join(pieces)
        assert "".join([*pieces, words.end()]) == tokens.decode(ids, prompt) == text
    broken = tokens.tokenizer("😀", add_special_tokens=False)["input_ids"][:-1]  # cut within a character
    words = Words(tokens, prompt)
    assert "".join([*map(words.add, [[i] for i in broken]), words.end()]) == tokens.decode(broken, prompt)
