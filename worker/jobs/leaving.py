"""Jobs that leave this worker before their end, because others need them or their places."""

from __future__ import annotations

from batchmill.producer.protocol.replies import ReleaseCause
from batchmill.worker.engine_host.messages import Finished
from batchmill.worker.metrics.worker_meter import JobMeter

from .active_job import ActiveJob
from .fair_part import OutputShare
from .record_writer import RecordWriter


class LeavingJobs:
    """Gives back jobs that the engine was asked to stop for that, once it has stopped them.

    Also learns from the others how many of their tokens jobs use. The thread of the engine link
    calls `finished`.
    """

    def __init__(self, writer: RecordWriter, meter: JobMeter, share: OutputShare) -> None:
        """Bind to the parts around it.

        Args:
            writer: gives jobs back.
            meter: counts them.
            share: of `max_tokens` that jobs use.
        """
        self._writer = writer
        self._share = share
        self._counters = {
            ReleaseCause.MOVED: meter.handed_over,
            ReleaseCause.SLICED: meter.sliced,
        }

    def finished(self, job: ActiveJob, finished: Finished) -> bool:
        """Give a job back that the engine has stopped for this; False if it has ended otherwise."""
        how = job.leaving
        if how is None or job.stopping is not None or finished.finish_reason != "abort":
            if finished.finish_reason in ("stop", "length"):
                self._share.note(finished.num_output_tokens, job.request.params.get("max_tokens"))
            return False
        if finished.error_code is not None:  # its deadline has passed
            return False
        self._counters[how.cause].add()
        self._writer.finish_release(job, how)
        return True
