"""Signals as a flag: the first, a second one, and ignored ones."""

from __future__ import annotations

import os
import signal

from batchmill.worker.local.stop_signals import StopSignals


def test_first_signal_sets_the_flag_and_the_second_calls_back() -> None:
    again: list[str] = []
    before = signal.getsignal(signal.SIGTERM)
    with StopSignals((signal.SIGTERM,), on_second=lambda: again.append("again")) as signals:
        assert not signals.wait(0.0)
        os.kill(os.getpid(), signal.SIGTERM)
        assert signals.wait(1.0)
        assert again == []
        os.kill(os.getpid(), signal.SIGTERM)
        assert signals.received
        assert again == ["again"]
    assert signal.getsignal(signal.SIGTERM) is before


def test_ignored_signal_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopSignals((signal.SIGHUP,), on_second=lambda: None) as signals:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not signals.received
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)
