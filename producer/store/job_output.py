"""A job's output while it grows: positions, pieces, and the reader that joins them. No I/O."""

from __future__ import annotations

import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Self

from batchmill.producer.errors import InvalidQuery, OutputRestarted
from batchmill.producer.protocol import keys
from batchmill.producer.protocol.calls.call import Read
from batchmill.producer.protocol.content import Cipher, Unopened
from batchmill.producer.protocol.opening import open_fields, open_output
from batchmill.producer.protocol.replies import JobState
from batchmill.producer.protocol.token_bytes import decode_tokens
from batchmill.producer.results import JobResult

from .ended_jobs import EndedJob
from .reply_errors import unknown_job_error

_FIELDS = ("state", "restarts", "result", "error", "fence", "claim_nonce", "sealed_with")
# Five numbers, two more if there are thoughts, and the claim. The lengths keep the numbers below
# what Redis takes as an offset.
_POSITION = re.compile(
    r"(\d{1,9})-(\d{1,12})-(\d{1,9})-(\d{1,10})-(\d{1,10})-(?:t(\d{1,12})-(\d{1,10})-)?"
    r"([0-9A-Za-z.]{0,80})",
    re.ASCII,
)


class _Part(NamedTuple):
    """A part of an output: token ids as bytes, text, and thoughts."""

    tokens: bytes
    text: bytes
    thoughts: bytes

    def before(self, position: StreamPosition) -> _Part:
        """Return the beginning of a whole output."""
        lengths = position.num_tokens * 4, position.num_text_bytes, position.num_thought_bytes
        return _Part(*(each[:length] for each, length in zip(self, lengths, strict=True)))

    def after(self, position: StreamPosition) -> _Part:
        """Return what follows a position of a whole output."""
        lengths = position.num_tokens * 4, position.num_text_bytes, position.num_thought_bytes
        return _Part(*(each[length:] for each, length in zip(self, lengths, strict=True)))

    def reaches(self, position: StreamPosition) -> bool:
        """Return whether a whole output has all that is before a position."""
        return [*map(len, self.before(position))] == [
            *(position.num_tokens * 4, position.num_text_bytes, position.num_thought_bytes)
        ]


@dataclass(frozen=True, slots=True)
class StreamPosition:
    """How much of an output has been read: keep it to resume from there, in any process."""

    num_tokens: int = 0
    #: Bytes of the text in UTF-8.
    num_text_bytes: int = 0
    #: How often the output had been started over when it was read.
    num_restarts: int = 0
    #: The claim under which the output was written; empty if it is not known.
    claim: str = ""
    #: CRC-32 of the tokens and of the text that were read. They recognize them after another claim.
    tokens_checksum: int = 0
    text_checksum: int = 0
    #: Bytes of the thoughts in UTF-8, and their CRC-32.
    num_thought_bytes: int = 0
    thoughts_checksum: int = 0

    def moved(self, part: _Part) -> StreamPosition:
        """Return the position after a new part."""
        return StreamPosition(
            self.num_tokens + len(part.tokens) // 4,
            self.num_text_bytes + len(part.text),
            self.num_restarts,
            self.claim,
            zlib.crc32(part.tokens, self.tokens_checksum),
            zlib.crc32(part.text, self.text_checksum),
            self.num_thought_bytes + len(part.thoughts),
            zlib.crc32(part.thoughts, self.thoughts_checksum),
        )

    def to_text(self) -> str:
        """Return the position as one word, for example for the id of a server-sent event."""
        numbers = (
            *(self.num_tokens, self.num_text_bytes, self.num_restarts),
            *(self.tokens_checksum, self.text_checksum),
        )
        words = [*map(str, numbers)]
        if self.num_thought_bytes:
            words += [f"t{self.num_thought_bytes}", str(self.thoughts_checksum)]
        return "-".join([*words, self.claim])

    @classmethod
    def from_text(cls, text: str) -> Self:
        """Return the position that `to_text` has written.

        The text may come from outside, such as the header `Last-Event-ID` of a browser.

        Raises:
            InvalidQuery: it is not such a text.
        """
        found = _POSITION.fullmatch(text)
        if found is None:
            raise InvalidQuery(
                "the position in the output is not one that StreamPosition.to_text has written; "
                "read the output from its start"
            )
        tokens, text_bytes, restarts, tokens_checksum, text_checksum = map(int, found.groups()[:5])
        thoughts = (int(found[6] or 0), int(found[7] or 0))
        return cls(
            tokens, text_bytes, restarts, found[8], tokens_checksum, text_checksum, *thoughts
        )


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
    #: Thoughts of a chat. All pieces joined give the result's `reasoning_content`.
    reasoning_content: str = ""


def new_output(job_id: str, position: StreamPosition) -> Read[list[Any]]:
    """Read the output after a position, for `StreamReader.take`."""

    def queue(pipeline: Any) -> None:
        pipeline.hmget(keys.job(job_id), _FIELDS)
        pipeline.getrange(keys.tokens(job_id), position.num_tokens * 4, -1)
        pipeline.getrange(keys.text(job_id), position.num_text_bytes, -1)
        pipeline.getrange(keys.thoughts(job_id), position.num_thought_bytes, -1)
        pipeline.hgetall(keys.seals(job_id))

    def opens(replies: list[Any], cipher: Cipher) -> list[Any]:
        fields, tokens, text, thoughts, seals = replies
        *others, sealed_with = open_fields(cipher, job_id, _FIELDS, fields)
        result = others[2]
        if isinstance(result, Unopened):
            raise result.error
        is_all_sealed = _names_keys(sealed_with)
        starts = {
            "tokens": position.num_tokens * 4,
            "text": position.num_text_bytes,
            "thoughts": position.num_thought_bytes,
        }
        # With the result, `take` does not need the text; its seals may outlive it.
        found = {"tokens": tokens, "text": b"", "thoughts": b""}
        if result is None:
            found |= {"text": text, "thoughts": thoughts}
        parts = [
            open_output(
                *(cipher, job_id, kind, data, seals),
                start=starts[kind],
                must_be_sealed=is_all_sealed and bool(data),
            )
            if data
            else data
            for kind, data in found.items()
        ]
        return [others, *parts]

    def parse(replies: list[Any]) -> list[Any]:
        return replies

    return Read(queue, parse, is_atomic=True, opens=opens)


