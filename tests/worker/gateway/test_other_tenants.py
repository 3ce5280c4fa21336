"""Objects of another tenant do not exist, on every route; nor do those of another kind."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import httpx2
import pytest

from batchmill.worker.gateway.app import routes

from .conftest import DEADLINE_S, Site, make_key, make_objects

_PARAM = re.compile(r"{(\w+)(?::path)?}")
#: Routes with an id in their path, by what the id is of. A model belongs to no tenant.
ROUTES = [
    (method, route.path)
    for route in routes()
    for method in sorted((route.methods or set()) - {"HEAD"})
    if _PARAM.search(route.path) and not route.path.startswith("/v1/models/")
]


def kind_of(path: str) -> str:
    """Return what the id in a path is of."""
    return path.removeprefix("/v1/").partition("/{")[0]


def client_of(site: Site, tenant: str) -> httpx2.Client:
    headers = {"authorization": f"Bearer {make_key(site.mill, tenant=tenant, scopes=('admin',))}"}
    root = site.url.removesuffix("/v1")
    return httpx2.Client(base_url=root, headers=headers, timeout=DEADLINE_S)


@pytest.fixture(scope="module")
def owner(site: Site) -> Iterator[httpx2.Client]:
    with client_of(site, "owner") as client:
        yield client


@pytest.fixture(scope="module")
def ids(owner: httpx2.Client) -> dict[str, str]:
    """Return the id of an ended object of each kind."""
    return make_objects(owner)


def call(client: httpx2.Client, method: str, path: str, name: str) -> httpx2.Response:
    body: Any = {"json": {}} if method in ("POST", "PATCH") else {}
    return client.request(method, _PARAM.sub(name, path), **body)


def test_ids_of_another_tenant_are_404_on_every_route(
    owner: httpx2.Client, site: Site, ids: dict[str, str]
) -> None:
    assert ROUTES
    with client_of(site, "stranger") as stranger:
        for method, path in ROUTES:
            response = call(stranger, method, path, ids[kind_of(path)])
            assert response.status_code == 404, (method, path, response.text)
            # The same words as for what exists nowhere.
            unknown = call(stranger, method, path, ids[kind_of(path)][:-1] + "x")
            told, nothing = (_without_ids(each.text) for each in (response, unknown))
            assert told == nothing, (method, path)
        for path, body in (
            ("/v1/responses", {"input": "hi", "previous_response_id": ids["responses"]}),
            (
                "/v1/batches",
                {
                    "input_file_id": ids["files"],
                    "endpoint": "/v1/chat/completions",
                    "completion_window": "1h",
                },
            ),
        ):
            assert stranger.post(path, json={"model": "demo"} | body).status_code == 404, path
    for kind, name in ids.items():
        assert owner.get(f"/v1/{kind}/{name}").status_code == 200, kind


def test_an_id_of_another_kind_is_404_on_every_route(
    owner: httpx2.Client, ids: dict[str, str]
) -> None:
    for method, path in ROUTES:
        for kind, name in ids.items():
            if kind == kind_of(path):
                continue
            response = call(owner, method, path, name)
            assert response.status_code == 404, (method, path, kind, response.text)


def _without_ids(text: str) -> str:
    return re.sub(r"(?:file|batch|resp|gen|msgbatch|req|we)[-_]\w+", "ID", text)
