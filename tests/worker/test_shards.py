"""Several brokers as one system, with real workers, a deliverer and the command line."""

from __future__ import annotations

import contextlib
import json
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from batchmill.producer import Client
from batchmill.producer.job.validation import parse_job
from batchmill.producer.settings import ProducerSettings
from batchmill.producer.shard_list import shard_name_of
from batchmill.worker.webhooks.local_receiver import LOOPBACK, WebhookReceiver

from .command_line import call, error_of
from .conftest import Mill, WorkerProcess, expected_tokens
from .webhook_deliverers import Deliverers, verify

#: Tenants whose jobs for the model "demo" go to each shard of (a b); see `test_shard_list.py`.
TENANT = {"a": "t0", "b": "t1"}
NUM_TOKENS = 24


class ShardedMill:
    """Shards in the databases of one server, each with the workers of a mill."""

    def __init__(self, url: str, folder: Path) -> None:
        self.mills: dict[str, Mill] = {}
        for number, name in enumerate("abc"):
            (folder / name).mkdir()
            self.mills[name] = Mill(f"{url}?db={number}", folder / name)
        self.list = self.listed("a", "b")

    def listed(self, *names: str) -> str:
        return " ".join(f"{name}={self.mills[name[0]].url}" for name in names)

    def start_worker(self, shard: str, **settings: Any) -> WorkerProcess:
        values = {"broker_url": "", "broker_urls": self.list, "shard": shard, **settings}
        return self.mills[shard].start_worker(f"{shard}{len(self.mills[shard].workers)}", **values)

    def submit(self, client: Client, shard: str, count: int, **fields: Any) -> list[str]:
        common: dict[str, Any] = {"tenant": TENANT[shard], "seed": 7, "tags": ["x"], **fields}
        jobs = (parse_job({"prompt": f"{shard}{i}", **common}) for i in range(count))
        return [job.id for job in client.submit_many(jobs)]

    def environment(self) -> dict[str, str]:
        return {"BATCHMILL_BROKER_URLS": self.list}

    def close(self) -> None:
        for mill in self.mills.values():
            mill.close()


@pytest.fixture
def mills(redis_url: str, tmp_path: Path) -> Iterator[ShardedMill]:
    mills = ShardedMill(redis_url, tmp_path)
    yield mills
    mills.close()


def check_bulk(mills: ShardedMill, folder: Path) -> None:
    """Run a file whose lines go to both shards, twice: the second command finds it done."""
    lines = [
        json.dumps({"prompt": f"p{i}", "tenant": TENANT["ab"[i % 2]], "max_tokens": 4, "seed": 7})
        for i in range(6)
    ]
    source, output = folder / "in.jsonl", folder / "out.jsonl"
    source.write_text("\n".join(lines))
    files = (str(source), "-o", str(output), "--errors", str(folder / "err.jsonl"))
    for done_before in (0, 6):
        found = json.loads(call("bulk", *files, "--json", **mills.environment()).stdout)
        assert (found["completed"], found["resumed"]) == (6 - done_before, done_before)
    ids = [json.loads(line)["response"]["body"]["id"] for line in output.read_text().splitlines()]
    assert sorted(map(str, map(shard_name_of, ids))) == ["a"] * 3 + ["b"] * 3


def test_jobs_of_all_shards_are_done_delivered_and_counted_together(
    mills: ShardedMill, tmp_path: Path
) -> None:
    settings = ProducerSettings(
        webhook_allow_http=True,
        webhook_allow_ports="1024-65535",  # type: ignore[arg-type]
        webhook_allow_networks=LOOPBACK,  # type: ignore[arg-type]
    )
    with (
        contextlib.closing(Deliverers(mills.list)) as deliverers,
        WebhookReceiver() as receiver,
        Client(mills.list, settings=settings) as client,
    ):
        for shard in "ab":
            mills.start_worker(shard)
        deliverers.start()
        ids = [
            job_id
            for shard in "ab"
            for job_id in mills.submit(client, shard, 3, max_tokens=4, webhook=receiver.url)
        ]
        ended = {each.id: each.result() for each in client.as_completed(ids, timeout_s=60)}
        assert ended[ids[0]].token_ids == expected_tokens("a0", 4)
        mills.mills["a"].wait_for(lambda: len(receiver.requests) == 6, "six webhooks")
        for request in receiver.requests:
            verify(request)
        assert {json.loads(each.body)["data"]["id"] for each in receiver.requests} == set(ids)

    status = json.loads(call("status", "--json", **mills.environment()).stdout)
    assert status["counts"]["totals"]["completed"] == 6
    assert {worker["name"] for worker in status["workers"]} == {"a0@test", "b0@test"}
    (model,) = status["models"]
    assert model["workers"]["ready"] == 2
    top = json.loads(call("top", "--once", "--json", **mills.environment()).stdout)
    assert top["counts"]["totals"]["completed"] == 6
    listed = json.loads(call("list", "--tag", "x", "--json", **mills.environment()).stdout)
    assert {job["id"] for job in listed["jobs"]} == set(ids)
    check_bulk(mills, tmp_path)
    one = json.loads(call("status", ids[0], "--json", **mills.environment()).stdout)
    assert (one["state"], one["worker"]) == ("completed", "a0@test")


