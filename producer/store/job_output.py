"""A job's output while it grows: positions, pieces, and the reader that joins them. No I/O."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from batchmill.producer.errors import OutputRestarted
from batchmill.producer.protocol import keys
from batchmill.producer.protocol.calls.call import Read
from batchmill.producer.protocol.replies import JobState
from batchmill.producer.protocol.token_bytes import decode_tokens
from batchmill.producer.results import JobResult

from .ended_jobs import EndedJob
from .reply_errors import unknown_job_error

_FIELDS = ("state", "restarts", "result", "error")


@dataclass(frozen=True, slots=True)
class StreamPosition:
    """How much of an output has been read: keep it to resume from there, in any process."""

    num_tokens: int = 0
    #: Bytes of the text in UTF-8.
    num_text_bytes: int = 0
    #: How often the output had been started over when it was read.
    num_restarts: int = 0


@dataclass(frozen=True, slots=True)
class StreamPiece:
    """The new part of an output. All pieces joined give the result's text and token ids.

    Text is never taken back. It may lag behind the tokens: an incomplete character or stop string
    is held back and comes with a later piece.
    """

    text: str
    token_ids: list[int]
    #: Where the next piece begins.
    position: StreamPosition


def new_output(job_id: str, position: StreamPosition) -> Read[list[Any]]:
    """Read the output after a position, for `StreamReader.take`."""

    def queue(pipeline: Any) -> None:
        pipeline.hmget(keys.job(job_id), _FIELDS)
        pipeline.getrange(keys.tokens(job_id), position.num_tokens * 4, -1)
        pipeline.getrange(keys.text(job_id), position.num_text_bytes, -1)

    return Read(queue, list, is_atomic=True)


class StreamReader:
    """Follows one output. Owns the position; each stream has its own reader."""

    def __init__(self, job_id: str, position: StreamPosition | None) -> None:
        self._job_id = job_id
        self.position = position or StreamPosition()
        #: The job, once it has ended and all of its output has been taken.
        self.ended: EndedJob | None = None

    def take(self, replies: Sequence[Any]) -> StreamPiece | None:
        """Return the new piece in the replies to `new_output`; None if nothing is new.

        Raises:
            UnknownJob: the job does not exist.
            OutputRestarted: the part read before is no longer part of the output.
        """
        (state, restarts, result, error), tokens, text = replies
        if state is None:
            raise unknown_job_error(self._job_id)
        self._check_restarts(int(restarts or 0))
        state = JobState(state.decode())
        if state.is_terminal:
            self.ended = EndedJob(self._job_id, state, result, error)
            if result is not None:  # holds the whole text; the streamed text is deleted
                whole = JobResult.model_validate_json(result).text.encode()
                text = whole[self.position.num_text_bytes :]
        if not tokens and not text:
            return None
        self.position = StreamPosition(
            self.position.num_tokens + len(tokens) // 4,
            self.position.num_text_bytes + len(text),
            self.position.num_restarts,
        )
        return StreamPiece(text.decode(), decode_tokens(tokens), self.position)

    def check_end(self) -> None:
        """Raise the error of a job that ended without a completion.

        Raises:
            JobFailed, JobCancelled, JobExpired: it ended without a completion.
        """
        assert self.ended is not None
        self.ended.result()

    def _check_restarts(self, num_restarts: int) -> None:
        before = self.position
        if num_restarts == before.num_restarts:
            return
        if before.num_tokens or before.num_text_bytes:
            raise OutputRestarted(
                f"job {self._job_id} was started over by a worker with another model or version; "
                "drop the pieces read so far and stream it from the start"
            )
        self.position = StreamPosition(0, 0, num_restarts)
