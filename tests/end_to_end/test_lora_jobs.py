"""Jobs with LoRA adapters through command, client, worker and engine, a swap, and a kill -9."""

from __future__ import annotations

import json
import signal
from contextlib import AbstractContextManager, closing
from pathlib import Path
from typing import Any

import pytest

from batchmill.engine import Engine, EngineConfig, SamplingParams
from batchmill.producer import Client, IdempotencyConflict, JobFailed, JobRejected
from batchmill.producer.store.job_store import JobStore
from batchmill.worker.cli.errors import ExitCode

from ..engine.tiny_model import save_model
from ..support.adapters import write_adapter
from ..support.processes import CLI, Process, killed_process, wait_until
from ..worker.command_line import call

NUM_TOKENS = 120
CONFIG: dict[str, Any] = {"dtype": "float32", "max_model_len": 256, "kv_cache_bytes": 2**26}
GREEDY: dict[str, Any] = {"max_tokens": NUM_TOKENS, "temperature": 0.0, "ignore_eos": True}


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("lora") / "tiny"
    save_model(folder)
    return folder


def worker(url: str, model: Path, adapters: Path, log: Path) -> AbstractContextManager[Process]:
    """Run a worker with the tiny model; kill it at the end."""
    environment = {
        **{f"BATCHMILL_{name.upper()}": str(value) for name, value in CONFIG.items()},
        "BATCHMILL_MODEL": str(model),
        "BATCHMILL_SERVED_MODEL_NAME": "tiny",
        "BATCHMILL_LORA_FOLDER": str(adapters),
        "BATCHMILL_BROKER_URL": url,
        "BATCHMILL_LEASE_S": "4",
        "BATCHMILL_SWEEP_INTERVAL_S": "0.5",
        "BATCHMILL_HEARTBEAT_INTERVAL_S": "0.5",
        "BATCHMILL_CHECKPOINT_TOKENS": "8",
        "PYTHONSAFEPATH": "1",
    }
    return killed_process(*CLI, "worker", environment=environment, log=log)


def add(url: str, name: str, source: Path, adapters: Path) -> str:
    """Add an adapter by the command; return its digest."""
    done = call(
        *("lora", "add", name, str(source), "--model", "tiny", "--folder", str(adapters)),
        *("--broker-url", url, "--json"),
    )
    assert done.returncode == 0, done.stderr
    return str(json.loads(done.stdout)["digest"])


def resident(store: JobStore) -> set[str]:
    """Return the adapters that workers say are in memory."""
    return {digest for each in store.list_workers() for digest in each.adapters}


def test_jobs_keep_their_version_through_a_swap_and_a_killed_worker(
    redis_url: str, model_folder: Path, tmp_path: Path
) -> None:
    adapters = tmp_path / "adapters"
    source = write_adapter(tmp_path / "peft", seed=1)
    old = add(redis_url, "style", source, adapters)
    client = Client(redis_url)
    store = JobStore.from_url(redis_url)
    prompts = [f"prompt {number} " * 3 for number in range(8)]
    with worker(redis_url, model_folder, adapters, tmp_path / "first.log") as first:
        jobs = [
            client.submit(prompt=each, lora="style", model="tiny", **GREEDY) for each in prompts
        ]
        new = add(redis_url, "style", write_adapter(source, seed=2), adapters)
        jobs += [
            client.submit(prompt=each, lora="style", model="tiny", **GREEDY) for each in prompts
        ]
        jobs += [client.submit(prompt=each, model="tiny", **GREEDY) for each in prompts]

        def has_begun() -> bool:
            assert first.poll() is None, (tmp_path / "first.log").read_text()
            return sum(store.num_tokens(job.id) > 0 for job in jobs) > len(jobs) / 2

        wait_until(has_begun, "the first tokens")
        first.send_signal(signal.SIGKILL)
        first.wait()
    unfinished = [job for job in jobs if not job.status().state.is_terminal]
    assert unfinished, "the worker was killed too late to show anything"

    with worker(redis_url, model_folder, adapters, tmp_path / "second.log"):
        texts = [job.result(timeout_s=120).text for job in jobs]
        # Some versions may have ended with the first worker.
        wait_until(lambda: bool(resident(store) & {old, new}), "a heartbeat with the adapters")
        gone = add(redis_url, "gone", write_adapter(tmp_path / "other", seed=3), adapters)
        (adapters / gone).rename(tmp_path / gone)
        with pytest.raises(JobFailed, match=f"adapter {gone}: is not in this worker's folder"):
            client.submit(model="tiny", prompt="one", lora="gone", max_tokens=1).result(
                timeout_s=60
            )
    engine = Engine(EngineConfig(model=str(model_folder), lora_folder=str(adapters), **CONFIG))
    versions: list[str | None] = [*[old] * 8, *[new] * 8, *[None] * 8]
    for number, digest in enumerate(versions):
        prompt = prompts[number % 8]
        engine.add_request(str(number), prompt, SamplingParams(**GREEDY), lora=digest)
    expected: dict[str, str] = {}
    while engine.has_unfinished():
        expected |= {each.request_id: each.text for each in engine.step()}
    assert texts == [expected[str(number)] for number in range(24)]
    assert len({expected[str(number)] for number in (0, 8, 16)}) == 3
    store.close()
    client.close()


def test_names_are_resolved_and_refused_at_submit(redis_url: str, tmp_path: Path) -> None:
    adapters = tmp_path / "adapters"
    source = write_adapter(tmp_path / "peft", seed=1)
    first = add(redis_url, "style", source, adapters)
    with Client(redis_url) as client, closing(JobStore.from_url(redis_url)) as store:
        job = client.submit(model="tiny", prompt="one", lora="style", idempotency_key="key")
        assert store.client.hget(f"batchmill:job:{job.id}", "lora") == first.encode()
        assert (
            client.submit(model="tiny", prompt="one", lora="style", idempotency_key="key").id
            == job.id
        )
        with pytest.raises(JobRejected, match="there is no such adapter") as unknown:
            client.submit(model="tiny", prompt="one", lora="other")
        assert (unknown.value.param, unknown.value.code) == ("lora", "adapter_not_found")
        with pytest.raises(JobRejected, match="an adapter of the model 'tiny'"):
            client.submit(model="another", prompt="one", lora="style")
        add(redis_url, "style", write_adapter(source, seed=2), adapters)
        with pytest.raises(IdempotencyConflict):
            client.submit(model="tiny", prompt="one", lora="style", idempotency_key="key")
        restricted = ("--tenant", "acme", "--folder", str(adapters), "--broker-url", redis_url)
        call("lora", "add", "own", str(source), "--model", "tiny", *restricted)
        with pytest.raises(JobRejected, match="there is no such adapter"):
            client.submit(model="tiny", prompt="one", lora="own")
        client.submit(model="tiny", prompt="one", lora="own", tenant="acme")
    listed = call("lora", "list", "--broker-url", redis_url)
    assert "own" in listed.stdout
    assert "acme" in listed.stdout
    assert call("lora", "remove", "own", "--broker-url", redis_url).returncode == 0
    missing = call("lora", "remove", "own", "--broker-url", redis_url)
    assert missing.returncode == ExitCode.NOT_FOUND
