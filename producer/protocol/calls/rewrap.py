"""Calls that replace stored values by the same content under another key."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from batchmill.producer.protocol import keys
from batchmill.producer.protocol.content import Content, JsonContent

from .call import Argument, Call, Read, stored


class RecordKind(StrEnum):
    """Kinds of records with values that are sealed as a whole."""

    JOB = "job"
    LETTER = "letter"
    EVENT = "event"
    MEDIA = "media"
    RECEIVER = "receiver"
    FILE = "file"


@dataclass(frozen=True, slots=True)
class NewPiece:
    """A piece of an output under another key."""

    #: `tokens`, `text` or `thoughts`.
    kind: str
    #: Place in the output, bytes.
    position: int
    #: The seal that is stored; of an output that is not sealed, what `plain_seal` returns.
    seal: bytes
    content: Content


def plain_seal(output: bytes) -> bytes:
    """Return what stands for the seal of an output that is stored as it is."""
    return b"plain " + hashlib.sha1(output, usedforsecurity=False).hexdigest().encode()


def look(kind: RecordKind, ids: Sequence[str | bytes]) -> Call[list[list[tuple[str, bytes]]]]:
    """Look at what records are sealed with; the reply has names and beginnings of their values.

    Of an output there is one beginning per key, or `-` if it is not sealed.
    """

    def parse(reply: list[list[bytes]]) -> list[list[tuple[str, bytes]]]:
        return [
            [(found[at].decode(), found[at + 1]) for at in range(0, len(found), 2)]
            for found in reply
        ]

    return Call("sealed_values", (kind.value, *ids), parse)


def replace_value(
    kind: RecordKind,
    record_id: str | bytes,
    field: str,
    known: bytes,
    content: Content | JsonContent,
) -> Call[bool]:
    """Replace a value; the reply is False if something has changed it meanwhile.

    Args:
        kind: of the record.
        record_id: its id.
        field: of its hash; empty for a record without fields.
        known: the value that is stored.
        content: what it is the sealed form of.
    """
    digest = hashlib.sha1(known, usedforsecurity=False).hexdigest()
    args: tuple[Argument, ...] = (kind.value, record_id, field, digest, content)
    return Call("rewrap", args, lambda reply: bool(reply == 1))


def replace_pieces(job_id: str, pieces: Sequence[NewPiece]) -> Call[int]:
    """Replace pieces of a job's output; the reply is how many were replaced."""
    args: list[Argument] = [job_id]
    for piece in pieces:
        args += [piece.kind, piece.position, piece.seal, piece.content]
    return Call("rewrap_output", args, int)


def note_keys(job_id: str, fingerprint: tuple[bytes, str] | None = None) -> Call[tuple[str, ...]]:
    """Note again which keys a job is sealed with; the reply is their ids.

    Args:
        job_id: the job.
        fingerprint: the stored one of its content and the one that takes its place; None leaves it.
    """
    old, new = fingerprint or ("", "")
    return Call("rewrap_settle", (job_id, old, new), lambda reply: tuple(reply.decode().split()))


def plain_letters(limit: int) -> Read[list[bytes]]:
    """Read ids of dead letters that a worker has to seal."""
    return Read(
        lambda pipeline: pipeline.srandmember(keys.PLAIN_LETTERS, limit),
        lambda replies: list(replies[0] or ()),
    )


def drop_plain_letter(letter_id: bytes) -> Read[None]:
    """Forget that a dead letter has to be sealed."""
    return Read(lambda pipeline: pipeline.srem(keys.PLAIN_LETTERS, letter_id), lambda _: None)


def letter_fields(letter_id: bytes) -> Read[tuple[bytes | None, bytes | None]]:
    """Read the kind and the payload of a dead letter, as they are stored; None for no letter."""

    def parse(replies: list[Any]) -> tuple[bytes | None, bytes | None]:
        kind, payload = stored(replies[0], (None, None))
        return kind, payload

    key = keys.dead("").encode() + letter_id
    return Read(lambda pipeline: pipeline.hmget(key, "kind", "payload"), parse, keeps_errors=True)
