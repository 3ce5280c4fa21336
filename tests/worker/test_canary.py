"""The content of jobs appears only where it belongs.

Jobs of every kind carry words that occur nowhere else. The test then searches for these words in
everything that the programs write, send, show and leave in Redis.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import traceback
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from celery import Celery

from batchmill.producer import Client, JobRejected, JobUnfinished
from batchmill.producer.broker_url import celery_url
from batchmill.producer.protocol import keys
from batchmill.producer.settings import ProducerSettings
from batchmill.worker.consumer.app_factory import create_app
from batchmill.worker.settings import WorkerSettings
from batchmill.worker.webhooks.local_receiver import WebhookReceiver

from ..conftest import RedisServer
from ..support.processes import CLI, free_port, process
from .command_line import call
from .conftest import Mill, expected_tokens
from .monitor import Monitor
from .webhook_deliverers import SECRET

PASSWORD = "CANARYpassword"
PROMPT = "CANARYprompt"
SYSTEM = "CANARYsystem"
STOP = "CANARYstop"
METADATA = "CANARYmetadata"
SCHEMA = "CANARYschema"
WRONG = "CANARYwrong"
#: The only places for content: start of the key -> fields of a hash (None: the whole value).
PLACES_FOR_CONTENT: dict[str, tuple[str, ...] | None] = {
    # The record: the job document and the result.
    "batchmill:job:": ("doc", "result"),
    # The text so far of a job that is running, or that ended without a result.
    "batchmill:text:": None,
    # A dead letter, to be inspected and retried.
    "batchmill:dead:": ("payload",),
    # The body of an event: with `metadata`, and with the text if the job asked for it.
    "batchmill:event:": ("body",),
    # Celery's result of a plain Celery task, which its sender asked for.
    "celery-task-meta-": None,
}


def output_of(prompt: str) -> str:
    """Return the first three words of the stub's output, a sequence that occurs nowhere else."""
    return "".join(f" w{token_id}" for token_id in expected_tokens(prompt, 3)).strip()


class Site:
    """Every program on one server, each with its log, and all output collected so far."""

    def __init__(self, mill: Mill, monitor: Monitor, flower: str, folder: Path) -> None:
        self.mill = mill
        self.monitor = monitor
        self.flower = flower
        self.folder = folder
        #: Output by its source.
        self.shown: dict[str, str] = {}

    def show(self, *arguments: str) -> str:
        """Run one of our commands, keep its output, and return its stdout."""
        answer = call(*arguments, BATCHMILL_BROKER_URL=self.mill.url)
        self.shown["batchmill " + " ".join(arguments[:3])] = answer.stdout + answer.stderr
        return answer.stdout

    def page(self, path: str) -> str:
        """Return a page of Flower and keep it."""
        try:
            with urllib.request.urlopen(f"{self.flower}{path}", timeout=60) as answer:
                text = str(answer.read().decode())
        except urllib.error.HTTPError as error:
            text = error.read().decode()
        except OSError:
            return ""
        self.shown[f"Flower {path}"] = text
        return text


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    """Worker, deliverer and Flower at the lowest log level, on a server with a password."""
    server = RedisServer()
    server.start()
    with ExitStack() as stack:
        stack.callback(server.close)
        bare = Mill(server.url, tmp_path)
        bare.store.client.config_set("requirepass", PASSWORD)
        bare.close()
        mill = Mill(f"{server.url}?password={PASSWORD}", tmp_path)
        stack.callback(mill.close)
        allowed: dict[str, Any] = {
            "webhook_allow_http": "1",
            "webhook_allow_ports": "1024-65535",
            "webhook_allow_networks": "127.0.0.0/8",
        }
        mill.start_worker(log_level="DEBUG", reannounce_grace_s=60, **allowed)
        environment = {f"BATCHMILL_{name.upper()}": value for name, value in allowed.items()}
        environment |= {"BATCHMILL_BROKER_URL": mill.url, "BATCHMILL_WEBHOOK_SECRET": SECRET}
        environment |= {"BATCHMILL_LOG_LEVEL": "DEBUG"}
        deliver = (*CLI, "deliver")
        log = tmp_path / "deliverer.log"
        stack.enter_context(process(*deliver, environment=environment, log=log))
        port = free_port()
        options = {
            "CELERY_BROKER_URL": celery_url(mill.url),
            "FLOWER_ADDRESS": "127.0.0.1",
            "FLOWER_PORT": str(port),
            "FLOWER_READ_ONLY": "true",
            "FLOWER_UNAUTHENTICATED_API": "true",
        }
        log = tmp_path / "flower.log"
        flower = ("-m", "celery", "flower", "--logging=debug")
        stack.enter_context(process(*flower, environment=options, log=log))
        monitor = Monitor(mill.celery)
        stack.callback(monitor.close)
        site = Site(mill, monitor, f"http://127.0.0.1:{port}", tmp_path)
        mill.wait_for(lambda: site.page("/healthcheck") == "OK", "Flower", timeout_s=60)
        mill.wait_for(lambda: mill.store.client.pubsub_numpat() >= 2, "the monitors to listen")
        yield site


