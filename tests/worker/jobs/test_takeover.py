"""A worker that joins takes over running jobs from a busy one, which go on from their tokens."""

from __future__ import annotations

import signal
from collections import Counter
from collections.abc import Sequence

from batchmill.producer.protocol.replies import JobState

from ..conftest import Mill, expected_tokens

NUM_JOBS = 6
#: Far more than any job generates before the test ends.
MAX_TOKENS = 20_000


def owners(mill: Mill, jobs: Sequence[str]) -> Counter[str | None]:
    return Counter(mill.record(job_id).owner for job_id in jobs)


def test_a_late_joiner_takes_over_half_of_the_jobs_and_its_death_loses_none(mill: Mill) -> None:
    mill.start_worker("w1", stub={"step_time_s": 0.03}, lease_s=6, takeover=True)
    jobs = [mill.submit(f"prompt {number}", max_tokens=MAX_TOKENS) for number in range(NUM_JOBS)]
    for job_id in jobs:
        mill.wait_tokens(job_id, 20)

    # It asks before the other one, and gets none: it could not continue their tokens.
    other = mill.start_worker("other", stub={"identity": "other"}, takeover=True)
    late = mill.start_worker("w2", stub={"step_time_s": 0.03}, lease_s=6, takeover=True)
    mill.wait_for(
        lambda: owners(mill, jobs) == {"w1@test": 3, "w2@test": 3}, "three jobs on each worker"
    )

    moved = [job_id for job_id in jobs if mill.record(job_id).owner == "w2@test"]
    at_move = {job_id: mill.record(job_id).history[-1].tokens_at_end or 0 for job_id in moved}
    for job_id in moved:
        mill.wait_tokens(job_id, at_move[job_id] + 30)
        record = mill.record(job_id)
        assert [attempt.cause for attempt in record.history] == ["moved"]
        assert (record.suspect, record.attempts) == (0, 2)
        computed = mill.computed(job_id)
        assert computed == list(range(len(computed))), "nothing is computed twice"

    other.end()
    late.end(signal.SIGKILL)
    mill.wait_for(lambda: set(owners(mill, jobs)) == {"w1@test"}, "the return of the jobs")
    for number, job_id in enumerate(jobs):
        mill.wait_tokens(job_id, len(mill.store.read_tokens(job_id)) + 20)
        mill.store.cancel(job_id)
        (record,) = mill.wait_ended(job_id)
        assert record.state is JobState.CANCELLED
        tokens = mill.store.read_tokens(job_id)
        assert tokens == expected_tokens(f"prompt {number}", len(tokens))


def test_jobs_that_wait_inside_a_busy_worker_go_first(mill: Mill) -> None:
    """The engine has fewer places than the worker believes, as one that is short of KV blocks."""
    stub = {"step_time_s": 0.03, "max_num_seqs": 1}
    mill.start_worker("w1", stub=stub, max_num_seqs=2, takeover=True)
    running, waiting = (mill.submit(name, max_tokens=MAX_TOKENS) for name in ("a", "b"))
    mill.wait_tokens(running, 20)
    mill.wait_for(lambda: mill.state(waiting) is JobState.IN_PROGRESS, "its claim")

    mill.start_worker("w2", stub=stub, takeover=True)

    mill.wait_tokens(waiting, 1)
    assert mill.record(waiting).owner == "w2@test"
    assert (mill.record(running).owner, mill.record(running).history) == ("w1@test", ())
