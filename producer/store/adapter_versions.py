"""Which versions of LoRA adapters are needed: by names, and by jobs that have not ended."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

from batchmill.producer.protocol import keys
from batchmill.producer.protocol.replies import JobState

from .adapters import read_adapters
from .job_store import JobStore

#: Records that are read with one call.
_PAGE = 1000
_TERMINAL = frozenset(state.value.encode() for state in JobState if state.is_terminal)


def names_of_versions(stores: Iterable[JobStore]) -> dict[str, list[str]]:
    """Return the names that stand for each version, by its digest."""
    found: dict[str, set[str]] = {}
    for store in stores:
        for each in store.read(read_adapters()):
            found.setdefault(each.digest, set()).add(each.name)
    return {digest: sorted(names) for digest, names in found.items()}


def jobs_of_versions(stores: Iterable[JobStore]) -> Counter[str]:
    """Count the jobs of each version that have not ended, by its digest.

    It walks over the records of all jobs, without blocking Redis: use it for commands only.
    """
    found: Counter[str] = Counter()
    for store in stores:
        # A walk may see a record twice.
        digests: dict[bytes, str] = {}
        for page in _pages(store):
            digests |= _unfinished(store, page)
        found.update(digests.values())
    return found


def _pages(store: JobStore) -> Iterable[list[bytes]]:
    page: list[bytes] = []
    for key in store.client.scan_iter(match=keys.job("*"), count=_PAGE, _type="hash"):
        page.append(key)
        if len(page) == _PAGE:
            yield page
            page = []
    yield page


def _unfinished(store: JobStore, page: list[bytes]) -> dict[bytes, str]:
    """Return the versions of those jobs of a page that need one.

    A record whose state batchmill did not write counts, so that no version is deleted for it.
    """
    with store.client.pipeline(transaction=False) as pipeline:
        for key in page:
            pipeline.hmget(key, ["state", "lora"])
        replies: list[Any] = pipeline.execute()
    return {
        key: digest.decode(errors="replace")
        for key, (state, digest) in zip(page, replies, strict=True)
        if state and digest and state not in _TERMINAL
    }
