"""The worker's end of the engine process: start it, talk to it, notice its death, replace it."""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
import time
from multiprocessing.connection import Connection
from typing import Protocol, TypeAlias

import structlog

from .die_with_parent import die_with_parent_command
from .liveness_counter import LivenessCounter
from .messages import (
    AddRequest,
    DraftCounts,
    EngineLoad,
    EngineSpec,
    FromEngine,
    Ready,
    SetPaused,
    Shutdown,
    StartFailed,
    StepReport,
    ToEngine,
)

#: Deaths before the engine was ready, in a row, after which the worker gives up.
MAX_FAILED_STARTS = 3
_RESPAWN_WAIT_S = 1.0
#: An engine whose end of the socket is closed has this long to be gone.
_EXIT_GRACE_S = 5.0
#: An engine that was seen to turn within this time takes more jobs.
_MOVING_WITHIN_S = 10.0
_LONGEST_LOOK_S = 1.0
_log = structlog.stdlib.get_logger("batchmill.engine_link")

# Generic for the type checker only.
EngineConnection: TypeAlias = "Connection[EngineSpec | ToEngine, FromEngine]"


class EngineListener(Protocol):
    """Hears of the engine, always in the link's own thread and in the order things happened."""

    def on_ready(self, ready: Ready) -> None:
        """A fresh engine takes requests."""

    def on_report(self, report: StepReport) -> None:
        """Tokens, ends and refusals of one turn."""

    def on_gone(self, *, orderly: bool) -> None:
        """The engine is gone, and everything it had sent was reported before."""

    def on_start_failed(self, message: str) -> None:
        """No engine can be started; there will be no further call."""


