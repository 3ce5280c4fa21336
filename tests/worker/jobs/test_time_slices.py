"""Long jobs of a full worker give way to short ones that wait, and lose nothing."""

from __future__ import annotations

from typing import Any

import pytest

from batchmill.producer.protocol import keys
from batchmill.producer.protocol.attempts import Attempt
from batchmill.producer.protocol.replies import Claim, JobState
from batchmill.worker.engine_host.messages import AddRequest
from batchmill.worker.jobs.active_job import ActiveJob
from batchmill.worker.jobs.time_slices import MAX_SLICES, select_jobs

from ..celery_tasks import a_task
from ..conftest import Mill, expected_tokens

HIGH, NORMAL, LOW = keys.queue_names("demo")
#: Far more than any job generates before the test ends.
MAX_TOKENS = 20_000


def a_job(name: str, num_new: int = 100, max_tokens: int = 1000, **more: Any) -> ActiveJob:
    slices = tuple(Attempt(1, "w", cause="sliced") for _ in range(more.pop("num_slices", 0)))
    claim = Claim(name, "1.n", b"{}", [], 1, False, None, 0, 0, 0, history=slices)
    params = {"max_tokens": max_tokens, "n": more.pop("n", 1)}
    job = ActiveJob(claim, AddRequest(name, "p", None, params), a_task(name), is_in_engine=True)
    job.queue = more.pop("queue", NORMAL)
    job.receive(range(num_new), "")
    return job


def chosen(*jobs: ActiveJob, waiting: dict[str, list[int]], share: float = 1.0) -> list[str]:
    queues = {queue: waiting.get(queue, []) for queue in (HIGH, NORMAL, LOW)}
    selected = select_jobs(jobs, queues, slice_tokens=50, output_share=share)
    return [job.request_id for job in selected]


def test_each_short_job_gets_the_place_of_one_long_job() -> None:
    jobs = [a_job("long"), a_job("longer", max_tokens=2000), a_job("longest", max_tokens=3000)]
    assert chosen(*jobs, waiting={NORMAL: [20, 30]}) == ["longest", "longer"]
    assert chosen(*jobs, waiting={NORMAL: [20, 900, 5000]}) == ["longest", "longer"]


@pytest.mark.parametrize(
    ("queue", "waiting", "gives_way"),
    [(NORMAL, HIGH, True), (NORMAL, NORMAL, True), (NORMAL, LOW, False), (HIGH, NORMAL, False)],
    ids=["to high", "to its own", "to low", "high to normal"],
)
def test_a_job_gives_way_to_no_lower_class(queue: str, waiting: str, gives_way: bool) -> None:
    assert bool(chosen(a_job("long", queue=queue), waiting={waiting: [20]})) is gives_way


@pytest.mark.parametrize(
    "job",
    [
        a_job("within its slice", 49),
        a_job("within its third slice", 199, num_slices=2),
        a_job("sliced often", 900_000, 10_000_000, num_slices=MAX_SLICES),
        a_job("about to end", 990),
        a_job("several samples", n=2),
    ],
    ids=lambda job: str(job.request_id),
)
def test_a_job_that_should_stay_stays(job: ActiveJob) -> None:
    assert chosen(job, waiting={NORMAL: [20]}) == []


def test_jobs_that_use_little_of_their_tokens_are_compared_by_what_they_use() -> None:
    assert chosen(a_job("long", max_tokens=4000), waiting={NORMAL: [1000]}, share=0.1)
    assert not chosen(a_job("done soon", max_tokens=1100), waiting={NORMAL: [1000]}, share=0.1)


def test_a_short_job_ends_while_long_ones_hold_all_places(mill: Mill) -> None:
    mill.start_worker("w1", stub={"step_time_s": 0.03}, max_num_seqs=2, time_slice_tokens=10)
    long = [mill.submit(f"long {number}", max_tokens=MAX_TOKENS) for number in range(2)]
    for job_id in long:
        mill.wait_tokens(job_id, 10)

    short = mill.submit("short", max_tokens=4)

    (record,) = mill.wait_ended(short)
    assert record.state is JobState.COMPLETED
    sliced = [job_id for job_id in long if mill.record(job_id).history]
    assert len(sliced) == 1
    num_tokens = len(mill.store.read_tokens(sliced[0]))
    mill.wait_tokens(sliced[0], num_tokens + 5)
    record = mill.record(sliced[0])
    assert [attempt.cause for attempt in record.history] == ["sliced"]
    assert (record.suspect, record.crashes, record.attempts) == (0, 0, 2)
    computed = mill.computed(sliced[0])
    assert computed == list(range(len(computed))), "nothing is computed twice"
    tokens = mill.store.read_tokens(sliced[0])
    assert tokens == expected_tokens(f"long {long.index(sliced[0])}", len(tokens))
