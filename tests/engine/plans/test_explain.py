"""Explanations equal what the same requests give alone, and are the same after a crash."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from batchmill.engine import Chat, Engine, SamplingParams
from batchmill.engine.lifecycle.intake import Prompt
from batchmill.engine.plans.explain.linear_fit import lasso, spearman
from batchmill.engine.plans.explain.plan import explain_plan
from batchmill.engine.plans.explain.segments import MAX_SEGMENTS, ExplainedInput
from batchmill.engine.plans.explain.uncertainty import uncertainty
from batchmill.engine.plans.plan import PlanEnd, PlannedJob
from batchmill.engine.plans.runner import JobOptions, PlanRunner

MakeEngine = Callable[..., Engine]
PROMPT = "The mill is old.\n\nThe river is wide.\n\nThe miller is tall.\n\nWhat is wide?"
GREEDY = SamplingParams(temperature=0, max_tokens=6, ignore_eos=True)
ALL = ["confidence", "alternatives", "attribution", "uncertainty"]


def explain(
    engine: Engine,
    prompt: Prompt = PROMPT,
    params: SamplingParams = GREEDY,
    parts: list[str] | None = None,
    similarity: float | None = None,
    **options: Any,
) -> PlanEnd:
    """Return the end of an explained job."""
    runner = PlanRunner(engine)
    section = {"parts": parts or ALL, "similarity": similarity}
    job = PlannedJob(engine, section, prompt, params)
    runner.add("job", explain_plan(job), JobOptions(**options))
    while engine.has_unfinished():
        for output in engine.step():
            if output.finished:
                runner.take(output)
    (end,) = runner.take_ends()
    return end


def section_of(end: PlanEnd) -> dict[str, Any]:
    """Return the section of a job that has ended well."""
    assert end.error is None
    assert end.result is not None
    return dict(end.result.section)


def score(engine: Engine, prompt: list[int], answer: list[int]) -> float:
    """Return the log probability of an answer after a prompt, by another way than the plan."""
    params = SamplingParams(max_tokens=0, prompt_logprobs=0)
    (output,) = engine.generate([[*prompt, *answer]], params)
    rows = (output.prompt_logprobs or [])[len(prompt) :]
    return sum(row[each] for row, each in zip(rows, answer, strict=True) if row is not None)


def test_the_output_is_that_of_the_job_alone_and_confidence_is_of_its_tokens(
    byte_engine: MakeEngine,
) -> None:
    (alone,) = byte_engine().generate(
        [PROMPT], SamplingParams(temperature=0, max_tokens=6, ignore_eos=True, logprobs=5)
    )
    end = explain(byte_engine(), parts=["confidence"])
    assert end.output is not None
    assert end.output.token_ids == alone.token_ids
    assert alone.logprobs is not None
    for fact, token_id, row in zip(
        section_of(end)["confidence"], alone.token_ids, alone.logprobs, strict=True
    ):
        assert fact["probability"] == pytest.approx(math.exp(row[token_id]), abs=1e-4)
        assert fact["rank"] == 1
        other = max(value for each, value in row.items() if each != token_id)
        assert fact["margin"] == pytest.approx(math.exp(row[token_id]) - math.exp(other), abs=1e-4)
        assert 0 <= fact["entropy"] <= math.log(264)


def test_an_alternative_is_the_greedy_continuation_after_the_runner_up(
    byte_engine: MakeEngine,
) -> None:
    engine = byte_engine()
    end = explain(engine, parts=["alternatives"])
    alternatives = section_of(end)["alternatives"]
    assert len(alternatives) == 3
    assert end.output is not None
    for each in alternatives:
        place, other_ids = each["position"], engine.tokenizer.encode_plain(each["other_token"])
        if len(other_ids) != 1:
            continue  # a byte that is no character by itself
        (other,) = other_ids
        prefix = [*end.output.prompt_token_ids, *end.output.token_ids[:place], other]
        (forked,) = engine.generate([prefix], SamplingParams(temperature=0, max_tokens=32))
        assert each["text"] == engine.tokenizer.decode([other, *forked.token_ids])
        assert each["other_probability"] <= each["probability"]


def test_leaving_a_part_out_lowers_the_score_by_what_it_was_worth(
    byte_engine: MakeEngine,
) -> None:
    engine = byte_engine()
    end = explain(engine, parts=["attribution"])
    found = section_of(end)["attribution"]
    parts = ["The mill is old.", "The river is wide.", "The miller is tall."]
    assert [each["text"] for each in found["segments"]] == parts
    assert end.output is not None
    answer = end.output.token_ids
    whole = score(engine, engine.tokenizer.encode(PROMPT), answer)
    for part, segment in zip(parts, found["segments"], strict=True):
        without = engine.tokenizer.encode(PROMPT.replace(f"{part}\n\n", ""))
        expected = whole - score(engine, without, answer)
        assert segment["leave_one_out"] == pytest.approx(expected, abs=2e-3)
    best = max(found["segments"], key=lambda each: each["weight"])["text"]
    without = engine.tokenizer.encode(PROMPT.replace(f"{best}\n\n", ""))
    drop = whole - score(engine, without, answer)
    assert found["top_k_drop"]["1"] == pytest.approx(drop, abs=2e-3)
    assert set(found["top_k_drop"]) == {"1", "3"}
    assert found["lds"] is None or -1 <= found["lds"] <= 1


def test_a_resumed_or_preempted_job_is_explained_alike(byte_engine: MakeEngine) -> None:
    expected = explain(byte_engine(), params=SamplingParams(max_tokens=8, seed=3, ignore_eos=True))
    assert expected.output is not None
    params = SamplingParams(max_tokens=8, seed=3, ignore_eos=True)
    tokens = expected.output.token_ids
    for settings, saved in (({}, tokens[:5]), ({}, tokens), ({"max_num_batched_tokens": 17}, [])):
        end = explain(byte_engine(**settings), params=params, resumed_token_ids=saved)
        assert end.output is not None
        assert end.output.token_ids == tokens
        check_close(section_of(end), section_of(expected))


def check_close(found: Any, expected: Any) -> None:
    """Assert that two sections are equal, their figures up to rounding."""
    if isinstance(expected, dict):
        assert found.keys() == expected.keys()
        for name in expected:
            check_close(found[name], expected[name])
    elif isinstance(expected, list):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            check_close(one, other)
    elif isinstance(expected, float):
        assert found == pytest.approx(expected, abs=5e-3)
    else:
        assert found == expected


def test_documents_and_paragraphs_are_left_out_each_by_itself(tiny_chat: Engine) -> None:
    chat = Chat(
        messages=[
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "One.\n\nTwo.\n\nWhich?"},
        ]
    )
    explained = ExplainedInput(PlannedJob(tiny_chat, {}, chat, GREEDY))
    assert [(each.source, each.text.strip()) for each in explained.segments] == [
        ("messages.0", "Be brief."),
        ("messages.1", "One."),
        ("messages.1", "Two."),
    ]
    decode = tiny_chat.tokenizer.decode
    assert "One." not in decode(explained.prompt_without([1]))
    assert "Two." in decode(explained.prompt_without([1]))
    assert decode(explained.prompt_without([0, 1, 2])).count("Which?") == 1


def test_a_long_input_has_a_bounded_number_of_parts(tiny_chat: Engine) -> None:
    text = "\n\n".join(f"Paragraph {n}." for n in range(200))
    explained = ExplainedInput(PlannedJob(tiny_chat, {}, text, GREEDY))
    assert len(explained.segments) == MAX_SEGMENTS
    joined = "".join(each.text for each in explained.segments)
    assert joined.endswith("Paragraph 198.\n\n")


def test_many_documents_are_joined_and_none_is_left_out(tiny_chat: Engine) -> None:
    documents = [{"title": "", "text": f"Document {n}."} for n in range(50)]
    chat = Chat(messages=[{"role": "user", "content": "Which?"}], documents=documents)
    explained = ExplainedInput(PlannedJob(tiny_chat, {}, chat, GREEDY))
    assert len(explained.segments) == MAX_SEGMENTS
    joined = "\n\n".join(each.text for each in explained.segments)
    assert joined.split("\n\n") == [each["text"] for each in documents]
    assert explained.segments[-1].source in ("documents.49", "documents.48 to documents.49")


@pytest.mark.parametrize("num_messages", [1, 3000])
def test_an_input_of_very_many_parts_is_cut_without_delay(
    tiny_chat: Engine, num_messages: int
) -> None:
    text = "a.\n\n" * (30_000 // num_messages)
    messages = [{"role": "user", "content": text} for _ in range(num_messages)]
    chat = Chat(messages=[*messages, {"role": "user", "content": "Which?"}])
    explained = ExplainedInput(PlannedJob(tiny_chat, {}, chat, GREEDY))
    assert len(explained.segments) == MAX_SEGMENTS
    spans = [span for each in explained.segments for span in each.spans]
    assert sum(len(each.text) for each in spans) == len(text) * num_messages


def test_a_runner_up_that_ends_the_output_is_not_continued(
    byte_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = byte_engine()
    monkeypatch.setattr(Engine, "eos_token_ids", frozenset(range(264)))
    end = explain(engine, params=SamplingParams(temperature=0, max_tokens=6), parts=ALL[1:2])
    assert end.counts.num_requests == 1
    for each in section_of(end)["alternatives"]:
        assert len(each["text"]) <= len(each["other_token"])


@pytest.fixture
def tiny_chat(make_engine: Callable[..., Engine]) -> Engine:
    """An engine whose tokenizer has a chat template."""
    return make_engine()


def test_the_sparse_fit_finds_the_columns_that_count() -> None:
    rng = np.random.default_rng(1)
    masks = rng.integers(0, 2, (64, 12)).astype(np.float64)
    targets = 5 * masks[:, 3] - 2 * masks[:, 7] + 0.01 * rng.normal(size=64)
    weights = lasso(masks, targets)
    assert weights[3] == pytest.approx(5, abs=0.2)
    assert weights[7] == pytest.approx(-2, abs=0.2)
    assert np.abs(np.delete(weights, [3, 7])).max() < 0.1
    assert not lasso(masks, np.ones(64)).any()
    assert spearman([1, 2, 3, 3], [10, 20, 30, 30]) == pytest.approx(1)
    assert spearman([1, 2, 3], [3, 2, 1]) == pytest.approx(-1)
    assert spearman([1, 1, 1], [3, 2, 1]) is None


def test_samples_that_say_the_same_are_one_group() -> None:
    found = uncertainty("Paris", ["Paris.", " paris", "PARIS!", "Lyon"])
    assert [(each["text"], each["count"]) for each in found["groups"]] == [
        ("Paris.", 3),
        ("Lyon", 1),
    ]
    assert found["agreement"] == 0.75
    assert found["entropy"] == pytest.approx(-(0.75 * math.log(0.75) + 0.25 * math.log(0.25)))


def test_samples_are_grouped_by_the_distance_of_their_embeddings(byte_engine: MakeEngine) -> None:
    params = SamplingParams(temperature=0, max_tokens=3, ignore_eos=True, seed=4)
    engine = byte_engine()
    found = {
        each: section_of(explain(engine, PROMPT, params, ["uncertainty"], each))
        for each in (None, 1.0, 0.9, -1.0)
    }
    groups = {each: section["uncertainty"]["groups"] for each, section in found.items()}
    sizes = {each: len(of_one) for each, of_one in groups.items()}
    assert sizes[None] == sizes[1.0] > 1
    assert sizes[1.0] >= sizes[0.9] >= sizes[-1.0] == 1
    assert {sum(group["count"] for group in each) for each in groups.values()} == {8}
    assert found[-1.0]["uncertainty"]["agreement"] == 1
    assert found[-1.0]["uncertainty"]["match"] == "embedding"
    assert found[None]["uncertainty"]["match"] == "exact"
    assert found[1.0]["usage"]["num_requests"] > found[None]["usage"]["num_requests"] == 8


def test_texts_of_one_meaning_are_one_group() -> None:
    meanings = {"paris": "paris", "it is paris": "paris", "lyon": "lyon"}
    found = uncertainty("It is Paris.", ["Lyon", "Paris", "it is Paris"], meanings)
    assert [(each["text"], each["count"]) for each in found["groups"]] == [
        ("Paris", 2),
        ("Lyon", 1),
    ]
    assert found["agreement"] == pytest.approx(2 / 3)