def fields(*, structured: bool = False, say: str = "", **changes: Any) -> dict[str, Any]:
    """Return the fields of a job with content in every field that takes any."""
    schema = {"type": "object", "title": SCHEMA}
    structure = {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}
    end = {"response_format": structure} if structured else {"stop": [STOP]}
    return {
        "messages": [
            {"role": "system", "content": SYSTEM},
            {"role": "user", "content": f"{PROMPT} {say}"},
        ],
        "metadata": {"note": METADATA},
        "max_tokens": 6,
        "seed": 7,
        **end,
        **changes,
    }


def send_jobs(site: Site, hook: str) -> dict[str, str]:
    """Send jobs in every possible way; return their ids by purpose."""
    mill = site.mill
    settings = ProducerSettings(
        webhook_allow_http=True,
        webhook_allow_ports=("1024-65535",),
        webhook_allow_networks=("127.0.0.0/8",),
    )
    queue = keys.queue_name("demo", "normal")
    with Client(mill.url, settings=settings) as client:
        ids = {
            "plain": client.submit(**fields(webhook=hook)).id,
            "structured": client.submit(**fields(structured=True)).id,
            "with output": client.submit(**fields(webhook=hook, include_output=True)).id,
            "failing": client.submit(**fields(say="<<error@4>>", webhook=hook)).id,
            "refused": client.submit(**fields(say="<<refuse>>")).id,
            "too long": client.submit(**fields(say="x" * 20_000)).id,
            "waiting for a worker": client.submit(**fields(model="unserved")).id,
        }
        for wrong in (
            {"temperature": WRONG},
            {"metadata": {"note": [WRONG]}},
            {"stop": [WRONG * 100]},
        ):
            with pytest.raises(JobRejected) as rejected:
                client.submit(**fields(**wrong))
            site.shown[f"the error of {next(iter(wrong))}"] = trace(rejected.value)
        with pytest.raises(JobUnfinished) as unfinished:
            client.result(ids["failing"], timeout_s=30)
        site.shown["the error of a failed job"] = trace(unfinished.value)
    for name, changes in (("inbox", {"structured": True}), ("bad inbox", {"temperature": WRONG})):
        ids[name] = name.replace(" ", "-")
        document = {"id": ids[name], **fields(**changes)}
        mill.store.client.lpush(keys.INBOX, json.dumps(document))
    for name, task in {
        "celery": {"job": fields(structured=True)},
        "failing celery": {"job": fields(say="<<error@4>>")},
        "rejected celery": {"job": fields(temperature=WRONG)},
        "strange celery": {"jobs": fields()},
    }.items():
        ids[name] = str(mill.celery.send_task(keys.TASK_NAME, kwargs=task, queue=queue).id)
    message = {"body": json.dumps([[], {"job": fields()}, {}])[:-5], "properties": {}}
    mill.store.client.lpush(queue, json.dumps(message), f"{{{PROMPT}")
    return ids


def trace(error: BaseException) -> str:
    return "".join(traceback.format_exception(error))


def run_bulk(site: Site) -> None:
    rows = [
        {"custom_id": f"row-{n}", "body": fields(), "url": "/v1/chat/completions"} for n in (1, 2)
    ]
    rows += [{"custom_id": "bad", "body": fields(temperature=WRONG), "url": "/v1/chat/completions"}]
    source, answers, errors = (site.folder / f"{name}.jsonl" for name in ("in", "out", "err"))
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = [
        sys.executable,
        *CLI,
        "bulk",
        str(source),
        "-o",
        str(answers),
        "--errors",
        str(errors),
    ]
    site_url = {"BATCHMILL_BROKER_URL": site.mill.url}
    done = subprocess.run(
        command, env={**os.environ, **site_url}, capture_output=True, text=True, timeout=120
    )
    site.shown["batchmill bulk"] = done.stdout + done.stderr
    assert len(answers.read_text().splitlines()) == 2, done.stderr


