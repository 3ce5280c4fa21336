"""What a stock Celery client's `AsyncResult` shows of a plain task, on every path of its job.

`docs/any-language.md` has the same table; a test compares the two.
"""

from __future__ import annotations

import signal
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from celery import group
from celery.exceptions import TaskRevokedError

from batchmill.producer import Client
from batchmill.producer.protocol import keys
from batchmill.producer.protocol.replies import JobState

from ..announcements import QUEUE
from ..conftest import Mill, WorkerProcess

#: Tokens of a task that must still run while the test looks.
LONG = 4000
WAITS, RUNS = "waits in its queue, or for its delay", "runs"
COMPLETES, FAILS = "completes", "fails, or reaches its time limit"
POISON = "takes every engine down, and becomes a dead letter"
REFUSED = "is not a valid job, has an unknown name, or cannot be deserialized"
CANCELLED = "is cancelled, or revoked before it starts or with `terminate`"
LATE = "does not start before `expires`, or passes its deadline"
GIVEN_BACK = "is given back: its worker shut down or died, or its engine died"
FAILED_ATTEMPT = "failed in an attempt that is retried, and waits"
RETRIED = "is retried after its end (`batchmill retry`), and waits"
NO_RESULT = "has `ignore_result`, or is forgotten"
_PAGE = Path(__file__).resolve().parents[3] / "docs/any-language.md"


def send(mill: Mill, job: dict[str, Any] | None = None, **options: Any) -> Any:
    """Send a task as any Celery program does."""
    kwargs = {"job": {"prompt": "x", "max_tokens": 4, "seed": 7} | (job or {})}
    given = {"queue": QUEUE, "kwargs": kwargs, **options}
    return mill.celery.send_task(given.pop("name", keys.TASK_NAME), **given)


def send_running(mill: Mill, **job: Any) -> Any:
    """Send a task that runs for long, and wait for its first token."""
    sent = send(mill, {"max_tokens": LONG, **job})
    mill.wait_for(lambda: mill.store.read_tokens(sent.id), "its first token")
    assert sent.state == "STARTED"
    assert sent.info["hostname"] == "w1@test"
    return sent


def send_waiting(mill: Mill, **options: Any) -> Any:
    """Send a task that waits in its record."""
    sent = send(mill, countdown=3600, **options)
    mill.wait_for(lambda: mill.store.load(sent.id), "its record")
    assert sent.state == "PENDING"
    return sent


def completes(mill: Mill) -> Any:
    return send(mill)


def fails_in_the_engine(mill: Mill) -> Any:
    return send(mill, {"prompt": "<<error@2>>"})


def is_cancelled_before_it_starts(mill: Mill) -> Any:
    sent = send_waiting(mill)
    mill.store.cancel(sent.id)
    return sent


def is_cancelled_while_it_runs(mill: Mill) -> Any:
    sent = send_running(mill)
    mill.store.cancel(sent.id)
    return sent


def is_revoked_before_it_starts(mill: Mill) -> Any:
    sent = send_waiting(mill)
    mill.celery.control.revoke(sent.id)
    return sent


def is_revoked_with_terminate_while_it_runs(mill: Mill) -> Any:
    sent = send_running(mill)
    mill.celery.control.revoke(sent.id, terminate=True)
    return sent


def is_revoked_without_terminate_while_it_runs(mill: Mill) -> Any:
    sent = send_running(mill, max_tokens=300)
    mill.celery.control.revoke(sent.id, reply=True, timeout=60, limit=1)
    assert sent.state == "STARTED"
    return sent


def expires_before_it_starts(mill: Mill) -> Any:
    return send(mill, expires=datetime.now(UTC) - timedelta(seconds=1))


def passes_its_deadline_while_it_waits(mill: Mill) -> Any:
    sent = send_waiting(mill)
    mill.store.client.hset(keys.job(sent.id), "deadline_at_ms", 1)
    mill.store.client.zadd(keys.DEADLINES, {sent.id: 1})
    return sent


