"""`batchmill tenants`: weights and limits, changed while jobs wait."""

from __future__ import annotations

import json
from typing import Any

import pytest

from ..command_line import call, error_of


def tenants(broker: dict[str, str]) -> dict[str, Any]:
    listed = json.loads(call("tenants", "list", "--json", **broker).stdout)["tenants"]
    return {tenant["name"]: tenant for tenant in listed}


def test_a_tenant_is_set_shown_and_unset(broker: dict[str, str]) -> None:
    call("tenants", "set", "acme", "--weight", "3", "--max-jobs", "1", **broker)
    call("submit", "x", "--tenant", "acme", **broker)
    assert tenants(broker)["acme"]["limits"]["weight"] == 3
    shown = json.loads(call("tenants", "show", "acme", "--json", **broker).stdout)
    assert (shown["limits"]["max_jobs"], shown["usage"]["jobs"]) == (1, 1)
    assert "1 of 1" in call("tenants", "list", **broker).stdout
    refused = call("submit", "y", "--tenant", "acme", "--json", **broker)
    error = error_of(refused)
    assert (refused.returncode, error["code"], error["retryable"]) == (4, "queue_full", True)
    assert "tenants set acme --max-jobs" in error["message"]
    call("tenants", "unset", "acme", **broker)
    assert call("submit", "y", "--tenant", "acme", **broker).returncode == 0


@pytest.mark.parametrize(
    "arguments",
    [("set", "acme"), ("set", "a:b", "--weight", "2"), ("set", "a", "--weight", "0")],
)
def test_an_invalid_value_is_a_usage_error(
    broker: dict[str, str], arguments: tuple[str, ...]
) -> None:
    answer = call("tenants", *arguments, "--json", **broker)
    assert (answer.returncode, error_of(answer)["code"]) == (2, "usage")
    assert tenants(broker) == {}


def test_the_window_is_shown_and_set(broker: dict[str, str]) -> None:
    assert call("tenants", "window", **broker).stdout == "8\n"
    assert json.loads(call("tenants", "window", "2", "--json", **broker).stdout) == {"window": 2}
    for _ in range(4):
        call("submit", "x", **broker)
    [queue] = json.loads(call("status", "--json", **broker).stdout)["queues"]
    assert (queue["queued"], queue["announcements"]) == (4, 2)


def test_a_delayed_job_is_counted_as_such(broker: dict[str, str]) -> None:
    job_id = call("submit", "x", "--delay-s", "60", **broker).stdout.strip()
    data = json.loads(call("status", "--json", **broker).stdout)
    assert (data["counts"]["queued"], data["counts"]["scheduled"]) == (1, 1)
    status = json.loads(call("status", job_id, "--json", **broker).stdout)
    assert status["scheduled_at_ms"] == status["enqueued_at_ms"] + 60_000
