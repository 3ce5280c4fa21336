"""The metrics of a worker are counts of what really happened, and its probes say what is."""

from __future__ import annotations

import json
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from batchmill.producer.protocol import keys
from batchmill.worker.errors import EXIT_CONFIG
from batchmill.worker.metrics.catalogue import CATALOGUE
from batchmill.worker.metrics.gpu import gpu_source
from batchmill.worker.metrics.worker_series import (
    GPU_GAUGES,
    GPU_XID_ERRORS,
    KV_HOST_BYTES,
    MEDIA_CACHE_BYTES,
)

from ...conftest import RedisServer
from ...support.processes import free_port
from ..conftest import Mill
from .scrape import Scrape, probe, scrape

MODEL = {"model_name": "demo"}


class Served:
    """A mill with one worker that serves its metrics."""

    def __init__(self, mill: Mill, port: int) -> None:
        self.mill = mill
        self.port = port

    def scrape(self) -> Scrape:
        return scrape(self.port)

    def value(self, name: str, **labels: str) -> float:
        return self.scrape().samples.get(
            (f"batchmill_{name}", frozenset((MODEL | labels).items())), 0
        )

    def wait_value(self, expected: float, name: str, **labels: str) -> None:
        self.mill.wait_for(lambda: self.value(name, **labels) == expected, f"{name}={expected}")


@pytest.fixture(scope="module")
def served(
    _session_server: RedisServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Served]:
    mill = Mill(_session_server.url, tmp_path_factory.mktemp("mill"))
    mill.store.client.flushall()
    port = free_port()
    mill.start_worker(metrics_port=port, max_num_seqs=4, stub={"num_cached_tokens": 3})
    yield Served(mill, port)
    mill.close()


@pytest.fixture(scope="module")
def first(served: Served) -> Scrape:
    """The scrape after five jobs, before any other."""
    job_ids = [served.mill.submit("a secret prompt" * 4, max_tokens=8, n=1) for _ in range(5)]
    served.mill.wait_ended(*job_ids)
    served.wait_value(5, "jobs_processed_total", result="completed", reason="")
    return served.scrape()


def test_tokens_requests_and_steps_are_counted(first: Scrape) -> None:
    def value(name: str, **labels: str) -> float:
        return first.value(f"batchmill_{name}", **MODEL, **labels)

    assert value("generation_tokens_total") == 5 * 8
    assert value("prompt_tokens_total") == 5 * 15
    assert value("prompt_tokens_cached_total") == 5 * 3
    assert value("prefix_cache_hits_total") / value("prefix_cache_queries_total") == 0.2
    assert value("request_success_total", finished_reason="length") == 5
    assert value("jobs_claimed_total") == 5
    assert value("engine_restarts_total", cause="death") == 0
    assert value("recomputed_tokens_total") == 0
    # Four requests at a time, so two rounds of steps.
    assert value("engine_steps_total") >= 16
    assert value("iteration_tokens_total_sum") == 5 * 8 + 5 * 15
    assert value("batch_occupancy_ratio_bucket", le="1.0") == value("engine_steps_total")
    assert value("max_num_seqs") == 4
    assert value("num_requests_running") == 0
    assert value("engine_ready") == 1
    assert value("kv_cache_usage_perc") == 0


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("time_to_first_token_seconds", 5),
        ("inter_token_latency_seconds", 5 * 7),
        ("e2e_request_latency_seconds", 5),
        ("request_queue_time_seconds", 5),
        ("request_prefill_time_seconds", 5),
        ("request_decode_time_seconds", 5),
        ("request_inference_time_seconds", 5),
        ("request_prompt_tokens", 5),
        ("request_generation_tokens", 5),
        ("request_params_max_tokens", 5),
        ("request_params_n", 5),
        ("job_queue_wait_duration_seconds", 5),
    ],
)
def test_histograms_have_one_observation_per_event(first: Scrape, name: str, count: int) -> None:
    assert first.value(f"batchmill_{name}_count", **MODEL) == count
    assert first.value(f"batchmill_{name}_bucket", le="+Inf", **MODEL) == count
    assert first.value(f"batchmill_{name}_sum", **MODEL) > 0


def test_queue_prefill_and_decode_add_up(first: Scrape) -> None:
    def total(name: str) -> float:
        return first.value(f"batchmill_{name}_sum", **MODEL)

    parts = ("request_queue_time", "request_prefill_time", "request_decode_time")
    whole = total("e2e_request_latency_seconds")
    assert sum(total(f"{part}_seconds") for part in parts) == pytest.approx(whole)
    assert total("request_generation_tokens") == 40


def test_no_label_has_a_prompt_or_an_id(served: Served, first: Scrape) -> None:
    job_id = served.mill.submit("a secret prompt", tenant="umbrella", max_tokens=2)
    served.mill.wait_ended(job_id)
    values = {value for _, pairs in served.scrape().samples for _, value in pairs}
    assert not any(part in value for value in values for part in ("secret", "umbrella", job_id))


