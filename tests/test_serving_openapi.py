"""Whatever fits the OpenAPI document, and what does not, is answered as it says: schemathesis makes the requests."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable

from tests.serving_tools import LIMIT, Running

schemathesis = pytest.importorskip("schemathesis")

BUSY = 503  # four jobs of one key, a full store: not what is tested here


@pytest.fixture(scope="module")
def limits() -> dict[str, Any]:
    return {"requests_per_minute": 1e9}


def check(case: Any) -> None:
    """Sends a request: no internal error, and status, kind and body of the answer are in the document."""
    from schemathesis.specs.openapi import checks

    answer = case.call(timeout=LIMIT)
    assert answer.status_code < 500 or answer.status_code == BUSY, answer.text
    case.validate_response(
        answer,
        checks=[
            checks.status_code_conformance,
            checks.content_type_conformance,
            checks.response_schema_conformance,
        ],
    )
    if answer.status_code >= 400:
        assert set(answer.json()["error"]) == {"message", "type", "param", "code"}


def test_the_whole_api_is_there(running: Running) -> None:
    document = schemathesis.openapi.from_url(f"{running.url}/openapi.json").raw_schema
    found = {f"{method} {path}" for path, methods in document["paths"].items() for method in methods}
    assert {"post /v1/videos", "post /v1/portraits", "post /v1/states", "get /v1/videos/{video_id}/content"} <= found


@pytest.mark.parametrize("mode", ["positive", "negative"])
@pytest.mark.parametrize("examples", [5, pytest.param(100, marks=pytest.mark.slow)])
def test_the_api_keeps_its_word(running: Running, mode: str, examples: int) -> None:
    document = schemathesis.openapi.from_url(f"{running.url}/openapi.json")
    few = settings(
        max_examples=examples,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        phases=(Phase.explicit, Phase.generate),
    )
    tested = 0
    for found in document.get_all_operations():
        operation = found.ok()
        requests = operation.as_strategy(generation_mode=schemathesis.GenerationMode(mode))
        try:
            few(given(case=requests)(check))()
            tested += 1
        except Unsatisfiable:  # nothing can be wrong in a request without parameters
            assert mode == "negative"
    assert tested >= 8
