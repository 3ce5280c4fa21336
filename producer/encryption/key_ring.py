"""`KeyRing`: seals content with AES-256-GCM under the first of several named keys.

Source of the algorithm: NIST SP 800-38D; of the form of the setting: key rings as in Rails'
Active Record encryption and MultiFernet of `cryptography`, where the first key encrypts.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import os
import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Final, Self

from batchmill.producer.errors import (
    BatchmillError,
    ContentChanged,
    EncryptionUnavailable,
    KeyMissing,
    PayloadMissing,
)
from batchmill.producer.install_hint import install_command
from batchmill.producer.protocol.content import (
    MAGIC,
    NONCE_BYTES,
    TAG_BYTES,
    Place,
    UnreadableContent,
    is_sealed,
    key_id_of,
)
from batchmill.producer.protocol.payloads import is_reference

#: Names the keys in the environment; with `_FILE`, a file that holds them.
VARIABLE: Final = "BATCHMILL_ENCRYPTION_KEYS"
KEY_BYTES: Final = 32
_NAME = re.compile(r"[A-Za-z0-9_-]{1,32}")
#: Most keys of a ring: a worker announces all of them with each claim.
MAX_KEYS: Final = 32


@dataclass(frozen=True, slots=True)
class EncryptionKey:
    """A named key of 32 random bytes."""

    name: str
    secret: bytes = field(repr=False)

    @property
    def id(self) -> str:
        """The name, a dot and a check value, so that another key of this name is not taken for it.

        The check value is the beginning of an HMAC: it tells nothing about the key.
        """
        check = hmac.digest(self.secret, b"batchmill key check", "sha256")
        return f"{self.name}.{check[:4].hex()}"

    def to_text(self) -> str:
        """Return the key as the setting lists it."""
        return f"{self.name}:{base64.b64encode(self.secret).decode()}"


class KeyRing:
    """Keys by their ids. The first one seals, all open. Thread-safe, because nothing changes it.

    Each job, batch or event has a key of its own, derived by HMAC-SHA256 from the key and its id.
    So a random nonce of 96 bits never has to last for more than the values of one of them.
    """

    def __init__(self, keys: Sequence[EncryptionKey] = ()) -> None:
        """Bind to keys, the one that seals first.

        Raises:
            EncryptionUnavailable: two have one name, there are too many, or the package
                `cryptography` is not installed.
        """
        names = [key.name for key in keys]
        if len(set(names)) < len(names):
            raise EncryptionUnavailable(f"{VARIABLE} has a name twice; give each key its own name")
        if len(keys) > MAX_KEYS:
            raise EncryptionUnavailable(
                f"{VARIABLE} has {len(keys)} keys, the limit is {MAX_KEYS}; drop those that no "
                "stored value was sealed with"
            )
        self._keys = {key.id: key.secret for key in keys}
        #: Ids of the keys, the one that seals first.
        self.key_ids = tuple(self._keys)
        self._derived: Any = lru_cache(maxsize=256)(self._cipher)
        if keys:
            _aesgcm()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(self.key_ids)})"

    @classmethod
    def from_text(cls, text: str) -> Self:
        """Return the ring that a setting lists: `name:base64`, separated by commas or white space.

        Raises:
            EncryptionUnavailable: the text is malformed. The message has none of it but the names.
        """
        return cls([_read_key(entry) for entry in re.split(r"[\s,]+", text) if entry])

    def seal(self, content: bytes, place: Place) -> bytes:
        """Return the sealed value of content; the content itself if there are no keys."""
        if not self.key_ids:
            return content
        key_id = self.key_ids[0]
        nonce = os.urandom(NONCE_BYTES)
        header = MAGIC + bytes([len(key_id)]) + key_id.encode() + nonce
        sealed: bytes = self._derived(key_id, place.owner).encrypt(nonce, content, _data(place))
        return header + sealed

    def open(self, value: bytes, place: Place) -> bytes:
        """Return the content of a value; one that is not sealed is returned as it is.

        Raises:
            KeyMissing: the ring does not have its key.
            ContentChanged: it was changed, or moved from another place.
            PayloadMissing: it refers to an object, and this program has no object store.
        """
        if is_reference(value):
            raise PayloadMissing(
                f"{place.field} of {place.owner} is in an object store; set BATCHMILL_PAYLOAD_URL "
                "as for the program that stored it"
            )
        if not is_sealed(value):
            return value
        key_id = key_id_of(value)
        if key_id not in self._keys:
            raise _missing(key_id, place)
        start = len(MAGIC) + 1 + len(key_id)
        nonce, ciphertext = value[start : start + NONCE_BYTES], value[start + NONCE_BYTES :]
        if len(nonce) < NONCE_BYTES or len(ciphertext) < TAG_BYTES:
            raise self.changed(place)
        from cryptography.exceptions import InvalidTag

        try:
            content: bytes = self._derived(key_id, place.owner).decrypt(
                nonce, ciphertext, _data(place)
            )
        except InvalidTag:
            raise self.changed(place) from None
        return content

    def changed(self, place: Place) -> UnreadableContent:
        """Return the error of a value that was changed in Redis."""
        return ContentChanged(
            f"{place.field} of {place.owner} was changed in Redis after it was sealed; restore it "
            "from a backup, or submit the job again"
        )

    def fingerprints(self, digest: str, scope: str) -> str:
        """Return what stands for a digest: the first is stored, the others count as equal to it.

        With keys it is an HMAC of the digest, so that Redis does not tell which jobs are equal; of
        every key, because the stored one may be older than the present first key; and the digest
        itself, for what was stored without keys.
        """
        text = f"batchmill fingerprint\0{scope}\0{digest}".encode()
        named = [
            f"{key_id}:{hmac.digest(secret, text, 'sha256').hex()}"
            for key_id, secret in self._keys.items()
        ]
        return ",".join([*named, digest])

    def _cipher(self, key_id: str, owner: str) -> Any:
        text = f"batchmill seal\0{owner}".encode()
        return _aesgcm()(hmac.digest(self._keys[key_id], text, "sha256"))


def new_key(name: str) -> EncryptionKey:
    """Return a new random key.

    Raises:
        EncryptionUnavailable: the name is invalid.
    """
    return EncryptionKey(_checked_name(name), secrets.token_bytes(KEY_BYTES))


def _data(place: Place) -> bytes:
    return f"{place.owner}\0{place.field}".encode()


def _read_key(entry: str) -> EncryptionKey:
    name, colon, text = entry.partition(":")
    if not colon:
        raise EncryptionUnavailable(
            f"{VARIABLE} has an entry without a colon; list keys as name:base64, separated by "
            "commas, as `batchmill encryption new-key` prints them"
        )
    try:
        secret = base64.b64decode(text, validate=True)
    except binascii.Error:
        secret = b""
    if len(secret) != KEY_BYTES:
        raise EncryptionUnavailable(
            f"the key {_checked_name(name)!r} in {VARIABLE} must be base64 of {KEY_BYTES} bytes; "
            "make one with `batchmill encryption new-key`"
        )
    return EncryptionKey(_checked_name(name), secret)


def _checked_name(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise EncryptionUnavailable(
            f"a key in {VARIABLE} is named {name[:40]!r}; a name has 1 to 32 letters, digits, _ "
            "and -"
        )
    return name


def _missing(key_id: str, place: Place) -> BatchmillError:
    name = key_id.rpartition(".")[0] or key_id
    return KeyMissing(
        f"{place.field} of {place.owner} is sealed with the key {name!r} ({key_id}), which this "
        f"program does not have; add it to {VARIABLE}",
        key_id=key_id,
    )


def _aesgcm() -> Any:
    try:
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM
    except ImportError as error:
        raise EncryptionUnavailable(
            f"{VARIABLE} is set, but the package `cryptography` is missing: "
            f"{install_command('encryption')}"
        ) from error
    return AESGCM


#: A ring without keys: it seals nothing, and opens what is not sealed.
NO_KEYS: Final = KeyRing()
