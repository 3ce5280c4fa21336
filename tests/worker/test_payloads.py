"""Large payloads through real workers, which share a folder with the client."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from batchmill.producer import Client, JobFailed
from batchmill.producer.bulk.options import BulkOptions
from batchmill.producer.bulk.run import BulkRun
from batchmill.producer.encryption.key_ring import KeyRing, new_key
from batchmill.producer.protocol import keys
from batchmill.producer.protocol.payloads import is_reference
from batchmill.producer.settings import ProducerSettings
from batchmill.producer.store.job_store import JobStore

from .command_line import call
from .conftest import Mill, expected_tokens

KEY = new_key("a")
PROMPT = "CANARY " * 200
NUM_TOKENS = 120
THRESHOLD = 512


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "objects"


@pytest.fixture
def settings(folder: Path) -> ProducerSettings:
    return ProducerSettings(
        payload_url=folder.as_uri(),
        payload_threshold_bytes=THRESHOLD,
        encryption_keys=SecretStr(KEY.to_text()),
    )


@pytest.fixture
def client(mill: Mill, settings: ProducerSettings) -> Iterator[Client]:
    mill.store = JobStore(mill.store.client, key_ring=KeyRing([KEY]), objects=settings.object_store)
    with Client(mill.url, settings=settings) as client:
        yield client


def worker_settings(folder: Path) -> dict[str, Any]:
    return {
        "payload_url": folder.as_uri(),
        "payload_threshold_bytes": THRESHOLD,
        "encryption_keys": KEY.to_text(),
        "lease_s": 15,
        "session_timeout_s": 2,
        "heartbeat_interval_s": 0.5,
    }


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_killed_workers_job_continues_from_the_same_object(
    mill: Mill, client: Client, folder: Path
) -> None:
    stub = {"step_time_s": 0.02}
    first = mill.start_worker("w1", stub=stub, **worker_settings(folder))
    job = client.submit(prompt=PROMPT, max_tokens=NUM_TOKENS, seed=7)
    mill.wait_tokens(job.id, 10)
    (before,) = names_in(folder)
    first.end(signal.SIGKILL)
    mill.start_worker("w2", stub=stub, **worker_settings(folder))

    result = job.result(timeout_s=60)

    assert result.token_ids == expected_tokens(PROMPT, NUM_TOKENS)
    assert mill.record(job.id).attempts == 2
    redis: Any = mill.store.client
    fields = redis.hgetall(keys.job(job.id))
    assert is_reference(fields[b"doc"])
    assert is_reference(fields[b"result"])
    assert len(names_in(folder)) == 2
    assert before in names_in(folder)
    assert not any(b"CANARY" in path.read_bytes() for path in folder.iterdir())
    shown = call(
        *("result", job.id, "--json", "--broker-url", mill.url),
        BATCHMILL_PAYLOAD_URL=folder.as_uri(),
        BATCHMILL_ENCRYPTION_KEYS=KEY.to_text(),
    )
    assert json.loads(shown.stdout)["text"] == result.text
    without = call(
        *("result", job.id, "--json", "--broker-url", mill.url),
        BATCHMILL_ENCRYPTION_KEYS=KEY.to_text(),
    )
    assert "BATCHMILL_PAYLOAD_URL" in without.stdout + without.stderr

    job.forget()
    mill.wait_for(lambda: not names_in(folder), "the objects of a forgotten job to be deleted")


def test_changed_missing_and_unreachable_objects_have_their_own_ends(
    mill: Mill, client: Client, folder: Path
) -> None:
    changed, missing, away, good = (
        client.submit(prompt=PROMPT, max_tokens=8, seed=7) for _ in range(4)
    )

    def path_of(job_id: str) -> Path:
        (path,) = folder.glob(f"{job_id}.doc.*")
        return path

    path_of(changed.id).write_bytes(b"other")
    path_of(missing.id).unlink()
    lost = path_of(away.id)
    kept = lost.rename(folder / "kept")
    lost.mkdir()  # it cannot be read, and is not missing either
    worker = mill.start_worker("w1", retry_backoff_s=0.5, **worker_settings(folder))

    for job, code in ((changed, "integrity"), (missing, "payload_missing")):
        with pytest.raises(JobFailed) as caught:
            job.result(timeout_s=60)
        assert caught.value.code == code
    assert good.result(timeout_s=60).token_ids == expected_tokens(PROMPT, 8)
    mill.wait_for(
        lambda: b"payload_unreachable" in (_retry_error(mill, away.id) or b""), "a failed attempt"
    )
    lost.rmdir()
    kept.rename(lost)
    assert away.result(timeout_s=60).token_ids == expected_tokens(PROMPT, 8)
    assert worker.process.poll() is None


def _retry_error(mill: Mill, job_id: str) -> bytes | None:
    redis: Any = mill.store.client
    value: bytes | None = redis.hget(keys.job(job_id), "retry_error")
    return value


def test_a_result_that_cannot_be_stored_is_retried_from_its_tokens(
    mill: Mill, client: Client, folder: Path
) -> None:
    job = client.submit(prompt="short", max_tokens=NUM_TOKENS, seed=7)
    folder.write_text("")  # a file where the folder should be
    mill.start_worker("w1", retry_backoff_s=0.5, **worker_settings(folder))
    mill.wait_for(lambda: _retry_error(mill, job.id) is not None, "a failed attempt")
    assert mill.store.num_tokens(job.id) == NUM_TOKENS
    folder.unlink()
    assert job.result(timeout_s=60).token_ids == expected_tokens("short", NUM_TOKENS)
    assert len(names_in(folder)) == 1


def test_a_bulk_run_takes_large_prompts_and_results(
    mill: Mill, client: Client, folder: Path, tmp_path: Path
) -> None:
    mill.start_worker("w1", **worker_settings(folder))
    lines, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    lines.write_text(json.dumps({"prompt": PROMPT, "max_tokens": NUM_TOKENS, "seed": 7}) + "\n")
    done = call(
        *("bulk", str(lines), "-o", str(out), "--broker-url", mill.url),
        BATCHMILL_PAYLOAD_URL=folder.as_uri(),
        BATCHMILL_PAYLOAD_THRESHOLD_BYTES=str(THRESHOLD),
        BATCHMILL_ENCRYPTION_KEYS=KEY.to_text(),
    )
    assert done.returncode == 0, done.stderr
    first, second, *_ = expected_tokens(PROMPT, NUM_TOKENS)
    assert f"w{first} w{second}" in out.read_text()
    assert len(names_in(folder)) == 2


def test_a_line_whose_object_is_missing_fails_by_name_and_the_others_go_on(
    mill: Mill, client: Client, settings: ProducerSettings, folder: Path, tmp_path: Path
) -> None:
    mill.start_worker("w1", **worker_settings(folder))
    lines, out, errors = (tmp_path / name for name in ("in.jsonl", "out.jsonl", "errors.jsonl"))
    line = {"prompt": "short", "max_tokens": NUM_TOKENS}
    lines.write_text("".join(json.dumps({**line, "seed": i}) + "\n" for i in range(3)))
    options = BulkOptions(lines, out, errors)
    BulkRun(client._shards, settings, options).run(lambda _: None, lambda _: None)
    ids = [json.loads(text)["response"]["body"]["id"] for text in out.read_text().splitlines()]
    (lost,) = folder.glob(f"{ids[1]}.result.*")
    lost.unlink()
    out.unlink()

    counts = BulkRun(client._shards, settings, options).run(lambda _: None, lambda _: None)

    assert (counts.completed, counts.failed) == (2, 1)
    (failed,) = map(json.loads, errors.read_text().splitlines())
    assert failed["error"]["code"] == "payload_missing"
    assert ids[1] in failed["error"]["message"]


class FirstCallsFail:
    """A file system whose first write and first read fail."""

    def __init__(self, system: Any) -> None:
        self._system = system
        self.failed: set[str] = set()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._system, name)

    def open(self, path: str, mode: str) -> Any:
        if mode not in self.failed:
            self.failed.add(mode)
            raise OSError("the store is away")
        return self._system.open(path, mode)


def test_a_bulk_run_waits_while_the_store_is_away(
    mill: Mill,
    client: Client,
    settings: ProducerSettings,
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    mill.start_worker("w1", **worker_settings(folder))
    objects = settings.object_store
    assert objects is not None
    away = FirstCallsFail(objects._system)
    monkeypatch.setattr(objects, "_system", away)
    lines = tmp_path / "in.jsonl"
    lines.write_text(json.dumps({"prompt": PROMPT, "max_tokens": NUM_TOKENS, "seed": 7}) + "\n")
    options = BulkOptions(lines, tmp_path / "out.jsonl", tmp_path / "errors.jsonl")

    counts = BulkRun(client._shards, settings, options).run(lambda _: None, lambda _: None)

    assert (counts.completed, counts.failed) == (1, 0)
    assert away.failed == {"wb", "rb"}


def test_an_inbox_document_waits_while_the_store_is_away(
    mill: Mill, client: Client, folder: Path
) -> None:
    folder.write_text("")
    worker = mill.start_worker("w1", **worker_settings(folder))
    document = {"id": "from-inbox", "prompt": PROMPT, "max_tokens": 4, "seed": 7}
    mill.store.client.lpush(keys.INBOX, json.dumps(document))
    mill.wait_for(lambda: "inbox_waits" in worker.log, "the document to wait")
    folder.unlink()
    mill.wait_for(lambda: mill.store.load("from-inbox") is not None, "the document to be a job")
    assert client.job("from-inbox").result(timeout_s=60).token_ids == expected_tokens(PROMPT, 4)
    redis: Any = mill.store.client
    assert is_reference(redis.hget(keys.job("from-inbox"), "doc"))