def passes_its_deadline_while_it_runs(mill: Mill) -> Any:
    return send_running(mill, ttl_s=3)


def reaches_its_time_limit(mill: Mill) -> Any:
    return send(mill, {"max_tokens": LONG}, time_limit=1)


def kills_every_engine(mill: Mill) -> Any:
    return send(mill, {"prompt": "<<crash@1>>"})


def is_not_a_job(mill: Mill) -> Any:
    return send(mill, {"temperature": -1})


def has_an_unknown_name(mill: Mill) -> Any:
    return send(mill, name="shop.no_such_task")


def cannot_be_deserialized(mill: Mill) -> Any:
    return send(mill, serializer="yaml")


PATHS: list[tuple[Callable[[Mill], Any], str, str, str]] = [
    (completes, COMPLETES, "SUCCESS", ""),
    (is_revoked_without_terminate_while_it_runs, COMPLETES, "SUCCESS", ""),
    (fails_in_the_engine, FAILS, "FAILURE", "numerical_error"),
    (reaches_its_time_limit, FAILS, "FAILURE", "time_limit_exceeded"),
    (kills_every_engine, POISON, "FAILURE", "attempts_exhausted"),
    (is_not_a_job, REFUSED, "FAILURE", "invalid_request"),
    (has_an_unknown_name, REFUSED, "FAILURE", "unknown_task"),
    (cannot_be_deserialized, REFUSED, "FAILURE", "content_type"),
    (is_cancelled_before_it_starts, CANCELLED, "REVOKED", "cancelled"),
    (is_cancelled_while_it_runs, CANCELLED, "REVOKED", "cancelled"),
    (is_revoked_before_it_starts, CANCELLED, "REVOKED", "revoked|cancelled"),
    (is_revoked_with_terminate_while_it_runs, CANCELLED, "REVOKED", "terminated|cancelled"),
    (expires_before_it_starts, LATE, "REVOKED", "deadline_exceeded"),
    (passes_its_deadline_while_it_waits, LATE, "REVOKED", "deadline_exceeded"),
    (passes_its_deadline_while_it_runs, LATE, "REVOKED", "deadline_exceeded"),
]
#: Rows whose states are those of other tests here.
OTHER_ROWS = {
    WAITS: "PENDING",
    RUNS: "STARTED",
    GIVEN_BACK: "RETRY",
    FAILED_ATTEMPT: "RETRY",
    RETRIED: "RETRY",
    NO_RESULT: "PENDING",
}


@pytest.mark.parametrize(
    ("path", "state", "text"),
    [pytest.param(path, state, text, id=path.__name__) for path, _, state, text in PATHS],
)
def test_a_sender_sees_how_its_task_ended(
    running_mill: Mill, path: Callable[[Mill], Any], state: str, text: str
) -> None:
    sent = path(running_mill)
    if state == "SUCCESS":
        assert sent.get(timeout=60)["status"] == "completed"
    else:
        kind = TaskRevokedError if state == "REVOKED" else Exception
        with pytest.raises(kind, match=text):
            sent.get(timeout=60)
    assert sent.state == state


def send_and_give_back(mill: Mill, end: Callable[[WorkerProcess], object]) -> Any:
    worker = mill.start_worker(stub={"step_time_s": 0.005})
    sent = send_running(mill, max_tokens=300)
    end(worker)
    return sent


def kill(worker: WorkerProcess) -> None:
    worker.end(signal.SIGKILL)


@pytest.mark.parametrize(("end", "cause"), [(WorkerProcess.end, "drain"), (kill, "worker_lost")])
def test_a_task_that_was_given_back_waits_as_a_retry(
    private_mill: Mill, end: Callable[[WorkerProcess], object], cause: str
) -> None:
    mill = private_mill
    sent = send_and_give_back(mill, end)
    if cause == "worker_lost":
        mill.store.client.zadd(keys.LEASES, {sent.id: 1})
        mill.wait_for(lambda: mill.store.sweep().requeued, "its lease to be taken")
        cause = "lease_expired"
    assert sent.state == "RETRY"
    assert type(sent.result).__name__ == "JobReleased"
    assert sent.result.args[0] == cause

    mill.start_worker("w2")

    assert sent.get(timeout=60)["status"] == "completed"
    assert sent.state == "SUCCESS"


