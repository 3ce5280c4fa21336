"""Explanations of an output about a picture: those of the same requests alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch

from batchmill.engine import Chat, Engine, EngineConfig, RequestError, SamplingParams
from batchmill.engine.contract.media import Media
from batchmill.engine.loading.loading import LoadedModel, load_model
from batchmill.engine.plans.explain.alternatives import NUM_TOKENS
from batchmill.engine.plans.explain.plan import explain_plan
from batchmill.engine.plans.plan import PlanEnd, PlannedJob
from batchmill.engine.plans.runner import JobOptions, PlanRunner

from ...support.tiny_media_models import TinyMediaModel, save_idefics3

GREEDY = SamplingParams(temperature=0, max_tokens=6, ignore_eos=True)
#: Ends a text of the tiny models.
END = 256
CHAT = Chat(
    messages=[{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What?"}]}]
)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> TinyMediaModel:
    return save_idefics3(tmp_path_factory.mktemp("idefics3"))


@pytest.fixture(scope="module")
def loaded(model: TinyMediaModel) -> LoadedModel:
    return load_model(str(model.folder), dtype="float32", device="cpu")


@pytest.fixture
def engine(loaded: LoadedModel) -> Engine:
    config = EngineConfig(
        model="tiny", dtype="float32", device="cpu", max_model_len=256, kv_cache_bytes=8 << 20
    )
    return Engine(config, loaded=loaded)


def explain(engine: Engine, chat: Chat, media: Sequence[Media], parts: list[str]) -> PlanEnd:
    """Return the end of an explained job."""
    runner = PlanRunner(engine)
    job = PlannedJob(engine, {"parts": parts}, chat, GREEDY, media=media)
    runner.add("job", explain_plan(job), JobOptions())
    while engine.has_unfinished():
        for output in engine.step():
            if output.finished:
                runner.take(output)
    (end,) = runner.take_ends()
    assert end.error is None
    return end


def ranked(model: TinyMediaModel, medium: Media, known: list[int]) -> list[int]:
    """Return the two likeliest next tokens of transformers after a picture and known tokens."""
    inputs = model.process(f"user:{model.written}What?;assistant:", [medium])
    inputs.pop("attention_mask", None)
    inputs["input_ids"] = torch.cat([inputs["input_ids"], torch.tensor([known]).long()], dim=1)
    with torch.inference_mode():
        best: list[int] = model.hf_model(**inputs).logits[0, -1].topk(2).indices.tolist()
    return best


def likeliest(model: TinyMediaModel, medium: Media, known: list[int], most: int) -> list[int]:
    """Return the likeliest tokens of transformers after known ones, up to the end of the text."""
    found: list[int] = []
    while len(found) < most and END not in found:
        found.append(ranked(model, medium, known + found)[0])
    return found


def test_alternatives_go_on_as_transformers_does(model: TinyMediaModel, engine: Engine) -> None:
    medium = model.make(1, 0)
    end = explain(engine, CHAT, [medium], ["confidence", "alternatives"])
    assert end.output is not None
    assert end.result is not None
    tokens = list(end.output.token_ids)
    assert tokens == likeliest(model, medium, [], 6)
    section: dict[str, Any] = dict(end.result.section)
    assert len(section["confidence"]) == 6
    assert all(0 < each["probability"] < 1 for each in section["confidence"])
    assert len(section["alternatives"]) == 3
    for each in section["alternatives"]:
        place = each["position"]
        other = ranked(model, medium, tokens[:place])[1]
        tail = likeliest(model, medium, [*tokens[:place], other], NUM_TOKENS)
        assert each["text"] == engine.tokenizer.decode([other, *tail])
    assert engine.stats().num_encoded_media == 1


def test_a_call_that_is_demanded_binds_no_alternative(
    model: TinyMediaModel, engine: Engine
) -> None:
    chat = Chat(messages=CHAT.messages, parallel_tool_calls=False)
    end = explain(engine, chat, [model.make(1, 0)], ["alternatives"])
    assert end.result is not None
    assert len(end.result.section["alternatives"]) == 3


def test_samples_see_the_picture(model: TinyMediaModel, engine: Engine) -> None:
    sections = []
    for seed in (1, 2, 1):
        end = explain(engine, CHAT, [model.make(seed, 0)], ["uncertainty"])
        assert end.result is not None
        section = dict(end.result.section["uncertainty"])
        assert section["num_samples"] == 8
        assert section["entropy"] <= math.log(8) + 1e-9
        sections.append(section)
    assert sections[0] == sections[2]
    assert sections[0] != sections[1]


def test_attribution_is_refused_by_name(model: TinyMediaModel, engine: Engine) -> None:
    with pytest.raises(RequestError, match="leave attribution out") as refused:
        explain(engine, CHAT, [model.make(1, 0)], ["attribution"])
    assert refused.value.code == "unsupported_parameter"
    assert not engine.has_unfinished()
