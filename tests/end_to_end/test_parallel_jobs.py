"""Jobs of a worker whose model is divided among ranks that are killed and frozen."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

from batchmill.engine import Engine, EngineConfig, SamplingParams
from batchmill.producer import Client
from batchmill.producer.store.job_store import JobStore

from ..engine.tiny_model import save_model
from ..support.processes import CLI, killed_process, wait_until

CONFIG: dict[str, Any] = {"dtype": "float32", "max_model_len": 256, "kv_cache_bytes": 2**24}
GREEDY: dict[str, Any] = {"max_tokens": 240, "temperature": 0.0, "ignore_eos": True}
PROMPTS = ["the prompt", "another"]


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


def test_jobs_resume_after_a_rank_is_killed_and_after_one_is_frozen(
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
    store = JobStore.from_url(redis_url)
    engine_pids: list[int] = []

    def new_engine() -> bool:
        for worker in store.list_workers():
            pid = int(worker.stats.get("engine_pid", 0))
            if worker.state == "ready" and pid not in (0, *engine_pids):
                assert worker.stats["ranks"] == 2
                engine_pids.append(pid)
                return True
        return False

    texts, ranks = [], []
    with (
        Client(redis_url) as client,
        killed_process(*CLI, "worker", environment=environment, log=tmp_path / "log"),
    ):
        for prompt, number in zip(PROMPTS, (signal.SIGKILL, signal.SIGSTOP), strict=True):
            wait_until(new_engine, "a new engine")
            (rank,) = _children(engine_pids[-1])
            ranks.append(rank)
            job = client.submit(prompt, model="tiny", **GREEDY)
            wait_until(lambda job=job: len(store.read_tokens(job.id)) >= 8, "the first tokens")
            os.kill(rank, number)
            texts.append(job.result(timeout_s=120).text)
            record = store.load(job.id)
            assert record is not None
            assert [each.cause for each in record.history][1:] == ["completed"]
        # The watchdog killed the last one's engine while it was stopped.
        gone = [Path(f"/proc/{pid}") for pid in ranks]
        wait_until(lambda: not any(each.exists() for each in gone), "the end of both ranks")
    store.close()
    engine = Engine(EngineConfig(model=str(model), device="cpu", **CONFIG))
    outputs = engine.generate(PROMPTS, SamplingParams(**GREEDY))
    assert texts == [output.text for output in outputs]
