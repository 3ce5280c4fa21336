"""The gateway's files: which key has sealed each of them, and sealing them again."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any, Final

from batchmill.producer.encryption.key_ring import KeyRing
from batchmill.producer.protocol import keys
from batchmill.producer.protocol.content import UnreadableContent
from batchmill.producer.store.job_store import JobStore

from .counts import PLAIN, Part, SealCounts

#: Files per round trip.
_PAGE: Final = 200
#: A file that the index of a broker names, and that the place of files does not have.
MISSING: Final = "file_not_found"


class GatewayFiles:
    """Contents of files, wherever `BATCHMILL_GATEWAY_FILES_URL` says that they are.

    The place is opened at the first file: a mill without a gateway has none.
    """

    def __init__(self, url: str | None, key_ring: KeyRing) -> None:
        """Take the place, None for the default one, and the keys."""
        self._url = url
        self._key_ring = key_ring
        self._opened: Any = None
        self._is_tidy = False

    def entries(self, store: JobStore) -> Iterator[str]:
        """Yield the tenants and ids of all files that a broker knows, with a slash between them."""
        client: Any = store.client
        for entry, _ in client.zscan_iter(keys.FILES_EXPIRING, count=_PAGE):
            yield entry.decode(errors="replace")

    def count(self, entry: str, counts: SealCounts) -> str | None:
        """Count a file, and return its key; None if the file is missing."""
        try:
            key_id: str = self._files.key_id(_file_id(entry)) or PLAIN
        except FileNotFoundError:
            counts.failed[MISSING] += 1
            return None
        counts.found[Part.FILES, key_id] += 1
        return key_id

    def rewrap(self, store: JobStore, entry: str, counts: SealCounts) -> None:
        """Seal a file again unless the first key has sealed it."""
        if not self._is_tidy:
            self._files.delete_unfinished()
            self._is_tidy = True
        key_id, file_id = self.count(entry, counts), _file_id(entry)
        if key_id is None or key_id == self._key_ring.key_ids[0]:
            return
        try:
            self._files.rewrite(file_id)
        except FileNotFoundError:
            counts.num_changed += 1  # deleted, or rewritten by another run
            return
        except UnreadableContent as error:
            counts.note_unreadable(error)
            return
        expires_at: Any = store.client.zscore(keys.FILES_EXPIRING, entry)
        if expires_at is None or expires_at <= time.time():
            # A gateway may have deleted it meanwhile, and the rewriting has brought it back.
            self._files.delete(file_id)
        counts.num_rewrapped += 1

    @property
    def _files(self) -> Any:
        if self._opened is None:
            from batchmill.worker.gateway.file_store import FileStore

            self._opened = FileStore(self._url, self._key_ring)
        return self._opened


def _file_id(entry: str) -> str:
    return entry.rpartition("/")[2]
