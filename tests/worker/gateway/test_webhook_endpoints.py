"""The stock OpenAI client registers webhook endpoints and unwraps what a deliverer sends."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import openai as sdk
import pytest
from openai import OpenAI

from batchmill.worker.webhooks.local_receiver import LOOPBACK, ReceivedRequest, WebhookReceiver

from ..command_line import call
from ..webhook_deliverers import Deliverers
from .conftest import DEADLINE_S, Gateway, Site, client_of, make_key

TARGETS: dict[str, object] = {
    "webhook_allow_http": 1,
    "webhook_allow_ports": "1024-65535",
    "webhook_allow_networks": LOOPBACK,
}


@pytest.fixture(scope="module")
def url(site: Site, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A gateway that allows receivers on this machine, and a deliverer."""
    folder = tmp_path_factory.mktemp("endpoints")
    deliverers = Deliverers(site.server.url)
    deliverers.start()
    # The same files as the other gateway, which may be the one that reads a batch.
    gateway = Gateway(site.server.url, folder / "log", gateway_files_url=site.files, **TARGETS)
    yield gateway.url
    gateway.close()
    deliverers.close()


@pytest.fixture
def receiver() -> Iterator[WebhookReceiver]:
    with WebhookReceiver() as receiver:
        yield receiver


def received(receiver: WebhookReceiver, num_requests: int) -> list[ReceivedRequest]:
    assert receiver.wait_for(num_requests, timeout_s=DEADLINE_S)
    return receiver.requests


def admin(site: Site, url: str, tenant: str) -> OpenAI:
    return client_of(url, make_key(site.mill, tenant=tenant, scopes=("admin",)))


def create(client: OpenAI, url: str, *event_types: Any) -> Any:
    return client.webhooks.create(name="mine", url=url, event_types=list(event_types))


def test_a_registered_endpoint_gets_what_unwrap_verifies(
    site: Site, url: str, receiver: WebhookReceiver
) -> None:
    client = admin(site, url, "hooks")
    endpoint = create(client, receiver.url + "/a", "response.incomplete", "batch.completed")
    assert endpoint.signing_secret_hint == f"whsec_…{endpoint.signing_secret[-4:]}"
    response = client.responses.create(
        model="demo", input="hello", max_output_tokens=2, background=True
    )
    (request,) = received(receiver, 1)
    event: Any = client.webhooks.unwrap(
        request.body, dict(request.headers), secret=endpoint.signing_secret
    )
    assert (event.type, event.data.id, event.object) == (
        *("response.incomplete", response.id, "event"),
    )
    assert event.id == request.headers["webhook-id"]
    assert b"hello" not in request.body
    wrong = admin(site, url, "hooks").webhooks
    with pytest.raises(sdk.InvalidWebhookSignatureError):
        wrong.unwrap(request.body, dict(request.headers), secret="whsec_" + "A" * 44)


def test_a_batch_of_the_tenant_is_told_and_a_job_by_its_own_type(
    site: Site, url: str, receiver: WebhookReceiver
) -> None:
    client = admin(site, url, "batchers")
    endpoint = client.webhooks.create(
        name="all",
        url=receiver.url,
        event_types=["batch.completed"],
        extra_body={"event_types": ["batch.completed", "generation.completed"]},
    )
    line = {"custom_id": "a", "method": "POST", "url": "/v1/completions"}
    content = json.dumps(line | {"body": {"model": "demo", "prompt": "x", "max_tokens": 1}})
    file = client.files.create(file=("a.jsonl", content.encode()), purpose="batch")
    batch = client.batches.create(
        input_file_id=file.id, endpoint="/v1/completions", completion_window="1h"
    )
    found = {}
    for request in received(receiver, 2):
        event: Any = client.webhooks.unwrap(
            request.body, dict(request.headers), secret=endpoint.signing_secret
        )
        found[event.type] = event
    assert found["batch.completed"].data.id == batch.id
    assert found["generation.completed"].data.id.startswith("gen_")


