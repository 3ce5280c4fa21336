"""A walk over everything that may be sealed: counts what each key has sealed, or seals it again."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, Final

from batchmill.producer.protocol import keys
from batchmill.producer.protocol.calls import rewrap as calls
from batchmill.producer.protocol.calls.rewrap import RecordKind
from batchmill.producer.protocol.content import (
    MAGIC,
    UnreadableContent,
    is_sealed,
    key_id_of,
    sealed_beginning,
)
from batchmill.producer.protocol.payloads import is_reference, read_reference
from batchmill.producer.store.job_store import JobStore

from .counts import PLAIN, Part, SealCounts
from .files import GatewayFiles
from .records import OUTPUTS, RecordRewrap

#: Keys of Redis per round trip.
_PAGE: Final = 500
_KINDS: Final = {
    "job": RecordKind.JOB,
    "dead": RecordKind.LETTER,
    "event": RecordKind.EVENT,
    "file": RecordKind.FILE,
}
_KEY: Final = re.compile(rf"{keys.PREFIX}(job|dead|event|file):(.+)".encode(), re.DOTALL)
#: Field of a job that lists the keys that a worker needs, for the media that it names, too.
_NEEDED: Final = "sealed_with"
_PARTS: Final = {
    RecordKind.JOB: Part.JOBS,
    RecordKind.LETTER: Part.LETTERS,
    RecordKind.EVENT: Part.EVENTS,
    RecordKind.RECEIVER: Part.RECEIVERS,
    RecordKind.MEDIA: Part.MEDIA,
    RecordKind.FILE: Part.FILE_NAMES,
}


class Walk:
    """Walks over the records of one broker, page by page, beside whatever else runs.

    It keeps nothing but counts, so it can be ended at any time and begun again: what is done is
    found to be done.
    """

    def __init__(
        self, store: JobStore, counts: SealCounts, *, note_page: Callable[[], None] = lambda: None
    ) -> None:
        """Bind to a store, to what counts, and to a function that is called after each page."""
        self._store = store
        self._counts = counts
        self._note_page = note_page
        self._rewrap = RecordRewrap(store)

    def count(self) -> None:
        """Count the values of each key, and change nothing."""
        for kind, ids in self._pages():
            self._look(kind, ids)

    def rewrap(self, limit: int | None = None) -> bool:
        """Seal everything again that is not sealed with the first key.

        Args:
            limit: of values that are replaced; None has no limit.

        Returns:
            Whether the walk came to its end before the limit.
        """
        for kind, ids in self._pages():
            for record_id, names in self._look(kind, ids):
                if limit is not None and self._counts.num_rewrapped >= limit:
                    return False
                self._rewrap_record(kind, record_id, names)
        return True

    def _pages(self) -> Iterator[tuple[RecordKind, Sequence[bytes]]]:
        """Yield the ids of records of one kind, some at a time: media before their jobs."""
        client: Any = self._store.client
        for entries in _scan_pages(partial(client.zscan, keys.MEDIA_DUE, count=_PAGE)):
            yield RecordKind.MEDIA, [name for name, _ in entries]
        for names in _scan_pages(partial(client.scan, match=f"{keys.PREFIX}[jdef]*", count=_PAGE)):
            found: dict[RecordKind, list[bytes]] = {}
            for name in names:
                if match := _KEY.fullmatch(name):
                    found.setdefault(_KINDS[match[1].decode()], []).append(match[2])
            yield from found.items()
            self._counts.num_keys_seen += len(names)
            self._note_page()
        for fields in _scan_pages(partial(client.hscan, keys.RECEIVER_SECRETS, count=_PAGE)):
            yield RecordKind.RECEIVER, list(fields)
        self._note_page()

    def _look(self, kind: RecordKind, ids: Sequence[bytes]) -> list[tuple[str, set[str]]]:
        """Count what keys some records are sealed with; return those with values of others."""
        if not ids:
            return []
        first = self._store.key_ring.key_ids[0] if self._store.key_ring.key_ids else PLAIN
        stale: list[tuple[str, set[str]]] = []
        found = self._store.run(calls.look(kind, ids))
        for record_id, values in zip(ids, found, strict=True):
            names: set[str] = set()
            for name, beginning in values:
                if name == _NEEDED:
                    others = {each for each in beginning.decode().split() if each[0] != "@"} - {
                        first
                    }
                    names |= {name} if others else set()
                    continue
                key_id = _key_id(name, beginning)
                self._counts.found[_part(kind, name), key_id] += 1
                if key_id != first:
                    names.add(name)
            if names:
                # Others than ours may have written the name.
                stale.append((record_id.decode(errors="replace"), names))
        return stale

    def _rewrap_record(self, kind: RecordKind, record_id: str, names: set[str]) -> None:
        try:
            num_done, num_changed = self._rewrap.rewrap(kind, record_id, names)
        except UnreadableContent as error:
            self._counts.note_unreadable(error)
            return
        self._counts.num_rewrapped += num_done
        self._counts.num_changed += num_changed


def count_everything(
    stores: Sequence[JobStore], files: GatewayFiles, note_page: Callable[[], None]
) -> SealCounts:
    """Return how many values each key has sealed, at all brokers and in the gateway's files."""
    counts = SealCounts()
    for store in stores:
        Walk(store, counts, note_page=note_page).count()
        for entry in files.entries(store):
            files.count(entry, counts)
    return counts


def rewrap_everything(
    stores: Sequence[JobStore],
    files: GatewayFiles,
    counts: SealCounts,
    *,
    limit: int | None,
    note_page: Callable[[], None],
) -> bool:
    """Seal everything again; return whether that came to its end before the limit."""
    for store in stores:
        if not Walk(store, counts, note_page=note_page).rewrap(limit):
            return False
        for entry in files.entries(store):
            if limit is not None and counts.num_rewrapped >= limit:
                return False
            files.rewrap(store, entry, counts)
            note_page()
    return True


def _scan_pages(scan: Callable[..., tuple[int, Any]]) -> Iterator[Any]:
    """Yield the pages of a scan of Redis, to its end. The iterators of redis-py join them."""
    cursor = 0
    while True:
        cursor, page = scan(cursor=cursor)
        yield page
        if not cursor:
            return


def _part(kind: RecordKind, name: str) -> Part:
    if name == "fingerprint":
        return Part.FINGERPRINTS
    return Part.OUTPUTS if name in OUTPUTS else _PARTS[kind]


def _key_id(name: str, beginning: bytes) -> str:
    """Return the key that a value names; `PLAIN` if it is not sealed."""
    if name == "fingerprint":
        key_id, colon, _ = beginning.partition(b":")
        return key_id.decode(errors="replace") if colon else PLAIN
    if name == "celery_embed":
        beginning = sealed_beginning(beginning)
    if is_reference(beginning):
        reference = read_reference(beginning)
        return (reference.key_id if reference else None) or PLAIN
    return key_id_of(beginning) if beginning.startswith(MAGIC) and is_sealed(beginning) else PLAIN
