"""Contents of uploaded files, in a folder or behind any `fsspec` URL."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import AsyncIterator, Iterator
from typing import Any

import fsspec

from batchmill.producer.encryption.key_ring import NO_KEYS, KeyRing
from batchmill.producer.encryption.sealed_files import file_key_id, read_sealed, write_sealed
from batchmill.worker.local.state_dir import default_state_dir, make_private_directory

#: Bytes that are read or written at a time.
CHUNK_BYTES = 1 << 20
#: Ends the name of a content that `rewrite` has not exchanged yet.
_UNFINISHED = ".new"


class FileStore:
    """Owns the place of the contents. Its calls block, and are run on threads."""

    def __init__(self, url: str | None, key_ring: KeyRing = NO_KEYS) -> None:
        """Find the place.

        Args:
            url: a folder or an fsspec URL; None is `files` in the state folder of this user.
            key_ring: seals contents that are written, and opens those that are sealed.

        Raises:
            ImportError, ValueError: the URL's kind is unknown, or its library is not installed.
        """
        if url is None:
            folder = default_state_dir() / "files"
            make_private_directory(folder)
            url = str(folder)
        self._key_ring = key_ring
        self._system, self._root = fsspec.core.url_to_fs(url)
        self._system.makedirs(self._root, exist_ok=True)

    def path(self, file_id: str) -> str:
        """Return where a content is; an id has no character that a path could misread."""
        return f"{self._root.rstrip('/')}/{file_id}"

    def open_to_write(self, file_id: str) -> Any:
        """Return a handle for a new content."""
        return write_sealed(self._system.open(self.path(file_id), "wb"), self._key_ring, file_id)

    def open_to_read(self, file_id: str) -> Any:
        """Return a handle that reads a content.

        Raises:
            FileNotFoundError: it does not exist.
            ContentChanged: it is sealed, and was cut. Reading on raises the same, or `KeyMissing`.
        """
        return read_sealed(self._system.open(self.path(file_id), "rb"), self._key_ring, file_id)

    def key_id(self, file_id: str) -> str | None:
        """Return the id of the key that sealed a content; None if it is not sealed.

        Raises:
            FileNotFoundError: it does not exist.
        """
        with self._system.open(self.path(file_id), "rb") as handle:
            return file_key_id(handle)

    def rewrite(self, file_id: str) -> None:
        """Seal a content again. Who reads it meanwhile gets all of the old form or of the new one.

        Raises:
            FileNotFoundError: it does not exist.
            KeyMissing, ContentChanged: it cannot be opened; it stays as it is.
        """
        # A name of its own: another run may rewrite the same content.
        new_path = f"{self.path(file_id)}.{secrets.token_hex(8)}{_UNFINISHED}"
        try:
            with self.open_to_read(file_id) as source:
                target = write_sealed(self._system.open(new_path, "wb"), self._key_ring, file_id)
                with target:
                    while content := source.read(CHUNK_BYTES):
                        target.write(content)
            self._system.mv(new_path, self.path(file_id))
        except BaseException:
            with contextlib.suppress(FileNotFoundError):
                self._system.rm_file(new_path)
            raise

    def delete(self, file_id: str) -> None:
        """Delete a content; one that does not exist is no error."""
        with contextlib.suppress(FileNotFoundError):
            self._system.rm_file(self.path(file_id))

    def delete_unfinished(self) -> None:
        """Delete what calls of `rewrite` have left that were killed.

        One that runs at this moment raises `FileNotFoundError`, and changes nothing.
        """
        for path in map(str, self._system.ls(self._root, detail=False)):
            if path.endswith(_UNFINISHED):
                with contextlib.suppress(FileNotFoundError):
                    self._system.rm_file(path)

    def lines(self, file_id: str, max_line_bytes: int) -> Iterator[bytes]:
        """Yield the lines of a content; a line that is too long is yielded cut, one byte longer."""
        with self.open_to_read(file_id) as handle:
            while raw := handle.readline(max_line_bytes + 1):
                rest = raw
                while len(rest) > max_line_bytes and not rest.endswith(b"\n"):
                    rest = handle.readline(max_line_bytes + 1)
                yield raw

    async def chunks(self, file_id: str) -> AsyncIterator[bytes]:
        """Yield a content in pieces."""
        handle = await asyncio.to_thread(self.open_to_read, file_id)
        try:
            while chunk := await asyncio.to_thread(handle.read, CHUNK_BYTES):
                yield chunk
        finally:
            handle.close()
