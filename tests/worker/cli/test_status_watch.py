"""`batchmill status --watch` and `batch show --watch`: on a terminal, in a pipe and as JSON."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from batchmill.producer import Client
from batchmill.producer.store.job_store import JobStore

from ...conftest import RedisServer
from ...support.processes import wait_until
from ...support.worker_info import worker_info
from ..command_line import COMMAND, call, complete, error_of

GAUGES = {"jobs": 3, "running": 2, "waiting": 1, "blocks": 200, "free_blocks": 50}


class Watching:
    """A command that runs until it is interrupted, and what it has written."""

    def __init__(self, process: subprocess.Popen[bytes], descriptor: int) -> None:
        self.process = process
        self._descriptor = descriptor
        self._written = b""
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def wait_for(self, *texts: str, meanwhile: Callable[[], object] = lambda: None) -> str:
        """Wait until all texts were written; return everything that was.

        `meanwhile` is called again and again: heartbeats expire.
        """

        def all_written() -> bool:
            meanwhile()
            return all(text in self.text for text in texts)

        wait_until(all_written, f"writing {texts}")
        return self.text

    @property
    def text(self) -> str:
        return self._written.decode()

    def end(self) -> int:
        self.process.send_signal(signal.SIGINT)
        status = self.process.wait(timeout=60)
        self._thread.join(timeout=60)
        return status

    def _read(self) -> None:
        try:
            while data := os.read(self._descriptor, 65536):
                self._written += data
        except OSError:  # the terminal's other end is closed
            return


@contextmanager
def watching(*arguments: str, url: str, is_terminal: bool = False) -> Iterator[Watching]:
    """Run a command beside the test."""
    ours, theirs = pty.openpty() if is_terminal else os.pipe()
    environment = {**os.environ, "COLUMNS": "160", "LINES": "60", "TERM": "xterm"}
    process = subprocess.Popen(
        [*COMMAND, *arguments, "--interval-s", "0.1", "--broker-url", url],
        stdout=theirs,
        stderr=theirs,
        env=environment,
    )
    os.close(theirs)
    try:
        yield Watching(process, ours)
    finally:
        process.kill()
        process.wait()
        os.close(ours)


def test_a_pipe_gets_a_line_of_the_jobs_and_one_per_worker(
    redis_url: str, store: JobStore, broker: dict[str, str]
) -> None:
    def beat() -> None:
        store.announce_worker(worker_info("first", stats={**GAUGES, "tokens_per_s": 92.14}))
        store.announce_worker(worker_info("second", stats={"tokens_per_s": "forged"}))

    with watching("status", "--watch", url=redis_url) as watch:
        watch.wait_for(
            "UTC: 0 waiting, 0 in progress, 0 completed, 0 failed, 92.1 tok/s",
            "first: ready, 92.1 tok/s, 2 running, 1 waiting, KV cache 75 %",
            "second: ready, - tok/s, - running, - waiting, KV cache -",
            meanwhile=beat,
        )
        assert "\x1b" not in watch.text
        call("submit", "x", "--model", "other", **broker)
        watch.wait_for(
            "UTC: 1 waiting (oldest 0:00:0", "batchmill.other.normal: 1 waiting, served by no"
        )
        assert watch.end() == 130
    assert "Traceback" not in watch.text


def test_json_is_one_object_per_line(redis_url: str, store: JobStore) -> None:
    def beat() -> None:
        store.announce_worker(worker_info("first", stats={**GAUGES, "tokens_per_s": 92.14}))

    with watching("status", "--watch", "--json", url=redis_url) as watch:
        written = watch.wait_for('"tokens_per_s": 92.1,', "\n", meanwhile=beat)
        watch.wait_for(f"{written}{{", meanwhile=beat)
    lines = [json.loads(line) for line in written.splitlines()]
    assert lines[-1]["workers"][0]["kv_use"] == 0.75
    assert lines[-1]["oldest_waiting"] is None
    assert lines == sorted(lines, key=lambda line: line["at_ms"])


def test_a_terminal_gets_tables_that_change_in_place(redis_url: str, store: JobStore) -> None:
    def beat() -> None:
        store.announce_worker(worker_info("first", stats={**GAUGES, "tokens_per_s": 92.14}))

    with watching("status", "--watch", url=redis_url, is_terminal=True) as watch:
        watch.wait_for("KV cache", "92.1", "75 %", "\x1b[1A", meanwhile=beat)
        assert watch.end() == 130
    assert "Traceback" not in watch.text


def test_a_watch_goes_on_after_an_outage_of_the_broker(private_redis_server: RedisServer) -> None:
    with watching("status", "--watch", url=private_redis_server.url) as watch:
        watch.wait_for("UTC: 0 waiting")
        private_redis_server.kill()
        told = watch.wait_for("the broker does not reply, trying again")
        private_redis_server.start()
        wait_until(lambda: "UTC: 0 waiting" in watch.text[len(told) :], "the next status")
        assert watch.process.poll() is None


def test_a_watch_names_a_shard_that_is_away_and_shows_the_others(
    redis_url: str, private_redis_server: RedisServer
) -> None:
    shards = f"a={redis_url} b={private_redis_server.url}"
    with watching("status", "--watch", url=shards) as watch:
        watch.wait_for("UTC: 0 waiting")
        assert "does not reply" not in watch.text
        private_redis_server.kill()
        watch.wait_for("shard 'b' does not reply")
        with Client(redis_url) as client:
            client.submit("p")
        told = watch.wait_for("UTC: 1 waiting")
        private_redis_server.start()
        # Two statuses in a row, with nothing between them.
        wait_until(
            lambda: (
                re.search(r"tok/s\n(  .*\n)*[-0-9: ]+UTC: 1", watch.text[len(told) :]) is not None
            ),
            "a status without the shard that was away",
        )
        assert watch.end() == 130
    assert "Traceback" not in watch.text


def test_the_oldest_waiting_job_is_one_whose_delay_is_over(
    broker: dict[str, str], redis_url: str
) -> None:
    def oldest() -> Any:
        return json.loads(call("status", "--json", **broker).stdout)["oldest_waiting"]

    assert oldest() is None
    with Client(redis_url) as client:
        client.submit("later", delay_s=3600)
        assert oldest() is None
        first = client.submit("first", priority="low")
        client.submit("second")
        found = oldest()
        assert (found["id"], found["queue"]) == (first.id, "batchmill.demo.low")
        assert 0 <= found["age_s"] < 3600
        assert first.id in call("status", **broker).stdout
        client.cancel(first.id)
        assert oldest()["queue"] == "batchmill.demo.normal"


def test_a_watch_of_one_job_is_refused_with_the_command_that_does_it(
    broker: dict[str, str],
) -> None:
    error = error_of(call("status", "gen_x", "--watch", "--json", **broker))
    assert "use batchmill progress gen_x --watch" in error["message"]


def test_a_batch_is_watched_until_it_ends(
    redis_url: str, store: JobStore, broker: dict[str, str]
) -> None:
    with Client(redis_url) as client:
        batch = client.create_batch([{"prompt": str(n), "max_tokens": 10} for n in range(3)])
        job_ids = [job.id for job in client.iter_jobs()]
    shown = call("batch", "show", batch.id, **broker).stdout
    assert "0 of 3 done, 0 failed, no worker serves demo: no worker runs" in shown
    data = json.loads(call("batch", "show", batch.id, "--json", **broker).stdout)
    assert (data["eta_s"], data["eta_unknown"]) == (None, "no_worker")
    assert data["waits_for"] == "no worker serves demo: no worker runs"
    assert "0 of 3 done, 0 failed" in call("progress", batch.id, **broker).stdout
    mixed = error_of(call("progress", batch.id, "gen_x", "--json", **broker))
    assert mixed["message"] == f"{batch.id} is a batch: give its id alone"
    with watching("batch", "show", batch.id, "--watch", url=redis_url) as watch:
        watch.wait_for("0 of 3 done")
        # Half of the speed of one worker, for three jobs of ten tokens.
        beat = partial(
            store.announce_worker, worker_info("w", stats={"jobs": 1, "tokens_per_s": 5.0})
        )
        watch.wait_for("0 of 3 done, 0 failed, ETA 0:00:06 at most", meanwhile=beat)
        complete(store, job_ids[0])
        watch.wait_for("1 of 3 done, 0 failed, ETA 0:00:04 at most", meanwhile=beat)
        for job_id in job_ids[1:]:
            complete(store, job_id)
        assert watch.process.wait(timeout=60) == 0
        watch.wait_for(f"{batch.id} completed, 3 of 3 done, 0 failed\n")
    ended = json.loads(call("batch", "show", batch.id, "--json", **broker).stdout)
    assert (ended["eta_s"], ended["waits_for"], ended["cost"]) == (0.0, None, None)
    used, prices = ended["usage"], '{"*": {"input": 2, "output": 4, "currency": "EUR"}}'
    priced = call("batch", "show", batch.id, BATCHMILL_PRICES=prices, **broker).stdout
    assert used["output_tokens"] > 0
    cost = (used["input_tokens"] * 2 + used["output_tokens"] * 4) / 1_000_000
    assert f"{used['output_tokens']} output tokens, cost {cost:.6g} EUR" in priced
