"""`rather api`: language models behind the API that OpenAI's clients speak."""

import asyncio
import json
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

from fastapi import Depends, FastAPI, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Receive, Scope, Send

from rather.core import Prompt, Task, row_seed
from rather.errors import ConfigError, DataError, ModelError, RatherError
from rather.judges.best_of import Score, ranked
from rather.store import Store, recorded
from rather.text import engine
from rather.text.policy import TextPolicy
from rather.text.prompts.streaming import Words
from rather.text.sampling import Sampling
from rather.text.serving import BusyError, Piece, Worker
from rather.text.tokens import Tokens
from rather.web.completions import Answer, Answered, ChatRequest, Preference, TextRequest
from rather.web.limits import Server
from rather.web.serve import is_loopback, listen, not_in_the_clear, on

KEYS = "RATHER_API_KEYS"
"""The environment variable that holds the keys."""
CONNECTIONS = 2000
"""Of one program, at a time: beyond the requests that may wait it gets status 429, and is not dropped."""
LONGEST_BODY, BYTES_A_TOKEN = 2**20, 32
"""A request has so many bytes at most, or so many for each token of the context: a longer one fits in no context, but keeps all waiting."""
MOST_TOKENS = 16
"""How long what follows a text is, where the request does not say it."""


class Served:
    """The policies of one model by their names, and the worker that lets them answer.

    `adapters` are those on the same model beside the policy's own: the names that requests use, and those on the model. With a `store`
    what is answered is kept there, for the run called `run`. With a `score` a request gets the best of `best_of` answers, or of as many as
    it says.
    """

    def __init__(
        self,
        name: str,
        policy: TextPolicy,
        adapters: Mapping[str, str],
        rows: int,
        waiting: int,
        store: Store | None = None,
        run: str = "",
        score: Score | None = None,
        best_of: int = 1,
    ) -> None:
        self.store, self.run, self.score, self.best_of = store, run, score, best_of
        self._scoring = asyncio.Lock()
        self.names, self.policy, self.context = [name, *adapters], policy, policy.context
        self.tokens = policy.tokens
        self.plain = Tokens(self.tokens.tokenizer, False, tuple(self.tokens.stop))
        """For texts that are no conversations."""
        self._waiting = dict[int, Waiting]()
        self._loop: asyncio.AbstractEventLoop | None = None
        self.worker = Worker(policy, self._deliver, rows, waiting, [*adapters.values()])

    def start(self) -> None:
        """Begin to answer, for whoever waits in this event loop."""
        self._loop = asyncio.get_running_loop()
        self.worker.start()

    def ask(self, requests: Sequence[engine.Request], whole: bool) -> "Waiting":
        """Have requests answered; `whole` ones come in one piece each, which takes a server with two cores a fifth less time.

        Raises:
            BusyError: too many wait.
            ModelError: the worker has failed.
        """
        keys = self.worker.submit(requests, whole)
        waiting = Waiting(self, keys)
        self._waiting |= dict.fromkeys(keys, waiting)
        return waiting

    def candidates(self, asked: ChatRequest | TextRequest) -> int:
        """How many answers are drawn to each prompt, of which the best `n` are given.

        Raises:
            DataError: nothing here says which is the best, or it would not see all that the model does.
        """
        count = asked.best_of or max(asked.n, 1 if asked.temperature == 0 else self.best_of)
        if count > asked.n and self.score is None:
            raise DataError(f"best_of is {count}, but this server has no reward to choose by; start it with --reward")
        if count > asked.n and isinstance(asked, ChatRequest) and asked.tools:
            raise DataError(f"the reward that chooses the best of {count} answers does not see tools; set best_of to {asked.n}, which is n")
        return count

    async def best(self, drawn: Sequence[Answer], count: int, n: int) -> list[Answer]:
        """The `n` answers with the highest rewards of each `count`, the best first; all where there is nothing to choose."""
        if count == n or self.score is None:
            return [*drawn]
        async with self._scoring:  # one after the other, which bounds memory
            rewards = await run_in_threadpool(self.score, [a.trajectory("api") for a in drawn])
        found = [drawn[start + i] for start in range(0, len(drawn), count) for i in ranked(rewards[start : start + count])[:n]]
        for index, answer in enumerate(found):
            answer.index = index
        return found

    async def record(self, written: Answered, answers: Sequence[Answer]) -> None:
        """Keep answers, if they are to be kept."""
        if self.store is not None:
            named = [(written.name(a), a.trajectory(f"api:{written.request.model}")) for a in answers]
            await run_in_threadpool(recorded.record, self.store, self.run, named, written.tools)

    def forget(self, keys: Collection[int]) -> None:
        """Answers that nobody waits for any more."""
        for key in keys:
            self._waiting.pop(key, None)

    def _deliver(self, pieces: list[Piece]) -> None:
        assert self._loop is not None
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._hand_out, pieces)

    def _hand_out(self, pieces: list[Piece]) -> None:
        if not pieces:  # the worker has failed
            for waiting in self._waiting.values():
                waiting.queue.put_nowait(None)
        for piece in pieces:
            if piece.key in self._waiting:
                self._waiting[piece.key].queue.put_nowait(piece)


