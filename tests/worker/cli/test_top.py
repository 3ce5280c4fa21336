"""`batchmill top`: on a terminal, in a pipe and as JSON."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import subprocess
from typing import Any

import pytest

from batchmill.producer import Client
from batchmill.producer.store.job_store import JobStore

from ...conftest import RedisServer
from ...support.processes import wait_until
from ...support.worker_info import worker_info
from ..command_line import COMMAND, call, run

STATS = {
    "jobs": 3,
    "running": 2,
    "waiting": 1,
    "blocks": 200,
    "free_blocks": 50,
    "tokens_per_s": 40.0,
    "busy_tokens_per_s": 100.0,
}


@pytest.fixture
def busy(redis_url: str, store: JobStore) -> JobStore:
    """A broker with a worker, two queues and a batch."""
    store.announce_worker(worker_info("w1@host", stats=STATS))
    with Client(redis_url) as client:
        client.submit(prompt="x", max_tokens=100, priority="high")
        client.submit(prompt="x", model="other")
        client.create_batch([{"prompt": "x", "max_tokens": 5}] * 3)
    return store


def test_a_snapshot_in_a_pipe(busy: JobStore, broker: dict[str, str]) -> None:
    lines = call("top", "--once", **broker).stdout.splitlines()
    assert lines[0].startswith("5 waiting, 0 in progress, 0 completed, 0 failed, 40.0 tok/s")
    rows = {line.split()[0]: line.split() for line in lines if line}
    assert rows["w1@host"] == ["w1@host", "demo", "ready", "3", "2", "1", "40", "75", "%"]
    assert rows["demo"][1] == "4"
    assert rows["demo"][3] == "0:00:01"  # 100 tokens and a few, at 100 per second
    assert rows["other"][3] == "unknown"
    assert rows["batchmill.other.normal"][-2:] == ["no", "worker"]
    assert rows["batchmill.demo.high"][-1] == "yes"
    (batch,) = [row for name, row in rows.items() if name.startswith("batch_")]
    assert batch[2:5] == ["0", "of", "3"]


def test_the_same_as_json(busy: JobStore, broker: dict[str, str]) -> None:
    data = json.loads(call("top", "--json", **broker).stdout)
    models = {each["model"]: each for each in data["models"]}
    assert models["demo"]["queued_jobs"] == 4
    assert models["demo"]["workers"]["ready"] == 1
    assert models["other"]["backlog_s"] is None
    assert models["other"]["workers_wanted"] == 1
    assert [each["request_counts"]["total"] for each in data["batches"]] == [3]
    shown = json.loads(call("status", "--json", **broker).stdout)["models"]
    assert {each["model"]: each["workers_wanted"] for each in shown} == {
        name: each["workers_wanted"] for name, each in models.items()
    }


def test_an_empty_broker_has_empty_tables(broker: dict[str, str]) -> None:
    text = run("top", **broker).stdout  # a pipe
    assert text.startswith("0 waiting")
    assert "Workers" in text


class Screen:
    """`batchmill top` on a terminal, and what it has written."""

    def __init__(self, broker: dict[str, str]) -> None:
        self._ours, theirs = pty.openpty()
        environment: dict[str, Any] = {**os.environ, **broker, "TERM": "xterm", "COLUMNS": "160"}
        self.process = subprocess.Popen(
            [*COMMAND, "top", "--interval-s", "0.1"],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            env=environment | {"LINES": "50"},
        )
        os.close(theirs)
        os.set_blocking(self._ours, False)
        self.written = bytearray()

    def has(self, text: str) -> bool:
        """Return whether a text was written."""
        assert self.process.poll() is None, self.written.decode(errors="replace")
        with contextlib.suppress(BlockingIOError):
            self.written.extend(os.read(self._ours, 1 << 16))
        return text.encode() in self.written

    def quit(self) -> None:
        """Press q."""
        os.write(self._ours, b"q")
        assert self.process.wait(60) == 0
        with contextlib.suppress(OSError):  # Linux' end of the file of a terminal that is gone
            while part := os.read(self._ours, 1 << 16):  # a read returns 4 KiB at most
                self.written.extend(part)
        assert b"\x1b[?1049l" in self.written  # the terminal is as it was before
        assert b"Traceback" not in self.written

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._ours)


def test_a_terminal_is_redrawn_until_q_is_pressed(
    busy: JobStore, redis_url: str, broker: dict[str, str]
) -> None:
    def has_written(text: str) -> bool:
        busy.announce_worker(worker_info("w1@host", stats=STATS))
        return screen.has(text)

    with contextlib.closing(Screen(broker)) as screen:
        wait_until(lambda: has_written("w1@host"), "the first screen")
        assert b"\x1b[?1049h" in screen.written  # a screen of its own
        with Client(redis_url) as client:
            for _ in range(3):
                client.submit(prompt="x", model="third")
        wait_until(lambda: has_written("8 waiting"), "the new number")
        wait_until(lambda: has_written("batchmill.third.normal"), "the new queue")
        screen.quit()


def test_a_screen_names_a_shard_that_is_away_and_shows_the_others(
    redis_url: str, private_redis_server: RedisServer
) -> None:
    shards = f"a={redis_url} b={private_redis_server.url}"
    with contextlib.closing(Screen({"BATCHMILL_BROKER_URLS": shards})) as screen:
        wait_until(lambda: screen.has("0 waiting"), "the first screen")
        private_redis_server.kill()
        wait_until(lambda: screen.has("shard 'b' does not reply"), "the shard's name")
        with Client(redis_url) as client:
            client.submit(prompt="x", model="third")
        wait_until(lambda: screen.has("batchmill.third.normal"), "the new queue")
        screen.quit()
