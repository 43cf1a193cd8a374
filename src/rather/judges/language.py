"""A language model as a judge, behind any endpoint that speaks OpenAI's chat protocol."""

import re
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import httpx

from rather.core import Comparison, Prompt, Trajectory
from rather.errors import JudgeError

QUESTION = """{instruction}

The request was:
<request>
{prompt}
</request>

Answer A:
<answer>
{a}
</answer>

Answer B:
<answer>
{b}
</answer>

Reply with one line: "A" if answer A is better, "B" if answer B is better, "TIE" if neither is."""

RETRIES = 4


class LanguageJudge:
    """Asks about every pair twice, in both orders, so that a liking for the first place cancels out.

    P(a better) is the mean of the two replies; a reply that cannot be parsed makes the judge abstain.
    """

    kind = "language-model"

    def __init__(
        self, name: str, url: str, model: str, instruction: str, key: str = "", timeout_s: float = 60.0, concurrency: int = 8
    ) -> None:
        self.name, self.model, self.instruction, self.concurrency = name, model, instruction, concurrency
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        self.url = url.rstrip("/")
        self.client = httpx.Client(headers=headers, timeout=timeout_s)

    def judge(self, comparisons: Sequence[Comparison]) -> list[float | None]:
        """An answer to each.

        Raises:
            JudgeError: the endpoint cannot be reached or refuses.
        """
        with ThreadPoolExecutor(self.concurrency) as pool:
            return list(pool.map(self._one, comparisons))

    def _one(self, comparison: Comparison) -> float | None:
        first = self._ask(comparison)
        if first is None:
            return None
        second = self._ask(comparison.swapped())
        return None if second is None else (first + 1 - second) / 2

    def _ask(self, comparison: Comparison) -> float | None:
        content = QUESTION.format(
            instruction=self.instruction,
            prompt=words(comparison.a[0].task.prompt or ""),
            a=_side(comparison.a),
            b=_side(comparison.b),
        )
        body = {"model": self.model, "messages": [{"role": "user", "content": content}], "temperature": 0, "max_tokens": 512}
        return parse(self._post(body))

    def _post(self, body: dict) -> str:
        where = f"{self.url}/chat/completions"
        for retry in range(RETRIES):
            try:
                response = self.client.post(where, json=body)
                if response.status_code == 429 or response.status_code >= 500:
                    raise httpx.HTTPStatusError(f"status {response.status_code}", request=response.request, response=response)
            except httpx.HTTPError as e:
                if retry == RETRIES - 1:
                    raise JudgeError(f"the judge at {where} does not answer ({e or type(e).__name__}); check judge.url") from None
                time.sleep(0.5 * 2**retry)
                continue
            if response.status_code != 200:
                detail = response.text[:200].replace("\n", " ")
                raise JudgeError(f"the judge at {where} refuses with status {response.status_code}: {detail}")
            try:
                return response.json()["choices"][0]["message"]["content"] or ""
            except (ValueError, KeyError, IndexError, TypeError):
                raise JudgeError(f"{where} does not speak OpenAI's chat protocol: {response.text[:200]!r}") from None
        raise AssertionError("unreachable")


def parse(reply: str) -> float | None:
    """P(A better) from a reply whose first or last line is A, B or TIE; None where neither is."""
    lines = [line for line in reply.strip().splitlines() if line.strip()]
    for line in (lines[-1], lines[0]) if lines else ():
        verdict = re.fullmatch(
            r"(?:(?:the )?(?:better )?answer(?: is)?:?\s*|verdict:?\s*)?(A|B|TIE)", line.strip(" \t*\"'.`[]()"), re.IGNORECASE
        )
        if verdict:
            return {"A": 1.0, "B": 0.0, "TIE": 0.5}[verdict[1].upper()]
    return None


def words(prompt: Prompt) -> str:
    """A prompt as plain text."""
    if isinstance(prompt, str):
        return prompt
    return "\n".join(f"{message['role']}: {message['content']}" for message in prompt)


def _side(side: Sequence[Trajectory]) -> str:
    return "\n---\n".join(t.text or "" for t in side)
