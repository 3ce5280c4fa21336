"""A gateway with its console before two shards, each with a worker: every API, and one away."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import openai as sdk
import pytest
from openai import OpenAI

from batchmill.producer.protocol import keys
from batchmill.producer.protocol.calls import jobs as job_calls
from batchmill.producer.protocol.calls.new_job import NewJob
from batchmill.producer.protocol.outbox import DeliveryOutcome
from batchmill.producer.protocol.replies import Claim, JobState
from batchmill.producer.shard_list import shard_name_of
from batchmill.producer.store.deliveries import Deliveries
from batchmill.worker.webhooks.local_receiver import WebhookReceiver

from ...conftest import RedisServer
from ..command_line import call
from ..conftest import Mill
from .conftest import DEADLINE_S, Gateway, new_client
from .test_batches import chat_line, create, upload, wait_ended

#: Tenants whose jobs for the model "demo" go to each shard of (a b); see `test_shard_list.py`.
TENANT = {"a": "t0", "b": "t1"}
TALK: Any = [{"role": "user", "content": "hello"}]


class ShardedSite:
    """Two servers with a worker each, one gateway, and a key of each tenant and an operator."""

    def __init__(self, folder: Path) -> None:
        self.servers = {name: RedisServer("--appendonly", "yes") for name in "ab"}
        for server in self.servers.values():
            server.start()
        self.list = " ".join(f"{name}={server.url}" for name, server in self.servers.items())
        self.secrets = {name: self.make_key("--tenant", TENANT[name]) for name in "ab"}
        self.operator = self.make_key("--scope", "operator", "--scope", "texts")
        self.mills: dict[str, Mill] = {}
        for name, server in self.servers.items():
            (folder / name).mkdir()
            self.mills[name] = mill = Mill(server.url, folder / name)
            shard: dict[str, Any] = {"broker_urls": self.list, "shard": name}
            mill.launch(f"w{name}", broker_url="", **shard)
        self.folder = folder
        self.gateway = self.start_gateway(self.list)
        self.root = self.gateway.url.removesuffix("/v1")
        for mill in self.mills.values():
            mill.wait_for(mill.store.list_workers, "a worker", timeout_s=DEADLINE_S)
        self.clients = {name: new_client(self.gateway.url, self.secrets[name]) for name in "ab"}

    def start_gateway(self, shards: str) -> Gateway:
        return Gateway(
            "",
            self.folder / f"gateway-{hash(shards)}.log",
            broker_urls=shards,
            gateway_files_url=self.folder / "files",
            broker_timeout_s=1,
            webhook_allow_http="true",
            webhook_allow_ports="1024-65535",
            webhook_allow_networks="127.0.0.0/8",
        )

    def make_key(self, *options: str) -> str:
        made = call(
            *("keys", "create", "test", "--scope", "submit", "--scope", "read"),
            *("--scope", "admin", *options, "--json"),
            BATCHMILL_BROKER_URLS=self.list,
        )
        return str(json.loads(made.stdout)["secret"])

    def http(self, name: str) -> httpx2.Client:
        headers = {"authorization": f"Bearer {self.secrets[name]}"}
        return httpx2.Client(base_url=self.root, headers=headers, timeout=DEADLINE_S)

    def close(self) -> None:
        for client in self.clients.values():
            client.close()
        self.gateway.close()
        for mill in self.mills.values():
            mill.close()
        for server in self.servers.values():
            server.close()


@pytest.fixture(scope="module")
def sharded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ShardedSite]:
    site = ShardedSite(tmp_path_factory.mktemp("sharded"))
    yield site
    site.close()


@pytest.fixture(params=["a", "b"])
def name(request: pytest.FixtureRequest) -> str:
    """The shard of a tenant."""
    return str(request.param)


def run_batch(client: OpenAI, count: int = 2) -> Any:
    file_id = upload(client, [chat_line(number) for number in range(count)])
    return wait_ended(client, create(client, file_id).id)


def test_jobs_responses_and_streams_are_in_the_shard_of_their_tenant(
    sharded: ShardedSite, name: str
) -> None:
    client = sharded.clients[name]
    done = client.chat.completions.create(model="demo", messages=TALK, max_tokens=4)
    assert shard_name_of(done.id) == name
    pieces = list(
        client.chat.completions.create(model="demo", messages=TALK, max_tokens=4, stream=True)
    )
    assert pieces[-1].choices[0].finish_reason == "length"
    first = client.responses.create(
        model="demo", input="one", max_output_tokens=16, background=True
    )
    assert first.id.endswith(f"-{name}")
    while (found := client.responses.retrieve(first.id)).status not in ("completed", "incomplete"):
        assert found.status in ("queued", "in_progress")
    other = sharded.clients["b" if name == "a" else "a"]
    with pytest.raises(sdk.NotFoundError):
        other.responses.retrieve(first.id)
    client.responses.delete(first.id)
    with pytest.raises(sdk.NotFoundError):
        client.responses.retrieve(first.id)


def test_files_batches_and_results_are_found_and_listed(sharded: ShardedSite, name: str) -> None:
    client = sharded.clients[name]
    batches = [run_batch(client) for _ in range(3)]
    for batch in batches:
        assert batch.status == "completed"
        assert batch.id.endswith(f"-{name}")
        assert batch.input_file_id.endswith(f"-{name}")
    text = client.files.content(batches[0].output_file_id).text
    assert [json.loads(line)["custom_id"] for line in text.splitlines()] == ["line 0", "line 1"]
    listed = [each.id for each in client.batches.list(limit=1)]  # page by page
    assert listed[:3] == [batch.id for batch in reversed(batches)]
    files = [each.id for each in client.files.list(limit=1)]
    assert files[:3] == [batch.input_file_id for batch in reversed(batches)]
    client.files.delete(files[0])
    assert files[0] not in [each.id for each in client.files.list()]
    with sharded.http(name) as http:
        again = {"idempotency-key": f"k-{name}"}
        body = {
            "input_file_id": files[1],
            "endpoint": "/v1/chat/completions",
            "completion_window": "1h",
        }
        ids = {http.post("/v1/batches", json=body, headers=again).json()["id"] for _ in range(2)}
        assert len(ids) == 1
        request = {"custom_id": "x", "params": {"model": "demo", "max_tokens": 2, "messages": TALK}}
        made = http.post("/v1/messages/batches", json={"requests": [request]}).json()
        while http.get(f"/v1/messages/batches/{made['id']}").json()["processing_status"] != "ended":
            pass
        results = http.get(f"/v1/messages/batches/{made['id']}/results").text
        assert json.loads(results)["result"]["type"] == "succeeded"
        used = http.get("/v1/usage", params={"group_by": "model"}).json()
        assert used["data"][0]["jobs"] >= 7
        assert http.get("/v1/models").json()["data"][0]["id"] == "demo"


def test_a_webhook_endpoint_gets_the_events_of_all_shards(sharded: ShardedSite) -> None:
    with sharded.http("a") as http, WebhookReceiver() as receiver:
        fields = {"name": "one", "url": receiver.url, "event_types": ["generation.completed"]}
        made = http.post("/v1/webhook_endpoints", json=fields).json()
        path = f"/v1/webhook_endpoints/{made['id']}"
        assert http.post(path, json={"name": "two"}).json()["name"] == "two"
        assert http.get("/v1/webhook_endpoints").json()["data"][0]["name"] == "two"
        test = http.post(f"{path}/test", json={"event_type": "generation.completed"})
        assert test.json()["success"]
        secret = http.post(f"{path}/rotate_secret", json={}).json()["signing_secret"]
        assert secret != made["signing_secret"]
        for server in sharded.servers.values():
            status = call(
                "webhooks",
                "receivers",
                "list",
                "--tenant",
                "t0",
                "--json",
                BATCHMILL_BROKER_URL=server.url,
            )
            (found,) = json.loads(status.stdout)["receivers"]
            assert found["signing_secret_hint"][-4:] == secret[-4:]
        assert http.delete(path).json()["deleted"]
        assert http.get("/v1/webhook_endpoints").json()["data"] == []


class Console:
    """A browser without scripts that has signed in."""

    def __init__(self, root: str, secret: str) -> None:
        self.http = httpx2.Client(
            base_url=root, headers={"sec-fetch-site": "same-origin"}, timeout=DEADLINE_S
        )
        self.sign_in(secret)

    def sign_in(self, secret: str) -> None:
        response = self.http.post("/console/sign-in", data={"secret": secret})
        assert response.status_code == 303, response.text

    def page(self, path: str, status: int = 200) -> str:
        response = self.http.get(f"/console{path}")
        assert response.status_code == status, response.text
        return response.text

    def post(self, path: str, *, to: str | None = None, **fields: str) -> httpx2.Response:
        """Send a form of a page, to that page or to another one."""
        text = self.page(path)
        (token,) = set(re.findall(r'name="form_token" value="([^"]+)"', text))
        return self.http.post(f"/console{to or path}", data={"form_token": token, **fields})


def test_the_console_shows_all_shards_and_finds_each_record(sharded: ShardedSite) -> None:
    jobs = {n: run_job(sharded, n) for n in "ab"}
    batch = {n: run_batch(sharded.clients[n]).id for n in "ab"}
    console = Console(sharded.root, sharded.operator)
    with contextlib.closing(console.http):
        for path in ("", "/workers"):
            assert "does not reply" not in console.page(path)
        workers = console.page("/workers")
        assert "wa@" in workers
        assert "wb@" in workers
        listed, batches = console.page("/jobs"), console.page("/batches")
        for shard in "ab":
            assert jobs[shard] in listed
            assert batch[shard] in batches
            assert TENANT[shard] in console.page("/queues")
            assert TENANT[shard] in console.page(f"/jobs/{jobs[shard]}")
            assert batch[shard] in console.page(f"/batches/{batch[shard]}")
        for path in ("/dead-letters", "/webhooks"):
            console.page(path)
        done = console.post("/queues", kind="tenant", name="t0", action="pause", reason="r")
        assert done.status_code == 303
        assert len(sharded.mills["b"].store.client.hgetall("batchmill:paused")) == 1
        console.post("/queues", kind="tenant", name="t0", action="resume")


def test_the_console_sends_again_what_an_endpoint_did_not_get_from_any_shard(
    sharded: ShardedSite,
) -> None:
    hook = "http://127.0.0.1:2000/hook"
    document = json.dumps({"prompt": "x", "tenant": "t0"})
    queue = keys.queue_name("other", "normal")  # no worker serves it
    stores = {n: sharded.mills[n].store for n in "ab"}
    for shard, store in stores.items():
        job_id = f"gen_lost-{shard}"
        store.submit(NewJob(job_id, "other", queue, document, 600_000, tenant="t0", webhook=hook))
        claim = store.claim(job_id, owner="w", lease_ms=60_000, identity="i")
        assert isinstance(claim, Claim)
        store.complete(job_id, fence=claim.fence, state=JobState.COMPLETED, result="{}")
        for event in store.outbox_claim(owner="test", limit=10, lease_ms=60_000):
            store.outbox_settle(
                event.event_id,
                fence=event.fence,
                outcome=DeliveryOutcome.EXHAUSTED,
                reason="timeout",
            )
        assert Deliveries(store).waiting(limit=10) == ([], 0)
    console = Console(sharded.root, sharded.operator)
    with contextlib.closing(console.http):
        form = {"url": hook, "tenant": "t0", "action": "redeliver"}
        done = console.post("/queues", to="/webhooks", **form)
    assert done.headers["location"].endswith("/webhooks?done=all-redelivered")
    for shard, store in stores.items():
        waiting, _ = Deliveries(store).waiting(limit=10)
        assert [each.id for each in waiting] == [f"evt_gen_lost-{shard}_completed"]
        # Nothing listens at the hook: what waits for it would keep a shard from being drained.
        store.run(job_calls.forget(f"gen_lost-{shard}"))
        assert Deliveries(store).waiting(limit=10) == ([], 0)


def run_job(sharded: ShardedSite, name: str) -> str:
    client = sharded.clients[name]
    return str(client.chat.completions.create(model="demo", messages=TALK, max_tokens=2).id)


def test_a_shard_that_is_away_stops_only_what_needs_it(sharded: ShardedSite) -> None:
    """Kills the server of a shard, and starts it again."""
    old = {n: run_batch(sharded.clients[n]) for n in "ab"}
    console = Console(sharded.root, sharded.operator)
    sharded.servers["a"].kill()
    closing = contextlib.closing(console.http)
    with sharded.http("a") as on_a, sharded.http("b") as on_b, closing:
        # API keys are read from the other shard, and its tenant notices nothing.
        assert shard_name_of(run_job(sharded, "b")) == "b"
        assert run_batch(sharded.clients["b"]).status == "completed"
        refused = on_a.post("/v1/chat/completions", json={"model": "demo", "messages": TALK})
        assert refused.status_code == 503
        assert "shard a of the queue cannot be reached" in refused.json()["error"]["message"]
        assert refused.headers["retry-after"]
        found = on_a.get(f"/v1/batches/{old['a'].id}")
        assert (found.status_code, found.json()["error"]["code"]) == (503, "broker_unavailable")
        for path in ("/v1/batches", "/v1/files"):
            listed = on_b.get(path).json()
            assert listed["missing_shards"] == ["a"]
            assert listed["data"]
        assert on_b.get("/readyz").json()["missing_shards"] == ["a"]
        assert on_b.get("/v1/usage").status_code == 503  # a sum without it would be wrong
        fields = {"name": "x", "url": "http://127.0.0.1:2000", "event_types": ["batch.completed"]}
        created = on_b.post("/v1/webhook_endpoints", json=fields)
        assert "once shard a replies" in created.json()["error"]["message"]
        assert on_b.get("/v1/webhook_endpoints").json()["data"] == []

        if "/sign-in" in str(console.http.get("/console").headers.get("location")):
            console.sign_in(sharded.operator)  # the session was in that shard
        assert "Shard a does not reply" in console.page("")
        assert old["b"].id in console.page("/batches")
        assert "wb@" in console.page("/workers")
        assert "shard a" in console.page(f"/batches/{old['a'].id}", 503).lower()

        sharded.servers["a"].start()
        assert shard_name_of(run_job(sharded, "a")) == "a"
        assert on_a.get(f"/v1/batches/{old['a'].id}").json()["status"] == "completed"
        while "missing_shards" in on_b.get("/v1/batches").json():
            pass


def test_a_shard_is_drained_behind_a_gateway_that_is_restarted(sharded: ShardedSite) -> None:
    """The last test of this file: its gateway gets another list, and accepts no job in a."""
    client = sharded.clients["a"]
    batch = run_batch(client)
    unused = upload(client, [chat_line(9)])
    draining = sharded.list.replace("a=", "a:draining=")
    assert call("shards", "accept", BATCHMILL_BROKER_URLS=draining).returncode == 0
    assert shard_name_of(run_job(sharded, "a")) == "a"  # the gateway has the list before
    gateway = sharded.start_gateway(draining)
    with contextlib.closing(gateway), new_client(gateway.url, sharded.secrets["a"]) as after:
        assert after.batches.retrieve(batch.id).status == "completed"
        assert after.files.content(batch.output_file_id).text.count("custom_id") == 2
        moved = wait_ended(after, create(after, unused).id)
        assert (moved.status, shard_name_of(moved.id)) == ("completed", "b")
        assert {batch.id, moved.id} <= {each.id for each in after.batches.list(limit=1)}
        shown = call("shards", "list", "--json", BATCHMILL_BROKER_URLS=draining)
        (a,) = (each for each in json.loads(shown.stdout)["shards"] if each["name"] == "a")
        assert (a["drained"], a["files"] > 0, a["kept"] > 0) == (True, True, True)
