"""API keys: rights, tenants, and limits per minute."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime, timedelta
from typing import Any

import anthropic
import openai as sdk
import pytest
from anthropic import Anthropic, AsyncAnthropic

from batchmill.producer.protocol.calls import rates
from batchmill.producer.store.api_keys import create_api_key
from batchmill.producer.store.tenants import set_tenant

from ...support.processes import CLI, run
from ..conftest import Mill
from .conftest import DEADLINE_S, Site, client_of, make_key

HELLO: Any = [{"role": "user", "content": "hello"}]


@pytest.fixture
def mill(site: Site) -> Mill:
    return site.mill


@pytest.fixture
def url(site: Site) -> str:
    return site.url


def test_a_key_is_shown_once_and_kept_as_a_digest(mill: Mill) -> None:
    environment = {"BATCHMILL_BROKER_URL": mill.url}
    made = json.loads(
        run(*CLI, "keys", "create", "mine", "--tenant", "acme", "--json", environment=environment)
    )
    secret = made["secret"]
    assert secret.startswith("sk-bm-")
    stored = mill.store.client.hgetall("batchmill:api_keys")
    assert secret not in str(stored)
    listed = run(*CLI, "keys", "list", "--json", environment=environment)
    assert secret not in listed
    key = next(key for key in json.loads(listed)["keys"] if key["id"] == made["id"])
    assert (key["tenant"], key["name"]) == ("acme", "mine")
    assert secret.startswith(key["prefix"])


def test_with_a_key_there_is_no_way_without_one(mill: Mill, url: str) -> None:
    secret = make_key(mill)
    assert client_of(url, secret).models.list().data
    for wrong in ("anything", secret[:-1], secret + "x"):
        with pytest.raises(sdk.AuthenticationError) as caught:
            client_of(url, wrong).models.list()
        assert caught.value.code == "invalid_api_key"


def test_a_key_has_only_its_rights_models_and_classes(mill: Mill, url: str) -> None:
    def ask(secret: str, **fields: Any) -> Any:
        return client_of(url, secret).chat.completions.create(
            messages=HELLO, max_tokens=1, **{"model": "demo", **fields}
        )

    with pytest.raises(sdk.PermissionDeniedError, match="needs submit"):
        ask(make_key(mill, scopes=("read",)))
    with pytest.raises(sdk.PermissionDeniedError, match="needs read"):
        client_of(url, make_key(mill, scopes=("submit",))).models.list()
    with pytest.raises(sdk.NotFoundError, match="there are: other"):
        ask(make_key(mill, models=("other",)))
    for wanted in ({"service_tier": "priority"}, {"extra_body": {"priority": "normal"}}):
        with pytest.raises(sdk.PermissionDeniedError, match="the highest one"):
            ask(make_key(mill, highest_class="low"), **wanted)


def test_the_jobs_of_a_key_belong_to_its_tenant_and_class(mill: Mill, url: str) -> None:
    secret = make_key(mill, tenant="acme", highest_class="low")
    raw = client_of(url, secret).chat.completions.with_raw_response.create(
        model="demo", messages=HELLO, max_tokens=1
    )
    record = mill.record(str(raw.headers["x-request-id"]))
    assert (record.tenant, record.queue) == ("acme", "batchmill.demo.low")


def test_limits_per_minute_are_told_and_end_in_a_429(mill: Mill, url: str) -> None:
    secret = make_key(mill, requests_per_minute=2, tokens_per_minute=1000)
    client = client_of(url, secret)

    def ask(max_tokens: int = 1) -> Any:
        return client.chat.completions.with_raw_response.create(
            model="demo", messages=HELLO, max_tokens=max_tokens
        )

    headers = ask().headers
    assert headers["x-ratelimit-limit-requests"] == "2"
    assert headers["x-ratelimit-remaining-requests"] == "1"
    assert 990 < int(headers["x-ratelimit-remaining-tokens"]) < 1000
    assert headers["x-ratelimit-reset-requests"].endswith("s")
    with pytest.raises(sdk.RateLimitError, match="the limit of this API key is 1000") as caught:
        ask(2000)
    assert caught.value.response.headers["x-should-retry"] == "false"
    ask()
    with pytest.raises(sdk.RateLimitError) as caught:
        ask()
    assert caught.value.code == "rate_limit_exceeded"
    assert 1 <= int(caught.value.response.headers["retry-after"]) <= 30


def drained(mill: Mill) -> str:
    """Return the secret of a key with a request every three seconds, all of which are used."""
    key, secret = create_api_key(mill.store, "drained", requests_per_minute=20)
    while mill.store.run(rates.take(key.id, 20, None, 0)).is_allowed:
        pass
    return secret


def test_anthropics_client_is_told_its_limits(mill: Mill, url: str) -> None:
    fields: Any = {"model": "demo", "max_tokens": 1, "messages": HELLO}
    options: Any = {"max_retries": 0, "timeout": DEADLINE_S}
    secret, root = make_key(mill, requests_per_minute=1), url.removesuffix("/v1")
    with Anthropic(base_url=root, api_key=secret, **options) as client:
        headers = client.messages.with_raw_response.create(**fields).headers
        assert headers["anthropic-ratelimit-requests-limit"] == "1"
        assert headers["anthropic-ratelimit-requests-remaining"] == "0"
        reset = datetime.fromisoformat(headers["anthropic-ratelimit-requests-reset"])
        assert abs(reset - datetime.now(UTC)) < timedelta(minutes=2)
        assert not [name for name in headers if name.startswith("x-ratelimit")]
        with pytest.raises(anthropic.RateLimitError) as caught:
            client.messages.create(**fields)
    assert caught.value.body["error"]["type"] == "rate_limit_error"
    assert 1 <= int(caught.value.response.headers["retry-after"]) <= 60
    assert "anthropic-ratelimit-requests-reset" in caught.value.response.headers


def test_every_stock_client_waits_as_long_as_a_limit_says(mill: Mill, url: str) -> None:
    options: Any = {"max_retries": 20, "timeout": DEADLINE_S}
    fields: Any = {"model": "demo", "max_tokens": 1, "messages": HELLO}
    root = url.removesuffix("/v1")
    with sdk.OpenAI(base_url=url, api_key=drained(mill), **options) as openai:
        assert openai.chat.completions.create(**fields).choices
    with Anthropic(base_url=root, api_key=drained(mill), **options) as claude:
        assert claude.messages.create(**fields).content

    async def ask_both() -> None:
        async with sdk.AsyncOpenAI(base_url=url, api_key=drained(mill), **options) as openai:
            assert (await openai.chat.completions.create(**fields)).choices
        async with AsyncAnthropic(base_url=root, api_key=drained(mill), **options) as claude:
            assert (await claude.messages.create(**fields)).content

    asyncio.run(ask_both())


def test_a_full_queue_is_a_429_that_the_client_repeats_until_there_is_room(
    mill: Mill, url: str
) -> None:
    set_tenant(mill.store, "full", {"max_jobs": 1})
    mill.submit(tenant="full", delay_s=2.0)
    secret = make_key(mill, tenant="full")
    with pytest.raises(sdk.RateLimitError, match="its limit is 1"):
        client_of(url, secret).chat.completions.create(model="demo", messages=HELLO)
    patient = client_of(url, secret, max_retries=20)
    assert patient.chat.completions.create(model="demo", messages=HELLO, max_tokens=1).choices
