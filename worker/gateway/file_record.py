"""What is known about an uploaded file, and its entries in Redis."""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from batchmill.producer.errors import KeyMissing
from batchmill.producer.protocol import keys
from batchmill.producer.protocol.calls.call import Read
from batchmill.producer.protocol.content import Cipher, Content, Place, Unopened, opened

#: Files in one page of a list, unless the caller asks for fewer.
MAX_PAGE_FILES = 10_000


class FileRecord(BaseModel):
    """An uploaded file, without its content. Times are seconds of unix time."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    id: str
    tenant: str
    filename: str
    bytes: int
    purpose: str = "batch"
    #: SHA-256 of the content, hex.
    sha256: str
    created_at: int
    expires_at: int

    def openai(self) -> dict[str, Any]:
        """Return OpenAI's object."""
        return file_object(
            self.id,
            num_bytes=self.bytes,
            filename=self.filename,
            purpose=self.purpose,
            created_at=self.created_at,
            expires_at=self.expires_at,
        )


def file_object(
    file_id: str,
    *,
    num_bytes: int,
    filename: str,
    purpose: str,
    created_at: int,
    expires_at: int | None,
) -> dict[str, Any]:
    """Return OpenAI's object of a file."""
    return {
        "id": file_id,
        "object": "file",
        "bytes": num_bytes,
        "created_at": created_at,
        "expires_at": expires_at,
        "filename": filename,
        "purpose": purpose,
        "status": "processed",
    }


def new_file_id() -> str:
    """Return a fresh id; ids sort by time."""
    return f"file-{time.time_ns() // 1_000_000:012x}{secrets.token_hex(10)}"


def created_ms(file_id: str) -> int:
    """Return the time in the id of an upload, milliseconds."""
    return int(file_id[5:17], 16)


def store_file(record: FileRecord, cipher: Cipher) -> Read[None]:
    """Write a record, sealed if there are keys, and its index entries, all or nothing."""
    value = Content(record.model_dump_json(), _place(record.id)).resolved(cipher)

    def queue(pipeline: Any) -> None:
        pipeline.set(keys.file(record.id), value)
        pipeline.zadd(keys.files(record.tenant), {record.id: created_ms(record.id)})
        pipeline.zadd(keys.FILES_EXPIRING, {f"{record.tenant}/{record.id}": record.expires_at})

    return Read(queue, lambda replies: None, is_atomic=True)


def drop_file(tenant: str, file_id: str) -> Read[None]:
    """Delete a record and its index entries, all or nothing."""

    def queue(pipeline: Any) -> None:
        pipeline.delete(keys.file(file_id))
        pipeline.zrem(keys.files(tenant), file_id)
        pipeline.zrem(keys.FILES_EXPIRING, f"{tenant}/{file_id}")

    return Read(queue, lambda replies: None, is_atomic=True)


def load_files(file_ids: Sequence[str]) -> Read[list[FileRecord | None]]:
    """Read files in order; None for one that does not exist, or whose record was changed.

    The read raises `KeyMissing` if a record is sealed with a key that its store does not have.
    """

    def queue(pipeline: Any) -> None:
        for file_id in file_ids:
            pipeline.get(keys.file(file_id))

    def opens(replies: list[Any], cipher: Cipher) -> list[Any]:
        pairs = zip(file_ids, replies, strict=True)
        return [opened(cipher, value, _place(file_id)) for file_id, value in pairs]

    return Read(queue, lambda replies: list(map(_read, replies)), opens=opens)


def list_files(
    tenant: str, after: str | None, limit: int, *, is_ascending: bool
) -> Read[tuple[bool, list[str]]]:
    """Read the ids after a file of a list, one more than asked for, and whether that file exists.

    An id that was deleted still has its place, because ids sort by time.
    """
    key = keys.files(tenant)

    def queue(pipeline: Any) -> None:
        start = "-inf" if is_ascending else "+inf"
        if after is not None:
            start = f"({created_ms(after)}"
        if is_ascending:
            pipeline.zrangebyscore(key, start, "+inf", 0, limit + 1)
        else:
            pipeline.zrevrangebyscore(key, start, "-inf", 0, limit + 1)

    def parse(replies: list[Any]) -> tuple[bool, list[str]]:
        ids = [file_id.decode() for file_id in replies[0]]
        return len(ids) > limit, ids[:limit]

    return Read(queue, parse)


def expired_files(now_s: int) -> Read[list[tuple[str, str]]]:
    """Read tenants and ids of files that have expired, at most a hundred."""

    def parse(replies: list[Any]) -> list[tuple[str, str]]:
        entries = (entry.decode().partition("/") for entry in replies[0])
        return [(tenant, file_id) for tenant, _, file_id in entries]

    return Read(
        lambda pipeline: pipeline.zrangebyscore(keys.FILES_EXPIRING, "-inf", now_s, 0, 100), parse
    )


def _place(file_id: str) -> Place:
    return Place(file_id, "file")


def _read(text: Any) -> FileRecord | None:
    if isinstance(text, Unopened):
        if isinstance(text.error, KeyMissing):
            raise text.error
        return None
    try:
        return None if text is None else FileRecord.model_validate_json(text)
    except ValidationError:
        return None
