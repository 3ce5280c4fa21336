"""The processes of all ranks but rank 0: starts them, talks to them, and ends them."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from multiprocessing.connection import Connection
from typing import TypeAlias

from batchmill.engine.errors import RankError, is_out_of_memory

from .messages import Done, FromRank, Memory, RankFailed, RankSpec, ToRank

#: Longest time of a rank's start after rank 0 has loaded its own shard.
START_TIMEOUT_S = 600.0
#: Time for the end of a rank whose socket is closed, to name its status.
_STATUS_WAIT_S = 2.0

# Generic for the type checker only.
RankConnection: TypeAlias = "Connection[ToRank, FromRank]"


class _Rank:
    def __init__(self, number: int) -> None:
        self.number = number
        self.process: subprocess.Popen[bytes] | None = None
        ours, self.theirs = socket.socketpair()
        self.connection: RankConnection = Connection(ours.detach())


class RankProcesses:
    """Owns the processes of ranks 1 and up, each tied to this process.

    The kernel kills a rank when the thread that started it ends (`rank.py`), so a thread of its own
    starts them and lives until `end`.
    """

    def __init__(self, specs: Sequence[RankSpec], buffer_fd: int) -> None:
        """Start a rank for each spec.

        Args:
            specs: What each rank loads, from rank 1 on.
            buffer_fd: Descriptor of the step buffer; the caller closes it.

        Raises:
            RankError: a process cannot be started.
        """
        self._ranks = [_Rank(spec.rank) for spec in specs]
        self._ending = threading.Event()
        started = threading.Event()
        self._thread = threading.Thread(
            target=self._run, args=(buffer_fd, started), name="ranks", daemon=True
        )
        self._thread.start()
        started.wait()
        try:
            for rank, spec in zip(self._ranks, specs, strict=True):
                self._send(rank, spec)
        except BaseException:
            self.end()  # of those that did start
            raise

    @property
    def pids(self) -> list[int]:
        """Process ids, from rank 1 on."""
        return [rank.process.pid for rank in self._ranks if rank.process is not None]

    def send(self, message: ToRank) -> None:
        """Send a message to every rank.

        Raises:
            RankError: a rank is gone.
        """
        for rank in self._ranks:
            self._send(rank, message)

    def wait_done(self, timeout_s: float) -> None:
        """Wait until every rank has handled the last message that has a reply.

        Raises:
            RankError: a rank failed, is gone, or takes longer.
        """
        self._replies(timeout_s)

    def memories(self, timeout_s: float) -> list[Memory]:
        """Return every rank's reply to `MeasureMemory`.

        Raises:
            RankError: a rank failed, is gone, or takes longer.
        """
        return [each for each in self._replies(timeout_s) if isinstance(each, Memory)]

    def failure(self, error: BaseException) -> RankError:
        """Return the failure of a step by the name of the rank that caused it.

        Args:
            error: What rank 0 got.
        """
        until = time.monotonic() + _STATUS_WAIT_S
        while True:
            for rank in self._ranks:
                if (found := self._failure_of(rank)) is not None:
                    return found
            if time.monotonic() >= until:
                break
            time.sleep(0.01)
        text = " ".join(str(error).split())[:300]
        return RankError(
            f"a step of a model that is divided among {len(self._ranks) + 1} ranks failed on rank "
            f"0 ({type(error).__name__}: {text}): the others wait for its part, so the engine must "
            "be started again",
            may_retry=is_out_of_memory(error),
        )

    def end(self) -> None:
        """Kill all ranks; they keep nothing. More calls do nothing."""
        self._ending.set()
        for rank in self._ranks:
            rank.connection.close()

    def _run(self, buffer_fd: int, started: threading.Event) -> None:
        try:
            for rank in self._ranks:
                with contextlib.suppress(OSError):  # `_send` finds it missing
                    rank.process = _spawn(rank.theirs.fileno(), buffer_fd)
                rank.theirs.close()
        finally:
            started.set()
        self._ending.wait()
        for rank in self._ranks:
            if rank.process is not None:
                rank.process.kill()
                rank.process.wait()

    def _send(self, rank: _Rank, message: ToRank) -> None:
        try:
            rank.connection.send(message)
        except OSError as error:
            raise self.failure(error) from error

    def _replies(self, timeout_s: float) -> list[Done | Memory]:
        until = time.monotonic() + timeout_s
        return [self._reply(rank, until, timeout_s) for rank in self._ranks]

    def _reply(self, rank: _Rank, until: float, timeout_s: float) -> Done | Memory:
        try:
            if not rank.connection.poll(max(0.0, until - time.monotonic())):
                raise RankError(f"{_name(rank)} did not reply within {timeout_s:g} s")
            reply = rank.connection.recv()
        except (EOFError, OSError) as error:
            raise self.failure(error) from error
        if isinstance(reply, RankFailed):
            raise _failed(rank, reply)
        return reply

    def _failure_of(self, rank: _Rank) -> RankError | None:
        with contextlib.suppress(EOFError, OSError):
            while rank.connection.poll(0):
                message = rank.connection.recv()
                if isinstance(message, RankFailed):
                    return _failed(rank, message)
        if rank.process is None:
            return RankError(f"{_name(rank)} cannot be started")
        status = rank.process.poll()
        if status is None:
            return None
        how = f"was ended by signal {-status}" if status < 0 else f"ended with status {status}"
        return RankError(
            f"{_name(rank)} {how}: the engine must be started again; the system's log says if its "
            "memory ran out",
            may_retry=True,
        )


def _name(rank: _Rank) -> str:
    return f"rank {rank.number} (process {'-' if rank.process is None else rank.process.pid})"


def _failed(rank: _Rank, message: RankFailed) -> RankError:
    return RankError(f"{_name(rank)} failed: {message.message}", may_retry=message.is_out_of_memory)


def _spawn(connection_fd: int, buffer_fd: int) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-P", "-m", "batchmill.engine.parallel.rank"]
    command += [str(os.getpid()), str(connection_fd), str(buffer_fd)]
    return subprocess.Popen(command, stdin=subprocess.DEVNULL, pass_fds=(connection_fd, buffer_fd))
