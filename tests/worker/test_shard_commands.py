"""The commands of operators on several brokers: each tries all, and names those that are away."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from batchmill.producer import Client
from batchmill.producer.protocol import keys
from batchmill.producer.protocol.records import DeadLetterKind
from batchmill.producer.store import api_keys
from batchmill.producer.store.adapters import RegisteredAdapter, register_adapter
from batchmill.producer.store.api_keys import ApiKey, level_api_keys, look_up_api_key
from batchmill.producer.store.every_shard import JobStores
from batchmill.producer.store.job_store import JobStore
from batchmill.worker.cli.errors import ExitCode
from batchmill.worker.cli.store_status import StoreStatus
from batchmill.worker.monitor.one_per_shard import options_of_shard

from ..conftest import RedisServer
from ..support.processes import CLI, free_port, wait_until
from .command_line import call, complete, error_of

#: Tenants whose jobs for the model "demo" go to each shard of (a b); see `test_shard_list.py`.
TENANT = {"a": "t0", "b": "t1"}
HOOK = "https://hooks.example/one"


class Pair:
    """Two servers as shards a and b."""

    def __init__(self) -> None:
        self.servers = {"a": RedisServer(), "b": RedisServer()}
        for server in self.servers.values():
            server.start()
        self.url = " ".join(f"{name}={server.url}" for name, server in self.servers.items())
        self.stores = {n: JobStore.from_url(server.url) for n, server in self.servers.items()}

    def call(self, *arguments: str, is_b_away: bool = False) -> tuple[int, Any, str]:
        """Run a command with --json; return its exit code, output and error."""
        urls = f"a={self.servers['a'].url} b=unix:///nowhere" if is_b_away else self.url
        done = call(
            *(*arguments, "--json"), BATCHMILL_BROKER_URLS=urls, BATCHMILL_BROKER_TIMEOUT_S="0.5"
        )
        return done.returncode, json.loads(done.stdout or "null"), done.stderr

    def close(self) -> None:
        for store in self.stores.values():
            store.close()
        for server in self.servers.values():
            server.close()


@pytest.fixture(scope="module")
def pair() -> Iterator[Pair]:
    pair = Pair()
    yield pair
    pair.close()


def test_tenants_have_one_weight_and_the_sum_of_their_jobs(pair: Pair) -> None:
    with Client(pair.url) as client:
        for model in ("m0", "m1", "m2", "m3", "m4"):
            client.submit("p", tenant="acme", model=model)
    code, found, _ = pair.call("tenants", "set", "acme", "--weight", "3")
    assert (code, found["usage"]["jobs"]) == (0, 5)
    parts = [
        store.client.hget("batchmill:tenants", "acme:weight") for store in pair.stores.values()
    ]
    assert len(parts) == 2
    _, found, _ = pair.call("tenants", "list")
    (acme,) = (each for each in found["tenants"] if each["name"] == "acme")
    assert (acme["limits"]["weight"], acme["usage"]["jobs"]) == (3.0, 5)
    assert pair.call("tenants", "window", "20")[1] == {"window": 20}

    code, found, told = pair.call("tenants", "window", "10", is_b_away=True)
    assert code != 0
    assert found == {"window": 10, "missing_shards": ["b"]}
    assert "shard 'b'" in told
    assert "shard 'a'" not in told
    assert pair.call("tenants", "window")[1]["windows"] == {"a": 10, "b": 20}
    assert pair.call("tenants", "unset", "acme")[1]["limits"]["weight"] == 1.0


def test_a_key_is_in_every_shard_and_a_difference_is_shown(pair: Pair) -> None:
    code, made, _ = pair.call("keys", "create", "one")
    for store in pair.stores.values():
        assert store.read(look_up_api_key(made["secret"])).valid_key is not None
    code, _, told = pair.call("keys", "revoke", made["id"], is_b_away=True)
    assert code != 0
    assert "shard 'b'" in told
    (listed,) = pair.call("keys", "list")[1]["keys"]
    assert listed["revoked_at_ms"] is not None
    assert listed["differs_in"] == ["b"]
    assert pair.call("keys", "revoke", made["id"])[0] == 0
    known = pair.stores["b"].read(look_up_api_key(made["secret"]))
    assert (known.valid_key, known.has_keys) == (None, True)
    (listed,) = pair.call("keys", "list")[1]["keys"]
    assert "differs_in" not in listed


def test_dead_letters_of_all_shards_are_one_list_and_each_is_found(pair: Pair) -> None:
    ids = []
    with Client(pair.url) as client:
        for name, tenant in TENANT.items():
            job = client.submit("p", tenant=tenant)
            pair.stores[name].dead_letter_add(
                letter_id=job.id, kind=DeadLetterKind.JOB, payload=b"{}", reason="r", source="s"
            )
            ids.append(job.id)
    _, found, _ = pair.call("dead-letters", "list")
    assert (found["total"], {each["id"] for each in found["dead_letters"]}) == (2, set(ids))
    assert pair.call("dead-letters", "show", ids[1])[1]["id"] == ids[1]
    code, found, _ = pair.call("dead-letters", "list", is_b_away=True)
    assert code != 0
    assert (found["total"], found["missing_shards"]) == (1, ["b"])
    assert pair.call("dead-letters", "drop", ids[1])[1] == {"id": ids[1], "dropped": True}
    assert pair.call("dead-letters", "drop", ids[0], is_b_away=True)[0] == 0
    away = call(
        *("dead-letters", "drop", ids[1], "--json"),
        BATCHMILL_BROKER_URLS=f"a={pair.servers['a'].url} b=unix:///nowhere",
        BATCHMILL_BROKER_TIMEOUT_S="0.5",
    )
    assert "shard 'b'" in error_of(away)["message"]  # it may be there
    assert pair.call("dead-letters", "drop", ids[1])[0] == ExitCode.NOT_FOUND


def test_usage_sums_all_shards_and_names_those_that_are_missing(pair: Pair) -> None:
    with Client(pair.url) as client:
        for name, tenant in TENANT.items():
            complete(pair.stores[name], client.submit("p", tenant=tenant).id)
    _, found, _ = pair.call("usage", "--by", "model")
    assert found["data"][0]["jobs"] == 2
    code, found, told = pair.call("usage", "--by", "model", is_b_away=True)
    assert code == ExitCode.BROKER
    assert (found["data"][0]["jobs"], found["missing_shards"]) == (1, ["b"])
    assert "shard 'b'" in told


@pytest.mark.parametrize(
    ("command", "field"),
    [
        pytest.param(("status",), "queues", id="status"),
        pytest.param(("top",), "queues", id="top"),
        pytest.param(("list",), "jobs", id="list"),
        pytest.param(("batch", "list"), "batches", id="batch-list"),
        pytest.param(("pause", "list"), "pauses", id="pause-list"),
        pytest.param(("lora", "list"), "adapters", id="lora-list"),
        pytest.param(("steering", "list"), "vectors", id="steering-list"),
    ],
)
def test_lists_have_what_the_shards_say_that_reply(
    pair: Pair, command: tuple[str, ...], field: str
) -> None:
    for name, tenant in TENANT.items():
        store = pair.stores[name]
        for registry in (keys.ADAPTERS, keys.STEERING_VECTORS):
            register_adapter(
                store, RegisteredAdapter(name=f"of-{name}", model="demo", digest="0"), registry
            )
        with Client(pair.url) as client:
            client.submit("p", tenant=tenant)
            client.create_batch(["p"], tenant=tenant)
    with Client(pair.url) as client:
        client.pause(tenant="acme")
    code, found, _ = pair.call(*command)
    assert (code, "missing_shards" in found) == (0, False)
    code, found, told = pair.call(*command, is_b_away=True)
    assert (code, found["missing_shards"]) == (ExitCode.BROKER, ["b"])
    assert found[field]
    assert "shard 'b'" in told
    assert "shard 'a'" not in told
    for store in pair.stores.values():
        store.client.flushall()


def test_a_watch_goes_on_and_names_the_shard_that_is_away(pair: Pair) -> None:
    stores = JobStores.from_url(
        f"a={pair.servers['a'].url} b=unix:///nowhere", timeout_s=0.5, part_limit_s=None
    )
    with Client(pair.url) as client:
        client.submit("p", tenant=TENANT["a"])
    shards = stores.look()
    status = StoreStatus.read(shards)
    stores.close()
    assert status.counts.queued == 1
    assert shards.describe_missing() == ["shard 'b' does not reply"]


def test_a_key_that_was_revoked_while_a_shard_was_away_is_revoked_there_too(pair: Pair) -> None:
    _, made, _ = pair.call("keys", "create", "two")
    assert pair.call("keys", "revoke", made["id"], is_b_away=True)[0] == ExitCode.BROKER
    _, later, _ = pair.call("keys", "create", "three", is_b_away=True)
    lookup = look_up_api_key(made["secret"])
    assert pair.stores["b"].read(lookup).valid_key is not None
    stores = JobStores.from_url(pair.url, timeout_s=5, part_limit_s=None)
    assert level_api_keys(stores.look()) == 2
    assert level_api_keys(stores.look()) == 0
    stores.close()
    assert pair.stores["b"].read(lookup).valid_key is None
    assert pair.stores["b"].read(look_up_api_key(later["secret"])).valid_key is not None
    assert pair.stores["a"].read(lookup).valid_key is None


def test_a_key_that_is_revoked_while_a_shard_lacks_it_stays_revoked(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, made, _ = pair.call("keys", "create", "one", is_b_away=True)
    read_keys, num_read = api_keys._load, 0

    def revoked_after_both_were_read(store: JobStore) -> dict[str, ApiKey]:
        nonlocal num_read
        found = read_keys(store)
        num_read += 1
        if num_read == 2:
            assert pair.call("keys", "revoke", made["id"])[0] == 0
        return found

    monkeypatch.setattr(api_keys, "_load", revoked_after_both_were_read)
    stores = JobStores.from_url(pair.url, timeout_s=5, part_limit_s=None)
    assert level_api_keys(stores.look()) == 1
    stores.close()
    known = pair.stores["b"].read(look_up_api_key(made["secret"]))
    assert known.key is not None
    assert known.valid_key is None


def test_long_changes_are_not_cut_by_the_limit_of_a_look(pair: Pair) -> None:
    stores = JobStores.from_url(pair.url, timeout_s=5, part_limit_s=0.2)

    def change(store: JobStore) -> object:
        store.client.blpop(["nothing"], timeout=0.4)
        return store.client.ping()

    look = stores.look()
    assert look.each(change) == []
    assert look.missing == ("a", "b")
    stores = JobStores.from_url(pair.url, timeout_s=5, part_limit_s=0.2)
    assert stores.look().each_long(change) == [True, True]
    stores.close()


def test_receivers_and_endpoints_are_those_of_all_shards(pair: Pair) -> None:
    of_acme = ("--tenant", "acme")
    receivers = ("webhooks", "receivers")
    types = ("--event-type", "generation.completed")
    _, made, _ = pair.call(*receivers, "create", "one", HOOK, *types, *of_acme)
    assert pair.call(*receivers, "update", made["id"], "--name", "two", *of_acme)[0] == 0
    (listed,) = pair.call(*receivers, "list", *of_acme)[1]["receivers"]
    assert listed["name"] == "two"
    with Client(pair.url) as client:
        for number in range(6):
            job = client.submit("p", tenant="acme", model=f"m{number}")
            (store,) = (each for each in pair.stores.values() if each.load(job.id) is not None)
            complete(store, job.id)
    _, found, _ = pair.call("webhooks", "endpoints")
    (endpoint,) = found["endpoints"]
    assert (endpoint["url"], endpoint["num_waiting"]) == (HOOK, 6)
    _, found, _ = pair.call("webhooks", "list", "--waiting")
    assert len(found["waiting"]) == 6
    assert len(pair.call("webhooks", "show", made["id"])[1]["events"]) == 6
    event = found["waiting"][-1]["id"]
    assert pair.call("webhooks", "show", event)[1]["id"] == event
    assert pair.call("webhooks", "redeliver", event)[1]["outcome"] == "pending"
    code, _, told = pair.call("webhooks", "disable", HOOK, *of_acme, is_b_away=True)
    assert code != 0
    assert "shard 'b'" in told
    (endpoint,) = pair.call("webhooks", "endpoints")[1]["endpoints"]
    assert endpoint["state"] == "disabled"
    assert pair.call("webhooks", "enable", HOOK, *of_acme)[0] == 0
    assert pair.call(*receivers, "delete", made["id"], *of_acme)[0] == 0
    assert pair.call(*receivers, "list", *of_acme)[1] == {"receivers": []}


def test_doctor_looks_at_each_shard(pair: Pair) -> None:
    pair.call("tenants", "list")
    code, found, _ = pair.call("doctor", is_b_away=True)
    findings = {each["check"]: each for each in found["findings"]}
    assert code == 1
    assert findings["broker a"]["level"] == "ok"
    assert findings["broker b"]["level"] == "problem"
    swapped = f"b={pair.servers['a'].url} a={pair.servers['b'].url}"
    done = call("doctor", "--json", BATCHMILL_BROKER_URLS=swapped)
    findings = {each["check"]: each for each in json.loads(done.stdout)["findings"]}
    assert "has noted that it is shard 'a'" in findings["broker b list"]["detail"]


def test_each_shard_has_its_own_flower(pair: Pair, tmp_path: Path) -> None:
    assert options_of_shard(["--db=x", "--port=80"], {}, "b", 1) == [
        *("--db=x", "--port=80", "--db=x-b", "--port=81")
    ]
    port = free_port()
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, *CLI, "flower", f"--port={port}", f"--broker-url={pair.url}"],
            stdout=log,
            stderr=log,
            cwd=tmp_path,
        )

    def is_served(number: int) -> bool:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{number}/healthcheck") as response:
                return bool(response.status == 200)
        except OSError:
            return False

    try:
        wait_until(lambda: is_served(port) and is_served(port + 1), "two Flowers")
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0, (tmp_path / "log").read_text()
    assert not is_served(port + 1)
