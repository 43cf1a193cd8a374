"""People at the labelling page, in a process of their own: `python bench/page_people.py URL SECONDS PACE ANSWERS`, tokens as lines of stdin.

Each token is an annotator who answers, PACE seconds apart, for SECONDS and until there are ANSWERS in all; a token that begins with "owner " is
an owner, whose page asks for its figures every 5 seconds. Prints what requests took, in seconds, as JSON.
"""

import asyncio
import json
import random
import sys
import time
import uuid
from typing import Any

import httpx

SHOWN = ("lease", "order", "invitation")
OWNER, OWNER_PACE_S, PATIENCE_S = "owner ", 5.0, 120.0
OWNERS = ("/api/overview", "/api/audit")
"""What the owner's page asks for at once."""


def answer_to(question: dict[str, Any]) -> dict[str, Any]:
    """That the side on the left is better, as the page says it."""
    return {"question": question["id"], "choice": "left", "key": str(uuid.uuid4()), **{k: question[k] for k in SHOWN}}


def client(url: str, token: str) -> httpx.AsyncClient:
    """A client that shows its token."""
    return httpx.AsyncClient(base_url=url, headers={"Authorization": f"Bearer {token}"}, timeout=PATIENCE_S)


async def annotate(url: str, token: str, pace: float, goes_on: Any, took: dict[str, list[float]]) -> None:
    """One annotator, who has the question after this one at hand as the page has."""
    async with client(url, token) as http:
        await asyncio.sleep(random.random() * pace)
        while goes_on():
            begun = time.monotonic()
            found = await http.get("/api/next")
            took["next"].append(time.monotonic() - begun)
            question = found.json().get("question") if found.status_code == 200 else None
            if question is None:
                took["wrong"].append(found.status_code)
                return
            await asyncio.sleep(max(0.0, pace - (time.monotonic() - begun)))
            choice = random.choice(["left", "right", "tie"])
            sent = answer_to(question) | {"choice": choice, "seconds": time.monotonic() - begun}
            since = time.monotonic()
            answer = await http.post("/api/answers", json=sent)
            took["answer"].append(time.monotonic() - since)
            if answer.status_code == 200:
                took["acknowledged"].append(answer.json()["label"])
            elif answer.status_code != 429:
                took["wrong"].append(answer.status_code)


async def own(url: str, token: str, goes_on: Any, took: dict[str, list[float]]) -> None:
    """The owner's tab."""
    async with client(url, token) as http:
        while goes_on():
            since = time.monotonic()
            found = await asyncio.gather(*(http.get(path) for path in OWNERS))
            took["owner"].append(time.monotonic() - since)
            took["wrong"] += [answer.status_code for answer in found if answer.status_code != 200]
            await asyncio.sleep(OWNER_PACE_S)


async def everybody(url: str, tokens: list[str], seconds: float, pace: float, answers: int) -> dict[str, list[float]]:
    """All of them at once."""
    took: dict[str, list[float]] = {what: [] for what in ("next", "answer", "owner", "acknowledged", "wrong")}
    begun = time.monotonic()

    def goes_on() -> bool:
        passed = time.monotonic() - begun
        return passed < seconds or (len(took["answer"]) < answers and passed < 10 * seconds)

    people = [
        own(url, x.removeprefix(OWNER), goes_on, took) if x.startswith(OWNER) else annotate(url, x, pace, goes_on, took) for x in tokens
    ]
    await asyncio.gather(*people)
    return took


if __name__ == "__main__":
    where, given = sys.argv[1], [float(x) for x in sys.argv[2:5]]
    print(json.dumps(asyncio.run(everybody(where, sys.stdin.read().splitlines(), given[0], given[1], int(given[2])))))
