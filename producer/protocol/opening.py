"""Opening what reads and claims have found: fields of records, and output in pieces."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

from .content import (
    MAGIC,
    NONCE_BYTES,
    TAG_BYTES,
    Cipher,
    Place,
    Unopened,
    UnreadableContent,
    is_sealed,
    opened,
    sealed_json,
)

#: Fields of a job's record that are sealed as a whole.
CONTENT_FIELDS: Final = ("doc", "result")
#: Fields that are sealed as JSON.
JSON_FIELDS: Final = ("celery_embed",)
#: Fields whose content may be in an object store.
OBJECT_FIELDS: Final = (*CONTENT_FIELDS, "media")

Seals = Mapping[bytes, bytes]


class Piece(NamedTuple):
    """A sealed part of an output."""

    #: Place in the plain output, bytes.
    start: int
    length: int
    #: The sealed value without its ciphertext: what stands before it, and the tag behind it.
    header: bytes
    tag: bytes


def letter_place(letter_id: str | bytes, kind: bytes | None) -> Place:
    """Return the place of a dead letter's payload: that of a job is the job's document."""
    name = letter_id if isinstance(letter_id, str) else letter_id.decode(errors="replace")
    return Place(name, "doc" if kind == b"job" else "payload")


def open_field(cipher: Cipher, job_id: str, name: str, value: Any) -> Any:
    """Return the opened value of a record's field; other values are returned as they are."""
    if not isinstance(value, bytes):
        return value
    place = Place(job_id, name)
    if name in CONTENT_FIELDS:
        return opened(cipher, value, place)
    if name in JSON_FIELDS:
        return open_json(cipher, value, place)
    return value


def open_json(cipher: Cipher, value: bytes, place: Place) -> bytes | Unopened:
    """Return content that is JSON, opened, or what stands for it if it cannot be opened."""
    sealed = sealed_json(value)
    if sealed is None:
        return value
    try:
        if not is_sealed(sealed):
            raise cipher.changed(place)
        return cipher.open(sealed, place)
    except UnreadableContent as error:
        return Unopened(error)


def open_fields(cipher: Cipher, job_id: str, names: Sequence[str], values: Any) -> Any:
    """Return the values of some fields, opened; the error of a read is returned as it is."""
    if not isinstance(values, list | tuple):
        return values
    pairs = zip(names, values, strict=True)
    return [open_field(cipher, job_id, name, value) for name, value in pairs]


def open_record(cipher: Cipher, job_id: str, fields: Any) -> Any:
    """Return all fields of a record, opened."""
    if not isinstance(fields, Mapping):
        return fields
    found = {
        name.encode(): open_field(cipher, job_id, name, fields[name.encode()])
        for name in (*CONTENT_FIELDS, *JSON_FIELDS)
        if name.encode() in fields
    }
    return {**fields, **found}


def pieces_of(cipher: Cipher, job_id: str, kind: str, seals: Seals) -> list[Piece]:
    """Return the sealed pieces of `tokens` or `text`, in order.

    Raises:
        UnreadableContent: batchmill did not write the seals.
    """
    found = []
    for name, value in seals.items():
        field, _, position = name.partition(b":")
        if field != kind.encode():
            continue
        length, _, seal = value.partition(b" ")
        header = len(MAGIC) + 1 + NONCE_BYTES + (seal[len(MAGIC)] if len(seal) > len(MAGIC) else 0)
        if not (position.isdigit() and length.isdigit() and len(seal) == header + TAG_BYTES):
            raise cipher.changed(Place(job_id, kind))
        found.append(Piece(int(position), int(length), seal[:header], seal[header:]))
    return sorted(found)


def open_output(
    cipher: Cipher,
    job_id: str,
    kind: str,
    data: bytes,
    seals: Seals,
    *,
    start: int = 0,
    must_be_sealed: bool = False,
) -> bytes | None:
    """Return a part of an output: what was stored from a position on.

    A worker with keys seals all of an output, also what another had stored before it. So an output
    is sealed as a whole or not at all.

    Args:
        cipher: opens the pieces.
        job_id: the job.
        kind: `tokens` or `text`.
        data: what is stored from `start` to the end.
        seals: of the whole output.
        start: bytes before it.
        must_be_sealed: whether other fields of the job say that its output is sealed.

    Returns:
        None if `start` is in the middle of a sealed piece: read the output from its start.

    Raises:
        UnreadableContent: a key is missing, or the output was changed.
    """
    pieces = [
        piece
        for piece in pieces_of(cipher, job_id, kind, seals)
        if piece.start + piece.length > start
    ]
    if not pieces and not seals and not must_be_sealed:
        return data
    parts, at, end = [], start, start + len(data)
    for piece in pieces:
        if piece.start < start:
            return None
        piece_end = piece.start + piece.length
        if piece.start != at or piece_end > end:
            raise cipher.changed(Place(job_id, kind))
        ciphertext = data[piece.start - start : piece_end - start]
        place = Place(job_id, f"{kind}:{piece.start}")
        parts.append(cipher.open(piece.header + ciphertext + piece.tag, place))
        at = piece_end
    if at != end:
        raise cipher.changed(Place(job_id, kind))
    return b"".join(parts)


def open_tokens(cipher: Cipher, job_id: str, data: Any, seals: Any, *, must_be_sealed: bool) -> Any:
    """Return all tokens of a job, or what stands for them if they cannot be opened."""
    if not isinstance(data, bytes):
        return data
    known = seals if isinstance(seals, Mapping) else {}
    try:
        return open_output(
            cipher, job_id, "tokens", data, known, must_be_sealed=must_be_sealed and bool(data)
        )
    except UnreadableContent as error:
        return Unopened(error)
