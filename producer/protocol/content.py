"""Content of tenants on the wire: what is sealed before it is stored, and what opens it.

A call names its content (`Content`); the store that runs the call seals it, if it has keys. A read
names the values to open. So only a store has keys, and calls and reads stay values.

A sealed value: the bytes b5 42 4d 31, the length of the key's id (one byte), the id, a nonce (12
bytes), a ciphertext as long as the content, and a tag (16 bytes). No content begins with these
bytes: they are not UTF-8, and as a token id they would be 827 million.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from dataclasses import dataclass
from typing import Final, NamedTuple, Protocol

from .payloads import is_reference, read_reference

MAGIC: Final = b"\xb5BM1"
NONCE_BYTES: Final = 12
TAG_BYTES: Final = 16
#: Of the sealed value in content that is JSON; no content has it as its only name.
SEALED_NAME: Final = "batchmill_sealed"


class UnreadableContent(Exception):
    """Stored content that cannot be opened: a key is missing, or it was changed."""


class Place(NamedTuple):
    """Where content is stored. A value that is moved to another place cannot be opened there."""

    #: Id of the job, batch or event.
    owner: str
    #: Field of its record. Tokens and text are stored in pieces: `tokens:<position>`.
    field: str


class Cipher(Protocol):
    """Seals and opens values; `encryption.KeyRing` is the only one."""

    @property
    def key_ids(self) -> tuple[str, ...]:
        """Ids of the keys that open, the one that seals first."""
        ...

    def seal(self, content: bytes, place: Place) -> bytes:
        """Return the sealed value of content; the content itself without a key."""
        ...

    def open(self, value: bytes, place: Place) -> bytes:
        """Return the content of a value; one that is not sealed is returned as it is.

        Raises:
            UnreadableContent: it cannot be opened.
        """
        ...

    def changed(self, place: Place) -> UnreadableContent:
        """Return the error of a value that was changed in Redis."""
        ...

    def fingerprints(self, digest: str, scope: str) -> str:
        """Return names of a digest, comma-separated: the one to store first, then its equals."""
        ...


@dataclass(frozen=True, slots=True)
class Content:
    """An argument of a script that is content, and where the script stores it."""

    value: str | bytes
    place: Place

    def resolved(self, cipher: Cipher) -> str | bytes:
        """Return the argument to send."""
        if not self.value or not cipher.key_ids:
            return self.value
        content = self.value.encode() if isinstance(self.value, str) else self.value
        return cipher.seal(content, self.place)


@dataclass(frozen=True, slots=True)
class JsonContent:
    """An argument that is content as JSON, and that scripts copy into messages.

    Sealed, it is JSON as well: an object with the sealed value in base64.
    """

    value: str
    place: Place

    def resolved(self, cipher: Cipher) -> str:
        """Return the argument to send."""
        if not self.value or not cipher.key_ids:
            return self.value
        sealed = cipher.seal(self.value.encode(), self.place)
        return json.dumps({SEALED_NAME: base64.b64encode(sealed).decode()})


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """An argument that is a digest of content. Under a key it tells nobody which are equal."""

    digest: str
    #: The tenant: equal content of two tenants has different fingerprints.
    scope: str

    def resolved(self, cipher: Cipher) -> str:
        """Return the argument to send."""
        return cipher.fingerprints(self.digest, self.scope) if self.digest else ""


@dataclass(frozen=True, slots=True)
class KeyIds:
    """An argument that lists the keys of whoever runs the script, with spaces between them."""

    #: What it can do besides, as `sealed_with` of a record names it.
    abilities: tuple[str, ...] = ()

    def resolved(self, cipher: Cipher) -> str:
        """Return the argument to send."""
        return " ".join((*cipher.key_ids, *self.abilities))


@dataclass(frozen=True, slots=True)
class Unopened:
    """Stands for a value that cannot be opened, so that one job does not hide the others."""

    error: UnreadableContent


def is_sealed(value: bytes) -> bool:
    """Return whether a value, or the object that it refers to, is sealed."""
    if is_reference(value):
        reference = read_reference(value)
        return reference is not None and reference.key_id is not None
    return value.startswith(MAGIC)


def key_id_of(value: bytes) -> str:
    """Return the id of the key that sealed a value; it is not checked."""
    start = len(MAGIC) + 1
    length = value[len(MAGIC)] if len(value) > len(MAGIC) else 0
    return value[start : start + length].decode("ascii", errors="backslashreplace")


def sealed_beginning(beginning: bytes) -> bytes:
    """Return the beginning of the sealed value in the beginning of content that is JSON."""
    found = re.match(rb'\{"' + SEALED_NAME.encode() + rb'": "([A-Za-z0-9+/]*)', beginning)
    text = found[1] if found else b""
    return base64.b64decode(text[: len(text) // 4 * 4])


def sealed_json(value: bytes) -> bytes | None:
    """Return the sealed value in content that is JSON; None if it is not sealed."""
    if SEALED_NAME.encode() not in value[: len(SEALED_NAME) + 4]:
        return None
    try:
        return base64.b64decode(json.loads(value)[SEALED_NAME], validate=True)
    except (ValueError, TypeError, KeyError, binascii.Error, RecursionError):
        return b""  # nothing opens that


def opened(cipher: Cipher, value: bytes | None, place: Place) -> bytes | Unopened | None:
    """Return the content of a value, or what stands for it if it cannot be opened."""
    if value is None or not (is_sealed(value) or is_reference(value)):
        return value
    try:
        return cipher.open(value, place)
    except UnreadableContent as error:
        return Unopened(error)