def test_a_shard_is_drained_by_its_workers_though_one_is_killed(mills: ShardedMill) -> None:
    slow = {"step_time_s": 0.02}
    first = mills.start_worker("a", stub=slow)
    with Client(mills.list) as client:
        ids = mills.submit(client, "a", 4, max_tokens=NUM_TOKENS)
        mills.mills["a"].wait_tokens(ids[0], 4)

    mills.list = mills.listed("a:draining", "b", "c")
    first_look = call("shards", "list", "--json", **mills.environment())
    # No program has used the other two yet.
    known = [each["list"] for each in json.loads(first_look.stdout)["shards"]]
    assert known == ["a b", "none yet", "none yet"]
    with Client(mills.list) as client:
        refused = call("submit", "p", "--json", **mills.environment())
        assert error_of(refused)["code"] == "shard_mismatch"
        assert call("shards", "accept", **mills.environment()).returncode == 0
        first.end(signal.SIGKILL)
        mills.start_worker("a", stub=slow)
        moved = mills.submit(client, "a", 2, max_tokens=4)
        assert "a" not in map(shard_name_of, moved)
        mills.start_worker(str(shard_name_of(moved[0])))
        results = {each.id: each.result() for each in client.as_completed(ids, timeout_s=60)}
        for number, job_id in enumerate(ids):
            assert results[job_id].token_ids == expected_tokens(f"a{number}", NUM_TOKENS)
        for job_id in moved[:1]:
            assert client.result(job_id, timeout_s=60).token_ids
        shards = json.loads(call("shards", "list", "--json", **mills.environment()).stdout)
        found = {each["name"]: each for each in shards["shards"]}
        assert (found["a"]["drained"], found["a"]["kept"]) == (True, 4)
        assert {each["list"] for each in found.values()} == {"this"}


def test_a_worker_names_its_shard_or_is_told_how(mills: ShardedMill) -> None:
    without = error_of(call("worker", "--json", **mills.environment()))
    assert without["code"] == "invalid_broker_url"
    assert "set BATCHMILL_SHARD to the name of one" in without["message"]
    unknown = mills.environment() | {"BATCHMILL_SHARD": "z"}
    wrong = error_of(call("worker", "--json", **unknown))
    assert "shard 'z' is not in the list of shards (a b)" in wrong["message"]
    no_list = {"BATCHMILL_BROKER_URL": mills.mills["a"].url, "BATCHMILL_SHARD": "a"}
    assert "set BATCHMILL_BROKER_URLS" in error_of(call("worker", "--json", **no_list))["message"]
    with Client(mills.listed("a", "b", "c")) as client:
        client.list()
    on_a = mills.environment() | {"BATCHMILL_SHARD": "a", "BATCHMILL_ENGINE": "stub"}
    other = call("worker", "--json", **on_a)
    assert json.loads(other.stderr.splitlines()[-1])["error"]["code"] == "shard_mismatch"


def test_a_command_of_operators_works_with_a_chosen_shard_alone(mills: ShardedMill) -> None:
    with Client(mills.list) as client:
        mills.submit(client, "a", 1)
        mills.submit(client, "b", 2)

    def jobs(**environment: str) -> list[tuple[str, int]]:
        found = json.loads(call("tenants", "list", "--json", **environment).stdout)
        return [(each["name"], each["usage"]["jobs"]) for each in found["tenants"]]

    assert jobs(**mills.environment()) == [("t0", 1), ("t1", 2)]
    assert jobs(**mills.environment(), BATCHMILL_SHARD="b") == [("t1", 2)]


def test_an_error_of_a_shard_that_is_away_does_not_blame_another(mills: ShardedMill) -> None:
    shards = f"a=redis://127.0.0.1:1 b={mills.mills['b'].url}"
    message = call("status", BATCHMILL_BROKER_URLS=shards).stderr
    assert "127.0.0.1:1" in message
    assert f"broker at {mills.mills['b'].url}" not in message


def test_settings_are_copied_to_the_other_shards(mills: ShardedMill) -> None:
    on_a = mills.environment() | {"BATCHMILL_SHARD": "a"}
    assert call("tenants", "set", "acme", "--weight", "3", **on_a).returncode == 0
    assert call("shards", "copy-settings", "a", **mills.environment()).returncode == 0
    on_b = mills.environment() | {"BATCHMILL_SHARD": "b"}
    shown = json.loads(call("tenants", "show", "acme", "--json", **on_b).stdout)
    assert shown["limits"]["weight"] == 3
