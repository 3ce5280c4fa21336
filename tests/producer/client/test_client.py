"""Both clients against a real server, with a store playing the worker."""

from __future__ import annotations

import itertools
import json
import random
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any

import pytest

from batchmill.producer import (
    AsyncClient,
    CancelStatus,
    Client,
    GenerationJob,
    IdempotencyConflict,
    Job,
    JobCancelled,
    JobExpired,
    JobFailed,
    JobFields,
    JobLike,
    JobRejected,
    JobResult,
    JobState,
    ProducerSettings,
    QueueFull,
    ResultTimeout,
    Submissions,
    UnknownJob,
    UnsupportedParameter,
    UnusableRecord,
)
from batchmill.producer.client import job_groups
from batchmill.producer.errors import BrokerUnavailable
from batchmill.producer.protocol import keys
from batchmill.producer.store.job_store import JobStore
from batchmill.producer.watch import wait_limits


def finish(bench: Any, job_id: str, *, state: JobState = JobState.COMPLETED, **error: Any) -> None:
    """End a job as a worker does, with two tokens of output."""
    claim = bench.claim(job_id)
    result = JobResult(id=job_id, model="demo", status=state, text="two tokens")
    bench.store.complete(
        job_id,
        fence=claim.fence,
        state=state,
        result=result.model_dump_json(),
        error=json.dumps(error) if error else None,
        token_ids=[11, 12],
    )


def wait_in_thread(wait: Callable[[], Any]) -> Future[Any]:
    """Start a wait in a new thread."""
    threads = ThreadPoolExecutor(1)
    future = threads.submit(wait)
    threads.shutdown(wait=False)
    return future


def collect(source: Iterator[Job], handles: list[Job]) -> None:
    """Keep what comes before an error."""
    for handle in source:
        handles.append(handle)  # noqa: PERF402  # keeps those before the error


def await_subscriber(bench: Any, job_id: str) -> None:
    """Return when a subscriber listens to the job's channel."""
    for _ in range(100_000):
        if bench.redis.pubsub_numsub(keys.channel(job_id))[0][1] == 1:
            return
    raise AssertionError("there is no subscriber")


def test_a_job_is_stored_with_its_defaults_and_announced(client: Client, bench: Any) -> None:
    job = client.submit(prompt="hi", max_tokens=5, priority="high", ttl_s=60)
    record = bench.store.load(job.id)
    assert json.loads(record.document)["max_tokens"] == 5
    assert (record.model, record.queue) == ("demo", "batchmill.demo.high")
    assert bench.redis.llen("batchmill:announced:batchmill.demo.high") == 1
    status = job.status()
    assert (status.id, status.state, status.output_tokens) == (job.id, JobState.QUEUED, 0)
    assert status.deadline_at_ms == status.enqueued_at_ms + 60_000


def test_a_job_may_be_given_as_a_value_or_a_mapping(client: Client) -> None:
    assert client.submit(GenerationJob(prompt="hi")).status().state is JobState.QUEUED
    assert client.submit({"prompt": "hi"}).status().state is JobState.QUEUED
    with pytest.raises(TypeError, match="max_tokens"):
        client.submit(GenerationJob(prompt="hi"), max_tokens=5)


def test_a_text_alone_is_the_prompt(client: Client, bench: Any) -> None:
    job = client.submit("hi", max_tokens=5)
    document = json.loads(bench.store.load(job.id).document)
    assert (document["prompt"], document["max_tokens"]) == ("hi", 5)
    with pytest.raises(TypeError, match="prompt is given twice"):
        client.submit("hi", prompt="hi")
    wrong: list[Any] = [5, [1, 2], [{"role": "user", "content": "hi"}], b"hi"]
    for value in wrong:
        with pytest.raises(JobRejected, match="give a list of token ids as prompt="):
            client.submit(value)
    assert bench.store.counts().queued == 1


def test_an_invalid_job_is_rejected_before_anything_is_stored(client: Client, bench: Any) -> None:
    with pytest.raises(UnsupportedParameter, match="num_beams"):
        client.submit(prompt="hi", num_beams=5)  # type: ignore[call-arg]
    with pytest.raises(JobRejected, match="max_tokens"):
        client.submit(prompt="hi", max_tokens=0)
    assert bench.redis.dbsize() == 0


