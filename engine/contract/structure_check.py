"""Checks of structures in separate processes, which a structure may crash without harm.

llguidance turns a schema or a grammar into automata, in native code, without a bound: 60 bytes can
take minutes, gigabytes or the whole stack. So a structure is used only after a check process
(`structure_check_process.py`) has compiled it within limits.
"""

from __future__ import annotations

import atexit
import hashlib
import json
import math
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

from . import structure_check_process as process
from .errors import ContractError
from .structure_limits import REMEDY, exceeded_limit

#: Error code of a structure that passes a limit of the check.
TOO_COMPLEX: Final = "structure_too_complex"
#: Error code if no check process can run.
UNAVAILABLE: Final = "structure_check_unavailable"
#: Check processes at a time; a hostile structure keeps one busy for as long as the limits allow.
_MAX_PROCESSES: Final = 2
#: Longest wait for a verdict beyond the check's own limit, and for a process to start.
_GRACE_S: Final = 4.0
_START_S: Final = 30.0
#: Most attempts to check a structure, if its process ends for another reason.
_MAX_TRIES: Final = 3
#: Verdicts that are kept, and their length together.
_MAX_KEPT: Final = 1024
_MAX_KEPT_CHARS: Final = 16 << 20
#: A verdict by wall time is kept for this long: it says as much about the machine's load.
_KEPT_S: Final = 60.0
_MAX_REASON_CHARS: Final = 300
_LIMITS: Final = {
    "cpu": f"takes more than {process.CPU_S:g} s of CPU time to compile, the limit",
    "wall": f"takes more than {process.WALL_S:g} s to compile, the limit",
    "memory": f"takes more than {process.MEMORY_BYTES >> 20} MB to compile, the limit",
    "stack": f"is nested too deep for {process.STACK_BYTES >> 20} MB of stack, the limit",
}
_LIMIT_OF_SIGNAL: Final[Mapping[int, str]] = {
    signal.SIGPROF: "cpu",
    signal.SIGALRM: "wall",
    signal.SIGABRT: "memory",
    signal.SIGSEGV: "stack",
    signal.SIGBUS: "stack",
}


class StructureCheckUnavailable(ContractError):
    """No check process can run here now, so no structure can be used. It may be possible later."""

    def __init__(self, message: str) -> None:
        super().__init__(message, UNAVAILABLE)


class _ProcessEnded(Exception):
    """A check process ended without a verdict.

    Attributes:
        limit: The limit that ended it; None if it was not the structure.
    """

    def __init__(self, limit: str | None) -> None:
        super().__init__(limit)
        self.limit = limit


def compiled_grammar(kind: str, text: str, overrides: Mapping[str, Any]) -> str:
    """Return a structure as a grammar in llguidance's format, after it was compiled in a trial.

    Args:
        kind: `json`, `regex` or `lark`; or `llguidance` for an earlier result of this function.
        text: The structure.
        overrides: Options of a JSON schema.

    Raises:
        ContractError: `structure_too_complex` if it passes a limit of the check;
            `invalid_request` if it cannot be enforced.
        StructureCheckUnavailable: no check process can be started.
    """
    return _checker.compile(kind, text, overrides)


