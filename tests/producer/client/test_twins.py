"""Each class for programs without an event loop has an asyncio counterpart, method by method."""

from __future__ import annotations

import inspect
import re

import pytest

from batchmill.producer import (
    AsyncClient,
    AsyncJob,
    AsyncSeenEvents,
    Client,
    Job,
    SeenEvents,
)


def signatures(owner: type) -> dict[str, str]:
    """The public methods of a class with their signatures, without the marks of asyncio.

    The synchronous iterables that a method takes may be asynchronous ones as well.
    """
    found = {}
    for name, method in inspect.getmembers(owner, inspect.isfunction):
        if name.startswith("_") and name != "__init__":
            continue
        text = str(inspect.signature(method)).replace("Async", "")
        text = re.sub(r"Iterable\[(\w+)\] \| Iterable\[\1\]", r"Iterable[\1]", text)
        found[name] = text
    return found


@pytest.mark.parametrize(
    ("synchronous", "asyncio"),
    [(Client, AsyncClient), (Job, AsyncJob), (SeenEvents, AsyncSeenEvents)],
    ids=["client", "job", "seen events"],
)
def test_both_kinds_have_the_same_methods(synchronous: type, asyncio: type) -> None:
    assert signatures(synchronous) == signatures(asyncio)


def test_the_comparison_sees_methods() -> None:
    assert {"submit", "list", "retry", "forget", "progress"} <= set(signatures(Client))
    assert "timeout_s" in signatures(Client)["result"]
