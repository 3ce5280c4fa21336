"""An explained job has the output of a plain one, and its explanation beside it."""

from __future__ import annotations

from typing import Any

import pytest

from batchmill.engine import Engine, EngineConfig
from batchmill.engine.loading.loading import LoadedModel, load_model
from batchmill.producer.errors import JobRejected
from batchmill.producer.job.validation import parse_job
from batchmill.producer.protocol.replies import JobState
from batchmill.producer.result_sections import Explanation
from batchmill.producer.results import JobResult
from batchmill.producer.settings import ProducerSettings
from batchmill.producer.store.submission import prepare
from batchmill.worker.console.explain_report import explanation_page
from batchmill.worker.engine_host.messages import AddRequest, Finished
from batchmill.worker.engine_host.real_engine import RealEngine

from ...support.tiny_models import NATIVE, random_model

PROMPT = list(range(2, 40))
CONFIG: dict[str, Any] = {"model": "tiny", "max_model_len": 128, "kv_cache_bytes": 4_000_000}
PARAMS: dict[str, Any] = {"max_tokens": 6, "seed": 5, "temperature": 1.0, "ignore_eos": True}
PARTS = ["confidence", "alternatives", "attribution", "uncertainty"]


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    """A tiny model, loaded once."""
    path = tmp_path_factory.mktemp("model")
    random_model(NATIVE["Llama"], path)
    return load_model(str(path), dtype="float32", device="cpu")


def finish(loaded: LoadedModel, **fields: Any) -> tuple[Finished, list[int]]:
    """Return a request's end, and the tokens that were reported of it."""
    hosted = RealEngine(Engine(EngineConfig(**CONFIG), loaded=loaded))
    hosted.add(AddRequest("job", PROMPT, None, PARAMS, **fields))
    shown: list[int] = []
    while hosted.has_unfinished():
        step = hosted.step()
        for name, token_ids, _, _ in step.new_outputs:
            assert name == "job"
            shown += token_ids
        if step.finished:
            (finished,) = step.finished
    return finished, shown


def test_the_output_is_that_of_a_plain_job_and_is_resumed_like_one(loaded: LoadedModel) -> None:
    plain, shown = finish(loaded)
    section = {"section": "explain", "section_fields": {"parts": PARTS}}
    explained, also_shown = finish(loaded, **section)
    assert (explained.text, explained.token_ids) == (plain.text, plain.token_ids)
    assert also_shown == shown == list(plain.token_ids)
    assert explained.finish_reason == plain.finish_reason
    assert explained.logprobs is None
    assert explained.entropies is None
    assert explained.num_prompt_tokens > plain.num_prompt_tokens
    found = Explanation.model_validate(explained.sections["explain"])
    assert found.confidence is not None
    assert len(found.confidence) == len(plain.token_ids)
    resumed, rest = finish(loaded, resumed_token_ids=list(plain.token_ids[:4]), **section)
    assert list(resumed.token_ids) == list(plain.token_ids)
    assert rest == list(plain.token_ids[4:])
    assert resumed.sections["explain"].keys() == explained.sections["explain"].keys()

    result = JobResult(
        id="gen_1", model="tiny", status=JobState.COMPLETED, text=plain.text, explain=found
    )
    page = explanation_page(result)
    assert "What else it could have said" in page
    assert "<script" not in page
    assert "://" not in page


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"n": 2}, "leave n out"),
        ({"echo": True}, "leave echo out"),
        ({"explain": ["confidence", "confidence"]}, "names a part twice"),
        ({"explain": ["everything"]}, "explain"),
        ({"explain_similarity": 0.9}, "for the samples of uncertainty"),
        ({"explain": ["uncertainty"], "explain_similarity": 2.0}, "explain_similarity"),
        ({"explain": ["attribution"], "truncate_prompt_tokens": 9}, "truncate_prompt_tokens out"),
    ],
)
def test_what_cannot_be_explained_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(JobRejected, match=message):
        parse_job({"prompt": "x", "explain": ["confidence"]} | fields)


def test_the_cost_is_estimated_before() -> None:
    plain = prepare(parse_job({"prompt": "x" * 400, "max_tokens": 10}), ProducerSettings())
    asked = parse_job({"prompt": "x" * 400, "max_tokens": 10, "explain": ["attribution"]})
    assert prepare(asked, ProducerSettings()).cost == 77 * plain.cost
