"""Media have to suit the placeholders of the messages, and the model."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from batchmill.engine import Chat, Engine
from batchmill.engine.contract.media import Audio, Image, Media
from batchmill.engine.errors import RequestError

RED = Image(1, 1, bytes((255, 0, 0)))
BEEP = Audio(8000, bytes(8))


def chat(*kinds: str) -> Chat:
    parts = [{"type": kind} for kind in kinds]
    return Chat(messages=[{"role": "user", "content": [{"type": "text", "text": "a"}, *parts]}])


@pytest.mark.parametrize(
    ("prompt", "media", "code", "words"),
    [
        pytest.param(chat("image"), [RED], "unsupported_parameter", "takes no images", id="image"),
        pytest.param(chat("audio"), [BEEP], "unsupported_parameter", "takes no audio", id="audio"),
        pytest.param(chat(), [RED], "invalid_request", "nothing and media", id="no-placeholder"),
        pytest.param("text", [RED], "invalid_request", "not a chat", id="text"),
        pytest.param([1, 2], [BEEP], "invalid_request", "not a chat", id="tokens"),
        pytest.param(chat(), [b"png"], "invalid_request", "is a bytes", id="undecoded"),
    ],
)
def test_media_that_do_not_suit_are_refused_by_name(
    make_engine: Callable[..., Engine], prompt: Chat, media: list[Media], code: str, words: str
) -> None:
    engine = make_engine()
    with pytest.raises(RequestError, match=words) as refusal:
        engine.add_request("a", prompt, media=media)
    assert refusal.value.code == code
    assert not engine.has_unfinished()


def test_kinds_are_named_in_the_order_of_their_placeholders() -> None:
    assert chat("image", "audio", "image").media_kinds == ["image", "audio", "image"]
    assert Chat(messages=[{"role": "user", "content": "image"}]).media_kinds == []
