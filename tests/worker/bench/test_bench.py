"""`batchmill bench`: the same requests in every run, and every failure reported."""

from __future__ import annotations

import json

import pytest

from batchmill.worker.bench.figures import BenchRun, RequestTimes, summarise
from batchmill.worker.bench.workloads import WORKLOAD_NAMES, make_workload, with_first_token
from batchmill.worker.settings import WorkerSettings

from ..command_line import call, error_of, run


@pytest.mark.parametrize("name", WORKLOAD_NAMES)
def test_a_workload_is_the_same_each_time_and_within_the_vocabulary(name: str) -> None:
    workload = make_workload(name, vocab_size=300)
    assert workload == make_workload(name, vocab_size=300)
    assert workload != make_workload(name, vocab_size=300, seed=1)
    assert all(0 <= token < 300 for request in workload.requests for token in request.prompt)


def test_workloads_have_their_documented_sizes() -> None:
    bulk = make_workload("bulk", vocab_size=8192)
    assert len(bulk.requests) == 64
    assert all(32 <= len(r.prompt) <= 256 and 32 <= r.max_tokens <= 192 for r in bulk.requests)
    shared = make_workload("shared-prefix", vocab_size=8192)
    assert len({tuple(request.prompt[:512]) for request in shared.requests}) == 1
    assert len({tuple(request.prompt) for request in shared.requests}) == 64
    tail = [request.max_tokens for request in make_workload("long-tail", vocab_size=8192).requests]
    assert max(tail) == 512
    assert sorted(tail)[24] < 64


def test_copies_have_different_tokens() -> None:
    twice = make_workload("bulk", vocab_size=8192, copies=2)
    assert len({tuple(request.prompt) for request in twice.requests}) == 128


def test_another_first_token_changes_nothing_else() -> None:
    workload = make_workload("single", vocab_size=8192)
    assert with_first_token(workload, 7).requests[0].prompt == [7, *workload.requests[0].prompt[1:]]


def test_a_row_is_the_median_of_its_runs_and_adds_their_failures() -> None:
    runs = [
        BenchRun(wall_s, 100, foreign, [RequestTimes(wall_s / 10, None, wall_s)], {"x": 1})
        for wall_s, foreign in ((2.0, 0.0), (1.0, None), (4.0, 0.5))
    ]
    row = summarise("bulk", 1, 5, runs)
    assert (row.wall_s, row.wall_min_s, row.wall_max_s) == (2.0, 1.0, 4.0)
    assert row.output_tokens_per_s == 50.0
    assert (row.first_token_p50_s, row.first_token_p99_s) == (0.2, 0.4)
    assert row.inter_token_p50_s is None
    assert row.foreign_cpus == 0.5
    assert row.failures == {"x": 3}


def test_an_unknown_workload_is_refused_by_name() -> None:
    answer = call("bench", "engine", "--workload", "huge")
    assert answer.returncode == 2
    assert "bulk, shared-prefix, long-tail, single" in answer.stderr


def test_every_engine_setting_is_a_flag() -> None:
    shown = run("bench", "engine", "--help").stdout
    # No request of a benchmark is a chat, or has a mark.
    others = {"tool_call_parser", "reasoning_parser", "watermark", "watermark_keys"}
    options = WorkerSettings().engine_options().keys() - others
    assert [name for name in options if f"--{name.replace('_', '-')}" not in shown] == []
    assert "--lease-s" not in shown


def test_a_model_without_a_worker_is_reported(redis_url: str) -> None:
    answer = call("bench", "queue", "--broker-url", redis_url, "--model", "nobody", "--json")
    assert answer.returncode == 1
    assert "no worker serves 'nobody'" in error_of(answer)["message"]


@pytest.fixture
def stub_stack(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BATCHMILL_ENGINE", "stub")
    monkeypatch.setenv("BATCHMILL_HEARTBEAT_INTERVAL_S", "0.2")


def test_queue_figures_come_from_a_separate_stack(stub_stack: None) -> None:
    answer = call(
        *("bench", "queue", "--own-stack", "--workload", "single", "--rounds", "2"),
        *("--copies", "3", "--json"),
    )
    assert answer.returncode == 0, answer.stderr
    (row,) = json.loads(answer.stdout)["workloads"]
    assert row["num_requests"] == 3
    assert row["num_output_tokens"] == 3 * 128
    assert row["failures"] == {}
    assert 0 < row["first_token_p50_s"] <= row["total_p99_s"] <= row["wall_max_s"]


def test_failed_jobs_are_counted_by_code_and_end_the_command_with_1(
    stub_stack: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BATCHMILL_MAX_MODEL_LEN", "100")
    answer = call(
        *("bench", "queue", "--own-stack", "--workload", "single", "--rounds", "1"),
    )
    assert answer.returncode == 1
    assert "context_length_exceeded" in answer.stdout
