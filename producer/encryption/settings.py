"""The operator's keys: `BATCHMILL_ENCRYPTION_KEYS`, or the file that its `_FILE` variable names."""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import lru_cache

from batchmill.producer.errors import EncryptionUnavailable
from batchmill.producer.secrets_from_files import find_secret

from .key_ring import NO_KEYS, VARIABLE, KeyRing


def find_key_ring(environ: Mapping[str, str] = os.environ) -> KeyRing:
    """Return the ring of the environment; without keys, one that seals nothing.

    Raises:
        EncryptionUnavailable: a key is malformed, or the file cannot be read.
    """
    try:
        text = find_secret(VARIABLE, environ)
    except ValueError as error:
        raise EncryptionUnavailable(str(error)) from None
    return read_key_ring(text)


def read_key_ring(text: str | None) -> KeyRing:
    """Return the ring that a text lists; None or nothing is a ring without keys.

    Raises:
        EncryptionUnavailable: a key is malformed.
    """
    return _ring(text) if text and text.strip() else NO_KEYS


@lru_cache(maxsize=8)
def _ring(text: str) -> KeyRing:
    return KeyRing.from_text(text)
