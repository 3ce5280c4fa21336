"""The engine process reports what host memory keeps, and the worker counts it."""

from __future__ import annotations

from pathlib import Path

from batchmill.worker.engine_host.messages import (
    AddRequest,
    EngineLoad,
    EngineSpec,
    OffloadCounts,
    StepReport,
)
from batchmill.worker.engine_host.real_engine import RealEngine, build_real_engine
from batchmill.worker.jobs.worker_metrics import WorkerMetrics
from batchmill.worker.settings import WorkerSettings

from ...engine.tiny_model import save_model

#: Keys and values of 4 tokens: two layers, two heads of 8 numbers in float32.
BLOCK_BYTES = 2 * 2 * 4 * 2 * 8 * 4


def build(folder: Path, **options: object) -> RealEngine:
    given = {
        "device": "cpu",
        "dtype": "float32",
        "max_model_len": 64,
        "block_size": 4,
        "kv_cache_bytes": 16 * BLOCK_BYTES,
        "kv_host_bytes_per_s": 10**15,
        **options,
    }
    return build_real_engine(EngineSpec("real", str(folder), given, checkpoint_tokens=64))


def run(engine: RealEngine, request_id: str, prompt: list[int]) -> None:
    params = {"max_tokens": 4, "temperature": 0.0, "ignore_eos": True}
    engine.add(AddRequest(request_id, prompt, None, params))
    while not engine.step().finished:
        pass


def test_copied_blocks_reach_the_workers_counters(tmp_path: Path) -> None:
    save_model(tmp_path)
    engine = build(tmp_path, kv_host_bytes=64 * BLOCK_BYTES)
    metrics = WorkerMetrics(WorkerSettings())
    for turn in range(2):
        for which in range(4):
            run(engine, f"{turn} {which}", [(50 * which + at) % 250 for at in range(48)])
        counts = engine.offload_counts() or OffloadCounts()
        metrics.note_report(StepReport(turn + 1, 0, EngineLoad(0, 0, 16), offload=counts))

    assert counts.num_restored > 0
    assert counts.block_bytes == BLOCK_BYTES
    meter = metrics.engine
    assert meter.stored_blocks.values == {(): counts.num_stored}
    assert meter.restored_blocks.values == {(): counts.num_restored}
    assert counts.num_held == counts.num_stored - counts.num_evicted


def test_an_engine_without_host_memory_reports_nothing(tmp_path: Path) -> None:
    save_model(tmp_path)
    assert build(tmp_path).offload_counts() is None
