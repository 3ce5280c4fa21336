"""With encryption keys, content is nowhere readable: in Redis, its append-only file, or a store.

Jobs come through every entrance, with words that occur nowhere else. What other programs write to
Redis, inbox documents and Celery messages, is plain until a worker has it; its words are different.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx2
import pytest
from pydantic import SecretStr

from batchmill.producer import AsyncClient, Client
from batchmill.producer.encryption.key_ring import KeyRing, new_key
from batchmill.producer.protocol import keys
from batchmill.producer.protocol.calls.inbox import MAX_DOCUMENT_BYTES
from batchmill.producer.settings import ProducerSettings
from batchmill.producer.store.job_store import JobStore

from ..conftest import RedisServer
from ..support.processes import CLI, process
from .command_line import call
from .conftest import Mill
from .gateway.conftest import Gateway, make_key
from .webhook_deliverers import SECRET

KEY = new_key("current")
#: In what our clients and the gateway get; and in what other programs push to Redis.
OURS, THEIRS = "CANARYours", "CANARYtheirs"
WORDS = (OURS.encode(), THEIRS.encode())
LARGE = f"{OURS} " * 200
HOOKS = {
    "webhook_allow_http": "1",
    "webhook_allow_ports": "1-65535",
    "webhook_allow_networks": "127.0.0.0/8",
}
DEADLINE_S = 60.0


class SealedSite:
    """A server with an append-only file, a worker, a deliverer and a gateway, all with one key."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        options = ("--appendonly", "yes", "--aof-use-rdb-preamble", "no")
        self.server = RedisServer(*options)
        self.server.start()
        stack.callback(self.server.close)
        self.folder = folder
        self.objects, self.files = folder / "objects", folder / "files"
        self.mill = Mill(self.server.url, folder)
        stack.callback(self.mill.close)
        self.shared: dict[str, Any] = {
            "encryption_keys": KEY.to_text(),
            "payload_url": self.objects.as_uri(),
            "payload_threshold_bytes": 512,
            **HOOKS,
        }
        self.settings = ProducerSettings(
            **(self.shared | {"encryption_keys": SecretStr(KEY.to_text())})
        )
        self.mill.store = JobStore(
            self.mill.store.client, key_ring=KeyRing([KEY]), objects=self.settings.object_store
        )
        # Long enough for a third of it to be the time of an object.
        self.mill.start_worker(lease_s=15, **self.shared)
        environment = {f"BATCHMILL_{k.upper()}": str(v) for k, v in self.shared.items()}
        environment |= {
            "BATCHMILL_BROKER_URL": self.server.url,
            "BATCHMILL_WEBHOOK_SECRET": SECRET,
        }
        deliver, log = (*CLI, "deliver"), folder / "deliverer.log"
        stack.enter_context(process(*deliver, environment=environment, log=log))
        secret = make_key(self.mill)
        self.gateway = Gateway(
            self.server.url, folder / "gateway.log", gateway_files_url=self.files, **self.shared
        )
        stack.callback(self.gateway.close)
        self.http = stack.enter_context(
            httpx2.Client(
                base_url=self.gateway.url.removesuffix("/v1"),
                headers={"authorization": f"Bearer {secret}"},
                timeout=DEADLINE_S,
            )
        )

    def post(self, path: str, **body: Any) -> Any:
        answer = self.http.post(path, json={"model": "demo", **body})
        assert answer.status_code == 200, (path, answer.text)
        return answer.json()

    def readable(self) -> list[tuple[str, bytes]]:
        """Return the places in Redis, in the store of objects and in that of files with a word."""
        redis: Any = self.mill.store.client
        return [
            (place, word)
            for place, content in [*_stored(redis), *_contents(self.objects, self.files)]
            for word in WORDS
            if word in content
        ]

    def append_only_file(self) -> bytes:
        return b"".join(content for _, content in _contents(self.server.folder / "appendonlydir"))


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SealedSite]:
    with ExitStack() as stack:
        yield SealedSite(tmp_path_factory.mktemp("sealed"), stack)


def _contents(*folders: Path) -> Iterator[tuple[str, bytes]]:
    for folder in folders:
        for path in folder.rglob("*"):
            yield path.name, path.name.encode()
            if path.is_file():
                yield str(path), path.read_bytes()


def _stored(redis: Any) -> Iterator[tuple[str, bytes]]:
    """Yield every key, field and value in Redis, with its place."""
    for key in redis.scan_iter():
        name = key.decode(errors="replace")
        yield name, key
        read = {
            b"hash": lambda key: [x for pair in redis.hgetall(key).items() for x in pair],
            b"string": lambda key: [redis.get(key)],
            b"list": lambda key: redis.lrange(key, 0, -1),
            b"zset": lambda key: redis.zrange(key, 0, -1),
            b"set": redis.smembers,
        }[redis.type(key)]
        yield from ((name, value) for value in read(key))


