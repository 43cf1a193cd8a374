"""`rather panel`: simulated judges who answer over HTTP, exactly as browsers do; for tests, for load and for teaching."""

import threading
import time
import uuid
from collections.abc import Callable, Sequence
from urllib.parse import urlsplit

import httpx
import numpy as np

from rather.core import Comparison, Task, Trajectory
from rather.errors import ConfigError
from rather.judges.best import answers
from rather.judges.known import SimulatedJudge

CHOICES = {1.0: "left", 0.0: "right", 0.5: "tie", None: "skip"}


def join(link: str, members: Sequence[SimulatedJudge]) -> dict[str, httpx.Client]:
    """Invite the members through the owner's `link`; returns a client for each, who answers as a simulated judge.

    Raises:
        ConfigError: the link is none of an owner, or nothing answers there.
    """
    parts = urlsplit(link)
    base, token = f"{parts.scheme}://{parts.netloc}{parts.path.removesuffix('/join')}", parts.fragment
    found = {}
    for member in members:
        try:
            sent = {"name": member.name, "simulated": True, "renew": True}
            answer = httpx.post(f"{base}/api/people", json=sent, headers={"Authorization": f"Bearer {token}"})
        except httpx.TransportError as e:
            raise ConfigError(f"nothing answers at {base} ({e}); is `rather serve` running?") from None
        if answer.status_code != 200:
            said = (
                answer.json().get("detail", answer.status_code) if "json" in answer.headers.get("content-type", "") else answer.status_code
            )
            raise ConfigError(f"{base} does not let {member.name} in: {said}; give the link that `rather serve` printed for the owner")
        own = answer.json()["link"].partition("#")[2]
        found[member.name] = httpx.Client(base_url=base, headers={"Authorization": f"Bearer {own}"}, timeout=30)
    return found


def answer(
    link: str, members: Sequence[SimulatedJudge], pace_s: float, wait: bool, answered: Callable[[str], None], stop: threading.Event
) -> None:
    """Let all members answer at once, one question every `pace_s` seconds each, until there is none left; with `wait` until `stop`."""
    clients = join(link, members)
    threads = [
        threading.Thread(target=_one, args=(member, clients[member.name], pace_s, wait, answered, stop), daemon=True) for member in members
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        while thread.is_alive():
            thread.join(0.2)  # so that Ctrl-C is noticed


def _one(
    judge: SimulatedJudge, client: httpx.Client, pace_s: float, wait: bool, answered: Callable[[str], None], stop: threading.Event
) -> None:
    while not stop.is_set():
        question = _insist(client, "GET", "/api/next", stop).get("question")
        start = time.monotonic()
        if question is None:
            if not wait:
                return
            stop.wait(1)
            continue
        if len(question["sides"]) == 1:  # the panel compares
            sent = {"question": question["id"], **{k: question[k] for k in ("lease", "order", "invitation")}, "choice": "skip"}
            _insist(client, "POST", "/api/answers", stop, json=sent | {"key": str(uuid.uuid4())})
            continue
        left, right, *others = (tuple(_trajectory(question["id"], x) for x in side) for side in question["sides"])
        ((preference, best),) = answers(judge, [Comparison(left, right, key=str(question["id"]), others=tuple(others))])
        stop.wait(max(0.0, pace_s - (time.monotonic() - start)))
        sent = {"question": question["id"], **{k: question[k] for k in ("lease", "order", "invitation")}}
        sent |= {"key": str(uuid.uuid4()), "seconds": time.monotonic() - start}
        sent |= {"choice": CHOICES[preference]} if best is None else {"choice": "place", "place": best + 1}
        if "label" in _insist(client, "POST", "/api/answers", stop, json=sent):
            answered(judge.name)


def _insist(client: httpx.Client, method: str, path: str, stop: threading.Event, **what: object) -> dict:
    """The server's answer, asked for again and again, as a browser does: a server that is away comes back."""
    while not stop.is_set():
        try:
            answer = client.request(method, path, **what)  # type: ignore[arg-type]
            if answer.status_code == 200:
                return answer.json()
            if answer.status_code in (401, 403, 404, 409, 422):
                return {}
        except httpx.TransportError:
            pass
        stop.wait(0.3)
    return {}


def _trajectory(question: int, shown: dict) -> Trajectory:
    """What the page shows, as a simulated judge's utility reads it: words, or a clip's return."""
    reward = None if "reward" not in shown else np.array([shown["reward"]], np.float32)
    return Trajectory(Task("page", str(question)), "unknown", shown.get("text"), not shown.get("cut", False), rewards=reward)
