"""`MediaDecoder`: decodes pictures and sounds in processes of their own, within limits."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Final

from batchmill.engine.contract.media import Audio, Image, Media
from batchmill.producer.install_hint import install_command
from batchmill.producer.job.media_format import FORMATS, check_kind
from batchmill.producer.protocol.media import MEDIA_EXTRA

from . import decode_process as process
from .errors import INVALID, TOO_LARGE, UNAVAILABLE, MediaError

#: Packages that each kind needs.
_PACKAGES: Final = {"image": ("PIL",), "audio": ("numpy", "soundfile", "soxr")}
_START_S: Final = 30.0
#: Beyond its own limit of time, a process may take this long to receive, reply or end.
_GRACE_S: Final = 5.0
#: Processes that end for another reason than their content, as when memory is short, for one call.
_MAX_TRIES: Final = 2


@dataclass(frozen=True, slots=True)
class DecodeLimits:
    """What one picture or sound may have and take."""

    max_pixels: int
    max_audio_s: float
    timeout_s: float
    memory_bytes: int


class _ProcessEnded(Exception):
    """A process ended without a reply; `status` is its exit status, negative for a signal."""

    def __init__(self, status: int | None) -> None:
        super().__init__(status)
        self.status = status


class MediaDecoder:
    """Keeps up to `num_processes` processes, started when they are needed. Thread-safe.

    Content that crashes a library, takes too long or takes too much memory ends its process, and
    fails alone: the next one gets a new process.
    """

    def __init__(self, limits: DecodeLimits, *, num_processes: int) -> None:
        """Take the limits; no process is started yet."""
        self._limits = limits
        self._places = threading.BoundedSemaphore(num_processes)
        self._lock = threading.Lock()
        self._idle: list[_DecodeProcess] = []
        self._is_closed = False

    def decode(self, content: bytes, kind: str, *, rate_hz: int | None = None) -> Media:
        """Return the pixels or samples of content.

        Args:
            content: a file.
            kind: `image` or `audio`.
            rate_hz: to which a sound is resampled; None keeps its own rate.

        Raises:
            MediaError: `media_invalid`, `media_too_large`, or `media_unavailable`.
        """
        _check_packages(kind)
        try:
            check_kind(content, kind)
        except ValueError as error:
            raise MediaError(INVALID, f"the {kind} {error}") from None
        head = {
            "kind": kind,
            "max_pixels": self._limits.max_pixels,
            "max_audio_s": self._limits.max_audio_s,
            "rate_hz": rate_hz,
            "timeout_s": self._limits.timeout_s,
        }
        reply = self._ask(head, content)
        if "problem" in reply.head:
            raise self._error(kind, reply.head["problem"], reply.head["why"])
        if kind == "image":
            return Image(reply.head["width"], reply.head["height"], reply.body)
        return Audio(reply.head["rate_hz"], reply.body)

    def close(self) -> None:
        """End the processes."""
        with self._lock:
            self._is_closed = True
            idle, self._idle = self._idle, []
        for each in idle:
            each.close()

    def _ask(self, head: dict[str, object], content: bytes) -> process.Message:
        """Return a process' reply; an end that content may have caused counts as one."""
        for number in range(_MAX_TRIES):
            try:
                return self._ask_once(head, content)
            except _ProcessEnded as end:
                if end.status in (-signal.SIGALRM, -signal.SIGPROF, None):
                    return process.Message({"problem": "time", "why": ""}, b"")
                if number + 1 == _MAX_TRIES:
                    return process.Message({"problem": "crash", "why": ""}, b"")
        raise AssertionError("unreachable")

    def _ask_once(self, head: dict[str, object], content: bytes) -> process.Message:
        with self._places:
            decoding = self._take()
            try:
                reply = decoding.ask(head, content)
                is_last = bool(reply.head["is_last"])
            except BaseException:
                decoding.close()
                raise
            with self._lock:
                if not (self._is_closed or is_last):
                    self._idle.append(decoding)
                    return reply
            decoding.close()
            return reply

    def _take(self) -> _DecodeProcess:
        """Return an idle process, or a new one."""
        while True:
            with self._lock:
                decoding = self._idle.pop() if self._idle else None
            if decoding is None:
                return _DecodeProcess(self._limits)
            if decoding.is_alive:
                return decoding
            decoding.close()  # ended from outside, as when memory is short

    def _error(self, kind: str, problem: str, why: str) -> MediaError:
        limits = self._limits
        if problem == "invalid":
            return MediaError(INVALID, f"the {kind} {why}: send {FORMATS[kind]}")
        if problem == "crash":
            return MediaError(
                INVALID, f"the {kind} ended the process that decodes it: send it in another format"
            )
        if problem == "range":
            return MediaError(TOO_LARGE, f"the {kind} {why}: convert it")
        if problem == "import":
            return MediaError(UNAVAILABLE, f"the {kind} cannot be decoded here: {why}")
        if problem == "time":
            what = f"takes more than {limits.timeout_s:g} s to decode"
            setting = "BATCHMILL_MEDIA_DECODE_TIMEOUT_S"
        elif problem == "memory":
            what = f"takes more than {limits.memory_bytes} bytes of memory to decode"
            setting = "BATCHMILL_MEDIA_DECODE_MEMORY_BYTES"
        else:
            what = why
            setting = (
                "BATCHMILL_MEDIA_MAX_PIXELS" if kind == "image" else "BATCHMILL_MEDIA_MAX_AUDIO_S"
            )
        return MediaError(TOO_LARGE, f"the {kind} {what}: send a smaller one, or raise {setting}")