class Waiting:
    """The answers that one request waits for, by their places in it."""

    def __init__(self, served: Served, keys: Sequence[int]) -> None:
        self.served, self.queue = served, asyncio.Queue[Piece | None]()
        self.places = {key: i for i, key in enumerate(keys)}

    async def pieces(self, answers: Sequence[Answer]) -> AsyncIterator[tuple[Answer, Piece, str]]:
        """Each piece, with the answer that it is of and the words that are new, until all answers are finished.

        Raises:
            ModelError: the worker has failed.
        """
        while self.places:
            piece = await self.queue.get()
            if piece is None:
                raise ModelError(f"the model has failed: {self.served.worker.failure}")
            if piece.key in self.places:
                answer = answers[self.places[piece.key]]
                words = answer.take(piece)
                if answer.finish:
                    del self.places[piece.key]
                    self.served.forget([piece.key])
                    if not piece.finish:  # a stop has ended it
                        self.served.worker.cancel([piece.key])
                yield answer, piece, words

    def close(self) -> None:
        """Free the rows of what is not finished."""
        self.served.forget(self.places)
        self.served.worker.cancel([*self.places])


class Stream(StreamingResponse):
    """A stream whose rows are freed when whoever asked has gone, even before it began."""

    def __init__(self, lines: AsyncIterator[str], waiting: Waiting) -> None:
        super().__init__(lines, media_type="text/event-stream")
        self.waiting = waiting

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self.waiting.close()


