"""A gateway with its console before a real worker, with jobs of every kind of two tenants."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
import pytest

from batchmill.producer import Client
from batchmill.producer.job.document import GenerationJob
from batchmill.producer.protocol.calls import jobs as job_calls
from batchmill.producer.protocol.replies import (
    Claim,
    HeldJob,
    JobState,
    ReleaseCause,
    ReleaseStatus,
    TokenWrite,
)
from batchmill.producer.settings import ProducerSettings
from batchmill.producer.store.job_store import JobStore
from batchmill.producer.store.submission import prepare
from batchmill.worker.webhooks.local_receiver import ReceivedRequest, WebhookReceiver

from ...conftest import RedisServer
from ..conftest import Mill
from ..gateway.conftest import DEADLINE_S, Gateway, make_key
from ..webhook_deliverers import Deliverers

#: A prompt that would run if a page did not escape it.
HOSTILE = '<script>document.title="owned"</script><img src=x onerror=alert(1)>'
CANARY = "CANARY-PROMPT-7f3a"
#: Questions whose words would run if a page did not escape them.
DECISION: dict[str, Any] = {
    "state": HOSTILE,
    "questions": {
        "refund": {"type": "yes_no", "instructions": f"Is a refund due? {HOSTILE}"},
        "topic": {"type": "choice", "criteria": {"billing": "charges", "praise": None}},
        "anger": {"type": "score", "criteria": ["calm", HOSTILE]},
    },
}
#: No worker serves it: its jobs are as the tests leave them.
UNSERVED = "other"
#: Fields of the API keys, by who holds them.
KEYS: dict[str, dict[str, Any]] = {
    "operator": {"scopes": ("operator", "texts")},
    "acme": {"tenant": "acme", "scopes": ("submit", "read", "texts")},
    "admin": {"tenant": "acme", "scopes": ("admin",)},
    "reader": {"tenant": "acme", "scopes": ("read",)},
    "stranger": {"tenant": "stranger", "scopes": ("admin",)},
    "sender": {"tenant": "acme", "scopes": ("submit",)},
}


@dataclass
class Site:
    """Everything that runs, the keys, and the ids of what there is."""

    folder: Path
    server: RedisServer = field(default_factory=RedisServer)
    ids: dict[str, str] = field(default_factory=dict)
    keys: dict[str, str] = field(default_factory=dict)

    def start(self) -> None:
        self.server.start()
        self.mill = Mill(self.server.url, self.folder)
        self.store: JobStore = self.mill.store
        self.receiver = WebhookReceiver(_respond)
        self.receiver.__enter__()
        self.deliverers = Deliverers(self.server.url)
        self.deliverers.start(WEBHOOK_SCHEDULE_S="0,0.05")
        for name, fields in KEYS.items():
            self.keys[name] = make_key(self.mill, **fields)
        worker = self.mill.launch()  # the gateway starts beside it
        prices = json.dumps({"*": {"input": 0.1, "output": 0.4, "currency": "EUR"}})
        self.gateway = Gateway(
            self.server.url,
            self.folder / "gateway.log",
            gateway_files_url=self.folder / "files",
            prices=prices,
        )
        self.root = self.gateway.url.removesuffix("/v1")
        self.mill.wait_for(lambda: self.mill.heartbeat(worker), "the worker", timeout_s=DEADLINE_S)

    def close(self) -> None:
        self.gateway.close()
        self.deliverers.close()
        self.receiver.__exit__(None, None, None)
        self.mill.close()
        self.server.close()

    def fill(self) -> None:
        """Make an object of every kind, all of tenant acme."""
        mill, store, ids, hook = self.mill, self.store, self.ids, self.receiver.url
        ids["done"] = submit(store, tags=["night-run"], max_tokens=40, logprobs=4, webhook=hook)
        ids["hostile"] = submit(store, HOSTILE, tags=["hostile"], max_tokens=4)
        ids["failed"] = submit(store, f"{CANARY} <<error@4>>", webhook=hook)
        ids["refused_hook"] = submit(store, webhook=f"{hook}/refuse")
        chat = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": CANARY}]
        ids["chat"] = submit(store, messages=chat, max_tokens=8, n=2)
        ids["decision"] = submit(store, decision=DECISION)
        with Client(self.server.url) as client:
            lines = [{"prompt": f"{CANARY} {number}", "max_tokens": 8} for number in range(30)]
            ids["batch"] = client.create_batch(lines, tenant="acme").id
        mill.wait_ended(*(ids[name] for name in ("done", "hostile", "failed", "chat", "decision")))
        ids["letter"] = dead_job(self.store)
        ids["interrupted"] = interrupted_job(self.store)
        ids["explained"] = explained_job(self.store)
        ids["event"] = f"evt_{ids['done']}_completed"
        ids["failed_event"] = f"evt_{ids['refused_hook']}_completed"
        mill.wait_for(lambda: self.store.dead_letter(ids["failed_event"]), "the webhook's end")

    @contextmanager
    def http(self, who: str = "") -> Iterator[httpx2.Client]:
        """Yield a client that has signed in, unless nobody is named."""
        with httpx2.Client(base_url=self.root, timeout=DEADLINE_S) as client:
            if who:
                form = {"secret": self.keys[who]}
                response = client.post("/console/sign-in", data=form, headers=self.origin)
                assert response.status_code == 303, response.text
            yield client

    def receiver_got(self, event_id: str) -> int:
        """Return how often the receiver got an event."""
        got = [request.headers.get("webhook-id") for request in self.receiver.requests]
        return got.count(event_id)

    @property
    def origin(self) -> dict[str, str]:
        """The headers of a form of the console's own pages."""
        return {"origin": self.root}


