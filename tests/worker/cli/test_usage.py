"""`batchmill usage`: tables, JSON and CSV of the tokens that jobs have used."""

from __future__ import annotations

import csv
import io
import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from batchmill.producer.protocol import keys
from batchmill.producer.store.job_store import JobStore

from ..command_line import call, error_of

Broker = dict[str, str]
TOKENS = ["prompt_tokens", "completion_tokens", "cached_tokens", "reasoning_tokens"]


@pytest.fixture
def days(store: JobStore) -> list[str]:
    """Write the sums of today and of earlier days; return these days, the latest first."""
    today = datetime.now(UTC).date()
    found = [today - timedelta(days=number) for number in (0, 3, 40)]
    for number, day in enumerate(found):
        key = keys.used_tokens((day - datetime(1970, 1, 1, tzinfo=UTC).date()).days)
        store.client.hset(key, "acme:key_1:demo", f"{number + 1} 100 10 64 4")
        # As versions have written them that did not count thoughts.
        store.client.hset(key, "acme::demo", "1 1 2 0")
        store.client.hset(key, "other::a/b:c", "1 5 5 0")
    return [day.isoformat() for day in found]


def data(*options: str, **broker: str) -> list[dict[str, Any]]:
    answer = call("usage", *options, "--json", **broker)
    assert answer.returncode == 0, answer.stderr
    found: list[dict[str, Any]] = json.loads(answer.stdout)["data"]
    return found


def test_usage_is_summed_up_by_the_labels_that_are_asked_for(
    broker: Broker, days: list[str]
) -> None:
    assert data("--by", "tenant", **broker) == [
        {
            "tenant": "acme",
            "jobs": 5,
            "prompt_tokens": 202,
            "completion_tokens": 24,
            "cached_tokens": 128,
            "reasoning_tokens": 8,
        },
        {
            "tenant": "other",
            "jobs": 2,
            "prompt_tokens": 10,
            "completion_tokens": 10,
            "cached_tokens": 0,
            "reasoning_tokens": 0,
        },
    ]
    (both, only) = data("--by", "key", "--tenant", "acme", "--since", days[2], **broker)
    assert (both["key"], both["jobs"], only["key"], only["jobs"]) == ("", 3, "key_1", 6)
    found = data("--by", "model,day", "--until", days[1], "--since", "30d", **broker)
    assert [(each["model"], each["day"]) for each in found] == [
        ("a/b:c", days[1]),
        ("demo", days[1]),
    ]
    assert [each["jobs"] for each in data("--by", "day", "--key", "key_1", **broker)] == [2, 1]
    assert data("--model", "none", **broker) == []


def test_csv_has_the_same_rows(broker: Broker, days: list[str]) -> None:
    answer = call("usage", "--by", "tenant,model", "--csv", **broker)
    assert list(csv.reader(io.StringIO(answer.stdout))) == [
        ["tenant", "model", "jobs", *TOKENS],
        ["acme", "demo", "5", "202", "24", "128", "8"],
        ["other", "a/b:c", "2", "10", "10", "0", "0"],
    ]


def test_the_table_names_the_period(broker: Broker, days: list[str]) -> None:
    text = call("usage", "--since", days[1], **broker).stdout
    assert f"{days[1]} to {days[0]} (UTC)" in text
    assert "acme" in text
    assert " 202 " not in text  # by day as well
    assert text.count("acme") == 2


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--by", "week"], "--by 'week'"),
        (["--by", "day,day"], "--by"),
        (["--since", "yesterday"], "--since 'yesterday'"),
        (["--since", "2020-01-01"], "1 to 800 days"),
        (["--since", "2026-01-02", "--until", "2026-01-01"], "1 to 800 days"),
        (["--csv"], "--csv or --json"),
    ],
)
def test_wrong_options_are_named(broker: Broker, options: list[str], named: str) -> None:
    error = error_of(call("usage", *options, "--json", **broker))
    assert error["code"] == "usage"
    assert named in error["message"]