def _names_keys(sealed_with: bytes | None) -> bool:
    """Return whether `sealed_with` names a key, and not only abilities."""
    return any(not name.startswith(b"@") for name in (sealed_with or b"").split())


class StreamReader:
    """Follows one output. Owns the position; each stream has its own reader.

    Output that was read is never taken back, unless Redis loses its last writes and another claim
    computes them again. So after each change of the claim the reader reads all of the output once,
    and compares what it has read before.
    """

    def __init__(self, job_id: str, position: StreamPosition | None) -> None:
        self._job_id = job_id
        self.position = position or StreamPosition()
        #: The job, once it has ended and all of its output has been taken.
        self.ended: EndedJob | None = None
        self._reads_all = self._has_read and not self.position.claim
        self.must_read_again = False

    def next_read(self) -> Read[list[Any]]:
        """Return the read whose replies `take` takes."""
        start = StreamPosition() if self._reads_all else self.position
        return new_output(self._job_id, start)

    def take(self, replies: Sequence[Any]) -> StreamPiece | None:
        """Return the new piece in the replies to `next_read`; None if nothing is new.

        If `must_read_again` is set, nothing was taken, and the next read is due at once.

        Raises:
            UnknownJob: the job does not exist.
            KeyMissing, ContentChanged: the output is sealed and cannot be opened.
            OutputRestarted: the part read before is no longer part of the output.
            InvalidQuery: the position at which the reader began is not one of this output.
        """
        (state, restarts, result, error, fence, nonce), *parts = replies
        if state is None:
            raise unknown_job_error(self._job_id)
        self._check_restarts(int(restarts or 0))
        claim = f"{(fence or b'').decode()}.{(nonce or b'').decode()}"
        # A sealed piece that was replaced by a longer one is read from its start.
        is_cut = None in parts
        self.must_read_again = is_cut or (
            self._has_read and claim != self.position.claim and not self._reads_all
        )
        if self.must_read_again:
            self._reads_all = True
            return None
        state = JobState(state.decode())
        new = _Part(*parts)
        if result is not None and state.is_terminal:
            # It holds the whole text; the streamed text is deleted.
            ended = JobResult.model_validate_json(result)
            whole = _Part(new.tokens, ended.text.encode(), (ended.reasoning_content or "").encode())
            start = StreamPosition() if self._reads_all else self.position
            new = whole.after(replace(start, num_tokens=0))
        if self._reads_all:
            if not new.reaches(self.position) and not state.is_terminal:
                return None
            new = self._without_what_was_read(new)
            self._reads_all = False
        if state.is_terminal:
            self.ended = EndedJob(self._job_id, state, result, error)
        self.position = replace(self.position.moved(new), claim=claim)
        if not any(new):
            return None
        text, thoughts = self._decode(new.text), self._decode(new.thoughts)
        return StreamPiece(text, decode_tokens(new.tokens), self.position, thoughts)

    def check_end(self) -> None:
        """Raise the error of a job that ended without a completion.

        Raises:
            JobFailed, JobCancelled, JobExpired: it ended without a completion.
        """
        assert self.ended is not None
        self.ended.result()

    @property
    def _has_read(self) -> bool:
        position = self.position
        return bool(position.num_tokens or position.num_text_bytes or position.num_thought_bytes)

    def _decode(self, text: bytes) -> str:
        try:
            return text.decode()
        except UnicodeDecodeError:
            # Pieces hold whole characters, so no piece of this job ended there.
            raise InvalidQuery(
                f"the position does not belong to the output of job {self._job_id}; read it from "
                "its start"
            ) from None

    def _without_what_was_read(self, whole: _Part) -> _Part:
        """Return the new part of a whole output.

        Raises:
            OutputRestarted: the output does not begin with what was read.
        """
        before = self.position
        read = whole.before(before)
        known = replace(
            before,
            tokens_checksum=zlib.crc32(read.tokens),
            text_checksum=zlib.crc32(read.text),
            thoughts_checksum=zlib.crc32(read.thoughts),
        )
        is_same = whole.reaches(before) and known == before
        if before.claim and not is_same:
            raise OutputRestarted(
                f"job {self._job_id} was computed again, because Redis lost the part of its output "
                "that was read before (a failover, or a restart from an older file); drop the "
                "pieces read so far and stream it from the start"
            )
        self.position = known
        return whole.after(before)

    def _check_restarts(self, num_restarts: int) -> None:
        if num_restarts == self.position.num_restarts:
            return
        if self._has_read:
            raise OutputRestarted(
                f"job {self._job_id} was started over by a worker with another model or version; "
                "drop the pieces read so far and stream it from the start"
            )
        self.position = StreamPosition(num_restarts=num_restarts)
