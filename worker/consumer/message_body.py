"""The body of a Celery message: checked, decoded and decompressed within a limit."""

from __future__ import annotations

import base64
import binascii
import bz2
import importlib
import lzma
import sys
import zlib
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any, Protocol

from kombu.utils.json import loads as kombu_loads

from batchmill.worker.errors import MalformedMessage

_JSON = "application/json"
#: Code of a refused message.
TOO_LARGE = "too_large"
#: Longest body, decompressed: twice the longest job document, for what follows the task.
MAX_BODY_BYTES = 24 << 20
#: Longest message. JSON may need several bytes for one of the body's; more than this is not even
#: parsed, which would hold up the whole worker for seconds.
MAX_MESSAGE_BYTES = 3 * MAX_BODY_BYTES
#: Memory for the dictionary of a compressed body.
_MAX_DICTIONARY_BYTES = 64 << 20


class _Decompressor(Protocol):
    """The interface that the decompressors of the standard library share."""

    @property
    def eof(self) -> bool:
        """Whether the end of the compressed data was reached."""

    def decompress(self, data: bytes, max_length: int, /) -> bytes:
        """Decompress at most `max_length` bytes."""


def read_body(message: Mapping[str, Any]) -> Any:
    """Return the content of a message's body.

    Raises:
        MalformedMessage: the body cannot be read, or is too long.
    """
    content_type = message.get("content-type")
    if content_type != _JSON:
        shown = "missing" if content_type is None else repr(str(content_type)[:100])
        raise MalformedMessage("content_type", f"content-type is {shown}, but must be {_JSON}")
    if str(message.get("content-encoding") or "utf-8").lower() not in ("utf-8", "utf8"):
        raise MalformedMessage("content_encoding", "content-encoding must be utf-8")
    data = _encoded(message.get("body"), message["properties"].get("body_encoding"))
    headers = message.get("headers")
    compression = headers.get("compression") if isinstance(headers, Mapping) else None
    if compression is not None:
        data = _decompressed(data.encode() if isinstance(data, str) else data, str(compression))
    if len(data) > MAX_BODY_BYTES:
        raise _too_large(f"has {len(data)} bytes")
    try:
        return kombu_loads(data)
    except Exception:  # kombu converts "__type__" objects, which can raise any error
        raise MalformedMessage("body_not_json", "body is not JSON (cut short?)") from None


def _encoded(body: Any, body_encoding: Any) -> str | bytes:
    """Return a body without the encoding that carries bytes in JSON."""
    if not isinstance(body, str):
        raise MalformedMessage("no_body", "body is missing or not a string")
    if body_encoding not in (None, "", "utf-8", "base64"):
        raise MalformedMessage("body_encoding", "properties.body_encoding must be base64 or absent")
    if body_encoding != "base64":
        return body
    try:
        return base64.b64decode(body, validate=True)
    except (binascii.Error, ValueError):
        raise MalformedMessage("body_encoding", "body is not valid base64") from None


def _decompressed(data: bytes, compression: str) -> bytes:
    """Return decompressed data; stop as soon as it is too long, whatever it would become."""
    make = _DECOMPRESSORS.get(compression)
    if make is None:
        known = ", ".join(sorted(_DECOMPRESSORS))
        raise MalformedMessage(
            "compression",
            f"compression is {compression[:100]!r}; this worker reads {known}",
        )
    try:
        decompressor = make()
        content = decompressor.decompress(data, MAX_BODY_BYTES + 1)
    except (zlib.error, lzma.LZMAError, OSError, EOFError, ValueError, MemoryError) as error:
        reason = f"body cannot be decompressed as {compression}: {error}"
        raise MalformedMessage("compression", reason[:300]) from None
    if len(content) > MAX_BODY_BYTES:
        raise _too_large("has more when it is decompressed")
    if not decompressor.eof:
        raise MalformedMessage("compression", f"body is cut short, compressed as {compression}")
    return content


def _too_large(what: str) -> MalformedMessage:
    return MalformedMessage(
        TOO_LARGE, f"body {what}, the limit is {MAX_BODY_BYTES} bytes; shorten the task"
    )


def _zstd() -> ModuleType | None:
    """Return the library that kombu takes for zstd, if it is installed."""
    name = "compression.zstd" if sys.version_info >= (3, 14) else "backports.zstd"
    try:
        return importlib.import_module(name)
    except ImportError:
        return None


def _decompressors() -> dict[str, Callable[[], _Decompressor]]:
    """Return the methods of kombu that stop at a given length. Brotli's library cannot."""
    found: dict[str, Callable[[], _Decompressor]] = {
        "application/x-gzip": zlib.decompressobj,
        "application/x-bz2": bz2.BZ2Decompressor,
        "application/x-lzma": lambda: lzma.LZMADecompressor(memlimit=_MAX_DICTIONARY_BYTES),
    }
    if (zstd := _zstd()) is not None:
        found["application/zstd"] = zstd.ZstdDecompressor
    return found


_DECOMPRESSORS = _decompressors()
