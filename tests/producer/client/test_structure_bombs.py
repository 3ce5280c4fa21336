"""Structures that take long to check, at the asyncio client."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from batchmill.producer import AsyncClient, Client, JobRejected, StructureCheckUnavailable


def bomb(number: int) -> dict[str, Any]:
    """Return a structure whose check takes all of the time that a check has."""
    return {"json": {"type": "integer", "multipleOf": 9999991 + 2 * number}}


def test_the_event_loop_continues_while_a_structure_is_checked(redis_url: str) -> None:
    async def submit(client: AsyncClient) -> None:
        with pytest.raises(JobRejected) as caught:
            await client.submit(prompt="x", structured_outputs=bomb(1))
        assert (caught.value.code, caught.value.param) == (
            "structure_too_complex",
            "structured_outputs",
        )
        with pytest.raises(JobRejected):
            await client.submit_many([{"prompt": "x", "structured_outputs": bomb(2)}])

    async def test() -> int:
        num_turns = 0
        async with AsyncClient(redis_url) as client:
            submitting = asyncio.create_task(submit(client))
            while not submitting.done():
                await asyncio.wait([submitting], timeout=0.02)
                num_turns += 1
            await submitting
        return num_turns

    # Without a thread there are two turns. The checks take seconds, a turn 20 ms.
    assert asyncio.run(asyncio.wait_for(test(), 60)) > 20


def test_a_structure_that_cannot_be_checked_now_may_be_submitted_later(
    client: Client, no_check_process: None
) -> None:
    with pytest.raises(StructureCheckUnavailable) as caught:
        client.submit(prompt="x", structured_outputs={"regex": "not now"})
    assert (caught.value.retryable, caught.value.param) == (True, "structured_outputs")