def test_submitting_twice_under_one_key_is_one_job(client: Client, bench: Any) -> None:
    first = client.submit(prompt="hi", idempotency_key="order-7")
    assert client.submit(prompt="hi", idempotency_key="order-7").id == first.id
    with pytest.raises(IdempotencyConflict, match="order-7") as caught:
        client.submit(prompt="other", idempotency_key="order-7")
    assert caught.value.job_id == first.id
    assert bench.store.counts().queued == 1


def test_a_result_that_is_there_is_returned_at_once(client: Client, bench: Any) -> None:
    job = client.submit(prompt="hi")
    finish(bench, job.id)
    result = client.job(job.id).result(timeout_s=0)
    assert (result.text, result.token_ids, result.status) == ("two tokens", [11, 12], "completed")


def test_a_waiting_caller_is_woken_by_the_end_not_by_the_poll(
    client: Client, bench: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wait_limits, "POLL_INTERVAL_S", 60.0)
    job = client.submit(prompt="hi")
    waiter = wait_in_thread(lambda: job.result(timeout_s=60))
    await_subscriber(bench, job.id)
    finish(bench, job.id)
    assert waiter.result(timeout=60).text == "two tokens"


def test_an_end_in_the_moment_of_subscribing_is_not_missed(
    client: Client, bench: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wait_limits, "POLL_INTERVAL_S", 60.0)
    rng = random.Random(7)
    for _ in range(60):
        job = client.submit(prompt="hi")
        waiter = wait_in_thread(partial(job.result, timeout_s=60))
        for _ in range(rng.randrange(12)):  # vary the moment, by round trips
            bench.redis.ping()
        finish(bench, job.id)
        assert waiter.result(timeout=60).token_ids == [11, 12]


def test_a_caller_whose_connections_are_cut_still_gets_the_result(
    client: Client, bench: Any
) -> None:
    job = client.submit(prompt="hi")
    waiter = wait_in_thread(lambda: job.result(timeout_s=60))
    for _ in range(3):
        await_subscriber(bench, job.id)
        bench.redis.client_kill_filter(_type="pubsub")
    finish(bench, job.id)
    assert waiter.result(timeout=60).text == "two tokens"


def test_a_waiting_caller_outlasts_a_restart_of_the_broker(private_redis_server: Any) -> None:
    store = JobStore.from_url(private_redis_server.url)
    with Client(private_redis_server.url) as client:
        job = client.submit(prompt="hi")
        waiter = wait_in_thread(lambda: job.result(timeout_s=60))
        private_redis_server.kill()
        private_redis_server.start()
        store.cancel(job.id)
        with pytest.raises(JobCancelled):
            waiter.result(timeout=30)
    store.close()


def test_waiting_ends_after_the_caller_s_timeout_and_the_job_continues(client: Client) -> None:
    job = client.submit(prompt="hi")
    for timeout_s in (0, 0.05):
        with pytest.raises(ResultTimeout, match=job.id):
            job.result(timeout_s=timeout_s)
    assert job.status().state is JobState.QUEUED


def test_a_timeout_is_a_timeout_error(client: Client) -> None:
    with pytest.raises(TimeoutError):
        client.submit(prompt="hi").result(timeout_s=0)


def test_checkpoints_do_not_end_the_wait(client: Client, bench: Any) -> None:
    job = client.submit(prompt="hi")
    waiter = wait_in_thread(lambda: job.result(timeout_s=60))
    await_subscriber(bench, job.id)
    for _ in range(20):
        bench.redis.publish(keys.channel(job.id), '{"tokens":8}')
    assert not waiter.done()
    finish(bench, job.id)
    assert waiter.result(timeout=60).text == "two tokens"


@pytest.mark.parametrize(
    ("state", "error"),
    [
        (JobState.FAILED, JobFailed),
        (JobState.CANCELLED, JobCancelled),
        (JobState.EXPIRED, JobExpired),
    ],
)
def test_a_job_that_did_not_complete_raises_with_the_reason_and_the_output_so_far(
    client: Client, bench: Any, state: JobState, error: type[JobFailed]
) -> None:
    job = client.submit(prompt="hi")
    finish(bench, job.id, state=state, code="engine_error", message="it broke", retryable=True)
    with pytest.raises(error, match="it broke") as caught:
        job.result()
    assert (caught.value.job_id, caught.value.code) == (job.id, "engine_error")
    assert caught.value.retryable is True
    assert caught.value.result is not None
    assert caught.value.result.token_ids == [11, 12]
    reported = job.status().error
    assert reported is not None
    assert reported.code == "engine_error"