class EngineLink:
    """Owns the engine process, one at a time, and the thread that watches it.

    The thread that starts a process reads from it until its end: the kernel ties a child to the
    *thread* that started it, so that thread has to last as long. A second thread writes, so that
    `send` never waits for an engine that is in the middle of a step.
    """

    def __init__(self, spec: EngineSpec, listener: EngineListener) -> None:
        self._spec = spec
        self._listener = listener
        self._thread = threading.Thread(target=self._run, name="engine-link", daemon=True)
        self._process: subprocess.Popen[bytes] | None = None
        self._outbox: queue.SimpleQueue[ToEngine | None] = queue.SimpleQueue()
        self._closing = threading.Event()
        self._counter: LivenessCounter | None = None
        self._num_failed_starts = 0
        self._seen_loop_count = 0
        self._seen_at = time.monotonic()
        self._stalled_s = 0.0
        self.ready: Ready | None = None
        self.load = EngineLoad(0, 0, 0)
        #: None where prompt lookup is off, and while there is no engine that is ready.
        self.drafts: DraftCounts | None = None
        #: Requests handed over that the engine's last report had not seen yet.
        self.num_adds_sent = 0
        self.num_adds_seen = 0

    @property
    def pid(self) -> int | None:
        """Process id of the engine, or None while there is none."""
        process = self._process
        return None if process is None else process.pid

    @property
    def loop_count(self) -> int:
        """Turns of the engine's loop; does not move while the engine is stuck, loading or gone."""
        counter = self._counter
        return 0 if counter is None else counter.value

    @property
    def is_alive(self) -> bool:
        """Whether an engine runs or another one will."""
        return self._thread.is_alive()

    @property
    def is_moving(self) -> bool:
        """Whether the engine's loop has turned lately: a stuck engine gets no more jobs."""
        return self._stalled_s < _MOVING_WITHIN_S

    def measure_stall_s(self) -> float:
        """Look whether the loop of a ready engine has turned; return for how long it has not.

        Called again and again by one thread. Time in which nobody looked hardly counts: after both
        processes were frozen together, the engine has not been stuck.
        """
        now, loop_count = time.monotonic(), self.loop_count
        if loop_count != self._seen_loop_count or self.ready is None:
            self._stalled_s = 0.0
        else:
            self._stalled_s += min(now - self._seen_at, _LONGEST_LOOK_S)
        self._seen_loop_count, self._seen_at = loop_count, now
        return self._stalled_s

    def start(self) -> None:
        """Start the engine, and keep one running until `shut_down`."""
        self._thread.start()

    def send(self, message: ToEngine) -> None:
        """Hand a message to the engine that runs now; never blocks. Without one it is dropped."""
        if isinstance(message, AddRequest):
            self.num_adds_sent += 1
        self._outbox.put(message)

    def set_paused(self, paused: bool) -> None:
        """Stop or go on stepping; requests stay."""
        self.send(SetPaused(paused))

    def kill(self, why: str) -> None:
        """End a stuck engine; its death is then handled like any other."""
        process = self._process
        if process is not None and process.poll() is None:
            _log.warning("engine_killed", pid=process.pid, why=why)
            process.send_signal(signal.SIGKILL)

    def shut_down(self) -> None:
        """Let the engine end after its step and start no other. Returns at once; see `join`."""
        self._closing.set()
        self.send(Shutdown())
        if self.ready is None:
            self.kill("told to end while it was loading")

    def join(self, timeout_s: float) -> bool:
        """Wait for the end; an engine that takes longer is killed, and the answer is False."""
        self._thread.join(timeout_s)
        if not self._thread.is_alive():
            return True
        self.kill(f"did not end within {timeout_s:.1f} s of being told to")
        self._thread.join(5.0)
        return False

    def _run(self) -> None:
        try:
            self._keep_one_running()
        except Exception:
            _log.exception("engine_link_failed")
            self._listener.on_start_failed("the worker lost hold of its engine")

    def _keep_one_running(self) -> None:
        while not self._closing.is_set():
            self._serve_one()
            if self._num_failed_starts >= MAX_FAILED_STARTS:
                self._listener.on_start_failed(
                    f"the engine died {MAX_FAILED_STARTS} times in a row before it was ready"
                )
                return
            if not self._closing.is_set():
                self._closing.wait(_RESPAWN_WAIT_S * self._num_failed_starts)

    def _serve_one(self) -> None:
        process, connection = self._spawn()
        if self._closing.is_set():  # `shut_down` may have found no process to kill
            self.kill("told to end while it was started")
        outbox = self._outbox
        writer = threading.Thread(
            target=_write_all, args=(connection, outbox), name="engine-writer", daemon=True
        )
        writer.start()
        was_ready = self._read_until_end(connection)
        status = _reap(process)
        self.ready = self.drafts = None
        self._num_failed_starts = 0 if was_ready else self._num_failed_starts + 1
        if not self._closing.is_set():
            _log.error("engine_died", pid=process.pid, status=status, was_ready=was_ready)
        # First the listener, then the new outbox: what is sent until then is for the dead engine.
        self._listener.on_gone(orderly=status == 0)
        self._outbox = queue.SimpleQueue()
        outbox.put(None)
        writer.join()
        connection.close()
        self._process = None

    def _read_until_end(self, connection: EngineConnection) -> bool:
        was_ready = False
        while (message := _receive(connection)) is not None:
            if isinstance(message, StepReport):
                self.load, self.drafts = message.load, message.drafts
                self.num_adds_seen = message.num_adds_seen
                self._listener.on_report(message)
            elif isinstance(message, Ready):
                was_ready = True
                self.ready = message
                self.load, self.drafts = EngineLoad(0, 0, message.num_blocks), message.drafts
                _log.info("engine_ready", identity=message.identity, num_blocks=message.num_blocks)
                self._listener.on_ready(message)
            elif isinstance(message, StartFailed):
                self._closing.set()
                self._listener.on_start_failed(message.message)
        return was_ready

    def _spawn(self) -> tuple[subprocess.Popen[bytes], EngineConnection]:
        ours, theirs = socket.socketpair()
        counter_fd = LivenessCounter.create_file()
        command = [*die_with_parent_command(signal.SIGKILL), sys.executable, "-P", "-m"]
        command += ["batchmill.worker.engine_host.process", str(theirs.fileno()), str(counter_fd)]
        try:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, pass_fds=(theirs.fileno(), counter_fd)
            )
            self._counter = LivenessCounter(counter_fd)
        finally:
            theirs.close()
            os.close(counter_fd)
        self._process = process
        self.num_adds_sent = self.num_adds_seen = 0
        connection: EngineConnection = Connection(ours.detach())
        with contextlib.suppress(OSError):  # dead already: the reader finds out
            connection.send(self._spec)
        _log.info("engine_started", pid=process.pid, model=self._spec.model, kind=self._spec.kind)
        return process, connection


def _receive(connection: EngineConnection) -> FromEngine | None:
    """Return the next message, or None at the engine's end."""
    try:
        return connection.recv()
    except (EOFError, OSError):
        return None


def _write_all(connection: EngineConnection, outbox: queue.SimpleQueue[ToEngine | None]) -> None:
    """Write what is put into an outbox until a None; after the engine's death, throw it away."""
    alive = True
    while (message := outbox.get()) is not None:
        if alive:
            try:
                connection.send(message)
            except OSError:
                alive = False


def _reap(process: subprocess.Popen[bytes]) -> int:
    """Wait for the end of a process that has closed its connection, and return its status."""
    try:
        return process.wait(_EXIT_GRACE_S)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait()
