"""Seals the values of one record again, under the first key."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final

from batchmill.producer.errors import JobRejected
from batchmill.producer.job.validation import parse_document
from batchmill.producer.protocol import keys
from batchmill.producer.protocol.calls import rewrap as calls
from batchmill.producer.protocol.calls.call import Read
from batchmill.producer.protocol.calls.rewrap import NewPiece, RecordKind
from batchmill.producer.protocol.content import (
    Content,
    JsonContent,
    Place,
    UnreadableContent,
    key_id_of,
    sealed_json,
)
from batchmill.producer.protocol.opening import JSON_FIELDS, letter_place, pieces_of
from batchmill.producer.store.job_store import JobStore
from batchmill.producer.store.submission import fingerprint

OUTPUTS: Final = ("tokens", "text", "thoughts")
_PIECES_PER_CALL: Final = 200
_OUTPUT_KEYS: Final[dict[str, Callable[[str], str]]] = {
    "tokens": keys.tokens,
    "text": keys.text,
    "thoughts": keys.thoughts,
}


_HASHES: Final[dict[RecordKind, Callable[[str], str]]] = {
    RecordKind.JOB: keys.job,
    RecordKind.EVENT: keys.event,
    RecordKind.MEDIA: keys.media,
}


class RecordRewrap:
    """Rewraps values of records; each is replaced only if nothing has changed it meanwhile.

    Workers may run at the same time: they read either form, and what they write stays.
    """

    def __init__(self, store: JobStore) -> None:
        """Bind to the store, whose first key seals."""
        self._store = store

    def rewrap(self, kind: RecordKind, record_id: str, names: Iterable[str]) -> tuple[int, int]:
        """Seal values of a record again.

        Args:
            kind: of the record.
            record_id: its id.
            names: fields and outputs that are not sealed with the first key.

        Returns:
            How many were replaced, and how many another program had changed meanwhile.

        Raises:
            UnreadableContent: a value cannot be opened, or its object cannot be read or written.
            redis.exceptions.RedisError: Redis did not reply.
        """
        wanted = set(names)
        fields = [name for name in wanted if name not in (*OUTPUTS, "fingerprint", "sealed_with")]
        done = [self._replace(kind, record_id, name) for name in fields]
        num_done, num_changed = done.count(True), done.count(False)
        outputs = [name for name in OUTPUTS if name in wanted]
        if outputs:
            num_pieces, num_replaced = self._replace_outputs(record_id, outputs)
            num_done += num_replaced
            num_changed += num_pieces - num_replaced
        if kind is RecordKind.JOB:
            self._store.run(calls.note_keys(record_id, self._new_fingerprint(record_id)))
        return num_done, num_changed

    def _replace(self, kind: RecordKind, record_id: str, name: str) -> bool | None:
        """Replace a value; None if it is gone."""
        known, letter_kind = self._store.read(_value(kind, record_id, name))
        if not known:
            return None
        if kind is RecordKind.JOB and name in JSON_FIELDS:
            json_place = Place(record_id, name)
            sealed = sealed_json(known)
            text = known if sealed is None else self._store.key_ring.open(sealed, json_place)
            content: Content | JsonContent = JsonContent(text.decode(), json_place)
            return self._store.run(calls.replace_value(kind, record_id, name, known, content))
        place = _place(kind, record_id, name, letter_kind)
        opened = self._store.open_object(known, place)
        content = Content(opened, place)
        return self._store.run(calls.replace_value(kind, record_id, name, known, content))

    def _replace_outputs(self, job_id: str, names: Sequence[str]) -> tuple[int, int]:
        """Replace pieces of outputs; return how many had to be, and how many were."""
        outputs, seals, has_ended = self._store.read(_outputs(job_id, names))
        pieces = [
            piece
            for name, output in zip(names, outputs, strict=True)
            # The worker that has the job seals what is plain, if it has keys.
            if has_ended or _has_seals(name, seals)
            for piece in self._new_pieces(job_id, name, output, seals)
        ]
        num_replaced = 0
        for start in range(0, len(pieces), _PIECES_PER_CALL):
            some = pieces[start : start + _PIECES_PER_CALL]
            num_replaced += self._store.run(calls.replace_pieces(job_id, some))
        return len(pieces), num_replaced

    def _new_pieces(
        self, job_id: str, kind: str, output: bytes, seals: dict[bytes, bytes]
    ) -> Iterable[NewPiece]:
        ring = self._store.key_ring
        found = pieces_of(ring, job_id, kind, seals)
        if not found and output:
            content = Content(output, Place(job_id, f"{kind}:0"))
            yield NewPiece(kind, 0, calls.plain_seal(output), content)
        for piece in found:
            if key_id_of(piece.header) == ring.key_ids[0]:
                continue
            place = Place(job_id, f"{kind}:{piece.start}")
            ciphertext = output[piece.start : piece.start + piece.length]
            opened = ring.open(piece.header + ciphertext + piece.tag, place)
            seal = seals[f"{kind}:{piece.start}".encode()]
            yield NewPiece(kind, piece.start, seal, Content(opened, place))

    def _new_fingerprint(self, job_id: str) -> tuple[bytes, str] | None:
        """Return the stored fingerprint and the one under the first key; None if it stays.

        An HMAC tells nothing about its digest. So it is computed again, from the document: with the
        seed or model, or without the one that was chosen for the job. Only if one of these digests
        gives the stored fingerprint under its key, it is the right one.
        """
        known, document, tenant, suffix, key = self._store.read(_fingerprint_fields(job_id))
        ring = self._store.key_ring
        if known is None and key is not None:
            known = self._store.read(_entry_fingerprint(tenant.decode(), key.decode()))
        if known is None or document is None or known.startswith(f"{ring.key_ids[0]}:".encode()):
            return None
        try:
            content = self._store.open_object(document, Place(job_id, "doc"))
            job = parse_document(content)
        except (UnreadableContent, JobRejected):
            return None
        for left_out in ((), ("seed",), ("model",), ("seed", "model")):
            some = job.model_copy(update=dict.fromkeys(left_out))
            names = ring.fingerprints(fingerprint(some), tenant.decode()).split(",")
            for end in {suffix, ""}:
                if known.decode(errors="replace") in [name + end for name in names]:
                    return known, names[0] + end
        return None


def _place(kind: RecordKind, record_id: str, name: str, letter_kind: bytes | None) -> Place:
    if kind is RecordKind.LETTER:
        return letter_place(record_id, letter_kind)
    return Place(record_id, name)


def _value(kind: RecordKind, record_id: str, name: str) -> Read[tuple[bytes | None, bytes | None]]:
    """Read a value as it is stored, and the kind of a dead letter."""

    def queue(pipeline: Any) -> None:
        if kind is RecordKind.FILE:
            pipeline.get(keys.file(record_id))
        elif kind is RecordKind.RECEIVER:
            pipeline.hget(keys.RECEIVER_SECRETS, record_id)
        elif kind is RecordKind.LETTER:
            pipeline.hget(keys.dead(record_id), name)
            pipeline.hget(keys.dead(record_id), "kind")
        else:
            pipeline.hget(_HASHES[kind](record_id), name)

    def parse(replies: list[Any]) -> tuple[bytes | None, bytes | None]:
        return replies[0], replies[1] if kind is RecordKind.LETTER else None

    return Read(queue, parse)


def _outputs(
    job_id: str, names: Sequence[str]
) -> Read[tuple[list[bytes], dict[bytes, bytes], bool]]:
    """Read outputs and their seals at one moment, as they are stored, and whether the job ended."""

    def queue(pipeline: Any) -> None:
        for name in names:
            pipeline.get(_OUTPUT_KEYS[name](job_id))
        pipeline.hgetall(keys.seals(job_id))
        pipeline.hexists(keys.job(job_id), "finished_at_ms")

    def parse(replies: list[Any]) -> tuple[list[bytes], dict[bytes, bytes], bool]:
        *outputs, seals, has_ended = replies
        return [output or b"" for output in outputs], seals, bool(has_ended)

    return Read(queue, parse, is_atomic=True)


def _has_seals(kind: str, seals: dict[bytes, bytes]) -> bool:
    return any(name.startswith(f"{kind}:".encode()) for name in seals)


_Maybe = bytes | None


def _fingerprint_fields(job_id: str) -> Read[tuple[_Maybe, _Maybe, bytes, str, _Maybe]]:
    """Read a job's fingerprint as a line, document, tenant, suffix and idempotency key.

    The suffix names the versions of the adapter and the steering vector (`lib/adapters.lua`).
    """

    def parse(replies: list[Any]) -> tuple[_Maybe, _Maybe, bytes, str, _Maybe]:
        known, document, tenant, key, *digests = replies[0]
        suffix = "".join(f"+{digest.decode()}" for digest in digests if digest)
        return known, document, tenant or keys.DEFAULT_TENANT.encode(), suffix, key

    names = ("fingerprint", "doc", "tenant", "idempotency_key", "lora", "steering")
    return Read(lambda pipeline: pipeline.hmget(keys.job(job_id), *names), parse)


def _entry_fingerprint(tenant: str, key: str) -> Read[_Maybe]:
    """Read the fingerprint of an idempotency entry."""
    name = keys.idempotency(tenant, key)
    return Read(lambda pipeline: pipeline.hget(name, "fingerprint"), lambda replies: replies[0])
