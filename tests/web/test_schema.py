"""The OpenAPI description against the server: whatever is sent, nothing breaks, and nobody is told anything who was not invited."""

from collections.abc import Callable
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from questions import question
from schemathesis.checks import load_all_checks
from schemathesis.specs.openapi import checks

from rather.store import Store
from rather.store.people import invite
from rather.web import guard

load_all_checks()
AS_DESCRIBED = [checks.status_code_conformance, checks.content_type_conformance, checks.response_schema_conformance]
ODD = [HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large]


@pytest.fixture
def store(either: Store) -> Store:
    return either


@pytest.fixture
def described(store: Store, serve: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> Any:
    """The description, from the server itself, which for once lets programs ask as fast as they can."""
    monkeypatch.setattr(guard, "BURST", 1e9)
    store.ask("r", [question(i, "a secret prompt") for i in range(5)])
    return schemathesis.openapi.from_url(f"{serve()}/api/openapi.json")


def every_request(described: Any, examples: int, check: Callable[[Any], None]) -> int:
    """Call `check` with made-up requests of every kind that the description names; returns how many kinds there are."""
    count = 0
    for found in described.get_all_operations():

        @settings(max_examples=examples, deadline=None, suppress_health_check=ODD, database=None, derandomize=True)
        @given(case=found.ok().as_strategy())
        def one(case: Any) -> None:
            check(case)

        one()
        count += 1
    return count


@pytest.mark.slow
def test_no_request_breaks_the_server(described: Any, store: Store) -> None:
    headers = {"Authorization": f"Bearer {invite(store, 'boss', 'owner')}"}

    def check(case: Any) -> None:
        answer = case.call(headers=headers)
        case.validate_response(answer, checks=AS_DESCRIBED)
        assert answer.status_code < 500, (case.method, case.path, answer.text)
        assert answer.status_code != 401

    assert every_request(described, 20, check) == 18


def test_nobody_is_told_anything_without_an_invitation(described: Any) -> None:
    def check(case: Any) -> None:
        answer = case.call(headers={"Authorization": "Bearer guessed"})
        assert answer.status_code in (401, 413, 422), (case.method, case.path, answer.status_code, answer.text)
        assert "secret prompt" not in answer.text

    assert every_request(described, 8, check) == 18
