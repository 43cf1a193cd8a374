"""A language model that answers many requests at once: each joins as soon as there is a row for it ("continuous batching").

Shape letters: P policies.
"""

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from rather.errors import ModelError
from rather.text import lora
from rather.text.decoder import Several
from rather.text.engine import Drawing, Generation, Request, Rows
from rather.text.linear import packed
from rather.text.policy import TextPolicy
from rather.text.sampling import Sampling


@dataclass(frozen=True)
class Piece:
    """What has been drawn for request `key` since its last piece; `finish` is "stop" or "length" with the last one."""

    key: int
    tokens: list[int]
    logprobs: list[float]
    finish: str = ""


Deliver = Callable[[list[Piece]], None]


class BusyError(ModelError):
    """As many requests wait as may."""


class Worker(threading.Thread):
    """Answers requests in a thread of its own, `rows` at a time, while at most `waiting` others wait for a row.

    The policies are that of `policy` and those of the `adapters` on the same model; `Request.policy` counts them in that order. `deliver`
    is called in the worker's thread after each step, with a piece of each answer at work; of those that are wanted `whole` there is one
    piece, when they are finished. Where the worker fails, it is called with nothing, and `failure` says why.

    Raises:
        ModelError: there are adapters beside a steering vector.
    """

    def __init__(self, policy: TextPolicy, deliver: Deliver, rows: int = 32, waiting: int = 256, adapters: Sequence[str] = ()) -> None:
        if adapters and policy.beside:
            raise ModelError("a model with a steering vector cannot be served beside adapters; serve it alone, or merge it first")
        super().__init__(name="rather-worker", daemon=True)
        self.policy, self.deliver, self.size, self.most, self.adapters = policy, deliver, rows, waiting, adapters
        self.waiting, self.cancelled, self.whole = dict[int, Request](), set[int](), set[int]()
        self.changed = threading.Condition()
        self.failure: BaseException | None = None
        self.closed, self._next = False, 0

    def submit(self, requests: Sequence[Request], whole: bool = False) -> list[int]:
        """Have requests answered, all or none, each in pieces or `whole`; returns their keys.

        Raises:
            BusyError: too many wait.
            ModelError: the worker has failed.
        """
        with self.changed:
            if self.failure is not None:
                raise ModelError(f"the model has failed ({self.failure}); start the server again")
            if len(self.waiting) + len(requests) > self.most:
                raise BusyError(f"{len(self.waiting)} requests wait, and {self.most} may; try again")
            keys = [self._next + i for i in range(len(requests))]
            self._next += len(requests)
            self.waiting.update(zip(keys, requests, strict=True))
            self.whole.update(keys if whole else ())
            self.changed.notify()
        return keys

    def cancel(self, keys: Sequence[int]) -> None:
        """Nobody waits for these any more: their rows are freed."""
        with self.changed:
            self.cancelled.update(key for key in keys if self.waiting.pop(key, None) is None)
            self.whole.difference_update(keys)
            self.changed.notify()

    def close(self) -> None:
        """End when the step at work is done."""
        with self.changed:
            self.closed = True
            self.changed.notify()
        self.join()

    def run(self) -> None:
        """Answer what comes, until `close`."""
        try:
            self._serve()
        except BaseException as e:
            with self.changed:
                self.failure = e
            self.deliver([])
            raise

    @torch.no_grad()
    def _serve(self) -> None:
        model, adapter, several = self.policy.model, *self._policies()
        with packed(model, model.dtype):
            rows = Rows(model, self.size, Sampling(self.policy.context), adapter, several)
            generation = Generation(rows, self.policy.tokens.stop)
            while (joining := self._joining(generation)) is not None:
                at = {d.key: len(d.tokens) for d in generation.drawing if d.key not in self.whole}
                finished = generation.join(joining) if joining else generation.go()
                moved = {d.key: d for d in (*finished, *generation.drawing) if d.finished or d.key not in self.whole}
                self.whole.difference_update(d.key for d in finished)
                if pieces := [piece for d in moved.values() if (piece := _piece(d, at.get(d.key, 0))).tokens]:
                    self.deliver(pieces)

    def _joining(self, generation: Generation) -> dict[int, Request] | None:
        """The requests that there are rows for, when there is anything to do; None at the end."""
        with self.changed:
            while True:
                generation.leave(self.cancelled)
                self.cancelled.clear()
                if self.closed:
                    return None
                if self.waiting or generation.drawing:
                    break
                self.changed.wait()
            keys = list(self.waiting)[: generation.free]
            return {key: self.waiting.pop(key) for key in keys}

    def _policies(self) -> tuple[str | None, Several | None]:
        own = self.policy
        if not self.adapters:
            return own.adapter, own.space.several([None]) if own.beside else None
        return None, Several(updates=lora.together(own.model, [own.adapter, *self.adapters]))


def _piece(drawing: Drawing, since: int) -> Piece:
    how = "stop" if drawing.ended else "length"
    return Piece(drawing.key, drawing.tokens[since:], drawing.logprobs[since:], how if drawing.finished else "")