class Bounded:
    """ASGI middleware that refuses requests whose bodies are too long, or do not say how long they are."""

    def __init__(self, app: ASGIApp, longest: int) -> None:
        self.app, self.longest = app, longest

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on."""
        if scope["type"] == "http":
            headers = dict(scope["headers"])
            length = headers.get(b"content-length", b"0")
            if b"transfer-encoding" in headers or not length.isdigit() or int(length) > self.longest:
                words = f"the request is too long; {self.longest} bytes are allowed, and their number must be said beforehand"
                await _error(413, words, headers={"Connection": "close"})(scope, receive, send)
                return
        await self.app(scope, receive, send)


def create(served: Served, keys: Sequence[str] = ()) -> FastAPI:
    """The app; with `keys` a request has to show one of them."""

    @asynccontextmanager
    async def running(_: FastAPI) -> AsyncIterator[None]:
        served.start()
        yield
        served.worker.close()

    longest = max(LONGEST_BODY, BYTES_A_TOKEN * served.context)
    app = FastAPI(title="rather", docs_url=None, redoc_url=None, lifespan=running)

    def allowed(request: Request) -> None:
        scheme, _, shown = request.headers.get("authorization", "").partition(" ")
        if keys and not (scheme.lower() == "bearer" and any(secrets.compare_digest(shown.encode(), key.encode()) for key in keys)):
            raise HTTPException(401, "this server wants a key; send it as Authorization: Bearer KEY")

    @app.exception_handler(RequestValidationError)
    def not_understood(_: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"] if part != "body")
        return _error(400, f"{where}: {first['msg']}" if where else first["msg"], where or None)

    @app.exception_handler(HTTPException)
    def refused(_: Request, error: HTTPException) -> Response:
        return _error(error.status_code, str(error.detail))

    @app.exception_handler(BusyError)
    def busy(_: Request, error: BusyError) -> Response:
        return _error(429, str(error), headers={"Retry-After": "1"})

    @app.exception_handler(DataError)
    def cannot_be_read(_: Request, error: DataError) -> Response:
        return _error(400, str(error))

    @app.exception_handler(RatherError)
    def fails(_: Request, error: RatherError) -> Response:
        return _error(500, str(error))

    app.add_middleware(Bounded, longest)
    everybody = [Depends(allowed)]

    @app.get("/v1/models", dependencies=everybody)
    def models() -> dict[str, Any]:
        """The models that can be asked: the policy, and each adapter beside it."""
        return {"object": "list", "data": [_model(name) for name in served.names]}

    @app.get("/v1/models/{name:path}", dependencies=everybody)
    def model(name: str) -> dict[str, Any]:
        """One of them."""
        _number(served, name)
        return _model(name)

    @app.post("/v1/chat/completions", dependencies=everybody, response_model=None)
    async def chat(request: Request, asked: ChatRequest) -> Response:
        """Answers to a conversation."""
        ids = served.tokens.encode_prompt(asked.messages, asked.tools)
        most = asked.max_completion_tokens or asked.max_tokens or max(1, served.context - len(ids))
        return await _answer(served, request, asked, [(asked.messages, ids)], most, served.tokens)

    @app.post("/v1/completions", dependencies=everybody, response_model=None)
    async def complete(request: Request, asked: TextRequest) -> Response:
        """What follows one text, or each of several."""
        texts = [asked.prompt] if isinstance(asked.prompt, str) else asked.prompt
        prompts: list[tuple[Prompt, list[int]]] = [(text, served.plain.encode_prompt(text)) for text in texts]
        return await _answer(served, request, asked, prompts, asked.max_tokens or MOST_TOKENS, served.plain)

    @app.post("/v1/preferences", dependencies=everybody)
    def preferences(said: Preference) -> dict[str, Any]:
        """Keep which of several recorded answers is better; they are named "ID/INDEX" after the answer's id and the choice's index."""
        if served.store is None:
            raise HTTPException(404, "this server keeps no answers; start it with --record STORE")
        rejected = [said.rejected] if isinstance(said.rejected, str) else said.rejected
        label = recorded.prefer(served.store, served.run, said.chosen, rejected, said.judge, said.tie, said.reason)
        return {"object": "preference", "id": label}

    return app


def server(
    served: Served, keys: Sequence[str], host: str, port: int, certificate: str = "", key: str = "", insecure: bool = False
) -> tuple[Server, str]:
    """The server, which listens already but answers when it is run, and its URL.

    Raises:
        ConfigError: others could use the model without a key, answers would travel in the clear, or it cannot listen there.
    """
    if not insecure:
        not_in_the_clear(host, bool(certificate), "", False)
    if not keys and not is_loopback(host):
        raise ConfigError(f"{host} can be reached from other machines; name the keys that may use the model in {KEYS}, comma between")
    listener, at = listen(host, port, bool(certificate), each=CONNECTIONS)
    return on(listener, create(served, keys), certificate, key), at


async def _answer(
    served: Served, request: Request, asked: ChatRequest | TextRequest, prompts: list[tuple[Prompt, list[int]]], most: int, tokens: Tokens
) -> Response:
    policy = _number(served, asked.model)
    for _, ids in prompts:
        if len(ids) + most > served.context:
            raise DataError(
                f"the prompt has {len(ids)} tokens and the answer may have {most}, but the model sees {served.context}; send less, or set"
                " max_tokens lower"
            )
    seed = secrets.randbits(62) if asked.seed is None else asked.seed
    sampling = Sampling(most, asked.temperature, asked.top_p, asked.top_k, asked.min_p)
    requests, answers, count = list[engine.Request](), list[Answer](), served.candidates(asked)
    for number, (prompt, ids) in enumerate(prompts):
        for i in range(count):
            requests.append(engine.Request(tuple(ids), row_seed(seed, Task("api", str(number)), i), policy, sampling))
            answers.append(Answer(len(answers), prompt, ids, Words(tokens, prompt), asked.stop))
    if len(requests) > served.worker.most:
        raise DataError(f"{len(requests)} answers are asked for at once, but {served.worker.most} may wait (--waiting); ask for fewer")
    written = Answered(asked, tokens, sum(len(ids) for _, ids in prompts))
    whole = count > asked.n or not asked.stream
    waiting = served.ask(requests, whole and not asked.stop)

    async def given() -> list[Answer]:
        best = await served.best(answers, count, asked.n)
        await served.record(written, best)
        return best

    if asked.stream:
        return Stream(_lines(written, answers, waiting, given, whole), waiting)
    gone = asyncio.ensure_future(_gone(request))
    coming = asyncio.ensure_future(_all(answers, waiting))
    try:
        await asyncio.wait({gone, coming}, return_when=asyncio.FIRST_COMPLETED)
        if not coming.done():
            return Response(status_code=499)  # which nobody reads
        coming.result()
    finally:
        gone.cancel()
        coming.cancel()
        waiting.close()
    return JSONResponse(written.whole(await given(), answers))


async def _all(answers: Sequence[Answer], waiting: Waiting) -> None:
    async for _ in waiting.pieces(answers):
        pass


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _lines(
    written: Answered, drawn: Sequence[Answer], waiting: Waiting, given: Callable[[], Awaitable[list[Answer]]], whole: bool
) -> AsyncIterator[str]:
    """The events of a stream; with `whole` each answer comes in one piece, after all are drawn and the best are known."""
    try:
        for chunk in [] if whole else written.opening(drawn):
            yield _event(chunk)
        async for answer, piece, words in waiting.pieces(drawn):
            if not whole and (words or answer.finish or written.logprobs_wanted):
                yield _event(written.chunk(answer, piece, words))
        answers = await given()
        if whole:
            for chunk in written.opening(answers):
                yield _event(chunk)
            for answer in answers:
                yield _event(written.chunk(answer, Piece(answer.index, answer.tokens, answer.logprobs), answer.text))
        if written.usage_wanted:
            yield _event(written.closing(drawn))
        yield "data: [DONE]\n\n"
    except RatherError as e:  # the status has been sent
        yield _event(_described(500, str(e)))


def _event(value: Mapping[str, Any]) -> str:
    return f"data: {json.dumps(value, ensure_ascii=False)}\n\n"


def _number(served: Served, name: str) -> int:
    if name not in served.names:
        raise HTTPException(404, f"there is no model {name!r} here; there are: {', '.join(served.names)}")
    return served.names.index(name)


def _model(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 0, "owned_by": "rather"}


def _error(status: int, message: str, param: str | None = None, headers: Mapping[str, str] | None = None) -> Response:
    return JSONResponse(_described(status, message, param), status, headers)


def _described(status: int, message: str, param: str | None = None) -> dict[str, Any]:
    kinds = {401: "authentication_error", 429: "rate_limit_error", 500: "server_error"}
    codes = {401: "invalid_api_key", 404: "model_not_found"}
    return {"error": {"message": message, "type": kinds.get(status, "invalid_request_error"), "param": param, "code": codes.get(status)}}
