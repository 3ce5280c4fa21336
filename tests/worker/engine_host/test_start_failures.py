"""Whatever fails at an engine's start is told by the worker, and retried only where that helps."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import pytest

from batchmill.worker.engine_host import engine_link, real_engine
from batchmill.worker.engine_host.engine_link import EngineLink
from batchmill.worker.engine_host.messages import EngineSpec, Ready, StepReport
from batchmill.worker.engine_host.real_engine import build_real_engine
from batchmill.worker.errors import EngineStartError

from ..local.waiting import wait_until

SPEC = EngineSpec("real", "demo", {}, checkpoint_tokens=8)


def failing(error: Exception) -> Callable[..., NoReturn]:
    def engine(*_: object) -> NoReturn:
        raise error

    return engine


@pytest.mark.parametrize(
    ("error", "may_retry"),
    [
        (RuntimeError("Failed to find C compiler. Please specify via CC"), False),
        (AssertionError("libcuda.so cannot found!"), False),
        (RuntimeError("CUDA error: out of memory"), True),
    ],
)
def test_an_error_of_a_library_becomes_a_message(
    error: Exception, may_retry: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(real_engine, "Engine", failing(error))
    with pytest.raises(EngineStartError, match=str(error)[:20]) as raised:
        build_real_engine(SPEC)
    assert raised.value.may_retry is may_retry
    remedy = "BATCHMILL_GPU_MEMORY_UTILIZATION" if may_retry else "batchmill doctor"
    assert remedy in str(raised.value)


class Listener:
    def __init__(self) -> None:
        self.failures: list[str] = []

    def on_ready(self, ready: Ready) -> None: ...

    def on_report(self, report: StepReport) -> None: ...

    def on_gone(self, *, orderly: bool) -> None: ...

    def on_start_failed(self, message: str) -> None:
        self.failures.append(message)


#: Runs the engine process with an engine that cannot be built, and counts its starts.
PROCESS = """
import sys
from batchmill.worker.engine_host import process
from batchmill.worker.errors import EngineStartError

def build(spec):
    open(sys.argv.pop(), "a").write("x")
    raise EngineStartError("no memory", may_retry={may_retry})

process.build_engine = build
process.main(sys.argv[1:3])
"""


@pytest.mark.parametrize(("may_retry", "num_starts"), [(True, 3), (False, 1)])
def test_a_start_is_tried_again_only_if_that_may_help(
    may_retry: bool, num_starts: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    starts = tmp_path / "starts"
    program = PROCESS.format(may_retry=may_retry)
    popen = subprocess.Popen

    def start(command: list[str], **options: object) -> subprocess.Popen[bytes]:
        words = [sys.executable, "-c", program, *command[-2:], str(starts)]
        return popen(words, **options)  # type: ignore[call-overload,no-any-return]

    monkeypatch.setattr(engine_link, "_RESPAWN_WAIT_S", 0.01)
    monkeypatch.setattr(subprocess, "Popen", start)
    listener = Listener()
    link = EngineLink(SPEC, listener)
    link.start()
    wait_until(lambda: not link.is_alive, "the end of the link", 60)
    assert starts.read_text() == "x" * num_starts
    (message,) = listener.failures
    assert message.endswith("no memory")
    assert ("3 times in a row" in message) is may_retry


def test_an_engine_that_survives_its_kill_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    class Stuck:
        pid = 4711
        num_kills = 0

        def wait(self, timeout_s: float) -> NoReturn:
            raise subprocess.TimeoutExpired("engine", timeout_s)

        def kill(self) -> None:
            self.num_kills += 1

    process = Stuck()
    assert engine_link._reap(process) is None  # type: ignore[arg-type]
    assert process.num_kills == 1
