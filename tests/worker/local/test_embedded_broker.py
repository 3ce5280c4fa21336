"""The embedded broker as a real server process: persistence, locking, privacy and its end."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from batchmill.producer.install_hint import install_command
from batchmill.worker.local.broker_binary import find_server_binary
from batchmill.worker.local.broker_config import BrokerConfig
from batchmill.worker.local.embedded_broker import EmbeddedBroker
from batchmill.worker.service_errors import (
    BrokerAlreadyRunning,
    BrokerError,
    BrokerFailed,
    BrokerNotInstalled,
    NotPrivate,
)

from .waiting import is_gone, wait_until

PARENT_PROGRAM = """
import sys, signal
from pathlib import Path
from batchmill.worker.local.broker_config import BrokerConfig
from batchmill.worker.local.embedded_broker import EmbeddedBroker
broker = EmbeddedBroker(BrokerConfig(Path(sys.argv[1])))
broker.start()
print(broker.pid, flush=True)
signal.pause()
"""


@pytest.fixture
def directory() -> Iterator[Path]:
    # Not tmp_path: its length depends on the test's name and may not fit a socket path.
    with tempfile.TemporaryDirectory(prefix="bm-") as name:
        yield Path(name)


def start_parent(directory: Path) -> tuple[subprocess.Popen[str], int]:
    """Start a process that starts a broker and waits; return it and the broker's pid."""
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT_PROGRAM, str(directory)], stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout is not None
    return parent, int(parent.stdout.readline())


def kill(parent: subprocess.Popen[str]) -> None:
    parent.kill()
    parent.wait()
    assert parent.stdout is not None
    parent.stdout.close()


def test_data_survives_sigkill_of_the_server(directory: Path) -> None:
    with EmbeddedBroker(BrokerConfig(directory)) as broker:
        connection = redis.Redis.from_url(broker.url)
        for number in range(1000):
            connection.rpush("jobs", number)
        pid = broker.pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: broker.pid is None, "the server is dead")
        connection.close()
    with EmbeddedBroker(BrokerConfig(directory)) as broker:
        connection = redis.Redis.from_url(broker.url)
        assert connection.lrange("jobs", 0, -1) == [str(n).encode() for n in range(1000)]
        connection.close()


def test_server_never_evicts_and_logs_every_write(directory: Path) -> None:
    with EmbeddedBroker(BrokerConfig(directory)) as broker:
        connection = redis.Redis.from_url(broker.url, decode_responses=True)
        settings = connection.config_get("maxmemory-policy", "append*", "save")
        connection.close()
    assert settings["maxmemory-policy"] == "noeviction"
    assert settings["appendonly"] == "yes"
    assert settings["appendfsync"] == "everysec"
    assert settings["save"] == ""


def test_server_is_reaped_when_its_parent_is_killed(directory: Path) -> None:
    parent, server_pid = start_parent(directory)
    assert not is_gone(server_pid)
    kill(parent)
    wait_until(lambda: is_gone(server_pid), "the server followed its parent")


def test_next_broker_starts_right_after_the_previous_parent_was_killed(directory: Path) -> None:
    parent, server_pid = start_parent(directory)
    kill(parent)
    with EmbeddedBroker(BrokerConfig(directory)) as broker:
        assert broker.pid not in (None, server_pid)


def test_stale_socket_of_a_dead_broker_is_replaced(directory: Path) -> None:
    with EmbeddedBroker(BrokerConfig(directory)) as broker:
        assert broker.pid is not None
        os.kill(broker.pid, signal.SIGKILL)
        wait_until(lambda: broker.pid is None, "the server is dead")
    assert (directory / "broker.sock").is_socket()
    with EmbeddedBroker(BrokerConfig(directory)) as broker:
        connection = redis.Redis.from_url(broker.url)
        assert connection.ping()
        connection.close()


def test_live_broker_is_reported_with_its_pid_and_left_alone(directory: Path) -> None:
    with EmbeddedBroker(BrokerConfig(directory)) as broker:
        with pytest.raises(
            BrokerAlreadyRunning, match=f"already running.*pid {broker.pid}"
        ) as info:
            EmbeddedBroker(BrokerConfig(directory)).start()
        assert info.value.pid == broker.pid
        connection = redis.Redis.from_url(broker.url)
        assert connection.ping()
        connection.close()


def test_only_the_owner_can_reach_socket_and_data(directory: Path) -> None:
    private = directory / "state"
    with EmbeddedBroker(BrokerConfig(private)):
        assert private.stat().st_mode & 0o777 == 0o700
        assert (private / "broker.sock").stat().st_mode & 0o077 == 0
        assert (private / "data").stat().st_mode & 0o777 == 0o700


def test_directory_that_others_can_read_is_refused(directory: Path) -> None:
    directory.chmod(0o755)
    with pytest.raises(NotPrivate, match="chmod 700"):
        EmbeddedBroker(BrokerConfig(directory)).start()


def test_too_long_socket_path_is_refused_with_the_limit(directory: Path) -> None:
    with pytest.raises(BrokerError, match="limit is 103"):
        EmbeddedBroker(BrokerConfig(directory / ("x" * 100))).start()


def test_broker_listens_on_a_loopback_port_if_given(directory: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        free_port = probe.getsockname()[1]
    config = BrokerConfig(directory, port=free_port)
    with EmbeddedBroker(config) as broker:
        assert broker.url == f"redis://127.0.0.1:{config.port}/0"
        connection = redis.Redis.from_url(broker.url, decode_responses=True)
        assert connection.config_get("bind")["bind"] == "127.0.0.1"
        connection.close()


def test_server_that_cannot_start_is_reported_with_its_log(directory: Path) -> None:
    data = directory / "data" / "appendonlydir"
    data.mkdir(parents=True, mode=0o700)
    (directory / "data").chmod(0o700)
    (data / "appendonly.aof.manifest").write_text("not a manifest\n")
    with pytest.raises(BrokerFailed, match=r"exit code 1.*(?s:.*)manifest"):
        EmbeddedBroker(BrokerConfig(directory)).start()


def test_missing_server_is_an_error_that_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(BrokerNotInstalled, match=re.escape(install_command("embedded"))):
        find_server_binary()


def test_server_on_the_path_is_used_without_the_wheel(
    monkeypatch: pytest.MonkeyPatch, directory: Path
) -> None:
    program = directory / "redis-server"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setenv("PATH", str(directory))
    assert find_server_binary() == program


def test_start_from_another_thread_is_refused(directory: Path) -> None:
    errors: list[BaseException] = []

    def start() -> None:
        try:
            EmbeddedBroker(BrokerConfig(directory)).start()
        except RuntimeError as error:
            errors.append(error)

    thread = threading.Thread(target=start)
    thread.start()
    thread.join()
    assert "main thread" in str(errors[0])