def test_a_task_of_an_engine_that_died_goes_through_retry(running_mill: Mill) -> None:
    seen: list[str] = []
    sent = send(running_mill, {"prompt": "<<crash@1>>"})
    with pytest.raises(Exception, match="attempts_exhausted"):
        sent.get(timeout=60, on_message=lambda meta: seen.append(meta["status"]))
    assert seen[-1] == "FAILURE"
    assert set(seen[:-1]) <= {"STARTED", "RETRY"}
    assert seen.count("RETRY") >= 1


def test_a_task_whose_attempt_failed_shows_why_it_waits(running_mill: Mill) -> None:
    mill = running_mill
    policy = {"max_attempts": 2, "backoff_s": 3600}
    sent = send(mill, {"prompt": "<<oom@2x1>>", "retry": policy})
    mill.wait_for(lambda: sent.state == "RETRY", "the first attempt to fail")
    assert sent.result.args[0] == "out_of_memory"
    mill.store.cancel(sent.id)
    with pytest.raises(TaskRevokedError):
        sent.get(timeout=60)


def test_a_task_that_is_retried_after_its_end_gets_its_new_result(private_mill: Mill) -> None:
    mill = private_mill
    mill.start_worker()
    sent = send_waiting(mill)
    mill.store.cancel(sent.id)
    with pytest.raises(TaskRevokedError):
        sent.get(timeout=60)
    for worker in mill.workers:
        worker.end()
    with Client(mill.url) as client:
        client.retry(sent.id)
        again = mill.celery.AsyncResult(sent.id)
        assert again.state == "RETRY"
        mill.start_worker("w2")
        assert again.get(timeout=60)["status"] == "completed"

        client.forget(sent.id)

    assert mill.celery.AsyncResult(sent.id).state == "PENDING"


def test_a_task_that_ignores_its_result_has_no_state(running_mill: Mill) -> None:
    sent = send(running_mill, {"max_tokens": LONG}, ignore_result=True)
    running_mill.wait_for(lambda: running_mill.store.read_tokens(sent.id), "its first token")
    assert sent.state == "PENDING"
    running_mill.store.cancel(sent.id)
    (record,) = running_mill.wait_ended(sent.id)
    assert record.state is JobState.CANCELLED
    assert sent.state == "PENDING"


def test_a_part_of_a_group_shows_how_it_ended(running_mill: Mill) -> None:
    """A worker reports the end of a task in a workflow, and no sweep looks at it afterwards."""
    job = {"prompt": "x", "max_tokens": LONG}
    part = running_mill.celery.signature(keys.TASK_NAME, kwargs={"job": job}, queue=QUEUE)
    late = part.clone(kwargs={"job": job | {"ttl_s": 3}})
    sent = group([part, late]).apply_async()
    cancelled, expired = sent.results
    for each in sent.results:
        running_mill.wait_for(partial(is_started, each), "its start")
        assert running_mill.celery.backend.get_task_meta(each.id)["group_id"] == sent.id

    running_mill.store.cancel(cancelled.id)

    with pytest.raises(TaskRevokedError, match="cancelled: the job was cancelled"):
        cancelled.get(timeout=60)
    with pytest.raises(TaskRevokedError, match="deadline_exceeded"):
        expired.get(timeout=60)


def is_started(sent: Any) -> bool:
    return bool(sent.state == "STARTED")


def test_the_page_has_these_rows() -> None:
    after = _PAGE.read_text().partition("What `AsyncResult` shows")[2]
    head, _, *lines = after.split("\n\n")[1].splitlines()
    assert head.startswith("| a plain task | state |")
    cells = [line.removeprefix("| ").split(" | ") for line in lines]
    assert {row: state for row, state, *_ in cells} == OTHER_ROWS | {
        row: state for _, row, state, _ in PATHS
    }