def test_an_expired_job_raises_though_it_never_ran(client: Client, bench: Any) -> None:
    job = client.submit(prompt="hi", ttl_s=60)
    bench.pass_deadline(job.id)
    bench.store.sweep()
    with pytest.raises(JobExpired) as caught:
        job.result()
    assert (caught.value.code, caught.value.result) == ("deadline_exceeded", None)


def test_cancel_returns_its_outcome(client: Client, bench: Any) -> None:
    waiting_job, running_job = client.submit(prompt="a"), client.submit(prompt="b")
    bench.claim(running_job.id)
    assert waiting_job.cancel().status is CancelStatus.CANCELLED
    assert running_job.cancel().status is CancelStatus.CANCELLING
    assert running_job.status().cancelling is True
    late = waiting_job.cancel()
    assert (late.status, late.state) == (CancelStatus.ALREADY_TERMINAL, JobState.CANCELLED)


def test_an_unknown_job_is_an_error_of_its_own(client: Client) -> None:
    for call in (client.status, client.result, client.cancel):
        with pytest.raises(UnknownJob, match="nobody"):
            call("nobody")


def test_status_counts_the_stored_tokens(client: Client, bench: Any) -> None:
    job = client.submit(prompt="hi")
    finish(bench, job.id)
    status = job.status()
    assert (status.output_tokens, status.attempts, status.worker) == (2, 1, "worker-1")
    assert status.started_at_ms is not None
    assert status.finished_at_ms is not None
    assert status.enqueued_at_ms <= status.started_at_ms <= status.finished_at_ms


def test_many_jobs_keep_their_order(client: Client, bench: Any) -> None:
    handles = client.submit_many({"prompt": "hi", "seed": n} for n in range(1203))
    seeds = [json.loads(bench.store.load(handle.id).document)["seed"] for handle in handles]
    assert seeds == list(range(1203))
    [depth] = bench.store.queue_depths()
    assert (depth.queued, depth.announcements) == (1203, keys.DEFAULT_WINDOW_JOBS)


def test_an_endless_input_is_read_only_as_far_as_asked(client: Client, bench: Any) -> None:
    read = itertools.count()
    handles = client.iter_submit({"prompt": "hi", "seed": next(read)} for _ in itertools.count())
    assert bench.redis.dbsize() == 0
    assert len(list(itertools.islice(handles, 700))) == 700
    assert next(read) == 2 * job_groups.MAX_GROUP_JOBS


def test_large_prompts_make_smaller_batches(client: Client, bench: Any) -> None:
    read = itertools.count()
    next(client.iter_submit({"prompt": "x" * (1 << 20), "seed": next(read)} for _ in range(50)))
    assert next(read) == 4


def test_a_rejected_job_is_reported_and_the_others_are_submitted(client: Client) -> None:
    refused: list[tuple[int, str]] = []
    jobs: list[Any] = ["a", {"prompt": ""}, {"prompt": "c", "num_beams": 2}, {"prompt": "d"}]
    handles = client.submit_many(jobs, on_rejected=lambda index, e: refused.append((index, e.code)))
    assert len(handles) == 2
    assert refused == [(1, "invalid_request"), (2, "unsupported_parameter")]


def test_a_rejected_job_raises_after_the_handles_of_those_before_it(
    client: Client, bench: Any
) -> None:
    jobs: list[JobFields] = [{"prompt": "a"}, {"prompt": "b"}, {"prompt": ""}]
    handles: list[Job] = []
    with pytest.raises(JobRejected) as caught:
        collect(client.iter_submit(jobs), handles)
    assert len(handles) == 2
    assert caught.value.__notes__ == ["job 2 of the input, counted from 0"]
    assert bench.store.counts().queued == 2


def test_many_jobs_are_sent_at_once_and_an_error_names_those_before_it(
    client: Client, bench: Any
) -> None:
    client.submit_many(["a", "b"])
    assert bench.store.counts().queued == 2
    with pytest.raises(JobRejected) as caught:
        client.submit_many(["c", "d", ""])
    assert [client.status(job_id).state for job_id in caught.value.job_ids] == ["queued"] * 2
    assert bench.store.counts().queued == 4


