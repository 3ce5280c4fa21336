"""What the parts of a worker tell the trace of an attempt; the default is told and does nothing."""

from __future__ import annotations

from typing import Protocol

from batchmill.producer.job.document import GenerationJob
from batchmill.producer.protocol.replies import Claim
from batchmill.worker.engine_host.messages import Finished

from .outcome import Outcome


class TracedJob(Protocol):
    """What a trace reads of an active job."""

    token_ids: list[int]
    #: Time of its first new token; None before it.
    first_token_at: float | None


class AttemptTrace(Protocol):
    """The trace of one attempt. Times are of `time.monotonic()`."""

    @property
    def trace_id(self) -> str | None:
        """The trace, in hex; None if the attempt makes no spans."""

    def saved(self, job: TracedJob, num_tokens: int, start: float) -> None:
        """Note that a checkpoint, begun at `start`, has stored this many new tokens."""

    def finished(self, job: TracedJob, finished: Finished) -> None:
        """Note that the engine has finished the request."""

    def end(self, job: TracedJob, outcome: Outcome) -> None:
        """Note how the attempt ended, after its last write."""


class JobTraces(Protocol):
    """Makes the traces of attempts."""

    def start(self, claim: Claim, document: GenerationJob | None) -> AttemptTrace:
        """Begin the trace of an attempt whose claim was just made.

        Args:
            claim: the claim.
            document: the job; None if its document is invalid.
        """


class _NoTrace:
    trace_id = None

    def saved(self, job: TracedJob, num_tokens: int, start: float) -> None:
        """Do nothing."""

    def finished(self, job: TracedJob, finished: Finished) -> None:
        """Do nothing."""

    def end(self, job: TracedJob, outcome: Outcome) -> None:
        """Do nothing."""


NO_TRACE: AttemptTrace = _NoTrace()


class _NoTraces:
    """Traces nothing."""

    def start(self, claim: Claim, document: GenerationJob | None) -> AttemptTrace:
        """Return the trace that does nothing."""
        return NO_TRACE


NO_TRACES: JobTraces = _NoTraces()