def test_deaths_resumed_tokens_and_refusals(served: Served, first: Scrape) -> None:
    mill = served.mill
    refused = mill.submit("<<refuse>>")
    crashing = mill.submit("<<crash@20x1>>" + "x" * 40, max_tokens=24)
    mill.wait_ended(refused, crashing)
    served.wait_value(1, "engine_restarts_total", cause="death")
    assert served.value("admission_rejections_total", reason="unsupported_parameter") == 1
    rejected = {"result": "failed", "reason": "unsupported_parameter"}
    served.wait_value(1, "jobs_processed_total", **rejected)
    served.wait_value(1, "jobs_processed_total", result="queued", reason="engine_death")
    num_resumed = served.value("resumed_tokens_total")
    assert 0 < num_resumed <= 20
    # The prompt and the resumed tokens were computed again, but for the cached ones.
    num_prompt = (len("<<crash@20x1>>") + 40) // 4
    served.wait_value(num_prompt - 3 + num_resumed, "recomputed_tokens_total")


def test_checkpoints_and_refused_writes(served: Served, first: Scrape) -> None:
    mill = served.mill
    lags = served.value("checkpoint_lag_seconds_count")
    job_id = mill.submit("long", max_tokens=4000)
    mill.wait_tokens(job_id, 16)
    assert served.value("active_jobs") == 1
    assert served.value("num_requests_running") == 1
    assert served.value("kv_cache_usage_perc") > 0
    assert served.value("checkpoint_lag_seconds_count") > lags
    assert served.value("fenced_writes_total") == 0
    mill.store.client.hincrby(keys.job(job_id), "fence", 1)  # as another claim does
    served.wait_value(1, "fenced_writes_total")
    served.wait_value(0, "active_jobs")


def test_the_catalogue_lists_exactly_what_is_shown(served: Served, first: Scrape) -> None:
    served.mill.wait_for(
        lambda: served.value("busy_tokens_per_second") > 0 or keep_busy(served), ""
    )
    found = served.scrape()
    series = {each.name: each for each in CATALOGUE["worker"]}
    kinds = {name: kind for name, kind in found.kinds.items() if name.startswith("batchmill_")}
    missing = {
        each.name for each in (*GPU_GAUGES, GPU_XID_ERRORS, MEDIA_CACHE_BYTES, KV_HOST_BYTES)
    }
    expected = {
        name.removesuffix("_total") if each.kind.value == "counter" else name: each.kind.value
        for name, each in series.items()
        if name not in missing
    }
    assert kinds == expected
    for name, labels in found.samples:
        if name in series:
            assert {label for label, _ in labels} == set(series[name].labels), name


def keep_busy(served: Served) -> bool:
    """Run a job, and return False: a speed is known after five seconds of work."""
    served.mill.wait_ended(served.mill.submit("busy", max_tokens=1000))
    return False


def test_the_speed_reaches_the_heartbeat(served: Served, first: Scrape) -> None:
    mill = served.mill

    def speed() -> Any:
        beat = mill.heartbeat(mill.workers[0])
        return beat is not None and beat.stats.get("busy_tokens_per_s")

    mill.wait_for(lambda: speed() or keep_busy(served), "a speed")


def test_probes_follow_redis(private_mill: Mill, private_redis_server: RedisServer) -> None:
    port = free_port()
    worker = private_mill.start_worker(metrics_port=port)
    private_mill.wait_for(lambda: probe(port, "/readyz")[0] == 200, "a ready worker")
    assert probe(port, "/healthz") == (200, {"status": "ok"})
    private_redis_server.kill()
    private_mill.wait_for(lambda: probe(port, "/readyz")[0] == 503, "a worker that is not ready")
    assert "Redis has not replied" in probe(port, "/readyz")[1]["problem"]
    assert probe(port, "/healthz")[0] == 200
    assert scrape(port).value("batchmill_broker_silent_seconds", **MODEL) > 5
    private_redis_server.start()
    private_mill.wait_for(lambda: probe(port, "/readyz")[0] == 200, "a worker that is ready again")

    # The port is in use.
    other = private_mill.launch("w2", metrics_port=port)
    assert other.process.wait(120) == EXIT_CONFIG
    lines = [json.loads(line) for line in other.log.splitlines() if line.startswith("{")]
    reasons = [line.get("reason", "") for line in lines if line.get("level") == "critical"]
    assert any("BATCHMILL_METRICS_PORT" in reason for reason in reasons), other.log
    assert worker.process.poll() is None


def test_figures_of_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """With NVML's bindings, as nvidia-ml-py has them."""

    class NVMLError(Exception):
        pass

    def no_events() -> None:
        raise NVMLError("not supported")

    asked: list[str | int] = []
    nvml = SimpleNamespace(
        NVMLError=NVMLError,
        nvmlInit=lambda: None,
        nvmlDeviceGetHandleByIndex=asked.append,
        nvmlDeviceGetHandleByUUID=asked.append,
        nvmlDeviceGetMemoryInfo=lambda handle: SimpleNamespace(used=5, total=10),
        nvmlDeviceGetUtilizationRates=lambda handle: SimpleNamespace(gpu=50),
        nvmlEventSetCreate=no_events,
    )
    monkeypatch.setitem(__import__("sys").modules, "pynvml", nvml)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,GPU-abc")
    assert gpu_source("cpu") is None
    source = gpu_source("cuda:1")
    assert source is not None
    assert asked == ["GPU-abc"]
    found = [(reading.series, *reading.samples) for reading in source()]
    assert found == [
        (series, (("GPU-abc",), value))
        for series, value in zip(GPU_GAUGES, (5.0, 10.0, 0.5), strict=True)
    ]
    gpu_source("auto")
    assert asked[-1] == 3
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert gpu_source("auto") is None