def _send_by_clients(site: SealedSite) -> None:
    """Send jobs by the clients, the command line and as batches, and wait for their ends."""
    with Client(site.server.url, settings=site.settings) as client:
        tool = {"type": "function", "function": {"name": "f", "description": OURS}}
        ids = [
            client.submit(prompt=OURS, max_tokens=4, idempotency_key="k").id,
            client.submit(prompt=LARGE, max_tokens=400, metadata={"note": OURS}).id,
            client.submit(
                messages=[{"role": "user", "content": OURS}],
                tools=[tool],
                stop=[OURS],
                max_tokens=4,
                webhook="http://127.0.0.1:9/hook",
                include_output=True,
            ).id,
            client.submit(prompt=f"{OURS} <<error@2>>", max_tokens=4).id,
            client.submit(prompt=OURS, max_tokens=4, model="unserved").id,
            client.submit(prompt=OURS, model="unserved", explain=["attribution"]).id,
            client.submit(embedding={"input": [OURS]}).id,
        ]
        for number in (2, 200):  # in Redis, and as an object
            media = client.put_media(b"\x89PNG\r\n\x1a\n" + OURS.encode() * number)
            part = {"type": "image", "media": media}
            message = {"role": "user", "content": [part, {"type": "text", "text": OURS}]}
            client.submit(messages=[message], max_tokens=4, model="unserved")
        question = {"type": "yes_no", "instructions": OURS}
        client.decide({"state": OURS}, {"q": question}, timeout_s=DEADLINE_S)
        batch_lines = [{"prompt": f"{OURS} {i}", "max_tokens": 4} for i in range(2)]
        batch = client.create_batch(batch_lines, idempotency_key="b")
        site.mill.wait_for(lambda: client.batch(batch.id).status.is_terminal, "the batch")
        site.mill.wait_ended(*ids[:4])

    async def send() -> None:
        async with AsyncClient(site.server.url, settings=site.settings) as client:
            job = await client.submit(prompt=OURS, max_tokens=4)
            await job.result(timeout_s=DEADLINE_S)

    asyncio.run(send())
    lines, out = site.folder / "in.jsonl", site.folder / "out.jsonl"
    lines.write_text(json.dumps({"prompt": OURS, "max_tokens": 4}) + "\n")
    given = {f"BATCHMILL_{name.upper()}": str(value) for name, value in site.shared.items()}
    done = call("bulk", str(lines), "-o", str(out), "--broker-url", site.server.url, **given)
    assert done.returncode == 0, done.stderr


