"""`MediaReader`: the pictures and sounds of one job, from its record to pixels and samples."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from batchmill.engine.contract.media import Media
from batchmill.producer.errors import BatchmillError, ContentChanged
from batchmill.producer.job.media_parts import MediaPart
from batchmill.producer.protocol.calls import media as media_calls
from batchmill.producer.protocol.content import Unopened
from batchmill.producer.protocol.media import UNKNOWN, NewMedia, is_media_name, media_id
from batchmill.producer.protocol.replies import MediaStatus, PinStatus
from batchmill.producer.store.job_store import JobStore

from .decoder import MediaDecoder
from .errors import MISSING, TOO_LARGE, UNREACHABLE, MediaError


class Fetcher(Protocol):
    """Gets the bytes behind a URL."""

    def fetch(self, url: str) -> bytes:
        """Return the bytes; raise `MediaError` if that cannot be done."""


@dataclass(frozen=True, slots=True)
class MediaOwner:
    """The claim for which media are read."""

    job_id: str
    fence: str
    tenant: str
    #: As the record has them.
    names: Sequence[str]


class MediaReader:
    """Reads and decodes the media of jobs. Thread-safe; it blocks, within limits of time."""

    def __init__(
        self,
        store: JobStore,
        decoder: MediaDecoder,
        fetcher: Fetcher,
        *,
        ttl_s: int,
        max_memory_percent: int | None,
        max_job_bytes: int,
        read_rate_hz: Callable[[], int | None],
        note: Callable[[Media, float], None],
    ) -> None:
        """Bind to what it reads with.

        Args:
            store: holds the media.
            decoder: decodes them.
            fetcher: gets those that are at a URL.
            ttl_s: seconds for which a fetched one is kept after the job.
            max_memory_percent: of Redis' memory, beyond which nothing that was fetched is stored.
            max_job_bytes: of the decoded media of a job.
            read_rate_hz: the rate of the sounds that the model takes; None leaves them as they are.
            note: is told each decoded medium, and the seconds that decoding it took.
        """
        self._store = store
        self._decoder = decoder
        self._fetcher = fetcher
        self._ttl_ms = ttl_s * 1000
        self._max_memory_percent = max_memory_percent
        self._max_job_bytes = max_job_bytes
        self._read_rate_hz = read_rate_hz
        self._note = note

    def read(self, owner: MediaOwner, parts: Sequence[MediaPart]) -> list[Media]:
        """Return the decoded media of a job, in order; equal ones are read and decoded once.

        A URL that stands at several places is one medium, which is pinned at the first of them.

        Raises:
            MediaError, BatchmillError: one cannot be used; the code says why.
            redis.exceptions.RedisError: Redis did not reply.
        """
        if len(owner.names) != len(parts):
            raise MediaError(MISSING, "the record does not have the media of the document")
        named = list(zip(owner.names, parts, strict=True))
        pinned = {(part.type, part.url): name for name, part in named if name != UNKNOWN}
        decoded: dict[tuple[str, str], Media] = {}
        found = []
        for place, (own_name, part) in enumerate(named):
            name = own_name
            if name == UNKNOWN and part.url is not None:
                name = pinned.get((part.type, part.url), UNKNOWN)
            key = (part.type, part.url or "" if name == UNKNOWN else name)
            if key not in decoded and name == UNKNOWN:
                decoded[key] = self._fetched(owner, place, part)
            elif key not in decoded:
                content = self._stored(owner, place, name, part)
                decoded[key] = self._decoded(content, part.type)
            self._check_bytes(decoded.values())
            found.append(decoded[key])
        return found

    def _decoded(self, content: bytes, kind: str) -> Media:
        started_at = time.monotonic()
        medium = self._decoder.decode(content, kind, rate_hz=self._read_rate_hz())
        self._note(medium, time.monotonic() - started_at)
        return medium

    def _check_bytes(self, media: Iterable[Media]) -> None:
        num_bytes = sum(each.num_bytes for each in media)
        if num_bytes > self._max_job_bytes:
            raise MediaError(
                TOO_LARGE,
                f"the pictures and sounds of the job have {num_bytes} bytes or more when they are "
                f"decoded, the limit is {self._max_job_bytes}: send smaller or fewer ones, or "
                "raise BATCHMILL_MEDIA_MAX_JOB_BYTES",
            )

    def _stored(self, owner: MediaOwner, place: int, name: str, part: MediaPart) -> bytes:
        if not is_media_name(name):
            raise MediaError(MISSING, f"medium {place + 1} has a name that batchmill did not write")
        content = self._store.read(media_calls.content(name))
        if content is None:
            raise MediaError(
                MISSING,
                f"medium {place + 1} is not stored any more: send the job again with it; it is "
                "kept for BATCHMILL_MEDIA_TTL_S after the end of a job",
            )
        if isinstance(content, Unopened):
            error = content.error
            raise error if isinstance(error, BatchmillError) else ContentChanged(str(error))
        if part.media is not None and media_id(content) != part.media:
            raise ContentChanged(
                f"medium {place + 1} of {owner.job_id} is not what was stored; send it again"
            )
        return content

    def _fetched(self, owner: MediaOwner, place: int, part: MediaPart) -> Media:
        """Fetch a medium and pin it, so that another attempt of the job sees the same bytes.

        It is decoded first: what is neither a picture nor a sound is not stored.
        """
        content = self._fetcher.fetch(part.url or "")
        decoded = self._decoded(content, part.type)
        media = NewMedia(
            *(content, media_id(content), part.type, owner.tenant, self._ttl_ms), is_of_job=True
        )
        (status,) = self._store.put_media([media], max_memory_percent=self._max_memory_percent)
        if status is not MediaStatus.STORED:
            raise MediaError(
                UNREACHABLE, "Redis has no room for what was fetched; another attempt may find some"
            )
        pinned = self._store.run(media_calls.pin(owner.job_id, owner.fence, place, media))
        if pinned is PinStatus.GONE:
            raise MediaError(
                UNREACHABLE, "what was fetched was deleted at once; another attempt may keep it"
            )
        return decoded
