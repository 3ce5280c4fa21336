"""The broker is found by its URL, by the environment, or as the embedded broker."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from batchmill.producer.broker_url import (
    celery_url,
    embedded_socket,
    find_broker,
    redact,
    redis_url,
    runtime_dir,
)
from batchmill.producer.errors import BrokerUnavailable


@pytest.fixture
def embedded(tmp_path: Path) -> Iterator[dict[str, str]]:
    """Return an environment with a socket in the embedded broker's place."""
    with socket.socket(socket.AF_UNIX) as listener:
        # A short name: a socket path has at most 107 characters.
        listener.bind(str(embedded_socket({"BATCHMILL_RUNTIME_DIR": str(tmp_path)})))
        yield {"BATCHMILL_RUNTIME_DIR": str(tmp_path)}


def test_a_given_url_wins_over_the_environment(embedded: dict[str, str]) -> None:
    environ = embedded | {"BATCHMILL_BROKER_URL": "redis://env/0"}
    assert find_broker("redis://given/0", environ) == "redis://given/0"
    assert find_broker(None, environ) == "redis://env/0"


def test_without_a_url_the_embedded_broker_is_found(embedded: dict[str, str]) -> None:
    assert find_broker(None, embedded) == f"unix://{embedded_socket(embedded)}"


def test_without_any_broker_the_error_says_how_to_start_one(tmp_path: Path) -> None:
    with pytest.raises(BrokerUnavailable, match="batchmill up"):
        find_broker(None, {"BATCHMILL_RUNTIME_DIR": str(tmp_path / "nothing")})


def test_a_plain_file_is_not_taken_for_a_socket(tmp_path: Path) -> None:
    environ = {"BATCHMILL_RUNTIME_DIR": str(tmp_path)}
    embedded_socket(environ).touch()
    with pytest.raises(BrokerUnavailable, match="no embedded broker"):
        find_broker(None, environ)


def test_the_folder_of_another_user_is_not_trusted(tmp_path: Path) -> None:
    folder = Path("/")
    if os.getuid() == 0:
        folder = tmp_path
        os.chown(folder, 12345, -1)
    with pytest.raises(BrokerUnavailable, match="belongs to user"):
        find_broker(None, {"BATCHMILL_RUNTIME_DIR": str(folder)})


def test_the_runtime_folder_is_the_user_s_own() -> None:
    assert runtime_dir({"BATCHMILL_RUNTIME_DIR": "/a", "XDG_RUNTIME_DIR": "/b"}) == Path("/a")
    assert runtime_dir({"XDG_RUNTIME_DIR": "/b"}) == Path("/b/batchmill")
    assert runtime_dir({}).name == f"batchmill-{os.getuid()}"


@pytest.mark.parametrize("url", ["", "localhost:6379", "http://host", "redis+cluster://host/0"])
def test_a_url_of_another_kind_is_refused_by_its_scheme(url: str) -> None:
    with pytest.raises(ValueError, match="redis://"):
        redis_url(url)


@pytest.mark.parametrize(
    ("plain", "celery"),
    [
        ("redis://host:6379/3", "redis://host:6379/3"),
        ("rediss://u:p@host/0", "rediss://u:p@host/0"),
        ("unix:///run/b.sock?db=2", "redis+socket:///run/b.sock?virtual_host=2"),
    ],
)
def test_both_formats_name_the_same_server(plain: str, celery: str) -> None:
    assert celery_url(plain) == celery
    assert redis_url(celery) == plain
    assert celery_url(celery) == celery


def test_passwords_are_redacted() -> None:
    assert redact("redis://user:hunter2@host:6379/0") == "redis://user:***@host:6379/0"
    assert redact("redis://:hunter2@host/0") == "redis://:***@host/0"
    assert redact("unix:///run/b.sock") == "unix:///run/b.sock"
    assert redact("unix:///b.sock?password=hunter2&db=1") == "unix:///b.sock?password=***&db=1"
    assert redact("redis://h/0?db=1&password=hunter2") == "redis://h/0?db=1&password=***"


def test_a_url_without_a_scheme_is_not_repeated() -> None:
    with pytest.raises(ValueError, match="no scheme") as caught:
        redis_url("user:hunter2@host:6379")
    assert "hunter2" not in str(caught.value)
