"""Comparing the object store with what Redis knows of it, after an index was lost."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from batchmill.producer.payloads.object_store import ObjectStore
from batchmill.producer.protocol import keys
from batchmill.producer.protocol.calls import payloads as payload_calls
from batchmill.producer.protocol.calls import rewrap as look_calls
from batchmill.producer.protocol.calls.call import Read
from batchmill.producer.protocol.calls.rewrap import RecordKind
from batchmill.producer.protocol.payloads import is_object_name, read_reference

from .ended_jobs import chunks
from .job_store import JobStore

#: Objects per round trip.
_PAGE: Final = 500


@dataclass(slots=True)
class PayloadCounts:
    """Objects in the store, by what Redis knows of them."""

    #: A sweep will look whether they are needed.
    noted: int = 0
    #: Due for deletion.
    unused: int = 0
    #: A record or dead letter refers to them, but no sweep would ever delete them.
    lost: int = 0
    #: Nothing refers to them, and no sweep would ever delete them.
    orphaned: int = 0
    #: Other files at the same place; they are left alone.
    foreign: int = 0
    #: Objects that were noted again.
    repaired: int = 0


def check_payloads(
    objects: ObjectStore, stores: Sequence[JobStore], *, repairs: bool
) -> PayloadCounts:
    """Look up every object of a store at all brokers that use it.

    Args:
        objects: the store.
        stores: all shards, or the one broker.
        repairs: note again what is not noted. A sweep deletes what nothing refers to an hour later.

    Raises:
        PayloadUnreachable: the store cannot be listed.
        redis.exceptions.RedisError: a broker does not reply.
    """
    counts = PayloadCounts()
    for some in chunks(objects.names(), _PAGE):
        good = [name for name in some if is_object_name(name)]
        counts.foreign += len(some) - len(good)
        _check_page(good, stores, counts, repairs=repairs)
    return counts


def _check_page(
    names: Sequence[str], stores: Sequence[JobStore], counts: PayloadCounts, *, repairs: bool
) -> None:
    unknown = list(names)
    for store in stores:
        noted, unused = store.read(_known(unknown)) if unknown else (set(), set())
        counts.noted += len(noted)
        counts.unused += len(unused)
        unknown = [name for name in unknown if name not in noted | unused]
    for store in stores:
        referred = _referred(store, unknown) if unknown else set()
        counts.lost += len(referred)
        _note(store, referred, counts, repairs=repairs)
        unknown = [name for name in unknown if name not in referred]
    counts.orphaned += len(unknown)
    _note(stores[0], unknown, counts, repairs=repairs)


def _note(store: JobStore, names: Iterable[str], counts: PayloadCounts, *, repairs: bool) -> None:
    found = list(names)
    if repairs and found:
        store.run(payload_calls.note(found))
        counts.repaired += len(found)


def _referred(store: JobStore, names: Sequence[str]) -> set[str]:
    """Return the objects that a record or a dead letter refers to."""
    ids = sorted({name.partition(".")[0] for name in names})
    found: set[str] = set()
    for kind in (RecordKind.JOB, RecordKind.LETTER, RecordKind.MEDIA):
        for values in store.run(look_calls.look(kind, ids)):
            references = (read_reference(beginning) for _, beginning in values)
            found.update(reference.name for reference in references if reference)
    return found & set(names)


def _known(names: Sequence[str]) -> Read[tuple[set[str], set[str]]]:
    """Read which objects are noted, and which are due for deletion."""

    def queue(pipeline: Any) -> None:
        pipeline.zmscore(keys.PAYLOADS, list(names))
        pipeline.zmscore(keys.PAYLOADS_UNUSED, list(names))

    def parse(replies: list[Any]) -> tuple[set[str], set[str]]:
        noted, unused = (
            {name for name, score in zip(names, scores, strict=True) if score is not None}
            for scores in replies
        )
        return noted, unused - noted

    return Read(queue, parse)