def dead_job(store: JobStore) -> str:
    """Make a job that has ended as a dead letter, because the engine died with it each time."""
    job_id = submit_unserved(store, CANARY)
    for _ in range(20):
        claim = store.claim(job_id, owner="lost@test", lease_ms=60_000, identity="test")
        assert isinstance(claim, Claim), claim
        held = [HeldJob(job_id, claim.fence)]
        if store.release(held, cause=ReleaseCause.ENGINE_DEATH) == [ReleaseStatus.DEAD]:
            return job_id
    raise AssertionError("the job does not die")


def interrupted_job(store: JobStore) -> str:
    """Make a job that completed in its second attempt, after its worker was drained."""
    job_id = submit_unserved(store, CANARY)
    claim = store.claim(job_id, owner="first@test", lease_ms=60_000, identity="test")
    assert isinstance(claim, Claim)
    store.checkpoint([TokenWrite(job_id, claim.fence, 0, [1, 2, 3])], lease_ms=60_000)
    store.release([HeldJob(job_id, claim.fence)], cause=ReleaseCause.DRAIN)
    claim = store.claim(job_id, owner="second@test", lease_ms=60_000, identity="test")
    assert isinstance(claim, Claim)
    result = {"id": job_id, "model": UNSERVED, "status": "completed", "text": "an output"}
    store.complete(job_id, fence=claim.fence, state=JobState.COMPLETED, result=json.dumps(result))
    return job_id


def explained_job(store: JobStore) -> str:
    """Make a job whose result has an explanation, of hostile texts."""
    job_id = submit_unserved(store, CANARY, explain=["confidence", "attribution"])
    claim = store.claim(job_id, owner="first@test", lease_ms=60_000, identity="test")
    assert isinstance(claim, Claim)
    token = {"text": HOSTILE, "probability": 0.5, "entropy": 1.0, "rank": 1, "margin": 0.25}
    part = {"source": "prompt", "text": HOSTILE, "leave_one_out": 1.5, "weight": 2.25}
    explanation = {
        "confidence": [token],
        "attribution": {"segments": [part], "top_k_drop": {"1": 2.5}, "lds": 0.75},
        "usage": {
            "num_requests": 43,
            "cached_tokens": 567,
            "prompt_tokens": 1200,
            "completion_tokens": 34,
        },
    }
    result = {"id": job_id, "model": UNSERVED, "status": "completed", "text": HOSTILE}
    text = json.dumps(result | {"explain": explanation})
    store.complete(job_id, fence=claim.fence, state=JobState.COMPLETED, result=text)
    return job_id


def submit(store: JobStore, prompt: str = CANARY, **fields: Any) -> str:
    """Submit a job of acme, whose webhook may be on this machine."""
    given = {"tenant": "acme", **fields}
    if "decision" not in given:
        given = {"max_tokens": 16, "seed": 7, **given}
    if not {"messages", "decision"} & given.keys():
        given["prompt"] = prompt
    settings = ProducerSettings(
        webhook_allow_http=True,
        webhook_allow_ports=("1024-65535",),
        webhook_allow_networks=("127.0.0.0/8",),
    )
    new = prepare(GenerationJob(**given), settings)
    store.run(job_calls.submit(new))
    return new.job_id


def submit_unserved(store: JobStore, prompt: str, **fields: Any) -> str:
    """Submit a job that no worker takes."""
    return submit(store, prompt, model=UNSERVED, **fields)


def _respond(request: ReceivedRequest) -> int:
    return 400 if request.path.endswith("/refuse") else 204


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    site = Site(tmp_path_factory.mktemp("console"))
    site.start()
    try:
        site.fill()
        yield site
    finally:
        site.close()
