"""References: what a record holds in place of content that lies in the operator's object store.

A reference: the bytes b5 42 4d 52, then the object's name, its length in bytes, its SHA-256 in hex
and the id of the key that sealed it (`-` for none), with spaces between them. The name is
`<id of the job>.<field>.<32 hex digits>`: an object has one owner, and is never written twice.
"""

from __future__ import annotations

import hashlib
import re
import secrets
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, Self

MAGIC: Final = b"\xb5BMR"
#: Stands among the ids of keys for the ability to read objects: a worker without it leaves the job.
READS_OBJECTS: Final = "@payloads"
#: Longest object that is read, whatever a reference says: the longest string that Redis takes.
MAX_OBJECT_BYTES: Final = 512 << 20
_NAME = re.compile(r"[A-Za-z0-9_-]{1,128}\.(doc|result|media)\.[0-9a-f]{32}")
_REFERENCE = re.compile(rb"([\w.-]{1,200}) (\d{1,12}) ([0-9a-f]{64}) ([\w.-]{1,64})")
_NO_KEY = "-"


@dataclass(frozen=True, slots=True)
class Reference:
    """Where content is, and what it must be."""

    name: str
    num_bytes: int
    sha256: str
    #: Id of the key that sealed it; None if it is not sealed.
    key_id: str | None = None

    @classmethod
    def to(cls, content: bytes, owner: str, field: str, key_id: str | None) -> Self:
        """Return a reference to new content, under a fresh name."""
        name = f"{owner}.{field}.{secrets.token_hex(16)}"
        return cls(name, len(content), hashlib.sha256(content).hexdigest(), key_id)

    def to_bytes(self) -> bytes:
        """Return it as a record holds it."""
        key_id = self.key_id or _NO_KEY
        return MAGIC + f"{self.name} {self.num_bytes} {self.sha256} {key_id}".encode()

    def is_of(self, owner: str, field: str) -> bool:
        """Return whether it belongs to this field of a job, and was not moved from another one."""
        return self.name.startswith(f"{owner}.{field}.")

    def matches(self, content: bytes) -> bool:
        """Return whether content is what was written."""
        is_as_long = len(content) == self.num_bytes
        return is_as_long and hashlib.sha256(content).hexdigest() == self.sha256


def is_object_name(name: str) -> bool:
    """Return whether a name can be that of an object: nothing that a path could misread."""
    return _NAME.fullmatch(name) is not None


def is_reference(value: bytes) -> bool:
    """Return whether a value refers to an object."""
    return value.startswith(MAGIC)


def read_reference(value: bytes) -> Reference | None:
    """Return the reference of a value; None if it is none, or batchmill did not write it."""
    found = _REFERENCE.fullmatch(value[len(MAGIC) :]) if is_reference(value) else None
    if found is None:
        return None
    name, num_bytes, sha256, key_id = (part.decode() for part in found.groups())
    if not is_object_name(name) or int(num_bytes) > MAX_OBJECT_BYTES:
        return None
    return Reference(name, int(num_bytes), sha256, None if key_id == _NO_KEY else key_id)


def references_in(replies: Any) -> Iterator[Reference]:
    """Yield the references in replies of Redis, however deep they are in lists and hashes."""
    if isinstance(replies, bytes):
        if (reference := read_reference(replies)) is not None:
            yield reference
    elif isinstance(replies, Mapping):
        yield from references_in(list(replies.values()))
    elif isinstance(replies, list | tuple):
        for reply in replies:
            yield from references_in(reply)
