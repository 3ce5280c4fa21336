"""The OpenAPI document is that of the routes, and no request of it makes the gateway fail."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode
from schemathesis.specs.openapi import checks

from batchmill.worker.gateway.app import routes
from batchmill.worker.gateway.spec.document import openapi_document, operations_of, render
from batchmill.worker.gateway.spec.operations import OPERATIONS

from .conftest import DEADLINE_S, Gateway, Site, make_key, make_objects

FILE = Path(__file__).resolve().parents[3] / "schema" / "gateway.openapi.json"
SCHEMA = schemathesis.openapi.from_dict(openapi_document(routes()))
OPERATION_LABELS = [f"{method} {path}" for method, path in OPERATIONS]
#: Requests for each operation and mode; more of them, and other ones, for a search by hand.
NUM_EXAMPLES = int(os.environ.get("SCHEMATHESIS_EXAMPLES", "4"))
#: Errors of jobs and receivers that take too long or are away: no faults of the gateway.
ELSEWHERE = {(504, "timeout"), (504, "deadline_exceeded"), (502, "webhook_not_reached")}


@pytest.fixture(scope="module")
def gateway(site: Site, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """A gateway that waits for a job only briefly, because some are to run years later."""
    folder = tmp_path_factory.mktemp("openapi")
    gateway = Gateway(
        site.server.url, folder / "log", gateway_files_url=site.files, gateway_wait_timeout_s=0.3
    )
    yield gateway
    gateway.close()


@pytest.fixture(scope="module")
def client(site: Site, gateway: Gateway) -> Iterator[httpx2.Client]:
    secret = make_key(site.mill, tenant="schema", scopes=("admin",))
    headers = {"authorization": f"Bearer {secret}"}
    root = gateway.url.removesuffix("/v1")
    with httpx2.Client(base_url=root, headers=headers, timeout=DEADLINE_S) as client:
        yield client


@pytest.fixture(scope="module")
def ids(client: httpx2.Client) -> dict[str, str]:
    return make_objects(client)


def test_the_file_is_that_of_the_routes() -> None:
    assert {(method, path) for method, path, _ in operations_of(routes())} == set(OPERATIONS)
    assert FILE.read_text() == render(openapi_document(routes())), (
        "run: python -m batchmill.worker.gateway.spec schema/gateway.openapi.json"
    )


def test_the_document_is_served_without_a_key(site: Site) -> None:
    served = httpx2.get(site.url.removesuffix("/v1") + "/openapi.json", timeout=DEADLINE_S)
    assert served.json() == openapi_document(routes())


@pytest.mark.parametrize("mode", list(GenerationMode), ids=lambda mode: mode.value)
@pytest.mark.parametrize("label", OPERATION_LABELS)
def test_no_request_of_the_document_fails(
    label: str, mode: GenerationMode, client: httpx2.Client, ids: dict[str, str]
) -> None:
    method, path = label.split(" ")
    operation = SCHEMA[path][method]
    known = ids.get(path.removeprefix("/v1/").partition("/{")[0])

    @settings(
        max_examples=NUM_EXAMPLES,
        deadline=None,
        database=None,
        derandomize="SCHEMATHESIS_EXAMPLES" not in os.environ,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operation.as_strategy(mode), is_known=st.booleans())
    def check(case: schemathesis.Case, is_known: bool) -> None:
        if known is not None and is_known and case.path_parameters:
            case.path_parameters = dict.fromkeys(case.path_parameters, known)
        if isinstance(case.body, dict) and "max_tokens" in case.body:
            case.body["max_tokens"] = 2
        _check(case, client)

    try:
        check()
    except Unsatisfiable:
        pytest.skip("there is nothing that could be wrong")


def _check(case: schemathesis.Case, client: httpx2.Client) -> None:
    response = case.call(
        base_url=str(client.base_url), headers=dict(client.headers), timeout=DEADLINE_S
    )
    if response.status_code >= 500:
        told: Any = response.json()
        code = told.get("error", {}).get("code")
        assert (response.status_code, code) in ELSEWHERE, told
    case.validate_response(
        response,
        checks=[
            checks.response_schema_conformance,
            checks.status_code_conformance,
            checks.content_type_conformance,
        ],
    )
