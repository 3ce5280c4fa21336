"""The engine process hands decoded media of a job to the engine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from batchmill.worker.engine_host.hosted_engine import RequestRefused
from batchmill.worker.engine_host.messages import AddRequest, EngineSpec
from batchmill.worker.engine_host.real_engine import RealEngine, build_real_engine

from ...support.tiny_media_models import image, save_idefics3

CHAT: dict[str, Any] = {
    "messages": [
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What?"}]}
    ]
}


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> RealEngine:
    folder: Path = tmp_path_factory.mktemp("idefics3")
    save_idefics3(folder)
    options = {"device": "cpu", "dtype": "float32", "max_model_len": 256, "kv_cache_bytes": 4 << 20}
    return build_real_engine(EngineSpec("real", str(folder), options, checkpoint_tokens=64))


def tokens(engine: RealEngine, seed: int) -> list[int]:
    params = {"max_tokens": 8, "temperature": 0.0, "ignore_eos": True}
    engine.add(AddRequest(f"{seed}", None, CHAT, params, media=[image(seed)]))
    while not (finished := engine.step().finished):
        pass
    return list(finished[0].token_ids)


def test_the_output_follows_the_picture(engine: RealEngine) -> None:
    outputs = {seed: tokens(engine, seed) for seed in (1, 2)}
    assert outputs[1] != outputs[2]
    assert tokens(engine, 1) == outputs[1]


def test_media_that_do_not_suit_are_refused(engine: RealEngine) -> None:
    with pytest.raises(RequestRefused, match="one medium for each placeholder"):
        engine.add(AddRequest("a", None, CHAT, {"max_tokens": 1}))
    fields = {"state": "s", "questions": {"q": {"type": "yes_no", "instructions": "Is it?"}}}
    with pytest.raises(RequestRefused, match="its state has no part of type image"):
        engine.add(
            AddRequest("b", None, None, {}, section="decision", section_fields=fields,
                       media=[image(1)])
        )  # fmt: skip