def test_submitting_that_is_never_read_warns(client: Client, bench: Any) -> None:
    with pytest.warns(RuntimeWarning, match="nothing was sent"):
        client.iter_submit(["a"])
    assert bench.store.counts().queued == 0
    next(client.iter_submit(["a"]))
    Submissions(text for text in ["a"]).close()  # it was meant


def test_a_conflict_within_a_batch_costs_no_handle(client: Client, bench: Any) -> None:
    jobs: list[JobFields] = [
        {"prompt": "a", "idempotency_key": "k"},
        {"prompt": "b", "idempotency_key": "k"},
        {"prompt": "c"},
    ]
    handles: list[Job] = []
    with pytest.raises(IdempotencyConflict):
        collect(client.iter_submit(jobs), handles)
    assert len(handles) == 2 == bench.store.counts().queued


def test_a_full_queue_is_an_error_to_try_again_after(redis_url: str, bench: Any) -> None:
    with Client(redis_url, settings=ProducerSettings(max_queue_depth=2)) as client:
        refused: list[int] = []
        handles = client.submit_many(["hi"] * 4, on_rejected=lambda index, _: refused.append(index))
        assert len(list(handles)) == 2
        assert refused == [2, 3]
        with pytest.raises(QueueFull, match="limit is 2") as caught:
            client.submit(prompt="hi")
    assert caught.value.code == "queue_full"


def test_a_key_of_another_type_is_an_error_of_ours(client: Client, bench: Any) -> None:
    bench.redis.set(keys.idempotency("acme", "k"), "no entry", px=60_000)
    taken: JobFields = {"prompt": "hi", "tenant": "acme", "idempotency_key": "k"}
    with pytest.raises(JobRejected, match="batchmill did not write") as caught:
        client.submit(**taken)
    assert (caught.value.code, caught.value.retryable) == ("unusable_record", False)
    refused: list[int] = []
    jobs: list[JobLike] = ["one", taken, {"prompt": "two"}]
    handles = client.submit_many(jobs, on_rejected=lambda index, _: refused.append(index))
    assert (len(list(handles)), refused) == (2, [1])
    bench.redis.set(keys.job("forged"), "no record", px=60_000)
    with pytest.raises(UnusableRecord, match="find and delete the key"):
        client.job("forged").status()
    bench.redis.delete(keys.job("forged"))


def test_a_full_broker_is_a_full_queue(client: Client, bench: Any) -> None:
    bench.redis.config_set("maxmemory", "1")
    with pytest.raises(QueueFull, match="maxmemory"):
        client.submit(prompt="hi")
    refused: list[int] = []
    handles = client.submit_many([{"prompt": "hi"}] * 2, on_rejected=lambda i, _: refused.append(i))
    assert list(handles) == []
    assert refused == [0, 1]


def test_a_broker_that_is_not_there_is_named_without_its_password() -> None:
    with pytest.raises(BrokerUnavailable) as caught:
        Client("redis://:hunter2@127.0.0.1:1/0").submit(prompt="hi")
    assert "127.0.0.1:1" in str(caught.value)
    assert "hunter2" not in str(caught.value)


def test_a_client_shows_its_address_without_the_password(redis_url: str) -> None:
    assert (
        repr(Client("redis://me:hunter2@localhost:1/0")) == "Client('redis://me:***@localhost:1/0')"
    )
    shown = repr(AsyncClient("rediss://localhost:1/0?ssl_password=hunter2&password=hunter3"))
    assert shown == "AsyncClient('rediss://localhost:1/0?ssl_password=***&password=***')"


def test_a_client_without_an_address_takes_the_environment_s(
    redis_url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    monkeypatch.setenv("BATCHMILL_RUNTIME_DIR", str(tmp_path))
    with pytest.raises(BrokerUnavailable, match="batchmill up"):
        Client()
    monkeypatch.setenv("BATCHMILL_BROKER_URL", redis_url)
    with Client() as client:
        assert client.submit(prompt="hi").status().state is JobState.QUEUED


def test_one_client_serves_many_threads(client: Client, bench: Any) -> None:
    barrier = threading.Barrier(8)

    def submit(_: int) -> str:
        barrier.wait(timeout=60)
        return client.submit(prompt="hi").id

    with ThreadPoolExecutor(8) as threads:
        ids = list(threads.map(submit, range(8)))
    assert len(set(ids)) == 8 == bench.store.counts().queued
