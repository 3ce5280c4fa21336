"""`ObjectStore`: objects behind any fsspec URL, written once, read with limits, and deleted."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any, Final

from batchmill.producer.errors import (
    BatchmillError,
    PayloadMissing,
    PayloadsUnavailable,
    PayloadUnreachable,
)
from batchmill.producer.install_hint import install_command
from batchmill.producer.protocol.payloads import Reference, is_object_name

from .bounded_calls import BoundedCalls

#: Calls of one process that may wait for the store at once.
MAX_CALLS_AT_ONCE: Final = 8
VARIABLE: Final = "BATCHMILL_PAYLOAD_URL"


class ObjectStore:
    """Objects in a folder or a bucket. Thread-safe; each method blocks for a limited time.

    Attributes:
        threshold_bytes: content that is longer goes here.
        timeout_s: seconds that one object may take.
    """

    def __init__(self, url: str, *, threshold_bytes: int, timeout_s: float) -> None:
        """Find the place; nothing is read or written yet.

        Args:
            url: an fsspec URL, or the path of a folder.
            threshold_bytes: see the class.
            timeout_s: see the class.

        Raises:
            PayloadsUnavailable: fsspec or the library of the URL's kind is not installed, or the
                URL is malformed. The message does not have the URL, which may hold a password.
        """
        self.threshold_bytes = threshold_bytes
        self.timeout_s = timeout_s
        self._calls = BoundedCalls(MAX_CALLS_AT_ONCE)
        try:
            import fsspec
        except ImportError as error:
            raise PayloadsUnavailable(
                f"{VARIABLE} is set, but the package `fsspec` is missing: "
                f"{install_command('payloads')}"
            ) from error
        try:
            self._system, root = fsspec.core.url_to_fs(url)
        except (ImportError, ValueError) as error:
            kind = url.partition("://")[0] if "://" in url else "file"
            raise PayloadsUnavailable(
                f"{VARIABLE} cannot be used ({type(error).__name__}): fsspec does not know the "
                f"kind {kind[:20]!r}, or its library is not installed"
            ) from None
        self._root = root.rstrip("/")

    def write(self, objects: Mapping[str, bytes]) -> None:
        """Write objects.

        Raises:
            PayloadUnreachable: one could not be written in time. Some may have been written; one
                that is written later than that is deleted again, because a sweep may have looked
                for it before.
        """
        given_up = threading.Event()
        calls = [partial(self._write, name, content, given_up) for name, content in objects.items()]
        for name, outcome in zip(objects, self._calls.run(calls, self.timeout_s), strict=True):
            if isinstance(outcome, Exception):
                given_up.set()
                raise _unreachable("written", name, outcome) from None

    def read(self, references: Iterable[Reference]) -> dict[str, bytes | BatchmillError]:
        """Read objects, by their names. An error stands for each one that could not be read."""
        wanted = {reference.name: reference for reference in references}
        calls = [partial(self._read, reference) for reference in wanted.values()]
        outcomes = zip(wanted, self._calls.run(calls, self.timeout_s), strict=True)
        return {name: _content(name, outcome) for name, outcome in outcomes}

    def delete(self, names: Iterable[str]) -> list[str]:
        """Delete objects, and return the names of those that are gone: also if they were before.

        A name that cannot be that of an object counts as gone, because any client of Redis may have
        written it.
        """
        names = list(names)
        calls = [partial(self._delete, name) for name in names]
        outcomes = zip(names, self._calls.run(calls, self.timeout_s), strict=True)
        return [name for name, outcome in outcomes if not isinstance(outcome, Exception)]

    def names(self) -> list[str]:
        """Return the names of everything at the place, objects or not. May take long.

        Raises:
            PayloadUnreachable: the place cannot be listed.
        """
        try:
            found = self._system.ls(self._root, detail=False)
        except FileNotFoundError:
            return []  # nothing was written yet
        except Exception as error:
            raise PayloadUnreachable(
                f"the store of {VARIABLE} could not be listed ({type(error).__name__})"
            ) from None
        return [str(path).rstrip("/").rpartition("/")[2] for path in found]

    def probe(self) -> None:
        """Write, read and delete a small object.

        Raises:
            PayloadUnreachable: the store refuses one of the three.
            PayloadMissing: an object that was just written cannot be read.
        """
        content = b"batchmill"
        reference = Reference.to(content, "probe", "doc", None)
        self.write({reference.name: content})
        found = self.read([reference])[reference.name]
        if isinstance(found, BatchmillError):
            raise found
        if self.delete([reference.name]) != [reference.name]:
            raise PayloadUnreachable(f"{reference.name} could not be deleted from {VARIABLE}")

    # On the threads of `_calls`.

    def _write(self, name: str, content: bytes, given_up: threading.Event) -> None:
        # Every time: an operator may have emptied the place. Buckets have no folders to make.
        self._system.makedirs(self._root, exist_ok=True)
        with self._system.open(self._path(name), "wb") as handle:
            handle.write(content)
        if given_up.is_set():
            self._delete(name)

    def _read(self, reference: Reference) -> bytes:
        with self._system.open(self._path(reference.name), "rb") as handle:
            content: bytes = handle.read(reference.num_bytes + 1)
        return content

    def _delete(self, name: str) -> None:
        if is_object_name(name):
            with contextlib.suppress(FileNotFoundError):
                self._system.rm_file(self._path(name))

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}"


def _content(name: str, outcome: Any) -> bytes | BatchmillError:
    if isinstance(outcome, bytes):
        return outcome
    if isinstance(outcome, FileNotFoundError):
        return PayloadMissing(
            f"the object {name} is not in the store of {VARIABLE}: it was deleted, or this program "
            "has another store than the one that wrote it"
        )
    return _unreachable("read", name, outcome)


def _unreachable(verb: str, name: str, error: BaseException) -> PayloadUnreachable:
    reason = "it took too long" if isinstance(error, TimeoutError) else type(error).__name__
    return PayloadUnreachable(
        f"the object {name} could not be {verb} ({reason}); see whether the store of {VARIABLE} "
        "can be reached, then try again"
    )