def _send_by_gateway(site: SealedSite) -> str:
    """Send requests of every API; return the id of an uploaded file."""
    chat = {"messages": [{"role": "user", "content": OURS}], "max_tokens": 4}
    site.post("/v1/chat/completions", **chat)
    site.post("/v1/completions", prompt=OURS, max_tokens=4)
    first = site.post("/v1/responses", input=OURS, instructions=OURS, max_output_tokens=20)
    site.post("/v1/responses", input=OURS, previous_response_id=first["id"], max_output_tokens=20)
    site.post("/v1/messages", **chat)
    question = {"id": "q", "type": "yes_no", "question": OURS}
    site.post("/v1/decisions", input=OURS, questions=[question])
    batch = {"requests": [{"custom_id": "a", "params": {"model": "demo", **chat}}]}
    made = site.http.post("/v1/messages/batches", json=batch).json()
    line = {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": chat}
    content = (json.dumps(line) + "\n").encode()
    file = site.http.post(
        "/v1/files",
        data={"purpose": "batch"},
        files={"file": (f"{OURS}.jsonl", content, "application/jsonl")},
    ).json()
    fields = {"endpoint": "/v1/chat/completions", "completion_window": "24h"}
    opened = site.http.post("/v1/batches", json={"input_file_id": file["id"], **fields}).json()

    def has_ended(path: str, field: str) -> bool:
        return site.http.get(path).json()[field] in ("completed", "ended")

    site.mill.wait_for(lambda: has_ended(f"/v1/batches/{opened['id']}", "status"), "the batch")
    path = f"/v1/messages/batches/{made['id']}"
    site.mill.wait_for(lambda: has_ended(path, "processing_status"), "the message batch")
    assert site.http.get(f"/v1/files/{file['id']}/content").content == content
    (listed,) = site.http.get("/v1/files").json()["data"]
    assert listed["filename"] == f"{OURS}.jsonl"
    return str(file["id"])


def _push(site: SealedSite) -> None:
    """Send jobs as other programs do: good ones, and some that are refused."""
    redis: Any = site.mill.store.client
    good = {"prompt": THEIRS, "max_tokens": 4}
    redis.lpush(
        keys.INBOX,
        json.dumps({"id": "good-inbox", **good}),
        json.dumps({"id": "bad-inbox", **good, "temperature": THEIRS}),
        f"{THEIRS} is not JSON",
        THEIRS * (MAX_DOCUMENT_BYTES // len(THEIRS) + 1),
    )
    queue, celery = keys.queue_name("demo", "normal"), site.mill.celery
    follows = celery.signature("other.task", args=(THEIRS,), queue="others", immutable=True)
    kept = {"queue": queue, "ignore_result": True}
    for job in (good, {**good, "temperature": THEIRS}):
        celery.send_task(keys.TASK_NAME, kwargs={"job": job}, link=follows, **kept)
    # What waits for a delay keeps what follows it in its record.
    later = celery.send_task(
        keys.TASK_NAME, kwargs={"job": good}, link=follows, countdown=600, **kept
    )
    redis.lpush(queue, f"{{{THEIRS}")
    site.mill.wait_for(lambda: site.mill.store.state("good-inbox"), "the inbox")
    site.mill.wait_for(lambda: site.mill.store.load(later.id), "the delayed task")
    record = site.mill.record(later.id)
    assert THEIRS.encode() in (record.celery_embed or b"")
    site.mill.wait_ended("good-inbox")
    site.mill.wait_for(lambda: redis.llen("others") == 1, "the task that follows")
    redis.delete("others")  # its own program takes it, plain as it was sent


def _letters(site: SealedSite) -> dict[str, bytes]:
    letters = site.mill.store.dead_letters()
    return {letter.reason.partition(":")[0]: letter.payload for letter in letters}


def test_nothing_readable_is_stored(site: SealedSite) -> None:
    _send_by_clients(site)
    file_id = _send_by_gateway(site)
    assert (site.files / file_id).exists()
    assert OURS.encode() not in site.append_only_file()
    _push(site)
    refused = {"invalid_request", "not_json", "too_large"}
    site.mill.wait_for(lambda: refused <= _letters(site).keys(), "the dead letters")
    # Programs with the key read the letters.
    assert all(THEIRS.encode() in _letters(site)[reason] for reason in refused)
    redis: Any = site.mill.store.client
    site.mill.wait_for(lambda: not redis.exists(keys.PLAIN_LETTERS), "every letter to be sealed")
    site.mill.wait_for(lambda: _has_bodies(redis), "the body of a waiting webhook")

    assert site.readable() == []
    redis.bgrewriteaof()  # forgets what others have pushed
    site.mill.wait_for(lambda: not redis.info("persistence")["aof_rewrite_in_progress"], "it")
    redis.set("end", "of the test")
    assert not any(word in site.append_only_file() for word in WORDS)

    # The search works: it finds a job that was sent without the key.
    with Client(site.server.url) as careless:
        careless.submit(prompt=OURS, max_tokens=4, model="unserved")
    assert [word for _, word in site.readable()] == [OURS.encode()]


def _has_bodies(redis: Any) -> bool:
    return any(redis.hexists(key, "body") for key in redis.scan_iter(keys.event("*")))


def test_a_refused_document_is_retried_as_it_was_pushed(site: SealedSite) -> None:
    redis: Any = site.mill.store.client
    document = {"id": "retried", "prompt": THEIRS, "max_tokens": 4, "model": "x y"}
    for _ in range(2):  # the same again is the same letter
        redis.lpush(keys.INBOX, json.dumps(document))
        site.mill.wait_for(lambda: redis.exists(keys.dead("retried")), "the letter")
        site.mill.wait_for(lambda: not site.mill.store.counts().inbox, "the inbox")
    num_letters = sum(x.payload == json.dumps(document).encode() for x in _all_letters(site))
    assert num_letters == 1
    environment = {"BATCHMILL_ENCRYPTION_KEYS": KEY.to_text()}
    where = ("--broker-url", site.server.url)
    without = call("dead-letters", "retry", "retried", *where)
    assert without.returncode != 0
    assert "'current'" in without.stderr
    before = redis.hget(keys.dead("retried"), "at_ms")
    done = call("dead-letters", "retry", "retried", *where, **environment)
    assert done.returncode == 0, done.stderr
    deadline = time.monotonic() + DEADLINE_S
    while redis.hget(keys.dead("retried"), "at_ms") in (None, before):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def _all_letters(site: SealedSite) -> list[Any]:
    return list(site.mill.store.dead_letters(limit=1000))
