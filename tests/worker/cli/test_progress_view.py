"""How far jobs are, in words: right numbers of things, and no speed that nobody knows."""

from __future__ import annotations

from batchmill.producer import JobState
from batchmill.producer.bulk.options import BulkCounts
from batchmill.producer.counted import counted
from batchmill.producer.store.read_progress import JobProgress, ProgressSummary
from batchmill.worker.cli.bulk_view import BulkView
from batchmill.worker.cli.progress_view import line


def test_one_is_no_plural() -> None:
    assert [counted(number, "dead letter") for number in (0, 1, 2)] == [
        "0 dead letters",
        "1 dead letter",
        "2 dead letters",
    ]


def test_a_job_has_a_speed_once_a_worker_has_told_one() -> None:
    fields = {"id": "j", "state": JobState.IN_PROGRESS, "output_tokens": 0, "max_tokens": 9}
    unknown = line(JobProgress(**fields, tokens_per_s=0.0, eta_unknown="no_speed"))
    assert "tok/s" not in unknown
    assert "2.5 tok/s" in line(JobProgress(**fields, tokens_per_s=2.5, eta_s=3))
    waiting = line(JobProgress(**(fields | {"state": JobState.QUEUED}), queue_position=1, eta_s=3))
    assert "1 job before it" in waiting


def test_many_jobs_have_a_speed_once_a_worker_has_told_one() -> None:
    fields = {"total": 2, "done": 1, "output_tokens": 1}
    assert "1 token, no ETA" in line(ProgressSummary(**fields, eta_unknown="no_speed"))
    assert "1 token, 4.0 tok/s" in line(ProgressSummary(**fields, tokens_per_s=4.0, eta_s=1))


def test_a_bulk_run_has_a_speed_from_its_first_answer_on() -> None:
    view = BulkView(quiet=True)
    assert "? tok/s" in view._line(BulkCounts(total=3))
    assert "? tok/s" not in view._line(BulkCounts(total=3, completed=1, output_tokens=8))
