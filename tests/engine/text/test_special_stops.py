"""Stop strings that are special tokens, which the text leaves out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from batchmill.engine import Engine, RequestError, SamplingParams

#: The byte model's special token; a bias makes it the likeliest.
SPECIAL, TOKEN_ID = "<also eos>", 257
FORCED: dict[str, Any] = {
    "temperature": 0,
    "max_tokens": 4,
    "ignore_eos": True,
    "logit_bias": {TOKEN_ID: 100},
}


def test_a_stop_string_that_is_a_special_token_ends_the_output(
    byte_engine: Callable[..., Engine],
) -> None:
    params = SamplingParams(**FORCED, stop=["no match", SPECIAL])
    [output] = byte_engine().generate(["hello"], params)
    assert (output.finish_reason, output.token_ids) == ("stop", [TOKEN_ID])
    assert output.text == ""


def test_a_stop_string_that_could_never_match_is_refused(
    byte_engine: Callable[..., Engine],
) -> None:
    engine, stop = byte_engine(), [f"{SPECIAL}!"]
    with pytest.raises(RequestError, match="stop at the special token alone"):
        engine.generate(["hello"], SamplingParams(**FORCED, stop=stop))
    params = SamplingParams(**FORCED, stop=[SPECIAL * 2], skip_special_tokens=False)
    [output] = engine.generate(["hello"], params)
    assert (output.finish_reason, output.token_ids) == ("stop", [TOKEN_ID] * 2)
