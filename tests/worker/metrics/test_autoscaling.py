"""How many workers a model wants, and its backlog in seconds."""

from __future__ import annotations

import json
from typing import Any

import pytest

from batchmill.producer.protocol import keys
from batchmill.producer.protocol.records import WorkerInfo, read_worker, write_worker
from batchmill.producer.store.queue_figures import QueueFigures
from batchmill.worker.metrics.autoscaling import SPEED_STAT, ModelFigures, Speeds, model_figures

from ...support.worker_info import worker_info


def queue(jobs: int, tokens: int, model: str = "demo") -> QueueFigures:
    return QueueFigures(keys.queue_name(model, "normal"), jobs, 0, tokens, 0, None)


def worker(speed: float | str | None = None, jobs: int = 0, **changes: Any) -> WorkerInfo:
    stats: dict[str, Any] = {"jobs": jobs}
    if speed is not None:
        stats[SPEED_STAT] = speed
    return worker_info("w", stats=stats, **changes)


def figures(
    queues: list[QueueFigures], workers: list[WorkerInfo], speeds: Speeds | None = None
) -> ModelFigures:
    (found,) = model_figures(queues, workers, speeds or Speeds(), target_s=60)
    return found


@pytest.mark.parametrize(
    ("tokens", "running", "wanted"),
    [
        (0, 0, 0),
        (0, 1, 1),  # its worker must not be taken away
        (0, 64, 1),
        (0, 65, 2),
        (1, 0, 1),
        (6000, 0, 1),  # 100 tokens a second for 60 seconds
        (6001, 0, 2),
        (60_000, 0, 10),
        (6001, 640, 10),
    ],
)
def test_the_formula(tokens: int, running: int, wanted: int) -> None:
    found = figures([queue(min(tokens, 1), tokens)], [worker(100.0, running)])
    assert found.workers_wanted == wanted


def test_backlog_is_what_waits_over_the_speed_of_the_ready_workers() -> None:
    workers = [worker(100.0), worker(300.0), worker(None), worker(500.0, state="draining")]
    found = figures([queue(4, 3000), queue(1, 3000)], workers)
    # The third worker was never busy: it counts with the mean of the measured ones, 300.
    assert (found.queued_jobs, found.queued_tokens) == (5, 6000)
    assert found.capacity_tokens_per_s == 700
    assert found.backlog_s == pytest.approx(6000 / 700)
    assert found.workers == {"starting": 0, "ready": 3, "draining": 1}


def test_without_a_measured_speed_one_worker_is_wanted_and_the_backlog_is_unknown() -> None:
    found = figures([queue(9, 10**6)], [])
    assert (found.workers_wanted, found.backlog_s) == (1, None)
    assert figures([queue(9, 10**6)], [worker("rubbish")]).backlog_s is None


@pytest.mark.parametrize("value", ["1e-300", "1e300", "1e999", "NaN", "-5", '"fast"', "[]", "true"])
def test_a_forged_heartbeat_makes_no_figure_infinite(value: str) -> None:
    names = (SPEED_STAT, "jobs", "tokens_per_s")
    stats = "{" + ",".join(f'"{name}":{value}' for name in names) + "}"
    forged = read_worker(
        write_worker(worker(100.0)).replace('{"jobs":0,"busy_tokens_per_s":100.0}', stats).encode()
    )
    assert forged is not None
    found = figures([queue(9, 10**6)], [forged, forged])
    assert found.workers_wanted == 1
    assert found.backlog_s is None
    assert found.tokens_per_s == 0


@pytest.mark.parametrize("field", ["max_num_seqs", "max_model_len", "started_at_ms", "session"])
def test_a_heartbeat_with_a_value_of_another_type_is_left_out(field: str) -> None:
    beat = json.loads(write_worker(worker(100.0)))
    for wrong in ([1], -1, 1e300, None):
        assert read_worker(json.dumps(beat | {field: wrong}).encode()) is None


def test_the_speed_outlives_the_workers() -> None:
    speeds = Speeds()
    figures([], [worker(100.0)], speeds)
    found = figures([queue(1, 12_000)], [], speeds)
    assert (found.workers_wanted, found.backlog_s) == (2, None)


def test_each_model_has_its_own_figures() -> None:
    found = model_figures(
        [queue(1, 6001, "a"), queue(1, 10, "b/c")],
        [worker(100.0, model="a"), worker(1.0, model="d")],
        Speeds(),
        target_s=60,
    )
    assert {each.model: each.workers_wanted for each in found} == {"a": 2, "b/c": 1, "d": 0}
