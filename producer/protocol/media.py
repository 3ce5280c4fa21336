"""Pictures and sounds in the store: their ids, the names of their keys, and what a call stores.

A caller knows a medium by its id, the SHA-256 of its bytes. Its key in Redis has another name, made
of the tenant and the id, and under an encryption key an HMAC of both: so a tenant finds only what
it has stored itself, and Redis does not tell who has stored what.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from .content import Cipher, Content, Place

#: Field of a medium's hash that has its bytes, sealed if there are keys, or a reference to them.
FIELD: Final = "media"
#: For a medium that came inside a job: a slow line sends a group of jobs within this time.
MAX_WAIT_FOR_JOB_MS: Final = 300_000
#: Stands in a record for a medium that is not known yet: its URL has not been fetched.
UNKNOWN: Final = "-"
#: The extra of this package that decodes media; a heartbeat names it if it is missing.
MEDIA_EXTRA: Final = "media"
#: By kind, what stands among the keys that a job needs for the ability to decode its media.
DECODES: Final = {"image": "@images", "audio": "@sounds"}
ID_PATTERN: Final = r"^med_[0-9a-f]{64}$"
_ID = re.compile(ID_PATTERN)
_NAME = re.compile(r"[0-9a-f]{64}")


def media_id(content: bytes) -> str:
    """Return the id of a medium: `med_` and the SHA-256 of its bytes, in hex."""
    return f"med_{hashlib.sha256(content).hexdigest()}"


def is_media_id(text: str) -> bool:
    """Return whether a text can be the id of a medium."""
    return _ID.fullmatch(text) is not None


def is_media_name(text: str) -> bool:
    """Return whether a text can name a medium's key, 64 hex digits."""
    return _NAME.fullmatch(text) is not None


def media_names(cipher: Cipher, tenant: str, some_id: str) -> list[str]:
    """Return the names under which a tenant's medium may be stored, the one to store under first.

    Under encryption keys there is one for each of them, and one for what was stored without.
    """
    text = f"batchmill media\0{tenant}\0{some_id}".encode()
    digest = hashlib.sha256(text).hexdigest()
    return [name.rpartition(":")[2] for name in cipher.fingerprints(digest, tenant).split(",")]


class MediaChanged(OSError):
    """A file has other content than when its job was made, or cannot be read any more.

    Attributes:
        id: of the medium that it was.
    """

    def __init__(self, some_id: str, message: str) -> None:
        super().__init__(message)
        self.id = some_id


@dataclass(frozen=True, slots=True)
class MediaFile:
    """Content that is read when it is stored: many jobs that wait do not hold it in memory."""

    path: Path
    num_bytes: int

    def __len__(self) -> int:
        return self.num_bytes

    def read(self, some_id: str) -> bytes:
        """Return the content.

        Raises:
            MediaChanged: it is not that of the id any more, or cannot be read.
        """
        try:
            with self.path.open("rb") as handle:
                content = handle.read(self.num_bytes + 1)
        except OSError as error:
            raise MediaChanged(
                some_id, f"{self.path} cannot be read any more ({error.strerror}); run it again"
            ) from None
        if media_id(content) != some_id:
            raise MediaChanged(
                some_id, f"{self.path} was changed after its job was made; run it again"
            )
        return content


@dataclass(frozen=True, slots=True)
class NewMedia:
    """The bytes of a picture or a sound, to be stored for a tenant."""

    content: bytes | MediaFile
    id: str
    #: `image` or `audio`.
    kind: str
    tenant: str
    #: Milliseconds for which it is kept after it was stored, and after the end of each job.
    ttl_ms: int
    #: Whether its job is stored next: without one it is kept for `MAX_WAIT_FOR_JOB_MS` only, so
    #: that jobs which are refused do not fill Redis.
    is_of_job: bool = False

    @property
    def keep_ms(self) -> int:
        """Milliseconds for which it is kept without a job."""
        return min(self.ttl_ms, MAX_WAIT_FOR_JOB_MS) if self.is_of_job else self.ttl_ms


@dataclass(frozen=True, slots=True)
class MediaNames:
    """An argument that names media: groups of names, of which each may be the stored one."""

    ids: Sequence[str | None]
    tenant: str

    def resolved(self, cipher: Cipher) -> str:
        """Return the argument to send; `-` stands for a medium that is not known yet."""
        groups = (
            [UNKNOWN] if some_id is None else media_names(cipher, self.tenant, some_id)
            for some_id in self.ids
        )
        return " ".join(",".join(group) for group in groups)


@dataclass(frozen=True, slots=True)
class MediaName:
    """An argument that is the name to store a medium under."""

    id: str
    tenant: str

    def resolved(self, cipher: Cipher) -> str:
        """Return the argument to send."""
        return media_names(cipher, self.tenant, self.id)[0]


@dataclass(frozen=True, slots=True)
class MediaContent:
    """An argument that is the bytes of a medium, sealed for its name."""

    content: bytes | MediaFile
    id: str
    tenant: str

    def resolved(self, cipher: Cipher) -> str | bytes:
        """Return the argument to send."""
        name = media_names(cipher, self.tenant, self.id)[0]
        content = self.content
        if isinstance(content, MediaFile):
            content = content.read(self.id)
        return Content(content, Place(name, FIELD)).resolved(cipher)
