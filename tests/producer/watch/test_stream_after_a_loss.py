"""Streams whose output Redis lost after it was read: pieces of two claims are never joined."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from batchmill.producer import Client, JobResult, JobState, OutputRestarted, StreamPosition
from batchmill.producer.protocol.replies import Claim, HeldJob, ReleaseCause, TokenWrite

from ...support.older_state import OlderState

FIRST, OTHER = [1, 2, 3, 4], [1, 2, 9, 9]


def write(bench: Any, claim: Claim, token_ids: list[int]) -> None:
    """Store an output from its start: the text is a letter per token."""
    write = TokenWrite("j", claim.fence, 0, token_ids, text_of(token_ids).encode(), 0)
    assert bench.store.checkpoint([write], lease_ms=60_000) == ["OK"]


def text_of(token_ids: list[int]) -> str:
    return "".join(chr(96 + token_id) for token_id in token_ids)


def complete(bench: Any, claim: Claim, token_ids: list[int]) -> None:
    result = JobResult(id="j", model="m", status=JobState.COMPLETED, text=text_of(token_ids))
    bench.store.complete(
        "j",
        fence=claim.fence,
        state=JobState.COMPLETED,
        result=result.model_dump_json(),
        token_ids=token_ids,
    )


@pytest.mark.parametrize("keeps_reader", [True, False], ids=["same reader", "new reader"])
@pytest.mark.parametrize("end", ["while it runs", "by its result"])
@pytest.mark.parametrize("again", [FIRST, OTHER], ids=["same tokens", "other tokens"])
def test_a_stream_continues_only_with_what_it_has_read(
    bench: Any, client: Client, again: list[int], end: str, keeps_reader: bool
) -> None:
    bench.submit("j")
    before = OlderState(bench.redis)
    write(bench, bench.claim("j"), FIRST)
    stream = client.stream("j", timeout_s=60)
    first = next(stream)
    assert (first.text, first.token_ids) == ("abcd", FIRST)
    before.restore()
    claim = bench.claim("j")
    whole = [*again, 5, 6]
    if end == "while it runs":
        write(bench, claim, whole)
    else:
        complete(bench, claim, whole)
    if not keeps_reader:
        stream = client.stream("j", first.position, timeout_s=60)
    if again == OTHER:
        with pytest.raises(OutputRestarted, match="Redis lost"):
            next(stream)
        return
    second = next(stream)
    assert (second.text, second.token_ids) == ("ef", [5, 6])
    if end == "while it runs":
        complete(bench, claim, [*whole, 7])
        assert [piece.text for piece in stream] == ["g"]


def test_a_stream_waits_until_lost_output_is_computed_again(bench: Any, client: Client) -> None:
    bench.submit("j")
    before = OlderState(bench.redis)
    write(bench, bench.claim("j"), FIRST)
    stream = client.stream("j", timeout_s=60)
    position = next(stream).position
    before.restore()
    claim = bench.claim("j")
    write(bench, claim, FIRST[:2])
    with pytest.raises(Exception, match="has not ended"):
        next(client.stream("j", position, timeout_s=0.1))
    write(bench, claim, [*FIRST, 5])
    assert next(stream).text == "e"


def test_a_shorter_output_than_was_read_is_another_one(bench: Any, client: Client) -> None:
    bench.submit("j")
    before = OlderState(bench.redis)
    write(bench, bench.claim("j"), FIRST)
    stream = client.stream("j", timeout_s=60)
    next(stream)
    before.restore()
    complete(bench, bench.claim("j"), FIRST[:3])
    with pytest.raises(OutputRestarted, match="Redis lost"):
        next(stream)


def test_a_position_without_a_claim_continues(bench: Any, client: Client) -> None:
    """As one that the caller has made from two numbers."""
    claim = bench.started("j")
    write(bench, claim, FIRST)
    stream = client.stream("j", StreamPosition(2, 2), timeout_s=60)
    assert next(stream).text == "cd"
    bench.store.release([HeldJob("j", claim.fence)], cause=ReleaseCause.DRAIN)
    write(bench, bench.claim("j"), [*FIRST, 5])
    piece = next(stream)
    assert piece.text == "e"
    assert piece.position == replace(piece.position, num_tokens=5, num_text_bytes=5)
