"""The access rules of the operations page allow what every program needs, and nothing else."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import redis

from batchmill.producer import Client, ProducerSettings, new_secret
from batchmill.producer.store.job_store import JobStore
from batchmill.worker.webhooks.local_receiver import WebhookReceiver

from ..conftest import RedisServer
from ..support.processes import CLI, STUB, free_port, process, ready_worker, wait_until
from .public_interface import ROOT

PASSWORD = "open-sesame"


def access_rules() -> list[list[str]]:
    """Return the page's rules: the words of each line."""
    page = (ROOT / "docs" / "operations.md").read_text()
    (rules,) = re.findall(r"^```acl\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    return [line.replace("PASSWORD", PASSWORD).split() for line in rules.splitlines()]


@pytest.fixture
def port() -> Iterator[int]:
    """The port of a server with the page's rules."""
    port = free_port()
    server = RedisServer("--bind", "127.0.0.1", "--port", str(port))
    server.start()
    default = redis.Redis.from_url(server.url, single_connection_client=True)
    for _, user, *rules in sorted(access_rules(), key=lambda words: words[1] == "default"):
        default.execute_command("ACL", "SETUSER", user, *rules)
    default.close()
    yield port
    server.close()


def url_of(user: str, port: int) -> str:
    return f"redis://{user}:{PASSWORD}@127.0.0.1:{port}/0"


def test_every_program_runs_under_its_own_rules(port: int, tmp_path: Path) -> None:
    flower_port = free_port()
    admin = redis.Redis.from_url(url_of("admin", port), decode_responses=True)
    store = JobStore.from_url(url_of("producer", port))
    with ExitStack() as stack:
        receiver = stack.enter_context(WebhookReceiver())
        stack.enter_context(ready_worker(url_of("worker", port), store, tmp_path))
        deliverer = {
            **STUB,
            "BATCHMILL_BROKER_URL": url_of("deliverer", port),
            "BATCHMILL_WEBHOOK_ALLOW_HTTP": "true",
            "BATCHMILL_WEBHOOK_ALLOW_PORTS": "1024-65535",
            "BATCHMILL_WEBHOOK_ALLOW_NETWORKS": "127.0.0.0/8",
            "BATCHMILL_WEBHOOK_SECRET": new_secret(),
        }
        log = tmp_path / "deliverer.log"
        stack.enter_context(process(*CLI, "deliver", environment=deliverer, log=log))
        flower = {
            **STUB,
            "BATCHMILL_BROKER_URL": url_of("flower", port),
            "FLOWER_ADDRESS": "127.0.0.1",
            "FLOWER_PORT": str(flower_port),
            "FLOWER_READ_ONLY": "true",
            "FLOWER_UNAUTHENTICATED_API": "true",
        }
        log = tmp_path / "flower.log"
        stack.enter_context(process(*CLI, "flower", environment=flower, log=log))
        wait_until(lambda: ask_flower(flower_port, "workers?refresh=1") != {}, "Flower")

        settings = ProducerSettings(
            webhook_allow_http=True,
            webhook_allow_ports=("1024-65535",),
            webhook_allow_networks=("127.0.0.0/8",),
        )
        client = stack.enter_context(Client(url_of("producer", port), settings=settings))
        job = client.submit(
            prompt="hello", max_tokens=8, webhook=receiver.url, idempotency_key="once"
        )
        assert job.result(timeout_s=30).usage.completion_tokens == 8
        assert receiver.wait_for(1, timeout_s=30)
        wait_until(lambda: job.id in ask_flower(flower_port, "tasks"), "the job in Flower")
        client.submit(prompt="of a model that nobody serves", model="other")
        rows = ask_flower(flower_port, "queues/length")["active_queues"]
        waiting = {row["name"]: row["messages"] for row in rows}
        assert waiting["batchmill.other.normal"] == 1
        # Any Redis client, as producers in other languages use.
        pushes = redis.Redis.from_url(url_of("inbox", port), decode_responses=True)
        pushes.lpush("batchmill:inbox", '{"id": "pushed", "prompt": "x", "max_tokens": 2}')
        wait_until(
            lambda: pushes.hget("batchmill:job:pushed", "state") == "completed", "a pushed job"
        )
        pushes.close()
    refused = [(entry["username"], entry["object"]) for entry in admin.acl_log()]
    store.close()
    admin.close()
    assert refused == [], (tmp_path / "worker.log").read_text()


def test_the_command_of_the_page_asks_workers(redis_url: str, tmp_path: Path) -> None:
    page = (ROOT / "docs" / "operations.md").read_text()
    (command,) = re.findall(r"^ *URL=.*\n *celery -b .* inspect stats$", page, re.MULTILINE)
    programs = str(Path(sys.executable).parent)
    environment = os.environ | {
        "BATCHMILL_BROKER_URL": redis_url,
        "PATH": f"{programs}:{os.environ['PATH']}",
    }
    store = JobStore.from_url(redis_url)
    with ready_worker(redis_url, store, tmp_path, {"BATCHMILL_WORKER_NAME": "one@test"}):
        answer = subprocess.run(
            ["/bin/sh", "-c", f"{command} -d one@test -t 60"],
            env=environment,
            capture_output=True,
            text=True,
            timeout=120,
        )
    store.close()
    assert answer.returncode == 0, answer.stdout + answer.stderr
    assert "tokens_per_s" in answer.stdout
    log = (tmp_path / "worker.log").read_text()
    assert "engine_ready" in log
    assert "superuser" not in log
    assert " ready." not in log, "only the engine says when the worker takes jobs"


def ask_flower(port: int, path: str) -> dict[str, Any]:
    """Return a response of Flower's API; it is empty until Flower listens."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/api/{path}", timeout=5) as response:
            content: dict[str, Any] = json.load(response)
            return content
    except OSError:
        return {}


@pytest.mark.parametrize("user", ["producer", "worker", "deliverer", "inbox", "flower"])
@pytest.mark.parametrize(
    "command", [("FLUSHALL",), ("CONFIG", "GET", "*"), ("KEYS", "*"), ("GET", "another-key")]
)
def test_no_user_may_do_more(user: str, command: tuple[str, ...], port: int) -> None:
    client = redis.Redis.from_url(url_of(user, port))
    with pytest.raises(redis.exceptions.NoPermissionError):
        client.execute_command(*command)
    client.close()


@pytest.mark.parametrize("key", ["batchmill:job:chosen", "batchmill:dead:chosen"])
@pytest.mark.parametrize("command", ["LPUSH", "RPUSH"])
def test_who_pushes_documents_cannot_occupy_ids(key: str, command: str, port: int) -> None:
    client = redis.Redis.from_url(url_of("inbox", port))
    assert client.hgetall(key) == {}
    with pytest.raises(redis.exceptions.NoPermissionError):
        client.execute_command(command, key, "not a record")
    client.close()


def test_without_a_user_every_command_is_refused(port: int) -> None:
    client = redis.Redis(port=port)
    with pytest.raises(redis.exceptions.AuthenticationError):
        client.ping()
    client.close()
