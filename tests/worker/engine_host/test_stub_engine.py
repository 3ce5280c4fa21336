"""The stub engine keeps to the limits that the real engine has."""

from __future__ import annotations

import pytest

from batchmill.engine.contract.media import Image
from batchmill.worker.engine_host.hosted_engine import RequestRefused
from batchmill.worker.engine_host.messages import AddRequest
from batchmill.worker.engine_host.stub_engine import StubConfig, StubEngine


def test_a_request_ends_at_the_length_of_the_model_and_gives_its_blocks_back() -> None:
    engine = StubEngine(StubConfig(step_time_s=0, max_model_len=64, num_blocks=4))
    engine.add(AddRequest("endless", "x" * 40, None, {"max_tokens": 10**9}))
    engine.add(AddRequest("next", "y", None, {"max_tokens": 2}))
    finished = {}
    for _ in range(200):
        for end in engine.step().finished:
            finished[end.request_id] = end
    assert len(finished["endless"].token_ids) == 64 - 10
    assert finished["endless"].finish_reason == "length"
    assert len(finished["next"].token_ids) == 2
    assert (engine.load().num_free_blocks, engine.has_unfinished()) == (4, False)


def _tokens(*media: Image, kind: str = "image") -> list[int]:
    engine = StubEngine(StubConfig(step_time_s=0))
    parts = [{"type": kind} for _ in media]
    chat = {"messages": [{"role": "user", "content": [*parts, {"type": "text", "text": "a"}]}]}
    engine.add(AddRequest("a", None, chat, {"max_tokens": 4}, media=media))
    while not (finished := engine.step().finished):
        pass
    return list(finished[0].token_ids)


def test_its_tokens_follow_the_content_of_the_media() -> None:
    red, blue = Image(1, 1, b"\xff\0\0"), Image(1, 1, b"\0\0\xff")
    assert _tokens(red) == _tokens(Image(1, 1, b"\xff\0\0"))
    assert len({tuple(_tokens(*media)) for media in ((red,), (blue,), (red, blue), ())}) == 4


def test_media_that_do_not_agree_with_their_placeholders_are_refused() -> None:
    with pytest.raises(RequestRefused, match="one medium for each placeholder"):
        _tokens(Image(1, 1, bytes(3)), kind="audio")
