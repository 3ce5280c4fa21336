"""The hash of a large file's whole content, computed once."""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from batchmill.kernels.cpu.build import cache_folder

_CHUNK_BYTES = 32 * 1024 * 1024
_READ_BYTES = 1024 * 1024
_MAX_THREADS = 8
_HEX_DIGITS = 40
#: A file that has changed this lately may change again without a visible change of its times.
_SETTLED_S = 2.0


def file_hash(path: Path) -> str:
    """Return a hash of a file's content; read the file only if it is new or has changed.

    A changed file is recognized by its inode, size and times of change. The time of the inode's
    change is among them, which programs cannot set back.

    Returns:
        40 hex digits.

    Raises:
        OSError: the file cannot be read.
    """
    status = path.stat()
    known = _cache_path(path, status)
    with contextlib.suppress(OSError):
        if len(text := known.read_text()) == _HEX_DIGITS:
            return text
    text = _hash_content(path, status.st_size)
    changed_at_s = max(status.st_mtime, status.st_ctime)
    if time.time() - changed_at_s > _SETTLED_S and _cache_path(path, path.stat()) == known:
        with contextlib.suppress(OSError):  # computed again at the next start
            _store(known, text)
    return text


def _cache_path(path: Path, status: os.stat_result) -> Path:
    """Return the file that keeps the hash of a file in this state."""
    state = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
    key = hashlib.blake2b(f"{path.resolve()} {state}".encode(), digest_size=16).hexdigest()
    return cache_folder() / "hashes" / key


def _hash_content(path: Path, size: int) -> str:
    """Hash the pieces of a file in threads, and then their hashes: gigabytes take seconds."""
    starts = range(0, size, _CHUNK_BYTES)
    with ThreadPoolExecutor(min(_MAX_THREADS, os.cpu_count() or 1)) as threads:
        digests = list(threads.map(partial(_hash_chunk, path), starts))
    whole = hashlib.blake2b(str(size).encode(), digest_size=_HEX_DIGITS // 2)
    for digest in digests:
        whole.update(digest)
    return whole.hexdigest()


def _hash_chunk(path: Path, start: int) -> bytes:
    digest = hashlib.blake2b(digest_size=32)
    with path.open("rb") as file:
        file.seek(start)
        for _ in range(_CHUNK_BYTES // _READ_BYTES):
            digest.update(file.read(_READ_BYTES))
    return digest.digest()


def _store(known: Path, text: str) -> None:
    """Write a hash in one step: processes may race."""
    known.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=known.parent, delete=False) as draft:
        draft.write(text)
    Path(draft.name).chmod(0o644)
    Path(draft.name).rename(known)
