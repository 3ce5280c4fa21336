"""Beam searches find the outputs of transformers, alone, batched and preempted."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaForCausalLM

from batchmill.engine import Engine, SamplingParams
from batchmill.engine.errors import RequestError
from batchmill.engine.loading.loading import LoadedModel, load_model
from batchmill.engine.plans.beam_search.beams import Beam, BeamSearch
from batchmill.engine.plans.beam_search.plan import beam_plan
from batchmill.engine.plans.beam_search.saved_search import read_search, written_search
from batchmill.engine.plans.plan import PlanEnd, PlannedJob
from batchmill.engine.plans.runner import JobOptions, PlanRunner
from batchmill.producer.bulk.result_lines import result_line
from batchmill.producer.errors import JobRejected
from batchmill.producer.job.line import LineKind
from batchmill.producer.job.validation import parse_document, parse_job
from batchmill.producer.protocol.replies import Claim
from batchmill.producer.results import JobResult
from batchmill.producer.settings import ProducerSettings
from batchmill.producer.store.submission import prepare
from batchmill.worker.engine_host.messages import Finished
from batchmill.worker.engine_host.real_engine import RealEngine
from batchmill.worker.jobs.active_job import ActiveJob
from batchmill.worker.jobs.engine_request import engine_request
from batchmill.worker.jobs.job_end import finished_end

from ...worker.celery_tasks import a_task
from ..tiny_model import check_nothing_is_lost, save_model, tiny_engine

PROMPT = [(7 * index) % 200 + 20 for index in range(19)]
#: Tokens that the tiny model likes, so that outputs end at different lengths.
ENDS = [122, 198, 1, 59]
SEARCHES: dict[str, dict[str, Any]] = {
    "plain": {"beam_width": 3},
    "wide": {"beam_width": 8},
    "short": {"beam_width": 4, "length_penalty": -1.5},
    "long": {"beam_width": 4, "length_penalty": 2.0},
    "early": {"beam_width": 4, "early_stopping": True},
    "never": {"beam_width": 4, "early_stopping": "never"},
    "no penalty": {"beam_width": 4, "length_penalty": 0.0},
}
DEFAULTS = {"length_penalty": 1.0, "early_stopping": False}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("beams")
    save_model(folder)
    return folder


@pytest.fixture(scope="module")
def loaded(folder: Path) -> LoadedModel:
    return load_model(str(folder), dtype="float32", device="cpu")


@pytest.fixture(scope="module")
def oracle(folder: Path) -> dict[str, list[list[int]]]:
    """The best outputs of transformers for each search, all of them."""
    model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    found = {}
    for name, search in SEARCHES.items():
        sequences = model.generate(
            torch.tensor([PROMPT]),
            num_beams=search["beam_width"],
            num_return_sequences=search["beam_width"],
            length_penalty=search.get("length_penalty", 1.0),
            early_stopping=search.get("early_stopping", False),
            max_new_tokens=14,
            do_sample=False,
            eos_token_id=[256, *ENDS],
            pad_token_id=0,
        )
        found[name] = [_until_end(each[len(PROMPT) :].tolist()) for each in sequences]
    lengths = {len(each) for sequences in found.values() for each in sequences}
    assert len(lengths) > 3, "outputs end at different lengths"
    return found


def _until_end(token_ids: list[int]) -> list[int]:
    """Return tokens up to the first that ends an output; padding follows it."""
    for place, token_id in enumerate(token_ids):
        if token_id in (256, *ENDS):
            return token_ids[: place + 1]
    return token_ids


def search(engine: Engine, names: list[str], others: int = 0) -> dict[str, PlanEnd]:
    """Return the ends of searches that run side by side, with some other requests."""
    runner = PlanRunner(engine)
    sampled = SamplingParams(max_tokens=30, ignore_eos=True, seed=1)
    for number in range(others):
        engine.add_request(f"other {number}", [*PROMPT[:number], 7, 8, 9], sampled)
    for name in names:
        section = DEFAULTS | SEARCHES[name]
        params = SamplingParams(max_tokens=14, n=section["beam_width"], stop_token_ids=ENDS)
        plan = beam_plan(PlannedJob(engine, section, PROMPT, params))
        runner.add(name, plan, JobOptions(priority=1))
    while engine.has_unfinished():
        for output in engine.step():
            if output.finished:
                runner.take(output)
        engine._scheduler.check_invariants()
    return {end.request_id: end for end in runner.take_ends()}


def outputs_of(end: PlanEnd) -> list[list[int]]:
    assert end.error is None
    assert end.output is not None
    return [each.token_ids for each in end.output.completions]


@pytest.mark.parametrize("name", SEARCHES)
def test_outputs_equal_those_of_transformers(
    loaded: LoadedModel, oracle: dict[str, list[list[int]]], name: str
) -> None:
    engine = tiny_engine(loaded)
    end = search(engine, [name])[name]
    assert outputs_of(end) == oracle[name]
    assert end.result is not None
    assert end.result.section["scores"] == sorted(end.result.section["scores"], reverse=True)
    assert end.counts.num_prompt_tokens == len(PROMPT)
    assert end.counts.num_output_tokens == end.result.section["num_beam_tokens"]
    check_nothing_is_lost(engine)


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({}, id="batched"),
        pytest.param({"num_blocks": 18}, id="preempted"),
        pytest.param({"overlap": True, "max_num_batched_tokens": 16}, id="overlapped, chunked"),
    ],
)
def test_outputs_do_not_depend_on_the_batch(
    loaded: LoadedModel, oracle: dict[str, list[list[int]]], settings: dict[str, Any]
) -> None:
    engine = tiny_engine(loaded, **settings)
    names = ["plain", "short", "never"]
    ends = search(engine, names, others=3)
    assert {name: outputs_of(ends[name]) for name in names} == {n: oracle[n] for n in names}
    if "num_blocks" in settings:
        assert engine.stats().num_preemptions > 0
    check_nothing_is_lost(engine)


def test_beams_share_blocks_and_an_abort_frees_all(loaded: LoadedModel) -> None:
    engine = tiny_engine(loaded)
    runner = PlanRunner(engine)
    section = DEFAULTS | {"beam_width": 8}
    params = SamplingParams(max_tokens=14, ignore_eos=True)
    runner.add("job", beam_plan(PlannedJob(engine, section, PROMPT, params)), JobOptions())
    for _ in range(8):
        for output in engine.step():
            if output.finished:
                runner.take(output)
    # Each step computes what is not in a full block of four tokens; apart, 20 tokens and more.
    assert engine.stats().num_computed_tokens <= len(PROMPT) + 7 * 8 * 4
    assert runner.abort("job")
    while engine.has_unfinished():
        for output in engine.step():
            if output.finished:
                runner.take(output)
    (end,) = runner.take_ends()
    assert end.finish_reason == "abort"
    check_nothing_is_lost(engine)


def finish(
    loaded: LoadedModel,
    resumed: list[int] | None = None,
    *,
    plan_state: bytes = b"",
    states: list[bytes] | None = None,
    **fields: Any,
) -> tuple[JobResult, Finished, list[int]]:
    """Return a job's result and end, and the tokens that were reported.

    It continues from `plan_state`; those that it saves are added to `states`.
    """
    job = parse_job({"prompt": PROMPT, "max_tokens": 14, "stop_token_ids": ENDS} | fields)
    document = parse_document(prepare(job, ProducerSettings()).document)
    claim = Claim(
        *("j", "1.n", b"{}", resumed or [], 1, False, None, 0, 0, 0), plan_state=plan_state
    )
    hosted = RealEngine(tiny_engine(loaded))
    request = engine_request(claim, document, None)
    hosted.add(request)
    shown: list[int] = []
    while hosted.has_unfinished():
        step = hosted.step()
        if states is not None:
            states += step.plan_states.values()
        shown += [token for _, token_ids, _, _ in step.new_outputs for token in token_ids]
        if step.finished:
            (finished,) = step.finished
    end = finished_end(ActiveJob(claim, request, a_task("j")), finished, worker="w", model="tiny")
    assert end.result is not None
    return JobResult.model_validate_json(end.result), finished, shown


def test_a_job_returns_the_best_and_reports_their_tokens_once(
    loaded: LoadedModel, oracle: dict[str, list[list[int]]]
) -> None:
    result, finished, shown = finish(loaded, beam_search={"beam_width": 3}, n=2, logprobs=0)
    assert [each.token_ids for each in result.completions] == oracle["plain"][:2]
    assert list(finished.token_ids) == shown == oracle["plain"][0]
    assert result.beam_search is not None
    (first, _) = result.completions
    assert first.logprobs is not None
    scored = sum(row[t] for t, row in zip(first.token_ids, first.logprobs, strict=True) if row)
    assert result.beam_search.scores[0] == pytest.approx(scored / len(first.token_ids), abs=1e-4)
    assert result.usage.prompt_tokens == len(PROMPT)
    assert result.usage.completion_tokens == result.beam_search.num_beam_tokens
    line = result_line("r", "c", LineKind.TEXT, result, finished_at_ms=0)
    assert line["response"]["body"]["beam_search"] == result.beam_search.model_dump()
    # A worker that died after the last checkpoint: what is saved is not reported again.
    again, _, rest = finish(loaded, shown[:2], beam_search={"beam_width": 3})
    assert again.text == result.text
    assert rest == shown[2:]


@pytest.mark.parametrize("name", ["plain", "early", "never"])
def test_a_search_continues_from_its_saved_state(loaded: LoadedModel, name: str) -> None:
    """The tokens are equal; scores are, up to the rounding of sums in another order."""
    section = SEARCHES[name]
    fields: dict[str, Any] = {"beam_search": section, "n": 2, "max_tokens": 22}
    states: list[bytes] = []
    whole, _, _ = finish(loaded, states=states, **fields)
    assert whole.beam_search is not None
    assert states, "nothing was saved"
    for state in states:
        later: list[bytes] = []
        resumed, _, _ = finish(loaded, plan_state=state, states=later, **fields)
        assert later == states[states.index(state) :]
        assert [each.token_ids for each in resumed.completions] == [
            each.token_ids for each in whole.completions
        ]
        assert resumed.beam_search is not None
        assert resumed.beam_search.scores == pytest.approx(whole.beam_search.scores, abs=1e-5)
        assert resumed.beam_search.num_beam_tokens == whole.beam_search.num_beam_tokens


def test_the_state_of_many_long_beams_takes_little_more_than_one_of_them() -> None:
    rng = random.Random(0)
    first = tuple(rng.randrange(100_000) for _ in range(20_000))
    beams = [Beam(first[: -10 * place - 1] + (place,) * 5, -place / 7) for place in range(16)]

    def new_search(running: list[Beam], finished: list[Beam]) -> BeamSearch:
        return BeamSearch(16, ENDS, 30_000, 1.0, False, running, finished)

    state = written_search(new_search(beams, beams[::2]), 40)
    assert len(state) < 1.5 * len(written_search(new_search(beams[:1], []), 40))
    found = new_search([], [])
    assert read_search(state, found) == 40
    assert (found.running, found.finished) == (beams, beams[::2])


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"beam_search": {"beam_width": 1}}, "2"),
        ({"beam_search": {"beam_width": 17}}, "16"),
        ({"beam_search": {"beam_width": 4}, "n": 5}, "more than beam_width"),
        ({"beam_search": {"beam_width": 4}, "temperature": 0.5}, "temperature cannot be"),
        ({"beam_search": {"beam_width": 4}, "stop": ["x"], "top_k": 3}, "top_k, stop cannot be"),
        ({"beam_search": {"beam_width": 4}, "guidance_scale": 2}, "guidance_scale cannot be"),
        ({"beam_search": {"beam_width": 4}, "explain": ["confidence"]}, "explain cannot be"),
        ({"beam_search": {"beam_width": 4, "early_stopping": "soon"}}, "early_stopping"),
        ({"beam_search": {"beam_width": 4}, "max_tokens": 0, "echo": True}, "at least 1"),
    ],
    ids=str,
)
def test_searches_that_cannot_be_are_refused(fields: dict[str, Any], problem: str) -> None:
    with pytest.raises(JobRejected, match=problem):
        parse_job({"prompt": "x", **fields})


def test_an_engine_refuses_what_it_cannot_search_for(loaded: LoadedModel) -> None:
    params = SamplingParams(max_tokens=4)
    wide = DEFAULTS | {"beam_width": 16}
    many = SamplingParams(max_tokens=4, stop_token_ids=list(range(8)))
    for engine, given, message in (
        (tiny_engine(loaded, enable_prefix_caching=False), params, "prefix cache"),
        (tiny_engine(loaded), many, "lower beam_width"),
    ):
        runner = PlanRunner(engine)
        plan = beam_plan(PlannedJob(engine, wide, PROMPT, given))
        with pytest.raises(RequestError, match=message):
            runner.add("job", plan, JobOptions())
        assert not engine.has_unfinished()
