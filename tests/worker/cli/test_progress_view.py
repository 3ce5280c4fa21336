"""Progress of jobs in words: right plurals, and no speed before it is known."""

from __future__ import annotations

from batchmill.producer import EtaUnknown, JobProgress, JobState, ProgressSummary
from batchmill.producer.bulk.options import BulkCounts
from batchmill.producer.plural import pluralize
from batchmill.worker.cli.bulk_view import BulkView
from batchmill.worker.cli.progress_view import progress_line


def test_one_takes_the_singular() -> None:
    assert [pluralize(number, "dead letter") for number in (0, 1, 2)] == [
        "0 dead letters",
        "1 dead letter",
        "2 dead letters",
    ]


def test_a_job_has_a_speed_once_a_worker_reports_one() -> None:
    job = JobProgress(id="j", state=JobState.IN_PROGRESS, output_tokens=0, max_tokens=9)
    unknown = {"tokens_per_s": 0.0, "eta_unknown": EtaUnknown.NO_SPEED}
    assert "tok/s" not in progress_line(job.model_copy(update=unknown))
    known = {"tokens_per_s": 2.5, "eta_s": 3}
    assert "2.5 tok/s" in progress_line(job.model_copy(update=known))
    waiting = {"state": JobState.QUEUED, "queue_position": 1, "eta_s": 3}
    assert "1 job before it" in progress_line(job.model_copy(update=waiting))


def test_many_jobs_have_a_speed_once_a_worker_reports_one() -> None:
    summary = ProgressSummary(total=2, done=1, output_tokens=1)
    unknown = {"eta_unknown": EtaUnknown.NO_SPEED}
    assert "1 token, no ETA" in progress_line(summary.model_copy(update=unknown))
    known = {"tokens_per_s": 4.0, "eta_s": 1}
    assert "1 token, 4.0 tok/s" in progress_line(summary.model_copy(update=known))


def test_a_bulk_run_has_a_speed_from_its_first_result_on() -> None:
    view = BulkView(quiet=True)
    assert "? tok/s" in view._line(BulkCounts(total=3))
    assert "? tok/s" not in view._line(BulkCounts(total=3, completed=1, output_tokens=8))