class _DecodeProcess:
    """A process that waits for content. What it sends is not trusted: content may have taken it."""

    def __init__(self, limits: DecodeLimits) -> None:
        """Start it.

        Raises:
            OSError: it did not start, whatever the content.
        """
        self._limits = limits
        self._connection, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [
                    *(sys.executable, "-I", "-S", process.__file__),
                    *(str(limits.memory_bytes), *_folders()),
                ],
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                # Each thread of a library takes address space, which is limited.
                env={"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"},
            )
        try:
            self._receive(0, time.monotonic() + _START_S)
        except _ProcessEnded as end:
            self.close()
            raise OSError(
                f"a process that decodes media did not start (status {end.status})"
            ) from None

    @property
    def is_alive(self) -> bool:
        """Whether it has not ended."""
        return self._process.poll() is None

    def ask(self, head: dict[str, object], content: bytes) -> process.Message:
        """Return the reply to an order.

        Raises:
            _ProcessEnded: it ended, did not reply in time, or sent more than it may.
        """
        limits = self._limits
        timeout_s = limits.timeout_s + _GRACE_S
        until = time.monotonic() + timeout_s
        self._connection.settimeout(timeout_s)
        with contextlib.suppress(BrokenPipeError, ConnectionResetError, TimeoutError):
            process.send_message(self._connection, head, content)
        max_samples = int(limits.max_audio_s * process.MAX_RATE_HZ)
        return self._receive(max(3 * limits.max_pixels, 4 * max_samples), until)

    def _receive(self, max_body_bytes: int, until: float) -> process.Message:
        try:
            return process.receive_message(
                self._connection, max_body_bytes=max_body_bytes, until=until
            )
        except TimeoutError:
            raise _ProcessEnded(None) from None
        except (EOFError, OSError, ValueError):
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(_GRACE_S)
            self._process.kill()
            raise _ProcessEnded(self._process.wait()) from None

    def close(self) -> None:
        """End it."""
        self._connection.close()
        self._process.kill()
        self._process.wait()


def missing_packages(kind: str) -> list[str]:
    """Return the packages that decoding a kind needs and that are not installed."""
    return [name for name in _PACKAGES[kind] if find_spec(name) is None]


@cache
def can_decode(kind: str) -> bool:
    """Return whether the packages that decoding a kind needs are installed."""
    return not missing_packages(kind)


def _check_packages(kind: str) -> None:
    if missing := missing_packages(kind):
        raise MediaError(
            UNAVAILABLE,
            f"the {kind} cannot be decoded: this worker lacks {', '.join(missing)}: "
            f"{install_command(MEDIA_EXTRA)}",
        )


def _folders() -> list[str]:
    """Return the folders that hold the packages, each once."""
    folders = []
    for name in dict.fromkeys(name for names in _PACKAGES.values() for name in names):
        spec = find_spec(name)
        if spec is not None and spec.origin is not None:
            path = Path(spec.origin).parent
            folders.append(os.fspath(path.parent if spec.submodule_search_locations else path))
    return list(dict.fromkeys(folders))
