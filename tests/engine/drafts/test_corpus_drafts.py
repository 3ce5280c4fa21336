"""Drafts from earlier outputs change no token, and save steps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from batchmill.engine import Engine, RequestOutput, SamplingParams
from batchmill.engine.drafts.corpus import DraftCorpora
from batchmill.engine.drafts.drafter import DraftSource

MakeEngine = Callable[..., Engine]
RECORD = {
    "type": "object",
    "properties": {"category": {"enum": ["refund", "complaint"]}, "is_urgent": {"type": "boolean"}},
    "required": ["category", "is_urgent"],
    "additionalProperties": False,
}
STRUCTURE = {"json": RECORD, "disable_any_whitespace": True}
GREEDY = SamplingParams(temperature=0, max_tokens=40, ignore_eos=True)
CASES = {
    "greedy": GREEDY,
    "sampled": SamplingParams(temperature=1.0, top_p=0.9, seed=5, max_tokens=40, ignore_eos=True),
    "structure": SamplingParams(seed=3, max_tokens=60, structured_outputs=STRUCTURE),
    "watermark": SamplingParams(seed=2, max_tokens=40, watermark="press", ignore_eos=True),
    "stop": SamplingParams(seed=9, max_tokens=40, stop=["e"], ignore_eos=True),
    "samples": SamplingParams(seed=4, max_tokens=30, n=2, ignore_eos=True),
    "penalty": SamplingParams(seed=4, max_tokens=30, repetition_penalty=1.2, ignore_eos=True),
    "logprobs": replace(GREEDY, logprobs=1),
}
KEYS = {"watermark_keys": {"press": "a secret of the operator"}}


def run(
    engine: Engine,
    cases: dict[str, SamplingParams],
    *,
    corpus: str | None = "rows",
    resumed: dict[str, list[int]] | None = None,
) -> dict[str, RequestOutput]:
    for name, params in cases.items():
        start = (resumed or {}).get(name, ())
        engine.add_request(name, f"Row {name}:", params, start, draft_corpus=corpus)
    ends: dict[str, RequestOutput] = {}
    while engine.has_unfinished():
        ends |= {each.request_id: each for each in engine.step() if each.finished}
    return ends


def content(outputs: dict[str, RequestOutput]) -> dict[str, Any]:
    return {
        name: (
            [(each.token_ids, each.text) for each in output.completions],
            output.finish_reason,
            output.stop_reason,
            output.usage.completion_tokens,
        )
        for name, output in outputs.items()
    }


def tokens_of(outputs: dict[str, RequestOutput]) -> list[list[int]]:
    return [each.token_ids for output in outputs.values() for each in output.completions]


@pytest.mark.parametrize("learned", ["the same", "others", "a mixture"])
@pytest.mark.parametrize("kind", ["plain", "preempted", "with lookup", "overlap"])
def test_outputs_are_the_same_whatever_the_corpus_has(
    byte_engine: MakeEngine, kind: str, learned: str
) -> None:
    kinds: dict[str, dict[str, Any]] = {
        "plain": {},
        "preempted": {
            "kv_cache_bytes": 44 * 1024,
            "max_model_len": 160,
            "enable_prefix_caching": False,
        },
        "with lookup": {"num_speculative_tokens": 4, "speculative_max_num_seqs": 16},
        "overlap": {"overlap": True, "decode_graphs": True},
    }
    settings = kinds[kind]
    expected = run(byte_engine(**KEYS), CASES, corpus=None)
    same = tokens_of(expected)
    others = [[(token + place) % 200 for place, token in enumerate(each)] for each in same]
    engine = byte_engine(**KEYS, **settings)
    corpora = {"the same": same, "others": others, "a mixture": [*same, *others]}
    engine.set_draft_corpus("rows", corpora[learned])
    assert content(run(engine, CASES)) == content(expected)
    stats = engine.stats()
    if kind == "preempted":
        assert stats.num_preemptions > 0
    if learned == "the same":
        counts = engine.draft_counts()
        assert counts is not None
        num_drafts, num_accepted = counts.by_source[DraftSource.CORPUS]
        assert 50 < num_accepted <= num_drafts


@pytest.mark.parametrize("name", ["greedy", "sampled", "structure", "watermark"])
def test_a_resumed_request_drafts_from_the_corpus_and_continues_as_before(
    byte_engine: MakeEngine, name: str
) -> None:
    case = {name: CASES[name]}
    expected = run(byte_engine(**KEYS), case, corpus=None)
    (whole,) = tokens_of(expected)
    engine = byte_engine(**KEYS)
    engine.set_draft_corpus("rows", [whole])
    for cut in range(1, len(whole), 7):
        assert content(run(engine, case, resumed={name: whole[:cut]})) == content(expected)
    assert engine.stats().num_accepted_tokens > 0


def test_known_outputs_need_a_fraction_of_the_steps(byte_engine: MakeEngine) -> None:
    cases = {f"{seed}": replace(CASES["sampled"], seed=seed) for seed in range(8)}
    plain = byte_engine()
    expected = run(plain, cases, corpus=None)
    engine = byte_engine()
    engine.set_draft_corpus("rows", tokens_of(expected))
    assert content(run(engine, cases)) == content(expected)
    assert engine.stats().num_steps < plain.stats().num_steps / 2


def test_a_corpus_may_come_and_go_while_requests_run(byte_engine: MakeEngine) -> None:
    expected = run(byte_engine(), {"greedy": GREEDY}, corpus=None)
    engine = byte_engine()
    engine.add_request("greedy", "Row greedy:", GREEDY, draft_corpus="rows")
    for _ in range(10):
        engine.step()
    assert engine.draft_counts() is None
    engine.set_draft_corpus("rows", tokens_of(expected))
    engine.step()
    counts = engine.draft_counts()
    assert counts is not None
    engine.set_draft_corpus("rows", [])
    ends = [output for _ in range(40) for output in engine.step() if output.finished]
    assert [each.token_ids for each in ends] == tokens_of(expected)
    assert engine.draft_counts() == counts


def test_names_without_outputs_are_forgotten_with_their_requests() -> None:
    corpora = DraftCorpora(vocab_size=9)
    used = [corpora.find("used")]
    for name in ("a", "b", "used"):
        assert corpora.find(name) is not None
    assert len(corpora._by_name) == 1
    corpora.replace("used", [[1, 2]])
    corpora.replace("used", [])
    corpora.replace("used", [[3]])
    assert used[0] is not None
    assert not used[0].is_empty, "a request keeps the corpus that it was given"
    used.clear()
    assert corpora.find("used") is corpora._filled["used"]
    corpora.replace("used", [])
    assert not corpora._by_name
    corpora.replace("used", [[], []])
    assert not corpora._by_name, "outputs without tokens are no outputs"


def test_steps_overlap_while_a_corpus_is_empty(byte_engine: MakeEngine) -> None:
    engine = byte_engine(overlap=True)
    engine.add_request("greedy", "Row greedy:", GREEDY, draft_corpus="rows")
    engine.step()
    speculation = engine._scheduler._speculation
    assert speculation is not None
    assert not speculation.pays_for(engine._scheduler.running)
    engine.set_draft_corpus("rows", [[1, 2, 3]])
    assert speculation.pays_for(engine._scheduler.running)
    engine.abort("greedy")
    engine.step()


def test_requests_of_another_corpus_or_of_none_draft_nothing(byte_engine: MakeEngine) -> None:
    expected = run(byte_engine(), {"greedy": GREEDY}, corpus=None)
    engine = byte_engine()
    engine.set_draft_corpus("rows", tokens_of(expected))
    for corpus in ("others", None):
        assert content(run(engine, {"greedy": GREEDY}, corpus=corpus)) == content(expected)
    assert engine.draft_counts() is None


def test_an_engine_without_tokens_from_a_corpus_uses_none(byte_engine: MakeEngine) -> None:
    expected = run(byte_engine(), {"greedy": GREEDY}, corpus=None)
    engine = byte_engine(num_corpus_tokens=0)
    engine.set_draft_corpus("rows", tokens_of(expected))
    assert content(run(engine, {"greedy": GREEDY})) == content(expected)
    assert engine.draft_counts() is None


def test_an_output_with_a_token_that_the_model_does_not_have_is_left_out(
    byte_engine: MakeEngine,
) -> None:
    expected = run(byte_engine(), {"greedy": GREEDY}, corpus=None)
    (known,) = tokens_of(expected)
    engine = byte_engine()
    engine.set_draft_corpus("rows", [[*known[:5], 2**31]] * 3)
    assert content(run(engine, {"greedy": GREEDY})) == content(expected)
    assert engine.draft_counts() is None
    engine.set_draft_corpus("rows", [known, [2**31]])
    assert content(run(engine, {"greedy": GREEDY})) == content(expected)
    assert engine.draft_counts() is not None
