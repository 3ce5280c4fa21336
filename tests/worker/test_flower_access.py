"""Flower as the operations page sets it up: nothing without the password, and read-only with it."""

from __future__ import annotations

import base64
import urllib.error
import urllib.request
from pathlib import Path

from batchmill.producer.broker_url import celery_url

from ..support.processes import accepts, free_port, process, wait_until

USER = "operator:pass-word"


def status_of(url: str, user: str | None = None, *, method: str = "GET") -> int:
    """Return the HTTP status of a request."""
    request = urllib.request.Request(url, method=method)
    if user is not None:
        token = base64.b64encode(user.encode()).decode()
        request.add_header("Authorization", f"Basic {token}")
    try:
        with urllib.request.urlopen(request, timeout=60) as response:
            return int(response.status)
    except urllib.error.HTTPError as error:
        return error.code


def test_flower_asks_for_a_password_and_changes_nothing(redis_url: str, tmp_path: Path) -> None:
    port = free_port()
    environment = {
        "CELERY_BROKER_URL": celery_url(redis_url),
        "FLOWER_ADDRESS": "127.0.0.1",
        "FLOWER_PORT": str(port),
        "FLOWER_READ_ONLY": "true",
        "FLOWER_BASIC_AUTH": USER,
    }
    flower = ("-m", "celery", "flower")
    with process(*flower, environment=environment, log=tmp_path / "flower.log"):
        wait_until(lambda: accepts(port), "starting Flower")
        url = f"http://127.0.0.1:{port}"
        pages = ("/workers", "/tasks", "/api/workers", "/api/tasks")
        assert {status_of(url + page) for page in pages} == {401}
        assert status_of(f"{url}/workers", "operator:wrong") == 401
        assert status_of(f"{url}/workers", USER) == 200
        shutdown = f"{url}/api/worker/shutdown/w1@test"
        assert status_of(shutdown, method="POST") == 401
        assert status_of(shutdown, USER, method="POST") == 403
        assert status_of(f"{url}/api/task/revoke/some-id", USER, method="POST") == 403