def collect_output(site: Site, ids: dict[str, str]) -> None:
    """Collect everything that every program shows."""
    site.show("status", "--json")
    site.show("doctor", "--json")
    site.show("dead-letters", "list", "--json")
    site.show("webhooks", "list", "--json")
    for job_id in ids.values():
        site.show("status", job_id, "--json")
    inspect = site.mill.celery.control.inspect(timeout=60, limit=1)
    for name in ("stats", "conf", "active", "reserved", "registered", "report", "scheduled"):
        answer = getattr(inspect, name)()
        assert answer, name
        site.shown[f"celery inspect {name}"] = json.dumps(answer, default=str)
    site.mill.wait_for(
        # Not all of them: Flower may begin to listen after the first.
        lambda: any(job_id in site.page("/api/tasks") for job_id in ids.values()),
        "a task in Flower",
    )
    for path in ("/tasks", "/workers", "/broker", "/metrics", "/api/workers?refresh=1"):
        site.page(path)
    for job_id in ids.values():
        site.page(f"/task/{job_id}")
        site.page(f"/api/task/info/{job_id}")
    site.shown["Celery events"] = json.dumps(site.monitor.events, default=str)
    for log in site.folder.glob("*.log"):
        site.shown[log.name] = log.read_text()


def stored(redis: Any) -> Iterator[tuple[str, str]]:
    """Yield everything in Redis outside the places for content: its place, and the text."""
    for key in redis.scan_iter():
        name = key.decode(errors="replace")
        yield f"the name {name}", name
        begins = [start for start in PLACES_FOR_CONTENT if name.startswith(start)]
        meant = PLACES_FOR_CONTENT[begins[0]] if begins else ()
        if meant is not None:
            for field, value in read_key(redis, key):
                if field not in meant:
                    yield f"{name} {field}", f"{field} {value!r}"


def read_key(redis: Any, key: bytes) -> list[tuple[str, Any]]:
    """Return the fields of a hash, or one field without a name."""
    kind = redis.type(key)
    if kind == b"hash":
        return [(field.decode(), value) for field, value in redis.hgetall(key).items()]
    read = {
        b"string": redis.get,
        b"list": lambda name: redis.lrange(name, 0, -1),
        b"set": redis.smembers,
        b"zset": lambda name: redis.zrange(name, 0, -1),
    }[kind]
    return [("", read(key))]


def test_content_appears_only_where_it_belongs(site: Site) -> None:
    canaries = [PASSWORD, PROMPT, SYSTEM, STOP, METADATA, SCHEMA, WRONG]
    rendered = f"<system>{SYSTEM}<user>{PROMPT} "
    canaries.append(output_of(rendered))
    redis = site.mill.store.client
    with WebhookReceiver() as receiver:
        ids = send_jobs(site, receiver.url)
        run_bulk(site)
        ended = (
            "plain",
            "structured",
            "with output",
            "failing",
            "refused",
            "too long",
            "inbox",
            "celery",
        )
        site.mill.wait_for(lambda: site.mill.store.state("inbox"), "the inbox")
        records = dict(zip(ended, site.mill.wait_ended(*(ids[n] for n in ended)), strict=True))
        site.mill.wait_for(lambda: len(site.mill.store.dead_letters()) >= 3, "the dead letters")
        site.show("dead-letters", "retry", "bad-inbox", "--json")
        assert receiver.wait_for(3, timeout_s=30)
        site.mill.wait_for(
            lambda: site.mill.store.dead_letter("bad-inbox"), "the dead letter to return"
        )

    collect_output(site, ids)

    # The search works: it finds the words where they belong.
    assert canaries[-1] in json.loads(records["plain"].result or b"{}")["text"]
    documents = records["plain"].document.decode() + records["structured"].document.decode()
    assert all(word in documents for word in canaries[1:6])
    assert any(canaries[-1].encode() in request.body for request in receiver.requests)
    assert redis.llen(keys.announced("batchmill.unserved.normal")) == 1
    assert len(site.shown) > 40
    found = [
        (canary, place)
        for place, text in [*site.shown.items(), *stored(redis)]
        for canary in canaries
        if canary in text
    ]
    assert found == []


@pytest.mark.parametrize(
    "url",
    [
        f"redis://127.0.0.1:1/0?password={PASSWORD}",
        f"redis://127.0.0.1:1/0?username=u&password={PASSWORD}&db=3",
        f"rediss://u:{PASSWORD}@127.0.0.1:1/0",
        f"unix:///tmp/none?password={PASSWORD}",
        f"unix://:{PASSWORD}@/tmp/none?db=0",
    ],
)
def test_a_password_is_hidden_however_the_url_holds_it(url: str) -> None:
    app: Celery = create_app(WorkerSettings(broker_url=url, engine="stub"))
    shown = json.dumps(app.conf.table(with_defaults=True, censored=True), default=str)
    shown += app.connection_for_read().as_uri() + app.conf.humanize(censored=True)
    assert PASSWORD not in shown
    app.close()
