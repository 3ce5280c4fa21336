"""Streams of checkpointed output: in order and never retracted."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from batchmill.producer import (
    AsyncClient,
    Client,
    JobCancelled,
    JobFailed,
    StreamPosition,
    UnknownJob,
)
from batchmill.producer.protocol import keys
from batchmill.worker.engine_host.stub_output import stub_text

from ..command_line import call
from ..conftest import Mill, expected_tokens


def test_pieces_join_to_the_output_and_come_before_its_end(running_mill: Mill) -> None:
    job_id = running_mill.submit("streamed", max_tokens=400)
    with Client(running_mill.url) as client:
        pieces = []
        states = []
        for piece in client.stream(job_id, timeout_s=30):
            pieces.append(piece)
            states.append(running_mill.state(job_id).is_terminal)
        result = client.result(job_id)
    assert not states[0], "the first piece came before the end"
    assert len(pieces) > 2
    assert any(piece.text for piece in pieces[:-1]), "text came before the end too"
    assert "".join(piece.text for piece in pieces) == result.text
    assert [i for piece in pieces for i in piece.token_ids] == expected_tokens("streamed", 400)
    assert running_mill.store.client.exists(keys.text(job_id)) == 0, "the result has the text"


def test_a_stream_continues_from_a_position_and_after_the_end(running_mill: Mill) -> None:
    job_id = running_mill.submit("resumed", max_tokens=300)
    with Client(running_mill.url) as client:
        first = next(client.stream(job_id, timeout_s=30))
        rest = list(client.job(job_id).stream(first.position, timeout_s=30))
        late = list(client.stream(job_id))
    whole = stub_text(expected_tokens("resumed", 300))
    assert first.text + "".join(piece.text for piece in rest) == whole
    assert "".join(piece.text for piece in late) == whole


def test_a_job_without_a_completion_raises_after_its_last_piece(running_mill: Mill) -> None:
    with Client(running_mill.url) as client:
        job_id = running_mill.submit("<<error@40>> x", max_tokens=80)
        seen: list[int] = []

        def read() -> None:
            for piece in client.stream(job_id, timeout_s=30):
                seen.extend(piece.token_ids)

        with pytest.raises(JobFailed):
            read()
        assert len(seen) == 40
        job_id = running_mill.submit("to be cancelled", max_tokens=3000)
        stream = client.stream(job_id, timeout_s=30)
        next(stream)
        client.cancel(job_id)
        with pytest.raises(JobCancelled):
            list(stream)
        with pytest.raises(UnknownJob):
            next(client.stream("gen_gone", StreamPosition(), timeout_s=5))


def test_the_asyncio_client_and_the_command_line_stream_as_well(running_mill: Mill) -> None:
    job_id = running_mill.submit("everywhere", max_tokens=60)
    whole = stub_text(expected_tokens("everywhere", 60))

    async def test() -> str:
        async with AsyncClient(running_mill.url) as client:
            return "".join([piece.text async for piece in client.stream(job_id, timeout_s=30)])

    assert asyncio.run(asyncio.wait_for(test(), 60)) == whole
    broker = ("--broker-url", running_mill.url)
    assert call("stream", job_id, *broker).stdout == whole + "\n"
    lines: list[Any] = call("stream", job_id, "--json", *broker).stdout.splitlines()
    assert "".join(json.loads(line)["text"] for line in lines) == whole