def test_an_endpoint_is_changed_rotated_tested_and_deleted(
    site: Site, url: str, receiver: WebhookReceiver
) -> None:
    client = admin(site, url, "rotator")
    first = create(client, receiver.url, "batch.failed")
    second = create(client, receiver.url + "/b", "batch.failed")
    assert {each.id for each in client.webhooks.list(limit=1)} == {first.id, second.id}
    changed = client.webhooks.update(first.id, name="other", event_types=["response.failed"])
    assert (changed.name, changed.event_types, changed.url) == (
        *("other", ["response.failed"], receiver.url),
    )
    assert client.webhooks.retrieve(first.id) == changed
    rotated = client.webhooks.rotate_secret(first.id, keep_old_secret_active_for_24_hours=True)
    assert rotated.signing_secret != first.signing_secret
    result = client.webhooks.test(first.id, event_type="batch.completed")
    assert (result.status_code, result.success) == (204, True)
    (request,) = received(receiver, 1)
    for secret in (first.signing_secret, rotated.signing_secret):
        event: Any = client.webhooks.unwrap(request.body, dict(request.headers), secret=secret)
        assert (event.type, event.data.id) == ("batch.completed", "batch_test")
    last = client.webhooks.rotate_secret(first.id)
    client.webhooks.test(first.id, event_type="response.completed")
    request = received(receiver, 2)[-1]
    client.webhooks.unwrap(request.body, dict(request.headers), secret=last.signing_secret)
    for secret in (first.signing_secret, rotated.signing_secret):
        with pytest.raises(sdk.InvalidWebhookSignatureError):
            client.webhooks.unwrap(request.body, dict(request.headers), secret=secret)
    assert client.webhooks.delete(first.id).deleted
    with pytest.raises(sdk.NotFoundError):
        client.webhooks.retrieve(first.id)
    assert [each.id for each in client.webhooks.list()] == [second.id]
    assert "batch.completed" in client.webhooks.event_types.list().data


def test_a_receiver_that_is_away_is_named_and_not_tried_again(site: Site, url: str) -> None:
    client = admin(site, url, "away")
    with WebhookReceiver() as gone:
        endpoint = create(client, gone.url, "batch.failed")
    with pytest.raises(sdk.APIStatusError, match="no connection") as caught:
        client.webhooks.test(endpoint.id, event_type="batch.failed")
    assert caught.value.code == "webhook_not_reached"
    assert caught.value.response.headers["x-should-retry"] == "false"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"url": "ftp://example.com"}, "url"),
        ({"url": "https://10.0.0.1/"}, "url"),
        ({"event_types": ["eval.run.failed"]}, "event_types"),
        ({"event_types": []}, "event_types"),
        ({"name": "x" * 101}, "name"),
        ({"extra_body": {"bogus": 1}}, "bogus"),
    ],
)
def test_wrong_fields_are_named(site: Site, url: str, fields: Any, param: str) -> None:
    given: Any = {"name": "a", "url": "https://example.com/", "event_types": ["batch.failed"]}
    client = admin(site, url, "wrong")
    with pytest.raises(sdk.BadRequestError) as caught:
        client.webhooks.create(**(given | fields))
    assert caught.value.param == param
    assert list(client.webhooks.list()) == []


def test_only_an_admin_registers_endpoints(site: Site, url: str) -> None:
    with pytest.raises(sdk.PermissionDeniedError, match="needs admin"):
        client_of(url, make_key(site.mill)).webhooks.list()


def test_the_command_line_does_the_same(site: Site, url: str, receiver: WebhookReceiver) -> None:
    environment = {"BATCHMILL_BROKER_URL": site.server.url}
    environment |= {f"BATCHMILL_{name.upper()}": str(value) for name, value in TARGETS.items()}

    def webhooks(*arguments: str) -> Any:
        command = ("webhooks", "receivers", *arguments, "--tenant", "cli", "--json")
        answer = call(*command, **environment)
        assert answer.returncode == 0, answer.stderr
        return json.loads(answer.stdout)

    made = webhooks("create", "mine", receiver.url, "--event-type", "batch.failed")
    name = made["id"]
    assert webhooks("update", name, "--name", "other")["name"] == "other"
    rotated = webhooks("rotate", name, "--keep-old")
    assert webhooks("test", name, "batch.failed")["http_status"] == 204
    (request,) = received(receiver, 1)
    client = admin(site, url, "cli")
    for secret in (made["signing_secret"], rotated["signing_secret"]):
        client.webhooks.unwrap(request.body, dict(request.headers), secret=secret)
    assert [each["id"] for each in webhooks("list")["receivers"]] == [name]
    assert [each.id for each in client.webhooks.list()] == [name]
    webhooks("delete", name)
    assert webhooks("list") == {"receivers": []}
