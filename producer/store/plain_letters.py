"""Sealing the dead letters that a script has made of documents: no script can seal."""

from __future__ import annotations

from typing import Final

from batchmill.producer.protocol.calls import rewrap as calls
from batchmill.producer.protocol.calls.rewrap import RecordKind
from batchmill.producer.protocol.content import Content, is_sealed
from batchmill.producer.protocol.opening import letter_place

from .job_store import JobStore

#: Letters per call.
_LIMIT: Final = 100


def seal_plain_letters(store: JobStore) -> int:
    """Seal dead letters that are noted as plain; return how many. Without keys nothing is done.

    A worker that dies between the script and this call leaves them noted, and any other seals them.

    Raises:
        redis.exceptions.RedisError: Redis did not reply; call again.
    """
    if not store.key_ring.key_ids:
        return 0
    num_sealed = 0
    for letter_id in store.read(calls.plain_letters(_LIMIT)):
        kind, payload = store.read(calls.letter_fields(letter_id))
        if not payload or is_sealed(payload):
            store.read(calls.drop_plain_letter(letter_id))
            continue
        content = Content(payload, letter_place(letter_id, kind))
        num_sealed += store.run(
            calls.replace_value(RecordKind.LETTER, letter_id, "payload", payload, content)
        )
    return num_sealed
