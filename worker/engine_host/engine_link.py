"""The worker's end of the engine process: starts it, talks to it, replaces it when it dies."""

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
    MediaCounts,
    OffloadCounts,
    Ready,
    SetPaused,
    Shutdown,
    StartFailed,
    StepReport,
    ToEngine,
)
from .stall_detector import StallDetector

#: Deaths in a row, each before the engine was ready, after which the worker ends.
MAX_FAILED_STARTS = 3
_RESPAWN_WAIT_S = 1.0
#: An engine that has closed its end of the socket must exit within this time.
_EXIT_GRACE_S = 5.0
#: A killed engine must be gone within this time, unless a device driver holds it.
_KILL_GRACE_S = 30.0
_log = structlog.stdlib.get_logger("batchmill.engine_link")

# Generic for the type checker only.
EngineConnection: TypeAlias = "Connection[EngineSpec | ToEngine, FromEngine]"


class EngineListener(Protocol):
    """Gets the engine's events, in the link's own thread and in the order they happened."""

    def on_ready(self, ready: Ready) -> None:
        """Handle a new engine that takes requests."""

    def on_report(self, report: StepReport) -> None:
        """Handle the tokens, ends and refusals of one iteration."""

    def on_gone(self, *, orderly: bool) -> None:
        """Handle the end of an engine, after everything that it sent has been reported."""

    def on_start_failed(self, message: str) -> None:
        """Handle the failure to start any engine. This is the last call."""


