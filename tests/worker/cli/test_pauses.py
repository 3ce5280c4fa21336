"""`batchmill pause` and `resume`: what is paused is shown wherever somebody waits for it."""

from __future__ import annotations

import json
from typing import Any

import pytest

from batchmill.producer.protocol import keys
from batchmill.producer.store.job_store import JobStore

from ..command_line import call

QUEUE = keys.queue_name("demo", "normal")
HOOK = "https://example.com/hook?flow=1"


def shown(broker: dict[str, str], *command: str) -> Any:
    return json.loads(call(*command, "--json", **broker).stdout)


@pytest.mark.parametrize("place", [("queue", QUEUE), ("tenant", "acme")])
def test_a_pause_is_shown_where_jobs_are_waited_for(
    broker: dict[str, str], store: JobStore, place: tuple[str, str]
) -> None:
    paused = shown(broker, "pause", *place, "--reason", "a new model")
    assert paused == {"kind": place[0], "name": place[1], "is_new": True}
    job_id = call("submit", "x", "--tenant", "acme", **broker).stdout.strip()
    [pause] = shown(broker, "status")["pauses"]
    assert (pause["kind"], pause["name"], pause["reason"]) == (*place, "a new model")
    assert "a new model" in call("status", **broker).stdout
    assert shown(broker, "status", job_id)["pause"]["reason"] == "a new model"
    assert shown(broker, "progress", job_id)["eta_unknown"] == "paused"
    sentence = f"{place[0]} {place[1]} is paused since 20"
    waited = call("result", job_id, "--timeout-s", "0", **broker)
    for text in (
        *(waited.stderr, call("status", job_id, **broker).stdout),
        call("progress", job_id, **broker).stdout,
    ):
        assert sentence in " ".join(text.split())
    assert shown(broker, "resume", *place)["was_paused"]
    assert shown(broker, "pause", "list") == {"pauses": []}
    assert shown(broker, "status", job_id)["pause"] is None
    assert store.queue_depths()[0].announcements == 1


def test_a_pause_may_refuse_new_jobs(broker: dict[str, str]) -> None:
    call("pause", "tenant", "acme", "--refuse", **broker)
    refused = call("submit", "x", "--tenant", "acme", "--json", **broker)
    assert (refused.returncode, "queue_paused" in refused.stderr) == (4, True)
    assert "acme (paused since" in call("tenants", "list", **broker).stdout
    assert shown(broker, "tenants", "show", "acme")["pause"]["refuses"] is True


def test_a_paused_endpoint_is_listed(broker: dict[str, str]) -> None:
    call("pause", "endpoint", HOOK, "--tenant", "acme", **broker)
    [endpoint] = shown(broker, "webhooks", "endpoints")["endpoints"]
    assert (endpoint["tenant"], endpoint["url"]) == ("acme", HOOK)
    assert endpoint["state"] == "paused"
    assert "paused since" in call("webhooks", "endpoints", **broker).stdout
    call("resume", "endpoint", HOOK, "--tenant", "acme", **broker)
    assert shown(broker, "webhooks", "endpoints")["endpoints"] == []


@pytest.mark.parametrize("place", [("queue", "demo"), ("tenant", "a:b")])
def test_a_name_that_nothing_can_have_is_a_usage_error(
    broker: dict[str, str], place: tuple[str, str]
) -> None:
    assert call("pause", *place, "--json", **broker).returncode == 2
