"""An upload: a form whose file goes to the store as it arrives, never whole in memory."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

import python_multipart

from .api_errors import invalid
from .file_store import CHUNK_BYTES, FileStore

#: Longest value of a field other than the file, and most fields.
_MAX_VALUE_BYTES = 4096
_MAX_FIELDS = 32


@dataclass(slots=True)
class Upload:
    """The fields of a form, and what its file is like."""

    fields: dict[str, str] = field(default_factory=dict)
    filename: str | None = None
    num_bytes: int = 0
    sha256: str = ""


class _Form:
    """Parses the form; content of the file waits in `pending` until it is written."""

    def __init__(self, boundary: bytes) -> None:
        self.upload = Upload()
        self.pending = bytearray()
        self.is_complete = False
        self._headers: dict[str, bytearray] = {}
        self._header_name = bytearray()
        self._header_value = bytearray()
        self._name = ""
        self._value = bytearray()
        self._parser = python_multipart.MultipartParser(boundary, self._callbacks())

    def feed(self, chunk: bytes) -> None:
        """Parse the next part of the body.

        Raises:
            ApiError: it is not a form, or has too many or too long fields.
        """
        try:
            self._parser.write(chunk)
        except python_multipart.exceptions.FormParserError as error:
            raise invalid(f"the body is not multipart/form-data: {error}") from None

    def _callbacks(self) -> dict[str, Callable[..., None]]:
        return {
            "on_part_begin": self._begin,
            "on_header_field": lambda data, start, end: self._header_name.extend(data[start:end]),
            "on_header_value": lambda data, start, end: self._header_value.extend(data[start:end]),
            "on_header_end": self._end_header,
            "on_headers_finished": self._end_headers,
            "on_part_data": self._data,
            "on_part_end": self._end,
            "on_end": self._complete,
        }

    def _begin(self) -> None:
        self._headers, self._value, self._name = {}, bytearray(), ""
        if len(self.upload.fields) >= _MAX_FIELDS:
            raise invalid(f"the form has more than {_MAX_FIELDS} fields")

    def _end_header(self) -> None:
        self._headers[self._header_name.decode("latin-1").lower()] = self._header_value
        self._header_name, self._header_value = bytearray(), bytearray()

    def _end_headers(self) -> None:
        header = bytes(self._headers.get("content-disposition", b""))
        _, options = python_multipart.multipart.parse_options_header(header)
        self._name = options.get(b"name", b"").decode(errors="replace")
        if self._name == "file":
            if self.upload.filename is not None:
                raise invalid("the form has two files: send one", "file")
            self.upload.filename = options.get(b"filename", b"file").decode(errors="replace")

    def _data(self, data: bytes, start: int, end: int) -> None:
        if self._name == "file":
            self.pending += data[start:end]
            return
        self._value += data[start:end]
        if len(self._value) > _MAX_VALUE_BYTES:
            raise invalid(f"a field of the form has more than {_MAX_VALUE_BYTES} bytes", self._name)

    def _end(self) -> None:
        if self._name != "file":
            self.upload.fields[self._name] = self._value.decode(errors="replace")

    def _complete(self) -> None:
        self.is_complete = True


async def receive_upload(
    content_type: str,
    chunks: AsyncIterator[bytes],
    store: FileStore,
    file_id: str,
    max_bytes: int,
) -> Upload:
    """Write the file of a form to the store, and return its fields.

    Raises:
        ApiError: the body is not a form with one file, or the file is too long.
    """
    kind, options = python_multipart.multipart.parse_options_header(content_type)
    if kind != b"multipart/form-data" or b"boundary" not in options:
        raise invalid("the body must be multipart/form-data with a file and its purpose")
    form, digest = _Form(options[b"boundary"]), hashlib.sha256()
    handle = await asyncio.to_thread(store.open_to_write, file_id)
    is_whole = False
    try:
        async for chunk in chunks:
            form.feed(chunk)
            if len(form.pending) >= CHUNK_BYTES:
                await _write(form, handle, digest, max_bytes)
        await _write(form, handle, digest, max_bytes)
        if not form.is_complete or form.upload.filename is None:
            raise invalid("the form is cut off or has no part called file", "file")
        await asyncio.to_thread(handle.close)
        is_whole = True
    finally:
        if not is_whole:
            await asyncio.to_thread(_discard, handle, store, file_id)
    form.upload.sha256 = digest.hexdigest()
    return form.upload


def _discard(handle: Any, store: FileStore, file_id: str) -> None:
    handle.close()
    store.delete(file_id)


async def _write(form: _Form, handle: Any, digest: Any, max_bytes: int) -> None:
    content, form.pending = bytes(form.pending), bytearray()
    form.upload.num_bytes += len(content)
    if form.upload.num_bytes > max_bytes:
        raise invalid(
            f"the file has more than {max_bytes} bytes, the limit; split it, or raise "
            "BATCHMILL_GATEWAY_MAX_FILE_BYTES",
            "file",
            code="file_too_large",
        )
    digest.update(content)
    await asyncio.to_thread(handle.write, content)
