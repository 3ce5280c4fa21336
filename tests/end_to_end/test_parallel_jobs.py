"""Jobs of a worker whose model is divided among ranks that are killed and frozen."""

from __future__ import annotations

import os
import signal
from contextlib import closing
from pathlib import Path
from typing import Any

from batchmill.engine import Engine, EngineConfig, SamplingParams
from batchmill.producer import Client, Job
from batchmill.producer.store.job_store import JobStore

from ..engine.tiny_model import save_model
from ..support.processes import CLI, killed_process, wait_until

CONFIG: dict[str, Any] = {"dtype": "float32", "max_model_len": 256, "kv_cache_bytes": 2**24}
GREEDY: dict[str, Any] = {"max_tokens": 240, "temperature": 0.0, "ignore_eos": True}


def _children(pid: int) -> list[int]:
    """Return the processes that a process has started."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                stat = (entry / "stat").read_text()
            except OSError:  # it has ended meanwhile
                continue
            state, parent = stat.rpartition(")")[2].split()[:2]
            if int(parent) == pid and state != "Z":
                found.append(int(entry.name))
    return found


def test_jobs_outlive_a_killed_rank_and_no_process_outlives_a_frozen_one(
    redis_url: str, tmp_path: Path
) -> None:
    model = tmp_path / "tiny"
    save_model(model)
    environment = {
        **{f"BATCHMILL_{name.upper()}": str(value) for name, value in CONFIG.items()},
        "BATCHMILL_MODEL": str(model),
        "BATCHMILL_SERVED_MODEL_NAME": "tiny",
        "BATCHMILL_BROKER_URL": redis_url,
        "BATCHMILL_TENSOR_PARALLEL_SIZE": "2",
        "BATCHMILL_DEVICE": "cpu",
        "BATCHMILL_ENGINE_STALL_S": "3",
        "OMP_NUM_THREADS": "1",
        "PYTHONSAFEPATH": "1",
    }
    ready_pid = 0
    with (
        closing(JobStore.from_url(redis_url)) as store,
        Client(redis_url) as client,
        killed_process(*CLI, "worker", environment=environment, log=tmp_path / "log"),
    ):

        def is_new_engine_ready() -> bool:
            """Whether an engine is ready that was not before."""
            nonlocal ready_pid
            ready = [each for each in store.list_workers() if each.state == "ready"]
            pids = {int(each.stats["engine_pid"]) for each in ready} - {0, ready_pid}
            if pids:
                assert ready[0].stats["ranks"] == 2
                (ready_pid,) = pids
            return bool(pids)

        def disturb(job: Job, number: signal.Signals) -> list[Path]:
            """Send a signal to the other rank of a job that runs; return all ranks."""
            wait_until(lambda: len(store.read_tokens(job.id)) >= 8, "the first tokens")
            (rank,) = _children(ready_pid)
            os.kill(rank, number)
            return [Path(f"/proc/{pid}") for pid in (rank, ready_pid)]

        def causes(job: Job) -> list[str]:
            record = store.load(job.id)
            assert record is not None
            return [attempt.cause for attempt in record.history if attempt.cause]

        wait_until(is_new_engine_ready, "the first engine")
        job = client.submit("the prompt", model="tiny", **GREEDY)
        disturb(job, signal.SIGKILL)
        wait_until(is_new_engine_ready, "the second engine")
        text = job.result(timeout_s=60).text
        assert causes(job) == ["engine_death", "completed"]

        job = client.submit("another", model="tiny", **GREEDY)
        processes = disturb(job, signal.SIGSTOP)
        wait_until(lambda: causes(job) == ["engine_stall"], "the watchdog")
        wait_until(lambda: not any(each.exists() for each in processes), "the end of both ranks")
    engine = Engine(EngineConfig(model=str(model), device="cpu", **CONFIG))
    (output,) = engine.generate(["the prompt"], SamplingParams(**GREEDY))
    assert text == output.text