class _Verdicts:
    """The newest verdicts, by digest of the structure: a grammar, or the error that refuses it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: OrderedDict[bytes, tuple[str | ContractError, float]] = OrderedDict()
        self._num_chars = 0

    def find(self, digest: bytes) -> str | ContractError | None:
        with self._lock:
            verdict, kept_until = self._kept.get(digest, (None, 0.0))
            if verdict is None or time.monotonic() >= kept_until:
                return None
            self._kept.move_to_end(digest)
            return verdict

    def keep(self, digest: bytes, verdict: str | ContractError, kept_s: float = math.inf) -> None:
        with self._lock:
            self._drop(self._kept.pop(digest, None))
            self._kept[digest] = verdict, time.monotonic() + kept_s
            self._num_chars += len(str(verdict))
            while len(self._kept) > _MAX_KEPT or self._num_chars > _MAX_KEPT_CHARS:
                self._drop(self._kept.popitem(last=False)[1])

    def _drop(self, kept: tuple[str | ContractError, float] | None) -> None:
        if kept is not None:
            self._num_chars -= len(str(kept[0]))


class _Checker:
    """Keeps up to `_MAX_PROCESSES` check processes, started when they are needed. Thread-safe."""

    def __init__(self) -> None:
        self._verdicts = _Verdicts()
        self._places = threading.BoundedSemaphore(_MAX_PROCESSES)
        self._lock = threading.Lock()
        self._idle: list[_CheckProcess] = []
        self._all: set[_CheckProcess] = set()

    def compile(self, kind: str, text: str, overrides: Mapping[str, Any]) -> str:
        digest = _digest(kind, text, overrides)
        verdict = self._verdicts.find(digest)
        if verdict is None:
            reply = self._check([kind, text, dict(overrides)])
            verdict = _verdict("output's" if kind == "llguidance" else kind, reply)
            is_lasting = reply.get("limit") != "wall"
            self._verdicts.keep(digest, verdict, math.inf if is_lasting else _KEPT_S)
            if isinstance(verdict, str):
                self._verdicts.keep(_digest("llguidance", verdict, {}), verdict)
        if isinstance(verdict, ContractError):
            raise ContractError(verdict.message, verdict.code)
        return verdict

    def _check(self, structure: list[Any]) -> dict[str, str]:
        for _ in range(_MAX_TRIES):
            try:
                return self._ask(structure)
            except _ProcessEnded as end:
                if end.limit is not None:
                    return {"limit": end.limit}
        raise StructureCheckUnavailable(
            f"the process that checks structures ended {_MAX_TRIES} times before its verdict: "
            "look for what kills it"
        )

    def _ask(self, structure: list[Any]) -> dict[str, str]:
        with self._places:
            with self._lock:
                checking = self._idle.pop() if self._idle else None
            if checking is None:
                checking = _CheckProcess()
                with self._lock:
                    self._all.add(checking)
            try:
                reply = checking.ask(structure)
            except BaseException:
                with self._lock:
                    self._all.discard(checking)
                checking.close()
                raise
            with self._lock:
                self._idle.append(checking)
            return reply

    def close(self) -> None:
        """End the processes at the end of this one."""
        for checking in self._all:
            checking.close()

    def forget(self) -> None:
        """Leave the processes to the parent, after a fork."""
        for checking in self._all:
            checking.disown()


def _digest(kind: str, text: str, overrides: Mapping[str, Any]) -> bytes:
    key = json.dumps([kind, text, overrides], sort_keys=True)
    return hashlib.sha256(key.encode()).digest()


def _verdict(name: str, reply: dict[str, str]) -> str | ContractError:
    if limit := reply.get("limit"):
        return ContractError(f"the {name} grammar {_LIMITS[limit]}: {REMEDY}", TOO_COMPLEX)
    if error := reply.get("error"):
        limit = exceeded_limit(error, step_expressions=process.TRIAL_STEP_EXPRESSIONS)
        if limit is not None:
            return ContractError(
                f"the {name} grammar needs more than {limit}, the limit: {REMEDY}", TOO_COMPLEX
            )
        reason = " ".join(error.split())[:_MAX_REASON_CHARS]
        return ContractError(f"the {name} grammar cannot be enforced: {reason}")
    return reply["grammar"]


class _CheckProcess:
    """A check process that waits for a structure."""

    def __init__(self) -> None:
        """Start it.

        Raises:
            StructureCheckUnavailable: no Python can be started, or it cannot import llguidance.
        """
        spec = find_spec("llguidance")
        if spec is None or spec.origin is None:
            raise StructureCheckUnavailable(
                "structured output needs llguidance, and it is not installed: install it"
            )
        folder = str(Path(spec.origin).parent.parent)
        reason = "no Python was found"
        for python in _pythons():
            ours, theirs = socket.socketpair()
            self._connection = ours
            try:
                self._process = _start(python, folder, theirs)
                theirs.close()  # so that its end is noticed
                ours.settimeout(_START_S)
                process.receive_message(ours)
                return
            except OSError as error:
                reason = f"{python}: {error}"
            except EOFError:
                reason = f"{python} cannot import llguidance"
            finally:
                theirs.close()
            self.close()
        raise StructureCheckUnavailable(
            f"the process that checks structures cannot be started ({reason}): make it possible, "
            "or use no structured output"
        )

    def ask(self, structure: list[Any]) -> dict[str, str]:
        """Return the verdict on a structure.

        Raises:
            _ProcessEnded: the process has ended.
        """
        self._connection.settimeout(process.WALL_S + _GRACE_S)
        try:
            process.send_message(self._connection, structure)
            reply: dict[str, str] = process.receive_message(self._connection)
            return reply
        except TimeoutError:
            raise _ProcessEnded("wall") from None
        except (EOFError, OSError):
            status = self._wait()
            number = -status if status is not None and status < 0 else 0
            raise _ProcessEnded(_LIMIT_OF_SIGNAL.get(number)) from None

    def close(self) -> None:
        """End the process."""
        self._connection.close()
        if hasattr(self, "_process"):
            self._process.kill()
            self._wait()

    def disown(self) -> None:
        """Close this process's copy of the connection to a process of its parent."""
        self._connection.close()
        self._process.returncode = 0  # it is not ours to wait for

    def _wait(self) -> int | None:
        try:
            return self._process.wait(_GRACE_S)
        except subprocess.TimeoutExpired:
            return None


def _start(python: str, folder: str, connection: socket.socket) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [python, "-I", "-S", process.__file__, folder],
        stdin=connection.fileno(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,  # a panic's message may hold content
        # With one malloc arena per thread, the address space would be full.
        env={**os.environ, "RAYON_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1"},
        cwd="/",
        start_new_session=True,  # no Ctrl-C of the terminal
    )


def _pythons() -> Iterator[str]:
    """Yield interpreters to try: if Python is embedded, `sys.executable` is another program."""
    name = f"python{sys.version_info.major}.{sys.version_info.minor}"
    if sys.executable and re.match(r"python|pypy", Path(sys.executable).name):
        yield sys.executable
    for prefix in (sys.exec_prefix, sys.base_exec_prefix):
        if (path := Path(prefix, "bin", name)).exists():
            yield str(path)
    for each in (name, "python3"):
        if (found := shutil.which(each)) is not None:
            yield found


_checker = _Checker()


def _after_fork_in_child() -> None:
    """Replace the checker: its locks may be held by threads that the fork did not copy."""
    global _checker
    _checker.forget()
    _checker = _Checker()


os.register_at_fork(after_in_child=_after_fork_in_child)
atexit.register(lambda: _checker.close())
