"""Calls on pictures and sounds: store them, find them, and pin those that a worker has fetched."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from batchmill.producer.protocol import keys
from batchmill.producer.protocol.content import Cipher, Place, Unopened, opened
from batchmill.producer.protocol.media import (
    FIELD,
    MediaContent,
    MediaName,
    MediaNames,
    NewMedia,
)
from batchmill.producer.protocol.replies import MediaStatus, PinStatus

from .call import Call, Read


def touch(media: Sequence[NewMedia]) -> Call[list[bool]]:
    """Keep media that are stored for a further time; the reply says which are stored."""
    args: list[Any] = []
    for each in media:
        args += (MediaNames((each.id,), each.tenant), each.keep_ms)
    return Call("media_touch", args, lambda reply: [known == 1 for known in reply])


def put(media: NewMedia, *, max_memory_percent: int | None) -> Call[MediaStatus]:
    """Store a medium, unless it would take more of Redis' memory than the limit."""
    args = (
        MediaName(media.id, media.tenant),
        media.tenant,
        media.kind,
        len(media.content),
        media.ttl_ms,
        media.keep_ms,
        "" if max_memory_percent is None else max_memory_percent,
        MediaContent(media.content, media.id, media.tenant),
    )
    return Call(
        "media_put",
        args,
        lambda reply: MediaStatus(reply.decode()),
        when_out_of_memory=MediaStatus.FULL,
    )


def pin(job_id: str, fence: str, place: int, media: NewMedia) -> Call[PinStatus]:
    """Note in a running job's record which stored medium stands for one of its URLs.

    Args:
        job_id: the job.
        fence: of the claim.
        place: of the medium among those of the job, from 0.
        media: what was fetched.
    """
    args = (job_id, fence, place, MediaNames((media.id,), media.tenant))
    return Call("media_pin", args, lambda reply: PinStatus(reply.decode()))


def content(name: str) -> Read[bytes | Unopened | None]:
    """Read the bytes of a stored medium; None if there is none."""

    def opens(replies: list[Any], cipher: Cipher) -> list[Any]:
        return [opened(cipher, replies[0], Place(name, FIELD))]

    def parse(replies: list[Any]) -> bytes | Unopened | None:
        found: bytes | Unopened | None = replies[0]
        return found

    return Read(lambda pipeline: pipeline.hget(keys.media(name), FIELD), parse, opens=opens)


def facts(names: Sequence[str]) -> Read[list[tuple[str, int] | None]]:
    """Read the kind and the bytes of media; None for each that is not stored."""

    def queue(pipeline: Any) -> None:
        for name in names:
            pipeline.hmget(keys.media(name), "kind", "bytes")

    def parse(replies: list[Any]) -> list[tuple[str, int] | None]:
        return [
            None
            if kind is None or not (num_bytes or b"").isdigit()
            else (kind.decode(errors="replace"), int(num_bytes))
            for kind, num_bytes in replies
        ]

    return Read(queue, parse)
