"""The tokens of a tenant's requests, by the gateway's own path and in a batch."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import httpx2
import pytest

from batchmill.producer.store.api_keys import create_api_key

from .conftest import DEADLINE_S, Site, client_of, make_key

HELLO: Any = [{"role": "user", "content": "hello"}]


def usage_of(site: Site, secret: str, **params: str) -> httpx2.Response:
    headers = {"authorization": f"Bearer {secret}"}
    return httpx2.get(site.url + "/usage", headers=headers, params=params, timeout=DEADLINE_S)


def test_a_tenant_sees_its_own_usage_by_key_and_day(site: Site) -> None:
    before = datetime.now(UTC).date().isoformat()
    made = [create_api_key(site.mill.store, "payer", tenant="payer") for _ in range(2)]
    ids, secrets = [key.id for key, _ in made], [secret for _, secret in made]
    used = []
    for secret, num_tokens in zip(secrets, (3, 5), strict=True):
        completion = client_of(site.url, secret).chat.completions.create(
            model="demo", messages=HELLO, max_tokens=num_tokens
        )
        assert completion.usage is not None
        used.append((completion.usage.prompt_tokens, completion.usage.completion_tokens))
    found = usage_of(site, secrets[0], group_by="key", start_date=before).json()
    assert (found["object"], found["tenant"], found["start_date"]) == ("list", "payer", before)
    rows = [
        (row["key"], row["jobs"], row["prompt_tokens"], row["completion_tokens"])
        for row in found["data"]
    ]
    assert sorted(rows) == sorted(
        (name, 1, *tokens) for name, tokens in zip(ids, used, strict=True)
    )
    by_model = usage_of(site, secrets[0], group_by="model").json()["data"]
    assert [(row["model"], row["jobs"]) for row in by_model] == [("demo", 2)]
    assert {"day", "jobs"} <= set(usage_of(site, secrets[1]).json()["data"][0])
    assert usage_of(site, make_key(site.mill, tenant="guest")).json()["data"] == []


@pytest.mark.parametrize(
    ("params", "param"),
    [
        ({"group_by": "week"}, "group_by"),
        ({"group_by": "day,day"}, "group_by"),
        ({"start_date": "soon"}, "start_date"),
        ({"start_date": "2020-01-01", "end_date": "2026-01-01"}, "start_date"),
        ({"bogus": "1"}, "bogus"),
    ],
)
def test_wrong_parameters_are_named(site: Site, params: dict[str, str], param: str) -> None:
    response = usage_of(site, site.secret, **params)
    assert response.status_code == 400
    assert response.json()["error"]["param"] == param


def test_usage_needs_the_right_to_read(site: Site) -> None:
    assert usage_of(site, make_key(site.mill, scopes=("submit",))).status_code == 403
    assert usage_of(site, "sk-bm-none").status_code == 401