class EngineLink:
    """Owns the engine process, one at a time, and the thread that watches it.

    The thread that starts a process reads from it until its end: the kernel ties a child to the
    *thread* that started it, so that thread must live as long. A second thread writes, so `send`
    never waits for an engine that is in the middle of a step.
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
        #: What the last engine said of the failure of its start, if it said anything.
        self._start_failure: str | None = None
        self._stalls = StallDetector(time.monotonic())
        self.ready: Ready | None = None
        self.load = EngineLoad(0, 0, 0)
        #: None while no engine is ready, and if it has no draft tokens to count.
        self.drafts: DraftCounts | None = None
        self.media: MediaCounts | None = None
        self.offload: OffloadCounts | None = None
        #: Requests sent to this engine, and those of them that its last report had seen.
        self.num_adds_sent = 0
        self.num_adds_seen = 0

    @property
    def pid(self) -> int | None:
        """Process id of the engine, or None while there is none."""
        process = self._process
        return None if process is None else process.pid

    @property
    def loop_count(self) -> int:
        """Iterations of the engine's loop; stands still if it is stuck, loading or gone."""
        counter = self._counter
        return 0 if counter is None else counter.value

    @property
    def is_alive(self) -> bool:
        """Whether an engine runs or will be started."""
        return self._thread.is_alive()

    @property
    def is_moving(self) -> bool:
        """Whether the engine's loop has moved lately: a stuck engine gets no more jobs."""
        return self._stalls.is_moving

    @property
    def stalled_s(self) -> float:
        """Seconds for which the loop of a ready engine has stood still, at the last observation."""
        return self._stalls.stalled_s

    def measure_stall_s(self) -> float:
        """Return for how many seconds the loop of a ready engine has stood still.

        One thread calls this at short intervals; see `StallDetector`.
        """
        is_ready = self.ready is not None
        return self._stalls.observe(time.monotonic(), self.loop_count, is_ready=is_ready)

    def start(self) -> None:
        """Start an engine, and keep one running until `shut_down`."""
        self._thread.start()

    def send(self, message: ToEngine) -> None:
        """Send a message to the engine that runs now, without blocking. Drop it if none runs."""
        if isinstance(message, AddRequest):
            self.num_adds_sent += 1
        self._outbox.put(message)

    def set_paused(self, paused: bool) -> None:
        """Pause or continue the engine's steps; its requests stay."""
        self.send(SetPaused(paused))

    def kill(self, why: str) -> None:
        """Kill a stuck engine; its death is then handled like any other."""
        process = self._process
        if process is not None and process.poll() is None:
            _log.warning("engine_killed", pid=process.pid, why=why)
            process.send_signal(signal.SIGKILL)

    def shut_down(self) -> None:
        """Let the engine end after its step, and start no other. Return at once; see `join`."""
        self._closing.set()
        self.send(Shutdown())
        if self.ready is None:
            self.kill("shutdown while it was loading")

    def join(self, timeout_s: float) -> bool:
        """Wait for the engine's end. Kill an engine that takes longer, and return False."""
        self._thread.join(timeout_s)
        if not self._thread.is_alive():
            return True
        self.kill(f"it did not end within {timeout_s:.1f} s of the shutdown")
        self._thread.join(5.0)
        return False

    def _run(self) -> None:
        try:
            self._keep_one_running()
        except Exception:
            _log.exception("engine_link_failed")
            self._listener.on_start_failed("the thread that watches the engine failed; see the log")

    def _keep_one_running(self) -> None:
        while not self._closing.is_set():
            if not self._serve_one():
                return
            if self._num_failed_starts >= MAX_FAILED_STARTS:
                self._listener.on_start_failed(self._describe_failed_starts())
                return
            if not self._closing.is_set():
                self._closing.wait(_RESPAWN_WAIT_S * self._num_failed_starts)

    def _describe_failed_starts(self) -> str:
        times = f"{MAX_FAILED_STARTS} times in a row"
        if self._start_failure is None:
            return f"the engine died {times} before it was ready; see its messages in the log"
        return f"the engine failed to start {times}, the last time because {self._start_failure}"

    def _serve_one(self) -> bool:
        """Run one engine until its end; return whether another may be started."""
        process, connection = self._spawn()
        if self._closing.is_set():  # `shut_down` may have found no process to kill
            self.kill("shutdown while it was starting")
        outbox = self._outbox
        writer = threading.Thread(
            target=_write_all, args=(connection, outbox), name="engine-writer", daemon=True
        )
        writer.start()
        was_ready = self._read_until_end(connection)
        status = _reap(process)
        self.ready = self.drafts = self.media = self.offload = None
        self._num_failed_starts = 0 if was_ready else self._num_failed_starts + 1
        if not self._closing.is_set():
            _log.error("engine_died", pid=process.pid, status=status, was_ready=was_ready)
        # The listener comes before the new outbox: earlier messages are for the dead engine.
        self._listener.on_gone(orderly=status == 0)
        if status is None:
            self._closing.set()
            self._listener.on_start_failed(
                f"the engine process {process.pid} did not end within {_KILL_GRACE_S:g} s of its "
                "SIGKILL, as happens if a device driver hangs: no other engine can use the device; "
                "restart this machine, or move the worker to another one"
            )
        self._outbox = queue.SimpleQueue()
        outbox.put(None)
        writer.join()
        connection.close()
        self._process = None
        return status is not None

    def _read_until_end(self, connection: EngineConnection) -> bool:
        was_ready = False
        self._start_failure = None
        while (message := _receive(connection)) is not None:
            if isinstance(message, StepReport):
                self.load, self.drafts, self.media = message.load, message.drafts, message.media
                self.offload = message.offload
                self.num_adds_seen = message.num_adds_seen
                self._listener.on_report(message)
            elif isinstance(message, Ready):
                was_ready = True
                self.ready = message
                self.load, self.drafts = EngineLoad(0, 0, message.num_blocks), message.drafts
                _log.info(
                    "engine_ready",
                    identity=message.identity,
                    dtype=message.dtype,
                    num_blocks=message.num_blocks,
                )
                self._listener.on_ready(message)
            elif isinstance(message, StartFailed):
                self._note_failed_start(message)
        return was_ready

    def _note_failed_start(self, message: StartFailed) -> None:
        if message.may_retry:
            _log.error("engine_start_failed", reason=message.message)
            self._start_failure = message.message
            return
        self._closing.set()
        self._listener.on_start_failed(message.message)

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
        with contextlib.suppress(OSError):  # it is dead already, which the reader will notice
            connection.send(self._spec)
        _log.info("engine_started", pid=process.pid, model=self._spec.model, kind=self._spec.kind)
        return process, connection


def _receive(connection: EngineConnection) -> FromEngine | None:
    """Return the next message, or None if the engine has closed the connection."""
    try:
        return connection.recv()
    except (EOFError, OSError):
        return None


def _write_all(connection: EngineConnection, outbox: queue.SimpleQueue[ToEngine | None]) -> None:
    """Write an outbox's messages until a None; after the engine's death, discard them."""
    alive = True
    while (message := outbox.get()) is not None:
        if alive:
            try:
                connection.send(message)
            except OSError:
                alive = False


def _reap(process: subprocess.Popen[bytes]) -> int | None:
    """Wait for the end of a process that has closed its connection.

    Returns:
        Its status; None if it is still there long after its SIGKILL.
    """
    with contextlib.suppress(subprocess.TimeoutExpired):
        return process.wait(_EXIT_GRACE_S)
    process.kill()
    with contextlib.suppress(subprocess.TimeoutExpired):
        return process.wait(_KILL_GRACE_S)
    return None
